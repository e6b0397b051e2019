"""Which rows of the stores a run sees, and how much of each. Nothing here reads a token, but for
rows that are too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lorafit.data.order import permutation
from lorafit.data.store import TokenStore

RARE = 1 / 20  # a script that fewer rows have is another language's


@dataclass(frozen=True)
class Selection:
    """Rows of several stores, in order; each may be cut to some of its tokens.

    store: (rows,) which store. row: (rows,) the row there. start, end: (rows,) its tokens.
    """

    stores: tuple[TokenStore, ...]
    store: np.ndarray
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def everything(cls, stores: Sequence[TokenStore]) -> "Selection":
        sizes = [len(store) for store in stores]
        ends = [store.lengths for store in stores]
        end = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        return cls(
            tuple(stores), np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.arange(size) for size in sizes]), np.zeros_like(end), end,
        )

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (rows,)."""
        return self.end - self.start

    def take(self, chosen: np.ndarray) -> "Selection":
        """`chosen`: row numbers, or a mask over the rows."""
        return Selection(self.stores, self.store[chosen], self.row[chosen], self.start[chosen],
                         self.end[chosen])

    def first_pieces(self) -> np.ndarray:
        """Numbers of the rows without the further pieces of those that were split."""
        _, first = np.unique(np.stack([self.store, self.row]), axis=1, return_index=True)
        return np.sort(first)

    def column(self, name: str) -> np.ndarray:
        """A field of data/store.py: ROW for every row, shape (rows,)."""
        result = np.zeros(len(self), dtype=self.stores[0].rows.dtype[name])
        for number, store in enumerate(self.stores):
            inside = self.store == number
            result[inside] = store.rows[name][self.row[inside]]
        return result


@dataclass(frozen=True)
class Lengths:
    """What a length policy did, in rows."""

    dropped: int
    truncated: int
    split: int
    unsupervised: int  # pieces that were left without a supervised token, and left out


def flagged(selection: Selection, flag: int) -> np.ndarray:
    """Mask of rows on which a row check set `flag`."""
    return (selection.column("flags") & flag) != 0


def repeated(selection: Selection) -> np.ndarray:
    """Mask of rows whose text came before."""
    digests = selection.column("digest")
    _, first = np.unique(digests, return_index=True)
    mask = np.ones(len(digests), dtype=bool)
    mask[first] = False
    return mask


def shared(selection: Selection, other: Selection) -> np.ndarray:
    """Mask of rows whose text also stands in `other`."""
    return np.isin(selection.column("digest"), other.column("digest"))


def in_rare_script(selection: Selection) -> np.ndarray:
    """Mask of rows in a script that hardly any other row of their source has."""
    scripts = selection.column("script")
    mask = np.zeros(len(selection), dtype=bool)
    for number in range(len(selection.stores)):
        inside = selection.store == number
        counts = np.bincount(scripts[inside], minlength=256)
        rare = (counts > 0) & (counts < RARE * counts.sum())
        rare[0] = False  # no letters at all: numbers and signs belong to every language
        mask |= inside & rare[scripts]
    return mask


def unsupervised(selection: Selection) -> np.ndarray:
    """Mask of rows in which nothing is trained."""
    return selection.column("supervised") == 0


def hold_out(selection: Selection, rows: int, seed: int) -> tuple[Selection, Selection]:
    """The rest and `rows` rows chosen by the seed, each in their old order."""
    # Epoch -1: an order that no epoch of training has.
    order = permutation(len(selection), seed, -1)
    return selection.take(np.sort(order[rows:])), selection.take(np.sort(order[:rows]))


def cut_to_length(selection: Selection, limit: int, policy: str) -> tuple[Selection, Lengths]:
    """Rows of at most `limit` tokens. `policy`: drop, truncate or split; none may be too long
    where it is `error`.

    Pieces of a split row overlap by one token, which predicts the first of the next piece: every
    supervised token is trained exactly once.
    """
    is_long = selection.lengths > limit
    if not is_long.any():
        return selection, Lengths(0, 0, 0, 0)
    assert policy != "error"
    long_rows = int(is_long.sum())
    if policy == "drop":
        return selection.take(~is_long), Lengths(long_rows, 0, 0, 0)
    pieces = np.ones(len(selection), dtype=np.int64)
    if policy == "split":
        pieces = np.maximum(1, -(-(selection.lengths - 1) // (limit - 1)))
    cut = selection.take(np.repeat(np.arange(len(selection)), pieces))
    number = np.concatenate([np.arange(count) for count in pieces])
    start = number * (limit - 1)
    cut = Selection(cut.stores, cut.store, cut.row, start, np.minimum(cut.end, start + limit))
    touched = np.flatnonzero(np.repeat(is_long, pieces))
    keep = np.ones(len(cut), dtype=bool)
    for i in touched:
        tokens = cut.stores[cut.store[i]].tokens(int(cut.row[i]))
        keep[i] = tokens.cut(int(cut.start[i]), int(cut.end[i])).supervised_tokens > 0
    lost = int((~keep).sum())
    truncated = long_rows if policy == "truncate" else 0
    return cut.take(keep), Lengths(0, truncated, long_rows - truncated, lost)
