"""How much memory there is for processes that train, and how the C library hands it out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

WORKER = 5 * 2**28
"""Bytes that a worker process takes: torch alone is half a GiB, and CIFAR-10 with a small network 1.1."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)'s parameters, from malloc.h


def raise_malloc_thresholds() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones; False where there is no glibc.

    By default every tensor of more than some megabytes is mapped anew and its pages are cleared one fault at a time,
    which takes longer than a norm's forward and backward together.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; TypeError: Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


def workers_that_fit(root: Path = Path("/")) -> int | None:
    """How many worker processes the available memory holds, at least one; None where the system does not say.

    The limits of this process's cgroups and their ancestors count, less what is used of them.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    available = free(root)
    return None if available is None else max(1, available // WORKER)


def free(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have; None where the system does not say."""
    return min([*_available(root), *_left(root)], default=None)


def _available(root: Path) -> Iterator[int]:
    for line in _text(root / "proc" / "meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable" and (number := amount.split()[0]).isdecimal():
            yield 1024 * int(number)


def _left(root: Path) -> Iterator[int]:
    """What the limits of cgroups leave, in bytes."""
    mount = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        version_2 = (number, controllers) == ("0", "")
        names = ("memory.max", "memory.current") if version_2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not version_2 and "memory" not in controllers.split(","):
            continue
        for length in range(len(parts), -1, -1):
            folder = (mount if version_2 else mount / "memory").joinpath(*parts[:length])
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdecimal() and int(limit) < 2**62:  # version 1 writes no limit as nearly 2^63
                yield max(0, int(limit) - (int(used) if used.isdecimal() else 0))


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
