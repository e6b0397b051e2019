"""Held-out loss, row by row, in memory that does not grow with the vocabulary times the length."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.data.batches import Batch, collate
from lorafit.data.packing import Layout, MicroBatch
from lorafit.data.tokens import Tokens
from lorafit.kernels.chunks import tokens_at_once
from lorafit.model.fast.head import OutputHead, find_head, hidden_states
from lorafit.model.fast.proof import LIMITS
from lorafit.model.loss import model_inputs, predicting_places, summed_cross_entropy

_TOKENS_AT_ONCE = 8192  # with padding; a longer row is computed alone
_ROWS_AT_ONCE = 32
_PADDED = Layout("padded", _ROWS_AT_ONCE, 0)


def weight_of(tokens: Tokens) -> float:
    """What the loss of a row is divided by: its supervised tokens, each with its factor."""
    if tokens.weights is None:
        return float(tokens.supervised_tokens)
    return float(tokens.weights[1:][tokens.supervised[1:]].sum(dtype=np.float64))


@torch.inference_mode()
def row_losses(model: Any, rows: Sequence[Tokens], pad_id: int,
               advance: Callable[[int], None] = lambda rows: None) -> np.ndarray:
    """Σ w·(−log p) over the supervised tokens of each row, in nats, float64; shape (rows,).

    Logits exist for a chunk of tokens at a time, where the model's head can be called by itself and
    gives what the model gives; otherwise for one row at a time. `advance` is told of finished rows.
    """
    losses = np.zeros(len(rows))
    head = _usable_head(model, rows, pad_id)
    model.eval()
    for part in _parts([len(row) for row in rows], alone=head is None):
        losses[part] = _part_losses(model, head, rows, part, pad_id)
        advance(len(part))
    return losses


def _parts(lengths: Sequence[int], *, alone: bool) -> Iterator[list[int]]:
    """Row numbers that are computed together: of similar length, the longest first."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if part and (alone or len(part) == _ROWS_AT_ONCE
                     or lengths[part[0]] * (len(part) + 1) > _TOKENS_AT_ONCE):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _part_losses(model: Any, head: OutputHead | None, rows: Sequence[Tokens], part: list[int],
                 pad_id: int) -> np.ndarray:
    batch = collate(lambda i: rows[i], MicroBatch(tuple((i,) for i in part)), _PADDED,
                    pad_id).to(next(model.parameters()).device)
    try:
        if head is None:
            return np.array([float(summed_cross_entropy(model, **batch.inputs))])
        return _by_head(model, head, batch)
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
    middle = len(part) // 2
    return np.concatenate([_part_losses(model, head, rows, half, pad_id)
                           for half in (part[:middle], part[middle:])])


def _by_head(model: Any, head: OutputHead, batch: Batch) -> np.ndarray:
    """Losses of the rows of a padded batch, (B,), from hidden states."""
    places, losses = _at_places(model, head, batch)
    if batch.weights is not None:
        losses *= batch.weights.flatten().index_select(0, places + 1).double().cpu()
    sums = torch.zeros(len(batch.input_ids), dtype=torch.float64)
    sums.index_add_(0, places.cpu() // batch.input_ids.shape[1], losses)
    return sums.numpy()


def _at_places(model: Any, head: OutputHead, batch: Batch) -> tuple[Tensor, Tensor]:
    """The flat places of a padded batch that predict a supervised token, and −log p of each such
    token in float64, on the CPU."""
    inputs = model_inputs(model, batch.input_ids, batch.attention_mask, None, None)
    places = predicting_places(batch.labels)
    states = hidden_states(head, inputs).index_select(0, places)
    targets = batch.labels.flatten().index_select(0, places + 1)
    at_once = tokens_at_once(head.vocabulary, states.device.type)
    chunks = [_token_losses(head, states[start : start + at_once], targets[start : start + at_once])
              for start in range(0, len(places), at_once)]
    return places, torch.cat(chunks).double().cpu() if chunks else torch.zeros(
        0, dtype=torch.float64)


@torch.inference_mode()
def token_losses(model: Any, rows: Sequence[Tokens], pad_id: int) -> list[np.ndarray]:
    """−log p of every token of each row, in nats, (length,) float64; NaN where it is not
    supervised. Without the factors of messages, one row at a time."""
    head = _usable_head(model, rows, pad_id)
    model.eval()
    found = []
    for row in rows:
        batch = collate([row].__getitem__, MicroBatch(((0,),)), _PADDED, pad_id).to(
            next(model.parameters()).device)
        if head is not None:
            places, losses = _at_places(model, head, batch)
        else:
            inputs = model_inputs(model, batch.input_ids, batch.attention_mask, None, None)
            places = predicting_places(batch.labels)
            logits = model(**inputs).logits.flatten(0, 1).index_select(0, places)
            targets = batch.labels.flatten().index_select(0, places + 1)
            losses = F.cross_entropy(logits.float(), targets, reduction="none").double().cpu()
        values = np.full(len(row), np.nan)
        values[places.cpu().numpy() + 1] = losses.numpy()
        found.append(values)
    return found


def _token_losses(head: OutputHead, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head.shaping.of(head.layer(states)), targets, reduction="none")


def _usable_head(model: Any, rows: Sequence[Tokens], pad_id: int) -> OutputHead | None:
    """The model's head, where the loss of the shortest row by it is that by the model's logits."""
    head = find_head(model)
    supervised = [row for row in rows if row.supervised_tokens]
    if isinstance(head, str) or not supervised:
        return None
    batch = collate(lambda i: min(supervised, key=len), MicroBatch(((0,),)), _PADDED,
                    pad_id).to(next(model.parameters()).device)
    wanted = float(summed_cross_entropy(model, **batch.inputs))
    try:
        got = float(_by_head(model, head, batch).sum())
    except (RuntimeError, TypeError, AttributeError):
        return None
    limit = LIMITS.get(next(model.parameters()).dtype, 1e-4)
    return head if math.isclose(got, wanted, rel_tol=limit, abs_tol=limit) else None
