"""The order of rows, and the micro-batches and tensors that they become."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.batches import IGNORED, collate, split_rows
from lorafit.data.chat import Tokens
from lorafit.data.order import permutation, rows_of_step

seeds = st.integers(0, 2**31 - 1)


@given(rows=st.integers(1, 500), seed=seeds, epoch=st.integers(-1, 1000))
def test_every_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(rows, seed, epoch)) == list(range(rows))


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(-1, 5)}
    assert len(orders) == 30


def test_the_order_of_a_seed_never_changes() -> None:
    # Philox's stream is fixed by its specification; a run of another day must continue this one.
    assert permutation(8, 0, 0).tolist() == list(
        np.argsort(np.random.Generator(np.random.Philox(key=[0, 0])).bit_generator.random_raw(8)))
    before = permutation(100, 7, 3).copy()
    permutation.cache_clear()
    assert permutation(100, 7, 3).tolist() == before.tolist()


def test_nobody_can_shuffle_a_cached_order_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(5, 0, 0)[0] = 3


@given(rows=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 5), seed=seeds)
def test_each_row_is_trained_exactly_once_an_epoch(
    rows: int, batch: int, epochs: int, seed: int,
) -> None:
    total = rows * epochs
    steps = -(-total // batch)
    parts = [rows_of_step(step, batch, rows, total, seed) for step in range(steps)]
    assert all(len(part) == batch for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= batch
    everything = np.concatenate(parts)
    assert Counter(everything.tolist()) == dict.fromkeys(range(rows), epochs)
    for epoch in range(epochs):  # batches cross epochs without a gap
        assert sorted(everything[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(rows=st.integers(1, 40), batch=st.integers(1, 50), total=st.integers(1, 200), seed=seeds,
       data=st.data())
def test_a_step_is_a_pure_function_of_its_number(
    rows: int, batch: int, total: int, seed: int, data: st.DataObject,
) -> None:
    steps = list(range(-(-total // batch)))
    in_order = [rows_of_step(step, batch, rows, total, seed).tolist() for step in steps]
    permutation.cache_clear()
    for step in data.draw(st.permutations(steps)):
        assert rows_of_step(step, batch, rows, total, seed).tolist() == in_order[step]


def test_a_longer_run_starts_like_a_shorter_one() -> None:
    for step in range(5):
        assert rows_of_step(step, 4, 10, 20, 3).tolist() == \
            rows_of_step(step, 4, 10, 1000, 3).tolist()


lengths_of_rows = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(lengths=lengths_of_rows, micro=st.integers(1, 20), ranks=st.integers(1, 8), data=st.data())
def test_micro_batches_partition_the_rows_equally_many_for_each_rank(
    lengths: list[int], micro: int, ranks: int, data: st.DataObject,
) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=40)))
    parts = split_rows(rows, np.array(lengths), micro, ranks)
    assert len(parts) % ranks == 0
    assert len(parts) - -(-len(rows) // micro) < ranks, "no more empty ones than needed"
    assert all(len(part) <= micro for part in parts)
    assert Counter(np.concatenate(parts).tolist()) == Counter(rows.tolist())


@given(lengths=lengths_of_rows, micro=st.integers(1, 20))
def test_rows_of_similar_length_share_a_micro_batch(lengths: list[int], micro: int) -> None:
    parts = split_rows(np.arange(len(lengths)), np.array(lengths), micro, 1)
    flat = [lengths[row] for part in parts for row in part]
    assert flat == sorted(lengths)


token_rows = st.lists(
    st.lists(st.tuples(st.integers(1, 1000), st.booleans()), min_size=1, max_size=15),
    min_size=1, max_size=6)


@settings(max_examples=60)
@given(token_rows, st.integers(0, 3))
def test_collated_tensors_hold_each_row_and_nothing_else(
    pairs: list[list[tuple[int, bool]]], pad_id: int,
) -> None:
    data = [Tokens(np.array([token for token, _ in row], dtype=np.int32),
                   np.array([mask for _, mask in row])) for row in pairs]
    batch = collate(data, np.arange(len(data)), pad_id)
    width = max(map(len, pairs))
    for tensor in (batch.input_ids, batch.attention_mask, batch.labels):
        assert tensor.shape == (len(pairs), width)
        assert tensor.dtype == torch.int64
    for j, row in enumerate(pairs):
        n = len(row)
        assert batch.input_ids[j, :n].tolist() == [token for token, _ in row]
        assert batch.input_ids[j, n:].eq(pad_id).all()
        assert batch.attention_mask[j].tolist() == [1] * n + [0] * (width - n)
        assert batch.labels[j, 0] == IGNORED, "the first token is never predicted"
        assert batch.labels[j, 1:n].tolist() == [
            token if mask else IGNORED for token, mask in row[1:]]
        assert batch.labels[j, n:].eq(IGNORED).all()
    assert batch.rows == tuple(range(len(pairs)))
    assert batch.tokens == sum(map(len, pairs))
    assert batch.supervised_tokens == sum(mask for row in pairs for _, mask in row[1:])


@given(token_rows, st.data())
def test_rows_are_taken_by_number(
    pairs: list[list[tuple[int, bool]]], data: st.DataObject,
) -> None:
    rows = [Tokens(np.array([token for token, _ in row], dtype=np.int32),
                   np.ones(len(row), dtype=bool)) for row in pairs]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    batch = collate(rows, np.array(chosen), 0)
    assert batch.rows == tuple(chosen)
    for j, i in enumerate(chosen):
        assert batch.input_ids[j, : len(pairs[i])].tolist() == rows[i].ids.tolist()


def test_an_empty_micro_batch_carries_no_loss_and_no_tokens() -> None:
    batch = collate([], np.array([], dtype=np.int64), 7)
    assert batch.supervised_tokens == 0
    assert batch.tokens == 0
    assert batch.rows == ()
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape
    assert batch.labels.eq(IGNORED).all()
