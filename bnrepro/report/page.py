"""The report as one HTML file: no scripts, no requests, figures as SVG in the page. All texts are escaped."""

from __future__ import annotations

import base64
import re
from html import escape
from itertools import count
from pathlib import Path
from string import Template
from typing import Any
from xml.etree import ElementTree

from bnrepro.errors import UserError, in_brackets
from bnrepro.report.report import (
    COLUMNS,
    LONG,
    MEANINGS,
    NONE,
    TITLE,
    Image,
    Q,
    Report,
    Section,
    anchor,
    flat,
    history,
    marked_up,
    number,
    number_of,
    q_of,
    size,
    told,
)
from bnrepro.system import reading as stored

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HEAVY = 600_000  # bytes from which a figure's PNG is lighter for a browser than its SVG
SHORT = 30  # characters that a table's cell keeps on one line
KEPT = {
    *("svg", "g", "defs", "use", "symbol", "marker", "clipPath", "mask", "pattern", "linearGradient", "radialGradient"),
    *("stop", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "image", "text", "tspan", "filter"),
    *("feColorMatrix", "feGaussianBlur", "feOffset", "feBlend", "feComposite"),
}
"""Elements of a drawing: nothing that runs, loads, links or changes other elements."""
SAFE_CALLS = {"url", "rgb", "rgba", "hsl", "hsla", "matrix", "translate", "scale", "rotate", "skewX", "skewY", "calc"}
LEAST = 560  # CSS pixels: a wide figure is not drawn smaller, but moves sideways on a phone
ZOOM = 1.2 * 4 / 3  # CSS pixels a point: figures are made for print, and are read from further away on a screen


def page(report: Report) -> str:
    """``report`` as HTML."""
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    judged = [section for section in report.sections if section.claims]
    numbering = count(1)
    return template.substitute(
        title=escape(TITLE),
        summary=escape(report.summary()),
        contents="".join(map(_entry, report.sections)),
        meanings="".join(f"<dt>{_verdict(v)}</dt><dd>{escape(text)}.</dd>" for v, text in MEANINGS.items()),
        kinds=_table("Verdicts by kind and scale", report.by_kind()) if judged else "",
        sensitive=escape(report.sensitive()) if judged else "",
        head="".join(f"<th scope=col>{escape(name)}</th>" for name in COLUMNS),
        q=escape(Q),
        verdicts="".join(_claim(report, section, row) for section in judged for row in section.claims),
        sections="".join(_section(section, numbering) for section in report.sections),
    )


def _entry(section: Section) -> str:
    return f'<li><a href="#{section.name}">{escape(section.title)}</a>{escape(told(section))}</li>'


def _claim(report: Report, section: Section, row: dict[str, Any]) -> str:
    here = anchor(section, row)
    said = _details(row)
    texts = [_text(row["sentence"]), _text(row["reported"] or NONE), said, escape(row["kind"]), q_of(report, row)]
    verdict = f"{_verdict(row['verdict'])}<small>{_text(size(row))}</small>"
    cells = [f'<a href="#{here}">{escape(number_of(row))}</a>', *texts, verdict]
    told = "".join(
        f'<td data-label="{escape(name)}"><div>{cell}</div></td>' for name, cell in zip(COLUMNS, cells, strict=True)
    )
    return f'<tr id="{here}">{told}</tr>\n'


def _details(row: dict[str, Any]) -> str:
    """The answer; unfolded, all that is known of it."""
    facts = {
        "Found": row["found"],
        "Source": " ".join(filter(None, (row["source"], row["where"] and f"({row['where']})"))),
        "Its words": row["quote"],
        "Seeds to decide": row["needed"],
        "Changes with the margin": " and ".join(f"times {factor:g}" for factor in row["flips_at"]),
        **dict(history(row)),
        "Judged in": row["judged_in"],
        "Made by": row["command"],
    }
    pairs = "".join(f"<dt>{escape(what)}</dt><dd>{_text(text)}</dd>" for what, text in facts.items() if text)
    return f"<details><summary>{_text(row['answer'])}</summary><dl>{pairs}</dl></details>"


def _section(section: Section, numbering: count[int]) -> str:
    parts = [f'<section id="{section.name}"><h2>{escape(section.title)}</h2>']
    if section.source:
        parts.append(f"<p>Source: {_text(section.source)}</p>")
    facts = [
        f"<dt>{escape(what)}</dt><dd>{f'<code>{escape(text)}</code>' if what == 'Made by' else _text(text)}</dd>"
        for what, text in section.facts
    ]
    parts.append(f"<dl>{''.join(facts)}</dl>")
    if section.deviations:
        items = "".join(f"<li>{_text(sentence)}</li>" for sentence in section.deviations)
        parts.append(f"<h3>What is done otherwise than in the source</h3><ul>{items}</ul>")
    if section.claims:
        verdicts = [
            f'<li><a href="#{anchor(section, row)}">{escape(number_of(row))}</a> {_verdict(row["verdict"])}'
            + ("" if row["scale"] == "exact" else f" <small>({row['scale']})</small>")
            + "</li>"
            for row in section.claims
        ]
        parts.append(f'<h3>Claims</h3><ul class="claims">{"".join(verdicts)}</ul>')
    if section.images:
        parts.append(f'<div class="figures">{"".join(_figure(image, numbering) for image in section.images)}</div>')
    parts += [_table(title, rows) for title, rows in section.tables]
    if section.settings:
        pairs = "".join(f"<dt><code>{escape(k)}</code></dt><dd>{escape(v)}</dd>" for k, v in flat(section.settings))
        parts.append(f"<details><summary>Settings</summary><dl>{pairs}</dl></details>")
    return "\n".join([*parts, "</section>\n"])


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]) if rows else []
    texts = {name for name in names if any(isinstance(row[name], str) for row in rows)}
    kinds = {name: "" if name in texts else " class=number" for name in names}
    head = "".join(f"<th scope=col{kinds[name]}>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(_cell(row[name], name in texts) for name in names)}</tr>\n" for row in rows)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
    if len(rows) >= LONG:
        return f"<details><summary>{_text(title)}</summary>{table}</details>"
    return f"<h3 class=caption>{_text(title)}</h3>{table}"


def _cell(value: Any, text: bool) -> str:
    shown = value if isinstance(value, str) else number(value)
    kind = "" if text else "number"
    return f'<td class="{"short" if text and len(shown) <= SHORT else kind}">{_text(shown)}</td>'


def _verdict(verdict: str) -> str:
    return f'<strong class="verdict {escape(verdict.replace(" ", "-"))}">{escape(verdict)}</strong>'


def _text(text: Any) -> str:
    return marked_up(
        str(text),
        _breakable,
        lambda address: f'<a href="{escape(address)}">{_breakable(address.split("//", 1)[1])}</a>',
        lambda code: f"<code>{escape(code)}</code>",
    )


def _breakable(text: str) -> str:
    """``text`` escaped; a long word may break after a slash or an underscore, rather than anywhere."""
    return re.sub(r"\S{15,}", lambda word: re.sub(r"([/_])(?=\w)", r"\1<wbr>", word.group()), escape(text))


# --- figures ------------------------------------------------------------------------------------------------------


def _figure(image: Image, numbering: count[int]) -> str:
    number = next(numbering)
    file = image.stem.with_suffix(".svg")
    drawn, width = inline(file, f"f{number}-", image.caption)
    if file.stat().st_size > HEAVY:
        try:
            data = base64.b64encode(stored.read_bytes(image.stem.with_suffix(".png"))).decode()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} has no PNG beside it ({in_brackets(error)}). `bnrepro figures` draws it again."
            ) from error
        drawn = f'<img alt="{escape(image.caption)}" src="data:image/png;base64,{data}">'
    style = f"--width:{width * ZOOM:.0f}px;--least:{min(width * 4 / 3, LEAST):.0f}px"
    caption = f"<b>Figure {number}.</b> {_text(image.caption)}"
    return (
        f'<figure id="figure-{number}" style="{style}"><div class="wide">{drawn}</div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def inline(file: Path, prefix: str, label: str) -> tuple[str, float]:
    """An SVG file as an element of an HTML page, and its width in points.

    Its ids get ``prefix``, since a page's must differ; what could run or load something is left out, and so are its
    style sheet (the page's own says the same) and its size, so that it fits the screen.
    """
    try:
        root = ElementTree.fromstring(stored.read_bytes(file))
        if root.tag != f"{{{SVG}}}svg":
            raise ValueError("it is no SVG")
        width = float(root.attrib["viewBox"].split()[2])
        if not 0 < width < 1e5:
            raise ValueError(f"it is {width} wide")
        _clean(root, prefix)
    except (ElementTree.ParseError, OSError, KeyError, ValueError, IndexError, LookupError, RecursionError) as error:
        raise UserError(f"{file} is not a figure ({in_brackets(error)}). `bnrepro figures` draws it again.") from error
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2), width  # HTML knows both


def _clean(node: ElementTree.Element, prefix: str) -> None:
    for child in list(node):
        space, _, tag = str(child.tag).rpartition("}")
        if space != f"{{{SVG}" or tag not in KEPT:
            node.remove(child)
        else:
            _clean(child, prefix)
    for key, value in list(node.attrib.items()):
        name = key.rpartition("}")[2]
        if (
            name.lower().startswith("on")
            or (name == "href" and not value.startswith(("#", "data:image/png")))
            or (not _harmless(value) and name != "href")
        ):
            del node.attrib[key]
        elif name == "id":
            node.attrib[key] = prefix + value
        elif name == "href" and value.startswith("#"):
            node.attrib[key] = f"#{prefix}{value[1:]}"
        else:
            node.attrib[key] = value.replace("url(#", f"url(#{prefix}")


def _harmless(value: str) -> bool:
    """Whether an attribute, a style for one, loads nothing: it calls nothing that could, by no hidden name."""
    calls = set(re.findall(r"([\w-]*)\s*\(", value))
    return calls <= SAFE_CALLS and value.count("url(") == value.count("url(#") and not set("\\@") & set(value)
