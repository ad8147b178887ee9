"""The report as Markdown, with links to the figures' files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnrepro.report.model import Report, Section
from bnrepro.report.wording import (
    COLUMNS,
    LONG,
    MEANINGS,
    NONE,
    TITLE,
    Q,
    anchor,
    counted,
    flat,
    history,
    marked_up,
    number,
    number_of,
    q_of,
    size,
)


def markdown(report: Report, out: Path) -> str:
    """The report as Markdown, with links to the figures' files."""
    lines = [f"# {TITLE}", "", report.summary(), ""]
    judged = [section for section in report.sections if section.claims]
    if judged:
        kinds = report.by_kind()
        lines += _table(list(kinds[0]), [[_text(number(row[key])) for key in row] for row in kinds])
        lines += [_text(report.sensitive()), ""]
    lines += [f"* [{_text(s.title)}](#{s.name}){_text(_counts(s))}" for s in report.sections] + [""]
    if judged:
        lines += ["## Verdicts", "", *(f"* **{v}**: {_text(meaning)}." for v, meaning in MEANINGS.items()), ""]
        lines += [_text(f"{Q}."), ""]
        cells = [
            [
                f'<a id="{anchor(section.name, row)}"></a>{_text(number_of(row))}',
                *(_text(row[key] or NONE) for key in ("sentence", "reported", "answer", "kind")),
                q_of(report.q.get(row["id"])),
                f"**{row['verdict']}**{_text(size(row))}",
            ]
            for section in judged
            for row in section.claims
        ]
        lines += _table(list(COLUMNS), cells)
    for section in report.sections:
        lines += _section(section, out)
    return "\n".join(lines).rstrip() + "\n"


def _counts(section: Section) -> str:
    """What the contents say of a section after its title."""
    return f" (preset {section.preset}): {counted(section.claims)}" if section.claims else ""


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
        f"* [{_text(number_of(row))}](#{anchor(section.name, row)}) {_text(_told(row, section))}"
        for row in section.claims
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
