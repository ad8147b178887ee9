"""Graceful termination: the signals of schedulers and users become one kind of exception.

SIGINT (Ctrl-C), SIGTERM (a scheduler) and SIGHUP (the terminal is gone) are alike here. One that is ignored when a
process starts, as SIGHUP under nohup and SIGINT in a shell's background, stays ignored.
"""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
IMPORT_SECONDS = 5.0  # that an import which a signal meets has to end
REMIND_SECONDS = 0.1  # between reminders of a signal

received: int | None = None
"""The number of the last such signal, for the exit code; None: there was none."""
cut = False
"""A signal interrupted something that takes signals. What that was at, such as an import, may then raise any error."""


@dataclass
class _Signal:
    """One that came, until the outermost context that takes signals has ended."""

    number: int
    import_end: float
    """When an import that is under way is broken off, by `time.monotonic`."""


_pending: _Signal | None = None
_reminder = False  # what comes next is a reminder, and no signal of its own
_depth = 0  # of the contexts that take signals
_lock = _thread.allocate_lock()  # no reminder is sent once the handlers go back to what they were


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end what happens within as Ctrl-C does. Signals reach the main thread only.

    Libraries swallow exceptions: torch's import ends well without NumPy, and what is raised while an object is deleted
    goes to `sys.unraisablehook`, which would print it. So a `KeyboardInterrupt` that is on its way no more is raised
    again, here at the latest, and an import is let end first, unless that takes long or a second signal comes.
    """

    def interrupt(frame: FrameType | None, _again: bool) -> None:
        if cut or not _importing(frame) or (_pending and time.monotonic() >= _pending.import_end):
            _interrupt()

    printed = sys.unraisablehook

    def others(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            printed(unraisable)

    sys.unraisablehook = others
    try:
        with _handled(interrupt):
            yield
    finally:
        sys.unraisablehook = printed


class Stop:
    """State of a graceful stop; created by `stop_between_steps`."""

    asked = False
    """A signal came: the loop is to end after the step that it is at."""

    def __init__(self, ending: bool = False) -> None:
        self.ending = ending
        """Set by the loop while it writes its end down (a checkpoint, a summary): signals do not interrupt that."""


@contextmanager
def stop_between_steps(ending: bool = False) -> Iterator[Stop]:
    """Signals only set ``asked``, for a loop to end where its state is whole; a second one interrupts.

    While ``ending`` is set, none does: a sweep that is stopped can send two. In another thread than the main one, where
    signals do not arrive, nothing sets it.

    Raises:
        KeyboardInterrupt: an end was asked for and the loop did not see it, as after its last look. Without this, the
            signal would be lost, and a sweep would begin its next run.
    """
    stop = Stop(ending)

    def ask(_frame: FrameType | None, again: bool) -> None:
        if (cut or (stop.asked and not again)) and not stop.ending:
            _interrupt()
        stop.asked = True

    with _handled(ask):
        yield stop


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
def _handled(handler: Callable[[FrameType | None, bool], None]) -> Iterator[None]:
    """``handler`` takes the signals that are not ignored, and reminders: it is told which of the two it is."""
    global _pending, _reminder, _depth, cut
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def take(number: int, frame: FrameType | None) -> None:
        global received, _reminder, _pending
        again, _reminder = _reminder, False
        if again and (_pending is None or _on_its_way()):
            return
        if not again:
            received = number
            if _pending:
                _pending.import_end = 0.0
            else:
                _pending = _Signal(number, time.monotonic() + IMPORT_SECONDS)
                try:
                    _thread.start_new_thread(_remind, (_pending,))  # not `threading`, whose locks may be held here
                except RuntimeError:  # the system has no thread left
                    _pending.import_end = 0.0
        handler(frame, again)

    before = {number: signal.getsignal(number) for number in STOPPING}
    taken = [number for number, old in before.items() if old is not signal.SIG_IGN]
    if _depth == 0:
        _reminder = False
    _depth += 1
    try:
        for number in taken:
            signal.signal(number, take)
        if _pending and not _on_its_way():
            handler(None, True)
        yield
        if _pending and not _on_its_way():
            raise KeyboardInterrupt
    except Exception as error:  # what was cut off, such as an import, can end in any
        if cut:
            raise KeyboardInterrupt from error
        raise
    finally:
        _depth -= 1
        if _depth == 0:
            with _lock:
                _pending, cut = None, False
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)  # None: one that C code had set


def _interrupt() -> NoReturn:
    global cut
    cut = True
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is under way where ``frame`` is run."""
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _on_its_way() -> bool:
    """Whether a `KeyboardInterrupt` is being handled, as by a ``finally``."""
    error = sys.exception()
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _remind(of: _Signal) -> None:
    """Send reminders of a signal for as long as it is pending."""
    global _reminder
    main = threading.main_thread().ident
    assert main is not None
    while True:
        time.sleep(REMIND_SECONDS)
        with _lock:
            if _pending is not of:
                return
            _reminder = True
            signal.pthread_kill(main, of.number) if hasattr(signal, "pthread_kill") else _thread.interrupt_main()
