"""Stored runs and comparisons as text and CSV, for the terminal."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import Judged
from bnrepro.config import to_yaml
from bnrepro.errors import UserError, known_are
from bnrepro.report.compare import Comparison, table
from bnrepro.runs import record
from bnrepro.runs.record import Status
from bnrepro.stats import Interval, t_interval
from bnrepro.system.output import counted, shown
from bnrepro.system.reading import printable
from bnrepro.system.text import aligned, fitted, terminal_width

if TYPE_CHECKING:
    from bnrepro.launch.sweep import Outcome

COLUMNS = ("dataset", "model", "variant", "seed", "status", "test_accuracy", "val_accuracy", "seconds", "path")
STATUSES = (*(status.value for status in Status), record.RUNNING, record.UNKNOWN, "damaged")
SORTS = ("path", "seed", "status", "test_accuracy", "val_accuracy", "seconds")

Row = dict[str, Any]


def rows(root: Path, wanted: dict[str, str], sort: str = "path") -> list[Row]:
    """The runs under ``root`` whose columns are as ``wanted``, sorted; accuracies from the best down.

    A run whose files are damaged is listed with that status.

    Raises:
        UserError: no such column to sort by, no such status; a dataset, network or variant that no run has.
    """
    if sort not in SORTS:
        raise UserError(f"--sort: there is no {sort!r}.{known_are(sort, SORTS)}")
    if wanted.get("status", STATUSES[0]) not in STATUSES:
        raise UserError(f"--status: there is no {wanted['status']!r}.{known_are(wanted['status'], STATUSES)}")
    found = [_row(run) for run in record.find_runs(root)]
    for key, value in wanted.items():
        there = sorted({row[key] for row in found})
        if found and key != "status" and value not in there:
            raise UserError(f"There is no run under {root} with --{key}={value}.{known_are(value, there)}")
    found = [row for row in found if all(row[key] == value for key, value in wanted.items())]
    known = [row for row in found if row[sort] is not None]
    known.sort(key=lambda row: row[sort], reverse=sort.endswith("accuracy"))
    return known + [row for row in found if row[sort] is None]


def root_near(root: Path) -> Path | None:
    """The root of the runs near ``root``: a folder above or below it; None if there are no runs."""
    if next(record.find_runs(root), None):
        return None
    root = root.resolve() if ".." in root.parts else root
    for above in range(1, 5):
        found = root.glob("*/" * (4 - above) + record.CONFIG)
        if any(re.match(r"seed[0-9]+-", file.absolute().parent.name) for file in found):
            return (root if len(root.parts) >= above else root.absolute()).parents[above - 1]
    return next((file.parents[4] for file in sorted(root.glob(f"*/*/*/*/seed*/{record.CONFIG}"))), None)


def misplaced(root: Path) -> list[Path]:
    """The runs under ``root`` that lie too near to it to be listed."""
    return sorted(file.parent for above in ("*/*", "*", ".") for file in root.glob(f"{above}/seed*-*/{record.CONFIG}"))


def _row(run: record.Run) -> Row:
    dataset, model, variant, _ = run.path.parts[-4:]
    row: Row = dict.fromkeys(COLUMNS) | {"dataset": dataset, "model": model, "variant": variant, "path": str(run.path)}
    # A run that was killed has no summary; its folder's name is read a hundred times as fast as its configuration.
    named = re.match(r"seed([0-9]{1,19})-", run.path.name)
    row["seed"] = int(named[1]) if named else -1
    try:
        summary = record.open_run(run.path).summary
        said = {key: summary.get(key) for key in ("dataset", "model", "variant", "seed")}
        row |= {key: value for key, value in said.items() if value is not None}
    except UserError:
        return row | {"status": "damaged"}
    return row | {key: summary.get(key) for key in ("status", "test_accuracy", "val_accuracy", "seconds")}


def as_csv(found: list[Row]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def as_text(found: list[Row]) -> str:
    """The rows as aligned text; the path comes last, on a narrow terminal on a line of its own, and is never cut."""
    lines = [["variant", "seed", "status", "test acc", "val acc", "seconds", "run"]]
    for row in found:
        numbers = [
            _number(row[key], digits) for key, digits in (("test_accuracy", 4), ("val_accuracy", 4), ("seconds", 1))
        ]
        lines.append([row["variant"], str(row["seed"]), row["status"], *numbers, shown(row["path"])])
    text = aligned(lines, left=(0, 2, 6))
    width = terminal_width()
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    numbers = aligned([line[:-1] for line in lines], left=(0, 2)).splitlines()
    return "\n".join(f"{first}\n  {printable(line[-1])}" for first, line in zip(numbers, lines, strict=True))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def describe(path: Path) -> str:
    """A run in full: summary, curves, configuration.

    Raises:
        UserError: there is no run, or it is damaged.
    """
    run = record.open_run(path)
    parts = [printable(shown(path)), ""]
    for key, value in run.summary.items():
        if value is not None:
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            parts.append(printable(f"{key:<17} {text}"))
    if record.is_there(path / record.METRICS):
        lines = [list(record.COLUMNS)]
        for row in run.metrics:
            lines.append([_cell(key, row[key]) for key in record.COLUMNS])
        parts += ["", fitted(lines, left=())]
    return "\n".join([*parts, "", to_yaml(run.config).rstrip()])


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if key == "step" else f"{value:.5g}"


def comparison_table(comparison: Comparison) -> str:
    """The comparison's table as text, with what its columns mean."""
    found = table(comparison)
    first = comparison.variants[0]
    head = [
        "variant",
        "n",
        "test accuracy, %",
        f"minus {first}",
        "epochs to threshold",
        "seconds",
        "parameters",
        "buffers",
    ]
    lines = [head]
    for row in found:
        count = f"{row['n']}" + (f" (+{row['diverged']} diverged)" if row["diverged"] else "")
        epochs = "-" if not row["reached"] else _between(row, "epochs_to_threshold", 1, 1)
        if row["reached"] < row["n"]:
            epochs += f" ({row['reached']}/{row['n']})"
        cells = [_between(row, "test_accuracy", 100, 2), _between(row, f"minus_{first}", 100, 2), epochs]
        sizes = [f"{row['parameters']:,}", f"{row['buffers']:,}"]
        lines.append([row["variant"], count, *cells, _number(row["seconds_median"], 1), *sizes])
    notes = [
        f"Means with 95% intervals over seeds (Student's t), on {comparison.provenance['data'][0]['data']}.",
        f"minus {first}: differences of the same seed, in percentage points. Epochs: to {comparison.goal}.",
    ]
    return "\n".join([fitted(lines), "", *_wrapped(notes)])


def _between(row: Row, name: str, scale: float, digits: int) -> str:
    mean, low, high = (row[f"{name}_{end}"] for end in ("mean", "low", "high"))
    if mean is None:
        return "-"
    ends = "" if low is None else f" [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"
    return f"{mean * scale:.{digits}f}{ends}"


def sweep_table(runs: Sequence[tuple[list[str], Outcome]]) -> str:
    """One line a combination of the swept values, over its seeds: n and accuracies with 95% intervals (Student's t).

    Args:
        runs: the overrides of each run, and what came of it.
    """
    varied = {text for overrides, _ in runs for text in overrides if not all(text in each for each, _ in runs)}
    cells: dict[str, list[Outcome]] = {}
    for overrides, outcome in runs:
        name = " ".join(text for text in overrides if text in varied and not text.startswith("seed="))
        cells.setdefault(name or "all", []).append(outcome)
    lines = [["runs", "n", "validation accuracy, %", "test accuracy, %", "diverged", "failed"]]
    for name, outcomes in cells.items():
        summaries = [record.Run(outcome.path).summary for outcome in outcomes if outcome.state == Status.completed]
        accuracies = [
            _percent(t_interval([float(summary[key]) for summary in summaries if summary.get(key) is not None]))
            for key in ("val_accuracy", "test_accuracy")
        ]
        states = Counter(outcome.state for outcome in outcomes)
        ends = [str(states[Status.diverged] or "-"), str(states[Status.failed] or "-")]
        lines.append([name, str(len(summaries)), *accuracies, *ends])
    return fitted(lines)


def _wrapped(notes: Sequence[str]) -> list[str]:
    width = terminal_width()
    return [line for note in notes for line in (textwrap.wrap(note, width) if width else [note])]


def _percent(interval: Interval) -> str:
    if interval.n == 0:
        return "-"
    ends = "" if interval.n == 1 else f" [{interval.low * 100:.2f}, {interval.high * 100:.2f}]"
    return f"{interval.mean * 100:.2f}{ends}"


def verdict_table(judged: Sequence[Judged], width: int | None = None) -> str:
    """A line for each claim with its verdict, and under it what was found, as wide as the terminal."""
    width = max(40, min(width or shutil.get_terminal_size().columns, 120))
    indent = " " * (2 + max((len(each.claim.id) for each in judged), default=0))
    counts = Counter(each.verdict for each in judged)
    lines = [f"{counted(len(judged), 'claim')}: " + ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v])]
    for each in judged:
        size = "" if each.claim.scale == "exact" else f" ({each.claim.scale})"  # none reads like one on the source
        head = f"{each.claim.id:<{len(indent)}}{each.verdict.value.upper()}{size}: {each.claim.sentence}"
        for first, text in ((head, ""), (indent, each.answer)):
            lines += textwrap.wrap(f"{first}{text}", width, subsequent_indent=indent, break_long_words=False)
    return "\n".join(lines)
