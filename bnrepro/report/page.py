"""The report as one HTML file: no requests, and nothing runs but its own scripts, which the policy names by their hash.

Templates, style and scripts are files in `atlas/`. Jinja escapes every text; what is marked as HTML here is made of
escaped parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bnrepro import __version__
from bnrepro.claims.conclusion import KINDS, SCALES
from bnrepro.claims.evidence import Verdict
from bnrepro.report import curves, explaining, forest, questions, wording
from bnrepro.report.drawing import inline
from bnrepro.report.model import Image, Report, Section
from bnrepro.report.wording import LONG, MEANINGS, TITLE, Q, Row, Rows, anchor, counted, flat, number_of, plural
from bnrepro.stats import Interval
from bnrepro.system.reading import printable

ATLAS = Path(__file__).with_name("atlas")
STYLES, SCRIPTS = ("uplot.css", "style.css"), ("atlas.js", "hints.js")
CHARTS = ("uplot.js", "chart.js")
"""Scripts that only a page with curves needs."""
SHORT = 30  # characters that a table's cell keeps on one line
SMALL, WIDE = 300, 420  # points up to which a figure is half a page wide, and from which it is a whole one
TENS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def page(report: Report, out: Path | None = None, title: str = TITLE) -> str:
    """``report`` as HTML.

    Args:
        report: what it shows.
        out: the folder that it will lie in, for links to the code beside it; None: it goes to somebody else.
        title: its heading.
    """
    judged = [section for section in report.sections if section.claims]
    charts = {section.name: found for section in report.sections if (found := curves.charts(section))}
    style = "\n".join(map(_asset, STYLES))
    scripts = [_asset(name) for name in (*SCRIPTS, *(CHARTS if charts else ()))]
    text = (
        _environment(out)
        .get_template("page.html")
        .render(
            report=report,
            title=title,
            version=__version__,
            policy=policy([style], scripts),
            style=Markup(style),
            scripts=list(map(Markup, scripts)),
            lead=lead(report),
            answers=questions.answers(report.claims),
            claims=report.claims,
            judged=judged,
            filters=_filters(report.claims),
            ticks=forest.common_ticks(),
            meanings=MEANINGS,
            q=Q,
            charts={name: _json({"t": curves.quantiles(), "charts": each}) for name, each in charts.items()},
            numbering=Numbering(),
        )
    )
    return printable(text)


def lead(report: Report) -> list[str]:
    """What is here, in four sentences; of a page without claims, in one or two."""
    claims = report.claims
    if not claims:
        runs = sum(len(section.runs) for section in report.sections)
        return [
            f"{plural(runs, 'run')} of this project's networks, with curves, tables and settings.",
            "It loads nothing.",
        ]
    judged = sum(bool(section.claims) for section in report.sections)
    return [
        f"{plural(len(claims), 'claim')} about batch normalization from {plural(judged, 'source')}, each put to the "
        "test by code that anyone can run again.",
        f"{wording.up(counted(claims))}.",
        "A verdict comes from one rule on intervals over seeds; reduced and toy say that it was tried at a smaller "
        "scale than the source's.",
        questions.awaiting(claims) or "No claim awaits other runs.",
    ]


def policy(styles: list[str], scripts: list[str]) -> str:
    """The content security policy: these styles and scripts by their hashes, pictures in the page, and nothing else."""

    def hashes(texts: list[str]) -> str:
        each = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in each)

    allowed = {"default-src": "'none'", "script-src": hashes(scripts), "style-src": hashes(styles), "img-src": "data:"}
    allowed |= {"base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{what} {where}" for what, where in allowed.items())


class Numbering:
    """The numbers of figures and tables."""

    def __init__(self) -> None:
        self._figures = self._tables = 0

    def figure(self) -> int:
        """The next figure's."""
        self._figures += 1
        return self._figures

    def table(self) -> int:
        """The next table's."""
        self._tables += 1
        return self._tables


# --- what templates call ------------------------------------------------------------------------------------------


def _environment(out: Path | None) -> Environment:
    made = Environment(
        loader=FileSystemLoader(ATLAS), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    made.filters |= {
        "text": text,
        "breakable": _breakable,
        "parted": wording.parted,
        "short": _short,
        "in_words": lambda count: TENS[count] if count < len(TENS) else str(count),
        "plural": plural,
        "blank": lambda value: "" if value is None else f"{value:.4g}",
        "flat": flat,
        "drawing": _drawing,
        "columns": columns,
        "counts": _counts,
        "contents": _contents,
        **_of_claims(out),
    }
    return made


def _of_claims(out: Path | None) -> dict[str, Callable[..., Any]]:
    """What templates ask of a claim's row."""
    return {
        "anchored": lambda row: anchor(row["paper"], row),
        "number_of": number_of,
        "scale": wording.scale,
        "brief": wording.brief,
        "stale": questions.stale,
        "deciding": forest.deciding,
        "in_margins": forest.in_margins,
        "overview": lambda row: forest.overview(row, questions.reported(row)),
        "panels": lambda row: forest.panels(row["effects"], reported=questions.reported(row)),
        "panels_beside": lambda row: forest.panels(row["beside"], decides=False),
        "valued": _valued,
        "by_seed": by_seed,
        "facts": explaining.facts,
        "judged_at": explaining.judged_at,
        "link": partial(explaining.link, out=out),
        "q_of": wording.q_of,
    }


def text(value: Any) -> Markup:
    """A text with its addresses as links and what stands between backticks as code."""
    return Markup(
        wording.marked_up(
            str(value),
            _breakable,
            lambda address: Markup('<a href="{}">{}</a>').format(address, _breakable(address.split("//", 1)[1])),
            lambda code: Markup("<code>{}</code>").format(code),
        )
    )


def _breakable(value: Any) -> Markup:
    """A text escaped; a long word may break after a slash or an underscore, rather than anywhere."""
    told = str(escape(str(value)))
    return Markup(re.sub(r"\S{15,}", lambda word: re.sub(r"([/_])(?=\w)", r"\1<wbr>", word.group()), told))


def _short(title: str) -> str:
    return title if len(title) <= 72 else f"{title[:70].rstrip(' ,')}…"


def _drawing(image: Image, number: int) -> tuple[Markup, str]:
    """A figure's element, and how much of the page's width it takes."""
    drawn, width = inline(image.stem.with_suffix(".svg"), f"f{number}-", image.caption)
    return Markup(drawn), "small" if width <= SMALL else "wide" if width > WIDE else "middle"


class Grid(NamedTuple):
    """A table's cells as they are shown."""

    names: list[tuple[str, bool]]
    """(heading, whether its cells are numbers)."""
    rows: list[list[tuple[str, str]]]
    """(cell, class)."""
    folded: bool


def columns(rows: Rows) -> Grid:
    """``rows`` as a table shows them: digits are equal within a column."""
    names = list(rows[0]) if rows else []
    texts = {name for name in names if any(isinstance(row[name], str) for row in rows)}
    shown = {name: wording.column([row[name] for row in rows]) for name in names}
    body = [
        [(shown[n][i], ("short" if len(shown[n][i]) <= SHORT else "") if n in texts else "number") for n in names]
        for i in range(len(rows))
    ]
    return Grid([(name.replace("_", " "), name not in texts) for name in names], body, len(rows) >= LONG)


def _valued(panel: forest.Panel) -> list[tuple[Row, forest.Strip | None, str]]:
    """(effect, strip, mean and interval) of a panel's rows; digits are equal within it."""
    values = wording.column([_interval(effect) for effect, _ in panel.rows])
    found = zip(panel.rows, values, strict=True)
    return [
        (effect, drawn, value.partition(" (n=")[0] if drawn else effect["shown"]) for (effect, drawn), value in found
    ]


def _interval(effect: Row) -> Interval:
    mean, low, high = (math.nan if effect[end] is None else effect[end] for end in ("mean", "low", "high"))
    return Interval(mean, low, high, effect["n"])


def by_seed(row: Row) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """(conditions, (seed, values)) of a claim's effects that are random; None where none is."""
    effects = [effect for effect in row["effects"] if effect["rule"] != "exact" and effect["seeds"]]
    if not effects:
        return None
    seeds = sorted({seed for effect in effects for seed in effect["seeds"]}, key=lambda seed: (len(seed), seed))
    cells = [wording.column([effect["seeds"].get(seed) for seed in seeds]) for effect in effects]
    names = [effect["condition"] or row["estimand"] for effect in effects]
    return names, [(seed, [column[i] for column in cells]) for i, seed in enumerate(seeds)]


def _filters(claims: Rows) -> dict[str, list[str]]:
    """The levels that claims can be filtered by, in the order in which they are known."""
    orders: dict[str, tuple[str, ...]] = {"paper": (), "verdict": tuple(Verdict), "kind": KINDS, "scale": SCALES}
    there = {key: dict.fromkeys(str(row[key]) for row in claims) for key in orders}
    return {key: [level for level in order or there[key] if level in there[key]] for key, order in orders.items()}


def _counts(section: Section) -> str:
    return f"Preset {section.preset}. {wording.up(counted(section.claims))}."


def _contents(section: Section) -> str:
    """What unfolds in a section."""
    counts = ((len(section.images), "figure"), (len(section.tables), "table"))
    parts = [plural(count, what) for count, what in counts if count]
    return f"{wording.listed(['How it was made', *parts])}"


def _json(value: Any) -> Markup:
    """JSON that can stand in a script element."""
    told = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(told.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@cache
def _asset(name: str) -> str:
    return (ATLAS / name).read_text(encoding="utf-8").strip()
