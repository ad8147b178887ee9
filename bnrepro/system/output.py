"""Standard output and standard error are only displays: errors on them never affect the work.

`protect` is called once at the start of a process. From then on

* what an encoding lacks is written as an escape;
* a stream that was closed, whose reader or terminal is gone, or whose disk is full, takes what is written and drops it;
* a stream that does not block is waited for;
* once a signal has asked for an end, a stream that takes nothing (a stopped terminal, a reader that hangs) is not.

A reader that is gone (``bnrepro runs | head``) is no fault. Standard output that could not be written for another
reason, such as a full disk, is reported at the end, and the exit code is 1: see `finish`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from bnrepro.errors import first_line
from bnrepro.system import signals

# Nobody reads: not a fault of what is written.
READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)
CHUNK = getattr(select, "PIPE_BUF", 512)  # bytes that a pipe takes at once when it says that it takes any
PATIENCE = 0.5  # seconds that a stream has to take a chunk after a signal

_told: set[str] = set()
_replaced: list[Any] = []  # streams whose end would close their descriptors


class Shield(io.RawIOBase):
    """A raw stream that accepts every write and remembers the first error other than a closed reader."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.gone = False
        self.error: OSError | None = None

    def fileno(self) -> int:
        """The descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with suppress(OSError):
            return os.isatty(self.descriptor)
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """All of ``data``, or nothing more once an error has come."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self.gone:
                if self._takes():
                    with suppress(BlockingIOError):
                        rest = rest[os.write(self.descriptor, rest[:CHUNK]) :]
                elif signals.received:
                    break
        except OSError as error:
            self.gone = True
            self.error = None if error.errno in READER_GONE else error
        return size

    def _takes(self) -> bool:
        """Whether the descriptor can be written to, or an error be got from it; waits for a moment."""
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        return bool(poll.poll(1000 * PATIENCE))


class _Stream(io.TextIOWrapper):
    """A text stream that others cannot close, as code of a user's own may try to."""

    def close(self) -> None:
        """Write what is held back."""
        with suppress(OSError, ValueError):
            self.flush()


def counted(number: float, thing: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def shown(path: str | Path) -> str:
    """A path as an argument that can be pasted: quoted for the shell, and neither an option nor a home folder."""
    return quote(f"./{path}" if str(path).startswith(("-", "~")) else str(path))


def protect() -> None:
    """Ensure that printing never raises in this process. Replaced streams are left unchanged."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; the next file that is opened would get its number, and what is printed
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or (stream and not isinstance(stream, io.TextIOWrapper)):
            continue
        safe = _shielded(stream, descriptor)
        setattr(sys, name, safe)
        setattr(sys, f"__{name}__", safe)


def _shielded(stream: io.TextIOWrapper | None, descriptor: int) -> TextIO:
    shield = Shield(descriptor)
    if stream is None:
        return _Stream(io.BufferedWriter(shield), "utf-8", "backslashreplace", line_buffering=True)
    with suppress(OSError, ValueError):
        stream.flush()
    unbuffered = stream.write_through
    buffer: Any = shield if unbuffered else io.BufferedWriter(shield)
    _replaced.append(stream)
    return _Stream(
        buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )


def flush() -> None:
    """Write what is held back, as far as it can be written."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def finish(stored: bool = False) -> bool:
    """Flush, and return whether standard output was written in full (or its reader closed it).

    Args:
        stored: whether what was to be printed is also in files.
    """
    flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", getattr(sys.stdout, "buffer", None))
    error = raw.error if isinstance(raw, Shield) else None
    if error:
        tell(
            f"Error: standard output could not be written ({error.strerror}). "
            f"{'Results are stored; run the command again to see them' if stored else 'Write it elsewhere'}."
        )
    return error is None


class _Line(logging.Handler):
    """A plain line on standard error, which never raises, in a program that does not `protect` its streams either."""

    def emit(self, record: logging.LogRecord) -> None:
        """See the class."""
        stream, text = sys.stderr, record.getMessage()
        if stream is None:  # print() would take standard output
            return
        with suppress(OSError, ValueError):
            try:
                print(text, file=stream, flush=True)
            except UnicodeError:
                print(text.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)


logger = logging.getLogger("bnrepro")
"""All that the library tells goes through it. A program sets its level, or replaces its handler by its own."""
if not logger.handlers:
    logger.addHandler(_Line())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def tell(text: str, level: int = logging.WARNING) -> None:
    """A log record of ``bnrepro``: by default, a line on standard error."""
    logger.log(level, "%s", text)


@contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Context for displays (curves, figures): an error is reported once per ``what`` and then ignored."""
    try:
        yield
    except Exception as error:
        if signals.cut:
            raise KeyboardInterrupt from error
        if what not in _told:
            _told.add(what)
            why = f"{type(error).__name__}: {first_line(error)}".rstrip(".: ")
            tell(f"{what} cannot be shown ({why}). Results are not affected.")
