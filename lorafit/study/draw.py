"""Line charts as SVG: a function of numbers to text, for pages and browsers.

The horizontal axis is logarithmic where every value on it is positive. Values far above the others
(runs that all but diverged) would flatten the rest: they are drawn as arrows at the upper edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

# Okabe and Ito's colours, which people tell apart whatever their eyes.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 190, 40, 52


@dataclass(frozen=True)
class Point:
    """y: None where there is no value: a cross at the upper edge. error: half of a bar's length."""

    x: float
    y: float | None
    error: float = 0.0


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """SVG of series with lines between their points and a legend."""
    points = [point for each in series for point in each.points]
    values = [point.y for point in points if point.y is not None]
    across = _Axis.across([point.x for point in points])
    upward = _Axis.upward(values, [p.error for p in points if p.y is not None])
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
             f'font-family="sans-serif" font-size="12">',
             f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
             _text(_LEFT, 24, title, size=14), *_frame(across, upward, x_label, y_label)]
    for number, each in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _line(each, across, upward, colour)
        y = _TOP + 14 + 18 * number
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 14}" y="{y - 9}" width="10" height="10" '
                     f'fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 30, y, each.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Axis:
    """Values to pixels. Logarithms where is_log."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    @classmethod
    def across(cls, values: Sequence[float]) -> "_Axis":
        is_log = bool(values) and all(value > 0 for value in values)
        shown = [math.log10(value) if is_log else value for value in values] or [0.0]
        margin = 0.05 * (max(shown) - min(shown)) or 0.5
        return cls(min(shown) - margin, max(shown) + margin, _LEFT, _WIDTH - _RIGHT, is_log)

    @classmethod
    def upward(cls, values: Sequence[float], errors: Sequence[float]) -> "_Axis":
        low = min((v - e for v, e in zip(values, errors, strict=True)), default=0.0)
        high = max((v + e for v, e in zip(values, errors, strict=True)), default=1.0)
        if values:
            high = min(high, low + 4 * (median(values) - low) or high)
        margin = 0.06 * (high - low) or 0.5
        return cls(low - margin, high + margin, _HEIGHT - _BOTTOM, _TOP, False)

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self.is_log else value
        share = (place - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.is_log and self.high - self.low > 0.7:
            whole = range(math.floor(self.low), math.ceil(self.high) + 1)
            ticks = [digit * 10.0**power for power in whole for digit in (1, 3)]
            return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
        low, high = (10**self.low, 10**self.high) if self.is_log else (self.low, self.high)
        rough = (high - low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _frame(across: _Axis, upward: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in upward.ticks():
        y = upward(tick)
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:.6g}", anchor="end"))
    for tick in across.ticks():
        x = across(tick)
        parts.append(f'<path d="M{x} {_HEIGHT - _BOTTOM}v5" stroke="#444444"/>')
        parts.append(_text(x, _HEIGHT - _BOTTOM + 20, f"{tick:.6g}", anchor="middle"))
    parts.append(f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" '
                 'stroke="#444444"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 12, x_label, anchor="middle"))
    y = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text transform="translate(16 {y}) rotate(-90)" text-anchor="middle">'
                 f"{escape(y_label)}</text>")
    return parts


def _line(series: Series, across: _Axis, upward: _Axis, colour: str) -> list[str]:
    parts, inside = [], []
    for point in sorted(series.points, key=lambda each: each.x):
        x = across(point.x)
        if point.y is None:  # diverged
            parts.append(f'<path d="M{x - 4} {_TOP - 4}l8 8m0 -8l-8 8" stroke="{colour}"/>')
        elif point.y > upward.high:
            parts.append(f'<path d="M{x - 5} {_TOP + 9}l5 -9l5 9z" fill="{colour}"/>')
        else:
            y = upward(point.y)
            inside.append(f"{x},{y}")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')
            if point.error:
                low, high = upward(point.y - point.error), upward(point.y + point.error)
                parts.append(f'<path d="M{x} {low}V{high}" stroke="{colour}"/>')
    if len(inside) > 1:
        parts.insert(0, f'<polyline points="{" ".join(inside)}" fill="none" stroke="{colour}" '
                        'stroke-width="1.5"/>')
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}'
            "</text>")
