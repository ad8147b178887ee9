"""Many runs, several at a time: one process a core, one thread a process, and none stops the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bnrepro import train
from bnrepro.config import UserError, run_dir
from bnrepro.parallel import Report, map_all
from bnrepro.schema import Config, Device


@dataclass(frozen=True)
class Outcome:
    """What became of one run of a sweep."""

    config: Config
    path: Path
    error: str | None = None
    """Why it failed; None if it finished."""
    by_user: bool = False
    """Whether the error is one that the user can mend."""


def default_jobs(cfg: Config) -> int:
    """Runs at a time: one a core on the CPU, one on a GPU."""
    if train.resolve(cfg).device is Device.cuda:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    configs: Sequence[Config], jobs: int, *, force: bool = False, report: Report | None = None
) -> list[Outcome]:
    """Run ``configs``, ``jobs`` at a time, and return their outcomes in the same order.

    What is finished is not run again. A run that fails, or whose process is killed, leaves the others alone.
    Ctrl-C interrupts the runs under way, which can go on later, and is raised again.

    Args:
        configs: the runs.
        jobs: processes. With 1, runs happen in this process, with all of torch's threads.
        force: start each run over.
        report: told of progress.
    """
    return map_all(partial(_attempt, force=force), [train.resolve(cfg) for cfg in configs], jobs, _lost, report)


def _lost(cfg: Config) -> Outcome:
    return Outcome(cfg, run_dir(cfg), "its process was killed (out of memory?)")


def _attempt(cfg: Config, share: Callable[[float], None], *, force: bool) -> Outcome:
    path = run_dir(cfg)
    try:
        train.run(cfg, force=force, report=lambda p: share(p.step / p.steps))
    except UserError as error:
        return Outcome(cfg, path, str(error), by_user=True)
    except Exception as error:  # whatever it is, the other runs go on, and it is told at the end
        return Outcome(cfg, path, f"{type(error).__name__}: {error}")
    return Outcome(cfg, path)
