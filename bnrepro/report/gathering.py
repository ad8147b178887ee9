"""What stands in a folder of results, as a `Report`. Files are read, and nothing else is done."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bnrepro.claims.conclusion import Conclusion, open_conclusion
from bnrepro.claims.records import find, provenance_of
from bnrepro.errors import UserError
from bnrepro.experiments import NAMES
from bnrepro.report import compare
from bnrepro.report.compare import Comparison
from bnrepro.report.model import Image, Report, Section
from bnrepro.report.wording import Rows, duration, flat
from bnrepro.stats import Interval

T = TypeVar("T")
LeftOut = Callable[[str], None]


SIZES = {"smoke": 0, "quick": 1}
"""Presets that the others are larger than."""


def gather(out: Path, left_out: LeftOut | None = None) -> Report:
    """The experiments and comparisons in ``out`` and below; ``left_out`` is as for `bnrepro.report.report.write`.

    Raises:
        UserError: there is nothing, or something is damaged.
    """
    if not (sections := sections_in(out, left_out)):
        raise UserError(f"There are no results under {out}. `bnrepro reproduce` makes them.")
    return Report(sections)


def sections_in(out: Path, left_out: LeftOut | None = None) -> list[Section]:
    """A section for each experiment and each comparison in ``out`` and below, in the order of the experiments' list.

    Raises:
        UserError: something is damaged, and nobody is told or there is nothing else; two have the same name.
    """
    problems: list[UserError] = []

    def readable(read: Callable[[Path], T], folders: list[Path]) -> list[T]:
        found: list[T] = []
        for folder in folders:
            try:
                found.append(read(folder))
            except UserError as error:
                if left_out is None:
                    raise
                problems.append(error)
        return found

    comparisons = list(compare.find(out))
    conclusions = readable(open_conclusion, _best([each for each in find(out) if each not in comparisons]))
    order = {name: place for place, name in enumerate(NAMES)}
    conclusions.sort(key=lambda c: (order.get(c.name, len(order)), c.name, str(c.folder)))
    sections = [_of_experiment(conclusion) for conclusion in conclusions]
    sections += readable(lambda folder: _of_comparison(folder, out), comparisons)
    if problems and not sections:
        raise problems[0]
    for problem in problems:
        assert left_out is not None
        left_out(str(problem))
    twice = [name for name, count in Counter(section.name for section in sections).items() if count > 1]
    if twice:
        where = " and ".join(str(c.folder) for c in conclusions if c.name in twice)
        raise UserError(f"{', '.join(twice)} is stored more than once: {where}. Give one folder with --out.")
    return sections


def _best(folders: list[Path]) -> list[Path]:
    """Of an experiment's presets, which lie in one another's folders, the largest that is there."""
    best: dict[Path, Path] = {}
    for folder in folders:  # what lies in a folder comes after it
        place = folder.parent if folder.name in SIZES else folder
        before = best.get(place)
        size, than = (_size(each) for each in (folder, before or folder))
        if size >= than:
            best[place] = folder
    return list(best.values())


def _size(folder: Path) -> int:
    try:
        return SIZES.get(str(provenance_of(folder).get("preset")), 2)
    except UserError:  # told when it is opened, as of damaged ones
        return 2


def _of_experiment(conclusion: Conclusion) -> Section:
    about, records = conclusion.records.provenance, conclusion.records
    runs = {row["config_hash"] or index: row["status"] for index, row in enumerate(records.runs)}
    facts = [("Preset", records.preset), ("Made by", about["command"]), *origin(about)]
    if runs:
        facts.append(("Runs", _statuses(runs)))
    if records.measurements:
        facts.append(("Values measured", f"{len(records.measurements):,}"))
    facts += _spent(about)
    return Section(
        name=conclusion.name,
        title=conclusion.captions["title"],
        source=conclusion.captions["source"],
        facts=facts,
        deviations=conclusion.captions["deviations"],
        claims=conclusion.claims,
        images=[
            Image(conclusion.folder / "figures" / name, caption)
            for name, caption in conclusion.captions["figures"].items()
        ],
        tables=[(title, rows) for _, title, rows in conclusion.tables],
        settings=records.settings,
        preset=records.preset,
        curves=records.curves,
        runs=records.runs,
    )


def _of_comparison(folder: Path, out: Path) -> Section:
    comparison = compare.open_comparison(folder)
    settings = dict(flat(comparison.settings))
    network, dataset = settings.get("model.name", "a network"), settings.get("data.name", "a dataset")
    name = folder.relative_to(out).as_posix() if folder != out else folder.resolve().name
    about = comparison.provenance
    return side_by_side(
        comparison,
        name=f"comparison-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}",
        title=f"Variants side by side: {network} on {dataset} ({name})",
        facts=[("Made by", about["command"]), *origin(about), *_spent(about)],
        overview=folder / "figures" / "overview",
    )


def side_by_side(
    comparison: Comparison, *, name: str, title: str, facts: list[tuple[str, str]], overview: Path
) -> Section:
    """A section on variants: their table, and their curves in the file ``overview``, where there is one."""
    first = comparison.variants[0]
    named = {"test_accuracy": "test accuracy", f"minus_{first}": f"minus {first}", "epochs_to_threshold": "epochs"}
    rows: Rows = []
    for row in compare.table(comparison):
        counts = {"test_accuracy": row["n"], f"minus_{first}": row["pairs"], "epochs_to_threshold": row["reached"]}
        intervals = {title: _interval(row, key, counts[key]) for key, title in named.items()}
        sizes = {key: row[key] for key in ("parameters", "buffers")}
        rows.append({"variant": row["variant"], "n": row["n"], "diverged": row["diverged"], **intervals, **sizes})
    caption = "Curves: mean over seeds with its 95% interval; losses on a logarithmic axis."
    about = (
        f"Means with 95% intervals over seeds; minus {first}: difference of the same seed; "
        f"epochs: to {comparison.goal}."
    )
    return Section(
        name=name,
        title=title,
        source="",
        facts=facts,
        deviations=[],
        claims=[],
        images=[Image(overview, caption)] if overview.with_suffix(".svg").is_file() else [],
        tables=[(about, rows)],
        settings=dict(flat(comparison.settings)),
        curves=comparison.curves,
        runs=comparison.runs,
    )


def _interval(row: dict[str, Any], key: str, count: int) -> Interval | None:
    mean, low, high = (row[f"{key}_{end}"] for end in ("mean", "low", "high"))
    if mean is None:
        return None
    return Interval(mean, math.nan if low is None else low, math.nan if high is None else high, count)


def origin(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Data, machines, versions and revisions, as facts of a section."""
    facts = []
    for data in about.get("data", []):
        known = "the official files" if data.get("data_official") else "not the official files"
        facts.append(("Data", f"{data.get('data')} ({known}; fingerprint {data.get('data_fingerprint')})"))
    facts += [("Machine", str(machine)) for machine in about.get("machines", [])]
    facts += [
        ("Versions", ", ".join(f"{package} {version}" for package, version in versions.items()))
        for versions in about.get("versions", [])
    ]
    return facts + [("Git revision", str(revision)) for revision in about.get("git_revisions", []) if revision]


def _spent(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Time, and what failed."""
    spent = {part: sum(kinds.values()) for part, kinds in about["seconds"].items()}
    each = ", ".join(f"{part} {duration(seconds)}" for part, seconds in spent.items())
    time = f"{duration(sum(spent.values()))} of one process ({each})"
    return [("Time", time), *(("Failed", text) for text in about["failed"])]


def _statuses(runs: dict[Any, str]) -> str:
    counts = Counter(runs.values())
    parts = [f"{count} {status}" for status, count in counts.items() if status != "completed"]
    return f"{len(runs)}" + (f", of which {', '.join(parts)}" if parts else "")
