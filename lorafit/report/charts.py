"""Which curves there are of runs, as numbers: whatever draws them draws these."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from lorafit.report.logs import Line, is_number
from lorafit.report.story import Story

GIB = 2**30
_WINDOW = 0.05, 2, 50  # to each side: a share of the steps, at least, at most
_MOST_POINTS = 1000  # of a curve; of more, the lowest and the highest of equal parts are kept

Point = tuple[float, float]


class Look(StrEnum):
    """raw: every value, faint. smooth: what is read. marks: measured now and then. limit: a value
    that was predicted, over the whole width."""

    RAW = "raw"
    SMOOTH = "smooth"
    MARKS = "marks"
    LIMIT = "limit"


@dataclass(frozen=True)
class Curve:
    """A curve of run number `run`. name: what it shows. points: by x; a y that is not finite is a
    gap."""

    run: int
    name: str
    look: Look
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """key: a word for file names. unit: of y. across: what x counts. log: y by its logarithm."""

    key: str
    title: str
    unit: str
    curves: list[Curve]
    across: str = "step"
    log: bool = False
    remark: str = ""


def charts_of(stories: Sequence[Story]) -> list[Chart]:
    """The curves of all runs over each other. A chart without a point is left out."""
    made = [
        _chart(stories, "loss", "Loss", "nats per token", _losses),
        _chart(stories, "learning_rate", "Learning rate", "", _plain("learning_rate", "rate")),
        _chart(stories, "grad_norm", "Gradient norm, before clipping", "",
               _smoothed("grad_norm", "norm"), log=True),
        _chart(stories, "tokens_per_s", "Supervised tokens per second", "tokens/s", _speeds),
        _chart(stories, "memory", "Peak memory so far", "GiB", _memory),
    ]
    return [chart for chart in made if any(curve.points for curve in chart.curves)]


def _chart(stories: Sequence[Story], key: str, title: str, unit: str,
           curves: Callable[[int, Story], list[Curve]], *, log: bool = False) -> Chart:
    found = [curve for i, story in enumerate(stories) for curve in curves(i, story)
             if curve.points]
    bad = sum(not math.isfinite(y) for curve in found for _, y in curve.points
              if curve.look is not Look.SMOOTH)
    values = [y for curve in found for _, y in curve.points if math.isfinite(y)]
    log = log and bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    remark = ("" if not bad else "1 value that is not finite is a gap." if bad == 1 else
              f"{bad:,} values that are not finite are gaps.")
    return Chart(key, title, unit, [Curve(each.run, each.name, each.look, thinned(each.points))
                                    for each in found], log=log, remark=remark)


def _losses(i: int, story: Story) -> list[Curve]:
    held_out = [(line["step"], float(line["held_out_loss"])) for line in story.evaluations]
    return [*_smoothed("loss", "training")(i, story), Curve(i, "held-out", Look.MARKS, held_out)]


def _plain(key: str, name: str) -> Callable[[int, Story], list[Curve]]:
    return lambda i, story: [Curve(i, name, Look.SMOOTH, _points(story.steps, key))]


def _smoothed(key: str, name: str) -> Callable[[int, Story], list[Curve]]:
    def curves(i: int, story: Story) -> list[Curve]:
        points = _points(story.steps, key)
        return [Curve(i, f"{name}, each step", Look.RAW, points),
                Curve(i, f"{name}, smoothed", Look.SMOOTH, smoothed(points))]
    return curves


def _speeds(i: int, story: Story) -> list[Curve]:
    points = [(line["step"], line["supervised_tokens"] / line["seconds"]) for line in story.steps
              if is_number(line.get("supervised_tokens")) and is_number(line.get("seconds"))
              and line["seconds"] > 0]
    return [Curve(i, "each step", Look.RAW, points),
            Curve(i, "smoothed", Look.SMOOTH, smoothed(points))]


def _memory(i: int, story: Story) -> list[Curve]:
    points = [(step, value / GIB) for step, value in _points(story.steps, "memory_bytes")]
    curves = [Curve(i, "used", Look.SMOOTH, points)]
    predicted = story.predicted.get("peak_memory_bytes")
    if points and isinstance(predicted, int | float):
        ends = [points[0][0], points[-1][0]]
        curves.append(Curve(i, "predicted", Look.LIMIT, [(x, predicted / GIB) for x in ends]))
    return curves


def _points(lines: Sequence[Line], key: str) -> list[Point]:
    return [(line["step"], float(line[key])) for line in lines if is_number(line.get(key))]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Means over a window with as many points on both sides, so that nothing is shifted: a curve
    that falls is not drawn later than it falls. Narrower towards the ends, where a point is itself.
    Values that are not finite are passed over."""
    finite = [point for point in points if math.isfinite(point[1])]
    sums = [0.0, *accumulate(y for _, y in finite)]
    share, least, most = _WINDOW
    half = int(min(most, max(least, share * len(finite))))
    made = []
    for i, (x, _) in enumerate(finite):
        reach = min(half, i, len(finite) - 1 - i)
        made.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return made


def thinned(points: list[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Few enough points to draw, so that no peak is lost: first, last, and of equal parts between
    the lowest and the highest. Values that are not finite are kept as gaps."""
    if len(points) <= most:
        return points
    parts = most // 2 - 1
    inner = points[1:-1]
    kept = [points[0]]
    for k in range(parts):
        part = inner[k * len(inner) // parts : (k + 1) * len(inner) // parts]
        finite = [point for point in part if math.isfinite(point[1])]
        if not finite:
            kept += part[:1]
            continue
        low, high = min(finite, key=_height), max(finite, key=_height)
        kept += sorted({low, high})
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return point[1]
