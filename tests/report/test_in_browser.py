"""The page in a browser: it runs under its policy, by keyboard too, on a phone, without scripts, and is accessible."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bnrepro.claims.conclusion import conclude
from bnrepro.claims.records import save
from bnrepro.report import report
from tests.report.browser import BROWSER, Page, browser
from tests.report.test_atlas import evaluation
from tests.report.test_report import EVIL, PAPER, RECORDS

pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no browser")
AXE = os.environ.get("BNREPRO_AXE")
"""axe.min.js of axe-core, where it is to be asked; it is not installed with the tests."""
SHOWN = "[...document.querySelectorAll('tbody.claim')].filter(b => !b.hidden).map(b => b.id.slice(8)).join()"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose texts try to run something, with curves."""
    folder = tmp_path_factory.mktemp("results")
    rows = [
        evaluation("table", v, s, t, val_loss=0.5 / t, val_accuracy=1 - 0.5 / t) for v, s in RUNS for t in (1, 2, 4)
    ]
    evil = [row | {"variant": EVIL} for row in rows if row["variant"] == "bn"]
    runs = [*RECORDS.runs, *(run | {"variant": EVIL} for run in RECORDS.runs if run["variant"] == "bn")]
    records = replace(RECORDS, curves=[*rows, *evil], runs=runs)
    save(records, folder / "made_up")
    conclude(PAPER, records, folder / "made_up")
    return report.write(folder)[2]


RUNS = [(run["variant"], run["seed"]) for run in RECORDS.runs if run["part"] == "table"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's page."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quiet(page: Page) -> Iterator[None]:
    """Nothing is refused, fails or is fetched."""
    page.problems.clear()
    page.requests.clear()
    yield
    assert page.problems == []
    assert [each for each in page.requests if not each.startswith(("file:", "about:", "data:image/png"))] == []


def test_scripts_of_the_page_run_and_those_in_its_texts_do_not(page: Page, file: Path) -> None:
    page.open(file.as_uri())
    assert page.run("document.getElementById('filters').hidden") is False
    assert page.run("document.querySelectorAll('script:not([type])').length") == 4
    assert page.run("document.querySelectorAll('main script').length") == 0
    assert EVIL.replace("`", "") in page.run("document.querySelector('main').textContent")


def test_policy_refuses_what_is_not_the_pages_own(page: Page, file: Path) -> None:
    page.open(file.as_uri())
    page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    evil = '<p id=styled style="color: red"><img src=x onerror="window.ran = 1">'
    page.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(evil)})")
    page.run("new Promise(done => setTimeout(done, 200))")
    assert page.run("window.ran") is None
    assert page.run("getComputedStyle(document.getElementById('styled')).color") != "rgb(255, 0, 0)"
    assert len(page.problems) >= 3
    assert all("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


@pytest.mark.parametrize("width", [390, 1300])
def test_page_is_no_wider_than_the_screen(page: Page, file: Path, width: int) -> None:
    page.open(file.as_uri(), width)
    page.run("for (const each of document.querySelectorAll('details')) each.open = true")
    page.run("new Promise(done => setTimeout(done, 400))")
    inner, whole = page.run("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
    assert width - 30 <= inner == whole <= width


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("", "Z1,Z2,Z3,Z4,Z5"),
        ("verdict=reproduced", "Z1,Z2"),
        ("kind=prediction&scale=toy", "Z3"),
        ("q=NEVER%20tried", "Z4"),
        ("q=no+such+word", ""),
        ("scale=planet", "Z1,Z2,Z3,Z4,Z5"),  # a level that is not there asks for nothing
        ("sort=verdict", "Z1,Z2,Z3,Z4,Z5"),
        ("sort=n", "Z3,Z1,Z2,Z4,Z5"),
        ("paper=made_up&open=made_up-Z3", "Z1,Z2,Z3,Z4,Z5"),
    ],
)
def test_view_is_in_the_address(page: Page, file: Path, state: str, shown: str) -> None:
    page.open(f"{file.as_uri()}#{state}")
    assert page.run(SHOWN) == shown
    assert (
        page.run("document.getElementById('shown').textContent")
        == f"{len(list(filter(None, shown.split(','))))} of 5 claims"
    )
    opened = page.run("[...document.querySelectorAll('tbody.claim details[open]')].length")
    assert opened == ("open=" in state)


def test_filters_write_the_address_and_it_gives_the_view_back(page: Page, file: Path) -> None:
    page.open(file.as_uri())
    page.run("document.querySelector('[name=q]').focus()")
    page.type("curve begins")
    page.run("document.querySelector('#made_up-Z3 details').open = true")
    page.run("new Promise(done => setTimeout(done, 100))")
    address = page.run("location.href")
    assert address.endswith("#q=curve+begins&open=made_up-Z3")
    page.open(address)
    assert page.run(SHOWN) == "Z3"
    assert page.run("document.querySelector('#made_up-Z3 details').open")
    page.run("document.querySelector('#filters [type=reset]').click()")
    page.run("new Promise(done => setTimeout(done, 100))")
    assert page.run(SHOWN) == "Z1,Z2,Z3,Z4,Z5"


def test_link_to_a_claim_unfolds_it_even_where_a_filter_hides_it(page: Page, file: Path) -> None:
    page.open(f"{file.as_uri()}#verdict=inconclusive")
    assert page.run(SHOWN) == "Z3"
    page.run("location.hash = 'made_up-Z1'")
    page.run("new Promise(done => setTimeout(done, 150))")
    assert page.run(SHOWN) == "Z1,Z2,Z3,Z4,Z5"
    assert page.run("document.querySelector('#made_up-Z1 details').open")
    assert 0 <= page.run("document.querySelector('#made_up-Z1').getBoundingClientRect().top") < 200


def test_curves_are_read_by_keyboard(page: Page, file: Path) -> None:
    page.open(file.as_uri())
    page.run("document.querySelector('.chart').scrollIntoView()")
    page.run("new Promise(done => setTimeout(done, 300))")
    page.run("document.querySelector('.plotted').focus()")
    page.key("ArrowRight")
    first = page.run("document.querySelector('.plotted').getAttribute('aria-valuetext')")
    assert first.startswith("epoch 0.1: ")
    assert "nobn: 0.5" in first
    assert EVIL in first
    page.key("End")
    last = page.run("document.querySelector('.reading').textContent")
    assert last.startswith("epoch 0.4: ")
    assert "nobn: 0.875" in last
    boxes = "[...document.querySelectorAll('.chart fieldset input')]"
    page.run(f"{boxes}.find((box) => box.parentElement.textContent.startsWith('nobn')).click()")
    page.key("Home")
    assert "nobn" not in page.run("document.querySelector('.reading').textContent")
    page.run("document.querySelector('.chart details').open = true")
    page.run("new Promise(done => setTimeout(done, 100))")
    assert (
        page.run("[...document.querySelectorAll('.chart td')].map(c => c.textContent)[0]") == "0.5000 [0.5000, 0.5000]"
    )
    assert page.run("document.querySelectorAll('.chart tbody tr').length") == 3


def test_page_says_all_without_scripts(file: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.without_scripts()
        page.open(file.as_uri())
        assert page.run(SHOWN) == "Z1,Z2,Z3,Z4,Z5"
        for hidden in ("#filters", ".chart"):  # nothing that would not work
            assert page.run(f"getComputedStyle(document.querySelector('{hidden}')).display") == "none"
        assert page.run("document.querySelectorAll('figure svg[role=img]').length") == 2
        assert page.problems == []


LOOK = Path(__file__).with_name("accessible.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_page_is_accessible(page: Page, file: Path, scheme: str, width: int) -> None:
    """What axe would find that this page could get wrong; and axe itself, where it is (see `AXE`)."""
    page.open(file.as_uri(), width, prefers_color_scheme=scheme)
    page.run("for (const each of document.querySelectorAll('details')) each.open = true")
    page.run("new Promise(done => setTimeout(done, 500))")
    found = page.run(LOOK)
    assert (found["faint"], found["nameless"], found["stuck"]) == ([], [], [])
    assert found["levels"][0] == 1
    assert found["levels"].count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(found["levels"]))
    if AXE:
        page.run(Path(AXE).read_text("utf-8"))
        asked = "axe.run(document, {resultTypes: ['violations']})"
        assert page.run(f"{asked}.then((r) => r.violations.map((v) => `${{v.impact}} ${{v.id}}`))") == []


def test_what_looks_at_accessibility_finds_faults(page: Page, file: Path, tmp_path: Path) -> None:
    harmed = file.read_text("utf-8")
    style = harmed[harmed.index("<style>") + 7 : harmed.index("</style>")]
    harmed = harmed.replace(style, style + "main p { color: #ccc; }").replace("Content-Security-Policy", "none")
    harmed = harmed.replace("<main id", '<h4>x</h4><a href="#x"></a><main id')
    (tmp_path / "harmed.html").write_text(harmed, "utf-8")
    page.open((tmp_path / "harmed.html").as_uri(), prefers_color_scheme="light")
    found = page.run(LOOK)
    assert found["faint"]
    assert found["nameless"]
    assert found["levels"][1] == 4


def test_theme_can_be_chosen(page: Page, file: Path) -> None:
    page.open(file.as_uri(), prefers_color_scheme="light")
    before = page.run("getComputedStyle(document.body).backgroundColor")
    page.run("document.getElementById('theme').click()")
    assert before == "rgb(255, 255, 255)" != page.run("getComputedStyle(document.body).backgroundColor")
