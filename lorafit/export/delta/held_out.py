"""Loss on the rows that a run kept, so that a change of an adapter is measured, not assumed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lorafit.export.verify import logits_of
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import load_for_inference
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model
from lorafit.run_dir import read_jsonl


@dataclass(frozen=True)
class Rows:
    """Token ids of some rows, which of them carry a loss, and what rows these are."""

    what: str
    ids: list[np.ndarray]
    supervised: list[np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Logits of each row (length, vocabulary), and nats per supervised token of all of them."""

    logits: list[torch.Tensor]
    loss: float


def kept_rows(source: AdapterSource) -> Rows:
    """The run's held-out rows, as many as it keeps; sentences where the adapter has no run."""
    kept = [] if source.run is None else read_jsonl(source.run.held_out)
    if not kept or source.recipe is None:
        ids = source.rows()
        return Rows(f"{len(ids)} plain sentences", ids, [np.ones(len(row), bool) for row in ids])
    data = source.recipe.data
    is_held_out = data.eval is not None or data.eval_fraction > 0
    return Rows(f"{len(kept)} {'held-out' if is_held_out else 'training'} rows",
                [np.array(row["token_ids"]) for row in kept],
                [np.array(row["supervised"], bool) for row in kept])


def measure(model: Model, adapter: Path, rows: Rows) -> Measured:
    """Base and adapter on some rows, computed as precisely as the run was."""
    return measure_model(_loaded(model, adapter), rows)


def measure_model(model: Any, rows: Rows) -> Measured:
    """A model in memory on some rows."""
    logits = logits_of(model, rows.ids)
    return Measured(logits, _mean_loss([logits], rows))


def losses(model: Model, adapter: Path | None, sets: Sequence[Rows]) -> list[float]:
    """Loss on each of several sets of rows, of the base alone without an adapter.

    The model is loaded once, and logits of one row are kept at a time.
    """
    loaded = _loaded(model, adapter)
    return [_mean_loss((logits_of(loaded, [ids]) for ids in rows.ids), rows) for rows in sets]


def _loaded(model: Model, adapter: Path | None) -> Any:
    base = load_for_inference(model)
    return base if adapter is None else load_adapter(base, adapter)


def _mean_loss(logits: Iterable[list[torch.Tensor]], rows: Rows) -> float:
    """Nats per supervised token. logits: of the rows, in lists of any length."""
    total, count = 0.0, 0
    for scores, ids, supervised in zip((row for part in logits for row in part), rows.ids,
                                       rows.supervised, strict=True):
        wanted = torch.from_numpy(supervised[1:])
        targets = torch.from_numpy(ids[1:].astype(np.int64))[wanted]
        total += float(F.cross_entropy(scores[:-1][wanted], targets, reduction="sum"))
        count += len(targets)
    return total / max(1, count)
