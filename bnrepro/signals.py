"""Ending in order: what a scheduler or a user sends to stop a run becomes one kind of exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends what happens within as Ctrl-C does. Signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """Whether somebody asked for an end, and whether it is being written down, when no signal interrupts any more."""

    asked = False
    ending = False


@contextmanager
def stop_between_steps() -> Iterator[Stop]:
    """SIGINT and SIGTERM only set ``asked``, for a loop to end where its state is whole; a second one interrupts.

    Once ``ending`` is set, none does: a sweep that is stopped can send two. In another thread than the main one, where
    signals do not arrive, nothing sets it. A SIGINT that is ignored, as in a shell's background and in the processes of
    a sweep, stays so.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if stop.asked and not stop.ending:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in taken:
            signal.signal(number, before[number])
