"""Many runs, several at a time: one process a core, one thread a process, and none stops the others."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnrepro import train
from bnrepro.allocator import keep_memory
from bnrepro.config import UserError, run_dir
from bnrepro.schema import Config, Device
from bnrepro.signals import terminate_as_interrupt

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
    with terminate_as_interrupt():
        return _in_pools(configs, jobs, force, report)


def _in_pools(configs: Sequence[Config], jobs: int, force: bool, report: Report) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    rest = list(enumerate(configs))
    # A process that is killed breaks its whole pool. What is left gets another one as long as that helps, and then
    # each run its own, so that only the one that kills is lost.
    while rest and (new := _pool(rest, jobs, force, report)):
        outcomes |= new
        rest = [(i, cfg) for i, cfg in rest if i not in outcomes]
    for i, cfg in rest:
        killed = Outcome(cfg, run_dir(cfg), "its process was killed (out of memory?)")
        outcomes |= {i: killed} | _pool([(i, cfg)], 1, force, report)
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

    stop = context.Event()
    executor = ProcessPoolExecutor(min(jobs, len(work)), context, initializer=_start_worker, initargs=(news, stop))
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
        stop.set()
        for process in multiprocessing.active_children():
            process.terminate()  # which a run takes as Ctrl-C: it records that it was interrupted
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return outcomes


_news: Any = None  # the queue to the process that started this one
_stop: Any = None  # set when no more runs are to begin


def _start_worker(news: Any, stop: Any) -> None:
    global _news, _stop
    _news, _stop = news, stop
    torch.set_num_threads(1)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the runs in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed says nothing: without this, its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def _work(index: int, cfg: Config, force: bool) -> Outcome:
    if _stop.is_set():  # the pool hands out work ahead of time
        raise KeyboardInterrupt
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
