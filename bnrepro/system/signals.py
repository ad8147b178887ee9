"""Graceful termination: the signals of schedulers and users become one kind of exception.

SIGINT (Ctrl-C), SIGTERM (a scheduler) and SIGHUP (the terminal is gone) are alike here. One that is ignored when a
process starts, as SIGHUP under nohup and SIGINT in a shell's background, stays ignored.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

received: int | None = None
"""The number of the last such signal, for the exit code; None: there was none."""


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end what happens within as Ctrl-C does. Signals reach the main thread only."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        global received
        received = number
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


class Stop:
    """State of a graceful stop; created by `stop_between_steps`."""

    asked = False
    """A signal came: the loop is to end after the step that it is at."""
    ending = False
    """Set by the loop while it writes its end down (a checkpoint, a summary): further signals do not interrupt that."""
    cut = False
    """A second signal interrupted the step itself. What it was at, such as an import, may then raise any error."""


@contextmanager
def stop_between_steps() -> Iterator[Stop]:
    """Signals only set ``asked``, for a loop to end where its state is whole; a second one interrupts.

    Once ``ending`` is set, none does: a sweep that is stopped can send two. In another thread than the main one, where
    signals do not arrive, nothing sets it.

    Raises:
        KeyboardInterrupt: an end was asked for and the loop did not see it, as after its last look. Without this, the
            signal would be lost, and a sweep would begin its next run.
    """
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        global received
        received = number
        if stop.asked and not stop.ending:
            stop.cut = True
            raise KeyboardInterrupt
        stop.asked = True

    with _handled(ask):
        yield stop
    if stop.asked:
        raise KeyboardInterrupt


def output_of(command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> bytes:
    """What ``command`` prints. It is killed with its children after ``limit`` seconds, and where this is interrupted.

    Raises:
        subprocess.SubprocessError: it fails, or takes longer.
        OSError: it cannot be started.
    """
    pipe = subprocess.PIPE
    alone: dict[str, Any] = {"process_group": 0} if hasattr(os, "killpg") else {}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment, **alone
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except BaseException:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if alone else process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return out


def ignore() -> None:
    """Ignore these signals for the rest of the process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """``handler`` takes the signals that are not ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    taken = [number for number, old in before.items() if old is not signal.SIG_IGN]
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)  # None: one that C code had set
