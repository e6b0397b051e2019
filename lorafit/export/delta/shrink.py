"""A smaller adapter: each layer's ΔW cut to the ranks that carry it, and the loss measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.errors import UserError
from lorafit.export.delta import factors as thin
from lorafit.export.delta.files import (
    LoraAdapter,
    read_lora,
    refuse_broken,
    refuse_other_than_lora,
    with_factors,
    write_lora,
)
from lorafit.export.delta.held_out import kept_rows, measure
from lorafit.export.surroundings import write_surroundings
from lorafit.export.verify import Agreement, compare
from lorafit.model.adapters.files import WEIGHTS
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import committed_directory, refuse_target


@dataclass(frozen=True)
class CutLayer:
    """Ranks of one weight before and after, and the share of its ‖ΔW‖² that is left."""

    name: str
    rank_before: int
    rank: int
    energy_kept: float


@dataclass(frozen=True)
class ShrinkResult:
    """Where the adapter is and what it lost. Losses in nats per supervised token on `rows`."""

    directory: Path
    layers: list[CutLayer]
    energy_kept: float
    size_before_bytes: int
    size_bytes: int
    rows: str
    loss_before: float
    loss: float
    agreement: Agreement
    remarks: list[str]


def shrink(source: AdapterSource, output: Path, *, share: float | None = None,
           rank: int | None = None,
           say: Callable[[str], None] = lambda text: None) -> ShrinkResult:
    """Write an adapter with, per layer, the smallest rank that keeps `share` of ‖ΔW‖², or `rank`.

    UserError when the adapter has no ranks to cut. What is left of each layer is the nearest to
    ΔW of that rank; biases, magnitudes and layers trained in full stay as they are.
    """
    if (share is None) == (rank is None):
        raise UserError("exactly one of a share and a rank is needed", "--shrink",
                        "use --shrink 0.99, or --rank 8")
    if share is not None and not 0 < share <= 1:
        raise UserError(f"{share:g} is no share of the energy", "--shrink",
                        "use a number above 0, up to 1, for example 0.99")
    refuse_target(output, "choose another directory with --output")
    refuse_other_than_lora(source, "cut to smaller ranks")
    adapter = read_lora(source)
    refuse_broken(source, adapter)
    cut, layers = _cut(adapter, share, rank)
    rows = kept_rows(source)
    say(f"measuring the adapter as it was on {rows.what}")
    before = measure(source.model, source.directory, rows)
    with committed_directory(output) as partial:
        write_lora(partial, cut)
        write_surroundings(source, partial)
    say("measuring it as it is now")
    after = measure(source.model, output, rows)
    return ShrinkResult(
        output, layers, _total_energy(adapter, layers),
        (source.directory / WEIGHTS).stat().st_size, (output / WEIGHTS).stat().st_size,
        rows.what, before.loss, after.loss, compare(before.logits, after.logits),
        _remarks(source),
    )


def _cut(adapter: LoraAdapter, share: float | None,
         rank: int | None) -> tuple[LoraAdapter, list[CutLayer]]:
    layers, told = {}, []
    for name, layer in adapter.layers.items():
        values = thin.singular_values(layer.factors)
        given = layer.factors.rank
        kept = min(given, rank) if rank is not None else thin.rank_for(values, share or 1.0)
        kept = min(kept, values.shape[1])
        layers[name] = with_factors(layer, thin.cut(layer.factors, kept))
        told.append(CutLayer(name, given, kept, thin.energy_kept(values, kept)))
    return replace(adapter, layers=layers), told


def _total_energy(adapter: LoraAdapter, layers: list[CutLayer]) -> float:
    """Share of the sum of ‖ΔW‖² over all layers."""
    energies = [thin.norm(adapter.layers[layer.name].factors) ** 2 for layer in layers]
    kept = sum(energy * layer.energy_kept
               for energy, layer in zip(energies, layers, strict=True))
    return kept / sum(energies) if sum(energies) else 1.0


def _remarks(source: AdapterSource) -> list[str]:
    config, remarks = source.config, []
    if config.get("use_dora"):
        remarks.append("DoRA: the share is of scale·B·A; the magnitudes stay as they were")
    if config.get("modules_to_save"):
        remarks.append("trained in full, and kept so: " + ", ".join(config["modules_to_save"]))
    return remarks
