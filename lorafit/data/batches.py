"""One micro-batch as tensors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lorafit.data.packing import Layout, MicroBatch
from lorafit.data.tokens import Tokens
from lorafit.kernels.packed_attention import Documents

IGNORED = -100  # label of a position that is not trained, as in torch's cross_entropy


@dataclass(frozen=True)
class Batch:
    """The tensors of a micro-batch, all (B, T).

    input_ids: int64. labels: int64, IGNORED where nothing is trained: the first token of every
    example, other people's turns, padding. attention_mask: int64, only when padded; position_ids:
    int64, only otherwise, starting at 0 with every example, and with the padding behind the last.
    weights: float32, factor on each label's loss, 0 without a label; None for 1 everywhere.
    documents: where the examples of the row end, when there is one row and it is not padded.
    predicting: (N,) int64, places in the flattened row or rows whose next token is supervised,
    found here so that nobody has to ask the device. examples: their numbers within the step.
    tokens: how many there are without padding.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    documents: Documents | None = None
    predicting: torch.Tensor | None = None
    examples: tuple[int, ...] = ()
    tokens: int = 0

    @property
    def inputs(self) -> dict[str, Any]:
        """What SummedLoss.forward takes."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask,
                "labels": self.labels, "position_ids": self.position_ids, "weights": self.weights,
                "documents": self.documents, "predicting": self.predicting}

    def to(self, device: torch.device) -> "Batch":
        """On the device; from pinned memory without waiting for it."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True)
                                 for name, value in self.inputs.items() if value is not None}
        return replace(self, **moved)

    def pinned(self) -> "Batch":
        """In memory that a GPU reads without the CPU's help."""
        moved: dict[str, Any] = {name: value.pin_memory() for name, value in self.inputs.items()
                                 if value is not None}
        return replace(self, **moved)

    @property
    def supervised_tokens(self) -> int:
        """Positions that carry a loss."""
        return int((self.labels != IGNORED).sum())

    @property
    def loss_weight(self) -> float:
        """Sum of the factors on the loss: what the mean divides by."""
        if self.weights is None:
            return float(self.supervised_tokens)
        return float(self.weights.sum(dtype=torch.float64))

    @property
    def computed_tokens(self) -> int:
        """Tokens with padding."""
        return self.input_ids.numel()


def collate(example: Callable[[int], Tokens], part: MicroBatch, layout: Layout,
            pad_id: int) -> Batch:
    """Tensors of a micro-batch. `example` finds one by the number it has in `part`.

    An empty micro-batch becomes two padding tokens without a loss: every rank takes part in every
    forward and backward pass.
    """
    rows = [[example(i) for i in row] for row in part.rows] or [[_filler(pad_id)]]
    shape = (len(rows), max(sum(map(len, row)) for row in rows))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for j, row in enumerate(rows):
        start = 0
        for tokens in row:
            end = start + len(tokens)
            trained = tokens.supervised[1:]
            input_ids[j, start:end] = tokens.ids
            labels[j, start + 1 : end] = np.where(trained, tokens.ids[1:], IGNORED)
            position_ids[j, start:end] = np.arange(len(tokens))
            factor = 1.0 if tokens.weights is None else tokens.weights[1:]
            weights[j, start + 1 : end] = np.where(trained, factor, 0.0)
            start = end
        attention_mask[j, :start] = 1
        position_ids[j, start:] = np.arange(shape[1] - start)
    padded = layout.batching == "padded"
    weighted = any(tokens.weights is not None for row in rows for tokens in row)
    is_next = np.zeros(shape, dtype=bool)
    is_next[:, :-1] = labels[:, 1:] != IGNORED
    documents = None
    if not padded and len(rows) == 1:
        lengths = tuple(len(tokens) for tokens in rows[0])
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        documents = Documents(lengths, torch.from_numpy(bounds))
    return Batch(
        torch.from_numpy(input_ids), torch.from_numpy(labels),
        torch.from_numpy(attention_mask) if padded else None,
        None if padded else torch.from_numpy(position_ids),
        torch.from_numpy(weights) if weighted else None, documents,
        torch.from_numpy(np.flatnonzero(is_next)),
        part.examples, int(attention_mask.sum()) if part.rows else 0,
    )


def _filler(pad_id: int) -> Tokens:
    return Tokens(np.full(2, pad_id, dtype=np.int32), np.zeros(2, dtype=bool))
