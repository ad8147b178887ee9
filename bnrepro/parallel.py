"""Work in several processes: the cores shared out, none stops the others, and Ctrl-C ends them in order."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch

from bnrepro.allocator import keep_memory
from bnrepro.config import UserError
from bnrepro.cores import cores, unbind
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


@contextmanager
def kept_workers() -> Iterator[None]:
    """Within it, a `map_all` leaves its processes to the next one, which then need not import torch again."""
    global _kept
    if _kept is not None:  # by a caller
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        kept, _kept = _kept, None
        for workers in kept.values():
            workers.close()


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
        while rest and (new := self._pool(rest, self.jobs)):
            results |= new
            rest = [(i, item) for i, item in rest if i not in results]
        for i, item in rest:
            results |= self._pool([(i, item)], 1)
            if i not in results:
                results[i] = lost(item)
                self.ended(i, results[i])
        return [results[i] for i in range(len(items))]

    def _pool(self, items: list[tuple[int, Any]], jobs: int) -> dict[int, Any]:
        """The results of ``items``, less what a killed process took with it."""
        results: dict[int, Any] = {}
        with _workers(jobs, self.threads) as workers:
            tickets: dict[int, int] = {}
            futures: dict[Future[Any], int] = {}
            with suppress(BrokenProcessPool):  # already: what is not handed out is for another pool
                for i, item in items:
                    tickets[ticket := next(_tickets)] = i
                    futures[workers.executor.submit(_work, self.work, ticket, item)] = i
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
                for ticket, share in workers.said():
                    if ticket in tickets:  # and not of the work before this
                        self.report(tickets[ticket], share)
                for future in done:
                    try:
                        results[futures[future]] = future.result()
                        self.report(futures[future], 1.0)
                        self.ended(futures[future], results[futures[future]])
                    except BrokenProcessPool:
                        pending = set()
        return results


class _Workers:
    """Processes that wait for work."""

    def __init__(self, jobs: int, threads: int) -> None:
        unbind()
        context = multiprocessing.get_context("spawn")  # a forked torch can hang in its thread pools
        try:
            self._news: Any = context.Queue()
            self._stop = context.Event()
            self.executor = ProcessPoolExecutor(
                jobs, context, initializer=_start_worker, initargs=(self._news, self._stop, threads)
            )
        except (OSError, ImportError) as error:  # ImportError: Python's where the system has no semaphores
            why = getattr(error, "strerror", None) or "there are no semaphores"
            raise UserError(
                f"Worker processes cannot be connected ({why}): they need semaphores in /dev/shm, and pipes. Mount a "
                "writable /dev/shm, or use --jobs=1, which needs neither."
            ) from error

    def said(self) -> Iterator[tuple[int, float]]:
        """The tickets of what is under way, and the shares of it that are done."""
        while True:
            try:
                yield self._news.get_nowait()
            except queue.Empty:
                return

    def alive(self) -> bool:
        """Whether there is no killed process among them, which breaks them all."""
        try:
            self.executor.submit(int).result()
        except BrokenProcessPool:
            self.close()
            return False
        return True

    def interrupt(self) -> None:
        """End what is under way in order, and begin nothing more."""
        self._stop.set()
        for process in multiprocessing.active_children():
            process.terminate()  # which a run takes as Ctrl-C: it records that it was interrupted

    def close(self) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)


_kept: dict[tuple[int, int], _Workers] | None = None  # by their numbers of processes and threads; None: none are kept
_tickets = count()


@contextmanager
def _workers(jobs: int, threads: int) -> Iterator[_Workers]:
    """Those that were kept, or new ones."""
    workers = (_kept or {}).pop((jobs, threads), None)
    if workers is None or not workers.alive():
        workers = _Workers(jobs, threads)
    try:
        yield workers
    except BaseException:
        workers.interrupt()
        workers.close()
        raise
    if _kept is None:
        workers.close()
    else:
        _kept[jobs, threads] = workers


_news: Any = None  # the queue to the process that started this one
_stop: Any = None  # set when nothing more is to begin


def _start_worker(news: Any, stop: Any, threads: int) -> None:
    global _news, _stop
    _news, _stop = news, stop
    unbind()
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


def _work(work: Callable[..., Any], ticket: int, item: Any) -> Any:
    if _stop.is_set():  # the pool hands out work ahead of time
        raise KeyboardInterrupt
    return work(item, lambda share: _news.put((ticket, share)))
