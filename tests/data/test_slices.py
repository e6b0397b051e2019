"""Slices of a row's tokens, for ranks that share them, against the row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafit.data.batches import IGNORED, collate
from lorafit.data.packing import Layout, MicroBatch
from lorafit.data.slices import sliced
from lorafit.data.tokens import Tokens
from lorafit.kernels.ulysses import Slice

LAYOUT = Layout("padding_free", 8, 64, flat=True)


def whole(examples):
    """A micro-batch of one row. Each example: for each token, the weight of its loss or None."""
    rows = [Tokens(np.arange(10 * i, 10 * i + len(each), dtype=np.int32),
                   np.array([weight is not None for weight in each]),
                   np.array([weight or 0.0 for weight in each], dtype=np.float32))
            for i, each in enumerate(examples, start=1)]
    return collate(rows.__getitem__, MicroBatch((tuple(range(len(rows))),)), LAYOUT, 0)


def losses(batch, first=0):
    """(place of the row that predicts, label, weight) of each loss, by labels and by places."""
    labels, weights = batch.labels[0], batch.weights[0]
    by_label = [(first + i - 1, int(labels[i]), float(weights[i])) for i in range(len(labels))
                if labels[i] != IGNORED]
    by_place = [(first + p, int(labels[p + 1]), float(weights[p + 1]))
                for p in batch.predicting.tolist()]
    assert by_place == by_label
    return by_label


EXAMPLES = st.lists(st.lists(st.none() | st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=9),
                    min_size=1, max_size=4)


@given(examples=EXAMPLES, parts=st.integers(1, 6))
def test_slices_hold_every_token_and_every_loss_once(examples, parts):
    batch = whole(examples)
    slices = [sliced(batch, Slice(part, parts)) for part in range(parts)]
    width, tokens = slices[0].input_ids.shape[1], batch.input_ids.shape[1]
    assert all(each.input_ids.shape == each.position_ids.shape == (1, width) for each in slices)
    assert all(each.labels.shape == each.weights.shape == (1, width + 1) for each in slices)
    assert 0 <= width * parts - tokens < parts
    for name in ("input_ids", "position_ids"):
        together = torch.cat([getattr(each, name) for each in slices], dim=1)
        assert torch.equal(together[:, :tokens], getattr(batch, name))
    assert [loss for part, each in enumerate(slices) for loss in losses(each, width * part)] \
        == losses(batch)
    for name in ("tokens", "supervised_tokens", "loss_weight"):
        assert sum(getattr(each, name) for each in slices) == pytest.approx(getattr(batch, name))


@given(examples=EXAMPLES, parts=st.integers(2, 6))
def test_what_fills_up_a_row_is_a_document_of_its_own(examples, parts):
    batch = whole(examples)
    for part in range(parts):
        each = sliced(batch, Slice(part, parts))
        held, filled = each.documents, each.input_ids.shape[1] * parts - batch.input_ids.shape[1]
        assert held.lengths == (*batch.documents.lengths, *([filled] if filled else []))
        assert held.bounds.tolist() == [0, *np.cumsum(held.lengths)]
        assert (held.own.part, held.own.parts) == (part, parts)


def test_a_micro_batch_without_examples_has_slices_without_losses():
    batch = collate([].__getitem__, MicroBatch(), LAYOUT, 7)
    slices = [sliced(batch, Slice(part, 4)) for part in range(4)]
    assert [each.input_ids.tolist() for each in slices] == [[[7]], [[7]], [[0]], [[0]]]
    assert all(each.tokens == each.supervised_tokens == len(each.predicting) == 0
               for each in slices)
