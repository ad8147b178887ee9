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
from typing import Any

from bnrepro.claims.evidence import Verdict
from bnrepro.config import to_yaml
from bnrepro.report.compare import Comparison, table
from bnrepro.report.explaining import facts, judged_at
from bnrepro.report.questions import stale
from bnrepro.report.sweeping import Cell, best
from bnrepro.runs import record
from bnrepro.runs.index import Stored
from bnrepro.stats import Interval
from bnrepro.system.output import counted, shown
from bnrepro.system.reading import printable
from bnrepro.system.text import aligned, fitted, terminal_width

Row = dict[str, Any]


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


def as_csv(found: Sequence[Stored], columns: Sequence[str]) -> str:
    """The runs as CSV, with some columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.row(columns) for run in found)
    return text.getvalue()


SHORT = {"test_accuracy": "test acc", "val_accuracy": "val acc", "path": "run"}


def as_text(found: Sequence[Stored], columns: Sequence[str] = (), extra: Sequence[str] = ()) -> str:
    """The runs as aligned text; the path comes last, on a narrow terminal on a line of its own, and is never cut.

    Args:
        found: the runs.
        columns: to show; none: those that every run has.
        extra: columns beside those.
    """
    names = [*(columns or ("variant", "seed", "status", "test_accuracy", "val_accuracy", "seconds")), *extra]
    names = [*dict.fromkeys(name for name in names if name != "path"), "path"]
    lines = [[SHORT.get(name, name) for name in names]]
    lines += [[_shown_cell(name, run.value(name)) for name in names] for run in found]
    texts = [i for i, name in enumerate(names) if any(isinstance(run.value(name), str) for run in found)]
    text = aligned(lines, left=texts)
    width = terminal_width()
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    numbers = fitted([line[:-1] for line in lines], left=texts).splitlines()
    if len(numbers) != len(lines):  # too many columns for one table
        return "\n".join([*numbers, "", *(printable(line[-1]) for line in lines)])
    return "\n".join(f"{first}\n  {printable(line[-1])}" for first, line in zip(numbers, lines, strict=True))


def _shown_cell(name: str, value: Any) -> str:
    if name == "path":
        return shown(value)
    if value is None:
        return "-"
    if name.endswith("accuracy") or name == "seconds":
        return _number(value, 1 if name == "seconds" else 4)
    return f"{value:g}" if isinstance(value, float) else str(value)


def difference(first: Path, second: Path, found: dict[str, dict[str, tuple[Any, Any]]]) -> str:
    """What differs between two runs, by kind; of numbers by how much, too."""
    parts = [f"A  {printable(shown(first))}", f"B  {printable(shown(second))}"]
    for kind, keys in found.items():
        lines = [[kind, "A", "B", "B - A"]]
        for key, (one, other) in keys.items():
            numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
            lines.append([key, _cell(key, one), _cell(key, other), f"{other - one:+.4g}" if numbers else ""])
        parts += ["", fitted(lines)]
    return "\n".join(parts if found else [*parts, "", "Nothing differs."])


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


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
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


def sweep_table(cells: Sequence[Cell]) -> str:
    """One line a combination of the swept values, over its seeds: n and accuracies with 95% intervals (Student's t).

    The best by validation accuracy is marked, and named under the table.
    """
    first = best(cells)
    lines = [["runs", "n", "validation accuracy, %", "test accuracy, %", "diverged", "failed"]]
    for cell in cells:
        name = f"{'*' if cell is first and len(cells) > 1 else ' '} {cell.name}"
        accuracies = [_percent(interval) for interval in cell.accuracies.values()]
        lines.append([name, str(cell.n), *accuracies, str(cell.diverged or "-"), str(cell.failed or "-")])
    if first is None or len(cells) == 1:
        return fitted(lines)
    note = f"* {first.name} has the best validation accuracy; test accuracy was not used to choose it."
    return "\n".join([fitted(lines), "", *_wrapped([note])])


def _wrapped(notes: Sequence[str]) -> list[str]:
    width = terminal_width()
    return [line for note in notes for line in (textwrap.wrap(note, width) if width else [note])]


def _percent(interval: Interval) -> str:
    if interval.n == 0:
        return "-"
    ends = "" if interval.n == 1 else f" [{interval.low * 100:.2f}, {interval.high * 100:.2f}]"
    return f"{interval.mean * 100:.2f}{ends}"


def verdict_table(claims: Sequence[Row], width: int | None = None) -> str:
    """A line for each claim of claims.json with its verdict, and under it what was found, as wide as the terminal."""
    ids = [each["id"].rpartition("/")[2] for each in claims]
    indent = " " * (2 + max(map(len, ids), default=0))
    counts = Counter(each["verdict"] for each in claims)
    lines = [f"{counted(len(claims), 'claim')}: " + ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v])]
    if not claims:
        return "The paper has no claims."
    for name, each in zip(ids, claims, strict=True):
        head = f"{name:<{len(indent)}}{_verdict(each)}: {each['sentence']}"
        for first, text in ((head, ""), (indent, each["answer"])):
            lines += _hanging(f"{first}{text}", indent, width)
    return "\n".join(lines)


def describe_claim(claim: Row, width: int | None = None) -> str:
    """A claim of claims.json in full: what its source says, its verdict, and how that was made."""
    file, place = judged_at(claim)
    source = f"{claim['source']}; {claim['where']}" if claim["where"] else claim["source"]
    about = [("Claim", claim["sentence"]), ("Source", source), ("In its words", claim["quote"])]
    about += [("Reported", claim["reported"]), ("Found", claim["found"]), *facts(claim)]
    about += [("Judged in", f"{file}, {place}"), ("Made by", claim["command"])]
    awaited = stale(claim)
    earlier = f", under an earlier design: the one registered on {awaited} awaits its runs" if awaited else ""
    lines = [f"{claim['id']}: {_verdict(claim)}{earlier}", ""]
    indent = " " * (2 + max(len(what) for what, _ in about))
    for what, text in about:
        lines += _hanging(printable(f"{what:<{len(indent)}}{text}"), indent, width) if text else []
    return "\n".join(lines)


def _verdict(claim: Row) -> str:
    size = "" if claim["scale"] == "exact" else f" ({claim['scale']})"  # none reads like one on the source
    return f"{str(claim['verdict']).upper()}{size}"


def _hanging(text: str, indent: str, width: int | None) -> list[str]:
    width = max(40, min(width or shutil.get_terminal_size().columns, 120))
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False)
