"""How the C library hands memory out, for processes that train."""

from __future__ import annotations

import ctypes

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
