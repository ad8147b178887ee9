"""The contract that every paper keeps; those whose design has stayed give their numbers from before the port."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bnrepro import experiments
from bnrepro.claims import Results
from bnrepro.claims.conclusion import conclude
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged, tables
from bnrepro.claims.records import provenance_of, read
from bnrepro.claims.registering import registration
from bnrepro.runs.tables import read_rows
from bnrepro.training.options import check_options

PAPERS = {name: experiments.experiment(name) for name in experiments.NAMES}
COMMITTED = Path(__file__).parents[2] / "results" / "experiments"
PORTED = Path(__file__).parent / "ported"
SHARE = 1e-6

papers = pytest.mark.parametrize("name", PAPERS)


@cache
def is_awaited(name: str) -> bool:
    """Whether there are no committed records, or ones of an earlier design, and the runs are still to be made."""
    known, held = registration(PAPERS[name]), provenance_of(COMMITTED / name)
    if not held:  # its first runs are still to be made
        return True
    if known is not None:
        return (held.get("design") or {}).get("hash") not in known.hashes
    return not _says(PAPERS[name].settings("full").model_dump(mode="json"), held["settings"])


def _says(settings: Any, held: Any) -> bool:
    """Whether ``settings`` say all that is ``held``; margins and the like may have been added."""
    if isinstance(held, dict) and isinstance(settings, dict):
        return all(key in settings and _says(settings[key], value) for key, value in held.items())
    return bool(settings == held)


run_as_designed = pytest.mark.parametrize("name", [name for name in reversed(PAPERS) if not is_awaited(name)])


def committed(name: str) -> tuple[Results, Any]:
    """The committed records of the paper's ``full``, and their settings."""
    records, paper = read(COMMITTED / name), PAPERS[name]
    known = {key: value for key, value in records.settings.items() if key in paper.settings_type.model_fields}
    settings = paper.validated(known, "the committed settings")
    return Results(records.preset, records.runs, records.curves, records.measurements), settings


@papers
def test_it_says_what_it_is(name: str) -> None:
    paper = PAPERS[name]
    assert paper.title
    assert paper.source
    assert paper.differences
    assert paper.scale_note
    ids = [claim.id for claim in paper.claims]
    assert ids
    assert len(set(ids)) == len(ids)
    for claim in paper.claims:
        assert claim.sentence.endswith((".", "?"))
        assert claim.reported
        assert claim.judged_in.startswith("bnrepro/experiments/")
    shown = [each.name for each in (*paper.tables, *paper.figures)]
    assert len(set(shown)) == len(shown)


@papers
def test_its_presets_fit_and_its_design_has_each_arm_once(name: str) -> None:
    paper = PAPERS[name]
    assert paper.presets[:3] == ("smoke", "quick", "full")
    assert set(paper.presets[3:]) <= {"paper"}
    seeds = []
    for preset in paper.presets:
        settings = paper.settings(preset)
        seeds.append(settings.seeds)
        design = paper.designed(settings)
        assert design.arms or design.probes
        for arm in design.arms:
            check_options([arm.config])  # each run can be made again by its command
        arms = [(arm.part, str(sorted(arm.factors.items())), arm.config.seed) for arm in design.arms]
        assert len(set(arms)) == len(arms)
        assert all(probe.measure.name.startswith(f"{name}/") for probe in design.probes)
    seeds = seeds[:3]
    assert seeds == sorted(seeds)
    assert seeds[-1] >= 5 or seeds[0] == seeds[-1]


@papers
def test_no_records_judge_nothing_and_are_no_error(name: str) -> None:
    paper = PAPERS[name]
    nothing, settings = Results("full", [], [], []), paper.settings("full")
    for each in judged(paper, nothing, settings):
        assert each.verdict in (Verdict.inconclusive, Verdict.not_testable), each.claim.id
        assert each.found
        assert each.as_row(name)["answer"]
    list(tables(paper, nothing, settings))
    for shown in paper.figures:
        assert shown.make(nothing, settings) is None, shown.name


def was_run_whole(name: str) -> bool:
    """False of one that was run in part, by `reproduce NAME/CLAIM`: other claims and figures have nothing to read."""
    settings = PAPERS[name].settings("full")
    design, found = PAPERS[name].designed(settings), read(COMMITTED / name)
    trained = sum(run["seed"] == 0 for run in found.runs) >= sum(arm.config.seed == 0 for arm in design.arms)
    return trained and {probe.part for probe in design.probes} <= {row["part"] for row in found.measurements}


@pytest.mark.quick(3)
@run_as_designed
def test_its_answers_can_be_read(name: str) -> None:
    whole = was_run_whole(name)
    for each in judged(PAPERS[name], *committed(name)):
        row = each.as_row(name)
        assert len(row["answer"].split()) <= 25, row["answer"]
        if whole or len(each.unmeasured) < len(each.evidence.effects):
            assert not each.unmeasured, f"{each.claim.id} reads nothing for {each.unmeasured}"
        assert "{" not in each.found, each.found
        assert "nan" not in each.found, each.found
        if each.claim.kind == "empirical" and each.evidence.effects:
            rules = [effect.rule for effect in each.evidence.effects if effect.rule.name != "exact"]
            assert all(rule.margin is not None or rule.bar for rule in rules), f"{each.claim.id} has no margin"


@run_as_designed
def test_committed_runs_are_of_one_precision(name: str) -> None:
    """Float32, since bf16 was not shown to be equivalent (results/bench): a comparison never mixes the two."""
    assert {run["precision"] for run in read(COMMITTED / name).runs} <= {"fp32"}


@pytest.mark.quick(3)
@run_as_designed
def test_committed_conclusions_are_those_of_the_committed_records(name: str, tmp_path: Path) -> None:
    """Otherwise: `bnrepro figures results/experiments/NAME`, `bnrepro report`, and `python scripts/readme.py`."""
    conclude(PAPERS[name], read(COMMITTED / name), tmp_path)
    there, made = ({file.relative_to(of) for file in of.rglob("*.*")} for of in (COMMITTED / name, tmp_path))
    assert there - made == {Path(file) for file in ("runs.csv", "curves.csv", "measurements.csv", "provenance.json")}
    drawn = {file.stem for file in made if file.suffix == ".svg"}
    names = {shown.name for shown in PAPERS[name].figures}
    assert drawn == names or (drawn < names and not was_run_whole(name)), names - drawn
    for file in made:
        fresh, stored = tmp_path / file, COMMITTED / name / file
        if file.suffix == ".csv":
            assert _near(read_rows(fresh), read_rows(stored)), f"{file} is another"
        if file.suffix == ".json":
            pairs = (json.loads(each.read_text(encoding="utf-8")) for each in (fresh, stored))
            assert _near(*pairs), f"{file} is another"


@pytest.mark.parametrize("name", sorted(file.stem for file in PORTED.glob("*.json")))
def test_effects_and_verdicts_are_those_before_the_port(name: str) -> None:
    """Every effect that decided is still there, and every change is explained in ported/<paper>.json."""
    ported = json.loads((PORTED / f"{name}.json").read_text(encoding="utf-8"))
    found = {each.claim.id: each for each in judged(PAPERS[name], *committed(name))}
    assert found.keys() >= ported["before"].keys()  # a claim that was added since has no number before
    changed = {id for id, old in ported["before"].items() if found[id].verdict.value != old["verdict"]}
    assert changed == ported["verdicts"].keys()
    lost = {id for id, old in ported["before"].items() if "mean" in old and not _is_among(old, found[id].evidence)}
    assert lost == ported["effects"].keys()


def _is_among(old: dict[str, Any], evidence: Any) -> bool:
    for effect in (*evidence.effects, *evidence.beside):
        new = effect.interval
        pairs = [(old[end], getattr(new, end)) for end in ("mean", "low", "high", "n") if end in old]
        if all(math.isclose(a, b, rel_tol=SHARE, abs_tol=1e-12) for a, b in pairs):
            return True
    return False


def _near(fresh: Any, stored: Any) -> bool:
    if isinstance(fresh, dict):
        return all(_near(value, stored[key]) for key, value in fresh.items())
    if isinstance(fresh, list):
        return len(fresh) == len(stored) and all(map(_near, fresh, stored))
    if isinstance(fresh, float) and isinstance(stored, float):
        return math.isclose(fresh, stored, rel_tol=SHARE, abs_tol=1e-12)
    return bool(fresh == stored)
