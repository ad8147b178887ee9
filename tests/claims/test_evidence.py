"""The one rule for verdicts, as properties: order, shifts, error rates under the null, nothing measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from bnrepro.claims import Evidence, Values, equal, exact, greater, less, not_lower, not_testable
from bnrepro.claims.evidence import SHARE, Effect, Rule, State, Verdict, flips_at, judge, verdicts_at
from bnrepro.claims.words import MOST_SEEDS, answer, finding, needed

ORDER = [Verdict.not_reproduced, Verdict.inconclusive, Verdict.partly, Verdict.reproduced]
"""From the worst for a claim to the best."""


def by_seed(values: list[float]) -> Values:
    return Values((), {((), seed): value for seed, value in enumerate(values)})


def cells(*groups: list[float]) -> dict[str, Values]:
    return {f"cell {i}": by_seed(values) for i, values in enumerate(groups)}


def around(mean: float, spread: float = 0.1) -> list[float]:
    return [mean + spread * d for d in (-2, -1, 0, 1, 2)]


def verdict(evidence: Evidence) -> Verdict:
    return judge(evidence).verdict


Make = Callable[[Any], Evidence]
RULES: dict[str, Make] = {
    "greater": lambda v: greater(v, "x", "points"),
    "greater, margin": lambda v: greater(v, "x", "points", margin=1.0),
    "greater, bar": lambda v: greater(v, "x", "points", bar=0.5, margin=1.0),
    "not lower": lambda v: not_lower(v, "x", "points", margin=1.0),
}
rules = pytest.mark.parametrize("make", RULES.values(), ids=RULES.keys())


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (greater(by_seed(around(2)), "x", "", margin=1.0), Verdict.reproduced),
        (greater(by_seed(around(0.5)), "x", "", margin=1.0), Verdict.partly),  # there, and too small to matter
        (greater(by_seed(around(0)), "x", "", margin=1.0), Verdict.not_reproduced),
        (greater(by_seed(around(-2)), "x", "", margin=1.0), Verdict.not_reproduced),
        (greater(by_seed(around(1, 3)), "x", "", margin=1.0), Verdict.inconclusive),
        (greater(by_seed(around(0, 3)), "x", ""), Verdict.inconclusive),
        (less(by_seed(around(-2)), "x", "", margin=-1.0), Verdict.reproduced),
        (less(by_seed(around(-0.5)), "x", "", margin=-1.0), Verdict.partly),
        (less(by_seed(around(2)), "x", "", margin=-1.0), Verdict.not_reproduced),
        (not_lower(by_seed(around(-0.5)), "x", "", margin=1.0), Verdict.reproduced),
        (not_lower(by_seed(around(-2)), "x", "", margin=1.0), Verdict.not_reproduced),
        (not_lower(by_seed(around(-1)), "x", "", margin=1.0), Verdict.inconclusive),
        (equal(by_seed(around(0.5)), "x", "", margin=1.0), Verdict.reproduced),
        (equal(by_seed(around(2)), "x", "", margin=1.0), Verdict.not_reproduced),
        (equal(by_seed(around(-2)), "x", "", margin=1.0), Verdict.not_reproduced),
        (equal(by_seed(around(1)), "x", "", margin=1.0), Verdict.inconclusive),
        (greater(by_seed([2.0, 2.1, 1.9]), "x", "", ratio=True, margin=1.2), Verdict.reproduced),
        (greater(by_seed([1.1, 1.11, 1.09]), "x", "", ratio=True, margin=1.2), Verdict.partly),
        (less(by_seed([0.5, 0.51, 0.49]), "x", "", ratio=True, margin=0.8), Verdict.reproduced),
        (equal(by_seed([0.95, 1.0, 1.05]), "x", "", ratio=True, margin=1.2), Verdict.reproduced),
        (exact(True, "x"), Verdict.reproduced),
        (exact(False, "x"), Verdict.not_reproduced),
        (exact(by_seed([1e-12, -2e-12]), "x", tolerance=1e-10), Verdict.reproduced),
        (exact(by_seed([1e-12, -2e-9]), "x", tolerance=1e-10), Verdict.not_reproduced),
        (exact(by_seed([math.nan]), "x", tolerance=1e-10), Verdict.not_reproduced),
        (greater(by_seed([2.0]), "x", ""), Verdict.inconclusive),  # one seed has no interval
        (greater(by_seed([2.0, math.nan, 2.0]), "x", ""), Verdict.inconclusive),
        (greater(by_seed([2.0, math.inf, 2.0]), "x", ""), Verdict.inconclusive),
        (not_testable("no data"), Verdict.not_testable),
    ],
)
def test_one_effect(evidence: Evidence, expected: Verdict) -> None:
    assert verdict(evidence) is expected


@pytest.mark.parametrize(
    ("means", "expected", "decided"),
    [
        ((2, 3, 2), Verdict.reproduced, {0, 2}),
        ((2, 0, 3), Verdict.partly, {1}),
        ((2, -2, 3), Verdict.partly, {1}),
        ((0, -2, 0), Verdict.not_reproduced, {1}),
        ((0, 0, 0), Verdict.inconclusive, {0, 1, 2}),
    ],
)
def test_several_effects(means: tuple[float, ...], expected: Verdict, decided: set[int]) -> None:
    spreads = [0.3 if mean else 3.0 for mean in means]
    found = judge(greater(cells(*map(around, means, spreads)), "x", "", margin=0.5))
    assert found.verdict is expected
    assert found.deciding in decided


@rules
def test_nothing_measured_is_inconclusive(make: Make) -> None:
    for nothing in (Values(), {}, {"a": Values()}):
        found = judge(make(nothing))
        assert found.verdict is Verdict.inconclusive
        assert found.deciding is None
        assert answer(make(nothing), found) == "Open: nothing was measured."


@pytest.mark.parametrize(
    ("make", "good"),
    [
        *((make, around(2)) for make in RULES.values()),
        (lambda v: equal(v, "x", "points", margin=1.0), around(0)),
        (lambda v: exact(v, "x", "points", tolerance=1.0), [0.0]),
    ],
)
def test_a_condition_of_which_nothing_was_measured_stays_open(make: Make, good: list[float]) -> None:
    """It is no support: with it, a claim that holds under all others is reproduced in part."""
    there, missing = {"there": by_seed(good)}, {"missing": Values()}
    for evidence in (make(there | missing), make(there) & make(missing)):
        found = judge(evidence)
        assert (found.verdict, found.states[1], found.deciding) == (Verdict.partly, State.open, 1)
        assert "missing: not measured" in finding(evidence, found)
        assert "not measured" in answer(evidence, found)
        assert evidence.showing({"gone": Values()}).beside == ()


samples = st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=6), min_size=1, max_size=5)


@rules
@settings(max_examples=60, deadline=None)
@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_cells_does_not_matter(make: Make, groups: list[list[float]], rng: random.Random) -> None:
    shuffled = list(cells(*groups).items())
    rng.shuffle(shuffled)
    one, other = make(cells(*groups)), make(dict(shuffled))
    first, second = judge(one), judge(other)
    assert first.verdict is second.verdict
    states = [
        dict(zip([e.condition for e in e_.effects], j.states, strict=True)) for e_, j in ((one, first), (other, second))
    ]
    assert states[0] == states[1]


@rules
@settings(max_examples=60, deadline=None)
@given(samples, st.lists(st.floats(0, 5), min_size=5, max_size=5))
def test_more_of_the_effect_is_never_worse(make: Make, groups: list[list[float]], by: list[float]) -> None:
    moved = [[value + shift for value in values] for values, shift in zip(groups, by, strict=False)]
    assert ORDER.index(verdict(make(cells(*moved)))) >= ORDER.index(verdict(make(cells(*groups))))


@settings(max_examples=60, deadline=None)
@given(samples, st.floats(1, 4))
def test_nearer_to_zero_is_never_less_equal(groups: list[list[float]], factor: float) -> None:
    near = cells(*([value / factor for value in values] for values in groups))
    far, close = (verdict(equal(each, "x", "", margin=1.0)) for each in (cells(*groups), near))
    assert ORDER.index(close) >= ORDER.index(far)


@pytest.mark.quick(5)
@pytest.mark.parametrize("number", [1, 2, 6])
@pytest.mark.parametrize(
    ("make", "true_effect", "wrong"),
    [
        (lambda v: greater(v, "x", ""), 0.0, {Verdict.reproduced, Verdict.partly}),
        (lambda v: greater(v, "x", "", margin=1.0), 1.0, {Verdict.not_reproduced}),
        (lambda v: not_lower(v, "x", "", margin=1.0), -1.0, {Verdict.reproduced, Verdict.partly}),
        (lambda v: equal(v, "x", "", margin=1.0), 1.0, {Verdict.reproduced, Verdict.partly}),
        (lambda v: equal(v, "x", "", margin=1.0), 1.0, {Verdict.not_reproduced}),
    ],
    ids=["greater", "negligible", "not lower", "equal", "unequal"],
)
def test_wrong_verdicts_are_at_most_5_percent(make: Make, true_effect: float, wrong: set[Verdict], number: int) -> None:
    """At the edge of the null hypothesis, in every cell; 600 experiments of five seeds."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(true_effect, 1.0, (600, number, 5)).tolist()
    false = sum(verdict(make(cells(*groups))) in wrong for groups in drawn)
    assert false / 600 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 600)


def test_an_exact_part_costs_the_others_nothing() -> None:
    both = greater(by_seed(around(0.15)), "x", "") & exact(by_seed([1e-16]), "error", tolerance=1e-10)
    (state,) = judge(greater(by_seed(around(0.15)), "x", "")).states
    assert judge(both).states == (state, State.holds)
    assert verdict(greater(by_seed(around(2)), "x", "") & exact(False, "x")) is Verdict.partly


def test_rules_that_nothing_can_meet_are_refused() -> None:
    for margin, ratio in ((0.0, False), (-1.0, False), (1.0, True), (0.5, True), (math.nan, False), (math.inf, True)):
        with pytest.raises(ValueError, match="the margin must be above"):
            equal(by_seed(around(0)), "x", "", margin=margin, ratio=ratio)
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="not_lower: the margin must be above 0"):
            not_lower(by_seed(around(0)), "x", "", margin=margin)
    for rule, side in ((greater, 1), (less, -1)):
        for margin, ratio in ((-side, False), (math.nan, False), (math.inf, False), (-math.inf, True), (-1.0, True)):
            with pytest.raises(ValueError, match=f"{rule.__name__}: the margin must be finite, at"):
                rule(by_seed(around(0)), "x", "", margin=margin, ratio=ratio)
        for bar, ratio in ((math.nan, False), (math.inf, False), (0.0, True)):
            with pytest.raises(ValueError, match=f"{rule.__name__}: the bar must be finite"):
                rule(by_seed(around(0)), "x", "", bar=bar, ratio=ratio)
    with pytest.raises(ValueError, match="at least the bar of 2; got 1"):
        greater(by_seed(around(0)), "x", "", bar=2.0, margin=1.0)
    for tolerance in (None, math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="errors need a tolerance"):
            exact(by_seed([math.nan]), "x", tolerance=tolerance)


def test_what_is_shown_beside_decides_nothing() -> None:
    evidence = greater(by_seed(around(2)), "x", "points", margin=1.0)
    beside = evidence.showing({"other": by_seed(around(-5))})
    assert judge(beside) == judge(evidence)
    assert "Beside it: other: -5.00 [-5.20, -4.80] points." in finding(beside, judge(beside))


def test_a_best_rate_at_the_edge_of_its_sweep_decides_nothing() -> None:
    evidence = greater(by_seed([2.0, 2.1, 2.2]), "gain", "points").showing({"same rate": by_seed([1.0, 1.1])})
    assert evidence.unless_at_edge({"BN": (0.1, [0.4, 0.1, 0.02]), "no BN": (None, [0.1])}) is evidence
    at_edge = evidence.unless_at_edge({"BN": (0.4, [0.4, 0.1, 0.02]), "no BN": (0.1, [0.2, 0.1]), "LN": (2, [1, 2, 3])})
    assert at_edge.reason == "The best rate of BN and of no BN lies on the sweep's edge"
    assert not at_edge.effects
    assert [(effect.condition, len(effect.seeds)) for effect in at_edge.beside] == [("gain", 3), ("same rate", 2)]
    nothing = greater(Values(), "gain", "points")
    assert nothing.unless_at_edge({"BN": (0.4, [0.1, 0.4])}) is nothing


def test_a_ratios_effect_is_its_geometric_mean() -> None:
    (effect,) = greater(by_seed([1.0, 4.0]), "x", "times", ratio=True).effects
    assert effect.interval.mean == pytest.approx(2.0)
    assert effect.interval.low * effect.interval.high == pytest.approx(4.0)


@pytest.mark.parametrize(("has", "seeds"), [(0, 5), (5, 5), (0, 6), (6, 6), (3, 6), (9, 10)])
def test_a_share_of_seeds_is_tested_and_shown_as_binomial(has: int, seeds: int) -> None:
    values = by_seed([100.0] * has + [0.0] * (seeds - has))
    (effect,) = greater(values, "x", SHARE, bar=50.0).effects
    tests = [binomtest(has, seeds, 0.5, alternative=side).pvalue for side in ("greater", "less")]
    assert effect.p_values == pytest.approx([min(1, 2 * p) for p in tests])
    assert less(values, "x", SHARE, bar=50.0).effects[0].p_values == pytest.approx(effect.p_values[::-1])
    exact = binomtest(has, seeds).proportion_ci(0.95)
    ends = (effect.interval.mean, effect.interval.low, effect.interval.high)
    assert ends == pytest.approx((100 * has / seeds, 100 * exact.low, 100 * exact.high))
    assert judge(greater(values, "x", SHARE, bar=50.0)).verdict is {
        (0, 6): Verdict.not_reproduced,
        (6, 6): Verdict.reproduced,
        (9, 10): Verdict.reproduced,
    }.get((has, seeds), Verdict.inconclusive)  # none or all of five are not yet enough


def test_sensitivity_to_the_margin() -> None:
    assert flips_at(greater(by_seed(around(0.7)), "x", "", margin=1.0)) == [0.5]
    assert flips_at(equal(by_seed(around(1.5)), "x", "", margin=1.0)) == [2.0]
    assert flips_at(not_lower(by_seed(around(-0.7)), "x", "", margin=1.0)) == [0.5]
    assert flips_at(greater(by_seed(around(5)), "x", "", margin=1.0)) == []
    at = verdicts_at(greater(by_seed(around(0.7)), "x", "", margin=1.0))
    assert at == {0.5: Verdict.reproduced, 2.0: Verdict.partly}


def test_seeds_that_are_needed_decide() -> None:
    effect = Effect("", dict(enumerate(around(1.0, 1.0))), Rule("greater", 0.0))
    wanted = needed(effect)
    assert wanted is not None
    assert 12 <= wanted <= 35  # 80% power for an effect of 0.63 standard deviations
    assert needed(Effect("", {0: 1.0}, Rule("greater", 0.0))) is None
    assert needed(Effect("", dict(enumerate(around(0.0, 1.0))), Rule("greater", 0.0))) is None
    assert needed(Effect("", {0: 1.0}, Rule("exact", 0.0))) is None
    assert needed(Effect("", dict.fromkeys(range(5), 0.0), Rule("greater", 50.0), SHARE)) is None
    assert wanted < MOST_SEEDS


def test_answers_are_short_sentences() -> None:
    one = greater(by_seed(around(2)), "test accuracy, BN minus none", "points", margin=1.0)
    assert (
        answer(one, judge(one)) == "Yes: test accuracy, BN minus none: 2.00 [1.80, 2.20] points (n=5, bar 0, margin 1)."
    )
    two = greater(cells(around(2), around(-2)), "BN minus none", "points", margin=1.0)
    assert answer(two, judge(two)) == (
        "In part, 1 of 2 hold: BN minus none; cell 1: -2.00 [-2.20, -1.80] points (n=5, bar 0, margin 1)."
    )
    assert judge(two).states == (State.holds, State.fails)
