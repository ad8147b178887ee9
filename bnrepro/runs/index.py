"""The stored runs as a table, with every key of their configuration and summary as a column; and one run by a prefix.

No torch, and of each run only the files that a column needs: listing must be quick.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnrepro.config import stored_values
from bnrepro.config.overrides import groups, keys
from bnrepro.errors import UserError, did_you_mean, known_are
from bnrepro.runs import record
from bnrepro.runs.record import Run, Status
from bnrepro.system.output import shown

FIRST = ("dataset", "model", "variant", "seed", "status", "test_accuracy", "val_accuracy", "seconds", "path")
STATUSES = (*(status.value for status in Status), record.RUNNING, record.UNKNOWN, "damaged")
NOT_COLUMNS = ("versions",)  # of a summary; they are `versions.torch` and so on
VERSIONS = ("python", "bnrepro", "torch", "torchvision", "numpy", "hydra-core")
NAMED = ("null", "true", "false")
LISTED = 8  # candidates that a message names

Row = dict[str, Any]
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}


def columns() -> list[str]:
    """All columns: those that are shown first, the rest of a summary, and the configuration's keys."""
    summary = [name for name in record.Summary.__dataclass_fields__ if name not in NOT_COLUMNS]
    versions = [f"versions.{name}" for name in VERSIONS]
    return list(dict.fromkeys([*FIRST, *summary, *versions, *keys()]))


def column(name: str, what: str) -> str:
    """The column called ``name``; a group's name (``optimizer``) is that of its member.

    Raises:
        UserError: there is none; ``what`` is the option that names it.
    """
    known = columns()
    if not name:
        raise UserError(f"{what}: the name of a column is missing. First there are: {', '.join(FIRST)}.")
    if name in known:
        return name
    if name in groups() and f"{name}.name" in known:
        return f"{name}.name"
    near = did_you_mean(name, known) or (
        f" Among others there are {', '.join(FIRST)}; `bnrepro config` prints the keys of the configuration, and "
        "`bnrepro show RUN` everything that is stored of a run."
    )
    raise UserError(f"{what}: there is no column {name!r}.{near}")


@dataclass(frozen=True)
class Stored:
    """A run as a row: `value` reads what a column needs, and no more."""

    run: Run

    @cached_property
    def first(self) -> Row:
        """`FIRST`, from the summary, and where it says nothing from the path; a damaged run has that status."""
        dataset, model, variant, _ = self.run.path.absolute().parts[-4:]
        row: Row = dict.fromkeys(FIRST)
        row |= {"dataset": dataset, "model": model, "variant": variant, "path": str(self.run.path)}
        # A run that was killed has no summary; its folder's name is read a hundred times as fast as its configuration.
        named = re.match(r"seed([0-9]{1,19})-", self.run.path.name)
        row["seed"] = int(named[1]) if named else -1
        if not self.summary:
            return row | {"status": "damaged"}
        said = {key: self.summary.get(key) for key in FIRST if key != "path"}
        return row | {key: value for key, value in said.items() if value is not None}

    @cached_property
    def summary(self) -> Row:
        """What its summary says; nothing where it, or another file of the run, is damaged."""
        try:
            return record.open_run(self.run.path).summary
        except UserError:
            return {}

    @cached_property
    def config(self) -> Row:
        """Its configuration by dotted key; nothing where that is damaged."""
        try:
            return stored_values(self.run.path / record.CONFIG)
        except (OSError, ValueError):
            return {}

    def value(self, name: str) -> Any:
        """What stands in the column ``name``."""
        if name in FIRST:
            return self.first[name]
        if name.startswith("versions."):
            return (self.summary.get("versions") or {}).get(name.partition(".")[2])
        return self.config.get(name) if name in keys() else self.summary.get(name)

    def row(self, names: Iterable[str]) -> Row:
        """Several columns."""
        return {name: self.value(name) for name in names}


@dataclass(frozen=True)
class Condition:
    """``optimizer.lr=0.1``: runs whose value in a column is one of some, or is more, less or other than one."""

    column: str
    sign: str
    values: tuple[str, ...]
    text: str

    def holds(self, value: Any) -> bool:
        """Whether ``value`` fulfils it. What is not there is ``null``, and neither more nor less than anything."""
        if self.sign in ("=", "!="):
            return any(same(value, text) for text in self.values) == (self.sign == "=")
        try:
            return value is not None and COMPARISONS[self.sign](float(value), float(self.values[0]))
        except (TypeError, ValueError):
            return False


def condition(text: str, what: str = "--where") -> Condition:
    """A condition as it is typed: KEY=VALUE (several by commas), or with ==, !=, >, >=, <, <=.

    Raises:
        UserError: it is none; no such column; a value that the column cannot have.
    """
    found = re.fullmatch(r"\s*([\w.-]+?)\s*(!=|>=|<=|==?|>|<)(.*)", text, re.DOTALL)
    if not found:
        raise UserError(f"{what}={text[:200]} is not a condition. Write KEY=VALUE, as in {what}=optimizer.lr=0.1.")
    name, sign = column(found[1], what), "=" if found[2] == "==" else found[2]
    values = tuple(value.strip().strip("'\"") for value in re.split(r",(?![^\[\]]*\])", found[3]))  # a list is one
    if "" in values:
        raise UserError(f"{what}={text[:200]}: a value is missing. Write KEY=VALUE, as in {what}=optimizer.lr=0.1.")
    if name == "status":
        for value in values:
            if value not in STATUSES:
                raise UserError(f"{what}: there is no status {value!r}.{known_are(value, STATUSES)}")
    if sign not in ("=", "!=") and not _is_number(values[0]):
        raise UserError(f"{what}={text[:200]}: {sign} compares numbers. Write one, as in {what}='seconds>60'.")
    return Condition(name, sign, values, text)


def same(value: Any, text: str) -> bool:
    """Whether ``text`` is how ``value`` is written; numbers are the same however they are."""
    if value is None or isinstance(value, bool):
        return text.lower() == {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return _is_number(text) and float(text) == value
    if isinstance(value, list):
        inner = re.fullmatch(r"\[(.*)\]", text, re.DOTALL)
        parts = [part.strip().strip("'\"") for part in inner[1].split(",") if part.strip()] if inner else []
        return inner is not None and len(parts) == len(value) and all(map(same, value, parts))
    return text == str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def select(root: Path, conditions: Sequence[Condition] = (), sort: str = "path") -> list[Stored]:
    """The runs under ``root`` that fulfil all ``conditions``, sorted by a column.

    Accuracies come from the best down, everything else from the smallest up, with ``-`` before the column the other way
    round; runs that have no value come last.

    Raises:
        UserError: no such column; a text or a list that no run has in its column.
    """
    name = column(sort.removeprefix("-"), "--sort")
    found = [Stored(run) for run in record.find_runs(root)]
    for each in conditions:
        values = [value for run in found if (value := run.value(each.column)) is not None]
        there = set(map(str, values))
        if each.sign == "=" and each.column != "status" and there:
            for text in each.values:
                as_number = _is_number(text) and any(map(_is_number, there))  # another one is no mistake
                if not as_number and text.lower() not in NAMED and not any(same(value, text) for value in values):
                    near = known_are(text, sorted(there)) if len(there) <= 20 else did_you_mean(text, there)
                    raise UserError(f"There is no run under {root} with {each.text}.{near}")
    found = [run for run in found if all(each.holds(run.value(each.column)) for each in conditions)]
    known = [run for run in found if run.value(name) is not None]
    numbers = all(isinstance(run.value(name), int | float) for run in known)
    known.sort(
        key=lambda run: run.value(name) if numbers else str(run.value(name)),
        reverse=name.endswith("accuracy") != sort.startswith("-"),
    )
    return known + [run for run in found if run.value(name) is None]


def find_run(text: str | Path, root: Path) -> Path:
    """The directory of the run that ``text`` names: its path, or what begins its hash or the end of its path.

    ``4cbf76``, ``seed0-4cb`` and ``convbn/seed0`` name ``runs/mnist5k/labml_cnn/convbn/seed0-4cbf76b351209816`` if
    they name no other run under ``root``.

    Raises:
        UserError: several runs are meant, which are listed; or none.
    """
    return _one(Path(text), root, [run.path for run in record.find_runs(root)])


def _one(path: Path, root: Path, places: list[Path]) -> Path:
    if (path / record.CONFIG).exists() or (path / record.SUMMARY).exists() or path.is_absolute():
        return path
    found = [place for place in places if _is_meant(place, str(path))]
    if not found and not path.exists():
        names = {word for place in places for word in (place.name, place.name.rpartition("-")[2])}
        if near := did_you_mean(str(path), names):
            raise UserError(f"There is no run {shown(path)} under {root}.{near}")
    if len(found) > 1:
        several = [shown(place) for place in found[:LISTED]] + ["..."] * (len(found) > LISTED)
        raise UserError(f"{shown(path)} is ambiguous: {len(found)} runs match. Choose one of {', '.join(several)}.")
    return found[0] if found else path


def _is_meant(place: Path, text: str) -> bool:
    if "/" not in text and place.name.rpartition("-")[2].startswith(text):
        return True
    parts = text.split("/")
    ends = place.parts[-len(parts) :]
    return list(ends[:-1]) == parts[:-1] and ends[-1].startswith(parts[-1])


def facts(run: Run) -> dict[str, Row]:
    """All that is known of a run, by kind: configuration, versions, machine, metrics."""
    summary = dict(run.summary)
    versions: Row = summary.pop("versions", None) or {}
    versions = {**versions, "git_revision": summary.pop("git_revision", None)}
    machine = {key: summary.pop(key, None) for key in ("machine", "device", "threads", "processes", "kernels")}
    config = {key: value for key, value in stored_values(run.path / record.CONFIG).items() if key != "root"}
    again = {"variant", "seed", "dataset", "model", "precision", "config_hash"}  # the configuration says it
    metrics = {key: value for key, value in summary.items() if key not in again}
    return {"configuration": config, "versions": versions, "machine": machine, "metrics": metrics}


def diff(first: Run, second: Run) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs between two runs, by kind and key; kinds in which nothing does are left out."""
    one, other = facts(first), facts(second)
    found = {
        kind: {
            key: (one[kind].get(key), other[kind].get(key))
            for key in dict.fromkeys([*one[kind], *other[kind]])
            if one[kind].get(key) != other[kind].get(key)
        }
        for kind in one
    }
    return {kind: keys for kind, keys in found.items() if keys}
