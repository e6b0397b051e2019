"""Several adapters of one base made into one, whose loss on the rows of each is measured.

Everything is done on ΔW = scale·B·A itself. peft's add_weighted_adapter combines A and B apart for
all but `cat` and the `svd` family, which brings in products of one adapter's B with another's A,
and multiplies by √r what has rsLoRA (peft 0.21). What it does to a matrix (sign election, pruning)
is used here on ΔW, layer by layer, and no model is loaded for it.
"""

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.export.delta import factors as thin
from lorafit.export.delta.compare import different_bases, refuse_other_shapes
from lorafit.export.delta.factors import Factors
from lorafit.export.delta.files import (
    LoraAdapter,
    read_lora,
    refuse_broken,
    refuse_other_than_lora,
    with_factors,
    write_lora,
)
from lorafit.export.delta.held_out import Rows, kept_rows, losses
from lorafit.export.surroundings import write_surroundings
from lorafit.model.adapters.files import WEIGHTS
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import committed_directory, refuse_target

# The ways to combine, and what they do.
EXACT = {
    "linear": "the weighted sum, at the smallest rank that holds it",
    "cat": "the same with A and B side by side, at the sum of the ranks",
    "svd": "the nearest to the weighted sum of the largest given rank, or --rank",
}
PRUNED = {
    "ties": "small entries dropped, signs elected, agreeing entries averaged (arXiv 2306.01708)",
    "dare_linear": "entries dropped at random, the rest enlarged, summed (arXiv 2311.03099)",
    "dare_ties": "entries dropped at random, then signs elected as in ties",
    "magnitude_prune": "small entries dropped, then summed",
}
_USUAL_DENSITY = 0.5


@dataclass(frozen=True)
class Combination:
    """How adapters are combined. density: share of entries kept by those that prune."""

    how: str
    weights: tuple[float, ...]
    density: float | None
    rank: int | None
    seed: int


@dataclass(frozen=True)
class CombinedLayer:
    """Rank of one weight, how many adapters have it, and the share of ‖ΔW‖² that the rank holds."""

    name: str
    adapters: int
    rank: int
    energy_kept: float


@dataclass(frozen=True)
class CombineResult:
    """Where the adapter is, and the losses: for each set of rows, of base, inputs, combination."""

    directory: Path
    combination: Combination
    size_bytes: int
    layers: list[CombinedLayer]
    models: list[str]
    rows: list[str]
    losses: list[list[float]]


def combination(how: str, weights: Sequence[float] | None, density: float | None,
                rank: int | None, seed: int, adapters: int) -> Combination:
    """What was asked for, with defaults filled in. UserError for what does not fit together."""
    known = [*EXACT, *PRUNED]
    if how not in known:
        close = difflib.get_close_matches(how, known, 1, 0.6)
        raise UserError(f"no way to combine is called {how!r}", "--how",
                        f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}")
    if adapters < 2:
        raise UserError("one adapter has nothing to be combined with", "combine",
                        "name two or more")
    weights = [1 / adapters] * adapters if weights is None else weights
    if len(weights) != adapters:
        raise UserError(f"{len(weights)} weights for {adapters} adapters", "--weights",
                        "give one for each, for example --weights 0.7,0.3")
    if how in EXACT and density is not None:
        raise UserError(f"{how} drops no entries", "--density", "leave it out")
    if density is not None and not 0 < density <= 1:
        raise UserError(f"{density:g} is no share of entries", "--density",
                        "use a number above 0, up to 1")
    if how in PRUNED and density is None:
        density = _USUAL_DENSITY
    if how == "cat" and rank is not None:
        raise UserError("cat keeps every rank of every adapter", "--rank",
                        "use --how svd, or leave it out")
    return Combination(how, tuple(weights), density, rank, seed)


def combine(sources: Sequence[AdapterSource], output: Path, wanted: Combination,
            say: Callable[[str], None] = lambda text: None) -> CombineResult:
    """Write the combination as a plain peft adapter, and measure it beside what it is made of.

    UserError when the adapters are not of one base, or hold more than scale·B·A.
    """
    refuse_target(output, "choose another directory with --output")
    adapters = [_read(source) for source in sources]
    for source, adapter in zip(sources[1:], adapters[1:], strict=True):
        if different_bases(sources[0], source):
            raise UserError(
                f"the adapters are of different bases: {sources[0].model.base} and "
                f"{source.model.base}", str(source.directory),
                "use adapters of one base; if it is the same one elsewhere, name it with --base")
        refuse_other_shapes(sources[0], adapters[0], source, adapter)
    combined, layers = _combined(adapters, wanted)
    with committed_directory(output) as partial:
        write_lora(partial, combined)
        write_surroundings(sources[0], partial)
    names = [str(_place(source)) for source in sources]
    sets = _row_sets(sources)
    columns = []
    for name, directory in [("base", None), *zip(names, (s.directory for s in sources),
                                                 strict=True), ("combination", output)]:
        say(f"measuring {name}")
        columns.append(losses(sources[0].model, directory, [rows for _, rows in sets]))
    return CombineResult(
        output, wanted, (output / WEIGHTS).stat().st_size, layers,
        ["base", *names, "combination"],
        [f"{rows.what} of {name}" if name else rows.what for name, rows in sets],
        [list(row) for row in zip(*columns, strict=True)],
    )


def _read(source: AdapterSource) -> LoraAdapter:
    refuse_other_than_lora(source, "combined")
    adapter = read_lora(source)
    refuse_broken(source, adapter)
    if source.config.get("use_dora"):
        raise UserError("DoRA cannot be combined: its magnitudes belong to the sum of base and "
                        "update of one adapter", str(source.directory),
                        "merge it (lorafit merge), or train without dora")
    if adapter.others:
        name = sorted(adapter.others)[0].removeprefix("base_model.model.")
        raise UserError(f"holds more than A and B ({name}), which has no sum that makes sense",
                        str(source.directory),
                        "combine adapters without bias, modules_to_save and trained tokens")
    return adapter


def _combined(adapters: Sequence[LoraAdapter],
              wanted: Combination) -> tuple[LoraAdapter, list[CombinedLayer]]:
    """A layer that only some adapters have is made of theirs."""
    layers, told = {}, []
    names = sorted({name for adapter in adapters for name in adapter.layers})
    for number, name in enumerate(names):
        having = [(adapter.layers[name], weight) for adapter, weight
                  in zip(adapters, wanted.weights, strict=True) if name in adapter.layers]
        parts = [(layer.factors, weight) for layer, weight in having]
        if wanted.how in EXACT:
            factors, kept = _sum(parts, wanted)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(wanted.seed * 1_000_003 + number)
                factors, kept = _pruned(parts, wanted)
        layers[name] = with_factors(having[0][0], factors)
        told.append(CombinedLayer(name, len(having), factors.rank, kept))
    return LoraAdapter(_config(adapters, names), layers, {}), told


def _sum(parts: Sequence[tuple[Factors, float]], wanted: Combination) -> tuple[Factors, float]:
    together = thin.side_by_side([factors.times(weight) for factors, weight in parts])
    if wanted.how == "cat":
        return together, 1.0
    values = thin.singular_values(together)
    rank = thin.rank_for(values, 1.0)
    if wanted.how == "svd" or wanted.rank is not None:
        rank = min(rank, wanted.rank or max(factors.rank for factors, _ in parts))
    return thin.cut(together, rank), thin.energy_kept(values, rank)


def _pruned(parts: Sequence[tuple[Factors, float]],
            wanted: Combination) -> tuple[Factors, float]:
    """ΔW of one layer in full, one expert after the other, and its nearest of low rank."""
    rank = wanted.rank or max(factors.rank for factors, _ in parts)
    weights = torch.tensor([weight for _, weight in parts])
    a, b, missed, whole = [], [], 0.0, 0.0
    for expert in range(parts[0][0].shape[0]):
        deltas = [(factors.b[expert] @ factors.a[expert]).float() for factors, _ in parts]
        dense = _arithmetic(wanted.how, deltas, weights, wanted.density or 1.0)
        left, right = _nearest(dense, min(rank, *dense.shape))
        b.append(left)
        a.append(right)
        missed += float((dense - left @ right).square().sum())
        whole += float(dense.square().sum())
    factors = Factors(torch.stack(a).double(), torch.stack(b).double())
    return factors, 1 - missed / whole if whole else 1.0


def _arithmetic(how: str, deltas: list[torch.Tensor], weights: torch.Tensor,
                density: float) -> torch.Tensor:
    from peft.utils import merge_utils

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a density of 1 prunes nothing
        result: torch.Tensor = getattr(merge_utils, how)(deltas, weights, density)
    return result


def _nearest(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B (O, rank) and A (rank, I) with the product nearest to `matrix`.

    By subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 5.1): seconds where a full
    decomposition of a 4096 × 4096 matrix takes minutes.
    """
    searched = min(2 * rank + 8, *matrix.shape)
    u, values, v = torch.svd_lowrank(matrix, q=searched, niter=8)
    root = values[:rank].sqrt()
    return u[:, :rank] * root, (v[:, :rank] * root).T


def _config(adapters: Sequence[LoraAdapter], names: list[str]) -> dict[str, Any]:
    """The first adapter's configuration; where the others adapt other layers, each by its name."""
    config = dict(adapters[0].config)
    if all(adapter.layers.keys() == set(names) for adapter in adapters):
        return config
    modules = {layer.name if not layer.parameter else "" for adapter in adapters
               for layer in adapter.layers.values()} - {""}
    parameters = {layer.name for adapter in adapters for layer in adapter.layers.values()
                  if layer.parameter}
    return config | {
        "target_modules": sorted(modules), "target_parameters": sorted(parameters) or None,
        "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
    }


def _row_sets(sources: Sequence[AdapterSource]) -> list[tuple[str, Rows]]:
    """The rows of each run and whose they are, equal ones once; sentences where no input is a
    run."""
    sets: dict[tuple[bytes, ...], tuple[str, Rows]] = {}
    for source in sources:
        if source.run is not None:
            rows = kept_rows(source)
            key = tuple(ids.tobytes() for ids in rows.ids)
            whose = [sets[key][0]] if key in sets else []
            sets[key] = (", ".join([*whose, str(_place(source))]), rows)
    return list(sets.values()) or [("", kept_rows(sources[0]))]


def _place(source: AdapterSource) -> Path:
    return source.run.path if source.run is not None else source.directory
