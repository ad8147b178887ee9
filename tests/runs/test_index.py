"""Stored runs as rows: any key as a column, conditions, prefixes, differences; and what is pruned of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bnrepro.config import load_config, run_dir, to_yaml
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.runs import checkpoint, index, pruning, record
from bnrepro.runs.record import Run
from bnrepro.training import train
from tests.conftest import Call

VERSIONS = {"torch": "2.14", "bnrepro": "0.1.0"}


def stored(root: Path, *overrides: str, status: str = "completed", accuracy: float | None = 0.9) -> Path:
    """A run as its files say, without training."""
    cfg = load_config([f"root={root}", *overrides])
    path = run_dir(cfg)
    record.write_whole(path / record.CONFIG, to_yaml(cfg))
    said = {"variant": cfg.variant, "seed": cfg.seed, "dataset": cfg.data.name, "model": cfg.model.name}
    ended = {"seconds": 3.5, "parameters": 10, "buffers": 2, "steps": 7, "versions": VERSIONS}
    numbers = {"test_accuracy": accuracy, "val_accuracy": accuracy and accuracy - 0.1}
    record.write_summary(path, {"status": status, **said, **ended, **numbers})
    row = dict.fromkeys(record.COLUMNS, 0.5) | {"step": 7, "epoch": 1.0}
    record.write_csv(path / record.METRICS, record.COLUMNS, [row])
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    stored(folder, "optimizer.lr=0.1", accuracy=0.8)
    stored(folder, "optimizer.lr=0.01", "variant=convbn", accuracy=0.7)
    stored(folder, "optimizer=sgd", "optimizer.lr=0.1", "variant=nobn", "seed=1", "epochs=3", accuracy=0.95)
    stored(folder, "variant=nobn", "data=cifar10", "model=lenet", status="diverged", accuracy=None)
    return folder


CONDITIONS = [
    ("optimizer.lr=0.1", {"bn", "nobn"}),
    ("optimizer.lr=1e-1", {"bn", "nobn"}),
    ("optimizer.lr!=0.1", {"convbn", "nobn"}),
    ("optimizer=sgd", {"nobn"}),
    ("test_accuracy>0.75", {"bn", "nobn"}),
    ("test_accuracy <= 0.8", {"bn", "convbn"}),
    ("test_accuracy=null", {"nobn"}),
    ("variant=bn,convbn", {"bn", "convbn"}),
    ("status=diverged", {"nobn"}),
    ("epochs>=10", {"bn", "convbn", "nobn"}),
    ("norm.affine=true", {"bn", "convbn", "nobn"}),
    ("norm.affine=false", set()),
    ("versions.torch=2.14", {"bn", "convbn", "nobn"}),
    ("data.name=cifar10", {"nobn"}),
    ("seed==0", {"bn", "convbn", "nobn"}),
    ("variant==bn", {"bn"}),
    ("seed=7", set()),
    ("schedule.milestones=[0.5, 0.75]", {"bn", "convbn", "nobn"}),
    ("schedule.milestones=[0.5,0.75]", {"bn", "convbn", "nobn"}),
    ("schedule.milestones=[.50,7.5e-1]", {"bn", "convbn", "nobn"}),
    ("schedule.milestones!=[0.5,0.75]", set()),
]


@pytest.mark.parametrize(("text", "variants"), CONDITIONS)
def test_condition_holds_for_the_runs_that_it_says(root: Path, text: str, variants: set[str]) -> None:
    found = index.select(root, [index.condition(text)])
    assert {run.value("variant") for run in found} == variants


WRONG = [
    ("lr=0.1", "Did you mean optimizer.lr?"),
    ("optimizer.lr", "is not a condition. Write KEY=VALUE"),
    ("variant=", "a value is missing"),
    ("status=done", "there is no status 'done'"),
    ("variant>bn", "> compares numbers"),
    ("variant=convbm", "Did you mean convbn?"),
    ("seed=zero", "Available: 0, 1"),
    ("seed===0", "Available: 0, 1"),
    ("schedule.milestones=[0.5]", r"with schedule\.milestones=\[0\.5\]\. .*Available: \[0\.5, 0\.75\]"),
    ("schedule.milestones=0.5", r"Available: \[0\.5, 0\.75\]"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_wrong_condition_is_told(root: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        index.select(root, [index.condition(text)])


@pytest.mark.parametrize("sort", ["-", ""])
def test_a_sort_without_a_column_is_told(root: Path, sort: str) -> None:
    with pytest.raises(UserError, match=r"--sort: the name of a column is missing. First there are: dataset"):
        index.select(root, sort=sort)


@pytest.mark.quick(40)
@pytest.mark.parametrize("key", index.columns())
def test_every_column_sorts_both_ways(root: Path, key: str) -> None:
    up, down = ([run.value(key) for run in index.select(root, sort=f"{sign}{key}")] for sign in ("", "-"))
    known = [value for value in up if value is not None]
    assert up[: len(known)] == known  # what has none comes last
    assert known[::-1] == [value for value in down if value is not None] or len(set(map(str, known))) < len(known)


def test_one_run_by_a_prefix_and_several_are_listed(root: Path) -> None:
    places = [run.path for run in record.find_runs(root)]
    for place in places:
        hash = place.name.rpartition("-")[2]
        for text in (hash, hash[:8], place.name, f"{place.parent.name}/{place.name}", str(place)):
            assert index.find_run(text, root) == place
    assert index.find_run("convbn/seed0", root).parent.name == "convbn"
    with pytest.raises(UserError, match=r"seed is ambiguous: 4 runs match\. Choose one of .*convbn/seed0-"):
        index.find_run("seed", root)
    with pytest.raises(UserError, match="Did you mean"):
        index.find_run(f"{places[0].name[:-1]}z", root)


def test_difference_names_what_differs_and_nothing_else(root: Path) -> None:
    one, other = (Run(index.find_run(text, root)) for text in ("/bn/seed0".strip("/"), "convbn/seed0"))
    found = index.diff(one, other)
    assert set(found) == {"configuration", "metrics"}
    assert found["configuration"] == {"variant": ("bn", "convbn"), "optimizer.lr": (0.1, 0.01)}
    assert set(found["metrics"]) == {"test_accuracy", "val_accuracy"}
    assert index.diff(one, one) == {}


def test_commands_print_tables_and_json(root: Path, call: Call) -> None:
    listed = call("runs", "--where=optimizer.lr=0.1", "--sort=val_accuracy", "--columns=variant,optimizer.lr")
    assert [line.split()[:2] for line in listed.out.splitlines()] == [
        ["variant", "optimizer.lr"],
        ["nobn", "0.1"],
        ["bn", "0.1"],
    ]
    rows = json.loads(call("runs", "--json", "--where=seed=1").out)
    assert [(row["variant"], row["optimizer.name"], row["epochs"]) for row in rows] == [("nobn", "sgd", 3)]
    assert call("runs", "--csv").out.splitlines()[0] == ",".join(index.columns())
    differs = call("diff", "bn/seed0", "convbn/seed0")
    assert "optimizer.lr" in differs.out
    assert "batch_size" not in differs.out
    shown = json.loads(call("show", "convbn/seed0", "--json").out)
    assert (shown["config"]["variant"], shown["metrics"][0]["step"]) == ("convbn", 7)
    assert call("watch").out == "No run under runs is running.\n"


def test_whole_runs_are_pruned_after_a_dry_run_and_only_those_asked_for(root: Path, call: Call) -> None:
    before = sorted(root.rglob("*"))
    dry = call("prune", "--runs", "--where=status=diverged")
    assert "Would delete 1 run" in dry.out
    assert sorted(root.rglob("*")) == before
    assert "Select them, as in" in call("prune", "--runs").err
    assert "Deleted: 1 run" in call("prune", "--runs", "--where=status=diverged", "--yes").out
    assert {run.path.parents[2].name for run in record.find_runs(root)} == {"mnist5k"}
    assert not (root / "cifar10").exists()


def test_run_that_another_process_has_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "running", lambda _: record.RUNNING)
    (run,) = index.select(root, [index.condition("variant=convbn")])
    record.write_summary(run.run.path, {**run.summary, "status": "interrupted"})
    assert pruning.delete(root, [index.condition("variant=convbn")], do_it=True) == {}
    assert run.run.path.is_dir()


@pytest.mark.parametrize("kept", [False, True])
def test_finished_run_keeps_no_optimiser_unless_asked_and_prune_drops_it(
    tiny: Callable[..., Config], kept: bool
) -> None:
    cfg = tiny(f"keep_optimizer={str(kept).lower()}", "optimizer=adam")
    assert run_dir(cfg) == run_dir(tiny("optimizer=adam"))  # it is the same run
    path = train.run(cfg)
    file = path / record.CHECKPOINT
    assert ("optimizer" in checkpoint.load(file)) == kept
    before, size = checkpoint.load(file)["network"], file.stat().st_size
    saved = pruning.lighten(Path(cfg.root), [], do_it=False)
    assert (list(saved), file.stat().st_size) == ([path] if kept else [], size)
    assert pruning.lighten(Path(cfg.root), [], do_it=True) == saved
    assert file.stat().st_size == size - sum(saved.values())
    assert not kept or file.stat().st_size < 0.4 * size
    after = checkpoint.load(file)["network"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    (path / record.SUMMARY).unlink()  # as if it had been killed between checkpoint and summary
    assert Run(train.run(cfg)).finished
