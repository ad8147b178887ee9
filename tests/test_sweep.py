"""Many runs at a time: none stops the others, and what is finished is kept."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bnrepro import compare, sweep
from bnrepro.record import Run
from bnrepro.schema import Config

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


@pytest.mark.parametrize("jobs", [1, 2])
def test_run_that_fails_leaves_the_others_alone(tiny: Tiny, jobs: int) -> None:
    bad = tiny("epochs=1", "batch_size=5000")
    outcomes = sweep.run_all([tiny("epochs=1"), bad, tiny("epochs=1", "seed=1")], jobs)
    assert [o.error is None for o in outcomes] == [True, False, True]
    assert outcomes[1].by_user
    assert "batch_size=5000" in str(outcomes[1].error)


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
