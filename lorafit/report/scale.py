"""From values to places on a drawing, with round numbers at its edge."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` at places from `start` to `end`; low < high."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round values within the scale, about so many."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            many = last - first > 2
            return [10.0**e * k for e in range(first, last + 1) for k in ((1,) if many else
                                                                          (1, 2, 5))
                    if self.low <= 10.0**e * k <= self.high]
        rough = (self.high - self.low) / max(1, about)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in _STEPS if power * each >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def scale_of(values: Iterable[float], start: float, end: float, *, log: bool = False,
             snug: bool = False) -> Scale:
    """A scale with room for all finite values. snug: without a margin."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if log:
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    margin = 0 if snug else (high - low) * 0.06
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-30):
        margin = abs(high) * 0.1 if abs(high) > 1e-200 else 1.0
    floor = low - margin
    return Scale(0.0 if low >= 0 > floor else floor, high + margin, start, end)


def number(value: float) -> str:
    """A value at an axis or in a readout: as few digits as tell it."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
