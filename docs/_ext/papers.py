"""A page for each paper, made from its file and from results/claims.json; role ``claim``, directive ``questions``.

Nothing of a paper or of a verdict is written down here: what a page says is what the package says when the site is
built. A claim without a verdict yet is shown without one.
"""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections import Counter
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from executed import write_if_changed
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from bnrepro.claims import Paper
from bnrepro.claims.evidence import Rule, Verdict
from bnrepro.claims.words import asked
from bnrepro.experiments import NAMES, experiment
from bnrepro.report import forest as drawn
from bnrepro.report.questions import Answer, answers, stale
from bnrepro.report.wording import marked_up

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
EXPERIMENTS = RESULTS / "experiments"
LONGEST = 25  # rows of a table that are shown
TOO_WIDE = 8  # columns
LARGE = 400_000  # bytes of an SVG from which on the PNG is shown
NO_VERDICT = "no verdict yet"
SHORT = ("reproduced", "partly", "not reproduced", "inconclusive", "not testable")
SCALED = ("kind", "scale", "scale_note")


@cache
def stored() -> list[dict[str, Any]]:
    """The objects of claims.json, which README and report count too."""
    file = RESULTS / "claims.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


@cache
def verdicts() -> dict[str, dict[str, Any]]:
    """The objects of claims.json by id, but for those that were judged under another sentence than the claim's."""
    return {row["id"]: row for row in stored() if row["sentence"] == sentences().get(row["id"])}


@cache
def papers() -> dict[str, Paper[Any]]:
    """The package's papers by name, in the package's order."""
    return {name: experiment(name) for name in NAMES}


@cache
def sentences() -> dict[str, str]:
    """The sentence of each claim of the package, by id."""
    return {f"{name}/{claim.id}": claim.sentence for name, paper in papers().items() for claim in paper.claims}


def label(claim: str) -> str:
    """The anchor of a claim."""
    return "claim-" + re.sub(r"[^a-z0-9]+", "-", claim.lower())


def plain(text: str) -> str:
    """``text`` as Markdown that says just this."""
    return plain_part(" ".join(str(text).split()))


def plain_part(text: str) -> str:
    """`plain`, with the blanks at the ends of ``text``."""
    return re.sub(r"([\\`*_{}\[\]<>#$|~^])", r"\\\1", text)


def said(text: str) -> str:
    """`plain`, with its addresses as links, and what stands between backticks in ``text`` as code."""
    line = " ".join(str(text).split())
    return marked_up(line, plain_part, lambda address: f"<{address}>", lambda code: f"`{code}`")


def badge(verdict: str) -> str:
    """A verdict as a coloured label; the word stands in it."""
    return f'<span class="verdict {verdict.replace(" ", "-")}">{escape(verdict)}</span>'


class ClaimRole(SphinxRole):
    """``{claim}`paper/id```: a link to the claim, and its verdict as it is now."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Of a claim that is not there, a warning."""
        if self.text not in sentences():
            message = self.inliner.reporter.warning(f"there is no claim {self.text}", line=self.lineno)
            return [nodes.literal("", self.text)], [message]
        verdict = verdicts().get(self.text, {}).get("verdict", NO_VERDICT)
        link = addnodes.pending_xref(
            "", refdomain="std", reftype="ref", reftarget=label(self.text), refexplicit=True, refwarn=True
        )
        link += nodes.inline("", self.text, classes=["xref"])
        html = nodes.raw("", f" {badge(verdict)}", format="html")
        return [link, html], []


# --- pages ---


def write_pages(app: Sphinx) -> None:
    """The index of the papers, and a page for each."""
    folder = Path(app.srcdir) / "papers"
    for old in folder.glob("*.md"):
        if old.stem not in (*papers(), "index"):
            old.unlink()
    for name, paper in papers().items():
        write_if_changed(folder / f"{name}.md", page(name, paper))
    write_if_changed(folder / "index.md", index())


def given() -> list[Verdict]:
    """The verdicts that occur, in their order."""
    return [verdict for verdict in Verdict if any(row["verdict"] == verdict for row in stored())]


def counts(rows: list[dict[str, Any]]) -> list[str]:
    """The numbers of claims with each verdict that occurs; empty for none."""
    found = Counter(row["verdict"] for row in rows)
    return [str(found[verdict] or "") for verdict in given()]


def waiting(claims: list[str]) -> list[str]:
    """How many claims there are, the numbers of each verdict, of none, and of those that are provisional."""
    rows = [verdicts()[claim] for claim in claims if claim in verdicts()]
    old = sum(row["withdrawn"] is not None or stale(row) is not None for row in rows)
    found = Counter("not testable" if row["verdict"].startswith("not testable") else row["verdict"] for row in rows)
    numbers = [len(claims), *(found[verdict] for verdict in SHORT), len(claims) - len(rows), old]
    return [str(n or "") for n in numbers]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def short(name: str) -> str:
    """What a sidebar calls a paper: "Li et al. 2019", "labml.ai"."""
    title, year = papers()[name].title, re.search(r"\d{4}$", name)
    if not year:
        return re.split(r"[:,] ", title)[0]
    # "Wu & He", "Luo et al.", "Li, Chen, Hu & Yang", or a single name
    found = re.match(r"[^,]+ et al\.(?=,)|[^,&]+(?:, [^,&]+)* & [^,]+(?=,)|[^,]+(?=,)", title)
    names = found[0] if found else title
    return f"{names.partition(',')[0]} et al. {year[0]}" if "," in names else f"{names} {year[0]}"


def _soft(words: str) -> str:
    """``words`` that may be divided: a table of this many columns is too wide for a page otherwise."""
    return (
        words.replace("conc", "con\N{SOFT HYPHEN}c")
        .replace("visi", "vi\N{SOFT HYPHEN}si")
        .replace("produ", "pro\N{SOFT HYPHEN}du")
    )


def index() -> str:
    """All papers, with the verdicts on their claims."""
    rows = []
    for name, paper in papers().items():
        mine = [f"{name}/{claim.id}" for claim in paper.claims]
        rows.append([f"[{plain(short(name))}]({name}.md), `{name}`", *waiting(mine)])
    everything = list(verdicts().values())
    rows.append(["all", *waiting(list(sentences()))])
    kinds = sorted({(row["kind"], row["scale"]) for row in everything})
    by_kind = [
        [kind, scale, *counts([row for row in everything if (row["kind"], row["scale"]) == (kind, scale)])]
        for kind, scale in kinds
    ]
    words = [verdict.value for verdict in given()]
    return f"""# Papers and their claims

Each source is one file of the package: what is run, what is measured, and its claims. These pages are made from those
files and from `results/claims.json` when the site is built. How a verdict comes about is explained in
[How verdicts are made](../explanation/verdicts.md).

{table(["source", "claims", *(_soft(word) for word in (*SHORT, NO_VERDICT, "provisional"))], rows)}

Provisional are verdicts of an earlier design, where a new one is registered and still to be run, and claims
under revision. A claim whose sentence has changed since it was judged has no verdict yet; the README and the report
count its last one.

The same by kind and scale. A verdict at a reduced scale, or from a toy, is not one on the source itself.

{table(["kind", "scale", *words], by_kind)}

```{{toctree}}
:hidden:

{chr(10).join(f"{short(name)} <{name}>" for name in papers())}
```
"""


def page(name: str, paper: Paper[Any]) -> str:
    """One paper: source, differences, claims, tables and figures, settings."""
    parts = [
        "---\ntocdepth: 2\n---",
        f"# {plain(paper.title)}",
        f"Source: {said(paper.source)}",
    ]
    parts.append(f"Design, measurements and claims: {code_of(paper)}. Run it with:")
    command = f"bnrepro reproduce {name} --preset=quick"
    parts.append(f"```sh\n{command}\n```")
    overview = [
        [
            f"[{plain(claim.id)}](#{label(f'{name}/{claim.id}')})",
            badge(row.get("verdict", NO_VERDICT)) + (" (earlier design)" if row and stale(row) else ""),
            said(claim.sentence),
            *(row.get(key, getattr(claim, key)) for key in SCALED[:2]),
        ]
        for claim in paper.claims
        for row in [verdicts().get(f"{name}/{claim.id}", {})]
    ]
    parts += ["## Claims", table(["claim", "verdict", "what it says", "kind", "scale"], overview)]
    parts += [one(name, paper, claim) for claim in paper.claims]
    if paper.differences:
        parts += ["## Differences from the source", "\n".join(f"- {said(text)}" for text in paper.differences)]
    parts += shown(name)
    parts += settings(paper)
    return "\n\n".join(parts) + "\n"


def code_of(paper: Paper[Any]) -> str:
    """The file of a paper, by its place in the checkout."""
    file = Path(inspect.getfile(__import__(paper.module, fromlist=["paper"])))
    return f"`{file.relative_to(ROOT).as_posix()}`"


def one(name: str, paper: Paper[Any], claim: Any) -> str:
    """A claim: the sentence, its source, the verdict and why, every effect, and the function that judges it."""
    row = verdicts().get(f"{name}/{claim.id}", {})
    verdict = row.get("verdict", NO_VERDICT)
    parts = [f"({label(f'{name}/{claim.id}')})=\n### {plain(claim.id)}: {said(claim.sentence)}"]
    old = (
        "(measured under an earlier design; a new one is registered and awaits its runs)" if row and stale(row) else ""
    )
    parts.append(" ".join(filter(None, (badge(verdict), old, said(row.get("answer", ""))))))
    facts = [
        ("Quote", f"“{plain(claim.quote)}”" if claim.quote else ""),
        ("Source", said(claim.source) if claim.source != paper.source else ""),
        ("Where", plain(claim.where or "")),
        ("The source reports", said(claim.reported)),
        ("Kind and scale", plain(", ".join(filter(None, (row.get(key, getattr(claim, key)) for key in SCALED))))),
        ("Found here", "" if row.get("effects") else said(row.get("found") or "")),
        (explained("Gate", "gates-has-it-trained"), gate(row.get("gate"))),
        (explained("Look", "looking-more-than-once"), look(row.get("look"))),
        (explained("Registered", "registered-before"), registered(row)),
        (explained("Other margins", "would-another-choice-change-it"), flips(row)),
        ("Seeds to decide", str(row.get("needed") or "")),
        ("Under revision", plain(claim.withdrawn or "")),
        ("Made by", f"`{row['command']}`" if row.get("command") else ""),
        ("Shown by", f"`bnrepro show {row['id']}`" if row else ""),
        ("Recomputed by", "`python scripts/check_evidence.py`, without the package's code" if row else ""),
        ("Machine", plain(row.get("machine") or "")),
    ]
    parts.append("\n".join(f"{what}\n: {text}\n" for what, text in facts if text))
    if effects := row.get("effects"):
        parts.append(forest(row))
        parts.append(effects_table(effects, row.get("deciding")))
        if any(len(effect["seeds"]) > 1 for effect in effects):
            parts.append(folded("The value of each seed", seeds_table(effects)))
        parts.append(folded("The same in one paragraph", said(row.get("found") or "")))
    if amended := (row.get("registration") or {}).get("amended"):
        reasons = "\n".join(f"- {each['on']}: {said(each['reason'])}" for each in amended)
        parts.append(folded("Why the registered design was amended", reasons))
    if beside := row.get("beside"):
        parts.append(folded("Shown beside, and deciding nothing", effects_table(beside, None)))
    code = inspect.getsource(inspect.unwrap(claim.evidence))
    parts.append(folded(f"The function that judges it: {claim.judged_in}", f"```python\n{code}\n```"))
    return "\n\n".join(parts)


def folded(summary: str, text: str) -> str:
    """``text`` below a line that unfolds it."""
    return f"<details><summary>{escape(summary)}</summary>\n\n{text}\n\n</details>"


def number(value: Any) -> str:
    """A number as it is shown; nothing for none."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def gate(found: dict[str, Any] | None) -> str:
    """Whether the networks have trained enough."""
    if not found:
        return ""
    passed = {True: "passed", False: "failed", None: "open"}[found.get("passed")]
    return plain(f"{found['what']}: {number(found['value'])}, {found['needed']} is needed ({passed})")


def explained(term: str, section: str) -> str:
    """``term``, linked to where it is explained."""
    return f"[{term}](../explanation/verdicts.md#{section})"


def registered(row: dict[str, Any]) -> str:
    """When the design was registered, and when its first run was made."""
    found = row.get("registration") or {}
    if not found.get("registered"):
        return ""
    kept = "" if found.get("as_registered") else ", and not kept"
    amended = f", amended {len(found['amended'])} times" if found.get("amended") else ""
    first = f"; first run {row['first_run']}" if row.get("first_run") else ""
    return plain(f"on {found['registered']}{amended}{kept}{first}")


def look(found: dict[str, Any] | None) -> str:
    """Which of the planned looks this is."""
    return f"{found['number']} of {found['of']}, after {found['seeds']} seeds" if found else ""


def flips(row: dict[str, Any]) -> str:
    """The factors on the margin at which the verdict would be another."""
    if not row or row.get("kind") == "identity" or not row.get("rule"):
        return ""
    factors = row.get("flips_at") or []
    return (
        f"another verdict at {' and '.join(f'{f:g} times' for f in factors)} the margin"
        if factors
        else "the same verdict at half and at double the margin"
    )


def effects_table(effects: list[dict[str, Any]], deciding: int | None) -> str:
    """Each effect with its interval."""
    rows = []
    for place, effect in enumerate(effects):
        low, high = effect.get("low"), effect.get("high")
        interval = f"[{number(low)}, {number(high)}]" if low is not None else ""
        state = effect.get("state", "") + (" (decides)" if place == deciding else "")
        value = plain(effect["shown"]) if interval == "" and effect.get("shown") else number(effect.get("mean"))
        rows.append(
            [
                plain(effect["condition"]) or "all",
                value,
                plain(interval),
                plain(effect.get("unit") or ""),
                str(effect.get("n", "")),
                asked(Rule(*(effect[part] for part in ("rule", "bar", "margin", "ratio")))) if state else "",
                state,
            ]
        )
    head = ["condition", "mean", "interval", "unit", "n", explained("rule", "the-rules"), "state"]
    kept = [place for place in range(len(head)) if place < 5 or any(row[place] for row in rows)]
    return table([head[place] for place in kept], [[row[place] for place in kept] for row in rows])


def seeds_table(effects: list[dict[str, Any]]) -> str:
    """The value of each effect for each seed."""
    seeds = sorted({int(seed) for effect in effects for seed in effect["seeds"]})
    rows = [
        [plain(effect["condition"]) or "all", *(number(effect["seeds"].get(str(seed))) for seed in seeds)]
        for effect in effects
    ]
    return table(["condition", *(f"seed {seed}" for seed in seeds)], rows)


def forest(row: dict[str, Any]) -> str:
    """The effects on one axis, drawn as in the report, where they have one; a table stands below it."""
    panels = drawn.panels(row["effects"])
    if len(panels) != 1 or not panels[0].ticks:
        return ""
    step, (panel,) = 9, panels
    strips = [strip for _, strip in panel.rows]
    height = step * len(strips)
    shapes = [
        f'<path class="tick" d="M{place} {height}v2"/><text class="axis" x="{place}" y="{height + 8}">{label}</text>'
        for place, label in panel.ticks
    ]
    for i, strip in enumerate(strips):
        if strip is None:
            continue
        top, middle = step * i, step * i + step / 2
        if strip.shade:
            low, high = strip.shade
            shapes.append(f'<rect class="margin" x="{low}" y="{top}" width="{high - low:.1f}" height="{step}"/>')
        if strip.bar is not None:
            shapes.append(f'<path class="bar" d="M{strip.bar} {top}v{step}"/>')
        shapes += [f'<circle class="seed" cx="{dot}" cy="{middle + 2.5}" r="0.8"/>' for dot in strip.dots]
        if strip.low is not None:
            shapes.append(f'<path class="interval" d="M{strip.low} {middle}H{strip.high}"/>')
        if strip.mean is not None:
            shapes.append(f'<rect class="mean" x="{strip.mean - 1.5:.1f}" y="{middle - 1.5}" width="3" height="3"/>')
    title = f"Means, intervals and seeds of {len(strips)} effects, in the order of the table below"
    box = f'viewBox="0 0 {drawn.WIDTH} {height + 10}" role="img" aria-label="{title}"'
    return f'```{{raw}} html\n<svg class="forest" {box}>{"".join(shapes)}</svg>\n```'


def shown(name: str) -> list[str]:
    """Figures and tables as they are stored."""
    folder = EXPERIMENTS / name
    captions_file = folder / "captions.json"
    if not captions_file.is_file():
        return []
    captions = json.loads(captions_file.read_text(encoding="utf-8"))
    parts = []
    for stem, caption in captions.get("figures", {}).items():
        svg, png = folder / "figures" / f"{stem}.svg", folder / "figures" / f"{stem}.png"
        file = svg if svg.is_file() and svg.stat().st_size < LARGE else png
        if file.is_file():
            place = Path("..", "..", file.relative_to(ROOT)).as_posix()
            parts.append(f"```{{figure}} {place}\n:alt: {' '.join(caption.split())}\n\n{said(caption)}\n```")
    parts = ["## Figures", *parts] if parts else []
    tables = []
    for stem, title in captions.get("tables", {}).items():
        file = folder / "tables" / f"{stem}.csv"
        if file.is_file():
            tables.append(stored_table(file, title))
    return parts + (["## Tables", *tables] if tables else [])


def stored_table(file: Path, title: str) -> str:
    """A CSV file below its title; a wide or long one is folded, and named where it is cut."""
    with file.open(newline="", encoding="utf-8") as stream:
        head, *rows = list(csv.reader(stream)) or [[]]
    cut = [[plain(_short(cell)) for cell in row] for row in rows[:LONGEST]]
    text = table([plain(cell.replace("_", " ")) for cell in head], cut)
    if len(rows) > LONGEST:
        text += f"\n\nThe first {LONGEST} of {len(rows)} rows; all are in `{file.relative_to(ROOT).as_posix()}`."
    return folded(title, text) if len(rows) > TOO_WIDE or len(head) > TOO_WIDE else f"{said(title)}\n\n{text}"


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def settings(paper: Paper[Any]) -> list[str]:
    """What each preset sets."""
    names = paper.presets
    each = {preset: paper.settings(preset).model_dump() for preset in names}
    rows = [[f"`{key}`", *(_brief(each[preset][key]) for preset in names)] for key in each[names[-1]]]
    return ["## Settings", folded("Settings of the presets", table(["setting", *names], rows))]


def _brief(value: object) -> str:
    """A setting as code; nothing for None and what is empty."""
    if value is None or value in ("", [], {}):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text.replace("|", "/").replace("`", "'")
    return f"`{text if len(text) < 120 else f'{text[:117]}...'}`"


class Questions(SphinxDirective):
    """``{questions}``: the report's plain questions, with their answers as they are now, as cards."""

    def run(self) -> list[nodes.Node]:
        """A card a question."""
        cards = "\n".join(map(card, answers(list(verdicts().values()))))
        return self.parse_text_to_nodes(f":::::{{container}} doors\n{cards}:::::\n")


def card(answer: Answer) -> str:
    """A question, its answer, how much that rests on, and its claims."""
    ids = [*(row["id"] for row in answer.rows), *answer.awaited]
    claims = ", ".join(f"{{claim}}`{id}`{' (claims the opposite)' if id in answer.against else ''}" for id in ids)
    return f"""::::{{container}} door
**{plain(answer.question)}**

**{plain(answer.short)}**: {said(answer.text)}

{plain("; ".join(answer.notes))}.

Claims: {claims}
::::

"""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role, the directive and the pages."""
    app.add_role("claim", ClaimRole())
    app.add_directive("questions", Questions)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
