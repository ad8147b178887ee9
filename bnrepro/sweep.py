"""Many runs, several at a time: one process a core, one thread a process, and none stops the others."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnrepro import train
from bnrepro.config import Config, Device, UserError, run_dir

LOOK_SECONDS = 0.2  # between looks at what the processes report


@dataclass(frozen=True)
class Outcome:
    """What became of one run of a sweep."""

    config: Config
    path: Path
    error: str | None = None
    """Why it failed; None if it finished."""
    by_user: bool = False
    """Whether the error is one that the user can mend."""


Report = Callable[[int, float], None]
"""Called with a run's number in the sweep and the share of its steps that are done."""


def default_jobs(cfg: Config) -> int:
    """Runs at a time: one a core on the CPU, one on a GPU."""
    if train.resolve(cfg).device is Device.cuda:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    configs: Sequence[Config], jobs: int, *, force: bool = False, report: Report | None = None
) -> list[Outcome]:
    """Run ``configs``, ``jobs`` at a time, and return their outcomes in the same order.

    What is finished is not run again. A run that fails, or whose process is killed, leaves the others alone.
    Ctrl-C interrupts the runs under way, which can go on later, and is raised again.

    Args:
        configs: the runs.
        jobs: processes. With 1, runs happen in this process, with all of torch's threads.
        force: start each run over.
        report: told of progress.
    """
    configs = [train.resolve(cfg) for cfg in configs]
    report = report or (lambda _index, _share: None)
    if jobs == 1:
        return [_attempt(index, cfg, force, report) for index, cfg in enumerate(configs)]
    outcomes: dict[int, Outcome] = {}
    rest = list(range(len(configs)))
    # A process that is killed breaks the whole pool: what had not finished gets a second pool, and no third.
    for _ in range(2):
        outcomes |= _pool([(i, configs[i]) for i in rest], jobs, force, report)
        rest = [i for i in rest if i not in outcomes]
        if not rest:
            break
    for i in rest:
        outcomes[i] = Outcome(configs[i], run_dir(configs[i]), "its process was killed (out of memory?)")
    return [outcomes[i] for i in range(len(configs))]


def _pool(work: list[tuple[int, Config]], jobs: int, force: bool, report: Report) -> dict[int, Outcome]:
    """The outcomes of ``work``, less what a killed process took with it."""
    context = multiprocessing.get_context("spawn")  # a forked torch can hang in its thread pools
    news: Any = context.Queue()
    outcomes: dict[int, Outcome] = {}

    def pass_on() -> None:
        while True:
            try:
                report(*news.get_nowait())
            except queue.Empty:
                return

    executor = ProcessPoolExecutor(min(jobs, len(work)), context, initializer=_start_worker, initargs=(news,))
    try:
        futures: dict[Future[Outcome], int] = {executor.submit(_work, i, cfg, force): i for i, cfg in work}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            pass_on()
            for future in done:
                try:
                    outcomes[futures[future]] = future.result()
                    report(futures[future], 1.0)
                except BrokenProcessPool:
                    pending = set()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()  # which a run takes as Ctrl-C: it records that it was interrupted
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return outcomes


_news: Any = None  # the queue to the process that started this one


def _start_worker(news: Any) -> None:
    global _news
    _news = news
    torch.set_num_threads(1)


def _work(index: int, cfg: Config, force: bool) -> Outcome:
    return _attempt(index, cfg, force, lambda *what: _news.put(what))


def _attempt(index: int, cfg: Config, force: bool, report: Report) -> Outcome:
    path = run_dir(cfg)
    try:
        train.run(cfg, force=force, report=lambda p: report(index, p.step / p.steps))
    except UserError as error:
        return Outcome(cfg, path, str(error), by_user=True)
    except Exception as error:  # whatever it is, the other runs go on, and it is told at the end
        return Outcome(cfg, path, f"{type(error).__name__}: {error}")
    report(index, 1.0)
    return Outcome(cfg, path)
