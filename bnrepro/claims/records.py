"""Records as files, and back: runs.csv, curves.csv, measurements.csv, provenance.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any, Literal, get_args

from bnrepro.claims.results import OF_RUNS, RUN_COLUMNS, Results, Row
from bnrepro.config import unreadable
from bnrepro.errors import UserError, in_brackets
from bnrepro.runs import record
from bnrepro.runs.record import Status
from bnrepro.runs.tables import read_rows, write_rows
from bnrepro.system import reading as stored
from bnrepro.system.output import shown

RUNS, CURVES, MEASUREMENTS, PROVENANCE = "runs.csv", "curves.csv", "measurements.csv", "provenance.json"
CAPTIONS = "captions.json"
"""Of what was concluded from them."""
COPY = "paper.py"
"""Of a paper in a file of a user's own, beside its results."""

Spent = dict[tuple[str, str, str], list[float]]
"""Seconds by part, kind ("runs" or "measurements") and cell, one a seed."""
Preset = Literal["smoke", "quick", "full", "paper"]


@dataclass(frozen=True)
class Records(Results):
    """All that an experiment or a comparison left, with its settings and where it comes from."""

    settings: dict[str, Any]
    """The preset's values."""
    provenance: dict[str, Any]
    """What made it, what failed, seconds, data with fingerprints, machines, versions, git revisions."""


class DamagedError(UserError):
    """Records that were cut off or changed."""


def save(records: Records, folder: Path) -> None:
    """Write ``records`` into ``folder``, each file whole."""
    write_rows(folder / RUNS, records.runs, ["part", "seed", *RUN_COLUMNS])
    write_rows(folder / CURVES, records.curves, ["part", "seed", *record.COLUMNS])
    write_rows(folder / MEASUREMENTS, records.measurements, ["part", "seed", "quantity", "x", "value"])
    provenance = {"preset": records.preset, "settings": records.settings, **records.provenance}
    record.write_whole(folder / PROVENANCE, json.dumps(provenance, indent=2) + "\n")


def read(folder: Path, remedy: str = "") -> Records:
    """The records in ``folder``.

    Args:
        folder: where `save` wrote them.
        remedy: a sentence on how to make them again; none: by the experiment that the folder is named after.

    Raises:
        UserError: there are none, or they are damaged.
    """
    remedy = remedy or f"{made_by(folder)} makes them again."
    try:
        provenance = stored.read_json(folder / PROVENANCE, Provenance, folder)
        preset, settings = provenance.pop("preset"), provenance.pop("settings")
        runs, curves, measurements = (read_rows(folder / name, folder) for name in (RUNS, CURVES, MEASUREMENTS))
        stored.hold(runs, list[_Run], RUNS)
        stored.hold(curves, list[_Point], CURVES)
        stored.hold(measurements, list[_Value], MEASUREMENTS)
        for name, rows, shape in ((RUNS, runs, _Run), (CURVES, curves, _Point), (MEASUREMENTS, measurements, _Value)):
            header = [] if rows else stored.read_bytes(folder / name).decode().splitlines()[0].split(",")
            if not rows and (lacking := [each.name for each in fields(shape) if each.name not in header]):
                raise ValueError(f"{name} has no column {lacking[0]}")
        known = {(run["part"], run["seed"]) for run in runs}
        if lost := [point for point in curves if (point["part"], point["seed"]) not in known]:
            raise ValueError(f"{RUNS} lacks the run of part {lost[0]['part']}, seed {lost[0]['seed']} in {CURVES}")
    except FileNotFoundError as error:
        raise DamagedError(
            f"The records in {folder} are not complete ({error.filename} is missing). {remedy}"
        ) from error
    except (OSError, MemoryError) as error:
        raise unreadable(Path(getattr(error, "filename", None) or folder), error) from error
    except ValueError as error:
        raise DamagedError(f"The records in {folder} are damaged ({in_brackets(error)}). {remedy}") from error
    return Records(preset, runs, curves, measurements, settings, provenance)


def made_by(folder: Path) -> str:
    """The command that makes the records in ``folder`` again, as far as its name tells (see `Paper.directory`)."""
    place, preset, name = _home(folder)
    return f"`bnrepro reproduce {name} --preset={preset} --out={quote(str(place.parent))}`"


def drawn_by(folder: Path) -> str:
    """The command that draws conclusions from the records in ``folder`` again."""
    place, _, name = _home(folder)
    if place.name == name:
        return f"`bnrepro figures {shown(folder)}`"
    return f"`bnrepro figures {name} --out={quote(str(place.parent))}`"  # code is only run where it is named


def _home(folder: Path) -> tuple[Path, str, str]:
    """The experiment's folder, its preset, and what a command calls it: of a paper of a user's own, its file."""
    beside = folder.name in get_args(Preset) and folder.name != "full"  # see `Paper.directory`
    place, preset = (folder.parent, folder.name) if beside else (folder, "full")
    return place, preset, f"{place.name}.py" if stored.is_file(folder / COPY) else place.name


def held(folder: Path) -> bool:
    """Whether ``folder`` holds records, or what was concluded from them."""
    return any(stored.is_file(folder / name) for name in (RUNS, MEASUREMENTS, CAPTIONS))


def find(root: Path) -> list[Path]:
    """The folders in ``root`` and below that hold records, or what was concluded from them."""
    return sorted(filter(held, (Path(place) for place, _, _ in os.walk(root))))


def there(folder: Path) -> Records | None:
    """The records in ``folder``; None where there are none, or only damaged ones.

    Raises:
        UserError: they cannot be read just now.
    """
    try:
        return read(folder) if (folder / PROVENANCE).exists() else None
    except DamagedError:
        return None


def provenance_of(folder: Path) -> dict[str, Any]:
    """What provenance.json in ``folder`` says; nothing where it is missing or damaged.

    Raises:
        UserError: it cannot be read just now.
    """
    try:
        return dict(stored.read_json(folder / PROVENANCE, dict[str, Any]))
    except (FileNotFoundError, ValueError):
        return {}
    except (OSError, MemoryError) as error:
        raise unreadable(folder / PROVENANCE, error) from error


@dataclass
class Data:
    """What is recorded of a run's data."""

    data: str | None = None
    data_official: bool | None = None
    data_fingerprint: str | None = None


@dataclass
class Provenance:
    """What provenance.json says, as far as it is read."""

    preset: Preset
    settings: dict[str, Any]
    experiment: str
    command: str
    seconds: dict[str, dict[str, stored.Finite]]
    failed: list[str]
    data: list[Data] = field(default_factory=list)
    machines: list[str | None] = field(default_factory=list)
    versions: list[dict[str, str]] = field(default_factory=list)
    git_revisions: list[str | None] = field(default_factory=list)
    design: Design | None = None
    first_run: str | None = None


@dataclass
class Design:
    """What is recorded of the design of preset full, and of its registration (see `bnrepro.claims.registering`)."""

    hash: str
    registered: str | None
    commit: str | None
    committed: str | None
    amended: list[dict[str, str]]
    as_registered: bool


@dataclass
class _Run:
    part: str
    seed: int
    status: Status
    config_hash: str | None


@dataclass
class _Point:
    part: str
    seed: int
    step: stored.Count
    epoch: stored.Finite


@dataclass
class _Value:
    part: str
    seed: int
    quantity: str
    x: str | bool | int | float | None
    value: float


# --- gathering ---


@dataclass
class Gathered:
    """Rows and provenance while runs and measurements are gathered."""

    runs: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    found: dict[str, list[Any]] = field(
        default_factory=lambda: {key: [] for key in ("data", "machines", "versions", "git_revisions")}
    )
    spent: Spent = field(default_factory=dict)
    _counted: set[Path] = field(default_factory=set)

    def add(self, run: record.Run, part: str, factors: Row) -> None:
        """A run that has finished."""
        summary = run.summary
        who = {"part": part, **factors, "seed": summary["seed"]}
        self.runs.append({**{column: summary.get(column) for column in RUN_COLUMNS}, **who})
        if os.path.lexists(run.path / record.METRICS):
            self.curves += [{**row, **who} for row in run.metrics]
        if run.path not in self._counted:  # by the part before, which has the same run
            self.spend(part, "runs", factors, summary.get("seconds"))
        self._counted.add(run.path)
        self.note(summary, {key: summary.get(key) for key in ("data", "data_official", "data_fingerprint")})

    def spend(self, part: str, kind: str, factors: Row, seconds: float | None) -> None:
        """Add to the cost of a part."""
        self.spent.setdefault((part, kind, str(factors)), []).append(seconds or 0.0)

    def note(self, made: dict[str, Any], data: dict[str, Any] | None) -> None:
        """Add where numbers come from, unless it is there already."""
        machine, device = made.get("machine"), made.get("device")
        if machine is not None and device not in (None, "cpu"):
            machine = f"{device} ({machine})"
        pairs = (("versions", "versions"), ("git_revisions", "git_revision"))
        for key, value in (("data", data), ("machines", machine), *((key, made.get(name)) for key, name in pairs)):
            if value is not None and value not in self.found[key]:
                self.found[key].append(value)


def merged(new: Records, held: Records) -> Records:
    """``new``, with the rows of ``held`` for arms and measurements that it lacks."""
    runs = _kept(new.runs, held.runs, OF_RUNS)
    curves = _kept(new.curves, held.curves, record.COLUMNS)
    measurements = _kept(new.measurements, held.measurements, ("quantity", "x", "value"))
    spent: dict[str, dict[str, float]] = {}
    mine, theirs = new.provenance["seconds"], held.provenance["seconds"]
    for kind, kept, all_ in (("runs", runs, held.runs), ("measurements", measurements, held.measurements)):
        for part in {**mine, **theirs}:
            left, before = (sum(row["part"] == part for row in rows) for rows in (kept, all_))
            share = left / before if before else 0.0  # of what they cost
            seconds = mine.get(part, {}).get(kind, 0.0) + share * theirs.get(part, {}).get(kind, 0.0)
            spent.setdefault(part, {})[kind] = round(seconds, 3)
    provenance = {**new.provenance, "seconds": spent, "failed": list(new.provenance["failed"])}
    for key in ("data", "machines", "versions", "git_revisions"):
        found = new.provenance[key]
        provenance[key] = [*found, *(each for each in held.provenance.get(key, []) if each not in found)]
    return Records(
        new.preset,
        [*new.runs, *runs],
        [*new.curves, *curves],
        [*new.measurements, *measurements],
        new.settings,
        provenance,
    )


def _kept(new: list[Row], held: list[Row], results: Iterable[str]) -> list[Row]:
    """The rows of ``held`` whose part, factors and seed ``new`` has not."""

    def who(row: Row) -> str:
        return str(sorted((key, str(value)) for key, value in row.items() if key not in results and value is not None))

    there = {who(row) for row in new}
    return [row for row in held if who(row) not in there]


def cost(parts: Iterable[str], spent: Spent) -> dict[str, dict[str, float]]:
    """Seconds of one process by part and kind.

    The seeds of a cell do the same work, so that each is counted with their median: one that the machine slept through
    costs no more than the others.
    """
    total = {part: {"runs": 0.0, "measurements": 0.0} for part in parts}
    for (part, kind, _), seconds in spent.items():
        total[part][kind] = round(total[part][kind] + len(seconds) * median(seconds), 3)
    return total
