"""Number of cores available to this process: CPU affinity, cgroup quotas, environment variables.

The rules are those of loky's ``cpu_count``. This module is imported with the package, before torch: where OMP_PROC_BIND
is set, OpenMP binds the thread that loads it to one place, and after that the process looks as if it had one core.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

BOUND = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
"""The CPUs that this process was started on; None where the system does not say."""
THREAD_LIMIT = "OMP_THREAD_LIMIT"
VARIABLES = ("PYTHON_CPU_COUNT", "LOKY_MAX_CPU_COUNT", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", THREAD_LIMIT)
"""Environment variables that limit the cores. Slurm's apply only within a job."""


def cores() -> int:
    """The cores that this process may use, at least one."""
    limits = [len(BOUND) if BOUND else os.cpu_count() or 1, *granted(Path("/")), *allowed(os.environ)]
    return max(1, min(limits))


def granted(root: Path) -> Iterator[int]:
    """CPU quotas of this process's cgroups and their ancestors, in CPUs, rounded up.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    mount = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number, controllers) == ("0", ""):  # version 2
            for folder in (*_upwards(mount, path), *_upwards(mount / "unified", path)):
                quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
                yield from _cpus(quota, period or "100000")
        elif "cpu" in controllers.split(","):
            for name in {controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu"}:
                for folder in _upwards(mount / name, path):
                    quota, period = (_text(folder / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period"))
                    yield from _cpus(quota, period)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a cgroup and its ancestors. In a container, the path may refer to the host and not exist."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _cpus(quota: str, period: str) -> Iterator[int]:
    if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:  # not "max", not -1
        yield math.ceil(int(quota) / int(period))


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def allowed(environment: Mapping[str, str]) -> Iterator[int]:
    """Limits set by environment variables."""
    for name in VARIABLES:
        value = environment.get(name, "").strip()
        if value.isdecimal() and int(value) > 0 and ("SLURM" not in name or "SLURM_JOB_ID" in environment):
            yield int(value)


def use_threads(wanted: int | None = None) -> None:
    """Set torch's threads to ``wanted`` (None: as many as it has), but to no more than OMP_THREAD_LIMIT.

    OpenMP starts none beyond that, and torch's backward pass would wait for them for ever.
    """
    import torch

    from bnrepro.system import output

    threads = wanted or torch.get_num_threads()
    limit = min([threads, *allowed({THREAD_LIMIT: os.environ.get(THREAD_LIMIT, "")})])
    if limit < threads and (wanted or "OMP_NUM_THREADS" in os.environ):
        output.tell(
            f"{THREAD_LIMIT}={limit} allows fewer than {threads} threads: {limit} {'is' if limit == 1 else 'are'} used."
        )
    if wanted or limit < threads:
        torch.set_num_threads(limit)


def unbind() -> None:
    """Let this thread, and the processes that it starts, use all of this process's cores again.

    OMP_PROC_BIND would put the first thread of every one of them on the same core.
    """
    if BOUND and "OMP_PROC_BIND" in os.environ and os.sched_getaffinity(0) < BOUND:
        os.sched_setaffinity(0, BOUND)


class CrowdedCores:
    """Whether other processes have kept this one's cores busy since it was made. Linux; elsewhere nothing is known.

    Threads of one computation wait for each other many times a step, and each time for the one whose core another
    process has: on two cores, beside a busy loop, a step with two threads took 3 times as long, and with one thread
    1.6 times; beside another torch process with two threads, 4 times and more.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.started = self._now()

    def by_others(self) -> float:
        """Cores that others had, on average."""
        now = self._now()
        if self.started is None or now is None or now[0] <= self.started[0]:
            return 0.0
        seconds, all_busy, own = (end - start for end, start in zip(now, self.started, strict=True))
        return max(0.0, (all_busy - own) / seconds)

    def _now(self) -> tuple[float, float, float] | None:
        """(time, seconds that the cores have been busy, those of this process and its children)."""
        if BOUND is None:
            return None
        found, ticks = 0, 0
        for line in _text(self.root / "proc" / "stat").splitlines():
            name, *counts = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in BOUND:
                user, nice, system = map(int, counts[:3])
                ticks, found = ticks + user + nice + system, found + 1
        if found != len(BOUND):
            return None
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


def crowded(others: float, threads: int) -> str | None:
    """What to say to somebody who computes with ``threads`` threads while ``others`` cores are taken; None: nothing."""
    available = cores()
    if threads < 2 or threads + others < available + 0.5:
        return None
    fewer = max(1, int(available - others + 0.25))
    return (
        f"Other processes keep about {others:.0f} of the {available} cores busy, and {threads} threads wait for each "
        f"other at every step. With OMP_NUM_THREADS={min(fewer, threads - 1)} training would be faster."
    )
