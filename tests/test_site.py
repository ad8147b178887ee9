"""The site in a browser, on a screen and on a phone: a page of each kind is accessible and no wider than its window."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import BROWSER, Page, browser
from tests.report.test_in_browser import AXE

# Slow: the site is built (half a minute) and twelve pages are opened. A machine without a browser cannot look at them.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="there is no browser")]
DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    "index.html",
    "papers/labml.html",
    "howto/own-claim.html",
    "annotated/layers.html",
    "reference/configuration.html",
    "notebooks/researcher.html",
)
HINTED = """[...document.querySelectorAll('.pst-scrollable-table-container')]
    .filter((each) => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1)
    .every((each) => each.nextElementSibling?.matches('.hint'))"""
SERIOUS = """axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations
    .filter((each) => ['serious', 'critical'].includes(each.impact))
    .map((each) => `${each.id}: ${each.nodes[0].html}`))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built; or a built one that BNREPRO_SITE names."""
    if given := os.environ.get("BNREPRO_SITE"):
        return Path(given).absolute()
    pytest.importorskip("sphinx")
    made = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", DOCS, made], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's page."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("name", PAGES)
def test_page_of_the_site_fits_and_is_accessible(name: str, width: int, page: Page, site: Path) -> None:
    page.open((site / name).as_uri(), width)
    page.run("new Promise(done => setTimeout(done, 400))")
    assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.run(HINTED)
    if AXE:
        page.run(Path(AXE).read_text("utf-8"))
        assert page.run(SERIOUS) == []
