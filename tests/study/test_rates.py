"""The search for a rate, on loss surfaces that are made up."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lorafit.study import rates


def search(loss_at) -> dict[int, float]:
    """All places that the search asks for."""
    losses: dict[int, float] = {}
    for _ in range(3 * rates.FARTHEST):
        places = rates.wanted(losses)
        if not places:
            break
        assert not set(places) & losses.keys(), "a place is asked for once"
        losses |= {place: loss_at(place) for place in places}
    return losses


@given(st.floats(-5.4, 5.4), st.floats(0.01, 3))
def test_it_moves_until_the_best_is_inside_and_the_parabola_finds_its_lowest_point(
        lowest: float, bend: float) -> None:
    losses = search(lambda place: 1 + bend * (place - lowest) ** 2)
    best = rates.best_place(losses)
    assert rates.is_inside(losses)
    assert best is not None
    assert abs(best - lowest) <= 0.5 + 1e-9
    found = rates.between(losses)
    assert found is not None
    assert math.isclose(found, lowest, abs_tol=1e-6)


@given(st.floats(-4.4, 4.4), st.integers(0, 3))
def test_rates_that_diverge_bound_the_search(lowest: float, above: int) -> None:
    edge = math.ceil(lowest) + above
    losses = search(lambda place: math.inf if place > edge else abs(place - lowest))
    best = rates.best_place(losses)
    assert best is not None
    assert best == min(range(-rates.FARTHEST, edge + 1),
                       key=lambda place: (abs(place - lowest), place))
    assert rates.is_inside(losses)
    if best == edge:
        assert rates.between(losses) is None


def test_it_gives_up_far_from_the_centre() -> None:
    assert min(search(lambda place: place)) == -rates.FARTHEST
    assert not rates.is_inside(search(lambda place: place))
    nowhere = search(lambda place: math.inf)
    assert rates.best_place(nowhere) is None
    assert min(nowhere) == -rates.FARTHEST


def test_equal_losses_have_no_parabola_and_the_smallest_rate_is_the_best() -> None:
    flat = {-1: 1.0, 0: 1.0, 1: 1.0}
    assert rates.best_place(flat) == -1
    assert rates.between(flat | {-2: 1.0}) is None


def test_places_become_rates_of_three_digits() -> None:
    assert [rates.rate_at(2e-4, place) for place in (-1, 0, 1, 2)] == [
        6.32e-5, 2e-4, 6.32e-4, 2e-3]
