"""Seeds until decided, single claims, numbers of seeds, and how long it takes: on a paper that measures in no time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnrepro.claims import Design, Evidence, Paper, Results, greater, measure
from bnrepro.claims.conclusion import open_conclusion
from bnrepro.claims.engine import Plan, make_plan
from bnrepro.claims.estimating import Costs
from bnrepro.claims.judging import Judged
from bnrepro.claims.records import read
from bnrepro.claims.sequential import Step, Target, until_decided
from bnrepro.cli.planning import duration
from bnrepro.cli.reproducing import budget
from bnrepro.errors import UserError
from tests.claims import made_up
from tests.claims.conftest import Listed
from tests.claims.made_up import Settings, varied
from tests.conftest import Call

SPREAD = {"clear": 0.1, "near": 1.2, "never": 30.0}
"""Of three conditions, whose effect is 2: a look at 5 seeds decides the first, one at 10 or 20 the second."""
LOOKS = "full: {looks: [5, 10, 20]}\n"
PLACE = Path("results/experiments/made_up")


@measure("made_up/effect")
def effect(seed: int, spread: float) -> made_up.Rows:
    """2, and as far from it as the seed says."""
    if seed == 7 and spread == 99.0:
        raise ZeroDivisionError("by purpose")
    return [{"quantity": "effect", "x": None, "value": 2 + spread * (-1) ** seed}]


def design(s: Settings) -> Design:
    new = Design(s.seeds)
    for name, spread in SPREAD.items():
        new.measure(name, {}, effect, spread=spread)
    return new


def claim(name: str) -> Any:
    def evidence(r: Results, s: Settings) -> Evidence:
        return greater(r.measured("effect", part=name), "effect", "points", margin=0.5)

    return replace(made_up.paper.claims[0], id=name, evidence=evidence)


def paper(how: Any = design, names: Any = SPREAD) -> Paper[Settings]:
    return varied(how, [claim(name) for name in names], [], [])


@pytest.fixture
def looks(presets: Path) -> None:
    presets.write_text(LOOKS)


def seeds() -> dict[str, int]:
    """How many of each condition are stored."""
    rows = read(PLACE).measurements
    return {name: sum(row["part"] == name for row in rows) for name in SPREAD if any(r["part"] == name for r in rows)}


def made(tmp_path: Path) -> int:
    return len(list(tmp_path.glob("runs/measurements/made_up/*.json")))


def verdicts() -> dict[str, tuple[str, int, int]]:
    rows = open_conclusion(PLACE).claims
    return {row["id"].partition("/")[2]: (row["verdict"], row["look"]["number"], row["look"]["seeds"]) for row in rows}


def test_only_what_is_open_is_extended(looks: None, listed: Listed, call: Call, tmp_path: Path) -> None:
    listed(paper())
    told = call("reproduce", "made_up", "--until-decided", "--jobs=1")
    assert told.code == 0, told.err
    assert seeds() == {"clear": 5, "near": 10, "never": 20}
    assert verdicts() == {
        "clear": ("reproduced", 1, 5),
        "near": ("reproduced", 2, 10),
        "never": ("inconclusive", 3, 20),
    }
    lines = told.out.splitlines()
    assert lines[0].startswith("made_up: 5 seeds for clear, near, never: 0 runs, 15 measurements; ")
    assert lines[1].startswith("made_up: 10 seeds for near: 0 runs, 5 measurements; ")
    assert [line.split(":")[1] for line in lines[2:4]] == [" 10 seeds for never", " 20 seeds for never"]
    assert "made_up/never is open after 20 of 20 seeds; about 2,409 would decide it." in told.out
    before = {file: file.read_bytes() for file in PLACE.rglob("*.*")}
    again = call("reproduce", "made_up", "--until-decided", "--jobs=1")
    assert again.code == 0
    assert "seeds for" not in again.out
    assert {file: file.read_bytes() for file in PLACE.rglob("*.*")} == before
    # An ordinary call requests only the first seeds, and keeps the stored results of the others.
    assert call("reproduce", "made_up", "--preset=full", "--jobs=1").code == 0
    assert seeds() == {"clear": 5, "near": 10, "never": 20}
    assert made(tmp_path) == 35


def test_goes_on_where_it_was_stopped(looks: None, listed: Listed, call: Call, tmp_path: Path) -> None:
    listed(paper())
    for most, there in ((5, 15), (10, 25), (40, 35)):
        told = call("reproduce", "made_up", "--until-decided", "--jobs=1", f"--max-seeds={most}")
        assert told.code == 0, told.err
        assert made(tmp_path) == there


def test_one_claim_runs_what_it_reads(looks: None, listed: Listed, call: Call) -> None:
    listed(paper())
    told = call("reproduce", "made_up/near", "made_up/clear", "--until-decided", "--jobs=1")
    assert told.code == 0, told.err
    assert "2 claims: 2 reproduced" in told.out, told.err
    assert seeds() == {"clear": 5, "near": 10}
    assert verdicts()["never"] == ("inconclusive", 0, 0)
    told = call("reproduce", "made_up/never", "--preset=full", "--jobs=1")
    assert told.code == 0, told.err
    assert "1 claim: 1 inconclusive" in told.out, told.err
    assert seeds() == {"clear": 5, "near": 10, "never": 5}
    told = call("reproduce", "made_up/nevr", "--dry-run")
    assert told.code == 2
    assert "made_up has no claim 'nevr'. Did you mean never?" in told.err


def test_results_whose_runs_are_elsewhere_stay_beside_one_claim(
    looks: None, listed: Listed, call: Call, tmp_path: Path
) -> None:
    listed(paper())
    assert call("reproduce", "made_up", "--until-decided", "--jobs=1").code == 0
    before, rows = seeds(), read(PLACE).measurements
    (tmp_path / "runs").rename(tmp_path / "gone")
    told = call("reproduce", "made_up/near", "--preset=full", "--jobs=1")
    assert told.code == 0, told.err
    assert (seeds(), made(tmp_path)) == (before, 5)
    assert sorted(map(str, read(PLACE).measurements)) == sorted(map(str, rows))
    assert verdicts()["near"] == ("reproduced", 2, 10)
    assert (
        call("reproduce", "made_up", "--seeds=1", "--preset=full", "--jobs=1").code == 0
    )  # its looks are as they were
    assert seeds() == before
    other = varied(lambda s: design(with_one_more(s)), [claim(name) for name in SPREAD], [], [])
    listed(other)
    assert call("reproduce", "made_up/near", "--preset=full", "--jobs=1").code == 2  # another design


def with_one_more(s: Settings) -> Settings:
    return s.model_copy(update={"seeds": s.seeds + 1})


def test_number_of_seeds(listed: Listed, call: Call) -> None:
    listed(paper())
    told = call("reproduce", "made_up", "--preset=full", "--seeds=3", "--jobs=1")
    assert told.code == 0, told.err
    assert seeds() == {"clear": 3, "near": 3, "never": 3}
    records = read(PLACE)
    assert records.settings["seeds"] == 3
    assert records.provenance["command"] == "bnrepro reproduce made_up --preset full --seeds 3"
    assert call("reproduce", "made_up", "--preset=full", "--seeds=2", "--jobs=1").code == 2  # more is stored


def test_dry_run_says_how_long_it_takes(looks: None, listed: Listed, call: Call, tmp_path: Path) -> None:
    listed(paper())
    dry = ("reproduce", "made_up", "--jobs=1", "--dry-run")
    assert call(*dry, "--preset=full").out == (
        "made_up (preset full): 0 runs, 0 still to run; 15 measurements, 15 still to make.\n"
        "made_up: duration unknown, since nothing similar has been run.\n"
    )
    assert "made_up: 5 seeds for clear, near, never: " in call(*dry, "--until-decided").out
    assert not (tmp_path / "results").exists()
    call("reproduce", "made_up", "--preset=full", "--jobs=1")
    for file in tmp_path.glob("runs/measurements/made_up/*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 90.0}))
    told = call(*dry, "--preset=full", "--seeds=7")
    assert told.out.endswith("made_up: about 9 min.\n"), told.out
    assert "made_up: 10 seeds for near: 0 runs, 5 measurements; about 8 min." in call(*dry, "--until-decided").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--until-decided", "--preset=quick"], "preset quick is no evidence"),
        (["--until-decided", "--seeds=3"], "--seeds cannot be combined with --until-decided"),
        (["--until-decided", "--force"], "--force cannot be combined with --until-decided"),
        (["--budget=2h"], "need --until-decided"),
        (["--max-seeds=20"], "need --until-decided"),
        (["--until-decided", "--budget=soon"], "--budget=soon is not a duration"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str, listed: Listed, call: Call) -> None:
    listed(paper())
    told = call("reproduce", "made_up", *arguments)
    assert told.code == 2
    assert message in told.err


def test_measurement_that_fails_stops_its_claim_alone(looks: None, listed: Listed, call: Call) -> None:
    def broken(s: Settings) -> Design:
        new = design(s)
        new.probes = [replace(p, arguments={"spread": 99.0}) if p.part == "near" else p for p in new.probes]
        return new

    listed(paper(broken))
    told = call("reproduce", "made_up", "--until-decided", "--jobs=1")
    assert told.code == 2
    assert "made_up/near is open after 5 of 20 seeds" in told.out
    assert "its next look cannot be reached, since a run failed or gave no value." in told.out
    assert seeds() == {"clear": 5, "near": 9, "never": 20}
    (failed,) = read(PLACE).provenance["failed"]  # which later steps, that do not ask for it, still tell
    assert failed == "near, seed 7, made_up/effect: ZeroDivisionError: by purpose"


def test_first_look_at_all_claims_makes_what_only_figures_show(looks: None, listed: Listed, call: Call) -> None:
    def more(s: Settings) -> Design:
        new = design(s)
        new.measure("shown", {}, effect, spread=0.5)
        return new

    listed(paper(more))
    assert call("reproduce", "made_up", "--until-decided", "--jobs=1").code == 0
    assert sum(row["part"] == "shown" for row in read(PLACE).measurements) == 5
    assert call("reproduce", "made_up/clear", "--until-decided", "--jobs=1", "--out=other").code == 0
    assert {row["part"] for row in read(Path("other/made_up")).measurements} >= {"clear"}


def test_fixed_design_is_run_once(listed: Listed, call: Call) -> None:
    listed(paper())
    for line in ("made_up: 1 seed for clear, near, never: 0 runs, 3 measurements", "made_up: 1 seed for"):
        told = call("reproduce", "made_up", "--until-decided", "--jobs=1")
        assert told.code == 0, told.err
        assert told.out.startswith(line), told.err
    assert seeds() == {"clear": 1, "near": 1, "never": 1}
    assert "made_up/near is open after 1 of 1 seeds." in told.out


def test_interrupted_search_goes_on(looks: None, listed: Listed, call: Call, tmp_path: Path) -> None:
    real = effect.function

    def stopped(seed: int, spread: float) -> made_up.Rows:
        if seed == 7:
            raise KeyboardInterrupt
        return real(seed, spread)

    listed(paper())
    object.__setattr__(effect, "function", stopped)
    try:
        told = call("reproduce", "made_up", "--until-decided", "--jobs=1")
    finally:
        object.__setattr__(effect, "function", real)
    assert told.code == 130
    assert "Run the same command again to continue" in told.err
    assert (made(tmp_path), verdicts()["clear"]) == (17, ("reproduced", 1, 5))
    assert call("reproduce", "made_up", "--until-decided", "--jobs=1").code == 0
    assert (made(tmp_path), verdicts()["near"]) == (35, ("reproduced", 2, 10))


# --- in which order ---


def target(tmp_path: Path, names: Any = SPREAD) -> Target:
    own = paper(names=names)

    def make(seeds: int, asked: Design, alone: bool) -> Plan:
        return make_plan(own, "full", tmp_path, seeds=seeds, asked=asked, alone=alone)

    return Target(own, own.claims, make)


def evidence_of(step: Step) -> tuple[list[Judged], list[str]]:
    """As if it had been measured."""
    from bnrepro.claims.judging import judged

    known = getattr(step.target, "known", {})
    for one in step.claims:
        known[one.id] = step.seeds
    step.target.known = known  # type: ignore[attr-defined]
    rows = [
        {"part": name, "seed": seed, **row}
        for name, count in known.items()
        for seed in range(count)
        for row in effect.function(seed, SPREAD[name])
    ]
    return judged(step.target.paper, Results("full", [], [], rows), step.target.settings), []


def test_nearest_decision_comes_first_and_the_budget_is_kept(
    looks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Costs, "_seconds", lambda self, each: 10.0 if each.part == "near" else 1.0)
    now, order = [0.0], []

    def execute(step: Step) -> Any:
        order.append(([one.id for one in step.claims], step.seeds))
        now[0] += step.estimate.seconds
        return evidence_of(step)

    def run(**more: Any) -> list[Any]:
        order.clear()
        now[0] = 0.0
        one = target(tmp_path)
        until_decided([one], execute, clock=lambda: now[0], **more)
        return list(order)

    first = (["clear", "near", "never"], 5)  # 5 + 50 + 5 seconds
    # From the effects, "near" needs 10 seeds of 10 seconds each, and "never" hundreds of 1 second each.
    assert run(most=20) == [first, (["near"], 10), (["never"], 10), (["never"], 20)]
    assert run(most=10) == [first, (["near"], 10), (["never"], 10)]
    assert run(most=20, budget=59) == []
    assert run(most=20, budget=75) == [first, (["never"], 10)]  # the look at "near" does not fit any more
    assert run(most=20, budget=75, jobs=10)[:2] == [first, (["near"], 10)]


def test_paper_of_which_nothing_can_be_made_does_not_cost_the_others(looks: None, tmp_path: Path) -> None:
    bad, good = target(tmp_path, ["never"]), target(tmp_path, ["clear"])
    bad.paper.name = "bad"
    until_decided([bad, good], lambda step: None if step.target is bad else evidence_of(step), most=20)
    assert bad.found == {}
    assert good.found["clear"].decided


def test_times_are_read_and_written() -> None:
    assert [budget(text) for text in ("2h", "90m", "1h30m", "1.5h", "20s", "5min")] == [7200, 5400, 5400, 5400, 20, 300]
    for text in ("", "2", "h", "2h x", "-2h", "0h"):
        with pytest.raises(UserError, match="is not a duration"):
            budget(text)
    assert [duration(seconds) for seconds in (0.1, 80, 600, 7200)] == ["1 s", "80 s", "10 min", "2.0 h"]
