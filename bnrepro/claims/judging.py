"""A paper's results as what is written and shown: its claims judged, its tables and figures made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bnrepro.claims import words
from bnrepro.claims.design import Arm, Probe
from bnrepro.claims.evidence import Effect, Evidence, Judgement, State, Verdict, flips_at, judge, verdicts_at
from bnrepro.claims.gates import Gate
from bnrepro.claims.paper import Claim, Paper, Preset, Shown
from bnrepro.claims.records import Records
from bnrepro.claims.results import OF_RUNS, Read, Results, Row
from bnrepro.config import user_files
from bnrepro.errors import known_are
from bnrepro.runs.tables import plain
from bnrepro.stats import Interval, Look, planned
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
    gate: Gate | None = None
    look: Look | None = None
    """The look that this is; None of a design without looks. Number 0: the first one is not reached."""

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
    def decided(self) -> bool:
        """Whether more seeds would change nothing."""
        states = self.judgement.states
        return State.open not in states if states else self.verdict is not Verdict.inconclusive

    @property
    def needed(self) -> int | None:
        """Seeds that would decide what is open; None where nothing is, or where it is not known."""
        if self.look is None:
            open_ = [self.deciding] if self.verdict is Verdict.inconclusive and self.deciding else []
        else:
            pairs = zip(self.evidence.effects, self.judgement.states, strict=False)
            open_ = [effect for effect, state in pairs if state is State.open]
        each = [words.needed(effect) for effect in open_]
        return max(filter(None, each)) if each and all(each) else None

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

    @property
    def is_gate_unknown(self) -> bool:
        """Whether nothing was measured of what its gate looks at."""
        return self.gate is not None and self.gate.passed is None

    def as_row(self, paper: str) -> Row:
        """The object of claims.json, but for what the experiment's provenance says."""
        claim, effect, look = self.claim, self.deciding, self.look
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
            "gate": _gate(self.gate) if self.gate is not None else None,
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
            "look": {"number": look.number, "of": look.of, "seeds": look.seeds} if look else None,
            "needed": self.needed,
            "flips_at": flips_at(self.evidence) if claim.kind != "identity" else [],
            "at_margins": {f"{f:g}": v.value for f, v in verdicts_at(self.evidence).items()}
            if claim.kind != "identity" and effect
            else {},
            "judged_in": claim.judged_in,
        }


def judged(paper: Paper[Any], results: Results, settings: Preset) -> list[Judged]:
    """Each of the paper's claims with its verdict."""
    found, absent = [], _absent(paper, results, settings)
    for claim in paper.claims:
        with paper.told(f"claim {claim.id}"):
            with missed() as levels:
                found.append(_judged(paper, claim, results, settings, _needed(paper, claim, settings, absent)))
            # The package's own are held to their records by tests.
            nothing = found[-1].unmeasured or found[-1].is_gate_unknown
            wrong = mistake(levels, results) if paper.file and nothing else None
            if wrong and not absent:
                raise ValueError(wrong)
    return found


def mistake(levels: list[tuple[str, Any]], results: Results) -> str | None:
    """A sentence on the first of ``levels`` that nothing was run or measured with, and on what there is."""
    rows = [*results.runs, *results.measurements]
    failed = isinstance(results, Records) and results.provenance.get("failed")
    for factor, level in levels:
        there = dict.fromkeys(str(row[factor]) for row in rows if row.get(factor) is not None)
        if rows and not there and all(factor not in row for row in rows):
            columns = dict.fromkeys(key for row in rows for key in row if key not in OF_RUNS | {"x", "value"})
            return f"there is no factor {factor!r}.{known_are(factor, columns)}"
        # Of a run that diverged nothing is measured; and curves and measurements end where they end.
        excused = failed or factor in ("x", "step", "epoch", "seed") or (factor == "quantity" and "diverged" in there)
        if rows and not excused and str(level) not in there:
            return f"there is no {factor} {level!r}." + (known_are(str(level), there) if there else "")
    return None


def _absent(paper: Paper[Any], results: Results, settings: Preset, each_seed: bool = False) -> list[Arm | Probe]:
    """The arms and measurements of the design of which there is no record; one of any seed will do, or of each."""
    absent: list[Arm | Probe] = []
    try:
        design = paper.designed(settings)
    except user_files.FAILS:  # records outlive what made them
        return absent
    for every, rows in ((design.arms, results.runs), (design.probes, results.measurements)):
        for names in {tuple(each.factors) for each in every}:
            there = {_place(row, {name: row.get(name) for name in names}, each_seed and row["seed"]) for row in rows}
            mine = {}
            for each in every:
                if tuple(each.factors) == names:
                    seed = each.config.seed if isinstance(each, Arm) else each.seed
                    mine[_place({"part": each.part}, each.factors, each_seed and seed)] = each
            absent += [each for place, each in mine.items() if place not in there]
    return absent


def _place(row: Row, factors: Row, seed: int | bool) -> tuple[Any, ...]:
    return row["part"], *factors.items(), seed


def _needed(paper: Paper[Any], claim: Claim, settings: Preset, absent: list[Arm | Probe]) -> list[Arm | Probe]:
    """Those of ``absent`` that ``claim`` reads."""
    from bnrepro.claims.tracing import fits, questions

    if not absent or (asked := questions(paper, claim, settings)) is None:
        return absent
    return [each for each in absent if fits(each, asked)]


def _judged(paper: Paper[Any], claim: Claim, results: Results, settings: Preset, absent: list[Arm | Probe]) -> Judged:
    """The claim at the first look that leaves nothing open; otherwise at the last one that its seeds reach.

    Further seeds change nothing where a look has decided, so that it does not matter how many there are. Presets other
    than full are no evidence, and are judged by the seeds that they have.
    """
    if settings.scale and claim.scale != "exact":
        claim = replace(claim, scale=settings.scale, scale_note=settings.scale_note)

    def of(part: Results) -> Evidence:
        return _with_absent(claim.rests_on(part, settings), absent)

    evidence = of(results)
    if claim.withdrawn:
        return Judged(claim, _aside(evidence, f"under revision: {claim.withdrawn}"), Judgement(Verdict.not_testable))
    if not (settings.looks and results.preset == "full" and evidence.random):
        return _weighed(claim, evidence, results, settings)
    found, before = None, 0
    for look in planned(settings.looks):
        part = results.first(look.seeds)
        at = of(part)
        fewest = min(len(effect.seeds) for effect in at.random)
        if fewest < look.seeds and (fewest <= before or not _was_run(paper, claim, part, settings, look.seeds)):
            break
        before = look.seeds
        found = _weighed(claim, at.tested_at(look.level), part, settings, look)
        if found.decided:
            break
    gate = claim.gated(results, settings) if found is None else None
    if gate is not None and gate.passed is None:  # it awaits other runs; what there is stands beside
        there = claim.rests_on(results, settings)
        return Judged(claim, _aside(there, gate.words), Judgement(Verdict.inconclusive), gate)
    return found or _before(planned(settings.looks)[0], claim, evidence)


def _was_run(paper: Paper[Any], claim: Claim, results: Results, settings: Preset, seeds: int) -> bool:
    """Whether there is a record of all that ``claim`` reads, of so many seeds, though some have no value: a network
    that diverged has none, and no further run would give it one.
    """
    absent = _absent(paper, results, settings.model_copy(update={"seeds": seeds}), each_seed=True)
    return not _needed(paper, claim, settings, absent)


def _with_absent(evidence: Evidence, absent: list[Arm | Probe]) -> Evidence:
    """With what was not run as conditions of their own, which stay open: the others alone would not be the claim."""
    if not any(effect.seeds for effect in evidence.effects):
        return evidence
    names = (", ".join([each.part, *(f"{key} {level}" for key, level in each.factors.items())]) for each in absent)
    first = evidence.effects[0]
    more = [replace(first, condition=name, seeds={}, label="") for name in names]
    return replace(evidence, effects=(*evidence.effects, *more))


def _weighed(claim: Claim, evidence: Evidence, results: Results, settings: Preset, look: Look | None = None) -> Judged:
    gate = claim.gated(results, settings)
    if gate is not None and not gate.passed and not evidence.reason:
        verdict = Verdict.inconclusive if gate.passed is None else Verdict.too_short
        return Judged(claim, _aside(evidence, gate.words), Judgement(verdict), gate, look)
    return Judged(claim, evidence, judge(evidence), gate, look)


def _aside(evidence: Evidence, reason: str) -> Evidence:
    """``evidence`` that is not judged: its numbers stay to be seen, beside."""
    return Evidence(evidence.estimand, (), (*evidence.effects, *evidence.beside), reason, evidence.remark)


def _before(first: Look, claim: Claim, evidence: Evidence) -> Judged:
    """Before the first look nothing is decided."""
    seeds = min(len(effect.seeds) for effect in evidence.random)
    look = Look(0, first.of, seeds, first.level)
    evidence = evidence.tested_at(first.level)
    found = judge(evidence)
    states = tuple(
        State.open if effect in evidence.random else state
        for effect, state in zip(evidence.effects, found.states, strict=False)
    )
    return Judged(claim, evidence, replace(found, verdict=Verdict.inconclusive, states=states), None, look)


def tables(paper: Paper[Any], results: Results, settings: Preset) -> Iterator[tuple[str, str, list[Row]]]:
    """(name, title, rows) of each of the paper's tables."""
    for table in paper.tables:
        with paper.told(f"table {table.name}"):
            read = Read.of(results)
            rows = table.make(*paper.given(read, settings))
            if not (isinstance(rows, list | tuple) and all(isinstance(row, dict) for row in rows)):
                raise TypeError(f"it must return a list of rows, each a dict, and returns {rows!r}"[:300])
            made = table.name, caption(table, read, settings), list(map(_checked, rows))
        yield made


def _checked(row: Row) -> Row:
    """A table's row.

    Raises:
        TypeError: a cell is nothing that a table can hold.
    """
    for name, cell in row.items():
        if not isinstance(name, str):
            raise TypeError(f"a column needs a text as its name; got {name!r}"[:300])
        known = isinstance(cell, Interval)
        if not known and getattr(cell, "ndim", 0) == 0:  # of NumPy and torch, single numbers alone
            known = isinstance(plain(cell), str | bool | int | float | None)
        if not known:
            raise TypeError(f"the cell {name} must be a text, a number or an interval; got {cell!r}"[:300])
    return row


def figures(
    paper: Paper[Any], results: Results, settings: Preset, only: Sequence[str] | None = None
) -> Iterator[tuple[str, str, Figure | None]]:
    """(name, caption, figure) of each figure; None where there are no records. One that fails is reported and left out.

    ``only``: names of the figures to draw; None: all of them.
    """
    for shown in (each for each in paper.figures if only is None or each.name in only):
        with only_shown(f"Figure {shown.name}"), paper.told(f"figure {shown.name}"):
            read = Read.of(results)
            figure = shown.make(*paper.given(read, settings))
            if not (figure is None or hasattr(figure, "savefig")):
                raise TypeError(f"it must return a matplotlib figure, or None, and returns {type(figure).__name__}")
            made = shown.name, caption(shown, read, settings), figure
            yield made


def caption(shown: Shown, read: Read, settings: Preset) -> str:
    """The caption with the settings filled in, and with what every caption says.

    Args:
        shown: the table or figure.
        read: the records, after it was made of them.
        settings: the preset's.

    Raises:
        ValueError: what stands in its braces is no setting.
    """
    try:
        text = " ".join(shown.caption.format(s=settings, r=read).split())
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            "in a docstring, braces stand for a setting, as in {s.margin}; write those that are to be shown twice: "
            f"{{{{ and }}}} ({type(error).__name__}: {error})"
        ) from error
    over = f"Means and 95% intervals over {_seeds(read, settings)}; preset" if shown.over_seeds else "Preset"
    return f"{text} {over} {read.preset}."


def _seeds(read: Read, settings: Preset) -> str:
    """On how many seeds the intervals rest: those of an open claim may have more, and one alone has none."""
    counts = sorted(read.seeds - {1}) or [settings.seeds]
    if counts == [1]:
        return "one seed"
    return f"n = {counts[0]} seeds" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds"


def _gate(gate: Gate) -> Row:
    return {"what": gate.what, "value": gate.value, "needed": gate.needed, "passed": gate.passed}


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
