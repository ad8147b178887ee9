"""Registered designs: what counts in their hash, what is refused, and what is recorded and shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnrepro import experiments
from bnrepro.claims import Design, Evidence, Gate, Paper, Results, greater, registering
from bnrepro.claims.conclusion import open_conclusion
from bnrepro.claims.records import read
from bnrepro.claims.registering import described, differences, file_of, hash_of, register, registration
from bnrepro.errors import UserError
from bnrepro.system.reading import read_yaml
from tests.claims import made_up
from tests.claims.conftest import Listed
from tests.claims.made_up import Settings, toys, varied
from tests.conftest import Call

FIRST = made_up.paper.claims[0]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where registrations are, as for presets."""
    monkeypatch.setattr("bnrepro.claims.registering.configs_dir", lambda: tmp_path / "configs")
    return tmp_path / "configs" / "registered"


def hash_with(paper: Paper[Settings] | None = None, **settings: Any) -> str:
    return hash_of(described(paper or varied(), Settings(**settings)))


def with_claim(**changes: Any) -> Paper[Settings]:
    return varied(claims=[replace(FIRST, **changes), *made_up.paper.claims[1:]])


def wider(r: Results, s: Settings) -> Evidence:
    return replace(made_up.better(r, s), effects=greater({}, "", "").effects)


def other_arms(s: Settings) -> Design:
    design = made_up.runs(s)
    design.arms[0] = replace(design.arms[0], factors={"variant": "nobn", "rate": 0.25})
    return design


def other_rate(s: Settings) -> Design:
    design = made_up.runs(s)
    for arm in design.arms:
        arm.config.optimizer.lr = 0.123
    return design


def gate(r: Results, s: Settings) -> Gate:
    return Gate("accuracy", None, "at least 80", None)


def test_hash_counts_all_that_can_change_a_verdict() -> None:
    hashes = [
        hash_with(),
        hash_with(seeds=2),
        hash_with(looks=[2, 4]),
        hash_with(looks=[2, 8]),
        hash_with(margin=2.0),
        hash_with(varied(other_arms)),
        hash_with(varied(other_rate)),
        hash_with(varied(toys)),
        hash_with(with_claim(kind="prediction")),
        hash_with(with_claim(scale="reduced")),
        hash_with(with_claim(gate=gate)),
        hash_with(with_claim(evidence=wider)),
        hash_with(with_claim(withdrawn="too small")),
        hash_with(varied(claims=made_up.paper.claims[:2])),
    ]
    assert len(set(hashes)) == len(hashes)


def test_hash_counts_neither_prose_nor_how_many_seeds_of_a_sequential_design_are_run() -> None:
    same = [with_claim(sentence="Another."), with_claim(scale_note="other words"), with_claim(quote="", where="p. 2")]
    assert {hash_with(paper) for paper in same} == {hash_with()}
    assert hash_with(looks=[2, 4], seeds=2) == hash_with(looks=[2, 4], seeds=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.NAMES)
def test_designs_of_all_papers_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    from bnrepro.claims.registering import STYLE, _Plain

    paper = experiments.experiment(name)
    design = described(paper, paper.settings("full"))
    (tmp_path / "a.yaml").write_text(yaml.dump(design, Dumper=_Plain, **STYLE), encoding="utf-8")
    read = yaml.safe_load(read_yaml(tmp_path / "a.yaml"))
    assert read == design
    assert hash_of(read) == hash_of(design)
    assert [claim["id"] for claim in design["claims"]] == [claim.id for claim in paper.claims]
    assert design["runs"] or design["measurements"]


def test_registration_says_what_is_run_and_how_it_is_judged(presets: Path, folder: Path) -> None:
    file, written = register(with_claim(gate=gate), {})
    assert file == folder / "made_up.yaml"
    assert file.read_text().startswith("# A registered design: ")
    assert registration(varied()) == written
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", written.registered)
    design = written.design
    assert (design["seeds"], design["settings"]["margin"]) == (1, 0.001)
    assert design["common"]["epochs"] == 1
    assert {"part": "table", "factors": {"variant": "bn", "rate": 0.5}, "config": {}} in [
        {**run, "config": {}} for run in design["runs"]
    ]
    (line,) = (each for each in design["measurements"] if each.get("seeds") == [1])
    assert line["measure"] == "made_up/curve 1"
    assert line["arguments"] == {"points": [0.1]}
    assert design["claims"][0] == {
        "id": "Z1",
        "sentence": FIRST.sentence,
        "kind": "empirical",
        "scale": "toy",
        "scale_note": "one epoch",
        "gate": "accuracy: at least 80",
        "effects": [{"rule": "greater", "bar": 0.0, "margin": 0.001}],
        "reads": [{"of": "runs", "part": "table", "variant": variant} for variant in ("bn", "nobn")],
    }
    assert register(with_claim(gate=gate), {}) == (file, written)


def test_registration_that_was_edited_is_refused(presets: Path) -> None:
    file, _ = register(varied(), {})
    file.write_text(file.read_text().replace("margin: 0.001", "margin: 0.1"))
    for look in (registration, lambda paper: register(paper, {})):
        with pytest.raises(UserError, match=r"was edited: its hash does not match its content.*delete it and register"):
            look(varied())
    file.write_text("a: [")
    with pytest.raises(UserError, match=r"cannot be read \(.*delete it and register .*`bnrepro register made_up`"):
        registration(varied())
    file.unlink()
    assert register(varied(), {})[0] == file


def test_registration_with_results_is_replaced_for_a_reason_alone(presets: Path) -> None:
    _, old = register(varied(), {})
    other = with_claim(scale="reduced")
    held = {"design": {"hash": old.hash}}
    with pytest.raises(
        UserError, match=r"there are results under .*: claims Z1.scale is \"toy\" there and \"reduced\""
    ):
        register(other, held)
    assert registration(varied()) == old
    _, new = register(other, held, "the scale was wrong")
    assert new.amended == [
        {"hash": old.hash, "registered": old.registered, "reason": "the scale was wrong", "on": new.registered}
    ]
    assert new.hashes == {old.hash, new.hash}
    with pytest.raises(UserError, match="there are results"):
        register(varied(), held)  # those of the first are results of this one too
    _, third = register(varied(), held, "it was right")
    assert [each["hash"] for each in third.amended] == [old.hash, new.hash]


def test_registration_without_results_is_replaced(presets: Path) -> None:
    register(varied(), {})
    _, new = register(with_claim(scale="reduced"), {"design": {"hash": "another"}})
    assert new.amended == []


def test_differences_are_told_by_their_place() -> None:
    assert differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]}) == ["b is [1, 2] there and [1, 3] here"]
    assert differences({"c": [{"id": "x", "m": 1}]}, {"c": [{"id": "x", "m": 2}]}) == ["c x.m is 1 there and 2 here"]
    assert differences({"c": [{}]}, {"c": []}) == ["c: 1 there and 0 here"]
    assert differences({"sentence": "a", "n": 1}, {"n": None}) == ["n is 1 there and null here"]


def test_reproduce_refuses_to_judge_another_design(listed: Listed, call: Call, presets: Path) -> None:
    reproduce = ("reproduce", "made_up", "--preset=full", "--jobs=1")
    listed(varied(toys))
    told = call("register", "made_up")
    assert told.code == 0, told.err
    assert re.match(r"made_up: [0-9a-f]{16}, registered \d{4}-", told.out), told.err
    assert call(*reproduce).code == 0
    place = Path("results/experiments/made_up")
    about = json.loads((place / "provenance.json").read_text())
    design = about["design"]
    assert (design["as_registered"], design["amended"], design["commit"]) == (True, [], None)
    assert about["first_run"] >= design["registered"]
    (row, *_) = open_conclusion(place).claims
    assert row["design_hash"] == design["hash"]
    assert row["registration"] == {key: value for key, value in design.items() if key != "hash"}

    presets.write_text("smoke: {seeds: 1}\nfull: {margin: 2.0}\n")
    listed(varied(toys))
    for arguments in (reproduce, (*reproduce, "--dry-run")):
        refused = call(*arguments)
        assert refused.code == 2
        assert "the design is not the registered one" in refused.err
        assert "settings.margin is 0.001 there and 2.0 here" in refused.err
        assert refused.err.count("\n") == 1
    assert call(*reproduce[:2], "--preset=smoke", "--jobs=1").code == 0  # which is no evidence
    assert "there are results under its registered design" in call("register", "made_up").err
    assert call(*reproduce, "--unregistered").code == 0
    (row, *_) = open_conclusion(place).claims
    assert not row["registration"]["as_registered"]
    assert call("register", "made_up", "--amend", "a margin of nothing").code == 0
    assert call(*reproduce).code == 0
    (row, *_) = open_conclusion(place).claims
    assert row["registration"]["as_registered"]
    presets.write_text("full: {margin: 3.0}\n")
    listed(varied(toys))
    assert call("figures").code == 0  # the settings are those of the records
    listed(varied(toys, [replace(FIRST, scale="reduced")]))
    assert "were made under the registered design" in call("figures", "made_up").err


def test_results_of_another_design_are_not_replaced_unasked(listed: Listed, call: Call) -> None:
    listed(varied(toys))
    reproduce = ("reproduce", "made_up", "--preset=full", "--jobs=1")
    assert call(*reproduce).code == 0  # not registered
    place = Path("results/experiments/made_up")
    assert open_conclusion(place).claims[0]["registration"]["registered"] is None
    listed(varied(toys, [replace(FIRST, scale="reduced")]))
    assert call("register", "made_up").code == 0
    told = call(*reproduce)
    assert told.code == 2
    assert "were made under the design" in told.err
    assert "Use another --out" in told.err
    assert call(*reproduce, "--out=other").code == 0
    assert call(*reproduce, "--unregistered").code == 0


def test_results_of_before_there_were_registrations_are_no_evidence_for_a_registered_design(
    listed: Listed, call: Call, presets: Path
) -> None:
    """Neither are they put together with its own, nor do they stand in its way, whatever there is more of in them."""
    reproduce = ("reproduce", "made_up", "--preset=full", "--jobs=1")
    listed(varied(toys))
    assert call(*reproduce).code == 0
    file = Path("results/experiments/made_up/provenance.json")
    about = json.loads(file.read_text())
    del about["design"], about["first_run"]
    file.write_text(json.dumps(about))

    def other(s: Settings) -> Design:
        design = toys(s)
        design.probes = [replace(probe, factors={"window": 5}) for probe in design.probes]
        return design

    presets.write_text("full: {looks: [2, 4]}\n")
    listed(varied(other))
    assert call("register", "made_up").code == 0
    verdicts = file.with_name("claims.json").read_bytes()
    told = call("figures", "made_up")
    assert (told.code, "these records were made before a design was registered" in told.err) == (2, True)
    assert file.with_name("claims.json").read_bytes() == verdicts
    told = call("reproduce", "made_up", "--until-decided", "--jobs=1")
    assert told.code == 0, told.err
    assert "stored results belong to an earlier design and are not used" in told.err, told.err
    assert {row["window"] for row in read(file.parent).measurements} == {5}
    assert "does not count" not in call("reproduce", "made_up", "--until-decided", "--jobs=1").err


def test_registration_of_a_paper_in_a_file_lies_beside_it(call: Call, tmp_path: Path) -> None:
    from tests.experiments.test_own_paper import example

    (tmp_path / "my_paper.py").write_text(example())
    told = call("register", "my_paper.py")
    assert told.code == 0, told.err
    file = tmp_path / "my_paper.registered.yaml"
    assert file_of(experiments.experiment("my_paper.py")) == file
    assert file.is_file()


@pytest.mark.slow
def test_registration_after_the_runs_says_so(call: Call, tmp_path: Path) -> None:
    from tests.experiments.test_own_paper import example

    (tmp_path / "my_paper.py").write_text(example())
    assert call("reproduce", "my_paper.py", "--jobs=1", "--preset=full").code == 0
    assert "It was run before it was registered" in call("register", "my_paper.py").out


def test_day_of_the_commit_is_that_of_git(tmp_path: Path) -> None:
    import subprocess

    from bnrepro.runs.provenance import committed

    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    file = tmp_path / "a.yaml"
    file.write_text("a")
    assert committed(file) is None
    git("init")
    assert committed(file) is None
    git("add", "a.yaml")
    git("commit", "-m", "a", "--date=2020-01-01T00:00:00")
    found = committed(file)
    assert found
    assert re.fullmatch(r"[0-9a-f]{40}", found[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found[1])
    file.write_text("b")
    assert committed(file) is None


def test_a_design_that_is_registered_and_not_run_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "configs_dir", lambda: tmp_path)
    (tmp_path / "registered").mkdir()
    file = tmp_path / "registered" / "a_paper.yaml"
    assert registering.registered_on("a_paper", but="0" * 16) is None
    file.write_text(f"paper: a_paper\nhash: '{'1' * 16}'\nregistered: '2026-11-26'\ndesign: {{}}\n")
    assert registering.registered_on("a_paper", but="0" * 16) == "2026-11-26"
    assert registering.registered_on("a_paper", but="1" * 16) is None
    for damaged in ("[", "- a", "hash: 1"):
        file.write_text(damaged)
        assert registering.registered_on("a_paper", but="0" * 16) is None


REGISTERED = Path(__file__).parents[2] / "configs" / "registered"


@pytest.mark.parametrize("file", sorted(REGISTERED.glob("*.yaml")), ids=lambda file: file.stem)
def test_committed_registrations_are_those_of_the_papers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise: `bnrepro register NAME --amend "REASON"`, or mend what changed the hash of the same design."""
    monkeypatch.setattr(registering, "configs_dir", lambda: REGISTERED.parent)
    paper = experiments.experiment(file.stem)
    known = registration(paper)
    assert known
    now = described(paper, paper.settings("full"))
    assert (differences(known.design, now), registering.hash_of(now)) == ([], known.hash)
