"""Intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnrepro.stats import t_interval


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


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [t_interval(rng.normal(1, 1, 5).tolist()) for _ in range(2000)]
    assert sum(i.low <= 1 <= i.high for i in intervals) / 2000 == pytest.approx(0.95, abs=0.015)
