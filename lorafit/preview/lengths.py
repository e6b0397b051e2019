"""How long rows are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Lengths:
    """Of the rows of one part, in tokens. `longer`: rows above max_length_tokens."""

    name: str
    rows: int
    tokens: int
    supervised_tokens: int
    median: float
    mean: float
    p95: float
    longest: int
    longer: int


@dataclass(frozen=True)
class Bin:
    """Rows of `first` up to `last` tokens, of each part; the last bin is open where `last` is
    None."""

    first: int
    last: int | None
    rows: tuple[int, ...]

    def holds(self, length: int) -> bool:
        return self.first <= length and (self.last is None or length <= self.last)


def measure(name: str, lengths: np.ndarray, tokens: int, supervised_tokens: int,
            limit: int) -> Lengths:
    """`lengths` of the rows before they were cut; tokens and supervised tokens after."""
    return Lengths(name, len(lengths), tokens, supervised_tokens, float(np.median(lengths)),
                   float(lengths.mean()), float(np.percentile(lengths, 95)), int(lengths.max()),
                   int((lengths > limit).sum()))


def histogram(parts: Sequence[np.ndarray]) -> list[Bin]:
    """About ten bins of a round width, which the longest hundredth of the rows does not stretch."""
    everything = np.concatenate(parts)
    width = _round_width(float(np.percentile(everything, 99)))
    edges = np.arange(0, BINS * width + 1, width)
    last = int(np.searchsorted(edges, everything.max()))
    edges = edges[: last + 1]
    counts = [np.histogram(lengths, [*(edges + 1), np.iinfo(np.int64).max])[0] for lengths in parts]
    bins = [Bin(int(edge) + 1, int(edge) + width, tuple(int(count[i]) for count in counts))
            for i, edge in enumerate(edges)]
    while not any(bins[-1].rows):
        bins.pop()
    if everything.max() > (bins[-1].last or 0):
        bins[-1] = Bin(bins[-1].first, None, bins[-1].rows)
    return bins


def _round_width(longest: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … with which BINS bins reach `longest`."""
    width = 1
    while True:
        for step in (1, 2, 5):
            if step * width * BINS >= longest:
                return step * width
        width *= 10
