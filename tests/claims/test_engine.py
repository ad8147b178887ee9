"""An experiment from its plan to its conclusions, with two real runs; nothing twice, nothing lost."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from bnrepro import experiments
from bnrepro.claims import Design, Evidence, Measure, Paper, Results, Row, measure, row
from bnrepro.claims.conclusion import CLAIMS, ClaimRow, EffectRow, Judging, conclude, figures_of, open_conclusion
from bnrepro.claims.engine import DatasetLocations, Plan, execute, make_plan
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import Judged
from bnrepro.claims.paper import Shown
from bnrepro.claims.records import cost, find, read, there
from bnrepro.config import digits_of, run_dir
from bnrepro.config.schema import Config
from bnrepro.errors import UserError, known_are
from bnrepro.experiments import frankle2021
from bnrepro.runs import record
from bnrepro.runs.record import Run
from bnrepro.runs.tables import from_cell, read_rows, to_cell, write_rows
from bnrepro.system.writing import LIST
from bnrepro.training.train import trainer_again
from tests.claims import made_up
from tests.claims.conftest import Listed
from tests.claims.made_up import Settings, curve, fails, images, nonsense, parameters, toys, varied
from tests.conftest import Call

PUBLISHED = Path(__file__).parents[2] / "results" / "experiments"
Plans = Callable[..., Plan]
Go = Callable[..., tuple[list[Judged], list[str]]]


@pytest.fixture
def planned(presets: Path, digits: Path, tmp_path: Path) -> Plans:
    """``planned(paper)``: its plan, with few digits as its dataset."""
    places = DatasetLocations(archives={"mnist5k": digits})
    return lambda paper, preset="full": make_plan(paper, preset, tmp_path / "runs", places)


@pytest.fixture
def go(planned: Plans, tmp_path: Path) -> Go:
    """``go(paper)``: reproduced into ``tmp_path / "out"``, in this process."""

    def run(paper: Paper[Settings], preset: str = "full", **more: Any) -> tuple[list[Judged], list[str]]:
        return execute(planned(paper, preset), tmp_path / "out", **{"jobs": 1, **more})

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `go` leaves the results of ``full``."""
    return tmp_path / "out" / "made_up"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.*"))}


def with_probes(*measured: tuple[dict[str, Any], Measure, dict[str, Any]], runs: bool = False) -> Paper[Settings]:
    """A paper that measures ``(factors, measure, arguments)``, each once."""

    def design(s: Settings) -> Design:
        new = made_up.runs(s) if runs else Design(s.seeds)
        for factors, what, arguments in measured:
            new.measure("line", factors, what, seeds=[0], **arguments)
        return new

    return varied(design)


def trained(*arms: tuple[dict[str, Any], list[str]], measures: tuple[Measure, ...] = ()) -> Paper[Settings]:
    """A paper that trains ``(factors, overrides)``."""

    def design(s: Settings) -> Design:
        new = Design(s.seeds)
        for factors, overrides in arms:
            keys = {text.partition("=")[0] for text in overrides}
            common = [text for text in s.common if text.partition("=")[0] not in keys]
            new.train("table", factors, [*common, *overrides], *measures)
        return new

    return varied(design)


def test_records_are_complete_and_nothing_runs_twice(go: Go, folder: Path, tmp_path: Path) -> None:
    judged, failed = go(varied())
    assert failed == []
    assert [each.claim.id for each in judged] == ["Z1", "Z2", "Z3"]
    assert len(list(record.find_runs(tmp_path / "runs"))) == 2  # four arms, each configuration twice
    records = read(folder)
    assert [(row["part"], row["variant"], row["seed"]) for row in records.runs] == [
        (part, variant, 0) for part in ("table", "again") for variant in ("nobn", "bn")
    ]
    assert {row["rate"] for row in records.runs} == {0.5}
    assert len(records.curves) == 4
    assert {(row["part"], row["epoch"]) for row in records.curves} == {("table", 1), ("again", 1)}
    (run,) = (run for run in record.find_runs(tmp_path / "runs") if run.summary["variant"] == "bn")
    assert records.of_runs("test_loss", part="again", variant="bn").seeds == {0: run.summary["test_loss"]}
    assert records.measured("parameters", part="sizes", variant="bn").seeds == {0: run.summary["parameters"]}
    by_x = records.measured("curve", window=3).by("x")
    assert {x: values.seeds for x, values in by_x.items()} == {0.1: {0: 0.1 / 3}, 2: {0: 2 / 3}, 0.7: {0: 0.7 / 3}}
    assert records.measured("curve", window="full", x=0.1).seeds == {1: 0.1 / 3 + 1}
    assert (records.preset, records.settings) == ("full", Settings().model_dump())
    about = records.provenance
    assert about["command"] == "bnrepro reproduce made_up --preset full --archive mnist5k=FILE"
    assert [row["data_fingerprint"] for row in about["data"]] == [run.summary["data_fingerprint"]]
    assert about["seconds"].keys() == {"table", "again", "sizes", "line"}
    assert about["seconds"]["table"]["runs"] > about["seconds"]["again"]["runs"] == 0  # the same runs count once
    assert str(tmp_path) not in json.dumps(about)

    before = files(folder)
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.*")}
    go(varied())
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.*")} == stamps
    assert files(folder) == before
    go(varied(), force=True)
    made = [file for file in stamps if file.suffix == ".json"]  # summaries and measurements
    assert len(made) == 5
    assert all(file.stat().st_mtime_ns > stamps[file] for file in made)


def test_plan_says_what_is_missing(planned: Plans, go: Go, tmp_path: Path) -> None:
    plan = planned(varied())
    assert (plan.missing(), len(plan.configs), len(plan.probes)) == ((plan.configs, plan.probes), 2, 3)
    assert not (tmp_path / "runs").exists()
    go(varied())
    assert plan.missing() == ([], [])
    (probe,) = (probe for probe in plan.probes if probe.factors == {"window": "full"})
    for other in (
        replace(probe, seed=2),
        replace(probe, arguments={"points": [0.2]}),
        replace(probe, measure=replace(curve, name="made_up/other")),
        replace(probe, measure=replace(curve, version=2)),  # its code was mended
    ):
        assert replace(plan, probes=[other]).missing() == ([], [other])
    moved = replace(probe, measure=replace(curve, function=fails.function))  # another function of the same name
    renamed = replace(probe, part="elsewhere", factors={"size": 3})
    assert replace(plan, probes=[moved, renamed]).missing() == ([], [])


def test_conclusions_are_drawn_again_from_records_alone(go: Go, folder: Path, tmp_path: Path) -> None:
    go(varied())
    before = files(folder)
    assert {"claims.json", "captions.json", "tables/sizes.csv", "figures/line.svg", "figures/line.png"} <= before.keys()
    (folder / CLAIMS).unlink()
    (folder / "figures" / "line.svg").write_text("")
    (folder / "figures" / "of_old.svg").write_text("")
    (folder / "tables" / "of_old.csv").write_text("")
    (tmp_path / "runs").rename(tmp_path / "gone")
    conclude(varied(), read(folder), folder)
    assert files(folder) == before
    assert find(tmp_path) == [folder]


def test_conclusion_reads_back(go: Go, folder: Path) -> None:
    judged, _ = go(varied())
    found = open_conclusion(folder)
    assert (found.name, found.captions["title"]) == ("made_up", "Nobody, A made-up & tiny paper (2026)")
    assert found.captions["deviations"] == ["Smaller.", "There is no paper."]
    texts = ("id", "sentence", "reported", "verdict", "found", "answer")
    assert [tuple(row[key] for key in texts) for row in found.claims] == [
        (f"made_up/{e.claim.id}", e.claim.sentence, e.claim.reported, e.verdict.value, e.found, e.answer)
        for e in judged
    ]
    ((name, title, (row,)),) = found.tables
    assert (name, list(row), row["accuracy"].n) == ("sizes", ["variant", "accuracy", "n"], 1)
    assert title == "Sizes. Means and 95% intervals over one seed; preset full."
    assert found.captions["figures"] == {
        "line": "A <b>line</b> of 0.1 and more. Means and 95% intervals over one seed; preset full."
    }


# --- claims.json ---


def test_claims_json_says_all_of_a_claim(go: Go, folder: Path) -> None:
    judged, _ = go(varied())
    text = (folder / CLAIMS).read_text(encoding="utf-8")
    rows = json.loads(text, parse_constant=pytest.fail)  # nan and infinities are no JSON
    assert [set(row) for row in rows] == [{each.name for each in fields(ClaimRow)}] * 3
    first, second, third = rows
    value = judged[0].evidence.effects[0].seeds[0]
    about = json.loads((folder / "provenance.json").read_text())
    source = "Nobody, A made-up & tiny paper (2026), https://example.org/a_b/c*d"
    assert first | {"judged_in": "", "machine": ""} == {
        "id": "made_up/Z1",
        "paper": "made_up",
        "source": source,
        "sentence": "BN <script>alert(1)</script> is better.",
        "quote": "BN wins.",
        "where": "page 1",
        "reported": "157 | 315",
        "kind": "empirical",
        "scale": "toy",
        "scale_note": "one epoch",
        "gate": None,
        "verdict": "inconclusive",
        "withdrawn": None,
        "answer": judged[0].answer,
        "found": judged[0].found,
        "estimand": "test accuracy, BN minus none",
        "rule": "greater",
        "unit": "percentage points",
        "bar": 0.0,
        "margin": 0.001,
        "effects": first["effects"],
        "beside": [],
        "deciding": 0,
        "look": None,
        "needed": None,  # of one seed nothing is known
        "flips_at": [],
        "at_margins": {"0.5": "inconclusive", "2": "inconclusive"},
        "judged_in": "",
        "preset": "full",
        "design_hash": about["design"]["hash"],
        "registration": {
            **{"registered": None, "commit": None, "committed": None, "amended": [], "as_registered": False}
        },
        "first_run": about["first_run"],
        "seconds": round(sum(sum(kinds.values()) for kinds in about["seconds"].values()), 1),
        "machine": "",
        "command": "bnrepro reproduce made_up --preset full --archive mnist5k=FILE",
    }
    (effect,) = first["effects"]
    assert (
        set(effect) == {each.name for each in fields(Judging)} == {each.name for each in fields(EffectRow)} | {"state"}
    )
    assert (effect["mean"], effect["low"], effect["high"], effect["n"]) == (value, None, None, 1)  # null for nan
    assert (effect["confidence"], effect["seeds"], effect["state"]) == (0.95, {"0": value}, "open")
    assert first["machine"] == "; ".join(about["machines"])
    assert first["judged_in"].startswith("made_up.py:")
    assert (second["kind"], second["scale"], second["scale_note"]) == ("identity", "exact", "")
    assert (second["verdict"], second["answer"], second["flips_at"]) == ("reproduced", "Yes: 2 and 2: yes.", [])
    assert second["sentence"] == '"2 is 2".'
    assert (second["quote"], second["where"]) == (None, None)
    assert (third["kind"], third["rule"], third["margin"], third["bar"]) == ("prediction", "equal", 1.5, None)
    assert [each["condition"] for each in third["effects"]] == ["window, window 3", "window, full"]
    assert {each["confidence"] for each in third["effects"]} == {0.9}


def test_claim_that_is_withdrawn_keeps_its_numbers_beside(go: Go, folder: Path) -> None:
    claims = [replace(claim, withdrawn="its networks are too small") for claim in made_up.paper.claims]
    ((first, *_), _) = go(varied(claims=claims))
    assert (first.verdict, first.deciding) == (Verdict.not_testable, None)
    assert first.answer == "Under revision: its networks are too small."
    row = open_conclusion(folder).claims[0]
    assert (row["verdict"], row["answer"]) == ("not testable here", first.answer)
    assert (row["effects"], row["deciding"], row["rule"], row["needed"], row["flips_at"]) == ([], None, None, None, [])
    assert [effect["n"] for effect in row["beside"]] == [1]
    assert row["withdrawn"] == "its networks are too small"
    assert row["found"].startswith("under revision: its networks are too small. Test accuracy, BN minus none: ")
    assert row["estimand"] == "test accuracy, BN minus none"


@pytest.mark.parametrize(
    ("settings", "margin", "limit"),
    [
        ({"gone": 5, "margin": 2.0}, 2.0, 1.5),  # one that the paper no longer has
        ({"limits": {"curve": 3.0}}, 0.001, 3.0),  # and one that the records lack
        ({}, 0.001, 1.5),
    ],
)
def test_settings_of_the_records_count_as_far_as_the_paper_has_them(
    go: Go, folder: Path, settings: dict[str, Any], margin: float, limit: float
) -> None:
    go(varied(toys))
    about = json.loads((folder / "provenance.json").read_text())
    del about["design"], about["first_run"]  # as before there were registrations
    (folder / "provenance.json").write_text(json.dumps(about | {"settings": settings}))
    conclude(varied(toys), read(folder), folder)
    rows = open_conclusion(folder).claims
    assert rows[2]["margin"] == limit
    assert rows[0]["design_hash"] == digits_of(settings)
    asked: list[float] = []

    def ask(r: Results, s: Settings) -> Evidence:
        asked.append(s.margin)
        return made_up.better(r, s)

    conclude(varied(toys, [replace(made_up.paper.claims[0], evidence=ask)]), read(folder), folder)
    assert asked == [margin]


def test_settings_of_the_records_that_do_not_fit_are_told(go: Go, folder: Path) -> None:
    go(varied(toys))
    about = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(about | {"settings": {"margin": "wide"}}))
    with pytest.raises(UserError, match=r"do not fit this version of made_up, .*settings: margin of type float: Input"):
        conclude(varied(toys), read(folder), folder)


# --- measurements ---


def test_measure_is_handed_its_dataset(go: Go, folder: Path, digits: Path) -> None:
    def design(s: Settings) -> Design:
        new = Design(s.seeds)
        new.measure("data", {}, images, data=["data=mnist5k"])
        return new

    _, failed = go(varied(design))
    assert failed == []
    records = read(folder)
    assert 0 < (records.measured("images").only() or 0) <= 600
    (about,) = records.provenance["data"]
    assert set(about) == {"data", "data_official", "data_fingerprint"}
    assert about["data_official"] is False
    assert digits.name in about["data"]


@pytest.mark.quick(1)
@pytest.mark.parametrize("jobs", [1, 2])
def test_measure_that_fails_leaves_the_others_alone(go: Go, folder: Path, jobs: int) -> None:
    probes = [({"kind": "fails"}, fails, {}), ({"kind": "nonsense"}, nonsense, {}), ({}, curve, {"points": [1.0]})]
    _, failed = go(with_probes(*probes), jobs=jobs)
    assert failed == [
        "line (kind=fails), seed 0, made_up/fails: ZeroDivisionError: by purpose",
        "line (kind=nonsense), seed 0, made_up/nonsense: "
        "ValueError: a row must have quantity, x and value; got quantity, val",
    ]
    records = read(folder)
    assert [(row["quantity"], row["value"]) for row in records.measurements] == [("curve", 1 / 3)]
    assert records.provenance["failed"] == failed


def test_nothing_but_failures_writes_nothing(go: Go, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="by purpose"):
        go(with_probes(({}, fails, {})))
    assert not (tmp_path / "out").exists()


def test_diverged_and_failed_runs_are_rows_and_are_not_measured(go: Go, folder: Path) -> None:
    wild = ["variant=nobn", "optimizer=sgd", "optimizer.lr=1e20"]
    impossible = ["variant=bn", "batch_size=5000"]
    paper = trained(({"kind": "wild"}, wild), ({"kind": "impossible"}, impossible), measures=(parameters,))
    _, failed = go(paper)
    records = read(folder)
    assert [(row["kind"], row["status"], row["test_accuracy"]) for row in records.runs] == [
        ("wild", "diverged", None),
        ("impossible", "failed", None),
    ]
    (row,) = records.measurements
    assert (row["kind"], row["quantity"], row["value"]) == ("wild", "diverged", records.runs[0]["diverged_at_step"])
    assert [("batch_size=5000" in line, "its run did not finish" in line) for line in failed] == [
        (True, False),
        (False, True),
    ]


@measure("made_up/training_images")
def training_images(run: Run, seed: int) -> list[Row]:
    return [row("images", len(trainer_again(run.config).data.train.labels))]


@pytest.mark.slow
def test_a_run_is_measured_where_its_data_lies_now(presets: Path, digits: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "there.npz", tmp_path / "here.npz"
    shutil.copy(digits, there)
    runs = tmp_path / "runs"
    execute(make_plan(trained(({}, [])), "full", runs, DatasetLocations(archives={"mnist5k": there})), tmp_path / "out")
    there.rename(here)
    plan = make_plan(
        trained(({}, []), measures=(training_images,)), "full", runs, DatasetLocations(archives={"mnist5k": here})
    )
    assert plan.missing()[0] == []
    assert execute(plan, tmp_path / "out")[1] == []


def test_datasets_are_read_where_the_user_has_them(tiny: Callable[..., Config], digits: Path) -> None:
    plain = replace(tiny(), data=replace(tiny().data, source="torchvision", path=None))
    moved = DatasetLocations(root=Path("/elsewhere")).apply(plain)
    assert (moved.data.root, moved.data.path) == ("/elsewhere", None)
    places = DatasetLocations(archives={"digits": digits, "cifar10": Path("other.npz")})
    assert (places.apply(plain).data.source, places.apply(plain).data.path) == ("npz", str(digits))
    assert places.apply(replace(plain, data=replace(plain.data, name="mnist"))).data.source == "torchvision"


def test_factors_keep_off_the_columns_of_the_records(go: Go) -> None:
    with pytest.raises(ValueError, match="no factor can be called epoch"):
        go(trained(({"epoch": 3}, [])))


def test_different_runs_have_different_factors(go: Go) -> None:
    with pytest.raises(ValueError, match=r"two different runs have part .*: give them factors that tell them apart"):
        go(trained(({"size": 3}, []), ({"size": 3}, ["optimizer.lr=0.5"])))


def test_figure_that_fails_leaves_the_one_that_was_there(go: Go, folder: Path, capsys: Any) -> None:
    def fails(r: Results, s: Settings) -> Any:
        raise KeyError("gone")

    shown = replace(made_up.paper.figures[0], name="kept")
    go(varied(figures=[shown]))
    before = (folder / "figures" / f"{shown.name}.svg").read_bytes()
    conclude(varied(figures=[replace(shown, make=fails)]), read(folder), folder)
    assert (folder / "figures" / f"{shown.name}.svg").read_bytes() == before
    assert f"Figure {shown.name} cannot be shown (KeyError: 'gone')" in capsys.readouterr().err
    assert shown.name not in open_conclusion(folder).captions["figures"]
    conclude(varied(figures=[replace(shown, make=lambda r, s: None)]), read(folder), folder)
    assert not (folder / "figures" / f"{shown.name}.svg").exists()


def test_slides_of_an_experiment_are_drawn_from_its_records(
    go: Go, folder: Path, listed: Listed, call: Call, tmp_path: Path
) -> None:
    go(varied(toys))
    listed(varied(toys))
    before = files(folder)
    result = call("figures", "made_up", "--out=out", "--only=line", "--format=svg,pdf", "--size=4x3", "--to=there")
    assert (result.code, result.out, result.err) == (0, "Figures: there\n", "")
    assert {file.name for file in (tmp_path / "there").iterdir()} == {"line.svg", "line.pdf", LIST}
    assert 'width="288pt" height="216pt"' in (tmp_path / "there" / "line.svg").read_text()
    assert call("figures", "made_up", "--out=out", "--format=png").out == "Figures: out/made_up/slides\n"
    assert (folder / "slides" / "line.png").is_file()
    assert {name: content for name, content in files(folder).items() if not name.startswith("slides")} == before
    assert list(figures_of(varied(toys), folder)) == ["line"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--only=lime", "--only: there is no figure 'lime'. Did you mean line? Available: line."),
        ("--variants=bn", "out/made_up is an experiment: --variants, --labels and --xlim are for comparisons alone."),
        ("--xlim=0,1", "out/made_up is an experiment"),
    ],
)
def test_wrong_slide_of_an_experiment_is_told(
    go: Go, folder: Path, listed: Listed, call: Call, option: str, words: str
) -> None:
    go(varied(toys))
    listed(varied(toys))
    before = files(folder)
    result = call("figures", "made_up", "--out=out", option)
    assert (result.code, words in result.err) == (2, True), result.err
    assert files(folder) == before


def test_slide_without_records_is_told(go: Go, folder: Path, listed: Listed, call: Call) -> None:
    paper = varied(toys, figures=[replace(made_up.paper.figures[0], make=lambda r, s: None)])
    go(paper)
    listed(paper)
    result = call("figures", "made_up", "--out=out", "--only=line")
    assert "the figure line cannot be drawn from the records in out/made_up" in result.err
    result = call("figures", "made_up", "--out=out", "--size=4x3")
    assert (result.code, result.err) == (0, "The records in out/made_up leave nothing to draw.\n")


# --- presets ---


def test_unknown_names_are_told_with_those_that_there_are(presets: Path) -> None:
    with pytest.raises(UserError, match=r"made_up has no preset 'nosuch'\. Available: smoke, quick, full"):
        varied().settings("nosuch")
    with pytest.raises(UserError, match="There is no experiment 'nosuch'") as told:
        experiments.experiment("nosuch")
    assert known_are("nosuch", experiments.NAMES) in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smoke: {margn: 1}", "The preset smoke in .*made_up.yaml: margn: Extra inputs .*margin"),
        ("smoke: {seeds: 0}", "The preset smoke in .*made_up.yaml: seeds of type int: .* must be at least 1"),
        ("smoke: {margin: wide}", "margin of type float: Input should be a valid number, .* as a number.$"),
        ("smoke: 1", "must hold a mapping of settings for each preset"),
        ("[smoke]", "must hold a mapping of settings for each preset"),
        ("smoke: {", "cannot be read"),
    ],
)
def test_presets_that_do_not_fit_are_told(presets: Path, text: str, words: str) -> None:
    presets.write_text(text)
    with pytest.raises(UserError, match=words) as told:
        varied().settings("smoke")
    assert "\n" not in str(told.value)


def test_presets_say_what_differs_from_full(presets: Path) -> None:
    presets.write_text("smoke: {seeds: 1}\nfull: {margin: 0.5, limits: {other: 1.0}}\n")
    paper = varied()
    assert paper.presets == ("smoke", "full")
    assert paper.settings("full") == Settings(margin=0.5, limits={"other": 1.0})  # a mapping is replaced as a whole
    assert paper.settings("smoke") == Settings(seeds=1, margin=0.5, limits={"other": 1.0})


def test_presets_go_from_the_smallest_to_full_in_whatever_order_they_are_written(presets: Path) -> None:
    presets.write_text("full: {}\nquick: {seeds: 2}\nsmoke: {seeds: 1}\n")
    assert varied().presets == ("smoke", "quick", "full")


# --- files ---


@pytest.mark.parametrize("name", ["runs.csv", "curves.csv", "measurements.csv", "provenance.json"])
def test_damaged_records_are_refused_by_name(go: Go, folder: Path, name: str) -> None:
    go(varied(toys))
    (folder / name).write_text('{"a": 1}\n"')
    with pytest.raises(UserError, match="are damaged"):
        read(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        read(folder)


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: None, "claims.json"),
        (lambda text: "", "claims.json: "),
        (lambda text: text[:-20], "claims.json: "),
        (lambda text: "{}", r"claims\.json: Input should be a valid (list|array)"),
        (lambda text: text.replace('"reproduced"', '"proven"'), r"claims\.json: 1\.verdict: "),
        (lambda text: text.replace('"kind": "identity"', '"kind": "guess"'), r"claims\.json: 1\.kind: "),
        (lambda text: text.replace('"deciding": 0', '"deciding": -1'), r"claims\.json: 0\.deciding: "),
        (lambda text: text.replace('"found"', '"lost"', 1), r"claims\.json: 0\.found: Field required"),
        (lambda text: text.replace('"n": 1', '"n": "1"', 1), r"claims\.json: 0\.effects\.0\.n: "),
        (lambda text: text.replace('"paper": "made_up"', '"paper": "../up"', 1), r"claims\.json: 0\.paper: "),
    ],
)
def test_damaged_claims_are_refused_and_figures_makes_them_again(
    go: Go, folder: Path, change: Callable[[str], str | None], words: str
) -> None:
    go(varied())
    before = (folder / CLAIMS).read_text(encoding="utf-8")
    changed = change(before)
    assert changed != before
    if changed is None:
        (folder / CLAIMS).unlink()
    else:
        (folder / CLAIMS).write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=rf"are not complete \(.*{words}.*\)\. `bnrepro figures .*` makes them again"):
        open_conclusion(folder)
    conclude(varied(), read(folder), folder)
    assert (folder / CLAIMS).read_text(encoding="utf-8") == before


VALUES = [1, -3, 0.1, 1 / 3, 1e-300, -0.0, 1e22, math.inf, True, False, None]
VALUES += ["a", "", "1", "1.0", "1e5", "nan", "inf", "true", '"', '"a"', "a,b", "a\nb", "a\r\nb", " 1", "1_0", "None"]
VALUES += ["é"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_cell_comes_back_as_it_was(value: Any, tmp_path: Path) -> None:
    back = from_cell(to_cell(value))
    assert (type(back), back) == (type(value), value)
    write_rows(tmp_path / "a.csv", [{"x": value, "seed": 1}])
    assert read_rows(tmp_path / "a.csv") == [{"x": value, "seed": 1}]


def test_text_columns_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    rows = [{"config_hash": "12345678", "variant": "1e5"}]
    write_rows(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_text() == "config_hash,variant\n12345678,1e5\n"
    assert read_rows(tmp_path / "a.csv") == rows
    assert math.isnan(from_cell(to_cell(math.nan)))


@pytest.mark.quick(3)
@pytest.mark.parametrize("held", ["full", "smoke"])
@pytest.mark.parametrize("lacking", ["runs", "measurements", "official data", "failures"])
def test_records_are_not_replaced_by_what_is_worth_less_unasked(go: Go, folder: Path, held: str, lacking: str) -> None:
    go(varied())
    about = json.loads((folder / "provenance.json").read_text())
    about["preset"] = held
    if lacking == "official data":
        about["data"] = [data | {"data_official": True} for data in about["data"]]
    (folder / "provenance.json").write_text(json.dumps(about))
    before = files(folder)

    def design(s: Settings) -> Design:
        whole = made_up.runs(s)
        if lacking == "runs":
            del whole.arms[0]
        elif lacking == "measurements":
            del whole.probes[0]
        elif lacking == "failures":
            whole.probes[-1] = replace(whole.probes[-1], measure=fails, arguments={})
        return whole

    less = varied(design)
    if held == "smoke":  # a larger preset takes the place of a smaller one, whatever it has
        assert "preset" in json.loads((folder / "provenance.json").read_text())
        go(less)
        assert read(folder).preset == "full"
        return
    with pytest.raises(UserError, match=r"holds results worth more than the new ones .*--out, or --force"):
        go(less)
    assert files(folder) == before
    go(less, force=True)
    assert files(folder) != before
    go(less)  # no less than itself


@pytest.mark.parametrize("name", ["labml", "numpynet"])
def test_published_results_are_worth_no_more_than_their_preset_makes(name: str, tmp_path: Path) -> None:
    plan = make_plan(experiments.experiment(name), "full", tmp_path)
    assert there(plan.folder(PUBLISHED)) is not None
    plan.check_room(PUBLISHED)
    smoke = make_plan(experiments.experiment(name), "smoke", tmp_path)
    assert not smoke.folder(PUBLISHED).exists()


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["runs.csv", "measurements.csv", "provenance.json", "captions.json", "claims.json"])
def test_unreadable_records_are_no_damaged_ones(
    go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: int
) -> None:
    go(varied(toys))
    before = files(folder)
    real = Path.open
    concluded = name in ("captions.json", "claims.json")

    def refuse(self: Path, *args: Any, **more: Any) -> Any:
        if self == folder / name and not (args and "w" in args[0]):
            raise OSError(reason, "the reason", str(self))
        return real(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(UserError, match=rf"{name} cannot be read \(the reason\)"):
            (open_conclusion if concluded else read)(folder)
        if not concluded:
            with pytest.raises(UserError, match="cannot be read"):
                go(varied(toys))
    assert files(folder) == before


def test_seed_that_the_machine_slept_through_costs_no_more_than_the_others() -> None:
    spent = {("a", "runs", "x"): [1.0, 2.0, 3000.0], ("a", "runs", "y"): [5.0], ("b", "measurements", "x"): [0.5, 0.7]}
    spent_by_part = cost(["a", "b"], spent)
    assert spent_by_part == {"a": {"runs": 11.0, "measurements": 0.0}, "b": {"runs": 0.0, "measurements": 1.2}}


# --- the command line ---


def test_reproduce_judges_figures_redraws_and_report_tells(
    listed: Listed, call: Call, digits: Path, tmp_path: Path
) -> None:
    listed(varied())
    arguments = ["reproduce", "made_up", "--preset=full", "--jobs=1", f"--archive=mnist5k={digits}"]
    planned = call(*arguments, "--dry-run")
    assert planned.out == (
        "made_up (preset full): 2 runs, 2 still to run; 3 measurements, 3 still to make.\n"
        "made_up reads mnist5k.\n"
        "made_up: 8.6e+09 operations in runs unlike any stored one, about 1 s on a GPU at 10 TFLOP/s, "
        "excluding 3 of unknown duration.\n"
    )
    assert not (tmp_path / "results").exists()
    result = call(*arguments)
    assert result.code == 0, result.err
    assert "3 claims: 1 reproduced, 2 inconclusive" in result.out
    assert 'Z2  REPRODUCED: "2 is 2".\n    Yes: 2 and 2: yes.\n' in result.out
    assert "Records, tables and figures: results/experiments/made_up" in result.out
    assert "0 still to run; 3 measurements, 0 still to make" in call(*arguments).out
    (harmed, *_) = sorted(tmp_path.glob("runs/*/*/*/*/metrics.csv"))
    harmed.write_text("")
    assert "Run it again with --force" in call(*arguments).err
    assert call(*arguments, "--force").code == 0
    folder = tmp_path / "results" / "experiments" / "made_up"
    before = files(folder)
    (folder / "figures" / "line.png").unlink()
    (folder / CLAIMS).unlink()
    assert "not complete" in call("report").err
    for given in ([], [str(folder)], ["made_up"]):
        again = call("figures", *given)
        assert (again.code, again.out.startswith("Figures, tables and verdicts: ")) == (0, True)
        assert files(folder) == before
    told = call("report")
    names = ("claims.json", "REPORT.md", "report.html")
    assert told.out == "".join(f"Report: results/{name}\n" for name in names)
    assert "3 claims in 1 experiment" in (tmp_path / "results" / "REPORT.md").read_text()
    assert (tmp_path / "results" / CLAIMS).read_bytes() == (folder / CLAIMS).read_bytes()  # there is one experiment


def test_experiment_that_cannot_be_concluded_does_not_cost_the_others(listed: Listed, call: Call) -> None:
    listed(with_probes(({}, fails, {})), varied(toys))
    result = call("reproduce", "--preset=full", "--jobs=1")
    assert result.code == 2
    assert "by purpose" in result.err
    assert "1 of 2 experiments could not be judged" in result.err
    assert "3 claims" in result.out
    listed(with_probes(({}, curve, {"points": [0.1]}), ({}, fails, {})))
    result = call("reproduce", "--preset=full", "--jobs=1", "--out=other")
    assert (result.code, "1 of the runs and measurements failed" in result.err) == (2, True)
    assert "3 claims" in result.out


def test_mistake_in_a_claim_or_table_is_raised_after_the_others(listed: Listed, call: Call) -> None:
    def wrong(r: Results, s: Settings) -> Any:
        raise RuntimeError("a mistake")

    claim, table = made_up.paper.claims[0], Shown("wrong", "Wrong.", wrong)
    for number, paper in enumerate((varied(toys, [replace(claim, evidence=wrong)]), varied(toys, tables=[table]))):
        listed(paper, varied(toys))
        with pytest.raises(RuntimeError, match="a mistake"):
            call("reproduce", "--preset=full", "--jobs=1", f"--out=out{number}")
        assert open_conclusion(Path(f"out{number}/made_up")).claims


def test_mistake_in_a_table_changes_no_conclusion(go: Go, folder: Path) -> None:
    def wrong(r: Results, s: Settings) -> Any:
        raise RuntimeError("a mistake")

    go(varied(toys))
    before = files(folder)
    with pytest.raises(RuntimeError, match="a mistake"):
        go(varied(toys, made_up.paper.claims[:1], [Shown("wrong", "Wrong.", wrong)]))
    after = files(folder)
    assert after.pop("provenance.json") != before.pop("provenance.json")  # which names the design
    assert after == before


def test_smaller_preset_has_a_folder_of_its_own_and_gives_no_verdicts(
    listed: Listed, call: Call, tmp_path: Path
) -> None:
    listed(varied(toys))
    folder = tmp_path / "results" / "experiments" / "made_up"
    small = call("reproduce", "--preset=smoke", "--jobs=1")
    assert small.code == 0, small.err
    assert "Everything ran." in small.out
    assert "REPRODUCED" not in small.out
    assert call("report").code == 0
    assert "smoke" in (tmp_path / "results" / "REPORT.md").read_text()
    assert {row["preset"] for row in json.loads((tmp_path / "results" / CLAIMS).read_text())} == {"smoke"}
    assert "3 claims" in call("reproduce", "--preset=full", "--jobs=1").out
    before = {name: content for name, content in files(folder).items() if not name.startswith("smoke")}
    assert call("reproduce", "--preset=smoke", "--jobs=1", "--force").code == 0
    assert {name: content for name, content in files(folder).items() if not name.startswith("smoke")} == before
    assert call("report").code == 0
    assert "smoke" not in (tmp_path / "results" / "REPORT.md").read_text()  # the best that is there
    assert {row["preset"] for row in json.loads((tmp_path / "results" / CLAIMS).read_text())} == {"full"}


def test_archive_that_no_experiment_uses_is_refused(listed: Listed, call: Call, digits: Path) -> None:
    listed(varied(toys))
    told = call("reproduce", "--preset=smoke", f"--archive=cifar10={digits}")
    assert (told.code, "none of these experiments uses the dataset cifar10" in told.err) == (2, True)
    told = call("reproduce", "--preset=smoke", *[f"--archive=cifar10={digits}"] * 2)
    assert (told.code, "--archive=cifar10 is there more than once." in told.err) == (2, True)


def test_archive_that_only_a_measure_uses_is_taken(listed: Listed, call: Call, digits: Path) -> None:
    def design(s: Settings) -> Design:
        new = Design(s.seeds)
        new.measure("data", {}, images, data=["data=mnist5k"])
        return new

    listed(varied(design))
    told = call("reproduce", "--preset=smoke", "--jobs=1", f"--archive=mnist5k={digits}")
    assert told.code == 0, told.err
    (data,) = read(Path("results/experiments/made_up/smoke")).provenance["data"]
    assert digits.name in data["data"]


def mixed(s: Settings) -> Design:
    """Digits to train on, and MNIST to measure on."""
    new = made_up.runs(s)
    new.measure("data", {}, images, data=["data=mnist"])
    return new


def test_missing_dataset_is_told_once_and_before_the_first_run(
    listed: Listed, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    listed(varied(mixed))
    told = call("reproduce", "--preset=smoke", "--jobs=1", "--data-root=elsewhere")
    assert (told.code, told.err.count("could not be downloaded")) == (2, 1), told.err
    assert "Error: made_up needs mnist: train-images" in told.err
    assert "--archive=mnist=FILE" in told.err
    assert list(tmp_path.glob("runs/*")) == list(tmp_path.glob("results/*/*")) == []
    dry = call("reproduce", "--preset=smoke", "--dry-run", "--data-root=elsewhere")
    assert (dry.code, "made_up reads mnist5k, mnist (missing: it would be downloaded)." in dry.out) == (0, True)


def test_archive_of_other_images_is_refused(listed: Listed, call: Call, digits: Path, tmp_path: Path) -> None:
    found = dict(np.load(digits))
    colours = {key: np.stack([each] * 3, -1) if key.startswith("x") else each for key, each in found.items()}
    np.savez(tmp_path / "colours.npz", **colours)
    (tmp_path / "junk.npz").write_bytes(b"PK")
    listed(varied())
    told = call("reproduce", "--preset=smoke", "--jobs=1", f"--archive=mnist5k={tmp_path / 'colours.npz'}")
    assert (told.code, "images of mnist5k are 1 x 28 x 28, and those in" in told.err) == (2, True), told.err
    told = call("reproduce", "--preset=smoke", "--jobs=1", f"--archive=mnist5k={tmp_path / 'junk.npz'}")
    assert (told.code, "Error: --archive=mnist5k: " in told.err, "data.path" in told.err) == (2, True, False)
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.parametrize("alone", [False, True])
def test_run_that_is_made_to_be_measured_is_recorded(tmp_path: Path, alone: bool) -> None:
    whole = frankle2021.paper.designed(frankle2021.paper.settings("full"))
    asked = Design(5)
    asked.probes = [probe for probe in whole.probes if (probe.part, probe.factors["depth"]) == ("longer", 1)]
    plan = make_plan(frankle2021.paper, "full", tmp_path, asked=asked, alone=alone)
    assert len(plan.configs) == len(plan.measured) == len(asked.probes) > 0
    recorded = {run_dir(arm.config) for arm in plan.arms}
    assert recorded == (set() if alone else {run_dir(cfg) for cfg in plan.configs})
