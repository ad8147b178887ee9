"""Where runs are made: in processes on this machine, or as jobs on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnrepro.cli.options import make_room
from bnrepro.cli.progress import SweepBar
from bnrepro.cli.saying import note
from bnrepro.config import run_dir
from bnrepro.config.schema import Config, Data, Source
from bnrepro.data import sources
from bnrepro.errors import UserError, known_are
from bnrepro.launch import slurm, sweep
from bnrepro.launch.options import Options, load_options
from bnrepro.launch.parallel import Report
from bnrepro.runs.record import run_of
from bnrepro.system.output import counted, shown, tell
from bnrepro.training import train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOCAL, SLURM = "local", "slurm"


@dataclass(frozen=True)
class Launcher:
    """Makes runs here, or on a cluster where ``options`` say what a job asks for."""

    options: Options | None = None
    jobs: int | None = None
    """Processes on this machine; None: one a core."""

    def resolve(self, cfg: Config) -> Config:
        """``cfg`` with the device that its run will have."""
        return slurm.resolve(cfg, self.options) if self.options else train.resolve(cfg)

    def processes(self, configs: Sequence[Config]) -> int:
        """How many of ``configs`` are run at a time."""
        if self.options:
            return self.options.parallelism
        return self.jobs or (sweep.default_jobs(configs[0]) if configs else 1)

    def run_all(
        self,
        configs: Sequence[Config],
        *,
        force: bool = False,
        report: Report | None = None,
        ended: Callable[[int, sweep.Outcome], None] | None = None,
        threads: int | None = None,
    ) -> list[sweep.Outcome]:
        """As `sweep.run_all`; a job has as many threads as CPUs."""
        if self.options:
            return slurm.run_all(configs, self.options, force=force, report=report, ended=ended, say=note)
        return sweep.run_all(configs, self.processes(configs), force=force, report=report, ended=ended, threads=threads)

    def check(
        self, configs: Sequence[Config], force: bool, there: Callable[[Data], bool] = lambda _: True
    ) -> list[Config]:
        """Those of ``configs`` that are still to be run.

        Args:
            configs: the runs.
            force: whether what is finished is run again.
            there: whether data may be read; without them its network is not tried.

        Raises:
            UserError: one of them cannot be trained.
        """
        missing = [cfg for cfg in configs if force or not run_of(cfg).finished]
        if not self.options:  # a cluster's login node may have no data
            train.rehearse(cfg for cfg in missing if there(cfg.data))
        return missing

    def show_all(self, configs: list[Config], force: bool) -> list[sweep.Outcome]:
        """`run_all`, shown as it goes; at the end, how many were found and made, and the reasons of those that failed.

        Raises:
            UserError: one of them cannot be trained, which is found out before the first one is.
        """
        missing = self.check(configs, force)
        make_room(Path(configs[0].root))
        with SweepBar([str(run_dir(cfg).relative_to(cfg.root)) for cfg in configs]) as bar:
            outcomes = self.run_all(configs, force=force, report=bar.update, ended=bar.ended)
        outcomes = [
            outcome if outcome.error else replace(outcome, error=sweep.gone(outcome.path)) for outcome in outcomes
        ]
        lost = len({outcome.path for outcome in outcomes if outcome.error})
        counts = {"found": len(configs) - len(missing), "made now": len(missing) - lost, "failed": lost}
        came = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        note(f"{counted(len(configs), 'run')}: {came}.")
        for outcome in outcomes:
            if outcome.error:
                tell(f"{shown(outcome.path)}: {outcome.error}")
        return outcomes


def data_there(data: Data) -> bool:
    """Whether ``data`` can be read without a download."""
    return data.source is Source.npz or sources.lookup(data.name).there(Path(data.root))


def take_launcher(name: str, arguments: Sequence[str] | None, jobs: int | None) -> tuple[Launcher, list[str]]:
    """The launcher called ``name``, with the ``launcher.key=value`` among ``arguments``, and the other arguments.

    Raises:
        UserError: no such launcher or option; an option of another launcher.
    """
    own = [argument for argument in arguments or [] if argument.startswith("launcher.")]
    rest = [argument for argument in arguments or [] if not argument.startswith("launcher.")]
    if name == LOCAL:
        if own:
            raise UserError(f"{own[0]}: this key is for Slurm alone. Add --launcher=slurm, or leave it out.")
        return Launcher(jobs=jobs), rest
    if name != SLURM:
        raise UserError(f"--launcher: there is no {name!r}.{known_are(name, (LOCAL, SLURM))}")
    if jobs is not None:
        raise UserError("--jobs is the number of processes on this machine. On Slurm, use launcher.parallelism=N.")
    return Launcher(load_options(own)), rest
