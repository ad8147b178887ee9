"""Verdicts from differences: each rule on both sides of its boundaries."""

from __future__ import annotations

import math

import pytest

from bnrepro.experiments import judge
from bnrepro.experiments.base import Claim, Verdict
from bnrepro.stats import Interval

CLAIM = Claim("X1", "somebody", "a is larger than b", "no number")
CLEAR = [0.9, 1.0, 1.1]  # 95%: 1 ± 0.25; 90%: 1 ± 0.17


@pytest.mark.parametrize(
    ("differences", "at_least", "margin", "verdict"),
    [
        (CLEAR, 0.0, None, Verdict.reproduced),
        (CLEAR, 0.7, None, Verdict.reproduced),
        (CLEAR, 0.8, None, Verdict.inconclusive),
        (CLEAR, 1.2, None, Verdict.inconclusive),
        (CLEAR, 1.3, None, Verdict.not_reproduced),
        ([-d for d in CLEAR], 0.0, None, Verdict.not_reproduced),
        ([-1.0, 0.1, 1.0], 0.0, None, Verdict.inconclusive),
        ([-1.0, 0.1, 1.0], 0.0, 1.0, Verdict.inconclusive),
        ([-1.0, 0.1, 1.0], 0.0, 3.0, Verdict.not_reproduced),
        (CLEAR, 0.0, 2.0, Verdict.partly),
        ([1.0], 0.0, 2.0, Verdict.inconclusive),
        ([], 0.0, 2.0, Verdict.inconclusive),
        ([math.nan, 1.0, 1.0], 0.0, None, Verdict.inconclusive),
    ],
)
def test_greater(differences: list[float], at_least: float, margin: float | None, verdict: Verdict) -> None:
    finding = judge.greater(CLAIM, differences, "points", at_least, margin)
    assert finding.verdict is verdict
    assert (finding.claim, finding.unit) == (CLAIM, "points")
    assert finding.effect and finding.effect.n == len(differences)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        (CLEAR, 1.2, Verdict.reproduced),
        (CLEAR, 1.1, Verdict.inconclusive),
        (CLEAR, 0.8, Verdict.not_reproduced),
        ([-d for d in CLEAR], 0.8, Verdict.not_reproduced),
        ([-d for d in CLEAR], 1.2, Verdict.reproduced),
        ([1.0, -1.0], 0.1, Verdict.inconclusive),  # no difference is not equality
        ([0.0, 0.0], 0.1, Verdict.reproduced),
        ([0.0], 0.1, Verdict.inconclusive),
    ],
)
def test_equal(differences: list[float], margin: float, verdict: Verdict) -> None:
    assert judge.equal(CLAIM, differences, margin, "points").verdict is verdict


def test_exact_and_not_testable() -> None:
    assert judge.exact(CLAIM, True, "12 and 12").verdict is Verdict.reproduced
    assert judge.exact(CLAIM, False, "12 and 13").verdict is Verdict.not_reproduced
    assert judge.not_testable(CLAIM, "no data").verdict is Verdict.not_testable


def test_found_says_mean_interval_unit_and_n() -> None:
    found = judge.greater(CLAIM, CLEAR, "points", found="A beats {B} by {effect}.").found
    assert found == "A beats {B} by 1.00 [0.75, 1.25] points (95% interval, n=3)."
    found = judge.equal(CLAIM, CLEAR, 2.0, "points").found
    assert found == "1.00 [0.83, 1.17] points (90% interval, n=3), margin ±2"
    assert judge.greater(CLAIM, [1.0], "epochs").found == "1 epochs (n=1, no interval)"
    assert "n=0" in judge.greater(CLAIM, [], "epochs").found


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.12345, 0.1, 0.15, 5), "0.123 [0.100, 0.150]"),
        (Interval(12345.6, 12000, 12700, 5), "1.23e+04 [1.2e+04, 1.27e+04]"),
        (Interval(3e-12, 1e-12, 5e-12, 5), "3e-12 [1e-12, 5e-12]"),
        (Interval(2.0, 2.0, 2.0, 5), "2 [2, 2]"),
        (Interval(math.inf, math.nan, math.nan, 5), "inf"),
    ],
)
def test_numbers_have_the_digits_that_the_interval_leaves(interval: Interval, text: str) -> None:
    assert judge.numbers(interval) == text
