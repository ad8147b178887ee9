"""The curves of runs as data of a page: for each part of an experiment, lines of several seeds against the steps."""

from __future__ import annotations

import math
from typing import Any

from bnrepro.claims.results import OF_CURVES
from bnrepro.report.model import Section
from bnrepro.report.wording import Row, Rows
from bnrepro.runs.record import SPLITS
from bnrepro.stats import t_quantile

POINTS = 60  # of a line: more than a screen shows apart
COLUMNS = tuple(f"{split}_{metric}" for metric in ("accuracy", "loss") for split in ("train", "val", "test"))
assert set(SPLITS) == {"train", "val", "test"}


def charts(section: Section) -> list[Row]:
    """A chart for each part with curves: its name, its columns, and its lines."""
    completed = {_who(row, section.curves) for row in section.runs if row["status"] == "completed"}
    parts: dict[str, Rows] = {}
    for row in section.curves:
        parts.setdefault(str(row["part"]), []).append(row)
    return [chart for part, rows in parts.items() if (chart := _chart(part, rows, completed))]


def quantiles(most: int = 64) -> list[float]:
    """Student's quantile of a 95% interval by the number of seeds, for the page to draw intervals with."""
    return [0.0, 0.0, *(round(t_quantile(0.975, n - 1), 4) for n in range(2, most + 1))]


def _chart(part: str, rows: Rows, completed: set[str]) -> Row | None:
    columns = [column for column in COLUMNS if any(row.get(column) is not None for row in rows)]
    factors = [key for key in rows[0] if key not in OF_CURVES | {"part", "seed"}]
    told = [key for key in factors if len({row[key] for row in rows}) > 1]
    lines: dict[str, Rows] = {}
    for row in rows:
        lines.setdefault(_label(row, told), []).append(row)
    made = [_line(label or part, each, columns, completed) for label, each in lines.items()]
    if not columns or all(len(line["step"]) < 2 for line in made):
        return None  # nothing moves: the tables say it
    return {"part": part, "columns": columns, "lines": made}


def _label(row: Row, told: list[str]) -> str:
    """What tells a line from the others of its part: "bn, rate 0.1"."""
    values = ((key, row[key]) for key in told if row[key] is not None)
    return ", ".join(str(v) if key == "variant" or isinstance(v, str) else f"{key} {v}" for key, v in values)


def _who(row: Row, like: Rows) -> str:
    """Which run a row is of, by what curves say of one."""
    keys = [key for key in (like[0] if like else ()) if key not in OF_CURVES]
    return str([row.get(key) for key in keys])


def _line(label: str, rows: Rows, columns: list[str], completed: set[str]) -> Row:
    """``step`` and ``epoch`` of a line, and each column's values: one list a seed."""
    seeds = sorted({row["seed"] for row in rows})
    epochs = {row["step"]: row["epoch"] for row in rows}
    steps = _thinned(sorted(epochs))
    there = {(row["seed"], row["step"]): row for row in rows}
    done = {row["seed"] for row in rows if _who(row, [row]) in completed}
    values = {
        column: [[_short(there.get((seed, step), {}).get(column)) for step in steps] for seed in seeds]
        for column in columns
    }
    return {
        "label": label,
        "seeds": seeds,
        "ended": [seed for seed in seeds if seed not in done],
        "step": [_whole(step) for step in steps],
        "epoch": [_short(epochs[step]) for step in steps],
        **{column: each for column, each in values.items() if any(v is not None for seed in each for v in seed)},
    }


def _thinned(steps: list[float]) -> list[float]:
    """At most `POINTS` of them, the first and the last among them."""
    if len(steps) <= POINTS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _short(value: Any) -> float | None:
    """Four digits; None of what is no number, as a file can hold."""
    return float(f"{value:.4g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value
