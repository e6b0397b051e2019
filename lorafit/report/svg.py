"""A chart as inline SVG: lines, marks, axes, and a strip over each x that says the values there.

Readable without a script: the strips have titles, which browsers show when they are pointed at.
The page's script (page.py) puts the same words below the chart.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from lorafit.report.charts import Chart, Curve, Look, Point
from lorafit.report.scale import Scale, number, scale_of

SHADES = 6
"""Colours that runs take in turn; style.py has as many."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_MOST_STRIPS = 250


@dataclass(frozen=True)
class Size:
    """In the units of the drawing, in which text is 12 high."""

    width: int = 400
    height: int = 230
    left: int = 50
    right: int = 10
    top: int = 10
    bottom: int = 36


WIDE = Size(1000, 360)


def drawn(chart: Chart, names: Sequence[str], size: Size = Size()) -> str:
    """The chart. names: of the runs. Names are escaped here."""
    points = [point for curve in chart.curves for point in curve.points]
    x = scale_of((each for each, _ in points), size.left, size.width - size.right, snug=True)
    y = scale_of((each for _, each in points), size.height - size.bottom, size.top, log=chart.log)
    order = (Look.RAW, Look.LIMIT, Look.SMOOTH, Look.MARKS)
    body = "".join(_curve(curve, x, y) for look in order for curve in chart.curves
                   if curve.look is look)
    summary = escape(_summary(chart, names))
    return (f"<svg viewBox='0 0 {size.width} {size.height}' role='img' "
            f"aria-label='{summary}' class='chart'>"
            f"{_axes(chart, x, y, size)}{body}<line class='cross' y1='{size.top}' "
            f"y2='{size.height - size.bottom}' x1='-9' x2='-9'/>"
            f"{''.join(_strips(chart, names, x, size))}</svg>")


def _summary(chart: Chart, names: Sequence[str]) -> str:
    """The chart in words, for who does not see it."""
    said = [f"{_called(curve, names)} from {number(curve.points[0][1])} to "
            f"{number(curve.points[-1][1])}" for curve in chart.curves
            if curve.look in (Look.SMOOTH, Look.MARKS) and curve.points]
    return f"{chart.title} by {chart.across}: {'; '.join(said)}"


def _called(curve: Curve, names: Sequence[str]) -> str:
    return curve.name if len(names) == 1 else f"{names[curve.run]}: {curve.name}"


def _axes(chart: Chart, x: Scale, y: Scale, size: Size) -> str:
    parts = []
    bottom = size.height - size.bottom
    for value in y.ticks(5):
        up = f"{y(value):.1f}"
        parts.append(f"<line class='grid' x1='{size.left}' x2='{size.width - size.right}' "
                     f"y1='{up}' y2='{up}'/><text x='{size.left - 6}' y='{y(value) + 4:.1f}' "
                     f"text-anchor='end'>{number(value)}</text>")
    for value in x.ticks(size.width // 75):
        if value != int(value):  # steps are counted
            continue
        at = min(x(value), size.width - 14)
        parts.append(f"<text x='{at:.1f}' y='{bottom + 15}' text-anchor='middle'>"
                     f"{number(value)}</text>")
    middle = (size.left + size.width - size.right) / 2
    parts.append(f"<line class='axis' x1='{size.left}' x2='{size.width - size.right}' "
                 f"y1='{bottom}' y2='{bottom}'/><text x='{middle}' y='{bottom + 31}' "
                 f"text-anchor='middle' class='quiet'>{escape(chart.across)}"
                 f"{', logarithmic upwards' if chart.log else ''}</text>")
    return "".join(parts)


def _curve(curve: Curve, x: Scale, y: Scale) -> str:
    shade = f"run{curve.run % SHADES}"
    pieces = [_path(piece, x, y) for piece in _pieces(curve.points)]
    path = f"<path class='{curve.look} {shade}' d='{''.join(pieces)}'{dash(curve)}/>"
    if curve.look is not Look.MARKS:
        return path
    marks = "".join(mark(curve.run, x(at), y(value)) for at, value in curve.points
                    if math.isfinite(value))
    return f"{path}<path class='mark {shade}' d='{marks}'/>"


def dash(curve: Curve) -> str:
    """Runs are told apart by more than their colour."""
    pattern = "3 4" if curve.look is Look.LIMIT else _DASHES[_second(curve.run, len(_DASHES))]
    if curve.look in (Look.RAW, Look.MARKS) or not pattern:
        return ""
    return f" stroke-dasharray='{pattern}'"


def _second(run: int, many: int) -> int:
    """A number that differs where two runs have the same colour."""
    return (run + run // SHADES) % many


def _pieces(points: Iterable[Point]) -> list[list[Point]]:
    """The points between gaps."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    placed = [f"{x(at):.1f} {y(value):.1f}" for at, value in points]
    return f"M{placed[0]}" + ("L" + " ".join(placed[1:]) if placed[1:] else "h.1")


def mark(run: int, x: float, y: float) -> str:
    """A run's own shape as a path: circle, square, triangle, diamond, cross, bar."""
    shapes = (
        "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "m-3.2-3.2h6.4v6.4h-6.4z",
        "m0-4.2l4 7h-8z", "m0-4.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
        "m-3.5-1.2h2.3v-2.3h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4v-2.3h-2.3z", "m-1.5-4.5h3v9h-3z")
    return f"M{x:.1f} {y:.1f}{shapes[_second(run, len(shapes))]}"


def _strips(chart: Chart, names: Sequence[str], x: Scale, size: Size) -> Iterable[str]:
    """A see-through strip over each x that has values, or over equally many of them."""
    places = sorted({at for curve in chart.curves if curve.look is not Look.LIMIT
                     for at, _ in curve.points})
    if len(places) > _MOST_STRIPS:
        last = len(places) - 1
        places = [places[round(i * last / (_MOST_STRIPS - 1))] for i in range(_MOST_STRIPS)]
    middles = [(x(a) + x(b)) / 2 for a, b in pairwise(places)]
    edges = [float(size.left), *middles, float(size.width - size.right)]
    for place, (left, right) in zip(places, pairwise(edges), strict=True):
        said = escape(readout(chart, names, place))
        yield (f"<rect class='strip' x='{left:.1f}' width='{max(0.1, right - left):.1f}' "
               f"y='{size.top}' height='{size.height - size.top - size.bottom}' "
               f"data-x='{x(place):.1f}'><title>{said}</title></rect>")


def readout(chart: Chart, names: Sequence[str], at: float) -> str:
    """The values of every curve at an x; of what is measured now and then, there alone."""
    said = []
    for curve in chart.curves:
        i = bisect_left(curve.points, (at, -math.inf))
        here = curve.points[i] if i < len(curve.points) else None
        if here is not None and here[0] == at and curve.look is not Look.LIMIT:
            said.append(f"{_called(curve, names)} {number(here[1])}")
    return f"{chart.across} {number(at)}: " + (", ".join(said) or "no value")
