"""A run as a job of a cluster, and the ticket that says which job has it.

The ticket, ``seed<k>-<hash>.job``, lies beside the run's directory. It is written before the job is submitted and goes
when the run has finished, so that whoever asks for the run later finds the job or the reason why it failed. This module
is read at a job's start, before signals are taken care of: torch, which takes seconds, is imported after that.
"""

from __future__ import annotations

import json
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

from bnrepro.config import unreadable
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.runs import record
from bnrepro.system.signals import terminate_as_interrupt

_numbers: dict[Path, str] = {}


def number_of(folder: Path) -> str | None:
    """Slurm's number of a submission, from the name that submitit gives its script as soon as Slurm has answered."""
    if folder not in _numbers:
        for script in folder.glob("[0-9]*_submission.sh"):
            _numbers[folder] = script.name.removesuffix("_submission.sh")
    return _numbers.get(folder)


@dataclass(frozen=True)
class Ticket:
    """Which job has a run, and why it failed: JSON beside the run's directory."""

    folder: str
    """Of the submission: scripts, logs."""
    task: int
    """The run's place in the array."""
    tasks: int
    """Length of the array."""
    force: bool = False
    """Whether the run is still to be started over. A job that is queued again must not do that twice."""
    error: str | None = None
    """Why there is no result."""
    by_user: bool = False
    """Whether the error is one that the user can mend."""

    @staticmethod
    def file(path: Path) -> Path:
        """Where the ticket of the run in directory ``path`` lies."""
        return path.with_name(f"{path.name}.job")

    @classmethod
    def read(cls, path: Path) -> Ticket | None:
        """The ticket of the run in directory ``path``; None if it has none that makes sense.

        Raises:
            UserError: it cannot be read just now, so that nobody knows whether a job has the run.
        """
        try:
            ticket = cls(**json.loads(cls.file(path).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None
        except (OSError, MemoryError) as error:
            raise unreadable(cls.file(path), error) from error
        whole = isinstance(ticket.folder, str) and isinstance(ticket.task, int) and isinstance(ticket.tasks, int)
        return ticket if whole else None

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        record.write_whole(self.file(path), json.dumps(asdict(self), indent=2) + "\n")

    @property
    def place(self) -> tuple[str, int]:
        """What tells two tickets of a run apart."""
        return self.folder, self.task

    @property
    def job(self) -> str | None:
        """Slurm's number of the job (12_3 in an array), once there is one."""
        number = number_of(Path(self.folder))
        return f"{number}_{self.task}" if number and self.tasks > 1 else number

    @property
    def log(self) -> Path:
        """What the job wrote to standard error, all its tries one after the other."""
        return Path(self.folder) / f"{self.job}_0_log.err"


@dataclass(frozen=True)
class Job:
    """What a job does: one run, in the directory that local runs have too.

    Before its time is up, and as a rule before it is preempted, Slurm sends SIGUSR2. The run then ends as for SIGTERM,
    with a checkpoint, and only after that the job is queued again. On SIGTERM alone (scancel; preemption on clusters
    that queue again by themselves) the run ends in the same way, and what comes next is Slurm's business.
    """

    cfg: Config
    path: Path
    threads: int
    ticket: Ticket

    def __call__(self) -> None:
        """Train, and note on the ticket what went wrong."""
        from submitit import JobEnvironment
        from submitit.core.utils import UncompletedJobError

        number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        queue_again = cast(Callable[[int, FrameType | None], None], signal.getsignal(number))  # submitit's
        asked = False

        def stop(_signal: int, _frame: FrameType | None) -> None:
            nonlocal asked
            if not asked:
                asked = True
                signal.raise_signal(signal.SIGTERM)

        try:
            try:
                with terminate_as_interrupt():
                    signal.signal(number, stop)
                    self._train()
            except KeyboardInterrupt:
                if not asked:
                    raise SystemExit("Ended by SIGTERM.") from None
                try:
                    queue_again(number, None)  # does not return
                except UncompletedJobError as error:
                    raise UserError(
                        "Its job ran out of time more often than launcher.timeouts allows. Run the command "
                        "again with a longer launcher.time; it continues where it stopped."
                    ) from error
        except UserError as error:
            self._note(error=str(error), by_user=True)
        except Exception as error:  # whatever it is, it is told to whoever waits
            traceback.print_exc()
            self._note(error=f"{type(error).__name__}: {error}")

    def checkpoint(self) -> Any:
        """What submitit queues: the same again, since the run's own checkpoint says where it goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _train(self) -> None:
        from bnrepro.launch import sweep
        from bnrepro.system.cores import use_threads
        from bnrepro.system.memory import raise_malloc_thresholds

        use_threads(self.threads)
        raise_malloc_thresholds()
        ticket = Ticket.read(self.path)
        if ticket and ticket.place != self.ticket.place:
            return  # taken for lost, and submitted again as another job
        force = ticket is not None and ticket.force

        def begun(_share: float) -> None:
            nonlocal force
            if force:
                force = False
                self._note(force=False)

        outcome = sweep.attempt(self.cfg, begun, force=force)
        if outcome.error:
            self._note(error=outcome.error, by_user=outcome.by_user)
        elif (ticket := Ticket.read(self.path)) and ticket.place == self.ticket.place:
            Ticket.file(self.path).unlink(missing_ok=True)

    def _note(self, **changes: Any) -> None:
        ticket = Ticket.read(self.path)
        if ticket and ticket.place == self.ticket.place:
            replace(ticket, **changes).write(self.path)
