"""Work in several processes: one thread each, none stops the others, and Ctrl-C ends them in order."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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
) -> list[Result]:
    """``work(item, share)`` for all items, ``jobs`` at a time; the results in the items' order.

    Args:
        work: a function of a module, or a partial of one. It returns its failures, and tells ``share`` how far it is.
        items: what can be pickled.
        jobs: processes. With 1, all happens in this process, with all of torch's threads.
        lost: the result for an item whose process was killed, twice.
        report: told of progress.
    """
    tell = report or (lambda _index, _share: None)
    if jobs == 1:
        return [_here(work, index, item, tell) for index, item in enumerate(items)]
    with terminate_as_interrupt():
        return _in_pools(work, items, jobs, lost, tell)


def _here(work: Callable[..., Any], index: int, item: Any, report: Report) -> Any:
    result = work(item, lambda share: report(index, share))
    report(index, 1.0)
    return result


def _in_pools(
    work: Callable[..., Any], items: Sequence[Any], jobs: int, lost: Callable[..., Any], report: Report
) -> list[Any]:
    results: dict[int, Any] = {}
    rest = list(enumerate(items))
    # A process that is killed breaks its whole pool. What is left gets another one as long as that helps, and then
    # each item its own, so that only the one that kills is lost.
    while rest and (new := _pool(work, rest, jobs, report)):
        results |= new
        rest = [(i, item) for i, item in rest if i not in results]
    for i, item in rest:
        results |= {i: lost(item)} | _pool(work, [(i, item)], 1, report)
    return [results[i] for i in range(len(items))]


def _pool(work: Callable[..., Any], items: list[tuple[int, Any]], jobs: int, report: Report) -> dict[int, Any]:
    """The results of ``items``, less what a killed process took with it."""
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
    executor = ProcessPoolExecutor(min(jobs, len(items)), context, initializer=_start_worker, initargs=(news, stop))
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


def _start_worker(news: Any, stop: Any) -> None:
    global _news, _stop
    _news, _stop = news, stop
    torch.set_num_threads(1)
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
