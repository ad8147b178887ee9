"""Runs as one table, claims as pages, and the page on runs of one's own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bnrepro.claims import Design
from bnrepro.claims.conclusion import conclude
from bnrepro.claims.records import save
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.report import compare, export, own
from bnrepro.report.gathering import gather
from bnrepro.report.model import Report
from bnrepro.report.page import page
from bnrepro.runs import record
from bnrepro.runs.record import Run
from bnrepro.training import train
from tests.claims.made_up import varied
from tests.conftest import Call
from tests.report.test_atlas import evaluation
from tests.report.test_report import EVIL, PAPER, RECORDS, Reader


@pytest.fixture
def results(tmp_path: Path) -> Path:
    curves = [evaluation("table", v, 0, t, val_loss=0.5 / t) for v in ("bn", "nobn") for t in (1, 2)]
    records = replace(RECORDS, curves=curves, settings=RECORDS.settings | {"common": ["epochs=3"]})
    save(records, tmp_path / "made_up")
    paper = varied(lambda s: Design(s.seeds), PAPER.claims, PAPER.tables, PAPER.figures)
    conclude(paper, records, tmp_path / "made_up")
    return tmp_path


def test_runs_and_their_curves_are_one_table(results: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    export.write(gather(results), tmp_path / "out")
    table = pandas.read_csv(tmp_path / "out" / "evaluations.csv", low_memory=False)
    assert len(table) == len(RECORDS.runs) + 2  # two runs have two evaluations, the others none
    assert list(table.columns[:5]) == ["section", "preset", "part", "variant", "seed"]
    assert table.columns.is_unique
    bn = table.query("part == 'table' and variant == 'bn' and seed == 0")
    assert (list(bn.step), list(bn.val_loss), set(bn.final_test_accuracy)) == ([1, 2], [0.5, 0.25], {0.909})
    assert set(table.final_status) == {"completed", "diverged"}
    assert set(table["config.epochs"]) == {3}
    assert set(table["config.limits.curve"]) == {1.5}


def test_each_claim_is_a_page_of_markdown(results: Path, tmp_path: Path) -> None:
    files = export.write(gather(results), tmp_path / "out")
    pages = {file.name: file.read_text("utf-8") for file in files if file.suffix == ".md"}
    assert set(pages) == {"README.md", *(f"made_up-Z{i}.md" for i in range(1, 6))}
    assert re.findall(r"\]\((made_up.*?)\)", pages["README.md"]) == [f"made_up-Z{i}.md" for i in range(1, 6)]
    assert all("<script" not in text for text in pages.values())
    assert "**reproduced** (toy: &lt;script" in pages["made_up-Z1.md"]
    assert "0: 0.9, 1: 1, 2: 1.1" in pages["made_up-Z1.md"]
    assert "* Made again by: `bnrepro reproduce made_up --preset smoke`" in pages["made_up-Z3.md"]
    rows = [line for line in pages["made_up-Z1.md"].splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.fixture
def runs(tiny: Callable[..., Config]) -> list[Path]:
    """Three variants: two of one configuration, and one that also has another rate."""
    configs = [*compare.grid(tiny("epochs=2"), ["nobn", "bn"], 2), tiny("epochs=2", "variant=bn", "optimizer.lr=0.5")]
    return [train.run(cfg) for cfg in configs]


def test_page_on_runs_of_ones_own(runs: list[Path], call: Call, tmp_path: Path) -> None:
    (runs[0] / record.SUMMARY).unlink()  # one that was killed
    out = tmp_path / "page"
    told = call("report", *map(str, runs), f"--out={out}")
    assert told.code == 0, told.err
    made = (out / "report.html").read_text("utf-8")
    text = Reader(made).text
    assert "Runs of lenet on digits" in text
    assert "5: 1 interrupted, 4 completed" in text
    assert "bn, optimizer.lr=0.5" in text
    assert str(runs[0].parents[3]) not in made  # nothing of this machine's folders
    assert ('id="questions"' in made, 'id="claims"' in made) == (False, False)
    assert 'type="application/json" id="curves-runs"' in made
    (out / "report.html").write_text("somebody else's")
    assert "was not written by bnrepro" in call("report", str(runs[1]), f"--out={out}").err
    assert (out / "report.html").read_text() == "somebody else's"


def test_page_on_a_folder_has_its_comparisons_and_its_runs(runs: list[Path], call: Call, tmp_path: Path) -> None:
    root = runs[0].parents[3]
    compare.save(compare.collect(map(Run, runs[:4])), root / "digits" / "lenet" / "compare-1")
    (runs[4] / record.METRICS).write_text("")
    told = call("report", str(root), f"--out={tmp_path / 'page'}")
    assert told.code == 0
    assert "Left out: " in told.err
    assert "metrics.csv is damaged" in told.err
    ids = Reader((tmp_path / "page" / "report.html").read_text("utf-8")).ids
    assert {"comparison-digits-lenet-compare-1", "runs"} <= set(ids)


def test_exported_runs_have_their_configuration(runs: list[Path], call: Call, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    told = call("export", str(runs[0].parents[3]), f"--out={tmp_path / 'out'}")
    assert told.code == 0, told.err
    table = pandas.read_csv(tmp_path / "out" / "evaluations.csv", low_memory=False)
    assert len(table) == 10  # of five runs, two evaluations each
    assert set(table["config.optimizer.lr"]) > {0.5}
    assert set(table["config.epochs"]) == {2}


def test_export_replaces_its_own_files_alone(results: Path, tmp_path: Path) -> None:
    records = (results / "made_up" / "runs.csv").read_bytes()
    for _ in range(2):
        export.write(gather(results), results / "made_up")
    assert (results / "made_up" / "runs.csv").read_bytes() == records
    for mine in ("evaluations.csv", "claims/README.md"):
        out = tmp_path / mine.replace("/", "-")
        (out / mine).parent.mkdir(parents=True)
        (out / mine).write_text("mine")
        with pytest.raises(UserError, match="was not written by this command and would be replaced"):
            export.write(gather(results), out)
        assert [(file, file.read_text()) for file in out.rglob("*") if file.is_file()] == [(out / mine, "mine")]


def test_an_export_is_not_taken_for_results(runs: list[Path], call: Call, tmp_path: Path) -> None:
    assert call("export", str(runs[0]), f"--out={tmp_path / 'all' / 'export'}").code == 0
    shutil.copytree(runs[0], tmp_path / "all" / runs[0].name)
    told = call("report", str(tmp_path / "all"), f"--out={tmp_path / 'page'}")
    assert (told.code, "Left out" in told.err) == (0, False), told.err


def test_nothing_to_show_is_told(tmp_path: Path, call: Call) -> None:
    with pytest.raises(UserError, match="There are no runs, comparisons or experiments in"), own.gathered([tmp_path]):
        pass
    for command in ("report", "export"):
        assert call(command, str(tmp_path / "nowhere")).code == 2


def test_evil_names_of_runs_are_texts(tiny: Callable[..., Config]) -> None:
    run = train.run(tiny("epochs=1"))
    with own.gathered([run]) as report:
        section = report.sections[0]
    evil = replace(section, runs=[row | {"variant": EVIL} for row in section.runs], images=[], title=EVIL)
    evil.tables[0][1][0]["variant"] = EVIL
    made = page(Report([evil]), None, EVIL)
    assert Reader(made).text.count(EVIL) >= 3  # the titles
    assert EVIL.replace("`", "") in Reader(made).text  # the cell
    assert Reader(made).tags["script"] == 2 + made.count("<script type=") + 2 * ("uPlot=" in made)
