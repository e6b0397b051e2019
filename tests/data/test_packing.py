"""Which examples share a micro-batch and a row: padded, end to end, packed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.data.packing import Layout, MicroBatch, best_fit, split_rows

lengths_of_examples = st.lists(st.integers(1, 300), min_size=1, max_size=60)
layouts = st.builds(Layout, st.sampled_from(["padded", "padding_free", "packed"]),
                    st.integers(1, 20), st.integers(300, 1000), st.booleans())


def row_lengths(part: MicroBatch, lengths: list[int]) -> list[int]:
    return [sum(lengths[i] for i in row) for row in part.rows]


@given(lengths=lengths_of_examples, layout=layouts, ranks=st.integers(1, 8))
def test_every_example_is_computed_once_and_every_rank_gets_equally_many_micro_batches(
    lengths: list[int], layout: Layout, ranks: int,
) -> None:
    parts = split_rows(np.array(lengths), layout, ranks)
    assert len(parts) % ranks == 0
    full = [part for part in parts if part.rows]
    assert parts[: len(full)] == full, "empty ones come last"
    assert len(parts) - len(full) < ranks, "no more empty ones than needed"
    assert Counter(i for part in parts for i in part.examples) == \
        dict.fromkeys(range(len(lengths)), 1)


@given(lengths=lengths_of_examples, layout=layouts, ranks=st.integers(1, 8))
def test_the_ranks_do_not_change_the_micro_batches(
    lengths: list[int], layout: Layout, ranks: int,
) -> None:
    one = split_rows(np.array(lengths), layout, 1)
    assert split_rows(np.array(lengths), layout, ranks)[: len(one)] == one


@given(lengths=lengths_of_examples, layout=layouts)
def test_micro_batches_have_the_shape_of_their_layout(lengths: list[int], layout: Layout) -> None:
    parts = split_rows(np.array(lengths), layout, 1)
    for part in parts:
        widths = row_lengths(part, lengths)
        assert part.computed_tokens(np.array(lengths)) == len(widths) * max(widths)
        if layout.batching == "padded":
            assert len(part.rows) <= layout.micro_batch_size
            assert all(len(row) == 1 for row in part.rows)
        elif layout.batching == "padding_free":
            assert len(part.rows) == 1
            assert len(part.examples) <= layout.micro_batch_size
        elif layout.flat:
            assert len(part.rows) == 1
            assert widths[0] <= layout.micro_batch_size * layout.row_tokens
        else:
            assert len(part.rows) <= layout.micro_batch_size
            assert max(widths) <= layout.row_tokens
    if layout.batching != "packed":
        assert len(parts) == -(-len(lengths) // layout.micro_batch_size)


@given(lengths=lengths_of_examples, micro=st.integers(1, 20))
def test_padded_examples_of_similar_length_share_a_micro_batch(
    lengths: list[int], micro: int,
) -> None:
    parts = split_rows(np.array(lengths), Layout("padded", micro, 300), 1)
    assert [lengths[i] for part in parts for i in part.examples] == sorted(lengths)


@given(lengths=lengths_of_examples, micro=st.integers(1, 20))
def test_examples_end_to_end_make_rows_of_about_the_same_length(
    lengths: list[int], micro: int,
) -> None:
    parts = split_rows(np.array(lengths), Layout("padding_free", micro, 300), 1)
    totals = [sum(row_lengths(part, lengths)) for part in parts]
    assert max(totals) - min(totals) <= 2 * max(lengths)


def packed_by_search(lengths: list[int], row_tokens: int) -> list[list[int]]:
    """Best-fit decreasing as the textbook states it: look at every row for every example."""
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [row_tokens - sum(lengths[j] for j in row) for row in rows]
        fitting = [k for k in range(len(rows)) if room[k] >= lengths[i]]
        if fitting:
            rows[min(fitting, key=lambda k: room[k])].append(i)
        else:
            rows.append([i])
    return rows


@given(lengths=lengths_of_examples, row_tokens=st.integers(100, 1000))
def test_packing_is_best_fit_decreasing(lengths: list[int], row_tokens: int) -> None:
    """Which of two equally full rows takes an example is free, and changes no row's length."""
    got = best_fit(lengths, row_tokens)
    wanted = packed_by_search(lengths, row_tokens)
    assert sorted(sum(lengths[i] for i in row) for row in got) == \
        sorted(sum(lengths[i] for i in row) for row in wanted)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 30))
def test_an_example_longer_than_a_row_stands_alone(lengths: list[int], row_tokens: int) -> None:
    for row in best_fit(lengths, row_tokens):
        assert len(row) == 1 or sum(lengths[i] for i in row) <= row_tokens


def test_rows_are_filled_to_the_last_token_where_lengths_allow_it() -> None:
    assert best_fit([4, 1, 3, 2, 5, 5], 10) == [(4, 5), (0, 2, 3, 1)]


@pytest.mark.timeout(20)
def test_a_hundred_thousand_examples_are_packed_in_a_moment_and_nearly_without_a_gap() -> None:
    """As many as a held-out set may have; looking through all rows for each takes minutes."""
    lengths = np.random.default_rng(0).integers(20, 600, 100_000).tolist()
    rows = best_fit(lengths, 2048)
    assert sum(lengths) / (len(rows) * 2048) > 0.99


@given(lengths=lengths_of_examples, micro=st.integers(1, 8))
def test_packed_and_end_to_end_compute_no_more_than_padded(
    lengths: list[int], micro: int,
) -> None:
    sizes = {}
    for batching, flat in (("padded", False), ("padding_free", False), ("packed", True)):
        parts = split_rows(np.array(lengths), Layout(batching, micro, 300, flat), 1)
        sizes[batching] = sum(part.computed_tokens(np.array(lengths)) for part in parts)
    assert sizes["padding_free"] == sizes["packed"] == sum(lengths)
    assert sizes["padded"] >= sum(lengths)
