"""A paper's results as what is written and shown: its claims judged, its tables and figures made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnrepro.claims import words
from bnrepro.claims.evidence import Effect, Evidence, Judgement, Verdict, flips_at, judge, not_testable
from bnrepro.claims.paper import Claim, Paper, Preset, Shown
from bnrepro.claims.records import Records
from bnrepro.claims.results import Results, Row
from bnrepro.errors import known_are
from bnrepro.stats.values import missed
from bnrepro.system.output import only_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Judged:
    """A claim, what it rests on, and its verdict."""

    claim: Claim
    evidence: Evidence
    judgement: Judgement

    @property
    def verdict(self) -> Verdict:
        """What the claim comes to."""
        return self.judgement.verdict

    @property
    def deciding(self) -> Effect | None:
        """The effect that decided."""
        place = self.judgement.deciding
        return None if place is None else self.evidence.effects[place]

    @property
    def answer(self) -> str:
        """The plain answer, in at most 25 words."""
        return words.answer(self.evidence, self.judgement)

    @property
    def found(self) -> str:
        """What was found, in sentences."""
        return words.finding(self.evidence, self.judgement)

    @property
    def unmeasured(self) -> list[str]:
        """The conditions of which nothing was measured; "" of a claim that has none."""
        return [effect.condition for effect in self.evidence.effects if not effect.seeds]

    def as_row(self, paper: str) -> Row:
        """The object of claims.json, but for what the experiment's provenance says."""
        claim, effect = self.claim, self.deciding
        inconclusive = self.verdict is Verdict.inconclusive and effect is not None
        return {
            "id": f"{paper}/{claim.id}",
            "paper": paper,
            "source": claim.source,
            "sentence": claim.sentence,
            "quote": claim.quote,
            "where": claim.where,
            "reported": claim.reported,
            "kind": claim.kind,
            "scale": claim.scale,
            "scale_note": claim.scale_note,
            "gate": None,
            "verdict": self.verdict.value,
            "withdrawn": claim.withdrawn,
            "answer": self.answer,
            "found": self.found,
            "estimand": self.evidence.estimand,
            "rule": effect.rule.name if effect else None,
            "unit": effect.unit if effect else "",
            "bar": effect.rule.bar if effect else None,
            "margin": effect.rule.margin if effect else None,
            "effects": [
                _effect(each) | {"state": state.value}
                for each, state in zip(self.evidence.effects, self.judgement.states, strict=True)
            ]
            if self.judgement.states
            else [],
            "beside": [_effect(each) for each in self.evidence.beside],
            "deciding": self.judgement.deciding,
            "look": None,
            "needed": words.needed(effect) if inconclusive and effect else None,
            "flips_at": flips_at(self.evidence) if claim.kind != "identity" else [],
            "judged_in": claim.judged_in,
        }


def judged(paper: Paper[Any], results: Results, settings: Preset) -> list[Judged]:
    """Each of the paper's claims with its verdict."""
    found = []
    for claim in paper.claims:
        with paper.told(f"claim {claim.id}"):
            with missed() as levels:
                found.append(_judged(claim, results, settings))
            # The package's own are held to their records by tests.
            if paper.file and found[-1].unmeasured and (mistake := _mistake(levels, results)):
                raise ValueError(mistake)
    return found


def _mistake(levels: list[tuple[str, Any]], results: Results) -> str | None:
    """A sentence on the first of ``levels`` that nothing was run or measured with, and on what there is."""
    rows = [*results.runs, *results.measurements]
    failed = isinstance(results, Records) and results.provenance.get("failed")
    for factor, level in levels:
        there = dict.fromkeys(str(row[factor]) for row in rows if row.get(factor) is not None)
        # Of a run that diverged nothing is measured; and curves and measurements end where they end.
        excused = failed or factor in ("x", "step", "epoch", "seed") or (factor == "quantity" and "diverged" in there)
        if rows and not excused and str(level) not in there:
            return f"there is no {factor} {level!r}." + (known_are(str(level), there) if there else "")
    return None


def _judged(claim: Claim, results: Results, settings: Preset) -> Judged:
    evidence = claim.evidence(results, settings)
    if not isinstance(evidence, Evidence):
        raise TypeError(f"it returns {type(evidence).__name__}, and not Evidence, as `greater` makes it")
    if claim.withdrawn:  # the numbers stay to be seen, beside
        under = not_testable(f"under revision: {claim.withdrawn}")
        evidence = Evidence(evidence.estimand, (), (*evidence.effects, *evidence.beside), under.reason, evidence.remark)
    return Judged(claim, evidence, judge(evidence))


def tables(paper: Paper[Any], results: Results, settings: Preset) -> Iterator[tuple[str, str, list[Row]]]:
    """(name, title, rows) of each of the paper's tables."""
    for table in paper.tables:
        with paper.told(f"table {table.name}"):
            made = table.name, caption(table, results, settings), table.make(results, settings)
        yield made


def figures(paper: Paper[Any], results: Results, settings: Preset) -> Iterator[tuple[str, str, Figure | None]]:
    """(name, caption, figure) of each figure; None where there are no records. One that fails is told and left out."""
    for shown in paper.figures:
        with only_shown(f"Figure {shown.name}"), paper.told(f"figure {shown.name}"):
            made = shown.name, caption(shown, results, settings), shown.make(results, settings)
            yield made


def caption(shown: Shown, results: Results, settings: Preset) -> str:
    """The caption with the settings filled in, and with what every caption says."""
    text = " ".join(shown.caption.format(s=settings, r=results).split())
    seeds = f"n = {settings.seeds} seeds" if settings.seeds > 1 else "one seed"
    over = f"Means and 95% intervals over {seeds}; preset" if shown.over_seeds else "Preset"
    return f"{text} {over} {results.preset}."


def _effect(effect: Effect) -> Row:
    interval = effect.interval
    return {
        "condition": effect.condition,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "confidence": effect.rule.confidence,
        "seeds": {str(seed): value for seed, value in effect.seeds.items()},
        "unit": effect.unit,
        "rule": effect.rule.name,
        "bar": effect.rule.bar,
        "margin": effect.rule.margin,
        "ratio": effect.rule.ratio,
        "shown": words.shown(effect),
    }
