"""Work in several processes: the cores shared out, none stops the others, and Ctrl-C ends them in order."""

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
from typing import Any, TypeVar

import torch

from bnrepro.allocator import keep_memory
from bnrepro.signals import terminate_as_interrupt

LOOK_SECONDS = 0.2  # between looks at what the processes report

Item = TypeVar("Item")
Result = TypeVar("Result")

Report = Callable[[int, float], None]
"""Called with an item's number and the share of it that is done."""


def map_all(
    work: Callable[[Item, Callable[[float], None]], Result],
    items: Sequence[Item],
    jobs: int,
    lost: Callable[[Item], Result],
    report: Report | None = None,
    ended: Callable[[int, Result], None] | None = None,
    threads: int | None = None,
) -> list[Result]:
    """``work(item, share)`` for all items, ``jobs`` at a time; the results in the items' order.

    Args:
        work: a function of a module, or a partial of one. It returns its failures, and tells ``share`` how far it is.
        items: what can be pickled.
        jobs: processes. With 1, all happens in this process, with all of torch's threads.
        lost: the result for an item whose process was killed, twice.
        report: told of progress.
        ended: told of each result when it is there.
        threads: torch's threads in each process; None: the cores, shared out.
    """
    tell = report or (lambda _index, _share: None)
    take = ended or (lambda _index, _result: None)
    if jobs == 1:
        return [_here(work, index, item, tell, take) for index, item in enumerate(items)]
    pools = _Pools(work, jobs, threads or max(1, cores() // jobs), tell, take)
    with terminate_as_interrupt():
        return pools.run(items, lost)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(work: Callable[..., Any], index: int, item: Any, report: Report, ended: Callable[..., None]) -> Any:
    result = work(item, lambda share: report(index, share))
    report(index, 1.0)
    ended(index, result)
    return result


@dataclass(frozen=True)
class _Pools:
    work: Callable[..., Any]
    jobs: int
    threads: int
    report: Report
    ended: Callable[[int, Any], None]

    def run(self, items: Sequence[Any], lost: Callable[..., Any]) -> list[Any]:
        """The results of ``items``."""
        results: dict[int, Any] = {}
        rest = list(enumerate(items))
        # A process that is killed breaks its whole pool. What is left gets another one as long as that helps, and
        # then each item its own, so that only the one that kills is lost.
        while rest and (new := _pool(self, rest, self.jobs)):
            results |= new
            rest = [(i, item) for i, item in rest if i not in results]
        for i, item in rest:
            results |= _pool(self, [(i, item)], 1)
            if i not in results:
                results[i] = lost(item)
                self.ended(i, results[i])
        return [results[i] for i in range(len(items))]


def _pool(pools: _Pools, items: list[tuple[int, Any]], jobs: int) -> dict[int, Any]:
    """The results of ``items``, less what a killed process took with it."""
    work, report = pools.work, pools.report
    context = multiprocessing.get_context("spawn")  # a forked torch can hang in its thread pools
    news: Any = context.Queue()
    results: dict[int, Any] = {}

    def pass_on() -> None:
        while True:
            try:
                report(*news.get_nowait())
            except queue.Empty:
                return

    stop = context.Event()
    executor = ProcessPoolExecutor(
        min(jobs, len(items)), context, initializer=_start_worker, initargs=(news, stop, pools.threads)
    )
    try:
        futures: dict[Future[Any], int] = {executor.submit(_work, work, i, item): i for i, item in items}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            pass_on()
            for future in done:
                try:
                    results[futures[future]] = future.result()
                    report(futures[future], 1.0)
                    pools.ended(futures[future], results[futures[future]])
                except BrokenProcessPool:
                    pending = set()
    except BaseException:
        stop.set()
        for process in multiprocessing.active_children():
            process.terminate()  # which a run takes as Ctrl-C: it records that it was interrupted
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return results


_news: Any = None  # the queue to the process that started this one
_stop: Any = None  # set when nothing more is to begin


def _start_worker(news: Any, stop: Any, threads: int) -> None:
    global _news, _stop
    _news, _stop = news, stop
    torch.set_num_threads(threads)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the work in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed says nothing: without this, its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def _work(work: Callable[..., Any], index: int, item: Any) -> Any:
    if _stop.is_set():  # the pool hands out work ahead of time
        raise KeyboardInterrupt
    return work(item, lambda share: _news.put((index, share)))
