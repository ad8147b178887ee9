"""Many runs on a Slurm cluster: job arrays through submitit, and jobs that outlive whoever submitted them.

What a run came to is read from its directory and its ticket (`bnrepro.launch.job`); nothing that a job pickled is
read back.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bnrepro.config import run_dir
from bnrepro.config.schema import Config, Device, Precision, in_channels_last
from bnrepro.errors import UserError
from bnrepro.launch.job import Job, Ticket, number_of
from bnrepro.launch.options import Options
from bnrepro.runs.record import Run, locked
from bnrepro.system.signals import output_of

if TYPE_CHECKING:
    from bnrepro.launch.parallel import Report
    from bnrepro.launch.sweep import Outcome

ARRAY = 1000  # runs in a job array: as many as Slurm takes unless its MaxArraySize was changed
RETRIES = 2  # times that a run is submitted again after its job was lost
ENDED = {  # Slurm's states of jobs that are over; in every other one a job is queued, running or on its way to these
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
    *("NOT SUBMITTED", "GONE"),
}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED"}
FINAL = {  # ends that another try would not change, or that somebody chose
    "CANCELLED": "was cancelled; run the command again to resubmit it",
    "OUT_OF_MEMORY": "ran out of memory; request more with launcher.memory",
}


def run_all(
    configs: Sequence[Config],
    options: Options,
    *,
    force: bool = False,
    report: Report | None = None,
    ended: Callable[[int, Outcome], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Run ``configs`` on the cluster, wait, and return their outcomes in the same order.

    What is finished is not run again; what is queued or running, whoever submitted it, is waited for. A job that is
    preempted or runs out of time is queued again and goes on from its checkpoint; one that is lost (its process
    killed, its node down) is submitted again, twice at most. Where the cluster limits how many jobs a user may submit,
    the rest follows as others end. A run that fails leaves the others alone, and its ticket
    keeps the reason until it is asked for again. Ctrl-C, or the end of this process, leaves the jobs where they are.

    Args:
        configs: the runs, as `resolve` makes them; it is done here too.
        options: what each job asks for.
        force: restart each run, except those that are queued or running.
        report: told of progress: the share of the epochs, at each look, of the runs whose jobs have started.
        ended: told of each outcome when it is there.
        say: told what was submitted and what was found in the queue, a sentence each.

    Raises:
        UserError: no submitit or no Slurm here, or Slurm refuses the jobs. Nothing that is finished is touched.
    """
    from bnrepro.launch.sweep import failed

    _need_slurm()
    configs = [resolve(cfg, options) for cfg in configs]
    indices: dict[Path, list[int]] = {}
    for index, cfg in enumerate(configs):
        indices.setdefault(run_dir(cfg), []).append(index)
    runs = {path: configs[same[0]] for path, same in indices.items()}  # a run that is asked for twice is one job
    tell = report or (lambda _index, _share: None)
    take = ended or (lambda _index, _outcome: None)
    say = say or (lambda _sentence: None)
    waiting = _submit_missing(runs, options, force, say)
    outcomes: dict[Path, Outcome] = {}
    room_at = 0  # number of outcomes when the cluster took no more jobs
    tries: Counter[Path] = Counter()
    suspects: set[tuple[Path, Ticket | None]] = set()
    while True:
        states = _states_or_none()  # before the files: a job that is over by now has written all that it will
        over: set[tuple[Path, Ticket | None]] = set()
        again: dict[Path, Config] = {}
        for path in [path for path in runs if path not in outcomes]:
            ticket = Ticket.read(path)
            outcome = _outcome(runs[path], path, ticket)
            state = _state(ticket, states) if states is not None else None
            if outcome is None and state in ENDED and path not in waiting:
                over.add((path, ticket))
                if (path, ticket) not in suspects:
                    continue  # files that another machine wrote may take a moment to be seen here
                tries[path] += 1
                if state in FINAL or tries[path] > RETRIES:
                    outcome = failed(runs[path], _story(ticket, state), by_user=state in FINAL)
                    if ticket:
                        replace(ticket, error=outcome.error, by_user=outcome.by_user).write(path)
                else:
                    again[path] = runs[path]
            if outcome:
                outcomes[path] = outcome
            for index in indices[path]:
                if outcome:
                    tell(index, 1.0)
                    take(index, outcome)
                elif state in RUNNING:
                    tell(index, _share(runs[path], path))
        suspects = over
        if len(outcomes) == len(runs):
            return [outcomes[run_dir(cfg)] for cfg in configs]
        waiting -= outcomes.keys()
        if waiting and (len(outcomes) > room_at or len(outcomes) + len(waiting) == len(runs)):
            room_at = len(outcomes)
            with contextlib.suppress(UserError):
                waiting = _submit_missing({path: runs[path] for path in runs if path in waiting}, options, force, say)
        with contextlib.suppress(UserError):  # the next look finds it missing, and counts it as a try
            waiting |= _submit_missing(again, options, False, say)
        time.sleep(options.poll)


def _need_slurm() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("Runs on Slurm need submitit: pip install 'bnrepro[slurm]'.") from error
    for command in ("sbatch", "srun", "squeue"):
        if not shutil.which(command):
            raise UserError(f"There is no {command} on this machine. Submit runs to Slurm from a cluster's login node.")


def resolve(cfg: Config, options: Options) -> Config:
    """``cfg`` with what is auto replaced by what its job will have; this machine may have something else.

    Raises:
        UserError: device=cuda, and the jobs have no GPU; precision=auto, which only the job's machine could tell.
    """
    if cfg.device is Device.cuda and not options.gpus:
        raise UserError("device=cuda: the jobs have no GPU. Ask for one with launcher.gpus=1.")
    if cfg.precision is Precision.auto:
        raise UserError(
            "precision=auto depends on the machine, and those of a cluster may differ. Write "
            "precision=bf16 or precision=fp32."
        )
    device = Device.cuda if options.gpus and cfg.device is not Device.cpu else Device.cpu
    return replace(cfg, device=device, channels_last=in_channels_last(cfg))


def _outcome(cfg: Config, path: Path, ticket: Ticket | None) -> Outcome | None:
    """What became of a run, None if it has not ended."""
    from bnrepro.launch.sweep import Outcome

    if ticket and ticket.error:
        return Outcome(cfg, path, ticket.error, by_user=ticket.by_user)
    return Outcome(cfg, path) if _finished(path, ticket) else None


def _finished(path: Path, ticket: Ticket | None) -> bool:
    if ticket and ticket.force:
        return False  # what is there is the run before
    try:
        return Run(path).finished
    except UserError:
        return False  # a damaged summary: the job meets it too, and says so


def _share(cfg: Config, path: Path) -> float:
    """How much of a run is done, as far as its metrics tell."""
    try:
        return min(float(Run(path).metrics[-1]["epoch"] or 0.0) / cfg.epochs, 0.999)
    except (UserError, IndexError):
        return 0.0


def _state(ticket: Ticket | None, states: dict[str, str]) -> str:
    """Slurm's state of a run's job; two of our own where Slurm knows none."""
    if ticket is None or ticket.job is None:
        return "NOT SUBMITTED"
    return states.get(ticket.job, "GONE")  # some minutes after a job's end, Slurm forgets it


def _story(ticket: Ticket | None, state: str) -> str:
    """Why a run has no result, for the user."""
    if ticket is None or ticket.job is None:
        return "its job could not be submitted again"
    text = f"its job {ticket.job} {FINAL.get(state, f'ended without a result (Slurm: {state})')}"
    if not ticket.log.is_file():  # it was cancelled in the queue, or its node could not start it
        return f"{text}; it wrote no log in {ticket.folder}, so it seems never to have started"
    text += f"; its log: {ticket.log}"
    lines = ticket.log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return text + (f", which ends: {last}" if last else "")


# --- submitting ---------------------------------------------------------------------------------------------------


def _submit_missing(runs: dict[Path, Config], options: Options, force: bool, say: Callable[[str], None]) -> set[Path]:
    """Submit those of ``runs`` that are neither finished (unless ``force``) nor queued nor running.

    Returns:
        Those for which the cluster has no room until others have ended.
    """
    if not runs:
        return set()
    with _one_at_a_time(Path(next(iter(runs.values())).root) / "slurm"):
        states = _states()
        there = 0
        missing: list[tuple[Path, Config, bool]] = []
        for path, cfg in runs.items():
            ticket = Ticket.read(path)
            start_over = force or (ticket is not None and ticket.force)
            if _finished(path, ticket) and not start_over:
                continue
            if ticket and not ticket.error and _state(ticket, states) not in ENDED:
                there += 1
            else:
                missing.append((path, cfg, start_over))
        if there:
            say(f"Queued or running already: {there} of {len(runs)} runs.")
        return _submit_in_portions(missing, options, say, there > 0)


def _submit_in_portions(
    runs: list[tuple[Path, Config, bool]], options: Options, say: Callable[[str], None], others: bool
) -> set[Path]:
    """Job arrays as large as the cluster takes them; the runs for which there is no room until ``others`` have ended.

    Raises:
        UserError: Slurm takes none, and there is none whose end would make room.
    """
    start, size = 0, ARRAY
    while start < len(runs):
        part = runs[start : start + size]
        try:
            _submit(part, options, say)
            start += len(part)
        except _LimitError as error:
            size = len(part) // 2
            if size == 0:
                if start == 0 and not others:
                    raise UserError(str(error)) from error
                waiting = {path for path, _, _ in runs[start:]}
                say(f"The cluster accepts no more jobs at the moment; {len(waiting)} will be submitted as others end.")
                return waiting
    return set()


class _LimitError(UserError):
    """The cluster's limit of jobs that a user may submit, or of the length of an array."""


def _is_limit(complaint: str) -> bool:
    """Whether sbatch's error message refers to the number of jobs rather than their size."""
    codes = re.findall(r"\b(?:QOS|Assoc)\w+", complaint)
    if codes:
        return any("Submit" in code for code in codes)
    return any(words in complaint for words in ("job submit limit", "job array specification", "MaxArraySize"))


def _one_at_a_time(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Between a look at the queue and the jobs that it shows to be missing, nobody else may submit them."""
    return locked(folder / ".lock", f"{folder}: another process is submitting jobs; waiting for it.")


def _submit(runs: list[tuple[Path, Config, bool]], options: Options, say: Callable[[str], None]) -> None:
    """One job array (a plain job for a single run).

    The tickets are written before Slurm is asked. Should this process end between the two, they name a submission
    without a number, and the runs count as missing. Should it end between Slurm's answer and the last of submitit's
    own files, the jobs without theirs give up by themselves within a minute.
    """
    import submitit

    root = Path(options.logs) if options.logs else Path(runs[0][1].root) / "slurm"
    folder = (root / f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}").absolute()
    executor = submitit.SlurmExecutor(folder, max_num_timeout=options.timeouts)
    executor.update_parameters(
        job_name=options.name,
        partition=options.partition,
        time=options.time,
        mem=options.memory,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus or None,
        array_parallelism=options.parallelism,
        account=options.account,
        qos=options.qos,
        setup=options.setup or None,
        signal_delay_s=options.grace,
        wckey=None,  # submitit's own would have to be known to the cluster
        srun_args=[f"--cpus-per-task={options.cpus}"],  # since Slurm 22.05 srun does not take it from sbatch
        additional_parameters={"requeue": True, **options.extra},  # clusters with JobRequeue=0 need to be told
    )
    before = {path: Ticket.read(path) for path, _, _ in runs}
    jobs = []
    for task, (path, cfg, start_over) in enumerate(runs):
        ticket = Ticket(str(folder), task, len(runs), start_over)
        ticket.write(path)
        jobs.append(Job(cfg, path, options.cpus, ticket))
    try:
        with _environment(options), _own_sbatch():
            executor.submit_array(jobs)
    except UserError:
        for path, ticket_before in before.items():
            if ticket_before:
                ticket_before.write(path)
            else:
                Ticket.file(path).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    say(f"Submitted {len(runs)} {'run' if len(runs) == 1 else 'runs'} as job {number_of(folder)}; logs: {folder}")


class _Sbatch:
    """Replacement for submitit's command runner, which fails on output that is not UTF-8 and hides the reason."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.command = command

    def __call__(self) -> str:
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise UserError(f"sbatch cannot be run ({error.strerror}). Check what `type sbatch` names.") from error
        why = " ".join((done.stderr.strip() or done.stdout).split())
        if done.returncode and why:
            kind = _LimitError if _is_limit(why) else UserError
            raise kind(
                f"Slurm refuses the jobs: {why} If this is about what the jobs ask for, change it with "
                "launcher.KEY=VALUE; else try again later."
            )
        if done.returncode:
            raise UserError(
                f"sbatch failed (exit code {done.returncode}) and gave no reason. Check whether "
                "`sbatch --wrap=hostname` works; if not, ask the cluster's administrators."
            )
        if not re.search(r"job [0-9]", done.stdout):  # as submitit looks for the number
            said = f"said {' '.join(done.stdout.split())[:200]!r}" if done.stdout.strip() else "said nothing"
            raise UserError(
                f"sbatch {said} where the number of a job should be, so a job may or may not have been submitted. "
                "Check with `squeue --me`, and cancel it with scancel, before running the command again."
            )
        return done.stdout


@contextlib.contextmanager
def _own_sbatch() -> Iterator[None]:
    """Let submitit call sbatch through `_Sbatch`. Its array executor is hard-coded, so this is the only way."""
    from submitit.core import utils

    before = utils.CommandFunction
    utils.CommandFunction = _Sbatch  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        utils.CommandFunction = before  # type: ignore[misc]


USERS = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS"}
"""SLURM_* variables that identify the cluster; all others describe a job."""
OURS = {"TIMELIMIT", "JOB_NAME", "ARRAY_INX", "REQUEUE", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "ERROR", "SIGNAL", "WAIT"}


@contextlib.contextmanager
def _environment(options: Options) -> Iterator[None]:
    """Hide environment variables that would contradict the batch script from sbatch.

    In a job, from which one may submit others, Slurm's variables say what that one has, and would be handed on:
    SLURM_MEM_PER_CPU and a job's memory exclude one another. SBATCH_* go before what a script says.
    """
    asked = {
        "PARTITION": options.partition,
        "ACCOUNT": options.account,
        "QOS": options.qos,
        **dict.fromkeys(("MEM_PER_CPU", "MEM_PER_NODE", "MEM_PER_GPU"), options.memory),
        **dict.fromkeys(("GPUS", "GPUS_PER_NODE"), options.gpus),
    }
    mute = {f"SBATCH_{name}" for name in OURS | {name for name, value in asked.items() if value}}
    mute |= {name for name in os.environ if name.startswith("SLURM_") and name not in USERS}
    before = {name: os.environ.pop(name) for name in mute if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _states() -> dict[str, str]:
    """Slurm's state of each of the user's jobs that it knows of; of those that ended, Slurm forgets the older ones.

    From squeue and not, as submitit does it, from sacct: that needs an accounting database.
    """
    # --me came with Slurm 20.02.
    command = ["squeue", f"--user={os.getuid()}", "--states=all", "--array", "--noheader", "--format=%i|%T"]
    try:
        answer = output_of(command, 120).decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
        why = " ".join((said or str(error)).split())
        raise UserError(f"squeue failed ({why}). Check that `squeue --me` works on this machine.") from error
    states = dict(line.strip().split("|", 1) for line in answer.splitlines() if "|" in line)
    if answer.strip() and not states:  # an empty queue is an empty answer; this one says of no job that it is gone
        said = " ".join(answer.split())[:200]
        raise UserError(f"squeue failed ({said}). Check that `squeue --me` works on this machine.")
    return states


def _states_or_none() -> dict[str, str] | None:
    """None while Slurm does not answer: a controller that restarts loses no job."""
    try:
        return _states()
    except UserError:
        return None
