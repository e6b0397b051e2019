"""Intervals and tests against scipy, and against every outcome that can happen."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.evaluate.statistics import (
    Paired,
    bootstrap_mean,
    mcnemar,
    newcombe,
    paired,
    wilson,
)

stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")


@pytest.mark.parametrize(("correct", "rows"), [
    (0, 1), (1, 1), (0, 40), (40, 40), (7, 200), (100, 200), (199, 200), (3, 1319), (660, 1319)])
def test_wilson_is_scipys(correct, rows):
    wanted = stats.binomtest(correct, rows).proportion_ci(0.95, method="wilson")
    got = wilson(correct, rows)
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_is_exact_where_floats_would_overflow():
    assert mcnemar(20_000, 19_500) == pytest.approx(
        stats.binomtest(19_500, 39_500).pvalue, rel=1e-6)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_the_interval_of_a_difference_holds_it_and_turns_with_it(both, gained, lost, neither):
    counts = Paired(both, gained, lost, neither)
    bounds = newcombe(counts)
    assert -1 <= bounds.low <= counts.difference <= bounds.high <= 1
    turned = newcombe(Paired(both, lost, gained, neither))
    assert (turned.low, turned.high) == pytest.approx((-bounds.high, -bounds.low), abs=1e-12)


@pytest.mark.parametrize("shares", [
    (0.0, 0.5, 0.0, 0.5), (0.3, 0.2, 0.1, 0.4), (0.8, 0.1, 0.05, 0.05), (0.45, 0.05, 0.05, 0.45)],
    ids=str)
def test_the_interval_of_a_difference_covers_what_it_promises(shares):
    """Over every outcome of 24 rows, each with its probability: 95 % of the intervals, a little
    more or less, hold the true difference."""
    rows, covered, total = 24, 0.0, 0.0
    truth = shares[1] - shares[2]
    logs = [math.log(share) if share else None for share in shares]
    for both, gained, lost in itertools.product(range(rows + 1), repeat=3):
        neither = rows - both - gained - lost
        counts = (both, gained, lost, neither)
        if neither < 0 or any(log is None and n for log, n in zip(logs, counts, strict=True)):
            continue
        probability = math.exp(math.lgamma(rows + 1) - sum(math.lgamma(n + 1) for n in counts)
                               + sum((log or 0.0) * n for log, n in zip(logs, counts, strict=True)))
        bounds = newcombe(Paired(*counts))
        total += probability
        covered += probability * (bounds.low <= truth <= bounds.high)
    assert total == pytest.approx(1)
    assert 0.93 < covered < 0.995


def test_pairs_are_counted():
    before, now = np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 1, 0], bool)
    assert paired(before, now) == Paired(1, 2, 1, 1)
    assert Paired(1, 2, 1, 1).difference == pytest.approx(0.2)


def test_the_bootstrap_of_a_mean_over_tokens_is_scipys():
    generator = np.random.default_rng(3)
    tokens = generator.integers(1, 60, 150).astype(float)
    nats = tokens * generator.gamma(2.0, 0.7, 150)
    wanted = stats.bootstrap(
        (nats, tokens), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True,
        vectorized=True, n_resamples=4000, method="percentile", rng=7).confidence_interval
    got = bootstrap_mean(nats, tokens)
    width = wanted.high - wanted.low
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), abs=0.08 * width)
    assert got == bootstrap_mean(nats, tokens)


def test_the_bootstrap_of_equal_rows_is_a_point_and_of_none_unknown():
    same = bootstrap_mean(np.full(5, 6.0), np.full(5, 2.0))
    assert (same.low, same.high) == (3.0, 3.0)
    assert math.isnan(bootstrap_mean(np.zeros(0), np.zeros(0)).low)
