"""What an adapter holds, and the rank that the data asks for."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lorafit.plan.capacity import capacity
from lorafit.plan.shapes import shapes_of
from lorafit.plan.trained import trained_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

TINY = shapes_of(Model(base="tiny"))


@given(st.integers(1, 10**8), st.integers(1, 64),
       st.sampled_from([{}, {"dora": True}, {"modules_to_save": ["norm"]}]))
def test_the_smallest_rank_holds_the_data_and_the_one_below_does_not(tokens, rank, words):
    def held(rank: int) -> float:
        section = Adapter(rank=rank, target_modules=["q_proj", "up_proj"], **words)
        found = capacity(tokens, trained_of(TINY, section), rank).adapter_bits
        assert found is not None
        return found

    section = Adapter(rank=rank, target_modules=["q_proj", "up_proj"], **words)
    found = capacity(tokens, trained_of(TINY, section), rank)
    smallest = found.smallest_rank
    assert smallest is not None
    if smallest <= 128:  # a rank cannot be above a weight's smaller side
        assert held(smallest) >= found.data_bits
        assert smallest == 1 or held(smallest - 1) < found.data_bits


def test_the_bases_loss_takes_the_place_of_one_bit():
    trained = trained_of(TINY, Adapter(rank=4))
    bound, measured = capacity(1000, trained, 4), capacity(1000, trained, 4, loss_nats=0.35)
    assert (bound.data_bits, bound.is_measured) == (1000, False)
    assert math.isclose(measured.data_bits, 1000 * 0.35 / math.log(2))
    assert bound.adapter_bits == measured.adapter_bits == 2 * (trained.parameters or 0)


def test_a_method_without_a_count_has_no_capacity():
    found = capacity(1000, trained_of(TINY, Adapter(method="ia3")), None)
    assert (found.adapter_bits, found.share, found.smallest_rank) == (None, None, None)
