"""Rows of one step to micro-batches, and those to tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorafit.data.chat import Tokens

IGNORED = -100  # label of a position that is not trained, as in torch's cross_entropy


@dataclass(frozen=True)
class Batch:
    """One micro-batch, padded on the right. B rows, T tokens of the longest.

    input_ids, attention_mask, labels: (B, T) int64; labels are IGNORED where nothing is trained.
    rows: the numbers of its rows in the data set.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    rows: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.input_ids.to(device), self.attention_mask.to(device),
                     self.labels.to(device), self.rows)

    @property
    def supervised_tokens(self) -> int:
        """Positions that carry a loss: the first token of a row is never predicted."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum()) if self.rows else 0


def split_rows(rows: np.ndarray, lengths: np.ndarray, micro_batch_size: int,
               ranks: int) -> list[np.ndarray]:
    """Row numbers of each micro-batch of a step, equally many for every rank.

    Rows of similar length share a micro-batch, which saves padding and changes nothing else: the
    loss of a step is a sum over its rows. Rank r takes micro-batches r, r + ranks, …; where they
    do not divide, empty ones are added.
    """
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    parts = [ordered[i : i + micro_batch_size] for i in range(0, len(ordered), micro_batch_size)]
    missing = -len(parts) % ranks
    return parts + [ordered[:0]] * missing


def collate(data: Sequence[Tokens], rows: np.ndarray, pad_id: int) -> Batch:
    """Tensors of some rows. No rows give a batch of two padding tokens without a loss."""
    if len(rows) == 0:
        ids = torch.full((1, 2), pad_id)
        return Batch(ids, torch.ones_like(ids), torch.full_like(ids, IGNORED))
    width = max(len(data[i].ids) for i in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for j, i in enumerate(rows):
        row = data[i]
        input_ids[j, : len(row.ids)] = row.ids
        attention_mask[j, : len(row.ids)] = 1
        labels[j, : len(row.ids)] = np.where(row.supervised, row.ids, IGNORED)
    labels[:, 0] = IGNORED
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(attention_mask),
                 torch.from_numpy(labels), tuple(int(i) for i in rows))
