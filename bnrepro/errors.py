"""Error messages: what is wrong, where, and what to do. Imports nothing heavy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

__all__ = ["UserError"]

_ELSEWHERE = "or choose another folder"
_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): f"Make room there, {_ELSEWHERE}.",
    (errno.EACCES, errno.EPERM): f"Give yourself the permission (`ls -ld` shows who has it), {_ELSEWHERE}.",
    (errno.EROFS,): "Choose a folder that can be written to.",
    (errno.ENOENT, errno.ENODEV, errno.ENXIO): "Check the path, and that files can be created there; "
    "else choose another.",
    (errno.ENOTDIR,): "A part of this path is a file, but must be a folder: choose another path.",
    (errno.EISDIR,): "This is a folder, but a file is needed: move it away, or choose another path.",
    (errno.EEXIST, errno.ENOTEMPTY): "Something else is there: move it away, or choose another path.",
    (errno.ELOOP,): "Links lead in a circle there: remove them, or choose another path.",
    (errno.ENAMETOOLONG,): "Choose a shorter path.",
    (errno.EFBIG,): "Files may not become this large: raise the limit (`ulimit -f`), or choose another file system.",
    (errno.EMFILE, errno.ENFILE): "Too many files are open: raise the limit (`ulimit -n`), or run fewer processes.",
    (
        errno.EAGAIN,
        errno.ENOMEM,
    ): "Too many processes are running, or too little memory is left: stop some, or run fewer.",
    (errno.EBUSY, errno.ETXTBSY): "Another process is using it: wait until that has ended.",
    (
        errno.ENOLCK,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
    ): "This file system does not support the operation: choose a folder on another.",
    (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN): "The disk or the network file system "
    "does not answer as it should: check it, and try again.",
}
REMEDIES = {number: remedy for numbers, remedy in _REMEDIES.items() for number in numbers}


class UserError(Exception):
    """Something the user can put right. The message is what is wrong, where, and what to do; the exit code is 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean ...?`` with the entries of ``known`` closest to ``word``; empty if none is close.

    Of dotted names the last part decides (``lr``: ``optimizer.lr``), and what stands before it only between several.
    """
    ends: dict[str, list[str]] = {}
    for name in known:
        ends.setdefault(_plain(name.rpartition(".")[2]), []).append(name)
    before, _, end = _plain(word).rpartition(".")
    near = [end] if end in ends else get_close_matches(end, ends, 1, 0.7)
    near = near or [each for each in ends if len(end) > 2 and each.startswith(end)][:1]
    if len(end) > 1:  # learning_rate: lr
        near = near or [each for each in ends if _initials(each) == end or _initials(end) == each][:1]
    names = ends[near[0]] if near else []
    names = [name for name in names if _plain(name.rpartition(".")[0]) == before] or names
    return f" Did you mean {' or '.join(names[:4])}?" if names else ""


def known_are(word: str, known: Iterable[str]) -> str:
    """`did_you_mean`, and `` Available: ...`` with all of ``known``."""
    names = list(known)
    return f"{did_you_mean(word, names)} Available: {', '.join(names)}."


def either(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _initials(word: str) -> str:
    return "".join(part[:1] for part in word.split("_"))


def reason(error: BaseException) -> str:
    """The message of `sentence`, or the type and first line of an unexpected error."""
    return sentence(error) or f"{type(error).__name__}: {first_line(error)}"


LESS_MEMORY = "Use a smaller batch_size, model.width or dataset, or fewer processes."


def sentence(error: BaseException, less_memory: str = LESS_MEMORY) -> str | None:
    """The message for an error caused by the user or the machine; None for an unexpected one.

    Args:
        error: the error.
        less_memory: what to do where memory ran out.
    """
    if isinstance(error, UserError):
        return str(error)
    for each in _causes(error):
        if out_of_memory(each):
            return f"Memory ran out. {less_memory}"
        if isinstance(each, OSError):
            return _system(each)
        if isinstance(each, ImportError) and ".so" in str(each):
            return (
                f"A library cannot be loaded ({first_line(each)}). If memory is limited (`ulimit -v`), raise it, "
                "else install its package again."
            )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` reports that memory ran out. torch's CPU allocator raises a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's for GPUs; torch is not imported here
        or (
            isinstance(error, RuntimeError)
            and re.search("alloc|out of memory|storage size", str(error).lower()) is not None
        )
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and its causes; torch and zipfile raise their own errors while handling an OSError."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        yield each
        seen.append(each)
        each = each.__cause__ or (each.__context__ if isinstance(each, RuntimeError) else None)


def _system(error: OSError) -> str:
    """The message for an OSError."""
    if isinstance(error, FileNotFoundError) and folder_is_gone():
        return FOLDER_GONE
    # Two names, where something was renamed: what is wrong may be with either.
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
    what = error.strerror or first_line(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "Check this, and try again.")
    where = f"{' -> '.join(names)}: " if names else ""
    return f"{where}{what.rstrip('.')}. {remedy}"


FOLDER_GONE = "The current folder has been deleted. Change to another one (cd) and try again."


def no_folder(path: Path) -> str:
    """What ``path`` is, where a folder was expected."""
    if path.is_symlink():
        return "is a link that leads nowhere, or to itself"
    return "is not a folder" if os.path.lexists(path) else "does not exist"


def closed_umask() -> str | None:
    """The message for a umask that makes files which their own owner cannot use; None for any other."""
    mask = os.umask(0o077)
    os.umask(mask)
    wrong = (
        f"The umask {mask:04o} denies you access to your own files and folders. Set another and try again: umask 022"
    )
    return wrong if mask & 0o700 else None


def folder_is_gone() -> bool:
    """Whether the current folder has been deleted, or what leads to it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def in_brackets(error: BaseException) -> str:
    """What ``error`` says, for the brackets of a sentence: of an OSError where and what, without its number."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return first_line(error) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, truncated to 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""
