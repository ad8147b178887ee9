"""What claims read is found by asking them, and is all that they need: checked on every paper's committed records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bnrepro import experiments
from bnrepro.claims.records import read
from bnrepro.claims.results import Results, Row
from bnrepro.claims.tracing import Question, questions, read_by
from tests.claims import made_up
from tests.claims.made_up import Settings, varied
from tests.experiments.test_papers import is_awaited

COMMITTED = Path(__file__).parents[2] / "results" / "experiments"


@pytest.mark.parametrize("name", experiments.NAMES)
def test_what_claims_read_is_known_of_every_paper(name: str) -> None:
    paper = experiments.experiment(name)
    assert all(questions(paper, claim, paper.settings("full")) is not None for claim in paper.claims)


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", [name for name in reversed(experiments.NAMES) if not is_awaited(name)])
def test_claims_need_no_more_than_what_they_are_found_to_read(name: str) -> None:
    paper, records = experiments.experiment(name), read(COMMITTED / name)
    known = {key: value for key, value in records.settings.items() if key in paper.settings_type.model_fields}
    settings = paper.validated(known, "the committed settings")
    for claim in paper.claims:
        asked = questions(paper, claim, settings)
        assert asked is not None, claim.id

        def among(rows: list[Row], measured: bool, asked: list[Question] = asked) -> list[Row]:
            return [r for r in rows if any(q.measured is measured and q.fits(r["part"], r) for q in asked)]

        runs, measured = among(records.runs, False), among(records.measurements, True)
        part = Results(records.preset, runs, among(records.curves, False), measured)
        whole = Results(records.preset, records.runs, records.curves, records.measurements)
        assert claim.evidence(part, settings) == claim.evidence(whole, settings), claim.id


def test_arms_that_no_question_asks_for_are_left_out() -> None:
    paper, settings = varied(), Settings()
    design = paper.designed(settings)
    first, second, third = (read_by(design, questions(paper, claim, settings)) for claim in paper.claims)
    assert [(arm.part, arm.config.variant) for arm in first.arms] == [("table", "nobn"), ("table", "bn")]
    assert first.probes == second.arms == second.probes == third.arms == []
    assert [probe.part for probe in third.probes] == ["line", "line"]
    assert read_by(design, None) is design


def test_claim_that_made_up_numbers_do_not_suit_reads_everything() -> None:
    def wrong(r: Results, s: Settings) -> Any:
        raise ZeroDivisionError

    paper = varied(claims=[made_up.paper.claims[0].__class__(**vars(made_up.paper.claims[0]) | {"evidence": wrong})])
    assert questions(paper, paper.claims[0], Settings()) is None
