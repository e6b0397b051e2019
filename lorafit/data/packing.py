"""How the examples of one step are laid out for computing: padded, end to end, or packed.

Which examples a step trains on is decided before (data/order.py); what follows here changes speed
and memory, not the loss. Numbers only: tensors are made in data/batches.py.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Row = tuple[int, ...]  # examples that stand one after the other in one row of a tensor


@dataclass(frozen=True)
class Layout:
    """What the micro-batches of a run look like.

    batching: padded, padding_free or packed, as in the recipe. micro_batch_size: most examples of
    a micro-batch; when packed, most rows. row_tokens: length of a full row when packed. flat: lay
    the rows of a packed micro-batch end to end in a single one; FlashAttention tells documents
    apart only in a batch of one row.
    """

    batching: str
    micro_batch_size: int
    row_tokens: int
    flat: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """The examples of each row of a micro-batch's tensors, by their number within the step."""

    rows: tuple[Row, ...] = ()

    @property
    def examples(self) -> Row:
        return tuple(i for row in self.rows for i in row)

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Size of its tensors: every token, and the padding up to the longest row."""
        return len(self.rows) * max((int(lengths[list(row)].sum()) for row in self.rows), default=0)


def split_rows(lengths: np.ndarray, layout: Layout, ranks: int) -> list[MicroBatch]:
    """The micro-batches of a step whose examples are `lengths` tokens long.

    Rank r takes micro-batches r, r + ranks, …; where they do not divide, empty ones at the end
    give every rank equally many. A function of lengths and their order alone.
    """
    if layout.batching == "packed":
        parts = _packed(lengths, layout)
    elif layout.batching == "padding_free":
        parts = _end_to_end(lengths, layout.micro_batch_size)
    else:
        parts = _padded(lengths, layout.micro_batch_size)
    return parts + [MicroBatch()] * (-len(parts) % ranks)


def best_fit(lengths: Sequence[int], row_tokens: int) -> list[Row]:
    """Best-fit decreasing: the longest example first, each into the fullest row that takes it.

    Never more than 11/9 of the fewest possible rows, plus one (Johnson 1974). An example longer
    than a row gets one of its own. Time n·log(n): rows with the same room left are kept together,
    so there are never more than `row_tokens` rooms to search.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens of room left -> rows that have it
    rooms: list[int] = []  # the keys of with_room, ascending
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[i])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = row_tokens, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        rows[row].append(i)
        left = room - length
        if left > 0:
            if left not in with_room:
                insort(rooms, left)
            with_room.setdefault(left, []).append(row)
    return [tuple(row) for row in rows]


def _padded(lengths: np.ndarray, micro_batch_size: int) -> list[MicroBatch]:
    """One example a row. Those of similar length share a micro-batch, which saves padding."""
    ordered = np.argsort(lengths, kind="stable").tolist()
    return [MicroBatch(tuple((i,) for i in part)) for part in _chunks(ordered, micro_batch_size)]


def _end_to_end(lengths: np.ndarray, micro_batch_size: int) -> list[MicroBatch]:
    """All examples of a micro-batch in one row. With no padding to save, long and short ones are
    dealt so that the rows are about equally long: the longest row decides the memory."""
    count = -(-len(lengths) // micro_batch_size)
    hands: list[list[int]] = [[] for _ in range(count)]
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    for turn, round_ in enumerate(_chunks(longest_first, count)):
        order = hands if turn % 2 == 0 else hands[::-1]
        for hand, i in zip(order, round_, strict=False):
            hand.append(i)
    return [MicroBatch((tuple(hand),)) for hand in hands]


def _packed(lengths: np.ndarray, layout: Layout) -> list[MicroBatch]:
    """Rows filled best-fit; those of similar length share a micro-batch."""
    rows = best_fit(lengths.tolist(), layout.row_tokens)
    rows.sort(key=lambda row: int(lengths[list(row)].sum()))
    parts = _chunks(rows, layout.micro_batch_size)
    if layout.flat:
        return [MicroBatch((tuple(i for row in part for i in row),)) for part in parts]
    return [MicroBatch(tuple(part)) for part in parts]


def _chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
