"""Figures as elements of a page: matplotlib's SVG without what could run, load, or only takes room."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from bnrepro.errors import UserError, in_brackets
from bnrepro.system import reading as stored

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HEAVY = 300_000  # characters from which a figure's PNG is lighter for a browser than its SVG
KEPT = {
    *("svg", "g", "defs", "use", "symbol", "marker", "clipPath", "mask", "pattern", "linearGradient", "radialGradient"),
    *("stop", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "image", "text", "tspan", "filter"),
    *("feColorMatrix", "feGaussianBlur", "feOffset", "feBlend", "feComposite"),
}
"""Elements of a drawing: nothing that runs, loads, links or changes other elements."""
SAFE_CALLS = {"url", "rgb", "rgba", "hsl", "hsla", "matrix", "translate", "scale", "rotate", "skewX", "skewY", "calc"}
STYLED = {
    *("fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-dashoffset"),
    *("clip-path", "stroke-linecap", "stroke-miterlimit", "opacity", "font-size", "font-weight", "font-style"),
    "text-anchor",
}
"""Properties that a style attribute may set, and that are attributes of their own: the page allows no styles but its
own, which sets the font and how lines join."""
GEOMETRY = {"d", "points", "transform", "x", "y", "width", "height", "stroke-dasharray", "stroke-dashoffset"}


def inline(file: Path, prefix: str, label: str) -> tuple[str, float]:
    """An SVG file as an element of an HTML page, and its width in points.

    Its ids get ``prefix``, since a page's must differ. Where the drawing is heavy, the PNG beside the file stands for
    it.

    Raises:
        UserError: it is no figure, or there is no PNG beside a heavy one.
    """
    try:
        root = ElementTree.fromstring(stored.read_bytes(file))
        if root.tag != f"{{{SVG}}}svg":
            raise ValueError("it is no SVG")
        width, height = (float(number) for number in root.attrib["viewBox"].split()[2:4])
        if not 0 < width < 1e5:
            raise ValueError(f"it is {width} wide")
        _clean(root, prefix, set(_referred(root)))
    except (ElementTree.ParseError, OSError, KeyError, ValueError, IndexError, LookupError, RecursionError) as error:
        raise UserError(f"{file} is not a figure ({in_brackets(error)}). `bnrepro figures` draws it again.") from error
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2)  # HTML knows both
    if len(text) > HEAVY:
        root.clear()
        root.tag, root.attrib = "img", {"alt": label, "src": _png(file)}
        root.attrib |= {"width": f"{width:.0f}", "height": f"{height:.0f}"}
        text = ElementTree.tostring(root, encoding="unicode", method="html")
    return text, width


def _png(file: Path) -> str:
    """The PNG beside ``file`` as an address that holds it."""
    try:
        return "data:image/png;base64," + base64.b64encode(stored.read_bytes(file.with_suffix(".png"))).decode()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} has no PNG beside it ({in_brackets(error)}). `bnrepro figures` draws it again."
        ) from error


def _referred(root: ElementTree.Element) -> Iterator[str]:
    """The ids that something in the drawing refers to; the rest only take room."""
    for node in root.iter():
        for key, value in node.attrib.items():
            if key.rpartition("}")[2] == "href":
                yield value[1:]
            yield from re.findall(r"url\(#([^)]*)\)", value)


def _clean(node: ElementTree.Element, prefix: str, referred: set[str]) -> None:
    kept_children: list[ElementTree.Element] = []
    for child in node:
        space, _, tag = str(child.tag).rpartition("}")
        if space == f"{{{SVG}" and tag in KEPT:
            _clean(child, prefix, referred)
            bare = tag in ("g", "defs") and not (child.attrib if tag == "g" else len(child))
            kept_children += list(child) if bare else [child]
    node[:] = kept_children
    if not (node.text or "").strip():
        node.text = None
    if not (node.tail or "").strip():
        node.tail = None
    given, style = node.attrib, node.attrib.pop("style", "")
    node.attrib = {}
    for key, value in [*given.items(), *_declared(style)]:
        if (kept := _attribute(key.rpartition("}")[2], value, prefix, referred)) is not None:
            node.attrib[key] = kept


def _declared(style: str) -> Iterator[tuple[str, str]]:
    """What a style attribute sets, as attributes."""
    for part in style.split(";"):
        name, _, value = part.partition(":")
        if name.strip() in STYLED:
            yield name.strip(), value.strip().removesuffix("px")


def _attribute(name: str, value: str, prefix: str, referred: set[str]) -> str | None:
    """An attribute's value as it is kept; None: it is left out."""
    if name.lower().startswith("on"):
        return None
    if name == "href":
        if value.startswith("data:image/png"):
            return re.sub(r"\s", "", value)
        return f"#{prefix}{value[1:]}" if value.startswith("#") else None
    if not _harmless(value):
        return None
    if name == "id":
        return prefix + value if value in referred else None
    if name in GEOMETRY:
        return _rounded(value) or None
    return value.replace("url(#", f"url(#{prefix}")


def _rounded(text: str) -> str:
    """Coordinates to a hundredth of a point, which no screen shows; matplotlib writes six digits."""
    short = re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n.group()):.2f}".rstrip("0").rstrip("."), text)
    short = re.sub(r"rotate\(-?0 [^)]*\)", "", short)
    return re.sub(r"\s+(?=[A-Za-z])|(?<=[A-Za-z])\s+", "", short).strip()


def _harmless(value: str) -> bool:
    """Whether an attribute loads nothing: it calls nothing that could, by no hidden name."""
    calls = set(re.findall(r"([\w-]*)\s*\(", value))
    return calls <= SAFE_CALLS and value.count("url(") == value.count("url(#") and not set("\\@") & set(value)
