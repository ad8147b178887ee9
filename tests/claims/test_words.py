"""Evidence in words: numbers with the digits that they have, findings with what they were held against."""

from __future__ import annotations

import math

import pytest

from bnrepro.claims import Evidence, Values, equal, exact, greater, less, not_testable
from bnrepro.claims.evidence import Verdict, judge
from bnrepro.claims.words import answer, finding, numbers
from bnrepro.stats import Interval, t_interval

CLEAR = [0.9, 1.0, 1.1]  # 95%: 1 ± 0.25; 90%: 1 ± 0.17


def by_seed(values: list[float]) -> Values:
    return Values((), {((), seed): value for seed, value in enumerate(values)})


def said(evidence: Evidence) -> tuple[str, str]:
    """The answer and the finding."""
    return answer(evidence, judge(evidence)), finding(evidence, judge(evidence))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([6912.0], "6,912"),
        ([-1000.0000000001], "-1,000"),
        ([0.0], "0"),
        ([0.7512], "0.751"),
        ([1.0, 2.0, 3.0], "2.0 [-0.5, 4.5]"),
    ],
)
def test_counts_are_whole_and_intervals_have_two_digits(values: list[float], text: str) -> None:
    assert numbers(t_interval(values)) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.12345, 0.1, 0.15, 5), "0.123 [0.100, 0.150]"),
        (Interval(12345.6, 12000, 12700, 5), "12,350 [12,000, 12,700]"),
        (Interval(3e-12, 1e-12, 5e-12, 5), "3e-12 [1e-12, 5e-12]"),
        (Interval(2.0, 2.0, 2.0, 5), "2 [2, 2]"),
        (Interval(math.inf, math.nan, math.nan, 5), "inf"),
    ],
)
def test_numbers_have_the_digits_that_the_interval_leaves(interval: Interval, text: str) -> None:
    assert numbers(interval) == text


@pytest.mark.parametrize(
    ("values", "bar", "margin", "verdict"),
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
def test_verdicts_change_where_the_interval_that_is_shown_ends(
    values: list[float], bar: float, margin: float | None, verdict: Verdict
) -> None:
    assert judge(greater(by_seed(values), "x", "points", bar=bar, margin=margin)).verdict is verdict
    turned = None if margin is None else -margin
    assert judge(less(by_seed([-v for v in values]), "x", "points", bar=-bar, margin=turned)).verdict is verdict


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        (CLEAR, 1.2, Verdict.reproduced),
        (CLEAR, 1.1, Verdict.inconclusive),
        (CLEAR, 0.8, Verdict.inconclusive),  # its 95% interval begins at 0.75
        (CLEAR, 0.7, Verdict.not_reproduced),
        ([-d for d in CLEAR], 0.7, Verdict.not_reproduced),
        ([-d for d in CLEAR], 1.2, Verdict.reproduced),
        ([1.0, -1.0], 0.1, Verdict.inconclusive),  # no difference is not equality
        ([0.0, 0.0], 0.1, Verdict.reproduced),
        ([0.0], 0.1, Verdict.inconclusive),
    ],
)
def test_so_do_those_on_equality(values: list[float], margin: float, verdict: Verdict) -> None:
    assert judge(equal(by_seed(values), "x", "points", margin=margin)).verdict is verdict


def test_found_says_mean_interval_unit_n_and_what_it_was_held_against() -> None:
    assert said(greater(by_seed(CLEAR), "accuracy, A minus B", "points", margin=0.5)) == (
        "Yes: accuracy, A minus B: 1.00 [0.75, 1.25] points (n=3, bar 0, margin 0.5).",
        "Accuracy, A minus B: 1.00 [0.75, 1.25] (points, 95% interval, n=3; "
        "must be above 0, and not wholly below 0.5).",
    )
    assert said(equal(by_seed(CLEAR), "A minus B", "points", margin=2.0)) == (
        "Yes: A minus B: 1.00 [0.83, 1.17] points (n=3, 90%, margin 2).",
        "A minus B: 1.00 [0.83, 1.17] (points, 90% interval, n=3; must be inside ±2).",
    )
    assert said(greater(by_seed([1.0]), "A minus B", "epochs")) == (
        "Open: A minus B: 1 epochs (n=1, bar 0).",
        "A minus B: 1 (epochs, 95% interval, n=1; must be above 0).",
    )
    assert said(greater(by_seed([]), "A minus B", "epochs")) == ("Open: nothing was measured.", "Nothing was measured.")
    assert said(exact(by_seed([1e-12]), "largest error", tolerance=1e-10)) == (
        "Yes: largest error: 1e-12.",
        "Largest error: 1e-12 (exact; must be at most 1e-10).",
    )
    assert said(not_testable("no ImageNet here.")) == ("No ImageNet here.", "no ImageNet here.")


def test_found_says_what_is_open_by_holms_correction_alone() -> None:
    """Alone it would hold; among three conditions it does not."""
    nearly, none = by_seed([0.0, 0.4, 0.8, 0.3, 0.7]), by_seed([-1.0, 1.0, -1.0, 1.0, 0.0])
    alone, among = (greater(given, "x", "points") for given in (nearly, {"a": nearly, "b": none, "c": none}))
    assert 0.05 / 3 < among.effects[0].p_values[0] < 0.05
    assert [str(state) for state in judge(among).states] == ["open"] * 3
    assert finding(among, judge(among)).count("(open by Holm's correction)") == 1
    assert "Holm" not in finding(alone, judge(alone))
