"""Intervals and tests, against scipy.stats and by hand."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnrepro.stats import (
    Alternative,
    bootstrap_interval,
    equivalence,
    false_discovery_rates,
    holm,
    p_value,
    paired,
    share_interval,
    share_p_value,
    t_interval,
)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_is_students(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    ours = t_interval(values.tolist(), confidence)
    theirs = scipy_stats.t.interval(confidence, n - 1, values.mean(), scipy_stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(theirs)
    assert (ours.mean, ours.n) == (pytest.approx(values.mean()), n)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one, none = t_interval([0.5]), t_interval([])
    assert (one.mean, one.n, none.n) == (0.5, 1, 0)
    assert all(math.isnan(v) for v in (one.low, one.high, none.mean, none.low, none.high))


@pytest.mark.parametrize("values", [[math.nan, 1.0, 2.0], [math.inf, 1.0], [math.inf, -math.inf, 1.0]])
def test_values_that_are_not_finite_have_no_interval(values: list[float]) -> None:
    interval = t_interval(values)
    assert not math.isfinite(interval.mean)
    assert math.isnan(interval.low)
    assert math.isnan(p_value(values))
    assert not equivalence(values, 10).equivalent


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [t_interval(rng.normal(1, 1, 5).tolist()) for _ in range(2000)]
    assert sum(i.low <= 1 <= i.high for i in intervals) / 2000 == pytest.approx(0.95, abs=0.015)


# --- tests ---


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_p_value_is_scipys(n: int, alternative: Alternative) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    theirs = scipy_stats.ttest_1samp(differences, 0, alternative=alternative).pvalue
    assert p_value(differences.tolist(), alternative) == pytest.approx(theirs)


def test_p_value_of_what_does_not_vary() -> None:
    assert p_value([0.1, 0.1]) == 0
    assert (p_value([0.5, 0.5], "greater"), p_value([0.5, 0.5], "less")) == (0, 1)
    assert (p_value([0.0, 0.0]), p_value([0.0, 0.0], "greater")) == (1, 0.5)
    assert math.isnan(p_value([1.0]))


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    assert paired({2: 5.0, 0: 3.0, 7: 9.0}, {0: 1.0, 2: 4.0, 1: 0.0}) == [2.0, 1.0]


@pytest.mark.parametrize("shift", [0.0, 0.05, -0.08, 0.3])
def test_equivalence_is_two_one_sided_tests(shift: float) -> None:
    differences = np.random.default_rng(1).normal(shift, 0.05, 6)
    ours = equivalence(differences.tolist(), 0.1)
    above = scipy_stats.ttest_1samp(differences, -0.1, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(differences, 0.1, alternative="less").pvalue
    assert ours.p == pytest.approx(max(above, below))
    low, high = scipy_stats.t.interval(0.9, 5, differences.mean(), scipy_stats.sem(differences))
    assert (ours.interval.low, ours.interval.high) == pytest.approx((low, high))
    assert ours.equivalent == (low > -0.1 and high < 0.1)


def test_equivalence_needs_more_than_a_small_mean() -> None:
    assert equivalence([0.001, -0.001, 0.002], 0.1).equivalent
    assert not equivalence([1.0, -1.0, 0.5, -0.5], 0.1).equivalent
    assert not equivalence([0.0], 0.1).equivalent
    assert not equivalence([], 0.1).equivalent


def test_holm_by_hand() -> None:
    # 0.05 / 4 = 0.0125, / 3 = 0.0167, / 2 = 0.025: 0.01 and 0.013 fall, 0.03 does not and shields 0.04
    p_values = {"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.013}
    assert holm(p_values) == {"c": False, "a": True, "d": False, "b": True}
    assert holm({"a": 0.01, "b": 0.04}) == {"a": True, "b": True}
    assert holm({"a": 0.03, "b": math.nan}) == {"a": False, "b": False}
    assert holm({}) == {}


def test_bootstrap_of_a_mean_is_near_students_and_repeats_itself() -> None:
    values = np.random.default_rng(2).normal(3, 2, 50).tolist()
    ours, students = bootstrap_interval(values), t_interval(values)
    assert ours == bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert (ours.mean, ours.n) == (students.mean, 50)
    assert (ours.low, ours.high) == pytest.approx((students.low, students.high), abs=0.1)


def test_bootstrap_takes_other_statistics_and_too_few_values() -> None:
    skewed = [1.0, 1.0, 1.0, 2.0, 50.0]
    assert bootstrap_interval(skewed, median).mean == 1
    assert bootstrap_interval(skewed, median).low == 1
    one, none = bootstrap_interval([2.0]), bootstrap_interval([])
    assert (one.mean, one.n, none.n) == (2, 1, 0)
    assert all(math.isnan(v) for v in (one.low, one.high, none.mean))


def test_false_discovery_rates_are_benjamini_and_hochbergs() -> None:
    """Their example: 15 p values, of which 4 are discoveries at 5%."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    named = {str(k): value for k, value in enumerate(p)}
    q = false_discovery_rates(dict(reversed(named.items())))
    assert [name for name in named if q[name] <= 0.05] == ["0", "1", "2", "3"]
    assert [q[name] for name in named] == pytest.approx(list(scipy_stats.false_discovery_control(p)))
    assert false_discovery_rates({}) == {}


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 5), (5, 5), (3, 7), (39, 40)])
def test_shares_are_clopper_and_pearsons(count: int, n: int) -> None:
    theirs = scipy_stats.binomtest(count, n).proportion_ci(0.9)
    found = share_interval(count, n, 0.9)
    assert (found.mean, found.n) == (count / n, n)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    for share in (0.0, 0.3, 0.5, 1.0):
        more, fewer = (scipy_stats.binomtest(count, n, share, alternative=side).pvalue for side in ("greater", "less"))
        assert share_p_value(count, n, share, "greater") == pytest.approx(more)
        assert share_p_value(count, n, share, "less") == pytest.approx(fewer)


def test_a_share_of_nothing_has_no_interval() -> None:
    assert math.isnan(share_interval(0, 0).mean)
