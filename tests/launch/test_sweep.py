"""Many runs at a time: none stops the others, and what is finished is kept."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console

from bnrepro.cli.progress import SweepBar
from bnrepro.config import run_dir
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.launch import parallel, sweep
from bnrepro.report import compare
from bnrepro.runs.record import Run

if TYPE_CHECKING:  # workers import this module, and not the tests' settings with it
    from tests.conftest import Call

Tiny = Callable[..., Config]


def test_runs_in_parallel_are_those_of_one_process(tiny: Tiny, tmp_path: Path) -> None:
    there, here = (
        compare.grid(tiny("epochs=1", f"root={tmp_path / name}"), ["nobn", "convbn"], 2) for name in ("there", "here")
    )
    shares: dict[int, float] = {}
    parallel = sweep.run_all(there, jobs=2, report=lambda i, share: shares.update({i: share}))
    serial = sweep.run_all(here, jobs=1)
    assert [o.error for o in parallel + serial] == [None] * 8
    assert [o.config.variant for o in parallel] == [cfg.variant for cfg in there]
    for one, other in zip(parallel, serial, strict=True):
        assert Run(one.path).summary["test_loss"] == Run(other.path).summary["test_loss"]
    assert shares == dict.fromkeys(range(4), 1.0)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_that_fails_leaves_the_others_alone(tiny: Tiny, jobs: int) -> None:
    bad = tiny("epochs=1", "batch_size=5000")
    outcomes = sweep.run_all([tiny("epochs=1"), bad, tiny("epochs=1", "seed=1")], jobs)
    assert [o.error is None for o in outcomes] == [True, False, True]
    assert outcomes[1].by_user
    assert "batch_size=5000" in str(outcomes[1].error)


@pytest.mark.slow
def test_process_that_is_killed_is_replaced_and_its_run_done_again(tiny: Tiny) -> None:
    killed: list[int] = []

    def kill_once(_: int, __: float) -> None:
        if not killed:
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    outcomes = sweep.run_all(compare.grid(tiny(), ["nobn", "bn"], 2), jobs=2, report=kill_once)
    assert killed
    assert [o.error for o in outcomes] == [None] * 4
    assert {Run(o.path).status for o in outcomes} == {"completed"}


@pytest.mark.slow
def test_processes_stay_for_the_next_work_unless_they_are_killed() -> None:
    def who(items: list[int]) -> set[int]:
        return set(parallel.map_all(_who, items, jobs=2, lost=_no_threads))

    with parallel.kept_workers():
        who([0, 1])
        first = {process.pid for process in multiprocessing.active_children()}  # one may have done all of it
        with parallel.kept_workers():  # as that of a caller
            assert who([0, 1, 2]) <= first
        assert who([0]) <= first
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        assert not who([0]) & first
    assert multiprocessing.active_children() == []
    assert not who([0]) & first


def _who(_item: int, share: Callable[[float], None]) -> int:
    share(0.5)
    return os.getpid()


@pytest.mark.slow
def test_what_is_told_late_is_not_taken_for_the_next_work() -> None:
    shares: list[tuple[int, float]] = []
    with parallel.kept_workers():
        parallel.map_all(_tell, [0.1] * 200, 2, _no_threads)
        parallel.map_all(_tell, [0.2, 0.2], 2, _no_threads, report=lambda i, share: shares.append((i, share)))
    assert {share for _, share in shares} <= {0.2, 1.0}
    assert {i for i, _ in shares} == {0, 1}


def _tell(item: float, share: Callable[[float], None]) -> int:
    share(item)
    return 0


@pytest.mark.slow
def test_interrupt_stops_all_runs_and_they_go_on_later(tiny: Tiny, tmp_path: Path) -> None:
    def interrupt(_: int, share: float) -> None:
        if share > 0:
            raise KeyboardInterrupt

    grid = compare.grid(tiny("epochs=40"), ["nobn", "convbn"], 1)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_all(grid, jobs=2, report=interrupt)
    assert multiprocessing.active_children() == []
    runs = [Run(path.parent) for path in tmp_path.rglob("config.yaml")]
    assert runs
    assert all(run.status == "interrupted" for run in runs)


def test_one_job_a_core_on_the_cpu(tiny: Tiny) -> None:
    assert 1 <= sweep.default_jobs(tiny()) <= (os.cpu_count() or 1)


# --- Hydra's sweep syntax ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["epochs=1"], [["epochs=1"]]),
        ([], [[]]),
        (["variant=bn,nobn", "seed=range(2)"], [[f"variant={v}", f"seed={s}"] for v in ("bn", "nobn") for s in (0, 1)]),
        (["seed=choice(3,5)", "epochs=1"], [["seed=3", "epochs=1"], ["seed=5", "epochs=1"]]),
        (["data=glob(mnist*)"], [["data=mnist"], ["data=mnist5k"]]),
        (["variant=glob(*custombn)"], [["variant=custombn"]]),
        (["optimizer.lr=0.1,1e-2"], [["optimizer.lr=0.1"], ["optimizer.lr=0.01"]]),
        (["schedule.milestones=[0.1,0.2],[0.5]"], [["schedule.milestones=[0.1,0.2]"], ["schedule.milestones=[0.5]"]]),
    ],
)
def test_sweep_syntax_is_hydras(overrides: list[str], expected: list[list[str]]) -> None:
    assert sweep.expand(overrides) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("variant=glob(x*)", "matches no name"),
        ("seed=range(3,1)", r"seed=range\(3,1\) has no values. Write one that has some, as in seed=range\(3\)."),
        ("epochs=range(1,1)", "has no values"),
        ("optimizer.lr=interval(0,1)", "not an interval"),
        ("seed=range(", "range"),
        ("data=glob(nothing*)", "matches no name"),
    ],
)
def test_sweep_that_lists_no_runs_is_one_sentence(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        sweep.expand([override])
    assert "\n" not in str(error.value)


def test_error_of_a_run_is_kept_where_its_record_would_be(tiny: Tiny) -> None:
    bad = tiny("batch_size=5000")
    (outcome,) = sweep.run_all([bad], jobs=1)
    assert outcome.state == "failed"
    assert Run(run_dir(bad)).summary["error"] == outcome.error
    good = tiny("epochs=1")
    sweep.run_all([good], jobs=1)
    before = (run_dir(good) / "summary.json").read_bytes()
    assert sweep.failed(good, "too late").error == "too late"
    assert (run_dir(good) / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_cores_are_shared_out_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    there = parallel.map_all(_threads, [0, 1], jobs=2, lost=_no_threads)
    assert there == [2, 2]
    assert parallel.map_all(_threads, [0, 1], jobs=2, lost=_no_threads, threads=1) == [1, 1]


def _threads(_item: int, _share: Callable[[float], None]) -> int:
    return torch.get_num_threads()


def _no_threads(_item: float) -> int:
    return -1


# --- what is shown ---


def test_line_for_each_run_that_ended_where_there_is_no_terminal(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    with SweepBar(["good", "bad"]) as bar:
        sweep.run_all([tiny("epochs=1"), tiny("batch_size=5000")], 1, report=bar.update, ended=bar.ended)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "[1/2] good: completed"
    assert lines[1].startswith("[2/2] bad: failed (batch_size=5000 is more than")


@dataclass(frozen=True)
class Ended:
    state: str
    error: str | None = None


def test_live_table_counts_and_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = SweepBar(["a", "b", "c", "d"])
    now = bar.started
    monkeypatch.setattr("time.monotonic", lambda: now + 60)
    assert bar.summary() == "4 runs: 4 waiting (0:01:00)"
    bar.ended(0, Ended("completed"))
    bar.ended(1, Ended("failed", "why"))
    bar.update(2, 0.5)
    bar.update(2, 0.4)  # news may arrive late
    assert bar.running() == {2: 0.5}
    text = "4 runs: 1 completed, 1 failed, 1 running, 1 waiting (0:01:00, about 0:00:36 left)"
    assert bar.summary() == text
    console = Console(width=100, record=True, file=StringIO())
    console.print(bar.shown())
    shown = console.export_text()
    assert text in shown
    assert "c " in shown
    assert "50%" in shown


SMALL = ("model=lenet", "epochs=1", "data.val_fraction=0.9", "tensorboard=false")
PAPER = f"""from bnrepro.claims import Design, Paper, Preset
paper = Paper(__name__, Preset)
@paper.design
def runs(s):
    design = Design(1)
    for variant in ("bn", "nobn"):
        design.train("main", {{"norm": variant}}, [f"variant={{variant}}", *{SMALL}])
    return design
"""


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "asked",
    [
        ("compare", "--variants=bn,nobn", "--seeds=1", "--jobs=1", *SMALL),
        ("sweep", "variant=bn,nobn", "--jobs=1", *SMALL),
        ("reproduce", "paper.py", "--jobs=1"),
    ],
)
@pytest.mark.parametrize("removed", ["", "metrics.csv"])
def test_run_that_is_removed_after_it_has_finished_has_failed(
    asked: tuple[str, ...], removed: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "paper.py").write_text(PAPER)
    real = sweep.run_all

    def remove(configs: list[Config], *more: Any, **named: Any) -> list[sweep.Outcome]:
        outcomes = real(configs, *more, **named)
        shutil.rmtree(outcomes[0].path) if not removed else (outcomes[0].path / removed).unlink()
        return outcomes

    monkeypatch.setattr(sweep, "run_all", remove)
    code, _, err = call(*asked)
    said = "there is no metrics.csv" if removed else "its folder was removed after it had finished"
    assert code == 2, err
    assert said in err, err
    assert "failed" in err, err
    assert len(list((tmp_path / "runs").rglob("metrics.csv"))) == 1
