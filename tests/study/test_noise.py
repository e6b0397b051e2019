"""Intervals of differences, against independent references."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from lorafit.study.noise import paired, spread, t_quantile


@pytest.mark.parametrize(("freedom", "published"), [
    (1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_quantiles_of_t_are_those_of_the_tables(freedom: int, published: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(published, abs=5e-5)


def test_quantiles_of_t_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 25), 60, 301):
        for probability in (0.5, 0.8, 0.975, 0.9995):
            assert t_quantile(probability, freedom) == pytest.approx(
                stats.t.ppf(probability, freedom), rel=1e-7, abs=1e-9)
    assert t_quantile(0.975, 5000) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3)


def test_the_interval_is_that_of_scipys_paired_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for seeds in (2, 3, 8):
        these, those = generator.normal(2, 1, seeds), generator.normal(2.5, 1, seeds)
        found, reference = paired(these, those), stats.ttest_rel(these, those)
        interval = reference.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.within_noise == bool(reference.pvalue >= 0.05)


def test_nineteen_intervals_of_twenty_hold_the_truth() -> None:
    generator = np.random.default_rng(1)
    found = [paired(generator.normal(0.3, 1, 3), np.zeros(3)) for _ in range(4000)]
    covered = np.mean([each.low <= 0.3 <= each.high for each in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_what_seeds_share_is_no_noise_of_the_difference() -> None:
    shared = [1.0, 5.0, 9.0]
    found = paired([each + 0.1 for each in shared], shared)
    assert found.mean == pytest.approx(0.1)
    assert found.half_width < 1e-9
    assert found.within_noise is False


def test_one_seed_has_no_interval() -> None:
    found = paired([1.0], [2.0])
    assert (found.mean, found.low, found.half_width, found.within_noise) == (-1.0, None, None, None)
    assert spread([1.0]).deviation is None
