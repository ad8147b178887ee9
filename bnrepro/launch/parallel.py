"""Work in several processes: the cores shared out, none stops the others, and Ctrl-C ends them in order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from typing import Any, TypeVar

from bnrepro.system import output
from bnrepro.system.cores import cores, unbind, use_threads
from bnrepro.system.memory import raise_malloc_thresholds
from bnrepro.system.signals import STOPPING, Stop, stop_between_steps

LOOK_SECONDS = 0.2  # between looks at whether a signal came
ORDERLY_SECONDS = 7.0  # that work has to end in order, with a checkpoint; ...
ABRUPT_SECONDS = 3.0  # ... after a second signal, without one; then its process is killed
INTERRUPTED = 130  # exit code of a process whose work was interrupted by somebody else than its parent

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
        threads: torch's threads in each process; None: the cores, shared out. Ignored with ``jobs=1``.
    """
    tell = report or (lambda _index, _share: None)
    take = ended or (lambda _index, _result: None)
    if jobs == 1:
        return [_here(work, index, item, tell, take) for index, item in enumerate(items)]
    results: dict[int, Result] = {}
    # Signals only ask, so that no worker is lost track of; between events they are looked for.
    with stop_between_steps(ending=True) as stop, _workers(threads or max(1, cores() // jobs)) as workers:
        map_ = _Map(work, workers, tell, take, stop, results)
        for index, item in map_.run(list(enumerate(items)), jobs):  # what was killed has the machine for itself now
            if map_.run([(index, item)], 1):
                results[index] = lost(item)
                take(index, results[index])
    return [results[index] for index in range(len(items))]


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
        with stop_between_steps(ending=True):
            kept, _kept = _kept, None
            for workers in kept.values():
                workers.close()


def _here(work: Callable[..., Any], index: int, item: Any, report: Report, ended: Callable[..., None]) -> Any:
    result = work(item, lambda share: report(index, share))
    report(index, 1.0)
    ended(index, result)
    return result


@dataclass(frozen=True)
class _Map:
    """One `map_all`."""

    work: Callable[..., Any]
    workers: _Workers
    report: Report
    ended: Callable[[int, Any], None]
    stop: Stop
    results: dict[int, Any]

    def run(self, items: Sequence[tuple[int, Any]], jobs: int) -> list[tuple[int, Any]]:
        """Work on ``items``, ``jobs`` at a time; returns those whose process was killed."""
        waiting, killed = deque(items), []
        busy: dict[_Worker, tuple[int, Any]] = {}
        while waiting or busy:
            if self.stop.asked:
                raise KeyboardInterrupt
            while waiting and len(busy) < jobs and (worker := self.workers.idle(busy)):
                busy[worker] = waiting.popleft()
                worker.give(self.work, busy[worker][1])
            for pipe in connection.wait([worker.pipe for worker in busy], LOOK_SECONDS):
                worker = next(each for each in busy if each.pipe is pipe)
                index, item = busy[worker]
                match worker.answer():
                    case "share", share:
                        self.report(index, share)
                    case "result", result:
                        del busy[worker]
                        self.results[index] = result
                        self.report(index, 1.0)
                        self.ended(index, result)
                    case "error", error:
                        raise error
                    case _:
                        del busy[worker]
                        killed.append((index, item))
        return killed


class _Worker:
    """A worker process and the pipe to it. Workers share nothing, so the death of one affects no other."""

    def __init__(self, threads: int) -> None:
        unbind()
        context = multiprocessing.get_context("spawn")  # a forked torch can hang in its thread pools
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, threads), daemon=True)
        with _blocked_in_children():
            self.process.start()
        other.close()

    def give(self, work: Callable[..., Any], item: Any) -> None:
        """Hand out an item. Whether the process is there to take it, `answer` says."""
        with suppress(OSError):
            self.pipe.send_bytes(pickle.dumps((work, item)))

    def answer(self) -> Any:
        """The next message of the worker; None if it was killed.

        Raises:
            KeyboardInterrupt: its work was interrupted.
        """
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            if self.process.exitcode == INTERRUPTED:
                raise KeyboardInterrupt from None
            return None


@dataclass
class _Workers:
    """Worker processes that use the same number of threads."""

    threads: int
    all: list[_Worker] = field(default_factory=list)

    def idle(self, busy: Iterable[_Worker]) -> _Worker | None:
        """An idle worker, started if necessary; None if the system cannot start another process."""
        self.all = [worker for worker in self.all if worker.process.is_alive()]
        for worker in self.all:
            if worker not in busy:
                return worker
        try:
            self.all.append(_Worker(self.threads))
        except OSError:  # too many processes or files
            if not busy:
                raise
            return None
        return self.all[-1]

    def interrupt(self) -> None:
        """Stop the workers gracefully, and kill those that take too long."""
        for seconds in (ORDERLY_SECONDS, ABRUPT_SECONDS):
            for worker in self.all:
                worker.process.terminate()  # which a run takes as Ctrl-C: it records that it was interrupted
            self._join(seconds)
        self.close(0)

    def close(self, seconds: float = ABRUPT_SECONDS) -> None:
        """Shut down idle workers."""
        for worker in self.all:
            worker.pipe.close()
        self._join(seconds)
        for worker in self.all:
            worker.process.kill()
            worker.process.join()

    def _join(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for worker in self.all:
            worker.process.join(max(0.0, end - time.monotonic()))


_kept: dict[int, _Workers] | None = None  # by their number of threads; None: none are kept


@contextmanager
def _workers(threads: int) -> Iterator[_Workers]:
    """Those that were kept, or new ones."""
    workers = (_kept or {}).pop(threads, None) or _Workers(threads)
    try:
        yield workers
    except BaseException:
        workers.interrupt()
        raise
    if _kept is None:
        workers.close()
    else:
        _kept[threads] = workers


@contextmanager
def _blocked_in_children() -> Iterator[None]:
    """Block terminal signals in child processes started within, until they can ignore them."""
    hidden = [number for number in STOPPING if number != signal.SIGTERM]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, hidden)
    try:
        resource_tracker.ensure_running()  # multiprocessing's own process; starting it unblocks SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, hidden)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: connection.Connection, threads: int) -> None:
    """Main loop of a worker: receive items, send progress and results, until the pipe closes."""
    hidden = [number for number in STOPPING if number != signal.SIGTERM]
    for number in hidden:
        signal.signal(number, signal.SIG_IGN)  # the parent, which gets it too, ends the work in order
    signal.pthread_sigmask(signal.SIG_UNBLOCK, hidden)
    output.protect()
    os.dup2(2, 1)  # standard output has results alone, and not what code of a user's own prints
    use_threads(threads)  # imports torch, which may bind this thread to a core
    unbind()
    raise_malloc_thresholds()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def share(done: float) -> None:
        with suppress(OSError):  # the parent is gone, which `_end_with_parent` sees to
            if select.select([], [pipe], [], 0)[1]:  # else it is slow: work does not wait to be shown
                pipe.send_bytes(pickle.dumps(("share", done)))

    try:
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes(), share))
    except (EOFError, OSError):  # the parent has closed the pipe, or is gone
        return
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _answer(task: bytes, share: Callable[[float], None]) -> bytes:
    """The result, or the error that the work should have returned as one."""
    try:
        work, item = pickle.loads(task)
        return pickle.dumps(("result", work(item, share)))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # of this process
        try:
            content = pickle.dumps(("error", error))
            pickle.loads(content)  # some can be written and not read
        except Exception:
            content = pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}")))
        return content


def _end_with_parent() -> None:
    """Interrupt this worker when its parent process dies."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORDERLY_SECONDS)
    os._exit(1)
