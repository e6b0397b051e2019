"""The order of rows is a pure function of the step; weights are kept exactly over the epochs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.order import Order, permutation


def whole_epochs(order: Order, epochs: int, batch_size: int) -> np.ndarray:
    total = epochs * order.rows_per_epoch
    steps = -(-total // batch_size)
    return np.concatenate([order.rows_of_step(step, batch_size, total) for step in range(steps)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 17), st.integers(0, 9))
def test_each_epoch_holds_each_row_once_whatever_the_batch(
    rows: int, epochs: int, batch_size: int, seed: int,
) -> None:
    order = Order((rows,), (1.0,), seed)
    drawn = whole_epochs(order, epochs, batch_size)
    for epoch in range(epochs):
        part = drawn[epoch * rows : (epoch + 1) * rows]
        assert sorted(part) == list(range(rows))
        np.testing.assert_array_equal(part, permutation(rows, seed, epoch))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0])),
                min_size=1, max_size=4), st.integers(0, 5))
def test_weights_say_how_often_a_row_is_seen(sources: list[tuple[int, float]], seed: int) -> None:
    sizes = tuple(size for size, _ in sources)
    weights = tuple(weight for _, weight in sources)
    order = Order(sizes, weights, seed)
    epochs = 8
    drawn = whole_epochs(order, epochs, 5).reshape(epochs, -1)
    first = 0
    for size, weight in sources:
        inside = (drawn >= first) & (drawn < first + size)
        # An epoch takes weight × size rows of a source, rounded and at least one.
        assert set(inside.sum(axis=1).tolist()) == {max(1, round(size * weight))}
        counts = np.bincount(drawn[inside] - first, minlength=size)
        assert counts.max() - counts.min() <= 1, "some rows are seen more often than others"
        first += size


def test_half_a_source_is_another_half_in_the_next_epoch() -> None:
    order = Order((10, 4), (0.5, 1.0), 3)
    total = 2 * order.rows_per_epoch
    first, second = (set(order.rows_of_step(epoch, 9, total)) & set(range(10)) for epoch in (0, 1))
    assert len(first) == len(second) == 5
    assert first | second == set(range(10))


def test_sources_without_weights_are_one_source() -> None:
    one, two = Order((12,), (1.0,), 7), Order((5, 7), (1.0, 1.0), 7)
    for step in range(5):
        np.testing.assert_array_equal(one.rows_of_step(step, 5, 24), two.rows_of_step(step, 5, 24))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_a_step_needs_no_step_before_it(weights: tuple[float, float]) -> None:
    order = Order((9, 6), weights, 1)
    total = 3 * order.rows_per_epoch
    in_turn = [order.rows_of_step(step, 4, total) for step in range(10)]
    for step in (7, 0, 9, 3):
        np.testing.assert_array_equal(
            Order((9, 6), weights, 1).rows_of_step(step, 4, total), in_turn[step])
