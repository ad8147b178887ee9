"""What a run leaves behind, and how it is read back. Every file is written whole or not at all.

``metrics.csv`` and ``summary.json`` are the record; TensorBoard's events are a view of it and are never read here.
Importing this module does not import torch: listing runs must be quick.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from bnrepro.config import check_same, read_config, run_dir, unreadable, user_files
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.system import output
from bnrepro.system import reading as stored
from bnrepro.system.writing import write_whole as write_whole

__all__ = ["Run", "Status", "find_runs", "open_run"]

CONFIG, METRICS, SUMMARY, CHECKPOINT = "config.yaml", "metrics.csv", "summary.json", "checkpoint.pt"
CODE = "code"  # copies of files of a user's own
PREVIOUS, LOCK = "checkpoint.previous.pt", ".lock"
WAIT_SECONDS = 0.2  # between tries for a lock that another process has

SPLITS = ("train", "val", "test")
COLUMNS = ("step", "epoch", *(f"{s}_{m}" for s in SPLITS for m in ("loss", "accuracy")), "lr", "seconds")

Row = dict[str, float | None]


class Status(StrEnum):
    """How a run ended. ``diverged`` is a result; ``interrupted`` and ``failed`` runs go on when asked for again."""

    completed = "completed"
    diverged = "diverged"
    interrupted = "interrupted"
    failed = "failed"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to run."""
        return self in (Status.completed, Status.diverged)


@dataclass
class Summary:
    """What ``summary.json`` says, as far as it is read. Names become names of folders."""

    status: Status
    variant: stored.Name | None = None
    seed: stored.Count | None = None
    dataset: stored.Name | None = None
    model: stored.Name | None = None
    test_accuracy: stored.Fraction | None = None
    test_loss: stored.Amount | None = None
    val_accuracy: stored.Fraction | None = None
    val_loss: stored.Amount | None = None
    train_accuracy: stored.Fraction | None = None
    train_loss: stored.Amount | None = None
    steps: stored.Count | None = None
    epochs: stored.Amount | None = None
    diverged_at_step: stored.Count | None = None
    error: str | None = None
    seconds: stored.Amount | None = None
    parameters: stored.Count | None = None
    buffers: stored.Count | None = None
    threads: stored.Count | None = None
    processes: stored.Count | None = None
    kernels: str | None = None
    data: str | None = None
    data_official: bool | None = None
    data_fingerprint: str | None = None
    precision: str | None = None
    device: str | None = None
    machine: str | None = None
    versions: dict[str, str] | None = None
    git_revision: str | None = None
    config_hash: str | None = None


@dataclass
class Ended:
    """What the summary of a run that has ended cannot do without."""

    variant: stored.Name
    seed: stored.Count
    seconds: stored.Amount
    parameters: stored.Count
    buffers: stored.Count


@dataclass
class Result(Ended):
    """... and that of one that trained to the end."""

    test_accuracy: stored.Fraction


@dataclass
class Evaluation:
    """A row of ``metrics.csv``."""

    step: stored.Count
    epoch: stored.Amount
    train_loss: stored.Loss | None
    train_accuracy: stored.Fraction | None
    val_loss: stored.Loss | None
    val_accuracy: stored.Fraction | None
    test_loss: stored.Loss | None
    test_accuracy: stored.Fraction | None
    lr: stored.Amount | None
    seconds: stored.Amount | None


def write_csv(file: Path, columns: tuple[str, ...] | list[str], rows: list[dict[str, Any]]) -> None:
    """``rows`` as CSV; None is an empty field, and floats are written so that they read back bit for bit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue())


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """``summary.json``; numbers that are not finite become null, since JSON has no word for them."""
    write_whole(directory / SUMMARY, json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_csv(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file that `write_csv` wrote.

    Raises:
        ValueError: its columns are others, or a row has more or fewer of them.
        OSError: it cannot be read.
    """
    try:
        text = stored.read_bytes(file).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} is not a CSV file") from error
    if not lines or tuple(lines[0]) != columns:
        raise ValueError(f"{file.name} has other columns")
    if not text.endswith("\n"):
        raise ValueError(f"the last line of {file.name} is cut off")
    for number, row in enumerate(lines, 1):
        if len(row) != len(columns):
            raise ValueError(f"line {number} of {file.name} has {len(row)} values for {len(columns)} columns")
    return [dict(zip(columns, row, strict=True)) for row in lines[1:]]


def read_metrics(file: Path) -> list[Row]:
    """The rows of a ``metrics.csv``; empty fields are None.

    Raises:
        UserError: missing, damaged, or not a metrics file.
    """
    try:
        rows = [{k: float(v) if v else None for k, v in row.items()} for row in read_csv(file, COLUMNS)]
        stored.hold(rows, list[Evaluation], file.name)
        return rows
    except FileNotFoundError as error:
        raise UserError(f"There is no {file}: this run has not reached its first evaluation.") from error
    except (OSError, MemoryError) as error:
        raise unreadable(file, error) from error
    except ValueError as error:
        raise damaged(file, error) from error


def hold_finite(rows: Sequence[Mapping[str, Any]], what: str) -> None:
    """Check that the ``rows`` of a run that has completed hold finite numbers alone, as only its can.

    Raises:
        ValueError: they do not; the message begins with ``what``.
    """
    for row in rows:
        if bad := [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise ValueError(f"{what}: {bad[0]} is {row[bad[0]]} at step {row['step']:g}, and the run is completed")


@dataclass(frozen=True)
class Run:
    """A stored run. Files are read when they are asked for."""

    path: Path

    @cached_property
    def config(self) -> Config:
        """The configuration that it ran with; files of code are the copies that the run keeps."""
        cfg = read_config(self.path / CONFIG)
        for key, part in (("norm", cfg.norm), ("model", cfg.model)):
            if part.file is not None and (copy := self.path / CODE / key / Path(part.file).name).is_file():
                part.file = str(copy.absolute())
        return cfg

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The final numbers; where it has not ended, how it stands as its ``status``, and what an earlier try left."""
        try:
            summary: dict[str, Any] = stored.read_json(self.path / SUMMARY, Summary)
            if summary["status"] in (Status.completed, Status.diverged):
                stored.hold(summary, Result if summary["status"] == Status.completed else Ended, SUMMARY)
        except FileNotFoundError:
            return {"status": running(self.path) or Status.interrupted.value}
        except (OSError, MemoryError) as error:
            raise unreadable(self.path / SUMMARY, error) from error
        except ValueError as error:
            raise damaged(self.path / SUMMARY, error) from error
        if summary["status"] == Status.completed and summary.get("test_loss", 0) is None:
            # Versions that did not look at the evaluation called this completed: a loss that is no number.
            return summary | {"status": Status.diverged.value, "diverged_at_step": summary.get("steps")}
        if summary["status"] in (Status.interrupted, Status.failed) and (now := running(self.path)):
            return summary | {"status": now}
        return summary

    @cached_property
    def metrics(self) -> list[Row]:
        """The rows of ``metrics.csv``."""
        rows = read_metrics(self.path / METRICS)
        if self.status == Status.completed:
            try:
                hold_finite(rows, METRICS)
            except ValueError as error:
                raise damaged(self.path / METRICS, error) from error
        return rows

    @property
    def status(self) -> str:
        """A name of `Status`, ``running`` while a process is at it, ``running or interrupted`` where nobody can say."""
        return str(self.summary["status"])

    @property
    def started(self) -> bool:
        """Whether anything is there of it."""
        return (self.path / CONFIG).is_file()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to run.

        Raises:
            UserError: its summary says that it has ended, and what such a run leaves is not all there.
        """
        if self.status not in (Status.completed, Status.diverged):
            return False
        if not is_there(self.path / CONFIG):
            raise damaged(self.path, f"it has ended, and there is no {CONFIG}")
        if not is_there(self.path / METRICS):
            if self.status == Status.completed:  # one that diverged may not have reached an evaluation
                raise damaged(self.path, f"it has ended, and there is no {METRICS}")
            return True
        last = self.metrics[-1]["step"] if self.metrics else 0.0
        if self.status == Status.completed and (not last or self.summary.get("steps") not in (None, last)):
            raise damaged(self.path / METRICS, f"it ends at step {last:g}, and the run did not")
        return True


def is_there(file: Path) -> bool:
    """Whether there is such a file; a link that leads nowhere is none.

    Raises:
        UserError: nobody can say. (Some versions of Python's `Path.exists` return False then.)
    """
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(file, error) from error
    return True


def damaged(what: Path, why: object) -> UserError:
    """The error for a run, or a file of it, that is not as a run leaves it."""
    return UserError(f"{what} is damaged ({why}). Run it again with --force, or move the run's folder away.")


RUNNING, UNKNOWN = "running", "running or interrupted"


def running(directory: Path) -> str | None:
    """Whether a process is at the run in ``directory``: `RUNNING`, None, or `UNKNOWN` on a file system without locks.

    A process's claim ends with it, however that happens, so that this is true of one that was killed as well.
    """
    try:
        handle = os.open(directory / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return RUNNING
    except (ImportError, OSError):
        return UNKNOWN
    finally:
        os.close(handle)
    return None


def run_of(cfg: Config) -> Run:
    """The run of ``cfg``, which may not have begun.

    Raises:
        UserError: where it should be lies another one.
    """
    directory = run_dir(cfg)
    check_same(directory, cfg)
    return Run(directory)


def find_runs(root: Path) -> Iterator[Run]:
    """The runs under ``root`` (``<dataset>/<model>/<variant>/<run>``), in the order of their paths."""
    places = {file.parent for name in (CONFIG, SUMMARY) for file in root.glob(f"*/*/*/*/{name}")}
    yield from map(Run, sorted(places))


def open_run(path: Path) -> Run:
    """The run in directory ``path``.

    Raises:
        UserError: there is none, or it has ended and what such a run leaves is damaged or not all there.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link that leads nowhere, or to itself. `bnrepro runs` lists the runs.")
    if not is_there(path / CONFIG):
        if is_there(path / SUMMARY):
            raise damaged(path, f"there is no {CONFIG}")
        what = f"is not a run's directory (no {CONFIG})" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}. `bnrepro runs` lists the runs.")
    run = Run(path)
    _ = run.finished  # says what is damaged
    return run


@contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Keep other processes from the run in ``directory``; where one has it, say so and wait until it ends."""
    with locked(directory / LOCK, f"{directory}: another process is working on this run; waiting for it."):
        yield


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold an exclusive lock on ``file``. A process that has to wait prints ``waiting``; a signal ends the wait.

    The operating system gives the lock up with the process, however that ends. Where the file system has no locks, or
    they fail, it goes on without one, and says so.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(handle, file, waiting)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, file: Path, waiting: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                output.tell(waiting)
            told = True
            time.sleep(WAIT_SECONDS)
        except OSError as error:
            output.tell(
                f"{file.parent}: this file system does not support locks ({error.strerror}). Continuing "
                "without them; do not run the same command twice at once."
            )
            return


def keep_code(directory: Path, cfg: Config) -> None:
    """Copy the files of code that ``cfg`` names into the run's directory."""
    for key, file in (("norm", cfg.norm.file), ("model", cfg.model.file)):
        if file is not None:
            write_whole(directory / CODE / key / Path(file).name, user_files.content(Path(file)))


def clear(directory: Path) -> None:
    """Delete the run in ``directory``, whose claim is held."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
