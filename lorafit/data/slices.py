"""What one rank holds of a micro-batch whose rows are computed by several."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lorafit.data.batches import IGNORED, Batch
from lorafit.kernels.packed_attention import Documents
from lorafit.kernels.ulysses import Slice


def sliced(batch: Batch, own: Slice) -> Batch:
    """A slice of a micro-batch of one row (1, T): (1, L) with L = ⌈T / parts⌉.

    labels and weights are (1, L + 1): behind a slice's last token stands the label that it
    predicts, the first of the next slice, which does not count it again. Tokens that fill up the
    last slices have no loss and are a document of their own. `documents` are the whole row's.
    """
    assert batch.documents is not None, "a row whose documents are not known"
    assert batch.position_ids is not None
    tokens = batch.input_ids.shape[1]
    width = -(-tokens // own.parts)
    start, end = own.part * width, (own.part + 1) * width
    filled = width * own.parts - tokens
    labels = _columns(batch.labels, start, end + 1, IGNORED)
    labels[:, 0] = IGNORED
    weights = batch.weights
    if weights is not None:
        weights = _columns(weights, start, end + 1, 0)
        weights[:, 0] = 0
    positions = torch.cat([batch.position_ids, torch.arange(filled)[None]], dim=1)
    places = batch.predicting
    if places is not None:
        places = places[(places >= start) & (places < end)] - start
    return replace(
        batch, input_ids=_columns(batch.input_ids, start, end, 0), labels=labels, weights=weights,
        position_ids=positions[:, start:end], predicting=places,
        documents=_filled_up(batch.documents, filled, own),
        tokens=min(max(batch.tokens - start, 0), width))


def _columns(rows: Tensor, start: int, end: int, beyond: int) -> Tensor:
    """A copy of columns of (1, T); those from T on are `beyond`."""
    held = rows[:, start:end]
    return torch.cat([held, rows.new_full((1, end - start - held.shape[1]), beyond)], dim=1)


def _filled_up(documents: Documents, filled: int, own: Slice) -> Documents:
    lengths = (*documents.lengths, filled) if filled else documents.lengths
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Documents(lengths, torch.from_numpy(bounds), own)
