"""Numbers on their way to a drawing: smoothing, thinning, scales."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.report.charts import smoothed, thinned
from lorafit.report.scale import number, scale_of


def test_smoothing_keeps_a_straight_line_and_its_ends() -> None:
    line = [(float(x), 3.0 - 0.5 * x) for x in range(200)]
    for (_, wanted), (_, found) in zip(line, smoothed(line), strict=True):
        assert found == pytest.approx(wanted, abs=1e-9)


def test_smoothing_passes_over_what_is_not_finite() -> None:
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, 1.0), (4.0, math.inf), (5.0, 1.0)]
    assert smoothed(points) == [(1.0, 1.0), (3.0, 1.0), (5.0, 1.0)]


def test_thinning_loses_no_peak() -> None:
    draw = random.Random(0)
    points = [(float(x), draw.random()) for x in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    points[17_001] = (17_001.0, -9.0)
    few = thinned(points)
    assert len(few) <= 1000
    assert few == sorted(few)
    assert {points[0], points[-1], points[31_234], points[17_001]} <= set(few)
    assert set(few) <= set(points)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20), st.booleans())
def test_a_scale_has_room_for_every_value_and_for_its_ticks(values: list[float],
                                                            snug: bool) -> None:
    scale = scale_of(values, 200.0, 10.0, snug=snug)
    for value in [*values, *scale.ticks(5)]:
        assert 10.0 - 1e-6 <= scale(value) <= 200.0 + 1e-6
    assert 1 <= len(scale.ticks(5)) <= 12


def test_a_logarithmic_scale_has_a_decade_the_same_height() -> None:
    scale = scale_of([0.01, 100.0], 0.0, 100.0, log=True)
    assert scale(1.0) - scale(0.1) == pytest.approx(scale(10.0) - scale(1.0))
    assert [number(tick) for tick in scale.ticks(5)] == ["0.01", "0.1", "1", "10", "100"]


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0"), (2e-4, "2e-4"), (1.2345e-5, "1.23e-5"), (0.00123, "0.00123"), (1234.5, "1,234"),
    (2.5e6, "2.5e6"), (math.inf, "inf")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
