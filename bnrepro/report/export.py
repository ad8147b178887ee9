"""Results for other programs: each claim as a page of Markdown, and all runs with their curves as one table.

``evaluations.csv`` has one row an evaluation, and one for a run that was never evaluated: where it belongs, its factors
and settings, the evaluation, and how the run ended (``final_...``), so that ``pandas.read_csv`` needs nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnrepro.claims.evidence import Verdict
from bnrepro.claims.results import OF_RUNS
from bnrepro.config import leaves
from bnrepro.report import explaining, wording
from bnrepro.report.markdown import code, escaped, table
from bnrepro.report.model import Report, Section
from bnrepro.report.wording import NONE, Row, Rows, anchor
from bnrepro.runs.record import COLUMNS, write_csv
from bnrepro.system.reading import printable
from bnrepro.system.writing import replace_own, write_whole

CLAIMS, EVALUATIONS, INDEX = "claims", "evaluations.csv", "README.md"
WHO = ("section", "preset", "part", "variant", "seed")
ENDED = tuple(sorted(OF_RUNS - {"config_hash", "precision", "device", "threads"}))
MADE = ("config_hash", "precision", "device", "threads")


def write(report: Report, out: Path) -> list[Path]:
    """Write ``report`` into ``out``: claims/<paper>-<claim>.md, their list claims/README.md, and evaluations.csv.

    Raises:
        UserError: one of these files is there and was not written by this.
    """
    pages = {f"{CLAIMS}/{anchor(row['paper'], row)}.md": claim_page(row) for row in report.claims}
    if pages:
        lines = [f"* [{escaped(row['id'])}]({anchor(row['paper'], row)}.md): {_headline(row)}" for row in report.claims]
        pages[f"{CLAIMS}/{INDEX}"] = "\n".join(["# Claims", "", *lines, ""])
    rows = [row for section in report.sections for row in observations(section)]
    files = [*pages, *([EVALUATIONS] if rows else [])]
    replace_own(out, files)
    for name, text in pages.items():
        write_whole(out / name, printable(text))
    if rows:
        names = columns_of(rows)
        write_csv(out / EVALUATIONS, names, [{name: row.get(name) for name in names} for row in rows])
    return [out / name for name in files]


# --- runs ---------------------------------------------------------------------------------------------------------


def observations(section: Section) -> Iterator[Row]:
    """The section's evaluations, each with its run."""
    settings = {f"config.{key}": value for key, value in _settings(section)}
    like = [key for key in (section.curves[0] if section.curves else ()) if key not in COLUMNS]
    curves: dict[str, Rows] = {}
    for point in section.curves:
        curves.setdefault(_who(point, like), []).append(point)
    for run in section.runs:
        factors = {key: value for key, value in run.items() if key not in OF_RUNS and value is not None}
        known: Row = {"section": section.name, "preset": section.preset, **factors, **settings}
        ended = {f"final_{key}": run.get(key) for key in ENDED} | {key: run.get(key) for key in MADE}
        for point in curves.get(_who(run, like)) or [{}]:
            yield {**known, **{key: point.get(key) for key in COLUMNS}, **ended}


def _settings(section: Section) -> Iterator[tuple[str, Any]]:
    """What all of the section's runs share: a comparison's configuration; of an experiment the numbers of its preset,
    and the overrides of all its arms. Lists are what its factors range over.
    """
    for key, value in leaves(section.settings):
        if not isinstance(value, list):
            yield key, value
        elif key == "common":
            for text in value:
                name, _, of = str(text).partition("=")
                yield name, of


def _who(row: Row, like: list[str]) -> str:
    return str([row.get(key) for key in like])


def columns_of(rows: Rows) -> list[str]:
    """The table's columns: who, factors, settings, the evaluation, how it ended."""
    there = dict.fromkeys(key for row in rows for key in row)
    ended = [f"final_{key}" for key in ENDED]
    known = {*WHO, *COLUMNS, *ended, *MADE}
    settings = sorted(key for key in there if key.startswith("config."))
    factors = [key for key in there if key not in known and key not in settings]
    ordered = (*WHO, *factors, *COLUMNS, *ended, *MADE, *settings)
    return [key for key in ordered if any(row.get(key) is not None for row in rows)]


# --- claims -------------------------------------------------------------------------------------------------------


def claim_page(row: Row) -> str:
    """A claim as a page of Markdown."""
    file, place = explaining.judged_at(row)
    lines = [f"# {escaped(row['id'])}: {escaped(row['sentence'])}", "", _headline(row), ""]
    lines += [f"> {escaped(row['quote'])}", ""] if row["quote"] else []
    where = f" ({row['where']})" if row["where"] else ""
    lines += [escaped(f"{row['source']}{where}. Reported: {row['reported']}. Scale: {wording.scale(row)}."), ""]
    for effects, title in ((row["effects"], row["estimand"]), (row["beside"], "Beside it, without deciding")):
        if effects:
            lines += [f"## {escaped(wording.up(title))}", "", *_effects(effects)]
    lines += ["## Why", ""]
    lines += [f"* {what}: {escaped(text)}" for what, text in explaining.facts(row)]
    lines += [f"* In words: {escaped(row['found'])}", f"* Judged in: {code(file)}, {escaped(place)}"]
    return "\n".join([*lines, f"* Made again by: {code(row['command'])}", ""])


def _headline(row: Row) -> str:
    answer = "" if row["verdict"] == Verdict.not_testable and row["answer"] == row["found"] else f" {row['answer']}"
    return f"**{row['verdict']}**{escaped(wording.size(row))}.{escaped(answer)}"


def _effects(effects: Rows) -> list[str]:
    head = ["condition", "mean and interval", "unit", "n", "state", "by seed"]
    body = [
        [
            *(escaped(effect[key] or NONE) for key in ("condition", "shown", "unit")),
            str(effect["n"]),
            escaped(effect.get("state", NONE)),
            ", ".join(f"{seed}: {_short(value)}" for seed, value in effect["seeds"].items()),
        ]
        for effect in effects
    ]
    return table(head, body)


def _short(value: Any) -> str:
    return NONE if value is None else re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}")
