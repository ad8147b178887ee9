"""What a sweep came to: a table over its seeds that marks the best, and a figure of accuracy against what was swept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnrepro.config import config_hash, digits_of
from bnrepro.config.overrides import groups, parse
from bnrepro.config.schema import Config
from bnrepro.runs import record
from bnrepro.runs.record import Status
from bnrepro.stats import Interval, t_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bnrepro.launch.sweep import Outcome

Row = dict[str, Any]
TABLE, FIGURE = "table.csv", "accuracy"
ACCURACIES = ("val_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Cell:
    """One combination of the swept values, over its seeds."""

    values: dict[str, Any]
    """By key, without the seed."""
    accuracies: dict[str, Interval]
    n: int
    diverged: int
    failed: int

    @property
    def name(self) -> str:
        """The values as overrides."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.values.items()) or "all"


def collect(runs: Sequence[tuple[list[str], Outcome]]) -> list[Cell]:
    """The cells of a sweep, in its order.

    Args:
        runs: the overrides of each run, and what came of it.
    """
    varied = {text for overrides, _ in runs for text in overrides if not all(text in each for each, _ in runs)}
    grouped: dict[tuple[str, ...], list[Outcome]] = {}
    for overrides, outcome in runs:
        cell = tuple(text for text in overrides if text in varied and not text.startswith("seed="))
        grouped.setdefault(cell, []).append(outcome)
    return [_cell(dict(map(_parsed, cell)), outcomes) for cell, outcomes in grouped.items()]


def _parsed(text: str) -> tuple[str, Any]:
    key, value = parse(text)
    return key, value if key not in groups() else str(value)


def _cell(values: dict[str, Any], outcomes: Sequence[Outcome]) -> Cell:
    summaries = [record.Run(outcome.path).summary for outcome in outcomes if outcome.state == Status.completed]
    accuracies = {
        key: t_interval([float(summary[key]) for summary in summaries if summary.get(key) is not None])
        for key in ACCURACIES
    }
    states = Counter(outcome.state for outcome in outcomes)
    return Cell(values, accuracies, len(summaries), states[Status.diverged], states[Status.failed])


def best(cells: Sequence[Cell]) -> Cell | None:
    """The cell with the highest mean validation accuracy, the first of equals; None without a validation set."""
    there = [cell for cell in cells if cell.accuracies["val_accuracy"].n]
    return max(there, key=lambda cell: cell.accuracies["val_accuracy"].mean, default=None)


def table(cells: Sequence[Cell]) -> list[Row]:
    """One row a cell: the swept values, n, both accuracies with their intervals, and whether it is the `best`."""
    first = best(cells)
    return [
        {
            **{key: _text(value) if isinstance(value, list) else value for key, value in cell.values.items()},
            "n": cell.n,
            "diverged": cell.diverged,
            "failed": cell.failed,
            **{
                f"{key}_{end}": None if math.isnan(value := getattr(interval, end)) else value
                for key, interval in cell.accuracies.items()
                for end in ("mean", "low", "high")
            },
            "best": cell is first,
        }
        for cell in cells
    ]


def directory(configs: Sequence[Config]) -> Path:
    """``<root>/sweep-<hash>``, the hash over the runs in their order."""
    return Path(configs[0].root) / f"sweep-{digits_of([config_hash(cfg) for cfg in configs])}"


def save(cells: Sequence[Cell], folder: Path) -> None:
    """Write the `table` and the figure into ``folder``; the figure is only shown, and its errors stop nothing."""
    from bnrepro.runs.tables import write_rows
    from bnrepro.system.output import only_shown

    write_rows(folder / TABLE, table(cells))
    with only_shown("Figures"):
        from bnrepro.plots.style import save

        save(figure(cells), folder / FIGURE)


def figure(cells: Sequence[Cell]) -> Figure:
    """Validation accuracy (without a validation set: test accuracy) against the swept values.

    The key with the most numbers is the horizontal axis, logarithmic where they span decades; each combination of the
    others is a line. Without numbers, each cell is a point of its own.
    """
    from bnrepro.plots.panels import Look, curve, legend, looks, panels, ticks
    from bnrepro.plots.style import style

    what = "val_accuracy" if best(cells) else "test_accuracy"
    x = _axis(cells)
    with style():
        figure, (axes,) = panels(height=3.0)
        lines: dict[str, dict[Any, Interval]] = {}
        for cell in cells:
            others = {key: value for key, value in cell.values.items() if key != x}
            line = " ".join(f"{key}={_text(value)}" for key, value in others.items()) if x else ""
            line = str(others["variant"]) if x and set(others) == {"variant"} else line  # which has a look of its own
            at = cell.values[x] if x else cell.name
            if cell.accuracies[what].n:
                lines.setdefault(line, {})[at] = cell.accuracies[what]
        about = looks(list(lines))
        for line, found in lines.items():
            look: Look = about[line] if x else about[line]._replace(dashes="none")
            curve(axes, dict(sorted(found.items())) if x else found, look, bars=True)
        if x:
            places = sorted({cell.values[x] for cell in cells})
            if places[0] > 0 and places[-1] >= 20 * places[0]:
                axes.set_xscale("log")
            if len(places) <= 8:
                ticks(axes, places)
            axes.set_xlabel(x)
        else:
            axes.tick_params(axis="x", rotation=30)
        axes.set_ylabel(f"{'validation' if what == 'val_accuracy' else 'test'} accuracy")
        if len(lines) > 1:
            legend(figure, 2)
        return figure


def _axis(cells: Sequence[Cell]) -> str | None:
    """The key whose values are all numbers and that has most of them."""
    numbers = {
        key: {cell.values[key] for cell in cells}
        for key in cells[0].values
        if all(type(cell.values.get(key)) in (int, float) for cell in cells)
    }
    return max(numbers, key=lambda key: len(numbers[key]), default=None)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
