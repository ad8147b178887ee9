"""The report: complete, escaped, by itself, and the same in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bnrepro.claims import (
    Design,
    Evidence,
    Gate,
    Paper,
    Results,
    Values,
    exact,
    greater,
    less,
    not_lower,
    not_testable,
    reaches,
)
from bnrepro.claims.conclusion import CLAIMS, conclude
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.paper import Shown
from bnrepro.claims.records import Records, save, there
from bnrepro.errors import UserError, sentence
from bnrepro.report import forest, report, wording
from bnrepro.report.drawing import inline
from bnrepro.report.forest_plot import forest_plot
from bnrepro.report.gathering import gather
from bnrepro.report.page import ATLAS, CHARTS, SCRIPTS, STYLES, lead
from bnrepro.stats import Interval
from bnrepro.system.reading import printable
from bnrepro.system.writing import write_whole
from tests.claims import made_up
from tests.claims.made_up import Settings, varied
from tests.conftest import Call

EVIL = "<script>alert('x')</script> & \"quoted\" | `code` *stars* _under_ $x$ ~a~ [b](c)"
LINK = "https://example.org/a_b/c*d"


def untried(r: Results, s: Settings) -> Evidence:
    """Evidence of nothing."""
    return not_testable("no ImageNet here")


def evil_paper() -> Paper[Settings]:
    """Five claims of three kinds, two tables, two figures with the same shapes in them; and texts to be escaped."""
    first, second, third = made_up.paper.claims
    evil = {"sentence": EVIL, "quote": EVIL, "where": EVIL, "scale_note": EVIL, "source": f"Somebody ({LINK}). {EVIL}"}
    claims = [
        replace(first, **evil),
        second,
        third,
        replace(first, id="Z4", evidence=untried, sentence="Never tried.", source="Somebody else."),
        replace(first, id="Z5", withdrawn=EVIL),
    ]

    def small(r: Results, s: Settings) -> made_up.Rows:
        return [
            {"variant_name": EVIL, "accuracy": Interval(0.91234, 0.90, 0.92468, 5), "size": 60000, "share": 1 / 3},
            {"variant_name": "bn", "accuracy": None, "size": 6, "share": None},
        ]

    def long(r: Results, s: Settings) -> made_up.Rows:
        return [{"row": i} for i in range(wording.LONG)]

    def draw(r: Results, s: Settings) -> Figure:
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], "o-")
        axes.set_title("<script>alert(2)</script>")
        return figure

    tables = [Shown("small", f"Small {EVIL}", small), Shown("long", "Long.", long, over_seeds=False)]
    paper = varied(claims=claims, tables=tables, figures=[Shown(n, f"Caption of {n}: {EVIL}", draw) for n in PICTURES])
    paper.differences = (f"Smaller. {EVIL}",)
    return paper


PICTURES = ("one", "two")
ASSETS = [(ATLAS / name).read_text("utf-8").strip() for name in (*SCRIPTS, *CHARTS, *STYLES)]
PAPER = evil_paper()
GAINS = {0: 0.009, 1: 0.010, 2: 0.011}
STARTS = (0.5, 1.0, 2.0, 1.3)
RECORDS = Records(
    preset="smoke",
    settings={"seeds": 2, "limits": {"curve": 1.5}, "common": ["a", "b"], "no": None},
    runs=[
        *(
            {"part": part, "seed": seed, "variant": variant, "status": "completed", "test_accuracy": accuracy}
            | {"config_hash": f"{variant}{seed}"}
            for part in ("table", "again")
            for seed, gain in GAINS.items()
            for variant, accuracy in (("bn", 0.9 + gain), ("nobn", 0.9))
        ),
        {"part": "again", "seed": 3, "variant": "nobn", "status": "diverged", "config_hash": "2"},
    ],
    curves=[],
    measurements=[
        {"part": "line", "window": 3, "seed": seed, "quantity": "curve", "x": 0.1, "value": value}
        for seed, value in enumerate(STARTS)
    ],
    provenance={
        "experiment": "made_up",
        "command": "bnrepro reproduce made_up --preset smoke",
        "data": [{"data": "digits.npz", "data_official": False, "data_fingerprint": "abc"}],
        "machines": ["a machine, 2 cores"],
        "versions": [{"python": "3.11", "torch": "2.6"}],
        "git_revisions": ["0123abc"],
        "seconds": {"a": {"runs": 100.0, "measurements": 20.0}},
        "failed": ["table (kind=x): out of luck"],
    },
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one concluded experiment."""
    folder = PAPER.directory(tmp_path / "results" / "experiments")
    save(RECORDS, folder)
    conclude(PAPER, RECORDS, folder)
    return tmp_path / "results"


class Reader(HTMLParser):
    """Tags that are closed in order, ids, links, and texts."""

    VOID = ("meta", "br", "wbr", "img", "link", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for key, value in attrs:
            assert not key.startswith("on")
            if key == "id":
                self.ids.append(value or "")
            if tag == "a" and key == "href":
                self.links.append(value or "")
            elif key in ("src", "href", "xlink:href", "srcset", "data"):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture
def page(results: Path) -> str:
    """The HTML report."""
    return report.write(results)[2].read_text(encoding="utf-8")


def test_page_is_well_formed_and_loads_nothing(page: str) -> None:
    read = Reader(page)
    assert read.open == []
    assert [i for i, n in Counter(read.ids).items() if n > 1] == []
    assert all(load.startswith(("#f", "data:image/png")) for load in read.loads)
    assert not {"link", "iframe", "object", "foreignobject", "metadata"} & read.tags.keys()
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|http", style)
    assert all(target in read.ids for load in [*read.loads, *read.links] if (target := load[1:]) and load[0] == "#")
    assert {link for link in read.links if not link.startswith("#")} == {LINK}
    assert (read.tags["figure"], read.tags["style"]) == (2, 1)
    assert page.count('role="img"') == 2
    assert all(reference[5:-1] in read.ids for reference in re.findall(r"url\(#[^)]*\)", page))
    assert " style=" not in page  # the policy allows the page's own style sheet alone


def test_policy_names_each_script_and_style_by_its_hash_and_allows_nothing_else(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in unescape(policy).split("; "))
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert texts
        assert rules[kind] == " ".join(f"'sha256-{digest}'" for digest in hashes)
    others = {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert {key: rule for key, rule in rules.items() if key not in ("script-src", "style-src")} == others
    assert not re.search(r"\beval\(|new Function|innerHTML = [^']", "".join(asset for asset in ASSETS))
    assert all(printable(asset) == asset and "</" not in asset for asset in ASSETS)  # it stands in the page as it is


def test_texts_are_shown_as_they_are_and_never_run(page: str) -> None:
    assert Reader(page).tags["script"] == 2  # its own, which the policy names
    text = Reader(page).text
    # Sentence, words, place, source and scale of Z1, deviation, table, cell, captions, reason of Z5 and its row.
    assert text.count(EVIL.replace("`", "")) >= 11
    assert "A made-up & tiny paper" in text


def test_page_says_that_claims_await_their_runs(results: Path) -> None:
    gathered = gather(results)
    row = gathered.claims[0] | {"verdict": Verdict.inconclusive, "deciding": None, "withdrawn": None}
    section = replace(gathered.sections[0], claims=[row, row])
    last = lead(replace(gathered, sections=[section]))[-1]
    assert last == "Runs of the registered design are still to be made for 2 claims without a verdict yet."


def test_the_answer_in_a_row_has_at_most_twelve_words() -> None:
    rows = json.loads((Path(__file__).parents[2] / "results/claims.json").read_text(encoding="utf-8"))
    assert [row["id"] for row in rows if not 0 < len(wording.brief(row).split()) <= wording.BRIEF] == []


def test_forest_plot_has_a_line_for_each_effect_that_is_random(results: Path) -> None:
    files = report.write(results)
    rows = json.loads(files[0].read_text(encoding="utf-8"))
    figure = forest_plot(rows)
    assert figure is not None
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if line.get_marker() not in ("None", None)]
    assert len(drawn) == sum(forest.overview(row) is not None for row in rows) > 0
    assert (results / "forest.png").stat().st_size > 1000


def test_page_says_what_was_found_and_how(page: str) -> None:
    text = Reader(page).text
    counts = "exact: 1 reproduced; "
    counts += "reduced or toy: 1 reproduced, 1 inconclusive, 2 not testable here"
    assert "5 claims about batch normalization from 1 source" in text
    assert f"E{counts[1:]}." in text
    assert "Runs of the registered design are still to be made for 1 claim under revision." in text
    assert f"Preset smoke. E{counts[1:]}." in text
    assert "<code>code</code>" in page
    assert "Yes: test accuracy, BN minus none." in text
    assert "1.00 [0.75, 1.25] percentage points" in text
    assert "(percentage points, 95% interval, n=3; must be above 0, and not wholly below 0.001)." in text
    assert "Open: the curve's first value" in text
    assert "No ImageNet here." in text
    assert {"made_up-Z1", "made_up-Z2", "made_up-Z3", "made_up"} <= set(Reader(page).ids)
    for words in (
        "bnrepro reproduce made_up --preset smoke",
        "digits.npz (not the official files; fingerprint abc)",
        "a machine, 2 cores",
        "python 3.11, torch 2.6",
        "0123abc",
        "7, of which 1 diverged",
        "2 min of one process (a 2 min)",
        "table (kind=x): out of luck",
        "limits.curve",
        "0.912 [0.900, 0.925] (n=5)",
        "60,000",
        "0.333",
        "variant name",
    ):
        assert words in text


def test_details_say_all_that_is_known_of_a_claim(page: str, results: Path) -> None:
    def details(number: int) -> tuple[str, dict[str, str]]:
        row = re.search(rf'<tbody class="claim" id="made_up-Z{number}".*?(?=<tbody class|</section>)', page, re.DOTALL)
        assert row
        pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", row.group(), re.DOTALL)
        return unescape(re.sub("<[^>]*>", "", row.group())), {
            Reader(what).text: Reader(text).text for what, text in pairs
        }

    (words, first), (_, second), (shown, third), (_, fourth), (_, fifth) = map(details, range(1, 6))
    always = ["Why this verdict", "What would change it", "Design", "Cost", "Machine", "In words", "Judged in"]
    assert {*always, "Seeds", "q", "Made again by"} == set(first)
    assert first["Design"] == "preset smoke, which is no evidence and is never registered"
    assert "Somebody (example.org/a_b/c*d)." in words
    assert f"“{EVIL.replace('`', '')}”" in words
    assert first["Judged in"].startswith("made_up.py, ")
    assert first["Made again by"] == "bnrepro reproduce made_up --preset smoke"
    assert first["Why this verdict"].startswith(
        "An effect must be above 0, and not wholly below 0.001 percentage points, by"
    )
    assert first["Why this verdict"].endswith("decides: 1.00 [0.75, 1.25] percentage points, which holds.")
    assert first["What would change it"] == "Half or double the margin would not."
    assert first["Cost"] == "2 min of one process, for all claims of made_up together"
    assert "Seeds" not in second
    assert "nothing is random" in second["Why this verdict"]
    rows = json.loads((results / CLAIMS).read_text(encoding="utf-8"))
    assert third["Seeds"] == f"4; {rows[2]['needed']} would decide"
    assert third["What would change it"].endswith("at double the margin it would be reproduced.")
    assert all(f"{value:.2f}" in shown for value in STARTS)  # by seed
    assert fourth["Why this verdict"] == "No ImageNet here."
    assert fifth["In words"].startswith("under revision: <script>")


def test_verdicts_are_counted_by_kind_and_scale(results: Path, page: str) -> None:
    found = report.gather(results)
    verdicts = tuple(Verdict)
    counts = {"identity": ("exact", 1, 0, 0, 0, 0, 0), "empirical": ("toy", 1, 0, 0, 0, 2, 0)}
    counts |= {"prediction": ("toy", 0, 0, 0, 1, 0, 0)}
    assert found.by_kind() == [
        {"kind": kind, "scale": scale, **dict(zip(verdicts, numbers, strict=True))}
        for kind, (scale, *numbers) in counts.items()
    ]
    table = page[page.index("Verdicts by kind and scale") :]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr><td.*?</tr>", table)[:3]]
    assert cells == [[kind, *map(str, numbers)] for kind, numbers in counts.items()]
    text = (results / "REPORT.md").read_text(encoding="utf-8")
    assert f"| kind | scale | {' | '.join(verdicts)} |" in text
    assert "| empirical | toy | 1 | 0 | 0 | 0 | 2 | 0 |" in text
    sentence = "Of the 2 verdicts that rest on a margin, 0 would change at half of it and 1 at double it: 1 in all."
    assert found.sensitive() == sentence
    assert sentence in text
    assert sentence in Reader(page).text


def test_verdicts_that_rest_on_a_margin_are_counted_by_all_their_effects(tmp_path: Path) -> None:
    def values(*of_seeds: float) -> Values:
        return Values((), {((), seed): value for seed, value in enumerate(of_seeds)})

    loss, gain = values(-0.8, -0.7, -0.6), values(0.9, 1.0, 1.1)
    given = {
        "a bar that is a margin": not_lower(loss, "x", "", margin=1.0),
        "in an effect that does not decide": greater(values(2.0, 1.0, 3.0), "x", "")
        & not_lower(loss, "x", "", margin=9),
        "a bar that is none": less(-gain, "x", "", bar=-0.5),
        "none": greater(gain, "x", ""),
        "algebra": exact(True, "x"),
    }
    claims = [replace(made_up.paper.claims[0], id=n, evidence=lambda r, s, e=e: e) for n, e in given.items()]
    claims.append(replace(claims[0], id="an identity", kind="identity"))
    paper = varied(claims=claims)
    save(RECORDS, tmp_path)
    conclude(paper, RECORDS, tmp_path)
    rows = {row["id"].split("/")[1]: row for row in report.gather(tmp_path).claims}
    assert {name for name, row in rows.items() if row["flips_at"]} == {"a bar that is a margin"}
    sentence = "Of the 2 verdicts that rest on a margin, 1 would change at half of it and 0 at double it: 1 in all."
    assert report.gather(tmp_path).sensitive() == sentence


def test_verdicts_come_first_and_link_to_themselves(page: str) -> None:
    assert page.index('id="made_up-Z1"') < page.index('<section id="made_up"')
    assert page.count('<a href="#made_up-Z3">') == 2
    assert '<strong class="verdict not-testable-here">not testable here</strong>' in page


def test_markdown_says_the_same(results: Path) -> None:
    text = report.write(results)[1].read_text(encoding="utf-8")
    assert "<script" not in text
    lines = text.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("| claim | what it says |"))
    rows = lines[start : start + 7]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1  # as many cells in each row
    assert '<a id="made_up-Z1"></a>Z1' in rows[2]
    assert r"157 \| 315" in rows[2]
    assert r"\$x\$" in rows[2]
    assert r"\| `code` \*stars\* \_under\_" in rows[2]
    assert r"1.00 \[0.75, 1.25\] percentage points (n=3, bar 0, margin 0.001)." in rows[2]
    assert rows[2].split(" | ")[-1].startswith("**reproduced** (toy: &lt;script")  # which is not reproduced, but toy
    assert rows[3].endswith("| identity | - | **reproduced** |")
    assert rows[4].endswith("| prediction | - | **inconclusive** (toy: one epoch) |")
    (image,) = re.findall(r"!\[one\]\(([^)]*)\)", text)
    assert (results / image).is_file()
    assert "* Made by: `bnrepro reproduce made_up --preset smoke`" in lines
    first, _, third, fourth, fifth = (line for line in lines if line.startswith("* [Z"))
    assert f"<{LINK}>" in first  # a claim of another source than the paper's
    assert f"<{LINK}>" not in third
    assert third.startswith(
        "* [Z3](#made_up-Z3) inconclusive (toy: one epoch): The curve begins at nothing. The curve's first value: "
    )
    assert re.search(r"\d+ seeds would decide what is open\. Design: preset smoke, which is no evidence", third)
    assert "Never tried. “BN wins.” (page 1) no ImageNet here. Design: " in fourth
    assert fourth.endswith(" Source: Somebody else.")
    assert "not testable here (toy: one epoch): BN &lt;script" in fifth


REGISTERED = {
    **{"hash": "0123456789abcdef", "registered": "2026-11-20", "commit": "f" * 40, "committed": "2026-11-21"},
    **{"amended": [], "as_registered": True},
}


@pytest.mark.parametrize(
    ("design", "first_run", "words"),
    [
        (None, None, ", not registered"),
        (REGISTERED | {"registered": None}, None, "0123456789abcdef, not registered"),
        (REGISTERED, "2026-11-22", "0123456789abcdef, registered 2026-11-21, commit ffffffffff"),
        (REGISTERED | {"commit": None, "committed": None}, "2026-11-22", "registered 2026-11-20, not committed"),
        (REGISTERED, "2026-11-19", "commit ffffffffff; its first run is older"),
        (REGISTERED | {"as_registered": False}, "2026-11-22", "; it is not judged as registered"),
        (
            REGISTERED
            | {"amended": [{"hash": "beef", "registered": "2026-11-01", "reason": "a typo", "on": "2026-11-20"}]},
            *("2026-11-22", "2026-11-20: a typo (before: beef)"),
        ),
    ],
)
def test_report_says_when_a_design_was_registered(
    tmp_path: Path, design: dict[str, object] | None, first_run: str | None, words: str
) -> None:
    own = {} if design is None else {"design": design, "first_run": first_run}
    records = replace(RECORDS, preset="full", provenance=RECORDS.provenance | own)
    save(records, tmp_path / "made_up")
    conclude(varied(), records, tmp_path / "made_up")
    _, markdown, page = report.write(tmp_path)
    if "(before: " in words:  # once for all claims
        assert markdown.read_text("utf-8").count(words) == 1
        assert "; amended 2026-11-20." in markdown.read_text("utf-8")
    for text in (markdown.read_text("utf-8"), Reader(page.read_text("utf-8")).text):
        assert words in text
        assert (first_run is None) or (f"First run: {first_run}" in text or f"First run{first_run}" in text)


def test_report_shows_gates_and_looks(tmp_path: Path) -> None:
    def gate(r: Results, s: Settings) -> Gate:
        return reaches(r.test_accuracy(part="table", variant="nobn"), 95, "test accuracy without BN, %")

    looks = {"looks": [3, 6], "seeds": 3}
    records = replace(RECORDS, preset="full", settings=looks)
    claims = [replace(made_up.paper.claims[0], id=id, gate=of) for id, of in (("A", None), ("B", gate))]
    save(records, tmp_path / "made_up")
    conclude(varied(lambda s: Design(s.seeds), claims), records, tmp_path / "made_up")
    page = Reader(report.write(tmp_path)[2].read_text("utf-8")).text
    assert "Look" in page
    assert "look 1 of 2, with 3 seeds" in page
    assert "test accuracy without BN, %: 90, at least 95 needed: failed" in page
    assert "The networks have not trained long enough: test accuracy without BN, % is 90" in page
    assert "1 not testable at this length" in page


def test_q_is_over_the_empirical_claims(tmp_path: Path) -> None:
    def of(mean: float) -> Evidence:
        return greater(Values((), {((), seed): mean + (-1) ** seed for seed in range(6)}), "x", "", margin=0.1)

    first = made_up.paper.claims[0]
    claims = [replace(first, id=str(mean), evidence=lambda r, s, m=mean: of(m)) for mean in (0.0, 1.0, 3.0)]
    claims.append(replace(first, id="identity", kind="identity", evidence=lambda r, s: of(3.0)))
    save(RECORDS, tmp_path / "made_up")
    conclude(varied(claims=claims), RECORDS, tmp_path / "made_up")
    found = report.gather(tmp_path)
    p = [row.effects[0].rule.p_values(list(row.effects[0].seeds.values()))[0] for row in map(of, (0.0, 1.0, 3.0))]
    q = {"made_up/0.0": p[0], "made_up/1.0": p[1] * 3 / 2, "made_up/3.0": p[2] * 3}
    assert found.q == pytest.approx(q)
    assert wording.q_of(found.q.get("made_up/identity")) == wording.NONE
    assert "| empirical | 1.00 | " in (report.write(tmp_path)[1]).read_text("utf-8")


# --- claims.json ---


def test_claims_json_is_that_of_all_experiments(results: Path, call: Call) -> None:
    other = evil_paper()
    other.name = "labml"
    folder = other.directory(results / "experiments")
    save(RECORDS, folder)
    conclude(other, RECORDS, folder)
    printed = call("report", "--json", f"--out={results}")
    assert (printed.code, printed.err) == (0, "")
    assert not (results / CLAIMS).exists()  # printed, and not written
    assert report.write(results)[0] == results / CLAIMS
    assert call("report", "--json", f"--out={results}").out == printed.out
    assert (results / CLAIMS).read_text(encoding="utf-8") == printed.out
    rows = json.loads(printed.out, parse_constant=pytest.fail)
    parts = [json.loads((results / "experiments" / n / CLAIMS).read_text("utf-8")) for n in ("labml", "made_up")]
    assert rows == [*parts[0], *parts[1]]
    assert [row["id"] for row in rows] == [f"{name}/Z{i}" for name in ("labml", "made_up") for i in range(1, 6)]


def test_claims_json_has_what_was_found(results: Path) -> None:
    report.write(results)
    first, second, third, fourth, fifth = json.loads((results / CLAIMS).read_text(encoding="utf-8"))
    assert (first["sentence"], first["quote"], first["where"], first["scale_note"]) == (EVIL,) * 4
    assert (first["preset"], first["seconds"], first["machine"]) == ("smoke", 120.0, "a machine, 2 cores")
    (effect,) = first["effects"]
    assert effect["seeds"] == {str(seed): pytest.approx(100 * gain) for seed, gain in GAINS.items()}
    assert (effect["mean"], effect["n"], effect["confidence"]) == (pytest.approx(1.0), 3, 0.95)
    assert (effect["low"], effect["high"]) == (pytest.approx(0.7516, abs=1e-4), pytest.approx(1.2484, abs=1e-4))
    assert (first["needed"], first["flips_at"], first["deciding"]) == (None, [], 0)
    assert second["effects"][0]["shown"] == "yes"
    (effect,) = third["effects"]
    assert (effect["confidence"], list(effect["seeds"].values())) == (0.9, list(STARTS))
    assert third["needed"] > len(STARTS)
    assert third["flips_at"] == [2.0]
    assert [(row["verdict"], row["effects"]) for row in (fourth, fifth)] == [("not testable here", [])] * 2
    assert fourth["beside"] == []
    assert [each["n"] for each in fifth["beside"]] == [3]


def test_numbers_that_json_does_not_know_are_null(results: Path) -> None:
    """A value that is infinite, and an interval that is none."""
    folder = results / "experiments" / "made_up"
    measurements = [RECORDS.measurements[0] | {"value": float("inf")}]
    records = replace(RECORDS, measurements=measurements)
    save(records, folder)
    conclude(PAPER, records, folder)
    text = report.write(results)[0].read_text(encoding="utf-8")
    row = json.loads(text, parse_constant=pytest.fail)[2]
    (effect,) = row["effects"]
    assert [effect[key] for key in ("mean", "low", "high", "n", "seeds")] == [None, None, None, 1, {"0": None}]
    assert row["verdict"] == "inconclusive"


def test_report_is_the_same_every_time(results: Path) -> None:
    first = [file.read_bytes() for file in report.write(results)]
    assert [file.read_bytes() for file in report.write(results)] == first


def test_two_of_a_name_and_nothing_at_all_are_told(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "experiments", results / "others")
    with pytest.raises(UserError, match="made_up is stored more than once"):
        report.write(results)
    with pytest.raises(UserError, match="no results under"):
        report.write(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["claims.json", "captions.json", "tables/small.csv", "figures/one.svg"])
def test_missing_file_is_named_with_its_remedy(results: Path, name: str) -> None:
    (results / "experiments" / "made_up" / name).unlink()
    with pytest.raises(UserError, match=r"not complete \(.*: No such file or directory\)\. `bnrepro figures"):
        report.write(results)


def drop(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_text("")


def cut_row(file: Path) -> None:
    file.write_text(file.read_text() + "one,row\n")


def odd_preset(file: Path) -> None:
    file.write_text(file.read_text().replace('"smoke"', '"huge"'))


HARMS: list[tuple[str, Callable[[Path], None], str]] = [
    *((name, drop, "not complete .* is missing") for name in ("provenance.json", "runs.csv", "measurements.csv")),
    *((name, empty, f"damaged .*{name}: it is empty") for name in ("runs.csv", "curves.csv", "measurements.csv")),
    ("runs.csv", cut_row, r"damaged .*runs\.csv: line 15 has 2 values for \d+ columns"),
    ("provenance.json", empty, r"damaged .*provenance\.json"),
    ("provenance.json", odd_preset, "preset: Input should be 'smoke', 'quick', 'full' or 'paper'"),
]


def test_records_that_are_damaged_are_named_with_the_command_that_makes_them_again(results: Path, call: Call) -> None:
    folder = results / "experiments" / "labml"  # whose name says which experiment makes it
    folder.with_name("made_up").rename(folder)
    remedy = f"`bnrepro reproduce labml --preset=full --out={folder.parent}` makes them again.\n"
    for name, harm, why in HARMS:
        whole = (folder / name).read_bytes()
        harm(folder / name)
        for command in (["report", f"--out={results}"], ["figures", str(folder)]):
            result = call(*command)
            assert result.code == 2
            assert re.search(f"Error: .*{why}", result.err)
            assert result.err.endswith(remedy)
        assert there(folder) is None  # so that nothing keeps `reproduce` from it
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["provenance.json", "runs.csv", "claims.json", "captions.json"])
def test_a_folder_in_place_of_a_file_costs_no_other_experiment(name: str, results: Path, call: Call) -> None:
    whole = results / "experiments" / "made_up"
    broken = whole.with_name("broken")
    shutil.copytree(whole, broken)
    (broken / name).unlink()
    (broken / name).mkdir()
    for command in (["report", f"--out={results}"], ["export", str(results)]):
        code, _, err = call(*command)
        assert (code, err.startswith("Left out: ")) == (0, True), err


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "claims.json", "[]")
    remedy = "This is a folder, but a file is needed: move it away, or choose another path."
    assert sentence(caught.value) == f"{tmp_path / 'claims.json'}: Is a directory. {remedy}"
    assert [each.name for each in tmp_path.iterdir()] == ["claims.json"]


def test_svg_is_cleaned(tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    file.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 100 50" '
        'width="100pt" onload="alert(1)"><script>alert(2)</script><g id="a" style="clip-path: url(#b)"/>'
        '<use xlink:href="#a"/><image href="https://example.org/x.png"/><a href="javascript:alert(3)"/></svg>'
    )
    cleaned, width = inline(file, "p-", 'a "label"')
    assert width == 100
    assert not re.search("alert|http|onload|width=", cleaned)
    assert 'id="p-a"' in cleaned
    assert "url(#p-b)" in cleaned
    assert 'xlink:href="#p-a"' in cleaned
    assert 'aria-label="a &quot;label&quot;"' in cleaned
    file.write_text("<svg")
    with pytest.raises(UserError, match="is not a figure"):
        inline(file, "p-", "")


def test_interval_that_is_none_is_told() -> None:
    assert wording.number(Interval(math.nan, math.nan, math.nan, 0)) == "- (n=0)"
    assert wording.number(Interval(0.5, math.nan, math.nan, 1)) == "0.5 (n=1)"
    assert (wording.number(True), wording.number(None), wording.number(9999), wording.number(1e-7)) == (
        "yes",
        "-",
        "9999",
        "1e-07",
    )


def test_experiments_stand_in_the_order_of_the_list(results: Path) -> None:
    for name in ("zeta", "labml", "conv_batchnorm"):
        other = evil_paper()
        other.name = name
        folder = other.directory(results / "experiments")
        save(RECORDS, folder)
        conclude(other, RECORDS, folder)
    names = [section.name for section in report.gather(results).sections]
    assert names == ["conv_batchnorm", "labml", "made_up", "zeta"]


@pytest.mark.slow
def test_page_on_all_results_is_under_5_megabytes_and_whole() -> None:
    results = Path(__file__).parents[2] / "results"
    made = report.page(report.gather(results), results)
    read = Reader(made)
    assert len(made.encode()) < 5_000_000
    assert read.open == []
    assert all(link[1:] in read.ids for link in read.links if link.startswith("#"))
