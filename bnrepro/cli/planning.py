"""What `--dry-run` tells: which runs are stored, which would be made, and how long those would take."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bnrepro.claims.estimating import Costs, Estimate, arm_of
from bnrepro.cli.launch import Launcher, data_there
from bnrepro.cli.saying import answer, say
from bnrepro.config import group_dir, run_dir
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.runs.record import find_runs, run_of
from bnrepro.system.output import counted, shown

GPU = 10e12  # operations a second, in small convolutions: a fifth to a hundredth of what data sheets say


def show_runs(grid: Sequence[Config], making: Launcher, force: bool) -> None:
    """Print each run of ``grid`` with its status, then how many would be made, and how long that would take.

    Estimated from all finished runs of the same datasets and networks.

    Raises:
        UserError: one of them is damaged, or cannot be trained.
    """
    wanted = {run_dir(cfg) for cfg in making.check(grid, force, there=data_there)}  # nothing is downloaded for a list
    rows = []
    for run in map(run_of, grid):
        status = run.status if run.started else "to run"
        again = " (to run again)" if run.path in wanted and run.finished else ""
        say(f"{status:<12} {shown(run.path)}{again}")
        rows.append({"path": run.path, "status": status})
    missing = [cfg for cfg in grid if run_dir(cfg) in wanted]
    time = f"; {time_of(_costs(missing).estimate(map(arm_of, missing)), making.processes(grid))}" if missing else ""
    say(f"{counted(len(grid), 'run')}, {len(missing)} still to run{time}.")
    answer([{**row, "to_run": row["path"] in wanted} for row in rows])


def _costs(configs: Sequence[Config]) -> Costs:
    """What the stored runs of the datasets and networks of ``configs`` took."""
    costs = Costs()
    folders = set(map(group_dir, configs))
    for root in {Path(cfg.root) for cfg in configs}:
        for run in find_runs(root):
            if run.path.parent.parent in folders:
                with suppress(UserError):  # a damaged one of another command costs no estimate
                    costs.add_run(run)
    return costs


def time_of(estimate: Estimate, jobs: int = 1) -> str:
    """How long it takes, as far as that is known: what is like something that was run, and else by arithmetic."""
    parts = [f"about {duration(estimate.seconds / jobs)}"] if estimate.seconds else []
    if estimate.operations:
        hours = duration(estimate.operations / GPU)
        parts.append(
            f"{estimate.operations:.1e} operations in runs unlike any stored one, about {hours} on a GPU at "
            f"{GPU / 1e12:.0f} TFLOP/s"
        )
    if estimate.unknown and parts:
        parts.append(f"excluding {estimate.unknown} of unknown duration")
    if estimate.unknown and not parts:
        return "duration unknown, since nothing similar has been run"
    return ", ".join(parts) or "no time"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
