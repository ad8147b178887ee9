"""Checks the pages that were written: each internal link has its target, and nothing is loaded from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


class _Page(HTMLParser):
    """The identifiers of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect them."""
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(found["href"])


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir).resolve()
    pages = {
        file: _Page(file.read_text(encoding="utf-8")) for file in out.rglob("*.html") if "_static" not in file.parts
    }
    for file, page in pages.items():
        place = file.relative_to(out)
        for link in page.loaded:
            if urlsplit(link).netloc:
                logger.warning("%s loads %s", place, link)
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.exists():
                logger.warning("%s links to %s, which is not there", place, link)
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                logger.warning("%s links to %s, which has no such anchor", place, link)


def setup(app: Sphinx) -> dict[str, Any]:
    """Check when all pages are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
