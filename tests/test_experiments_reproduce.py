"""An experiment from its plan to its conclusions, with two real runs; nothing twice, nothing lost."""

from __future__ import annotations

import csv
import errno
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnrepro import experiments, record
from bnrepro.config import UserError, earlier_hash
from bnrepro.experiments import judge, reproduce
from bnrepro.experiments.base import Analysis, Arm, Claim, Experiment, Picture, Probe, Records, Settings, Table
from bnrepro.experiments.conclusion import open_conclusion
from bnrepro.experiments.records import find, from_cell, read, read_rows, to_cell, write_rows
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.stats import paired, t_interval
from tests.conftest import Call

CLAIM = Claim("Z1", "Somebody, https://example.org/a_b", "BN <script>alert(1)</script> is better", "no number")
EXACT = Claim("Z2", "Somebody", '"2 is 2"', "2")


def count_parameters(run: Run, seed: int, log: str) -> list[dict[str, Any]]:
    """A probe of a run."""
    with Path(log).open("a") as stream:
        stream.write("x")
    return [{"quantity": "parameters", "x": None, "value": run.summary["parameters"]}]


def curve(seed: int, points: list[float]) -> list[dict[str, Any]]:
    """A probe of a toy; a third is no number that a decimal fraction has."""
    return [{"quantity": "curve", "x": x, "value": x / 3 + seed} for x in points]


def fail(seed: int) -> list[dict[str, Any]]:
    """A probe with a mistake."""
    raise ZeroDivisionError("by purpose")


def nonsense(seed: int) -> list[dict[str, Any]]:
    """A probe whose rows are none."""
    return [{"quantity": "a", "val": 1}]


def analyse(records: Records) -> Analysis:
    """Findings, a table and a figure from whatever is there."""
    from matplotlib.figure import Figure

    bn, nobn = (records.by_seed("test_accuracy", part="table", variant=v) for v in ("bn", "nobn"))
    findings = [judge.greater(CLAIM, paired(bn, nobn), "points"), judge.exact(EXACT, True, "2")]
    rows = [{"variant": "bn", "accuracy": t_interval(list(bn.values())), "n": len(bn)}]
    figure = Figure(figsize=(3, 2))
    series = records.series("curve")
    figure.add_subplot().plot(list(series), [v[0] for v in series.values()])
    return Analysis(findings, [Table("sizes", "Sizes.", rows)], [Picture("line", "A <b>line</b>.", figure)])


@pytest.fixture
def made_up(tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """``made_up(probes=...)``: an experiment of two variants and a few probes, with a preset ``full``."""
    (tmp_path / "configs" / "experiment" / "made_up").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / "made_up" / "full.yaml").write_text("seeds: 1\nmargin: 1e-3\n")
    (tmp_path / "configs" / "experiment" / "made_up" / "smoke.yaml").write_text("seeds: 1\nmargin: 1e-3\n")
    monkeypatch.setattr(reproduce, "configs_dir", lambda: tmp_path / "configs")

    def arms(settings: Settings) -> list[Arm]:
        seeds = range(settings["seeds"])
        return [
            Arm(part, {"variant": variant, "rate": 0.5}, tiny("epochs=1", f"variant={variant}", f"seed={seed}"))
            for part in ("table", "again")
            for seed in seeds
            for variant in ("nobn", "bn")
        ]

    def probes(settings: Settings) -> list[Probe]:
        log = {"log": str(tmp_path / "log")}
        run = arms(settings)[1].config
        return [
            Probe("sizes", {"variant": "bn"}, 0, count_parameters, log, run),
            Probe("line", {"window": 3}, 0, curve, {"points": [0.1, 2, 0.7]}),
            Probe("line", {"window": "full"}, 1, curve, {"points": [0.1]}),
        ]

    def make(**changes: Any) -> Experiment:
        made = Experiment("made_up", "A made-up one", "Nobody", ("Smaller.",), (CLAIM, EXACT), arms, probes, analyse)
        return replace(made, **changes)

    return make


Make = Callable[..., Experiment]


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., tuple[Analysis, list[str]]]:
    """``go(experiment)``: reproduced into ``tmp_path / "out"``, in this process."""

    def run(experiment: Experiment, **more: Any) -> tuple[Analysis, list[str]]:
        more = {"jobs": 1, **more}
        return reproduce.reproduce(experiment, "full", tmp_path / "runs", tmp_path / "out", **more)

    return run


Go = Callable[..., tuple[Analysis, list[str]]]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.*"))}


def test_records_are_complete_and_nothing_runs_twice(made_up: Make, go: Go, tmp_path: Path) -> None:
    analysis, failed = go(made_up())
    assert failed == []
    assert [finding.claim.id for finding in analysis.findings] == ["Z1", "Z2"]
    assert len(list(record.find_runs(tmp_path / "runs"))) == 2  # four arms, each configuration twice
    folder = tmp_path / "out" / "made_up"
    records = reproduce.read(folder)
    assert [(row["part"], row["variant"], row["seed"]) for row in records.runs] == [
        (part, variant, 0) for part in ("table", "again") for variant in ("nobn", "bn")
    ]
    assert {row["rate"] for row in records.runs} == {0.5}
    assert len(records.curves) == 4
    assert {(row["part"], row["epoch"]) for row in records.curves} == {("table", 1), ("again", 1)}
    (run,) = (run for run in record.find_runs(tmp_path / "runs") if run.summary["variant"] == "bn")
    assert records.by_seed("test_loss", part="again", variant="bn") == {0: run.summary["test_loss"]}
    assert records.measured("parameters", part="sizes", variant="bn") == {0: run.summary["parameters"]}
    assert records.series("curve", window=3) == {0.1: [0.1 / 3], 2: [2 / 3], 0.7: [0.7 / 3]}
    assert records.series("curve", window="full") == {0.1: [0.1 / 3 + 1]}
    assert (records.preset, records.settings) == ("full", {"seeds": 1, "margin": 0.001})
    about = records.provenance
    assert about["command"] == "bnrepro reproduce made_up --preset full"
    assert [row["data_fingerprint"] for row in about["data"]] == [run.summary["data_fingerprint"]]
    assert about["seconds"].keys() == {"table", "again", "sizes", "line"}
    assert about["seconds"]["table"]["runs"] > about["seconds"]["again"]["runs"] == 0  # the same runs count once
    assert str(tmp_path) not in json.dumps(about)

    before = files(folder)
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.*")}
    go(made_up())
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.*")} == stamps
    assert (tmp_path / "log").read_text() == "x"
    assert files(folder) == before
    go(made_up(), force=True)
    assert (tmp_path / "log").read_text() == "xx"


def test_plan_says_what_is_missing(made_up: Make, go: Go, tmp_path: Path) -> None:
    plan = reproduce.make_plan(made_up(), "full", tmp_path / "runs")
    assert (plan.missing(), len(plan.configs), len(plan.probes)) == ((plan.configs, plan.probes), 2, 3)
    assert not (tmp_path / "runs").exists()
    go(made_up())
    assert plan.missing() == ([], [])
    (changed,) = (p for p in plan.probes if p.factors == {"window": "full"})
    for other in (
        replace(changed, seed=2),
        replace(changed, arguments={"points": [0.2]}),
        replace(changed, function=fail),
    ):
        assert replace(plan, probes=[other]).missing() == ([], [other])


def test_conclusions_are_drawn_again_from_records_alone(made_up: Make, go: Go, tmp_path: Path) -> None:
    go(made_up())
    folder = tmp_path / "out" / "made_up"
    before = files(folder)
    assert {
        "findings.csv",
        "captions.json",
        "tables/sizes.csv",
        "figures/line.svg",
        "figures/line.png",
    } <= before.keys()
    (folder / "findings.csv").unlink()
    (folder / "figures" / "line.svg").write_text("")
    (folder / "figures" / "of_old.svg").write_text("")
    (tmp_path / "runs").rename(tmp_path / "gone")
    reproduce.conclude(made_up(), reproduce.read(folder), folder)
    assert files(folder) == before
    assert find(tmp_path) == [folder]


def test_conclusion_reads_back(made_up: Make, go: Go, tmp_path: Path) -> None:
    analysis, _ = go(made_up())
    read = open_conclusion(tmp_path / "out" / "made_up")
    assert (read.name, read.captions["deviations"]) == ("made_up", ["Smaller."])
    texts = ("id", "sentence", "reported", "verdict", "found")
    assert [tuple(row[key] for key in texts) for row in read.findings] == [
        (f.claim.id, f.claim.sentence, f.claim.reported, f.verdict.value, f.found) for f in analysis.findings
    ]
    with (tmp_path / "out" / "made_up" / "findings.csv").open(newline="") as stream:  # as other programs read it
        assert [row["sentence"] for row in csv.DictReader(stream)][1] == '"2 is 2"'
    assert read.findings[1]["effect"] is None
    effect, expected = read.findings[0]["effect"], analysis.findings[0].effect
    assert expected
    assert (effect.mean, effect.n, math.isnan(effect.low)) == (expected.mean, 1, True)
    ((name, title, (row,)),) = read.tables
    assert (name, title, list(row), row["accuracy"].n) == ("sizes", "Sizes.", ["variant", "accuracy", "n"], 1)


def test_analysis_answers_each_claim_once(made_up: Make, go: Go) -> None:
    with pytest.raises(ValueError, match="made_up: claims"):
        go(made_up(claims=(CLAIM,)))


@pytest.mark.parametrize("jobs", [1, 2])
def test_probe_that_fails_leaves_the_others_alone(made_up: Make, go: Go, tmp_path: Path, jobs: int) -> None:
    probes = [Probe("line", {"kind": f.__name__}, 0, f) for f in (fail, nonsense)]
    probes += [Probe("line", {}, 0, curve, {"points": [1.0]})]
    _, failed = go(made_up(arms=lambda _: [], probes=lambda _: probes), jobs=jobs)
    assert failed == [
        "line (kind=fail), seed 0, fail: ZeroDivisionError: by purpose",
        "line (kind=nonsense), seed 0, nonsense: ValueError: a row must have quantity, x and value; got quantity, val",
    ]
    records = reproduce.read(tmp_path / "out" / "made_up")
    assert [(row["quantity"], row["value"]) for row in records.measurements] == [("curve", 1 / 3)]
    assert records.provenance["failed"] == failed


def test_nothing_but_failures_writes_nothing(made_up: Make, go: Go, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="by purpose"):
        go(made_up(arms=lambda _: [], probes=lambda _: [Probe("line", {}, 0, fail)]))
    assert not (tmp_path / "out").exists()


def test_diverged_and_failed_runs_are_rows_and_their_probes_are_not_made(
    made_up: Make, go: Go, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    wild = tiny("variant=nobn", "optimizer=sgd", "optimizer.lr=1e20")
    impossible = tiny("variant=bn", "batch_size=5000")
    arms = [Arm("table", {"kind": "wild"}, wild), Arm("table", {"kind": "impossible"}, impossible)]
    probes = [
        Probe("sizes", arm.factors, 0, count_parameters, {"log": str(tmp_path / "log")}, arm.config) for arm in arms
    ]
    _, failed = go(made_up(arms=lambda _: arms, probes=lambda _: probes))
    records = reproduce.read(tmp_path / "out" / "made_up")
    assert [(row["kind"], row["status"], row["test_accuracy"]) for row in records.runs] == [
        ("wild", "diverged", None),
        ("impossible", "failed", None),
    ]
    (row,) = records.measurements
    assert (row["kind"], row["quantity"], row["value"]) == ("wild", "diverged", records.runs[0]["diverged_at_step"])
    assert not (tmp_path / "log").exists()
    assert [("batch_size=5000" in line, "its run did not finish" in line) for line in failed] == [
        (True, False),
        (False, True),
    ]


def test_datasets_are_read_where_the_user_has_them(tiny: Callable[..., Config], digits: Path) -> None:
    plain = replace(tiny(), data=replace(tiny().data, source="torchvision", path=None))
    moved = reproduce.Places(root=Path("/elsewhere")).apply(plain)
    assert (moved.data.root, moved.data.path) == ("/elsewhere", None)
    places = reproduce.Places(archives={"digits": digits, "cifar10": Path("other.npz")})
    assert (places.apply(plain).data.source, places.apply(plain).data.path) == ("npz", str(digits))
    assert places.apply(replace(plain, data=replace(plain.data, name="mnist"))).data.source == "torchvision"


def test_factors_keep_off_the_columns_of_the_records(made_up: Make, go: Go, tiny: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="no factor can be called epoch"):
        go(made_up(arms=lambda _: [Arm("table", {"epoch": 3}, tiny())]))


def test_unknown_names_are_told_with_those_that_there_are(made_up: Make) -> None:
    with pytest.raises(UserError, match="There are: smoke, quick, full"):
        reproduce.settings(made_up(), "nosuch")
    with pytest.raises(UserError, match=r"quick\.yaml cannot be read"):
        reproduce.settings(made_up(), "quick")
    with pytest.raises(UserError, match="There are: conv_batchnorm, keras_curves"):
        experiments.experiment("nosuch")


@pytest.mark.parametrize("name", ["runs.csv", "curves.csv", "measurements.csv", "provenance.json"])
def test_damaged_records_are_refused_by_name(made_up: Make, go: Go, tmp_path: Path, name: str) -> None:
    probes = [Probe("line", {}, 0, curve, {"points": [1.0]})]
    go(made_up(arms=lambda _: [], probes=lambda _: probes))
    folder = tmp_path / "out" / "made_up"
    (folder / name).write_text('{"a": 1}\n"')
    with pytest.raises(UserError, match="are damaged"):
        reproduce.read(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        reproduce.read(folder)


VALUES = [1, -3, 0.1, 1 / 3, 1e-300, -0.0, 1e22, math.inf, True, False, None]
VALUES += [
    "a",
    "",
    "1",
    "1.0",
    "1e5",
    "nan",
    "inf",
    "true",
    '"',
    '"a"',
    "a,b",
    "a\nb",
    "a\r\nb",
    " 1",
    "1_0",
    "None",
    "é",
]


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


# --- the command line ---


@pytest.fixture
def listed(made_up: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``listed(one=..., other=...)``: the experiments that the command line knows."""

    def make(**changes: dict[str, Any]) -> None:
        known = {name: made_up(**more) for name, more in changes.items()}
        monkeypatch.setattr(experiments, "NAMES", tuple(known))
        monkeypatch.setattr(experiments, "experiment", known.__getitem__)

    return make


PROBES = {"arms": lambda _: [], "probes": lambda _: [Probe("line", {}, 0, curve, {"points": [1.0, 2.0]})]}


def test_reproduce_judges_figures_redraws_and_report_tells(
    listed: Callable[..., None], call: Call, tmp_path: Path
) -> None:
    listed(made_up={})
    arguments = ["reproduce", "made_up", "--preset=full", "--jobs=1"]
    planned = call(*arguments, "--dry-run")
    assert planned.out == "made_up (preset full): 2 runs, 2 still to run; 3 measurements, 3 still to make.\n"
    assert not (tmp_path / "results").exists()
    result = call(*arguments)
    assert result.code == 0, result.err
    assert "2 claims: 1 reproduced, 1 inconclusive" in result.out
    assert 'Z2  REPRODUCED: "2 is 2"\n    Found: 2\n' in result.out
    assert "Records, tables and figures: results/experiments/made_up" in result.out
    assert "0 still to run; 3 measurements, 0 still to make" in call(*arguments).out
    (harmed, *_) = sorted(tmp_path.glob("runs/*/*/*/*/metrics.csv"))
    harmed.write_text("")
    assert "Run it again with --force" in call(*arguments).err
    assert call(*arguments, "--force").code == 0
    folder = tmp_path / "results" / "experiments" / "made_up"
    before = files(folder)
    (folder / "figures" / "line.png").unlink()
    (folder / "findings.csv").unlink()
    assert "not complete" in call("report").err
    for given in ([], [str(folder)], ["made_up"]):
        again = call("figures", *given)
        assert (again.code, again.out.startswith("Figures, tables and verdicts: ")) == (0, True)
        assert files(folder) == before
    told = call("report")
    assert told.out == "Report: results/REPORT.md\nReport: results/report.html\n"
    assert "2 claims in 1 experiment" in (tmp_path / "results" / "REPORT.md").read_text()


def test_experiment_that_cannot_be_concluded_does_not_cost_the_others(
    listed: Callable[..., None], call: Call, tmp_path: Path
) -> None:
    lost = {"arms": lambda _: [], "probes": lambda _: [Probe("line", {}, 0, fail)]}
    listed(lost=lost, found=PROBES)
    result = call("reproduce", "--preset=full", "--jobs=1")
    assert result.code == 2
    assert "by purpose" in result.err
    assert "1 of 2 experiments could not be concluded" in result.err
    assert "2 claims" in result.out
    partly = {"arms": lambda _: [], "probes": lambda s: [*PROBES["probes"](s), Probe("line", {}, 0, fail)]}
    listed(partly=partly)
    result = call("reproduce", "--preset=full", "--jobs=1")
    assert (result.code, "1 of the runs and measurements failed" in result.err) == (2, True)
    assert "2 claims" in result.out


def test_mistake_in_an_analysis_is_raised_after_the_others(listed: Callable[..., None], call: Call) -> None:
    def wrong(records: Records) -> Analysis:
        raise RuntimeError("a mistake")

    listed(wrong={**PROBES, "analyse": wrong}, found=PROBES)
    with pytest.raises(RuntimeError, match="a mistake"):
        call("reproduce", "--preset=full", "--jobs=1")


def test_smaller_preset_has_a_folder_of_its_own_and_gives_no_verdicts(
    listed: Callable[..., None], call: Call, tmp_path: Path
) -> None:
    listed(made_up=PROBES)
    folder = tmp_path / "results" / "experiments" / "made_up"
    small = call("reproduce", "--preset=smoke", "--jobs=1")
    assert small.code == 0, small.err
    assert "Everything ran through" in small.out
    assert "REPRODUCED" not in small.out
    assert call("report").code == 0
    assert "smoke" in (tmp_path / "results" / "REPORT.md").read_text()
    assert "2 claims" in call("reproduce", "--preset=full", "--jobs=1").out
    before = {name: content for name, content in files(folder).items() if not name.startswith("smoke")}
    assert call("reproduce", "--preset=smoke", "--jobs=1", "--force").code == 0
    assert {name: content for name, content in files(folder).items() if not name.startswith("smoke")} == before
    assert call("report").code == 0
    assert "smoke" not in (tmp_path / "results" / "REPORT.md").read_text()  # the best that is there


@pytest.mark.parametrize("held", ["full", "smoke"])
@pytest.mark.parametrize("lacking", ["runs", "measurements", "official data", "failures"])
def test_records_are_not_replaced_by_what_is_worth_less_unasked(
    made_up: Make, go: Go, tmp_path: Path, held: str, lacking: str
) -> None:
    experiment = made_up()
    go(experiment)
    folder = tmp_path / "out" / "made_up"
    about = json.loads((folder / "provenance.json").read_text())
    about["preset"] = held
    if lacking == "official data":
        about["data"] = [data | {"data_official": True} for data in about["data"]]
    (folder / "provenance.json").write_text(json.dumps(about))
    before = files(folder)
    changes: dict[str, Any] = {
        "runs": {"arms": lambda s: experiment.arms(s)[1:]},
        "measurements": {"probes": lambda s: experiment.probes(s)[1:]},
        "official data": {},
        "failures": {"probes": lambda s: [*experiment.probes(s)[:2], Probe("line", {"window": "full"}, 1, fail)]},
    }[lacking]
    less = made_up(**changes)
    if held == "smoke":  # a larger preset takes the place of a smaller one, whatever it has
        assert "preset" in json.loads((folder / "provenance.json").read_text())
        go(less)
        assert read(folder).preset == "full"
        return
    with pytest.raises(UserError, match=r"holds more than would replace it .*--out, or --force"):
        go(less)
    assert files(folder) == before
    go(less, force=True)
    assert files(folder) != before
    go(less)  # no less than itself


@pytest.mark.parametrize("name", ["labml", "numpynet"])
def test_published_results_are_worth_no_more_than_their_preset_makes(name: str, tmp_path: Path) -> None:
    plan = reproduce.make_plan(experiments.experiment(name), "full", tmp_path)
    published = Path(__file__).parent.parent / "results" / "experiments"
    assert reproduce.there(plan.folder(published)) is not None
    plan.check_room(published)
    smoke = reproduce.make_plan(experiments.experiment(name), "smoke", tmp_path)
    assert not smoke.folder(published).exists()


def test_runs_of_published_results_are_known_by_their_earlier_names(tmp_path: Path) -> None:
    plan = reproduce.make_plan(experiments.experiment("labml"), "full", tmp_path)
    published = read(plan.folder(Path(__file__).parent.parent / "results" / "experiments"))
    here = [row["config_hash"] for row in published.runs if "cifar" not in str(row["network"])]  # that from an archive
    assert here
    assert {earlier_hash(cfg) for cfg in plan.configs} >= set(here)


def test_archive_that_no_experiment_uses_is_refused(listed: Callable[..., None], call: Call, digits: Path) -> None:
    listed(made_up=PROBES)
    told = call("reproduce", "--preset=smoke", f"--archive=cifar10={digits}")
    assert (told.code, "none of these experiments uses the dataset cifar10" in told.err) == (2, True)


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["runs.csv", "measurements.csv", "provenance.json", "captions.json"])
def test_unreadable_records_are_no_damaged_ones(
    made_up: Make, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: int
) -> None:
    go(made_up())
    folder = tmp_path / "out" / "made_up"
    before = files(folder)
    real = Path.open

    def refuse(self: Path, *args: Any, **more: Any) -> Any:
        if self == folder / name and not (args and "w" in args[0]):
            raise OSError(reason, "the reason", str(self))
        return real(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(UserError, match=rf"{name} cannot be read \(the reason\)"):
            (open_conclusion if name == "captions.json" else read)(folder)
        if name != "captions.json":
            with pytest.raises(UserError, match="cannot be read"):
                go(made_up())
    assert files(folder) == before


def test_seed_that_the_machine_slept_through_costs_no_more_than_the_others() -> None:
    spent = {("a", "runs", "x"): [1.0, 2.0, 3000.0], ("a", "runs", "y"): [5.0], ("b", "measurements", "x"): [0.5, 0.7]}
    cost = reproduce._cost(["a", "b"], spent)
    assert cost == {"a": {"runs": 11.0, "measurements": 0.0}, "b": {"runs": 0.0, "measurements": 1.2}}
