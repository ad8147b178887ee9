"""What the page shows, piece by piece: the axis of margins, questions, digits, curves, and why a verdict is so."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bnrepro.claims import registering
from bnrepro.claims.evidence import Verdict
from bnrepro.experiments import NAMES, experiment
from bnrepro.report import curves, explaining, forest, questions, wording
from bnrepro.report.model import Section
from bnrepro.report.questions import Question, answer, outcome
from bnrepro.report.wording import column, parted
from bnrepro.stats import Interval

NUMBERS = st.floats(-1e5, 1e5).map(lambda value: round(value, 5))
POSITIVE = st.floats(1e-3, 1e3)


def effect(
    rule: str, mean: float | None, low: float, high: float, bar: Any, margin: Any, **more: Any
) -> dict[str, Any]:
    seeds = {"0": low, "1": high}
    own = {"rule": rule, "mean": mean, "low": low, "high": high, "bar": bar, "margin": margin, "seeds": seeds}
    known = {
        "condition": "",
        "n": 2,
        "confidence": 0.95,
        "unit": "points",
        "ratio": False,
        "shown": "",
        "state": "open",
    }
    return known | own | more


def claim(id: str = "a/1", verdict: str = "reproduced", **more: Any) -> dict[str, Any]:
    known: dict[str, Any] = dict.fromkeys(
        ("withdrawn", "gate", "look", "needed", "registration", "first_run", "deciding")
    )
    known |= {
        "id": id,
        "paper": id.split("/")[0],
        "verdict": verdict,
        "kind": "empirical",
        "scale": "toy",
        "effects": [],
    }
    return (
        known
        | {"flips_at": [], "preset": "full", "design_hash": "0", "seconds": 60.0, "machine": "m", "found": "x"}
        | more
    )


# --- the axis of margins ---


@pytest.mark.parametrize(
    ("rule", "bar", "margin", "ratio", "value", "places"),
    [
        # (value, where it lies): the bar is 0 and the margin 1, and the claim's side is above
        ("greater", 0.0, 2.0, False, (0.0, 2.0, -2.0, 20.0), (0, 1, -1, 10)),
        ("less", 0.0, -2.0, False, (0.0, -2.0, 2.0), (0, 1, -1)),
        ("less", 10.0, 5.0, False, (10.0, 5.0, 15.0), (0, 1, -1)),
        ("equal", None, 0.5, False, (0.0, 0.5, -0.5, 1.0), (0, 1, -1, 2)),
        ("equal", None, 2.0, True, (1.0, 2.0, 0.5), (0, 1, -1)),
        ("greater", 1.0, 1.1, True, (1.0, 1.1, 1.21), (0, 1, 2)),
        ("greater", -1.0, None, False, (0.0, -1.0, 1.0), (0, -1, 1)),  # no loss beyond 1
        ("greater", 2.0, None, True, (1.0, 2.0, 4.0), (0, 1, 2)),  # twice as much
        ("less", 10.0, None, False, (0.0, 10.0, 20.0), (0, -1, -2)),
    ],
)
def test_effects_are_placed_in_units_of_their_margin(
    rule: str, bar: Any, margin: Any, ratio: bool, value: tuple[float, ...], places: tuple[float, ...]
) -> None:
    units = forest.margins(effect(rule, value[0], value[0], value[0], bar, margin, ratio=ratio))
    assert units
    assert [units(each) for each in value] == pytest.approx(places)
    assert units(None) is None
    assert units(math.inf) is None


@given(st.lists(NUMBERS, min_size=2, unique=True))
def test_common_axis_keeps_the_order_and_its_ticks(values: list[float]) -> None:
    ordered = sorted(values)
    assert all(a <= b for a, b in pairwise(map(forest.common, ordered)))
    assert forest.common(-ordered[0]) == pytest.approx(forest.WIDTH - forest.common(ordered[0]))
    assert {label for _, label in forest.common_ticks()} >= {"0", "1", "100"}


@given(
    rule=st.sampled_from(["greater", "less", "equal"]), ratio=st.booleans(), margin=st.none() | POSITIVE,
    values=st.lists(POSITIVE, min_size=3, max_size=3), reported=st.none() | POSITIVE,
)  # fmt: skip
def test_strips_stay_on_their_axis(
    rule: str, ratio: bool, margin: float | None, values: list[float], reported: float | None
) -> None:
    low, mean, high = sorted(values)
    bar = None if rule == "equal" else 1.0 if ratio else 0.0
    margin = 1.0 + (margin or 1.0) if rule == "equal" else margin
    one = effect(rule, mean, low, high, bar, margin, ratio=ratio)
    drawn = forest.overview({"effects": [one], "deciding": 0}, reported)
    (panel,) = forest.panels([one], reported=reported)
    for strip in filter(None, (drawn, panel.rows[0][1])):
        assert strip.low is not None
        assert strip.mean is not None
        assert strip.high is not None
        places = [strip.low, strip.mean, strip.high, *strip.dots, *(strip.shade or ())]
        assert all(0 <= place <= forest.WIDTH for place in places)
        assert strip.low <= strip.mean <= strip.high
    assert drawn or low == high  # nothing to measure it by
    assert len(panel.ticks) <= 2 * forest.MOST_TICKS
    assert all(-1e-6 <= place <= forest.WIDTH + 1e-6 for place, _ in panel.ticks)


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("rule", ["greater", "less", "equal"])
@pytest.mark.parametrize("values", [(-1e308, 1e308), (5e-324, 1e-323), (1e15, 1e15 + 1), (0.0, 0.0), (1e300, 1e308)])
def test_numbers_that_a_file_can_hold_end_no_page(rule: str, ratio: bool, values: tuple[float, float]) -> None:
    for bar, margin in ((0.0, None), (None, None), (1.0, 2.0), (1e-320, 1e308)):
        one = effect(rule, values[0], *values, bar, margin, ratio=ratio)
        forest.overview({"effects": [one], "deciding": 0}, 1e308)
        (panel,) = forest.panels([one])
        assert len(panel.ticks) <= 2 * forest.MOST_TICKS
        assert explaining.why(claim(effects=[one], deciding=0))


def test_what_was_not_measured_or_is_exact_is_not_drawn() -> None:
    for one in (effect("exact", 0.0, 0.0, 0.0, 0.0, None), effect("greater", None, 0.0, 0.0, 0.0, 1.0)):
        assert forest.overview({"effects": [one], "deciding": 0}) is None
    assert forest.overview({"effects": [], "deciding": None}) is None
    ((panel,), (none,)) = (
        forest.panels([effect("exact", 0.0, 0.0, 0.0, 0.0, None)]),
        forest.panels([effect("greater", 0.0, 0.0, 0.0, 0.0, 1.0, seeds={})]),
    )
    assert panel.rows[0][1] is None
    assert none.rows[0][1] is None or none.rows[0][1].dots == []


@pytest.mark.parametrize(
    ("low", "high", "ratio", "ticks"),
    [
        (-1.0, 9.0, False, [0, 2, 4, 6, 8]),
        (0.0, 0.01, False, [0, 0.002, 0.004, 0.006, 0.008, 0.01]),
        (math.log(0.5), math.log(20), True, [1, 3, 10]),
        (math.log(1e-3), math.log(1e3), True, None),
        (math.log(0.98), math.log(1.03), True, [0.98, 0.99, 1.0, 1.01, 1.02, 1.03]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, ratio: bool, ticks: list[float] | None) -> None:
    found = forest.ticks_of(low, high, ratio)
    assert 2 <= len(found) <= forest.MOST_TICKS + 1
    assert ticks is None or found == pytest.approx(ticks[: len(found)]) or set(found) <= set(ticks)


# --- questions ---

SIDES = st.lists(st.sampled_from(["yes", "mixed", "no", "open", "none"]), max_size=6)


@given(SIDES, st.randoms())
def test_an_answer_is_yes_or_no_where_all_decided_claims_say_so(sides: list[Any], random: Any) -> None:
    found = outcome(sides)
    shuffled = list(sides)
    random.shuffle(shuffled)
    assert outcome(shuffled) == found
    decided = {side for side in sides if side not in ("open", "none")}
    assert (found in ("yes", "no")) == (len(decided) == 1 and decided != {"mixed"})
    assert found in ("open", "none") or decided
    assert found != "none" or "open" not in sides


UNTRIED = "1 claim not testable"
LATER = "1 claim awaited: no results yet"
QUESTION = Question(
    "Q?",
    ("a/1", "a/2", "b/1"),
    frozenset({"a/2"}),
    {"yes": "Y: y.", "mixed": "M: m.", "no": "N: n."},
    {"a/1": "partly", "b/1": "not reproduced"},
    "W: w.",
)


@pytest.mark.parametrize(
    ("verdicts", "short", "notes"),
    [
        (("reproduced", "not reproduced", "reproduced"), "Y", ["3 verdicts (3 toy)"]),
        (("not reproduced", "reproduced", None), "N", ["2 verdicts (2 toy)", LATER]),
        (("reproduced", "reproduced", "reproduced"), "M", ["3 verdicts (3 toy)"]),
        (("partly", None, None), "M", ["1 verdict (1 toy)", "2 claims awaited: no results yet"]),
        (("partly", "reproduced", "not reproduced"), "W", ["3 verdicts (3 toy)"]),
        (("partly", "reproduced", "reproduced"), "M", ["3 verdicts (3 toy)"]),
        (("inconclusive", None, "not testable here"), "Undecided", ["1 claim inconclusive", UNTRIED, LATER]),
        (("not testable here", None, Verdict.too_short.value), "Not answered yet", ["2 claims not testable", LATER]),
    ],
)  # fmt: skip
def test_questions_are_answered_from_verdicts(verdicts: tuple[str | None, ...], short: str, notes: list[str]) -> None:
    each = zip(QUESTION.claims, verdicts, strict=True)
    rows = {id: claim(id, verdict, deciding=0) for id, verdict in each if verdict}
    found = answer(QUESTION, rows)
    assert (found.short, found.notes) == (short, notes)
    assert found.awaited == [id for id in QUESTION.claims if id not in rows]


def test_claims_that_nothing_was_measured_of_are_not_called_inconclusive() -> None:
    rows = {"a/1": claim("a/1", "inconclusive", deciding=0), "a/2": claim("a/2", "inconclusive", deciding=None)}
    assert answer(QUESTION, rows).notes[:2] == ["1 claim not run yet", "1 claim inconclusive"]


def test_claims_under_revision_and_of_earlier_designs_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "registered_on", lambda paper, but: "2026-11-26" if paper == "b" else None)
    rows = [claim("a/1", "not testable here", withdrawn="a reason"), claim("a/2"), claim("b/1")]
    notes = answer(QUESTION, {row["id"]: row for row in rows}).notes
    assert "1 claim under revision" in notes
    assert any(note.startswith("1 verdict from an earlier design") for note in notes)
    assert questions.stale(claim("b/1", kind="identity")) is None  # algebra is of any design


def test_the_registered_sentence_stands_beside_one_that_was_made_more_exact() -> None:
    paper = experiment("li2019")
    known = registering.registration(paper)
    assert known
    (registered,) = (claim["sentence"] for claim in known.design["claims"] if claim["id"] == "D1.2")
    row = claim("li2019/D1.2", sentence=registered, design_hash=known.hash)
    assert "Registered as" not in dict(wording.history(row))
    assert registered in dict(wording.history(row | {"sentence": "Another."}))["Registered as"]
    assert "Registered as" not in dict(wording.history(row | {"sentence": "Another.", "design_hash": "0" * 16}))


def test_each_question_asks_for_claims_that_papers_have() -> None:
    """Where a claim is renamed, the question that rests on it is to be looked at."""
    asked = questions.asked()
    assert len(asked) == 10
    ids = {id for question in asked for id in question.claims}
    known = {f"{n}/{c.id}" for n in NAMES if any(id.startswith(f"{n}/") for id in ids) for c in experiment(n).claims}
    assert ids <= known
    for question in asked:
        assert set(question.answers) == {"yes", "mixed", "no"}
        assert set(question.verdicts) <= set(question.claims)
        assert bool(question.verdicts) == bool(question.written)
        for text in filter(None, (*question.answers.values(), question.written)):
            assert ": " in text
            assert text.endswith(".")
            assert not re.search(r"\d", text)  # a number would go out of date
    assert questions.answers([]) == []


def test_each_number_of_a_source_is_of_what_its_claim_is_judged_by() -> None:
    """Where an estimand is reworded, the number is to be looked at: its tick is gone without a word."""
    results = Path(__file__).parents[2] / "results" / "experiments"
    rows = {row["id"]: row for file in results.glob("*/claims.json") for row in json.loads(file.read_text("utf-8"))}
    known = yaml.safe_load(Path(questions.__file__).with_name("reported.yaml").read_text("utf-8"))
    assert {id for id in known if questions.reported(rows[id]) is None} == set()


def test_sources_numbers_are_shown_for_the_estimand_that_they_were_read_for() -> None:
    known = claim("li2019/D1.2", estimand="test accuracy, no dropout minus dropout in each block")
    assert questions.reported(known) == 8.87
    assert questions.reported(known | {"estimand": "another"}) is None
    assert questions.reported(claim("a/1", estimand="x")) is None


# --- digits ---


@given(st.lists(st.floats(-1e4, 1e4, allow_nan=False) | st.none(), min_size=1))
def test_digits_are_equal_within_a_column(values: list[float | None]) -> None:
    told = [
        cell for cell, value in zip(column(values), values, strict=True) if value is not None and value != int(value)
    ]
    digits = {len(cell.partition(".")[2].partition("e")[0]) for cell in told}
    assert len(digits) <= 1
    for cell, value in zip(column(values), values, strict=True):
        assert value is None or float(cell.replace(",", "")) == pytest.approx(value, rel=0.06, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e2)), min_size=1))
def test_digits_of_intervals_are_equal_and_none_vanishes(pairs: list[tuple[float, float]]) -> None:
    cells = column([Interval(mean, mean - half, mean + half, 5) for mean, half in pairs])
    assert all(cell.endswith(" (n=5)") for cell in cells)
    assert (
        len({len(number.partition(".")[2]) for cell in cells for number in re.findall(r"\d[\d,]*\.?\d*", cell[:-6])})
        == 1
    )


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([0.5, 0.25, None], ["0.5000", "0.2500", "-"]),
        ([1, 20_000, True], ["1", "20,000", "yes"]),
        ([1.5, 1e-9], ["1.50e+00", "1.00e-09"]),
        ([-0.00001, 5.123], ["-0.000010", "5.123000"]),
        (["a", 1.5], ["a", "1.5"]),
        ([Interval(1.0, 0.5, 1.5, 3), Interval(0, 0, 0, 0)], ["1.00 [0.50, 1.50] (n=3)", "- (n=0)"]),
    ],
)  # fmt: skip
def test_cells_of_a_column(values: list[Any], cells: list[str]) -> None:
    assert column(values) == cells


@pytest.mark.parametrize(
    ("caption", "short", "rest"),
    [
        ("One. Two, three.", "One.", "Two, three."),
        ("Means over n = 5 seeds", "Means over n = 5 seeds", ""),
        ("Only one.", "Only one.", ""),
        ("One. Two: three. Four.", "One.", "Two: three. Four."),
        ("Accuracy by rate: Means of five.", "Accuracy by rate", "Means of five."),
        ("Top left: The variance. Right: The mean.", "Top left: The variance.", "Right: The mean."),
    ],
)
def test_captions_are_parted_after_their_first_sentence(caption: str, short: str, rest: str) -> None:
    assert parted(caption) == (short, rest)


# --- curves ---


def evaluation(part: str, variant: str, seed: int, step: int, **values: float | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("lr", "seconds", *curves.COLUMNS))
    return row | {"part": part, "variant": variant, "seed": seed, "step": float(step), "epoch": step / 10} | values


def section(rows: list[dict[str, Any]], lost: set[tuple[str, int]] = frozenset()) -> Section:  # type: ignore[assignment]
    who = dict.fromkeys((row["part"], row["variant"], row["seed"]) for row in rows)
    runs = [
        {"part": p, "variant": v, "seed": s, "status": "diverged" if (v, s) in lost else "completed"} for p, v, s in who
    ]
    return Section("x", "X", "", [], [], [], [], [], {}, curves=rows, runs=runs)


def test_curves_are_by_part_and_line_with_a_list_for_each_seed() -> None:
    rows = [evaluation("a", v, s, t, val_loss=1 / t + s) for v in ("bn", "nobn") for s in (0, 1) for t in (1, 2, 5)]
    rows.remove(next(row for row in rows if (row["variant"], row["seed"], row["step"]) == ("nobn", 1, 5.0)))
    rows.append(evaluation("still", "bn", 0, 1, val_loss=1.0))  # one evaluation is no curve
    (chart,) = curves.charts(section(rows, {("nobn", 1)}))
    assert (chart["part"], chart["columns"]) == ("a", ["val_loss"])
    bn, nobn = chart["lines"]
    assert (bn["label"], bn["seeds"], bn["ended"], bn["step"]) == ("bn", [0, 1], [], [1, 2, 5])
    assert bn["val_loss"] == [[1.0, 0.5, 0.2], [2.0, 1.5, 1.2]]
    assert (nobn["ended"], nobn["val_loss"][1]) == ([1], [2.0, 1.5, None])  # it diverged, and ends there
    assert json.dumps(chart, allow_nan=False)


@given(st.integers(2, 400))
def test_long_curves_are_thinned_and_keep_their_ends(points: int) -> None:
    (chart,) = curves.charts(section([evaluation("a", "bn", 0, t, train_loss=math.inf) for t in range(points)]))
    steps = chart["lines"][0]["step"]
    assert len(steps) == min(points, curves.POINTS)
    assert (steps[0], steps[-1], sorted(set(steps))) == (0, points - 1, steps)


# --- why ---


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"verdict": "not testable here", "withdrawn": "it is wrong"}, "until its new design has run: it is wrong"),
        ({"verdict": "not testable at this length"}, "Longer training"),
        ({"needed": 30}, "30 seeds would decide what is open"),
        (
            {"flips_at": [0.5, 2.0], "at_margins": {"0.5": "partly"}},
            "At half the margin it would be partly and at double the margin it would be another.",
        ),
        ({}, "Half or double the margin would not"),
    ],
)  # fmt: skip
def test_a_claim_says_why_and_what_would_change_it(row: dict[str, Any], words: str) -> None:
    one = effect("greater", 1.0, 0.5, 1.5, 0.0, 0.2, state="holds", shown="1.0")
    full = claim(effects=[one], deciding=None if row.get("verdict") else 0) | row
    assert words in f"{explaining.why(full)} {explaining.changes(full)}"


def test_the_conditions_are_counted_by_how_they_stand() -> None:
    states = ("holds", "fails", "open", "holds")
    effects = [effect("greater", 1.0, 0.5, 1.5, 0.0, 0.2, state=s, shown="1.0", condition=s) for s in states]
    text = explaining.why(claim(verdict=Verdict.partly, effects=effects, deciding=1))
    assert "Of 4 conditions, 2 hold, 1 fails and 1 is open, and what stands against the rest decides" in text
    assert text.endswith("“fails”: 1.0 points, which fails.")


def test_what_judges_a_claim_is_linked_to_from_a_page_in_the_clone_alone(tmp_path: Path) -> None:
    row = claim(judged_in="bnrepro/experiments/li2019.py:dropout_harms")
    file, place = explaining.judged_at(row)
    line = int(place.removeprefix("line "))
    assert (explaining.HOME / file).read_text().splitlines()[line - 1].startswith("def dropout_harms(")
    out = explaining.HOME / "results"
    assert explaining.link(row, out) == f"../bnrepro/experiments/li2019.py#L{line}"
    assert explaining.link(row, tmp_path) is explaining.link(row, None) is None
    own = claim(judged_in="my_paper.py:it_is_so")
    assert (explaining.judged_at(own), explaining.link(own, out)) == (("my_paper.py", "it_is_so"), None)


def test_words_for_counts() -> None:
    assert (wording.plural(1, "claim"), wording.plural(2_000, "claim")) == ("1 claim", "2,000 claims")
    assert (wording.listed([]), wording.listed("a"), wording.listed("abc")) == ("", "a", "a, b and c")
