"""What seeds say about a loss, and about a difference of two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean of a loss over seeds. deviation: of the sample; None of one seed."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of two losses, seed by seed, with its 95 % interval: Student's t with
    seeds - 1 degrees of freedom. low and high: None of one seed, which has no interval."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval holds 0: these seeds do not tell the two apart. None of one seed."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


def spread(losses: Sequence[float]) -> Spread:
    return Spread(mean(losses), stdev(losses) if len(losses) > 1 else None, len(losses))


def paired(these: Sequence[float], those: Sequence[float]) -> Difference:
    """Of `these` less `those`, which belong together one by one."""
    differences = [a - b for a, b in zip(these, those, strict=True)]
    middle, seeds = mean(differences), len(differences)
    if seeds < 2:
        return Difference(middle, None, None, seeds)
    reach = t_quantile((1 + CONFIDENCE) / 2, seeds - 1) * stdev(differences) / math.sqrt(seeds)
    return Difference(middle, middle - reach, middle + reach, seeds)


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with `freedom` degrees stays below with a probability in
    [0.5, 1)."""
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
    return high


def _t_below(t: float, freedom: int) -> float:
    """P(T < t) for t ≥ 0, by the finite series for whole degrees (Abramowitz and Stegun 26.7.3
    and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine2 = math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine2 * 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(1, freedom // 2 + 1):
            total += term
            term *= cosine2 * (2 * k - 1) / (2 * k)
        inside = math.sin(angle) * total
    return (1 + inside) / 2
