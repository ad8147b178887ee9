"""What an experiment's records come to, as files: claims.json, tables/, figures/, captions.json; and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bnrepro.claims import judging
from bnrepro.claims.evidence import Name as RuleName
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.gates import Gate
from bnrepro.claims.judging import Judged
from bnrepro.claims.paper import Kind, Paper, Scale
from bnrepro.claims.records import CAPTIONS, Preset, Records, drawn_by, made_by, read
from bnrepro.claims.registering import check_as_judged
from bnrepro.claims.results import Row
from bnrepro.config import digits_of, unreadable
from bnrepro.errors import UserError, in_brackets, known_are
from bnrepro.runs import record
from bnrepro.runs.tables import plain, read_rows, write_rows
from bnrepro.stats import Interval
from bnrepro.system import reading as stored
from bnrepro.system.output import only_shown, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIMS = "claims.json"
EARLIER = "earlier"
"""Folder of the verdicts under earlier designs of a paper in a file of a user's own."""
ENDS = ("mean", "low", "high", "n")


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
class EffectRow:
    """An effect in claims.json. See `bnrepro.claims.evidence.Effect`."""

    condition: str
    mean: float | None
    low: float | None
    high: float | None
    n: stored.Count
    confidence: float
    seeds: dict[str, float | None]
    unit: str
    rule: RuleName
    bar: float | None
    margin: float | None
    ratio: bool
    shown: str

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"an interval with the confidence {self.confidence}")


@dataclass
class Judging(EffectRow):
    """An effect with what it comes to."""

    state: str


@dataclass
class Registered:
    """Of a claim's design, in claims.json. See `bnrepro.claims.registering`."""

    registered: str | None
    """The day on which it was registered; None where it was not."""
    commit: str | None
    committed: str | None
    amended: list[dict[str, str]]
    as_registered: bool


@dataclass
class Looked:
    """At which look a claim was judged. See `bnrepro.stats.Look`."""

    number: stored.Count
    of: stored.Count
    seeds: stored.Count


@dataclass
class ClaimRow:
    """A claim in claims.json."""

    id: str
    paper: stored.Name
    source: str
    sentence: str
    quote: str | None
    where: str | None
    reported: str
    kind: Kind
    scale: Scale
    scale_note: str
    gate: Gate | None
    verdict: Verdict
    withdrawn: str | None
    answer: str
    found: str
    estimand: str
    rule: str | None
    unit: str
    bar: float | None
    margin: float | None
    effects: list[Judging]
    beside: list[EffectRow]
    deciding: stored.Count | None
    look: Looked | None
    needed: stored.Count | None
    flips_at: list[float]
    judged_in: str
    preset: Preset
    design_hash: str
    seconds: float
    machine: str
    command: str
    at_margins: dict[str, Verdict] = field(default_factory=dict)
    """The verdict at half (0.5) and double (2) the margin."""
    registration: Registered | None = None
    first_run: str | None = None
    """The day on which the first run of its design began."""

    def __post_init__(self) -> None:
        if self.deciding is not None and self.deciding >= len(self.effects):
            raise ValueError(f"effect {self.deciding} of {len(self.effects)} decides")


KINDS, SCALES = get_args(Kind), get_args(Scale)


@dataclass(frozen=True)
class Conclusion:
    """An experiment's folder, read back: all that a report shows, and no code."""

    folder: Path
    captions: dict[str, Any]
    """title, source, deviations; the title of each table and the caption of each figure."""
    claims: list[Row]
    """`ClaimRow`, one a claim."""
    tables: list[tuple[str, str, list[Row]]]
    """Name, title, rows."""
    records: Records

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.captions["name"])


def check_whose(paper: Paper[Any], folder: Path) -> None:
    """Check that ``folder`` holds nothing of another paper in a file of the same name: of other title and claims.

    Raises:
        UserError: it does.
    """
    try:
        held = stored.read_json(folder / CAPTIONS, Captions, folder)
        claims = {row["sentence"] for row in stored.read_json(folder / CLAIMS, list[ClaimRow], folder)}
    except (OSError, ValueError):  # there is nothing, or nothing to read
        return
    alike = held["title"] == paper.title or claims & {claim.sentence for claim in paper.claims}
    if paper.file and not alike:
        raise UserError(
            f"{shown(folder)} holds results of {held['title']!r}, and {shown(paper.file)} is {paper.title!r}. Give the "
            "file another name, or its results another folder with --out."
        )


def conclude(paper: Paper[Any], records: Records, folder: Path) -> list[Judged]:
    """Judge ``records``, and write claims, tables and figures into ``folder``. Nothing is trained or measured.

    Raises:
        UserError: the records have other settings than the paper's.
    """
    from bnrepro.plots import style as figures

    for part in ("tables", "figures", EARLIER):  # files that are not needed any more are deleted in the first two
        if stored.leads_out(folder / part, folder):
            raise UserError(f"{shown(folder / part)} is a link that leads out of its folder. Replace it with a folder.")
    settings = settings_of(paper, records, folder)
    judged = judging.judged(paper, records, settings)
    rows = [each.as_row(paper.name) | _origin(records) for each in judged]
    tables = list(judging.tables(paper, records, settings))  # before anything is written: a mistake in one stops here
    if paper.file:  # of the package's, git has what was before
        _keep_earlier(folder, rows)
    record.write_whole(folder / CLAIMS, as_json(rows))
    titles, captions, kept = {}, {}, {each.name for each in paper.figures}
    for name, title, table in tables:
        write_rows(folder / "tables" / f"{name}.csv", _expanded(table))
        titles[name] = title
    _remove_others(folder / "tables", titles.keys())
    with only_shown("Figures"), figures.style():
        for name, caption, figure in judging.figures(paper, records, settings):
            if figure is None:
                kept.remove(name)
                continue
            with only_shown(f"Figure {name}"):
                figures.save(figure, folder / "figures" / name)
                captions[name] = caption
    _remove_others(folder / "figures", kept)  # of one that failed, what was there before is better than nothing
    about: dict[str, Any] = {"name": paper.name, "title": paper.title, "source": paper.source}
    about |= {"deviations": list(paper.differences), "tables": titles, "figures": captions}
    record.write_whole(folder / CAPTIONS, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return judged


def settings_of(paper: Paper[Any], records: Records, folder: Path) -> Any:
    """The settings that ``records``, read from ``folder``, were made with.

    Raises:
        UserError: the paper has other settings now.
    """
    check_whose(paper, folder)
    known = {key: value for key, value in records.settings.items() if key in paper.settings_type.model_fields}
    try:
        return paper.validated(known, "settings")
    except UserError as error:
        raise UserError(
            f"The records in {folder} do not fit this version of {paper.name}, which cannot judge or draw them "
            f"({str(error).rstrip('.')}). {made_by(folder)} makes new ones."
        ) from error


def figures_of(paper: Paper[Any], folder: Path, only: Sequence[str] | None = None) -> dict[str, Figure]:
    """The figures of ``paper`` by name, drawn from the records in ``folder``, into which nothing is written.

    In a notebook::

        from bnrepro.claims.conclusion import figures_of
        from bnrepro.experiments import experiment

        figures_of(experiment("ioffe2015"), Path("results/experiments/ioffe2015"))["figure1"]  # a matplotlib figure

    Args:
        paper: as `bnrepro.experiments.experiment` returns it.
        folder: what `bnrepro reproduce` wrote.
        only: names of the figures to draw; None: all of them.

    Raises:
        UserError: the records are damaged, or of another version of the paper; a name in ``only`` is no figure's, or
            the records have nothing for it.
    """
    from matplotlib.figure import Figure

    from bnrepro.plots.style import style

    for name in only or ():
        if name not in (names := [each.name for each in paper.figures]):
            raise UserError(f"{paper.name} has no figure {name!r}.{known_are(name, names)}")
    records = read(folder)
    settings = settings_of(paper, records, folder)
    check_as_judged(paper, settings, {**records.provenance, "preset": records.preset})
    with style():
        found = judging.figures(paper, records, settings, only)
        drawn = {name: figure for name, _, figure in found if isinstance(figure, Figure)}
    for name in only or ():
        if name not in drawn:
            raise UserError(f"{paper.name}: the figure {name} cannot be drawn from the records in {folder}.")
    return drawn


def _origin(records: Records) -> Row:
    """What claims.json says of how a claim was tested."""
    about = records.provenance
    design = about.get("design")
    return {
        "preset": records.preset,
        "design_hash": design["hash"] if design else digits_of(records.settings),
        "registration": {key: value for key, value in design.items() if key != "hash"} if design else None,
        "first_run": about.get("first_run"),
        "seconds": round(sum(sum(kinds.values()) for kinds in about["seconds"].values()), 1),
        "machine": "; ".join(filter(None, about.get("machines", []))),
        "command": about["command"],
    }


def as_json(rows: list[Row]) -> str:
    """Claims as the text of claims.json."""
    return json.dumps(clean(rows), indent=1, ensure_ascii=False) + "\n"


def clean(value: Any) -> Any:
    """``value`` with None for numbers that JSON does not know, and texts that a terminal takes for no commands."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return stored.printable(value)
    if isinstance(value, dict):
        return {clean(key): clean(each) for key, each in value.items()}
    return [clean(each) for each in value] if isinstance(value, list) else value


def open_conclusion(folder: Path) -> Conclusion:
    """What `conclude` wrote into ``folder``.

    Raises:
        UserError: it is missing or damaged.
    """
    records = read(folder)  # first: what is wrong with these, `figures` cannot mend
    try:
        captions = stored.read_json(folder / CAPTIONS, Captions, folder)
        claims = stored.read_json(folder / CLAIMS, list[ClaimRow], folder)
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
        return Conclusion(folder, captions, claims, tables, records)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise unreadable(Path(error.filename or folder), error) from error
        raise UserError(
            f"The results in {folder} are not complete ({in_brackets(error)}). {drawn_by(folder)} makes them again "
            "from the records."
        ) from error


def _keep_earlier(folder: Path, rows: list[Row]) -> None:
    """Set aside what was judged under another design than ``rows``, which will replace it."""
    try:
        held = stored.read_json(folder / CLAIMS, list[ClaimRow], folder)
    except (OSError, ValueError):  # there is nothing, or nothing to read
        return
    before = held[0]["design_hash"] if held else ""
    if re.fullmatch("[0-9a-f]+", before) and before != (rows[0]["design_hash"] if rows else ""):
        record.write_whole(folder / EARLIER / f"claims-{before}.json", as_json(held))


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


def _remove_others(folder: Path, names: Collection[str]) -> None:
    """What an earlier analysis left in ``folder`` under names that are not used any more."""
    for file in folder.iterdir() if folder.is_dir() else []:
        if file.stem not in names and file.is_file():
            file.unlink(missing_ok=True)
