"""The global random generators, which code of a user's own may draw from: torch's, Python's and NumPy's."""

from __future__ import annotations

# ruff: noqa: NPY002  NumPy's global generator is the one that is meant
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed all of them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def states(device: torch.device) -> dict[str, Any]:
    """Their states, and that of ``device`` if it is a GPU, as tensors and primitives."""
    version, numbers, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()
    found = {
        "generator": torch.get_rng_state(),
        "python_generator": [version, torch.tensor(numbers), gauss],
        "numpy_generator": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }
    return found | ({"cuda_generator": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Go on from `states`; those that ``state`` lacks, as one of an earlier version does, are left as they are."""
    torch.set_rng_state(state["generator"])
    if "python_generator" in state:
        version, numbers, gauss = state["python_generator"]
        random.setstate((version, tuple(numbers.tolist()), gauss))
    if "numpy_generator" in state:
        keys, *rest = state["numpy_generator"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    if "cuda_generator" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_generator"], device)


@contextmanager
def forked(devices: Sequence[torch.device] = (), seed: int | None = None) -> Iterator[None]:
    """Within it, they may be drawn from, seeded by ``seed`` where it is given; after it they are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                seed_all(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
