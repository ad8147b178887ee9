"""What an experiment's records come to, as files: findings.csv, tables/, figures/, captions.json; and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnrepro import record, stored
from bnrepro.claims import judging
from bnrepro.claims.paper import Paper
from bnrepro.claims.results import Results
from bnrepro.compare import CAPTIONS
from bnrepro.config import UserError, digits_of, unreadable
from bnrepro.errors import in_brackets
from bnrepro.experiments.base import Analysis, Claim, Experiment, Finding, Picture, Records, Table, Verdict
from bnrepro.experiments.records import Row, plain, read, read_rows, write_rows
from bnrepro.output import only_shown, shown
from bnrepro.stats import Interval

FINDINGS, CLAIMS = "findings.csv", "claims.json"
ENDS = ("mean", "low", "high", "n")
SHOWN = ("id", "source", "sentence", "reported", "found", "verdict", "effect", "unit")
SENTENCES = frozenset(SHOWN) - {"effect"}  # columns of findings.csv that hold texts only


@dataclass
class Captions:
    """What captions.json says. Names become names of files."""

    name: stored.Name
    title: str
    source: str
    deviations: list[str]
    tables: dict[stored.Name, str]
    figures: dict[stored.Name, str]


@dataclass
class _Row:
    id: str
    source: str
    sentence: str
    reported: str | None
    found: str
    verdict: Verdict
    effect: Interval | None
    unit: str | None


@dataclass(frozen=True)
class Conclusion:
    """An experiment's folder, read back: all that a report shows, and no code."""

    folder: Path
    captions: dict[str, Any]
    """title, source, deviations; the title of each table and the caption of each figure."""
    findings: list[Row]
    """`SHOWN`, one row a claim; the effect is an `Interval` or None."""
    tables: list[tuple[str, str, list[Row]]]
    """Name, title, rows."""
    records: Records
    """What it was made from."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.captions["name"])


def conclude(experiment: Experiment | Paper[Any], records: Records, folder: Path) -> Analysis:
    """Analyse ``records``, and write findings, tables and figures into ``folder``. Nothing is trained or measured."""
    analysis = _of_paper(experiment, records, folder) if isinstance(experiment, Paper) else experiment.analyse(records)
    for part in ("tables", "figures"):  # files that are not needed any more are deleted there
        if stored.leads_out(folder / part, folder):
            raise UserError(f"{folder / part} is a link out of its folder. Put a folder in its place.")
    asked, found = [claim.id for claim in experiment.claims], [finding.claim.id for finding in analysis.findings]
    if asked != found:
        raise ValueError(f"{experiment.name}: claims {asked}, but findings for {found}")
    write_rows(folder / FINDINGS, _expanded([_finding_row(f) for f in analysis.findings]), texts=SENTENCES)
    for table in analysis.tables:
        write_rows(folder / "tables" / f"{table.name}.csv", _expanded(table.rows))
    _remove_others(folder / "tables", {table.name for table in analysis.tables})
    pictures = [picture for picture in analysis.pictures if _saved(picture, folder)]
    _remove_others(folder / "figures", {picture.name for picture in pictures})
    captions = {
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "deviations": list(experiment.differences if isinstance(experiment, Paper) else experiment.deviations),
        "tables": {table.name: table.title for table in analysis.tables},
        "figures": {picture.name: picture.caption for picture in pictures},
    }
    record.write_whole(folder / CAPTIONS, json.dumps(captions, indent=2, ensure_ascii=False) + "\n")
    return analysis


def _of_paper(paper: Paper[Any], records: Records, folder: Path) -> Analysis:
    known = paper.settings_type.model_fields
    settings = paper.validated({k: v for k, v in records.settings.items() if k in known}, f"The settings in {folder}")
    results = Results(records.preset, records.runs, records.curves, records.measurements)
    found = judging.judged(paper, results, settings)
    about = records.provenance
    common = {
        "design_hash": digits_of(records.settings),
        "seconds": round(sum(sum(kinds.values()) for kinds in about["seconds"].values()), 1),
        "machine": "; ".join(about.get("machines", [])),
        "command": about["command"],
    }
    rows = [each.as_row(paper.name) | common for each in found]
    record.write_whole(folder / CLAIMS, json.dumps(clean(rows), indent=1, ensure_ascii=False) + "\n")
    findings = []
    for each in found:
        claim = Claim(each.claim.id, each.claim.source, each.claim.sentence, each.claim.reported)
        effect = each.deciding if each.deciding and each.deciding.rule.name != "exact" else None
        interval, unit = (effect.interval, effect.unit) if effect else (None, "")
        findings.append(Finding(claim, each.verdict, each.found, interval, unit))
    from bnrepro import figures

    with figures.style():
        pictures = [Picture(*shown) for shown in judging.figures(paper, results, settings)]
    return Analysis(findings, [Table(*shown) for shown in judging.tables(paper, results, settings)], pictures)


def clean(value: Any) -> Any:
    """``value`` with None for numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: clean(each) for key, each in value.items()}
    return [clean(each) for each in value] if isinstance(value, list) else value


def _saved(picture: Picture, folder: Path) -> bool:
    """Save a picture and return whether that succeeded. An error is reported and affects no other file."""
    with only_shown(f"Figure {picture.name}"):
        from bnrepro import figures

        figures.save(picture.figure, folder / "figures" / picture.name)
        return True
    return False


def open_conclusion(folder: Path) -> Conclusion:
    """What `conclude` wrote into ``folder``.

    Raises:
        UserError: it is missing or damaged.
    """
    records = read(folder)  # first: what is wrong with these, `figures` cannot mend
    try:
        captions = stored.read_json(folder / CAPTIONS, Captions, folder)
        findings = [dict.fromkeys(SHOWN) | row for row in _folded(read_rows(folder / FINDINGS, folder, SENTENCES))]
        stored.hold(findings, list[_Row], FINDINGS)
        tables = [
            (name, title, _folded(read_rows(folder / "tables" / f"{name}.csv", folder)))
            for name, title in captions["tables"].items()
        ]
        for figure in (
            folder / "figures" / f"{name}.{kind}" for name in captions["figures"] for kind in ("svg", "png")
        ):
            stored.plain_size(figure)
            if stored.leads_out(figure, folder):
                raise ValueError(f"{figure.name} is a link that leads out of the folder")
        return Conclusion(folder, captions, findings, tables, records)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise unreadable(Path(error.filename or folder), error) from error
        raise UserError(
            f"The results in {folder} are not complete ({in_brackets(error)}). `bnrepro figures {shown(folder)}` "
            "makes them again from the records."
        ) from error


def _finding_row(finding: Finding) -> Row:
    claim = finding.claim
    about = {"id": claim.id, "source": claim.source, "sentence": claim.sentence, "reported": claim.reported}
    verdict = finding.verdict.value
    return about | {"found": finding.found, "verdict": verdict, "effect": finding.effect, "unit": finding.unit or None}


def _expanded(rows: list[Row]) -> list[Row]:
    """Each column that holds an `Interval` as four: its mean, ends and n. A plain number there is a mean alone."""
    wide = {key for row in rows for key, value in row.items() if isinstance(value, Interval)}
    return [
        {name: cell for key, value in row.items() for name, cell in _cells(key, value, key in wide)} for row in rows
    ]


def _cells(key: str, value: Any, wide: bool) -> list[tuple[str, Any]]:
    if not wide:
        return [(key, plain(value))]
    ends = [getattr(value, end) for end in ENDS] if isinstance(value, Interval) else [plain(value), None, None, None]
    return [
        (f"{key}_{end}", None if isinstance(number, float) and math.isnan(number) else number)
        for end, number in zip(ENDS, ends, strict=True)
    ]


def _folded(rows: list[Row]) -> list[Row]:
    """What `_expanded` made of it, with its intervals again."""
    names = list(rows[0]) if rows else []
    wide = {n.removesuffix("_mean") for n in names if n.endswith("_mean")}
    wide = {key for key in wide if all(f"{key}_{end}" in names for end in ENDS)}
    parts = {f"{key}_{end}" for key in wide for end in ENDS[1:]}
    folded = []
    for row in rows:
        new: Row = {}
        for name, value in row.items():
            key = name.removesuffix("_mean")
            if name.endswith("_mean") and key in wide:
                new[key] = _interval(*(row[f"{key}_{end}"] for end in ENDS))
            elif name not in parts:
                new[name] = value
        folded.append(new)
    return folded


def _interval(mean: float | None, low: float | None, high: float | None, n: int | None) -> Any:
    if n is None:
        return mean
    if type(n) is not int or n < 0:
        raise ValueError(f"an interval has n = {n}")
    mean, low, high = (math.nan if value is None else float(value) for value in (mean, low, high))
    return Interval(mean, low, high, n)


def _remove_others(folder: Path, names: set[str]) -> None:
    """What an earlier analysis left in ``folder`` under names that are not used any more."""
    for file in folder.iterdir() if folder.is_dir() else []:
        if file.stem not in names and file.is_file():
            file.unlink(missing_ok=True)
