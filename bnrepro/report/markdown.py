"""The report as Markdown, with links to the figures' files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnrepro.report.model import Report, Section
from bnrepro.report.questions import answers, awaiting
from bnrepro.report.wording import (
    COLUMNS,
    LONG,
    MEANINGS,
    NONE,
    TITLE,
    Q,
    amendments,
    anchor,
    column,
    counted,
    flat,
    history,
    marked_up,
    number,
    number_of,
    q_of,
    size,
    up,
)


def markdown(report: Report, out: Path) -> str:
    """The report as Markdown, with links to the figures' files."""
    lines = [f"# {TITLE}", "", f"{report.summary()} {awaiting(report.claims)}".rstrip(), ""]
    judged = [section for section in report.sections if section.claims]
    if judged:
        kinds = report.by_kind()
        lines += table(list(kinds[0]), [[escaped(number(row[key])) for key in row] for row in kinds])
        lines += [escaped(report.sensitive()), ""]
        for each in answers(report.claims):
            behind = [*(row["id"] for row in each.rows), *each.awaited]
            ids = ", ".join(escaped(id) + (" (claims the opposite)" if id in each.against else "") for id in behind)
            said = f"{each.short}: {each.text}" + "".join(f" {up(note)}." for note in each.notes)
            lines.append(f"* **{escaped(each.question)}** {escaped(said)} ({ids})")
        lines.append("")
    lines += [f"* [{escaped(s.title)}](#{s.name}){escaped(_counts(s))}" for s in report.sections] + [""]
    if judged:
        lines += ["## Verdicts", "", *(f"* **{v}**: {escaped(meaning)}." for v, meaning in MEANINGS.items()), ""]
        lines += [escaped(f"{Q}."), ""]
        cells = [
            [
                f'<a id="{anchor(section.name, row)}"></a>{escaped(number_of(row))}',
                *(escaped(row[key] or NONE) for key in ("sentence", "reported", "answer", "kind")),
                q_of(report.q.get(row["id"])),
                f"**{row['verdict']}**{escaped(size(row))}",
            ]
            for section in judged
            for row in section.claims
        ]
        lines += table(list(COLUMNS), cells)
    for section in report.sections:
        lines += _section(section, out)
    return "\n".join(lines).rstrip() + "\n"


def _counts(section: Section) -> str:
    """What the contents say of a section after its title."""
    return f" (preset {section.preset}): {counted(section.claims)}" if section.claims else ""


def _section(section: Section, out: Path) -> list[str]:
    lines = [f'<a id="{section.name}"></a>', "", f"## {escaped(section.title)}", ""]
    if section.source:
        lines += [f"Source: {escaped(section.source)}", ""]
    facts = [f"* {what}: {code(text) if what == 'Made by' else escaped(text)}" for what, text in section.facts]
    amended = dict.fromkeys(f"* {what}: {escaped(text)}" for row in section.claims for what, text in amendments(row))
    lines += [*facts, *amended, ""]
    if section.deviations:
        lines += ["What is done otherwise than in the source:", ""]
        lines += [*(f"* {escaped(sentence)}" for sentence in section.deviations), ""]
    lines += [
        f"* [{escaped(number_of(row))}](#{anchor(section.name, row)}) {escaped(_told(row, section))}"
        for row in section.claims
    ]
    lines += [""] * bool(section.claims)
    for image in section.images:
        file = quote(Path(os.path.relpath(image.stem, out)).as_posix() + ".png")
        lines += [f"![{escaped(image.stem.name)}]({file})", "", f"*{escaped(image.caption)}*", ""]
    for title, rows in section.tables:
        names = list(rows[0]) if rows else []
        shown = [column([row[name] for row in rows]) for name in names]
        head = [escaped(name.replace("_", " ")) for name in names]
        body = table(head, [list(map(escaped, cells)) for cells in zip(*shown, strict=True)])
        folded = len(rows) >= LONG
        lines += [f"<details><summary>{escaped(title)}</summary>", ""] if folded else [escaped(title), ""]
        lines += [*body, *(["</details>", ""] if folded else [])]
    if section.settings:
        lines += ["<details><summary>Settings</summary>", ""]
        lines += [*(f"* {code(key)}: {escaped(text)}" for key, text in flat(section.settings)), "", "</details>", ""]
    return lines


def _told(row: dict[str, Any], section: Section) -> str:
    """A claim in full, for its section."""
    quote = f" “{row['quote']}”" if row["quote"] else ""
    where = f" ({row['where']})" if row["where"] else ""
    more = f" {row['needed']:,} seeds would decide what is open." if row["needed"] else ""
    more += "".join(f" {what}: {text}." for what, text in history(row))
    source = f" Source: {row['source']}" if row["source"] != section.source else ""
    return f"{row['verdict']}{size(row)}: {row['sentence']}{quote}{where} {row['found']}{more}{source}"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """A table of texts that are escaped."""
    if not head:
        return ["(no rows)", ""]
    rows = [head, ["---"] * len(head), *body]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def escaped(text: Any) -> str:
    """``text`` so that Markdown shows it as it is, on one line; addresses become links."""
    return marked_up(_line(text), _escape, lambda address: f"<{address}>", code)


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def code(text: str) -> str:
    """``text`` as code."""
    return "`" + _line(text).replace("`", "'").replace("|", r"\|") + "`"


def _line(text: Any) -> str:
    """``text`` on one line: an empty one would end the paragraph, and with it what is escaped."""
    return " ".join(str(text).splitlines())
