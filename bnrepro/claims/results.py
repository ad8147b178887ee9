"""What was run and measured, as a claim reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bnrepro.errors import known_are
from bnrepro.runs.record import COLUMNS
from bnrepro.runs.tables import Row as Row
from bnrepro.stats import Values
from bnrepro.stats.values import note_missed

RUN_COLUMNS = (
    *("variant", "seed", "status", "test_accuracy", "test_loss", "val_accuracy", "val_loss"),
    *("train_accuracy", "train_loss", "steps", "diverged_at_step", "parameters", "buffers", "threads", "seconds"),
    *("precision", "device", "config_hash"),
)
OF_RUNS = frozenset(RUN_COLUMNS) - {"variant", "seed"}
"""Columns of a run that are results, and so no factors."""
OF_CURVES = frozenset(COLUMNS)
NO_FACTORS = OF_RUNS | OF_CURVES | {"seed", "x", "value"}
PERCENT = 100.0
CHANCE = 10.0  # %: ten classes


class MisuseError(TypeError, ValueError):
    """A claim's function calls ours as it never can be, whatever was run and measured."""


@dataclass(frozen=True)
class Results:
    """The records of an experiment. Everything is selected by factors: ``r.test_accuracy(part="table")``."""

    preset: str
    runs: list[Row]
    """One row a run."""
    curves: list[Row]
    """One row an evaluation."""
    measurements: list[Row]
    """One row a value: quantity, x, value."""

    def copied(self) -> Results:
        """The same records, which code of a user's own may change without changing these."""
        runs, curves, measurements = (list(map(dict, rows)) for rows in (self.runs, self.curves, self.measurements))
        return replace(self, runs=runs, curves=curves, measurements=measurements)

    def first(self, seeds: int) -> Results:
        """The records of seeds 0, 1, ..., ``seeds`` - 1 alone."""
        kept = ([row for row in rows if row["seed"] < seeds] for rows in (self.runs, self.curves, self.measurements))
        return Results(self.preset, *kept)

    def of_runs(self, column: str, **factors: Any) -> Values:
        """``column`` of the runs that completed, by the factors of their part.

        Raises:
            MisuseError: runs have no such column.
        """
        _check_column("runs", column, RUN_COLUMNS)
        rows = [row for row in self._selected(self.runs, factors) if row["status"] == "completed"]
        return Values.of_rows([_narrow(row, column, OF_RUNS) for row in rows], column)

    def test_accuracy(self, **factors: Any) -> Values:
        """Test accuracy in percent."""
        return self.of_runs("test_accuracy", **factors) * PERCENT

    def accuracy(self, column: str = "test_accuracy", *, chance: float = CHANCE, **factors: Any) -> Values:
        """An accuracy at the end of training, in percent; that of ``chance`` where the run diverged."""
        diverged, ends = self.diverged(**factors), PERCENT * self.of_runs(column, **factors)
        return chance * diverged.where(bool) | ends

    def diverged(self, **factors: Any) -> Values:
        """1 for each run that diverged, and 0 for each that did not; runs that failed are left out."""
        rows = [row | {"diverged": row["status"] == "diverged"} for row in self._selected(self.runs, factors)]
        kept = OF_RUNS | {"diverged"}
        rows = [_narrow(row, "diverged", kept) for row in rows if row["status"] != "failed"]
        return Values.of_rows(rows, "diverged")

    def curve(self, column: str, **factors: Any) -> Values:
        """``column`` at each evaluation, with the factor ``step``; runs that diverged are there up to that step."""
        _check_column("curves", column, COLUMNS)
        rows = self._selected(self.curves, factors)
        return Values.of_rows([_narrow(row, column, OF_CURVES - {"step"}) for row in rows], column)

    def fall(self, column: str, **factors: Any) -> Values:
        """By how much ``column`` fell per epoch, over the last epoch of each run: whether a loss still falls."""
        _check_column("curves", column, COLUMNS)
        runs: dict[str, list[Row]] = {}
        for row in self._selected(self.curves, factors):
            if row.get(column) is not None:
                runs.setdefault(str({k: v for k, v in row.items() if k not in OF_CURVES}), []).append(row)
        rows = []
        for points in runs.values():
            last = max(points, key=lambda row: row["step"])
            before = [row for row in points if row["epoch"] <= last["epoch"] - 1] or [points[0]]
            first = max(before, key=lambda row: row["step"])
            if epochs := last["epoch"] - first["epoch"]:
                rows.append(_narrow(last, "", OF_CURVES) | {"fall": (first[column] - last[column]) / epochs})
        return Values.of_rows(rows, "fall")

    def measured(self, quantity: str, **factors: Any) -> Values:
        """A measured quantity, with the factor ``x`` where it has one."""
        rows = self._selected(self.measurements, {"quantity": quantity, **factors})
        return Values.of_rows(
            [_narrow(row, "value", frozenset()) for row in rows],
            "value",
            frozenset({"quantity"}),
            f"quantity {quantity}",
        )

    def _selected(self, rows: Sequence[Row], factors: Row) -> list[Row]:
        """Rows with these factors, which are then left out; a list of levels keeps its factor."""
        found, alone = rows, {}
        for key, value in factors.items():
            if isinstance(value, list | tuple | set | range):
                found = [row for row in found if row.get(key) in value]
            else:
                found = [row for row in found if row.get(key) == value]
                alone[key] = value
        if rows and not found:
            note_missed({k: v for k, v in alone.items() if all(row.get(k) != v for row in rows)})
        return [{key: value for key, value in row.items() if key not in alone} for row in found]


@dataclass(frozen=True)
class Read(Results):
    """Results that note on how many seeds rests what is read of them, for a caption."""

    seeds: set[int] = field(default_factory=set)
    """Numbers of seeds, by what was asked for and the factors left."""

    @classmethod
    def of(cls, results: Results) -> Read:
        """``results``, of which nothing is read yet."""
        return cls(results.preset, results.runs, results.curves, results.measurements)

    def _selected(self, rows: Sequence[Row], factors: Row) -> list[Row]:
        found = super()._selected(rows, factors)
        cells: dict[tuple[tuple[str, str], ...], set[int]] = {}
        for row in found:
            cell = tuple((key, str(level)) for key, level in row.items() if key not in NO_FACTORS)
            cells.setdefault(cell, set()).add(row["seed"])
        self.seeds.update(map(len, cells.values()))
        return found


def _check_column(what: str, column: str, known: Sequence[str]) -> None:
    if column not in known:
        raise MisuseError(f"{what} have no column {column!r}.{known_are(column, known)}".rstrip("."))


def _narrow(row: Row, column: str, results: frozenset[str]) -> Row:
    return {key: value for key, value in row.items() if key == column or key not in results}
