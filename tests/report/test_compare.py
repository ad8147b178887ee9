"""Comparisons: the grid, the records that stand by themselves, the table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnrepro.claims import engine
from bnrepro.claims.records import CURVES, MEASUREMENTS, PROVENANCE, RUNS
from bnrepro.claims.results import RUN_COLUMNS
from bnrepro.cli import listing
from bnrepro.config import load_config, what
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.experiments import COMPARISON, experiment
from bnrepro.report import compare, report
from bnrepro.report.compare import Comparison
from bnrepro.runs import index, record
from bnrepro.runs.record import Run
from bnrepro.system.writing import LIST
from bnrepro.training import train
from tests.conftest import Call

ORIGIN: dict[str, Any] = {
    "experiment": COMPARISON,
    "command": "bnrepro compare",
    "data": [{"data": "digits"}],
    "seconds": {compare.PART: {"runs": 99.0, "measurements": 0.0}},
    "failed": [],
}


def point(variant: str, seed: int, epoch: float, val: float) -> dict[str, Any]:
    row = {"part": compare.PART, "variant": variant, "seed": seed, **dict.fromkeys(record.COLUMNS)}
    return (
        row
        | {"step": 10 * epoch, "epoch": epoch}
        | {"val_accuracy": val, "train_accuracy": val, "val_loss": 1 - val, "train_loss": 1 - val}
    )


def ended(variant: str, seed: int, test: float | None, status: str = "completed") -> dict[str, Any]:
    row = dict.fromkeys(RUN_COLUMNS) | {"part": compare.PART, "variant": variant, "seed": seed, "status": status}
    row |= {"precision": "fp32", "device": "cpu", "config_hash": "0" * 8}
    return row | {"test_accuracy": test, "seconds": 10.0 + seed, "parameters": 7, "buffers": 0}


@pytest.fixture
def known() -> Comparison:
    """Three seeds of three variants with numbers to check by hand; one run of ``wild`` diverged."""
    runs, curves = [], []
    for seed, (base, bn) in enumerate([(0.90, 0.93), (0.91, 0.93), (0.92, 0.96)]):
        runs += [ended("nobn", seed, base), ended("bn", seed, bn)]
        curves += [point("nobn", seed, e, v) for e, v in ((1, 0.5), (2, 0.8), (3, 0.7))]
        curves += [point("bn", seed, e, v) for e, v in ((1, 0.6 + 0.1 * seed), (2, 0.9), (3, 0.9))]
    runs += [ended("wild", 0, 0.5), ended("wild", 1, 0.5), ended("wild", 2, None, "diverged")]
    curves += [point("wild", seed, e, 0.1 * e) for seed in (0, 1, 2) for e in (1, 2, 3)]
    return Comparison(runs, curves, ORIGIN, {"threshold": None})


def test_table_gives_means_and_students_intervals(known: Comparison) -> None:
    nobn, bn, wild = compare.table(known)
    assert nobn["test_accuracy_mean"] == pytest.approx(0.91)
    half = 4.302652729911275 * 0.01 / math.sqrt(3)  # t(0.975, 2) s / sqrt(n)
    assert (nobn["test_accuracy_low"], nobn["test_accuracy_high"]) == pytest.approx((0.91 - half, 0.91 + half))
    assert (nobn["n"], nobn["diverged"], wild["n"], wild["diverged"]) == (3, 0, 2, 1)
    assert bn["seconds_median"] == 11


def test_difference_is_taken_seed_by_seed(known: Comparison) -> None:
    nobn, bn, _ = compare.table(known)
    half = 4.302652729911275 * 0.01 / math.sqrt(3)  # the differences are 0.03, 0.02, 0.04
    assert bn["minus_nobn_mean"] == pytest.approx(0.03)
    assert bn["minus_nobn_high"] - bn["minus_nobn_mean"] == pytest.approx(half)
    assert nobn["minus_nobn_mean"] is None


def test_epochs_are_counted_to_the_first_variants_best_of_the_same_seed(known: Comparison) -> None:
    nobn, bn, wild = compare.table(known)
    assert nobn["epochs_to_threshold_mean"] == 2
    assert bn["epochs_to_threshold_mean"] == pytest.approx((2 + 2 + 1) / 3)
    assert (bn["reached"], wild["reached"], wild["epochs_to_threshold_mean"]) == (3, 0, None)


def test_epochs_can_be_counted_to_a_fixed_accuracy(known: Comparison) -> None:
    nobn, bn, wild = compare.table(replace(known, settings={"threshold": 0.85}))
    assert (nobn["reached"], bn["epochs_to_threshold_mean"], wild["reached"]) == (0, 2, 0)


def test_seeds_whose_baseline_diverged_have_no_threshold(known: Comparison) -> None:
    runs = [ended("nobn", r["seed"], None, "diverged") if r["variant"] == "nobn" else r for r in known.runs]
    nobn, bn, _ = compare.table(Comparison(runs, known.curves, known.provenance))
    assert (nobn["n"], nobn["test_accuracy_mean"], bn["reached"], bn["minus_nobn_mean"]) == (0, None, 0, None)
    assert bn["test_accuracy_mean"] == pytest.approx(0.94)


def test_curves_leave_out_runs_that_diverged(known: Comparison) -> None:
    assert [len(values) for _, values in known.over_seeds("wild", "val_accuracy")] == [2, 2, 2]
    assert [epoch for epoch, _ in known.over_seeds("bn", "val_accuracy")] == [1, 2, 3]
    assert [step for step, _ in known.over_seeds("bn", "val_accuracy", by="step")] == [10, 20, 30]


def test_stored_comparison_gives_the_same_table(known: Comparison, tmp_path: Path) -> None:
    compare.save(known, tmp_path / "a" / "b")
    again = compare.open_comparison(tmp_path / "a" / "b")
    assert again == known
    assert all(
        type(there[key]) is type(row[key]) for there, row in zip(again.runs, known.runs, strict=True) for key in row
    )
    assert compare.table(again) == compare.table(known)
    assert list(compare.find(tmp_path)) == list(compare.find(tmp_path / "a" / "b")) == [tmp_path / "a" / "b"]


@pytest.mark.parametrize("name", [RUNS, CURVES, PROVENANCE])
@pytest.mark.parametrize("content", [None, "nonsense", "\xff"])
def test_damaged_comparison_is_refused_by_name(
    known: Comparison, tmp_path: Path, name: str, content: str | None
) -> None:
    compare.save(known, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    reason = (
        "is not a comparison" if (name, content) == (RUNS, None) else f"{name}.* `bnrepro compare` with the same arg"
    )
    (tmp_path / "measurements.csv").unlink()
    with pytest.raises(UserError, match=reason):
        compare.open_comparison(tmp_path)


def without(text: str, *words: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not all(word in line for word in words))


WRONG: dict[str, tuple[str, Callable[[str], str], str]] = {
    "garbage for curves": (CURVES, lambda text: "<html>\n", "curves.csv has no column part"),
    "garbage for measurements": (MEASUREMENTS, lambda text: "<html>\n", "measurements.csv has no column part"),
    "no curves": (CURVES, lambda text: text.splitlines(keepends=True)[0], "variant bn, seed 0"),
    "a run without curves": (CURVES, lambda text: without(text, "wild,1,"), "variant wild, seed 1"),
    "curves without their run": (RUNS, lambda text: without(text, ",1,wild,"), "variant wild, seed 1"),
    "a run twice": (RUNS, lambda text: f"{text}{text.splitlines()[1]}\n", "variant nobn, seed 0 twice"),
    "accuracy in percent": (RUNS, lambda text: text.replace("0.93", "93"), "less than or equal to 1"),
    "infinite accuracy": (CURVES, lambda text: text.replace("0.7", "1e400", 1), "val_accuracy|train_accuracy"),
    "infinite loss": (CURVES, lambda text: text.replace("0.5,0.5,0.5,0.5", "inf,0.5,0.5,0.5", 1), "run is completed"),
    "negative loss": (CURVES, lambda text: text.replace("0.5,0.5,0.5,0.5", "-1,0.5,0.5,0.5", 1), "below 0"),
}


@pytest.mark.parametrize(("name", "change", "words"), WRONG.values(), ids=WRONG)
def test_comparison_of_what_no_runs_leave_is_refused(
    known: Comparison, tmp_path: Path, name: str, change: Callable[[str], str], words: str
) -> None:
    compare.save(known, tmp_path)
    assert compare.open_comparison(tmp_path) == known
    text = (tmp_path / name).read_text()
    assert change(text) != text
    (tmp_path / name).write_text(change(text))
    with pytest.raises(UserError, match=words):
        compare.open_comparison(tmp_path)


def test_what_tells_a_comparison_from_an_experiment_is_written_in_its_provenance(
    known: Comparison, tmp_path: Path
) -> None:
    compare.save(known, tmp_path)
    for name in ("captions.json", "claims.json"):
        (tmp_path / name).touch()
    assert list(compare.find(tmp_path)) == [tmp_path]
    other = replace(known, provenance=ORIGIN | {"experiment": "made_up"})
    compare.save(other, tmp_path)
    assert list(compare.find(tmp_path)) == []
    with pytest.raises(UserError, match="is not a comparison"):
        compare.open_comparison(tmp_path)


def test_comparison_in_the_format_of_an_earlier_version_is_told_with_its_remedy(
    known: Comparison, tmp_path: Path
) -> None:
    compare.save(known, tmp_path)
    (tmp_path / PROVENANCE).write_text(json.dumps({"data": [], "machines": [], "config": {"epochs": 1}}))
    for read in (compare.open_comparison, report.write, lambda place: compare.check_room(place, [load_config()])):
        with pytest.raises(
            UserError, match=r"of an earlier version\. Move it away, and `bnrepro compare` with the same"
        ):
            read(tmp_path)


def test_experiment_does_not_replace_a_comparison(known: Comparison, tmp_path: Path) -> None:
    plan = engine.Plan(experiment("numpynet"), "full", {}, [], [], tmp_path / "runs", "bnrepro reproduce numpynet")
    compare.save(known, plan.folder(tmp_path))
    with pytest.raises(UserError, match="holds results of `bnrepro compare`, which are kept"):
        plan.check_room(tmp_path)


def test_text_table_says_n_intervals_and_what_diverged(known: Comparison) -> None:
    text = listing.comparison_table(known)
    assert "91.00 [88.52, 93.48]" in text
    assert "3.00 [0.52, 5.48]" in text
    assert "2 (+1 diverged)" in text
    assert "digits" in text


def test_grid_has_each_variant_with_each_seed() -> None:
    grid = compare.grid(load_config([]), ["nobn", "bn"], 2)
    assert [(cfg.variant, cfg.seed) for cfg in grid] == [("nobn", 0), ("bn", 0), ("nobn", 1), ("bn", 1)]


def test_two_comparisons_have_two_folders() -> None:
    def of(variants: str, seeds: int, *overrides: str, threshold: float | None = None) -> Path:
        return compare.directory(compare.grid(load_config([*overrides]), variants.split(","), seeds), threshold)

    assert of("bn,nobn", 2) == of("bn,nobn,bn", 2) == of("bn,nobn", 2, "tensorboard=false")
    asked = [of("bn,nobn", 2), of("bn,nobn", 3), of("nobn,bn", 2), of("bn", 2), of("bn,nobn", 2, "epochs=3")]
    asked += [of("bn,nobn", 2, threshold=0.9), of("bn,nobn", 2, threshold=0.8)]
    assert len(set(asked)) == len(asked)


def test_more_runs_than_a_sweep_may_have_are_refused_before_they_are_listed() -> None:
    with pytest.raises(UserError, match="more than 10,000 runs"):
        compare.grid(load_config([]), ["bn", "nobn"], 10**9)


@pytest.mark.parametrize(
    ("variants", "seeds", "overrides", "threshold", "fits"),
    [
        (["bn", "nobn"], 2, [], None, True),
        (["bn", "nobn", "convbn"], 3, [], None, True),  # all that is there, and more
        (["bn", "nobn"], 2, ["root=elsewhere", "tensorboard=true"], None, True),
        (["nobn", "bn"], 2, [], None, False),  # another baseline
        (["bn"], 2, [], None, False),
        (["bn", "nobn"], 1, [], None, False),
        (["bn", "nobn"], 2, ["epochs=2"], None, False),
        (["bn", "nobn"], 2, [], 0.9, False),
    ],
)
def test_folder_with_another_comparison_is_refused(
    tmp_path: Path, variants: list[str], seeds: int, overrides: list[str], threshold: float | None, fits: bool
) -> None:
    runs = [ended(v, s, 0.5) for s in range(2) for v in ("bn", "nobn")]
    config = what(load_config(["epochs=1"]), compare.WITHOUT)
    del config["norm"]  # as if these keys had come later
    curves = [point(run["variant"], run["seed"], 1, 0.5) for run in runs]
    compare.save(Comparison(runs, curves, ORIGIN, config), tmp_path)
    grid = compare.grid(load_config(["epochs=1", *overrides]), variants, seeds)
    if fits:
        compare.check_room(tmp_path, grid, threshold)
    else:
        with pytest.raises(UserError, match="holds another comparison"):
            compare.check_room(tmp_path, grid, threshold)


def test_one_run_is_not_called_runs(tmp_path: Path) -> None:
    compare.save(Comparison([ended("bn", 0, 0.5)], [point("bn", 0, 1, 0.5)], ORIGIN, {}), tmp_path)
    with pytest.raises(UserError, match=r"another comparison \(bn; 1 run\)"):
        compare.check_room(tmp_path, compare.grid(load_config([]), ["nobn"], 1))


def test_place_of_a_comparison_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        compare.check_room(tmp_path / "file", [load_config([])])
    (tmp_path / "captions.json").touch()
    with pytest.raises(UserError, match="an experiment's results"):
        compare.check_room(tmp_path, [load_config([])])


@pytest.fixture
def trained(tiny: Callable[..., Config]) -> Comparison:
    grid = compare.grid(tiny("epochs=1"), ["nobn", "convbn"], 2)
    return compare.collect(Run(train.run(cfg)) for cfg in grid)


def test_records_come_from_the_runs_and_name_no_folder(trained: Comparison, digits: Path) -> None:
    assert trained.variants == ["nobn", "convbn"]
    assert [len(trained.completed(v)) for v in trained.variants] == [2, 2]
    text = json.dumps(trained.provenance)
    assert str(digits) not in text
    assert str(digits.parent) not in text
    assert len(trained.provenance["versions"]) == len(trained.provenance["machines"]) == 1
    assert trained.settings["epochs"] == 1
    assert trained.provenance["command"] == (
        "bnrepro compare --variants=nobn,convbn --seeds=2 epochs=1 batch_size=60 device=cpu channels_last=false "
        "data.name=digits "
        "data.source=npz data.path=digits.npz model.name=lenet"
    )
    spent = sum(run["seconds"] for run in trained.runs)
    assert trained.provenance["seconds"][compare.PART]["runs"] == pytest.approx(spent, abs=0.01)


def test_tensorboard_gets_each_variants_mean_and_interval(trained: Comparison, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    compare.write_board(trained, tmp_path / "board")
    compare.write_board(trained, tmp_path / "board")  # again: the old events are replaced, not added to
    for variant in trained.variants:
        folder = tmp_path / "board" / variant
        assert len(list(folder.iterdir())) == 1
        events = EventAccumulator(str(folder)).Reload()
        values = [run["val_accuracy"] for run in trained.completed(variant)]
        tags = ("accuracy/val", "~interval/accuracy/val/low", "~interval/accuracy/val/high")
        (mean,), (low,), (high,) = map(events.Scalars, tags)
        assert mean.value == pytest.approx(sum(values) / 2)
        assert low.value <= mean.value <= high.value
        assert "custom_scalars__config__" in events.summary_metadata


def test_listing_sorts_filters_and_survives_a_damaged_run(tiny: Callable[..., Config]) -> None:
    cfg = tiny("epochs=1")
    runs = [train.run(each) for each in compare.grid(cfg, ["nobn", "bn"], 2)]
    root = Path(cfg.root)
    (runs[0] / record.SUMMARY).write_text("{")
    rows = index.select(root, sort="test_accuracy")
    accuracies = [run.value("test_accuracy") for run in rows]
    assert accuracies[:3] == sorted(accuracies[:3], reverse=True)
    assert [run.value("test_accuracy") for run in index.select(root, sort="-test_accuracy")[:3]] == sorted(
        accuracies[:3]
    )
    assert rows[3].row(["status", "path"]) == {"status": "damaged", "path": str(runs[0])}
    assert {run.value("variant") for run in index.select(root, [index.condition("variant=bn")])} == {"bn"}
    assert listing.as_csv(rows, index.columns()).splitlines()[0] == ",".join(index.columns())
    assert str(runs[1]) in listing.as_text(rows)
    with pytest.raises(UserError, match="Among others there are dataset"):
        index.select(root, sort="colour")


def test_paper_of_ones_own_cannot_be_taken_for_a_comparison(tmp_path: Path) -> None:
    file = tmp_path / "compare.py"
    made = "class Settings(Preset): ...\npaper = Paper(__name__, Settings)"
    file.write_text(f'"""Mine."""\nfrom bnrepro.claims import Paper, Preset\n{made}')
    with pytest.raises(UserError, match="not 'compare' or the name of one"):
        experiment(str(file))


SLIDES = [
    (["--size=big"], "is not a size. Give width and height in inches"),
    (["--xlim=5,1"], "is not a range. Give the first and the last epoch"),
    (["--labels=bn"], "is not of the form VARIANT=TEXT"),
    (["--format=jpg"], "there is no 'jpg'. Available: svg, png, pdf."),
    (["--variants=bn,convbm"], "this comparison has no 'convbm'. Available: nobn, bn, wild."),
    (["--labels=convbn=x"], "no variant 'convbn' is shown. Available: nobn, bn, wild."),
    (["--to=there"], "--to is the folder of slides"),
    (["--only=val_acc"], "--only: there is no figure 'val_acc'. Did you mean val_accuracy?"),
    (["--format="], "--format is empty. Write names, as in --format=pdf,png."),
    (["--xlim=5,9"], "--xlim=5,9 shows no epoch of nobn, bn, wild, which have epochs 1 to 3."),
    (["--size=0.5x0.5"], "does not fit into --size=0.5x0.5. Its usual size is 3.4x2.6."),
]


@pytest.mark.parametrize(("options", "words"), SLIDES)
def test_wrong_slide_is_told_and_nothing_is_drawn(
    known: Comparison, tmp_path: Path, call: Call, options: list[str], words: str
) -> None:
    compare.save(known, tmp_path / "c")
    before = sorted(tmp_path.rglob("*"))
    result = call("figures", "c", *options)
    assert (result.code, words in result.err) == (2, True), result.err
    assert [file for file in sorted(tmp_path.rglob("*")) if file.is_file()] == [f for f in before if f.is_file()]


def test_slide_shows_the_variants_labels_and_epochs_asked_for_and_its_data(
    known: Comparison, tmp_path: Path, call: Call
) -> None:
    compare.save(known, tmp_path / "c")
    options = ["--format=svg,pdf", "--size=3.3x2", "--variants=bn", "--labels=bn=Batch norm", "--xlim=0,1"]
    result = call("figures", "c", *options)
    assert result.code == 0, result.err
    text = (tmp_path / "c" / "slides" / "val_accuracy.svg").read_text()
    assert "Batch norm (n=" in text
    assert "no BN" not in text
    assert 'width="237.6pt" height="144pt"' in text
    assert (tmp_path / "c" / "slides" / "val_accuracy.pdf").read_bytes().startswith(b"%PDF")
    rows = (tmp_path / "c" / "slides" / "val_accuracy.csv").read_text().splitlines()
    assert rows[0] == "variant,epoch,n,mean,low,high"
    assert {row.partition(",")[0] for row in rows[1:]} == {"bn"}
    again = {file.name: file.read_bytes() for file in (tmp_path / "c" / "slides").iterdir()}
    assert "crowded" not in result.err
    call("figures", "c", *options)
    assert {file.name: file.read_bytes() for file in (tmp_path / "c" / "slides").iterdir()} == again


@pytest.mark.parametrize(
    ("only", "files"),
    [
        ("test_accuracy", {"test_accuracy.png"}),
        ("val_loss,train_loss", {"val_loss.png", "val_loss.csv", "train_loss.png", "train_loss.csv"}),
        (
            "overview",
            {"overview.png", *(f"{of}_{what}.csv" for of in ("train", "val") for what in ("loss", "accuracy"))},
        ),
    ],
)
def test_only_the_figures_asked_for_are_drawn(
    known: Comparison, tmp_path: Path, call: Call, only: str, files: set[str]
) -> None:
    compare.save(known, tmp_path / "c")
    result = call("figures", "c", f"--only={only}", "--format=png", "--to=there")
    assert (result.code, result.err) == (0, "")
    assert {file.name for file in (tmp_path / "there").iterdir()} == {*files, LIST}
    (tmp_path / "mine").mkdir()
    taken = tmp_path / "mine" / min(files)
    taken.write_text("mine")
    result = call("figures", "c", f"--only={only}", "--format=png", "--to=mine")
    assert (result.code, "was not written by this command and would be replaced" in result.err) == (2, True)
    assert [(file, file.read_text()) for file in (tmp_path / "mine").iterdir()] == [(taken, "mine")]


def test_letters_that_the_font_lacks_are_told(known: Comparison, tmp_path: Path, call: Call) -> None:
    compare.save(known, tmp_path / "c")
    options = ["--only=val_accuracy", "--format=png,svg", "--size=3.3x2"]
    result = call("figures", "c", "--labels=bn=日本 norm", *options)
    assert result.code == 0
    assert "The figure val_accuracy has boxes in place of 日, 本, which its font lacks." in result.err
    assert "日本 norm" in (tmp_path / "c" / "slides" / "val_accuracy.svg").read_text("utf-8")
    assert "boxes" not in call("figures", "c", "--labels=bn=Größe", *options).err


def test_figure_whose_labels_overlap_is_drawn_with_a_warning(known: Comparison, tmp_path: Path, call: Call) -> None:
    compare.save(known, tmp_path / "c")
    result = call("figures", "c", "--only=val_accuracy", "--size=1.6x2")
    assert (result.code, result.err) == (
        0,
        "The figure val_accuracy is crowded at --size=1.6x2. Its usual size is 3.4x2.6.\n",
    )
