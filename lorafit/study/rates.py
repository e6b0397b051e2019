"""Where the best learning rate is: a search on a log grid, and a parabola between its points.

Pure functions of the losses that are known. A rate is told by its place on the grid: place k is
centre · STEP**k. The loss of a run that diverged is infinite.
"""

import math
from collections.abc import Mapping

STEP = math.sqrt(10)
FARTHEST = 6  # places from the centre, three orders of magnitude, where the search gives up
NEAR = 1.1  # a rate within this factor of one that was tried is not tried


def rate_at(centre: float, place: int) -> float:
    """To three digits, so that a recipe holds what is meant."""
    return float(f"{centre * STEP**place:.3g}")


def wanted(losses: Mapping[int, float]) -> list[int]:
    """Places whose loss is needed next: the centre with both neighbours, then one beyond the edge
    that is best, until the best has a neighbour on each side. Empty when it has, or was not found
    within FARTHEST of the centre."""
    missing = [place for place in (-1, 0, 1) if place not in losses]
    if missing:
        return missing
    best = best_place(losses)
    if best is None:  # even the smallest rate diverged
        following = min(losses) - 1
    elif best == min(losses):
        following = best - 1
    elif best == max(losses):
        following = best + 1
    else:
        return []
    return [following] if abs(following) <= FARTHEST else []


def best_place(losses: Mapping[int, float]) -> int | None:
    """The place of the lowest loss; the smaller rate where two are equal. None where none is
    finite."""
    finite = {place: loss for place, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda place: (finite[place], place)) if finite else None


def is_inside(losses: Mapping[int, float]) -> bool:
    """Whether the best place has a neighbour on each side."""
    best = best_place(losses)
    return best is not None and {best - 1, best + 1} <= losses.keys()


def between(losses: Mapping[int, float]) -> float | None:
    """The place, no whole number, of the lowest point of the parabola through the best place and
    its neighbours: the loss as a function of the logarithm of the rate. None where one of the three
    diverged or is missing, or where they are equal."""
    best = best_place(losses)
    if best is None:
        return None
    low, middle, high = (losses.get(best + side, math.inf) for side in (-1, 0, 1))
    bend = low - 2 * middle + high
    if not (math.isfinite(bend) and bend > 0):
        return None
    return best + (low - high) / (2 * bend)  # within half a place, since the middle is lowest
