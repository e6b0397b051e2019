"""What an adapter that was trained on a quantised base is merged onto, and what each way costs.

Training saw Q(W) + ΔW, Q being the quantised base. There are three models to make of it:

    full          W + ΔW: the weights before they were quantised, which training never saw
    dequantised   Q(W) + ΔW, in the number format of the base's files: what was trained
    requantised   Q(Q(W) + ΔW): as small as the base of training; much of ΔW may be rounded away
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.export.delta.held_out import Measured, kept_rows, measure_model
from lorafit.export.verify import Agreement, compare
from lorafit.model.adapters.files import load_adapter
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.base import TORCH_DTYPES, load_base
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model

FULL, DEQUANTISED, REQUANTISED = "full", "dequantised", "requantised"
ONTO = (FULL, DEQUANTISED, REQUANTISED)
# Held-out losses this close are taken for equal: a share of the trained model's, or nats a token.
_ALIKE, _ALIKE_NATS = 0.005, 1e-3


@dataclass(frozen=True)
class Way:
    """One way of merging. agreement: with what was trained. loss: nats per supervised token."""

    onto: str
    agreement: Agreement
    loss: float
    size_bytes: int


@dataclass(frozen=True)
class Ways:
    """The three ways beside what was trained, on `rows`; which is recommended, and why."""

    rows: str
    stored: str
    trained_loss: float
    ways: list[Way]
    recommended: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def refuse_unquantised(source: AdapterSource, option: str) -> None:
    """UserError when the run's base was not quantised by the recipe."""
    if source.model.quantization == "none":
        raise UserError("the base was not quantised in training, so there is one way to merge",
                        option, "leave it out")


def write_onto_quantised(source: AdapterSource, onto: str, folder: Path, dtype: str) -> None:
    """Write the dequantised or requantised model, as transformers loads it. In memory."""
    base = load_base(source.model, "float32" if onto == DEQUANTISED else dtype, "eager",
                     torch.device("cpu"))
    if onto == DEQUANTISED:
        base = base.dequantize(torch.float32)
    with no_advice():
        merged = load_adapter(base, source.directory).merge_and_unload(safe_merge=True)
    if onto == DEQUANTISED:  # the sum is rounded once
        merged = merged.to(TORCH_DTYPES[dtype])
    merged.save_pretrained(folder)


def measure_merged(source: AdapterSource, folder: Path, rows: Any) -> Measured:
    """A merged model, loaded from its files, in float32."""
    model = Model(base=str(folder), trust_remote_code=source.model.trust_remote_code)
    return measure_model(load_base(model, "float32", "eager", torch.device("cpu")), rows)


def measure_ways(source: AdapterSource, write: Callable[[str, Path], None],
                 say: Callable[[str], None] = lambda text: None) -> Ways:
    """Merge in all three ways into temporary folders, and measure each against what was trained.

    write: puts the merged model of a way into a folder.
    """
    refuse_unquantised(source, "--compare")
    rows = kept_rows(source)
    say(f"what was trained, on {rows.what}")
    trained = measure_model(load_adapter(
        load_base(source.model, "float32", "eager", torch.device("cpu")), source.directory), rows)
    ways = []
    for onto in ONTO:
        say(f"merged onto {onto}")
        with tempfile.TemporaryDirectory(prefix="lorafit-") as name:
            folder = Path(name) / "merged"
            folder.mkdir()
            write(onto, folder)
            found = measure_merged(source, folder, rows)
            size_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        ways.append(Way(onto, compare(trained.logits, found.logits), found.loss, size_bytes))
    return Ways(rows.what, source.model.quantization, trained.loss, ways,
                *recommend(ways, trained.loss))


def recommend(ways: list[Way], trained_loss: float) -> tuple[str, str]:
    """The way with the lowest loss; among those that are alike, the nearest to what was trained."""
    lowest = min(way.loss for way in ways)
    near = max(_ALIKE * trained_loss, _ALIKE_NATS)
    alike = [way for way in ways if way.loss <= lowest + near]
    best = min(alike, key=lambda way: way.agreement.mean_kl)
    if len(alike) == 1:
        return best.onto, "its held-out loss is the lowest"
    others = ", ".join(way.onto for way in alike if way is not best)
    return best.onto, (f"its held-out loss is as low as that of {others} (to {near:.1g} nats), and "
                       "it is the nearest to what was trained")
