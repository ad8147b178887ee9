"""What the benchmarks share: a table, times taken in turn, and processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from bnrepro.runs import provenance
from bnrepro.system.memory import raise_malloc_thresholds

T = TypeVar("T")
WARM_UP = 3  # rounds that are not counted


@dataclass(frozen=True)
class Table:
    """A table of measurements."""

    name: str
    """Its file's, without .csv."""
    title: str
    """One sentence: what is measured, how often, in what unit."""
    rows: list[dict[str, Any]]
    """All with the same keys, which are the columns."""
    notes: list[str] = field(default_factory=list)


def in_turn(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    of: Callable[[list[float]], float] = median,
) -> dict[str, float]:
    """Median milliseconds of each step (or another ``of`` them) over ``repeats`` rounds, in which each has its turn.

    What else the machine does, and how warm it is, so falls on all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + WARM_UP):
        for name, step in steps.items():
            took = seconds(step, device)
            if round_ >= WARM_UP:
                times[name].append(1e3 * took)
    return {name: of(taken) for name, taken in times.items()}


def seconds(step: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock time of one call, the GPU's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in a fresh process, with this one's number of threads and a training run's allocator."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_settle, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(function, *arguments).result()


def _settle(threads: int) -> None:
    torch.set_num_threads(threads)
    raise_malloc_thresholds()


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has, or has had at most since `forget_peak`. Linux."""
    with Path("/proc/self/status").open(encoding="ascii") as stream:
        for line in stream:
            if line.startswith("VmHWM:" if peak else "VmRSS:"):
                return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status says nothing of memory")


def forget_peak() -> None:
    """Start `resident`'s peak anew. Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def machine(device: str) -> str:
    """The machine in one line, for the tables' titles."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{provenance.machine()}, {torch.get_num_threads()} threads{load}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
