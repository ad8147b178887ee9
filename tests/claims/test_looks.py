"""Looks at growing numbers of seeds, and gates: error rates, the look that decides, and what is not judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnrepro.claims import (
    Design,
    Evidence,
    Gate,
    Results,
    Values,
    equal,
    exact,
    greater,
    not_lower,
    reaches,
    stays_below,
)
from bnrepro.claims.evidence import State, Verdict
from bnrepro.claims.judging import Judged, judged
from bnrepro.stats import planned
from tests.claims import made_up
from tests.claims.made_up import Settings, varied

LOOKS = [5, 10, 20, 40]
SETTINGS = Settings(looks=LOOKS)
Make = Callable[[Values], Evidence]


def results(*cells: list[float], preset: str = "full", of: str = "x") -> Results:
    """Measured values by cell and seed."""
    rows = [
        {"part": "main", "cell": cell, "seed": seed, "quantity": of, "x": None, "value": value}
        for cell, values in enumerate(cells)
        for seed, value in enumerate(values)
    ]
    return Results(preset, [], [], rows)


def judged_by(make: Make, found: Results, settings: Settings = SETTINGS, **claim: Any) -> Judged:
    def evidence(r: Results, s: Settings) -> Evidence:
        return make(r.measured("x", part="main"))

    def design(s: Settings) -> Design:
        made = Design(s.seeds)
        for cell in dict.fromkeys(row["cell"] for row in found.measurements):
            made.measure("main", {"cell": cell}, made_up.curve, points=[1.0])
        return made

    claims = [replace(made_up.paper.claims[0], evidence=evidence, **claim)]
    (only,) = judged(varied(design, claims), found, settings)
    return only


def above(values: Values) -> Evidence:
    return greater(values, "x", "points", margin=1.0)


def within(values: Values) -> Evidence:
    return equal(values, "x", "points", margin=1.0)


def test_a_condition_of_which_there_is_no_record_stays_open() -> None:
    """Without it the others would be taken for the whole claim."""

    def of(*cells: int) -> Judged:
        def design(s: Settings) -> Design:
            made = Design(s.seeds)
            for cell in cells:
                made.measure("main", {"cell": cell}, made_up.curve, points=[1.0])
            made.measure("not read", {"cell": 0}, made_up.curve, points=[1.0])
            return made

        claim = replace(made_up.paper.claims[0], evidence=lambda r, s: above(r.measured("x", part="main")), gate=None)
        (only,) = judged(varied(design, [claim]), results([3.0, 3.1, 3.2], [3.2, 3.0, 3.1]), Settings())
        return only

    assert of(0, 1).verdict is Verdict.reproduced
    without = of(0, 1, 2)
    assert without.verdict is Verdict.partly
    assert (without.unmeasured, without.judgement.states[-1]) == (["main, cell 2"], State.open)


@pytest.mark.parametrize(("lost", "look"), [((3,), 2), ((), 2), ((3, 5, 6, 7, 8, 9), 1), (None, 1)])
def test_a_seed_without_a_value_does_not_keep_a_look_from_being_reached(
    lost: tuple[int, ...] | None, look: int
) -> None:
    """What was run and diverged has no value, and none can be had; what was not run is waited for (None)."""

    def design(s: Settings) -> Design:
        made = Design(s.seeds)
        made.measure("main", {"cell": 0}, made_up.curve, points=[1.0])
        return made

    values = [alternating(1, 0.5, 10)[seed] for seed in range(10)]
    found = results(values)
    for row in found.measurements:
        if row["seed"] in (lost or ()):
            row["quantity"] = "diverged"
    if lost is None:
        found = replace(found, measurements=[row for row in found.measurements if row["seed"] != 9])
    claim = replace(made_up.paper.claims[0], evidence=lambda r, s: within(r.measured("x", part="main")), gate=None)
    (only,) = judged(varied(design, [claim]), found, SETTINGS)
    assert only.look is not None
    assert only.look.number == look


def test_levels_of_the_looks_add_up() -> None:
    for seeds in (LOOKS, [3, 6, 12], [2, 100], [7]):
        looks = planned(seeds)
        assert sum(look.level for look in looks) == pytest.approx(0.05)
        assert [(look.number, look.of, look.seeds) for look in looks] == [
            (number, len(seeds), seed) for number, seed in enumerate(seeds, 1)
        ]
    assert [round(look.level, 4) for look in planned(LOOKS)] == [0.0097, 0.0081, 0.0131, 0.0190]


ERRORS = [
    (lambda v: greater(v, "x", ""), 0.0, {Verdict.reproduced, Verdict.partly}),
    (lambda v: greater(v, "x", "", margin=1.0), 1.0, {Verdict.not_reproduced}),
    (lambda v: not_lower(v, "x", "", margin=1.0), -1.0, {Verdict.reproduced, Verdict.partly}),
    (lambda v: equal(v, "x", "", margin=1.0), 1.0, {Verdict.reproduced, Verdict.partly}),
    (lambda v: equal(v, "x", "", margin=1.0), 1.0, {Verdict.not_reproduced}),
]
"""Claims, the true effect at the edge of the null hypothesis, and the verdicts that are wrong there."""


@pytest.mark.quick(5)
@pytest.mark.parametrize("cells", [1, 4])
@pytest.mark.parametrize(
    ("make", "true_effect", "wrong"), ERRORS, ids=["difference", "negligible", "one-sided", "equivalence", "unequal"]
)
def test_wrong_verdicts_are_at_most_5_percent(make: Make, true_effect: float, wrong: set[Verdict], cells: int) -> None:
    """Over all looks, in every cell at once. `scripts/error_rates.py` does the same with many more repetitions."""
    repetitions = 200
    drawn = np.random.default_rng(0).normal(true_effect, 1.0, (repetitions, cells, LOOKS[-1])).tolist()
    false = sum(judged_by(make, results(*each)).verdict in wrong for each in drawn)
    assert false / repetitions <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repetitions)


def alternating(mean: float, spread: float, seeds: int) -> list[float]:
    return [mean + spread * (-1) ** seed for seed in range(seeds)]


@pytest.mark.parametrize(
    ("make", "values", "verdict", "look"),
    [
        (above, alternating(3, 0.5, 40), Verdict.reproduced, 1),
        (above, alternating(2, 2, 40), Verdict.reproduced, 3),
        (above, alternating(0, 1, 40), Verdict.not_reproduced, 3),
        (above, alternating(0.5, 3, 40), Verdict.inconclusive, 4),
        (above, alternating(2, 2, 19), Verdict.inconclusive, 2),
        (above, alternating(2, 2, 4), Verdict.inconclusive, 0),
        (above, [], Verdict.inconclusive, 0),
        (within, alternating(0, 0.5, 40), Verdict.reproduced, 2),
        (within, alternating(3, 1, 40), Verdict.not_reproduced, 2),
    ],
)
def test_first_look_that_leaves_nothing_open_decides(
    make: Make, values: list[float], verdict: Verdict, look: int
) -> None:
    found = judged_by(make, results(values))
    assert (found.verdict, found.look and found.look.number) == (verdict, look)
    row = found.as_row("made_up")
    seeds = LOOKS[look - 1] if look else len(values)
    assert row["look"] == {"number": look, "of": 4, "seeds": seeds}
    (effect,) = row["effects"] or [None]
    if look:
        level = planned(LOOKS)[look - 1].level
        assert effect["n"] == seeds
        assert effect["confidence"] == pytest.approx(1 - level * (2 if make is within else 1))
    if verdict is Verdict.inconclusive:
        assert not found.decided
        assert len(values) < 5 or row["needed"] > seeds


def test_answer_names_the_interval_of_the_look() -> None:
    assert judged_by(above, results(alternating(3, 0.5, 40))).answer.endswith("points (n=5, 99%, bar 0, margin 1).")


def test_verdict_stands_whatever_further_seeds_there_are() -> None:
    early = alternating(3, 0.5, 5)
    rows = [judged_by(above, results(early + later)).as_row("a") for later in ([], [-99.0] * 5, [-99.0] * 95)]
    assert rows[0]["verdict"] == "reproduced"
    assert rows[0] == rows[1] == rows[2]


def test_look_is_reached_when_every_cell_has_its_seeds() -> None:
    good = alternating(3, 0.5, 40)
    assert judged_by(above, results(good, good[:9])).look == planned(LOOKS)[0]
    open_ = judged_by(above, results(good, alternating(1, 3, 12)))
    assert (open_.look and open_.look.seeds, open_.verdict, open_.decided) == (10, Verdict.partly, False)
    assert judged_by(above, results(good, good[:4])).judgement.states == (State.open, State.open)


def test_what_is_not_random_and_smaller_presets_have_no_looks() -> None:
    def so(v: Values) -> Evidence:
        return exact(v, "x", tolerance=1.0)

    assert judged_by(so, results([0.0])).as_row("a")["look"] is None
    assert judged_by(so, results([0.0])).verdict is Verdict.reproduced
    quick = judged_by(above, results(alternating(3, 0.5, 3), preset="quick"))
    assert (quick.verdict, quick.look) == (Verdict.reproduced, None)
    fixed = judged_by(above, results(alternating(3, 0.5, 3)), Settings())
    assert (fixed.verdict, fixed.look) == (Verdict.reproduced, None)


@pytest.mark.parametrize("looks", [[1, 5], [5, 5], [10, 5], [0]])
def test_looks_grow(looks: list[int]) -> None:
    with pytest.raises(ValueError, match="must increase, starting at 2 or more"):
        Settings(looks=looks)


# --- gates ---


def accuracy(least: float) -> Any:
    return lambda r, s: reaches(r.measured("x", part="main"), least, "accuracy, %")


def test_gate_that_fails_leaves_its_claim_untested() -> None:
    found = judged_by(above, results(alternating(3, 0.5, 40)), gate=accuracy(80))
    assert (found.verdict, found.decided, found.look) == (Verdict.too_short, True, planned(LOOKS)[0])
    assert found.answer == ("The networks have not trained long enough: accuracy, % is 3.1, and at least 80 is needed.")
    row = found.as_row("made_up")
    assert row["gate"] == {"what": "accuracy, %", "value": found.gate.value, "needed": "at least 80", "passed": False}
    assert (row["effects"], row["needed"], len(row["beside"])) == ([], None, 1)


def test_gate_that_passes_changes_nothing() -> None:
    values = results(alternating(3, 0.5, 40))
    plain, gated = judged_by(above, values), judged_by(above, values, gate=accuracy(1))
    assert (gated.judgement, gated.evidence) == (plain.judgement, plain.evidence)
    assert gated.gate is not None
    assert gated.gate.passed


def test_gate_without_measurements_leaves_its_claim_open() -> None:
    def nothing(r: Results, s: Settings) -> Gate:
        return reaches(r.measured("gone"), 80, "accuracy, %")

    found = judged_by(above, results(alternating(3, 0.5, 40)), gate=nothing)
    assert (found.verdict, found.decided) == (Verdict.inconclusive, False)
    assert "accuracy, % was not measured" in found.answer


def test_gates_take_the_worst_condition() -> None:
    values = results([80.0, 90.0], [60.0, 70.0]).measured("x")
    assert reaches(values, 70, "a").value == 65
    assert not reaches(values, 70, "a").passed
    assert reaches(values, 65, "a").passed
    assert stays_below(values, 85, "a") == Gate("a", 85.0, "at most 85", True)
    assert reaches({"a": values, "gone": Values()}, 70, "a").passed is None
    bad = reaches(results([80.0, math.nan]).measured("x"), 70, "a")
    assert bad.passed is False
    assert math.isnan(bad.value or 0)


def test_of_two_gates_the_one_that_stands_in_the_way_is_shown() -> None:
    passed, failed, unknown = (Gate("a", 1.0, "n", True), Gate("b", 1.0, "n", False), Gate("c", None, "n", None))
    for first, second, shown in (
        (passed, passed, passed),
        (passed, failed, failed),
        (failed, passed, failed),
        (failed, unknown, unknown),
    ):
        both = first & second
        assert (both.what, both.passed, both.parts) == (shown.what, shown.passed, (first, second))
        assert both.asks == f"{first.what}: n; {second.what}: n"
        assert (both & passed).parts == (first, second, passed)


def test_fall_of_a_loss_is_that_of_the_last_epoch() -> None:
    losses = {0.5: 9.0, 1.0: 4.0, 2.0: 2.0, 2.5: 1.5, 3.0: 1.25}
    rows = [
        {"part": "main", "variant": "bn", "seed": seed, "step": int(10 * epoch), "epoch": epoch, "train_loss": loss}
        for seed in (0, 1)
        for epoch, loss in losses.items()
    ]
    found = Results("full", [], rows, []).fall("train_loss", part="main", variant="bn")
    assert found.seeds == {0: 0.75, 1: 0.75}
    assert Results("full", [], rows[:1], []).fall("train_loss").seeds == {}
