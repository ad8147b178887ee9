"""What a claim reads: which arms and measurements of the design its verdict needs.

A claim's function asks `Results` for rows by factors. It is called on results that note these questions: with nothing
in them, and with made-up runs for every arm, so that loops over levels are gone through. An arm or a measurement is
read where its part and factors fit a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnrepro.claims.design import Arm, Design, Factors, Probe
from bnrepro.claims.judging import mistake
from bnrepro.claims.paper import Claim, Paper, Preset
from bnrepro.claims.results import RUN_COLUMNS, Results, Row
from bnrepro.config import user_files
from bnrepro.runs.record import COLUMNS
from bnrepro.stats.values import missed


@dataclass(frozen=True)
class Question:
    """Rows that were asked for."""

    measured: bool
    """Measurements, and not runs or their curves."""
    factors: Factors
    """A list of levels asks for each of them."""

    def fits(self, part: str, factors: Factors) -> bool:
        """Whether rows of this part and these factors would be among the answer."""
        row = {"part": part, **factors}
        return all(_is(row.get(key), level) for key, level in self.factors.items())


@dataclass(frozen=True)
class Noting(Results):
    """Results that note what is asked of them."""

    questions: list[Question] = field(default_factory=list)

    def _selected(self, rows: Sequence[Row], factors: Row) -> list[Row]:
        measured = rows is self.measurements
        asked = {key: level for key, level in factors.items() if key not in ("quantity", "x", "seed")}
        self.questions.append(Question(measured, asked))
        return super()._selected(rows, factors)


def questions(paper: Paper[Any], claim: Claim, settings: Preset) -> list[Question] | None:
    """What ``claim`` and its gate ask for; None where that cannot be said."""
    design = paper.designed(settings)
    noted: list[Question] = []
    for runs, curves in (([], []), _made_up(design.arms)):
        results = Noting("full", runs, curves, [], noted)
        for function in filter(None, (claim.evidence, claim.gate)):
            try:
                function(results, settings.model_copy(deep=True))
            except user_files.FAILS:  # made-up numbers may be none that it can take; then all of the paper is run
                return None
    return [question for place, question in enumerate(noted) if question not in noted[:place]]


def asked_by(paper: Paper[Any], claims: Iterable[Claim], settings: Preset) -> list[Question] | None:
    """What ``claims`` ask for together; None where that cannot be said of one of them."""
    together: list[Question] = []
    for claim in claims:
        if (asked := questions(paper, claim, settings)) is None:
            return None
        together += asked
    return together


def check_claims(paper: Paper[Any], settings: Preset) -> None:
    """Check what can be known of a paper's claims before anything is run; the package's own are held to it by tests.

    Raises:
        UserError: a claim returns something other than it must, or reads runs that the design does not make.
    """
    for claim in paper.claims if paper.file else ():
        with paper.told(f"claim {claim.id}"):
            claim.check(settings)
            if wrong := _misread(paper, claim, settings):
                raise ValueError(wrong)


def _misread(paper: Paper[Any], claim: Claim, settings: Preset) -> str | None:
    """A sentence on what a claim reads that nothing will be run with; None where it rests on measurements too."""
    noted: list[Question] = []
    runs, curves = _made_up(paper.designed(settings).arms)
    results = Noting("full", runs, curves, [], noted)
    try:
        with missed() as levels:
            evidence, gate = claim.rests_on(results, settings), claim.gated(results, settings)
    except user_files.FAILS:  # made-up numbers may be none that it can take
        return None
    nothing = any(not effect.seeds for effect in evidence.effects) or (gate is not None and gate.passed is None)
    return mistake(levels, results) if nothing and not any(each.measured for each in noted) else None


def read_by(design: Design, asked: list[Question] | None) -> Design:
    """The arms and measurements of ``design`` that answer questions; all of them where these are not known."""
    if asked is None:
        return design
    found = Design(design.seeds)
    found.arms = [arm for arm in design.arms if fits(arm, asked)]
    found.probes = [probe for probe in design.probes if fits(probe, asked)]
    return found


def fits(each: Arm | Probe, asked: list[Question]) -> bool:
    """Whether one of the questions asks for its rows."""
    measured = isinstance(each, Probe)
    return any(question.measured is measured and question.fits(each.part, each.factors) for question in asked)


def _is(there: Any, asked: Any) -> bool:
    return there in asked if isinstance(asked, list | tuple | set | range) else bool(there == asked)


def _made_up(arms: list[Arm]) -> tuple[list[Row], list[Row]]:
    """A completed run for each arm, with two evaluations, whose numbers mean nothing."""
    numbers = {key: 0.5 for key in RUN_COLUMNS if key.endswith(("accuracy", "loss", "seconds"))}
    runs: list[Row] = []
    curves: list[Row] = []
    for place, arm in enumerate(arms):
        who = {"part": arm.part, **arm.factors, "seed": arm.config.seed}
        value = 0.5 + 0.4 * (place * 0.618 % 1)
        own = dict.fromkeys(numbers, value) | {"status": "completed", "steps": 10, "parameters": 1, "buffers": 1}
        runs.append({**dict.fromkeys(RUN_COLUMNS), "variant": arm.config.variant, **own, **who})
        curves += [{**dict.fromkeys(COLUMNS, value / step), "step": step, "epoch": step, **who} for step in (1, 2)]
    return runs, curves
