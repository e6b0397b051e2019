"""The order of rows, and the micro-batches and tensors that they become."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.batches import IGNORED, Batch, collate
from lorafit.data.order import Order, permutation
from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.data.tokens import Tokens

seeds = st.integers(0, 2**31 - 1)


def rows_of_step(step: int, batch: int, rows: int, total: int, seed: int) -> np.ndarray:
    return Order((rows,), (1.0,), seed).rows_of_step(step, batch, total)


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


@st.composite
def made_examples(draw: st.DrawFn) -> list[Tokens]:
    """A few short examples; some have weights, zero only where nothing is supervised."""
    examples = []
    for length in draw(st.lists(st.integers(1, 15), min_size=1, max_size=8)):
        ids = draw(st.lists(st.integers(1, 1000), min_size=length, max_size=length))
        mask = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        weights = None
        if draw(st.booleans()):
            factors = st.sampled_from([0.25, 0.5, 1.0, 3.0])
            drawn = draw(st.lists(factors, min_size=length, max_size=length))
            weights = np.where(mask, drawn, 0).astype(np.float32)
        examples.append(Tokens(np.array(ids, dtype=np.int32), mask, weights))
    return examples


layouts = st.builds(Layout, st.sampled_from(["padded", "padding_free", "packed"]),
                    st.integers(1, 4), st.integers(15, 40), st.booleans())


def batches_of(examples: list[Tokens], layout: Layout, pad_id: int = 0, ranks: int = 1
               ) -> list[tuple[MicroBatch, Batch]]:
    parts = split_rows(np.array(list(map(len, examples))), layout, ranks)
    return [(part, collate(examples.__getitem__, part, layout, pad_id)) for part in parts]


@settings(max_examples=150)
@given(made_examples(), layouts, st.integers(0, 3))
def test_collated_tensors_hold_each_example_and_nothing_else(
    examples: list[Tokens], layout: Layout, pad_id: int,
) -> None:
    for part, batch in batches_of(examples, layout, pad_id):
        width = max(sum(len(examples[i]) for i in row) for row in part.rows)
        shape = (len(part.rows), width)
        tensors = {name: tensor for name, tensor in batch.inputs.items()
                   if name not in ("documents", "predicting") and tensor is not None}
        assert {tensor.shape for tensor in tensors.values()} == {shape}
        expected = [[] for _ in part.rows]  # (token, position, label, weight), or the padding's
        for j, row in enumerate(part.rows):
            for i in row:
                for n, token in enumerate(examples[i].ids.tolist()):
                    trained = n > 0 and bool(examples[i].supervised[n])
                    factor = 1.0 if examples[i].weights is None else float(examples[i].weights[n])
                    expected[j].append((token, n, token if trained else IGNORED,
                                        factor if trained else 0.0))
            tokens = len(expected[j])
            expected[j] += [(pad_id, n, IGNORED, 0.0) for n in range(width - tokens)]
            if layout.batching == "padded":
                assert batch.attention_mask is not None
                assert batch.attention_mask[j].tolist() == [1] * tokens + [0] * (width - tokens)
        columns = [[[entry[k] for entry in row] for row in expected] for k in range(4)]
        assert batch.input_ids.tolist() == columns[0]
        assert batch.labels.tolist() == columns[2]
        assert batch.predicting is not None
        assert batch.predicting.tolist() == [
            j * width + n for j, row in enumerate(columns[2]) for n in range(width - 1)
            if row[n + 1] != IGNORED]
        if layout.batching == "padded" or len(part.rows) > 1:
            assert batch.documents is None
        else:
            lengths = [len(examples[i]) for i in part.rows[0]]
            assert batch.documents is not None
            assert list(batch.documents.lengths) == lengths
            assert batch.documents.bounds is not None
            assert batch.documents.bounds.tolist() == [sum(lengths[:n])
                                                       for n in range(len(lengths) + 1)]
        if layout.batching == "padded":
            assert batch.position_ids is None
        else:
            assert batch.attention_mask is None
            assert batch.position_ids is not None
            assert batch.position_ids.tolist() == columns[1]
        if all(examples[i].weights is None for i in part.examples):
            assert batch.weights is None
        else:
            assert batch.weights is not None
            assert batch.weights.tolist() == columns[3]
        assert batch.examples == part.examples


@given(made_examples(), layouts, st.integers(1, 4))
def test_counts_do_not_depend_on_the_layout(
    examples: list[Tokens], layout: Layout, ranks: int,
) -> None:
    batches = [batch for _, batch in batches_of(examples, layout, ranks=ranks)]
    assert sum(batch.tokens for batch in batches) == sum(map(len, examples))
    assert sum(batch.supervised_tokens for batch in batches) == \
        sum(example.supervised_tokens for example in examples)
    assert sum(batch.loss_weight for batch in batches) == sum(
        float(example.weights[1:].sum(dtype=np.float64)) if example.weights is not None
        else example.supervised_tokens for example in examples)
    assert sum(batch.computed_tokens for batch in batches) == \
        sum(batch.input_ids.numel() for batch in batches)


def test_only_the_examples_of_a_micro_batch_are_read() -> None:
    asked = []

    def example(i: int) -> Tokens:
        asked.append(i)
        return Tokens(np.arange(i + 1, dtype=np.int32), np.ones(i + 1, dtype=bool))

    part = MicroBatch(((3, 1), (2,)))
    batch = collate(example, part, Layout("packed", 2, 8), 0)
    assert sorted(asked) == [1, 2, 3]
    assert batch.input_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]


@pytest.mark.parametrize("batching", ["padded", "padding_free", "packed"])
def test_an_empty_micro_batch_carries_no_loss_and_no_tokens(batching: str) -> None:
    batch = collate([].__getitem__, MicroBatch(), Layout(batching, 2, 16), 7)
    assert batch.input_ids.tolist() == [[7, 7]]
    assert batch.labels.eq(IGNORED).all()
    assert (batch.supervised_tokens, batch.loss_weight, batch.tokens) == (0, 0, 0)
    assert batch.examples == ()
    assert (batch.attention_mask is None) == (batching != "padded")


def test_a_moved_batch_is_the_same_batch() -> None:
    example = Tokens(np.array([5, 6, 7], dtype=np.int32), np.array([False, True, True]),
                     np.array([0, 1, 2], dtype=np.float32))
    batch = collate([example].__getitem__, MicroBatch(((0,),)), Layout("padded", 1, 3), 0)
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in moved.inputs.values() if t is not None} == {"meta"}
    assert (moved.tokens, moved.examples, moved.position_ids) == (3, (0,), None)
