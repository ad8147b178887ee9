"""What stands in a folder of results, as one report: claims.json, REPORT.md, and report.html in a single file.

The report reads files only (`conclusion`, `compare`), so it shows what is stored and nothing else. `Report` is what
both forms say; `page` writes it as HTML, this module as Markdown.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from bnrepro.claims.conclusion import CLAIMS, KINDS, SCALES, Conclusion, as_json, open_conclusion
from bnrepro.claims.evidence import ALPHA, Rule, Verdict
from bnrepro.claims.records import find, provenance_of
from bnrepro.claims.registering import registered_on
from bnrepro.claims.words import numbers
from bnrepro.errors import UserError
from bnrepro.experiments import NAMES
from bnrepro.report import compare
from bnrepro.runs import record
from bnrepro.stats import Interval, false_discovery_rates
from bnrepro.system import output
from bnrepro.system.reading import printable

MARKDOWN, HTML = "REPORT.md", "report.html"
TITLE = "Claims about batch normalization, run and judged"
LONG = 30  # rows from which a table is folded
NONE = "-"

MEANINGS = {
    Verdict.reproduced: "under every condition that was tried the whole interval is on the claim's side; for a claim "
    "of equality, inside the margin that was set beforehand; an exact claim holds",
    Verdict.partly: "under some conditions it holds, or the effect is there and smaller than what was called "
    "negligible beforehand",
    Verdict.not_reproduced: "under no condition it holds, and under some the whole interval is on the other side, or "
    "below what matters",
    Verdict.inconclusive: "the intervals say neither; where several conditions were tried, by Holm's correction",
    Verdict.not_testable: "the reason stands in its row; where a claim is under revision, its design is being replaced",
    Verdict.too_short: "what the networks were to reach before they are compared, they did not reach",
}
COLUMNS = ("claim", "what it says", "what the source reports", "what was found here", "kind", "q", "verdict")
FULL_SIZE = ("exact", "paper")
"""Scales at which a verdict is one on the source itself."""
Q = (
    "q: the false discovery rate at which the claim, by its deciding effect, would be among the discoveries of all "
    "empirical claims together (Benjamini and Hochberg)"
)

T = TypeVar("T")
Rows = list[dict[str, Any]]
Mark = Callable[[str], str]


@dataclass(frozen=True)
class Image:
    """A figure: its file without the suffix, and what it shows."""

    stem: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """An experiment, or a comparison."""

    name: str
    """Also its anchor."""
    title: str
    source: str
    facts: list[tuple[str, str]]
    """How it was made: (what, text)."""
    deviations: list[str]
    claims: Rows
    images: list[Image]
    tables: list[tuple[str, Rows]]
    """(title, rows)."""
    settings: dict[str, Any]
    preset: str = ""


@dataclass(frozen=True)
class Report:
    """All that is there."""

    sections: list[Section]

    def summary(self) -> str:
        """One sentence."""
        judged = [section for section in self.sections if section.claims]
        if not judged:
            return "No claim was judged."
        where = output.counted(len(judged), "experiment")
        rows = [row for section in judged for row in section.claims]
        revised = sum(row["withdrawn"] is not None for row in rows)
        note = f" ({revised} under revision)" if revised else ""
        return f"{output.counted(len(rows), 'claim')} in {where}{note}. {_up(counted(rows))}."

    @property
    def claims(self) -> Rows:
        """Those of all experiments, as claims.json has them."""
        return [row for section in self.sections for row in section.claims]

    def by_kind(self) -> Rows:
        """How many claims have which verdict, by kind and scale; a row for each that there is."""
        counts = Counter((row["kind"], row["scale"], row["verdict"]) for row in self.claims)
        pairs = [
            (kind, scale) for kind in KINDS for scale in SCALES if any((kind, scale, v) in counts for v in Verdict)
        ]
        return [
            {"kind": kind, "scale": scale, **{v.value: counts[kind, scale, v.value] for v in Verdict}}
            for kind, scale in pairs
        ]

    @cached_property
    def q(self) -> dict[str, float]:
        """See `Q`, by claim."""
        found = {row["id"]: p_of(row) for row in self.claims if row["kind"] == "empirical"}
        return false_discovery_rates({id: p for id, p in found.items() if p is not None})

    def sensitive(self) -> str:
        """How many verdicts hang on the margin."""
        tested = [row for row in self.claims if row["kind"] != "identity" and any(map(_has_margin, row["effects"]))]
        flips = sum(bool(row["flips_at"]) for row in tested)
        return f"At half or double the margin, {flips} of the {len(tested)} verdicts that rest on one would change."


def _has_margin(effect: dict[str, Any]) -> bool:
    """Whether `flips_at` has something to halve and double: a margin, or the bar of `not_lower`, which is one."""
    lower = effect["rule"] == "greater" and not effect["ratio"] and (effect["bar"] or 0) < 0
    return effect["margin"] is not None or lower


def write(out: Path, left_out: Callable[[str], None] | None = None) -> list[Path]:
    """Write claims.json, REPORT.md and report.html into ``out``, replacing existing files, and return their paths.

    Args:
        out: the folder of the results.
        left_out: told what is wrong with results that cannot be read, which are left out; None: that is raised.

    Raises:
        UserError: there is nothing, or something is damaged.
    """
    from bnrepro.report.page import page

    report = gather(out, left_out)
    record.write_whole(out / CLAIMS, as_json(report.claims))
    record.write_whole(out / MARKDOWN, printable(markdown(report, out)))
    record.write_whole(out / HTML, printable(page(report)))
    return [out / CLAIMS, out / MARKDOWN, out / HTML]


def gather(out: Path, left_out: Callable[[str], None] | None = None) -> Report:
    """The experiments and comparisons in ``out`` and below; ``left_out`` is as for `write`."""
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
    if not sections:
        raise UserError(f"There are no results under {out}. `bnrepro reproduce` makes them.")
    twice = [name for name, count in Counter(section.name for section in sections).items() if count > 1]
    if twice:
        where = " and ".join(str(c.folder) for c in conclusions if c.name in twice)
        raise UserError(f"{', '.join(twice)} is there more than once: {where}. Give one folder with --out.")
    return Report(sections)


def _best(folders: list[Path]) -> list[Path]:
    """Of an experiment's presets, which lie in one another's folders, the largest that is there."""
    sizes = {"smoke": 0, "quick": 1}  # the rest, damaged ones too, which are told when they are opened, is larger
    best: dict[Path, Path] = {}
    for folder in folders:  # what lies in a folder comes after it
        place = folder.parent if folder.name in sizes else folder
        before = best.get(place)
        size, than = (sizes.get(str(provenance_of(each).get("preset")), 2) for each in (folder, before or folder))
        if size >= than:
            best[place] = folder
    return list(best.values())


# --- sections -----------------------------------------------------------------------------------------------------


def _of_experiment(conclusion: Conclusion) -> Section:
    about, records = conclusion.records.provenance, conclusion.records
    runs = {row["config_hash"] or index: row["status"] for index, row in enumerate(records.runs)}
    facts = [("Preset", records.preset), ("Made by", about["command"]), *_origin(about)]
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
    )


def _of_comparison(folder: Path, out: Path) -> Section:
    comparison = compare.open_comparison(folder)
    first = comparison.variants[0]
    named = {"test_accuracy": "test accuracy", f"minus_{first}": f"minus {first}", "epochs_to_threshold": "epochs"}
    rows: Rows = []
    for row in compare.table(comparison):
        counts = {"test_accuracy": row["n"], f"minus_{first}": row["pairs"], "epochs_to_threshold": row["reached"]}
        intervals = {title: _interval(row, key, counts[key]) for key, title in named.items()}
        sizes = {key: row[key] for key in ("parameters", "buffers")}
        rows.append({"variant": row["variant"], "n": row["n"], "diverged": row["diverged"], **intervals, **sizes})
    overview = folder / "figures" / "overview"
    caption = "Curves: mean over seeds with its 95% interval; losses on a logarithmic axis."
    settings, about = dict(flat(comparison.settings)), comparison.provenance
    network, dataset = settings.get("model.name", "a network"), settings.get("data.name", "a dataset")
    title = (
        f"Means with 95% intervals over seeds; minus {first}: difference of the same seed; "
        f"epochs: to {comparison.goal}."
    )
    name = folder.relative_to(out).as_posix() if folder != out else folder.name
    return Section(
        name=f"comparison-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}",
        title=f"Variants side by side: {network} on {dataset} ({name})",
        source="",
        facts=[("Made by", about["command"]), *_origin(about), *_spent(about)],
        deviations=[],
        claims=[],
        images=[Image(overview, caption)] if overview.with_suffix(".svg").is_file() else [],
        tables=[(title, rows)],
        settings=settings,
    )


def _interval(row: dict[str, Any], key: str, count: int) -> Interval | None:
    mean, low, high = (row[f"{key}_{end}"] for end in ("mean", "low", "high"))
    if mean is None:
        return None
    return Interval(mean, math.nan if low is None else low, math.nan if high is None else high, count)


def _origin(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Data, machines, versions and revisions."""
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
    each = ", ".join(f"{part} {_duration(seconds)}" for part, seconds in spent.items())
    time = f"{_duration(sum(spent.values()))} of one process ({each})"
    return [("Time", time), *(("Failed", text) for text in about["failed"])]


def _statuses(runs: dict[Any, str]) -> str:
    counts = Counter(runs.values())
    parts = [f"{count} {status}" for status, count in counts.items() if status != "completed"]
    return f"{len(runs)}" + (f", of which {', '.join(parts)}" if parts else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- what both forms say ------------------------------------------------------------------------------------------


def anchor(section: Section, row: dict[str, Any]) -> str:
    """A claim's anchor."""
    return f"{section.name}-{re.sub(r'[^A-Za-z0-9.]+', '-', number_of(row))}"


def number_of(row: dict[str, Any]) -> str:
    """A claim's id within its paper."""
    return str(row["id"]).rpartition("/")[2]


def scale(row: dict[str, Any]) -> str:
    """The scale of a claim with the note: "reduced: 8 epochs"."""
    note = f": {row['scale_note']}" if row["scale_note"] else ""
    return f"{row['scale']}{note}"


def size(row: dict[str, Any]) -> str:
    """What stands behind a verdict, so that none reads like one at the source's scale: " (reduced: 8 epochs)"."""
    return "" if row["scale"] == "exact" else f" ({scale(row)})"


def counted(claims: Rows) -> str:
    """How many have which verdict, at the source's scale and at others."""
    parts = []
    for full, name in ((True, "exact or full scale"), (False, "reduced or toy")):
        mine = [row for row in claims if (row["scale"] in FULL_SIZE) is full]
        counts = Counter(row["verdict"] for row in mine)
        if mine:
            parts.append(
                f"{name}: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
            )
    return "; ".join(parts)


def p_of(row: dict[str, Any]) -> float | None:
    """The p value of the effect that decided, of what must be rejected for it to hold; None of one that is not random.

    At a look it is that of the whole design, by the same bound that its level comes from.
    """
    if row["deciding"] is None:
        return None
    effect = row["effects"][row["deciding"]]
    seeds = [math.nan if value is None else value for value in effect["seeds"].values()]
    rule = Rule(effect["rule"], effect["bar"], effect["margin"], effect["ratio"])
    if rule.name == "exact" or math.isnan(p := rule.p_values(seeds)[0]):
        return None
    level = (1 - effect["confidence"]) / (2 if rule.name == "equal" else 1)
    return min(1.0, p * ALPHA / level)


def history(row: dict[str, Any]) -> list[tuple[str, str]]:
    """How far a verdict can be trusted to have been asked for beforehand: gate, look, design, first run."""
    facts = []
    if gate := row["gate"]:
        value = NONE if gate["value"] is None else f"{gate['value']:.3g}"
        ended = {True: "passed", False: "failed", None: "not measured"}[gate["passed"]]
        facts.append(("Gate", f"{gate['what']}: {value}, {gate['needed']} needed: {ended}"))
    if look := row["look"]:
        first = (
            f"look {look['number']} of {look['of']}"
            if look["number"]
            else f"before the first of {output.counted(look['of'], 'look')}"
        )
        facts.append(("Look", f"{first}, with {look['seeds']} seeds"))
    facts.append(("Design", _registered(row)))
    if row.get("first_run"):
        facts.append(("First run", str(row["first_run"])))
    return facts


def _registered(row: dict[str, Any]) -> str:
    """The hash of a claim's design, and when it was registered."""
    known, first = row.get("registration") or {}, row.get("first_run")
    if row["preset"] != "full":
        return f"preset {row['preset']}, which is no evidence and is never registered"
    if not known.get("registered"):
        day = registered_on(row["paper"], but=row["design_hash"])
        later = f"; the one registered on {day} has not been run yet" if day else ""
        return f"{row['design_hash']}, not registered{later}"
    day = known["committed"] or known["registered"]
    commit = f", commit {known['commit'][:10]}" if known["commit"] else ", not committed"
    text = f"{row['design_hash']}, registered {day}{commit}"
    if not known["as_registered"]:
        text += "; it is not judged as registered"
    if first and first < day:
        text += "; its first run is older"
    return text + "".join(
        f"; amended {each['on']}: {each['reason']} (before: {each['hash']})" for each in known["amended"]
    )


def told(section: Section) -> str:
    """What the contents say of a section after its title."""
    return f" (preset {section.preset}): {counted(section.claims)}" if section.claims else ""


def q_of(report: Report, row: dict[str, Any]) -> str:
    """A claim's q value, with the digits that it has; a dash where it has none."""
    q = report.q.get(row["id"])
    return NONE if q is None else f"{q:.2f}" if q >= 0.01 else f"{q:.0e}"


def number(value: Any) -> str:
    """A table's cell: four digits of a number; of an interval, as many as it leaves."""
    if value is None:
        return NONE
    if isinstance(value, Interval):
        if value.n == 0:
            return f"{NONE} (n=0)"
        return f"{numbers(value)} (n={value.n})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys and texts."""
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        pairs += flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", _setting(value))]
    return pairs


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _setting(value: Any) -> str:
    return ", ".join(map(_setting, value)) if isinstance(value, list) else NONE if value is None else str(value)


SPECIAL = re.compile(
    r"(?P<address>https?://[^\s<>()\"'`|\\]*[^\s<>()\"'`|\\.,;:!?])"  # a full stop after it ends the sentence
    r"|`(?P<code>[^`\n]+)`"
)


def marked_up(text: str, plain: Mark, address: Mark, code: Mark) -> str:
    """``text`` with its http(s) addresses, what stands between backticks, and all else, each written its own way."""
    parts, end = [], 0
    for match in SPECIAL.finditer(text):
        parts.append(plain(text[end : match.start()]))
        parts.append(address(match["address"]) if match["address"] else code(match["code"]))
        end = match.end()
    return "".join([*parts, plain(text[end:])])


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown(report: Report, out: Path) -> str:
    """The report as Markdown, with links to the figures' files."""
    lines = [f"# {TITLE}", "", report.summary(), ""]
    judged = [section for section in report.sections if section.claims]
    if judged:
        kinds = report.by_kind()
        lines += _table(list(kinds[0]), [[_text(number(row[key])) for key in row] for row in kinds])
        lines += [_text(report.sensitive()), ""]
    lines += [f"* [{_text(s.title)}](#{s.name}){_text(told(s))}" for s in report.sections] + [""]
    if judged:
        lines += ["## Verdicts", "", *(f"* **{v}**: {_text(meaning)}." for v, meaning in MEANINGS.items()), ""]
        lines += [_text(f"{Q}."), ""]
        cells = [
            [
                f'<a id="{anchor(section, row)}"></a>{_text(number_of(row))}',
                *(_text(row[key] or NONE) for key in ("sentence", "reported", "answer", "kind")),
                q_of(report, row),
                f"**{row['verdict']}**{_text(size(row))}",
            ]
            for section in judged
            for row in section.claims
        ]
        lines += _table(list(COLUMNS), cells)
    for section in report.sections:
        lines += _section(section, out)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section, out: Path) -> list[str]:
    lines = [f'<a id="{section.name}"></a>', "", f"## {_text(section.title)}", ""]
    if section.source:
        lines += [f"Source: {_text(section.source)}", ""]
    facts = [f"* {what}: {_code(text) if what == 'Made by' else _text(text)}" for what, text in section.facts]
    lines += [*facts, ""]
    if section.deviations:
        lines += ["What is done otherwise than in the source:", ""]
        lines += [*(f"* {_text(sentence)}" for sentence in section.deviations), ""]
    lines += [
        f"* [{_text(number_of(row))}](#{anchor(section, row)}) {_text(_told(row, section))}" for row in section.claims
    ]
    lines += [""] * bool(section.claims)
    for image in section.images:
        file = quote(Path(os.path.relpath(image.stem, out)).as_posix() + ".png")
        lines += [f"![{_text(image.stem.name)}]({file})", "", f"*{_text(image.caption)}*", ""]
    for title, rows in section.tables:
        names = list(rows[0]) if rows else []
        body = _table(
            [_text(name.replace("_", " ")) for name in names], [[_text(number(row[n])) for n in names] for row in rows]
        )
        folded = len(rows) >= LONG
        lines += [f"<details><summary>{_text(title)}</summary>", ""] if folded else [_text(title), ""]
        lines += [*body, *(["</details>", ""] if folded else [])]
    if section.settings:
        lines += ["<details><summary>Settings</summary>", ""]
        lines += [*(f"* {_code(key)}: {_text(text)}" for key, text in flat(section.settings)), "", "</details>", ""]
    return lines


def _told(row: dict[str, Any], section: Section) -> str:
    """A claim in full, for its section."""
    quote = f" “{row['quote']}”" if row["quote"] else ""
    where = f" ({row['where']})" if row["where"] else ""
    more = f" {row['needed']:,} seeds would decide." if row["needed"] else ""
    more += "".join(f" {what}: {text}." for what, text in history(row))
    source = f" Source: {row['source']}" if row["source"] != section.source else ""
    return f"{row['verdict']}{size(row)}: {row['sentence']}{quote}{where} {row['found']}{more}{source}"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    if not head:
        return ["(no rows)", ""]
    rows = [head, ["---"] * len(head), *body]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def _text(text: Any) -> str:
    """``text`` so that Markdown shows it as it is, on one line; addresses become links."""
    return marked_up(_line(text), _escape, lambda address: f"<{address}>", _code)


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _code(text: str) -> str:
    return "`" + _line(text).replace("`", "'").replace("|", r"\|") + "`"


def _line(text: Any) -> str:
    """``text`` on one line: an empty one would end the paragraph, and with it what is escaped."""
    return " ".join(str(text).splitlines())
