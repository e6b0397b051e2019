"""Intervals and tests for what an evaluation measures, all at 95 %.

A share of right answers: Wilson's score interval (Wilson 1927).
The difference of two shares on the same rows: Newcombe's hybrid score interval for paired
proportions (Statistics in Medicine 17, 1998, 2635: method 10), and McNemar's exact test.
A loss, or the difference of two on the same rows: percentile bootstrap over rows.

Wilson's and Newcombe's hold near 0 % and 100 % too, where the usual ones shrink to nothing. Rows
are what is drawn in the bootstrap, not tokens: tokens of one row depend on each other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 4000
_SEED = 20_270
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_DRAWN_AT_ONCE = 4_000_000  # row numbers of a bootstrap that are in memory together


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two ways of answering the same rows, before and now.

    gained: right now and wrong before; lost: the reverse.
    """

    both: int
    gained: int
    lost: int
    neither: int

    @property
    def rows(self) -> int:
        return self.both + self.gained + self.lost + self.neither

    @property
    def difference(self) -> float:
        """Share that is right now, less the share that was right before."""
        return (self.gained - self.lost) / max(1, self.rows)


def paired(before: np.ndarray, now: np.ndarray) -> Paired:
    """Counts of two (rows,) bool."""
    return Paired(int((before & now).sum()), int((~before & now).sum()),
                  int((before & ~now).sum()), int((~before & ~now).sum()))


def wilson(correct: int, rows: int) -> Interval:
    """Interval of the share that `correct` of `rows` stand for."""
    if rows == 0:
        return Interval(0.0, 1.0)
    share, z2 = correct / rows, _Z * _Z
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _Z / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    return Interval(0.0 if correct == 0 else middle - half,
                    1.0 if correct == rows else middle + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p: how often chance alone would split the rows that changed at least so unevenly.

    Exact: the smaller count is binomial with probability 1/2.
    """
    changed = gained + lost
    ways, total = 1, 0  # binomial coefficients, as whole numbers of any size
    for k in range(min(gained, lost) + 1):
        total += ways
        ways = ways * (changed - k) // (k + 1)
    return min(1.0, 2 * total / 2**changed)


def newcombe(counts: Paired) -> Interval:
    """Interval of `counts.difference`."""
    rows = counts.rows
    if rows == 0:
        return Interval(-1.0, 1.0)
    right_now, right_before = counts.both + counts.gained, counts.both + counts.lost
    now, before = right_now / rows, right_before / rows
    of_now, of_before = wilson(right_now, rows), wilson(right_before, rows)
    margins = right_now * (rows - right_now) * right_before * (rows - right_before)
    phi = 0.0
    if margins:
        phi = ((counts.both * counts.neither - counts.gained * counts.lost) / math.sqrt(margins))

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return Interval(
        max(-1.0, counts.difference - reach(now - of_now.low, of_before.high - before)),
        min(1.0, counts.difference + reach(of_now.high - now, before - of_before.low)))


def bootstrap_mean(sums: np.ndarray, weights: np.ndarray) -> Interval:
    """Interval of Σ sums / Σ weights. Both (rows,); rows are drawn, with the same seed each time.

    For losses: nats and supervised tokens of each row. For a difference: differences of nats.
    """
    rows = len(sums)
    if rows == 0:
        return Interval(math.nan, math.nan)
    means = np.concatenate([sums[drawn].sum(1) / weights[drawn].sum(1) for drawn in _draws(rows)])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _draws(rows: int) -> Iterator[np.ndarray]:
    """Row numbers (some, rows), RESAMPLES in all: as many rows as there are, with replacement."""
    generator = np.random.default_rng(_SEED)
    at_once = max(1, min(RESAMPLES, _DRAWN_AT_ONCE // rows))
    for start in range(0, RESAMPLES, at_once):
        yield generator.integers(rows, size=(min(at_once, RESAMPLES - start), rows))
