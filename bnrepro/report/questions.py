"""Plain questions, answered from the verdicts that their claims have now. `questions.yaml` says which and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from bnrepro.claims.evidence import Verdict
from bnrepro.claims.registering import registered_on
from bnrepro.report.wording import Rows, listed, plural, unrun

Outcome = Literal["yes", "mixed", "no", "open", "none"]
SIDES: dict[str, Outcome] = {Verdict.reproduced: "yes", Verdict.partly: "mixed", Verdict.not_reproduced: "no"}
TURNED: dict[Outcome, Outcome] = {"yes": "no", "no": "yes"}
NOTHING: dict[Outcome, str] = {
    "open": "Undecided: the intervals of its claims say neither yet.",
    "none": "Not answered yet: none of its claims has a verdict.",
}


@dataclass(frozen=True)
class Question:
    """A question as it is asked."""

    text: str
    claims: tuple[str, ...]
    """Ids, in the order of the file."""
    against: frozenset[str]
    """Those of them that say no where they are reproduced."""
    answers: dict[Outcome, str]
    verdicts: Mapping[str, str]
    """Those for which there is an answer that says more, by id."""
    written: str = ""
    """That answer."""


@dataclass(frozen=True)
class Answer:
    """A question as it is answered now."""

    question: str
    outcome: Outcome
    short: str
    """What stands before the answer's colon."""
    text: str
    notes: list[str]
    """How much of it is small, old, or still to come."""
    rows: Rows
    """Its claims that are there."""
    awaited: list[str]
    """Ids of those that are not."""
    against: frozenset[str]
    """Ids of its claims that say no where they are reproduced."""


@cache
def asked() -> tuple[Question, ...]:
    """The questions."""
    found = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tuple(_question(each) for each in found)


@cache
def _reported() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(
        Path(__file__).with_name("reported.yaml").read_text(encoding="utf-8")
    )
    return found


def reported(row: dict[str, Any]) -> float | None:
    """The source's number in the unit of the claim's effect; None where there is none for this estimand."""
    known = _reported().get(row["id"])
    return float(known["effect"]) if known and known["estimand"] == row["estimand"] else None


def answers(claims: Rows, questions: Sequence[Question] | None = None) -> list[Answer]:
    """The questions of which a claim is there, answered from ``claims``."""
    rows = {row["id"]: row for row in claims}
    every = asked() if questions is None else questions
    return [answer(question, rows) for question in every if any(id in rows for id in question.claims)]


def answer(question: Question, rows: dict[str, dict[str, Any]]) -> Answer:
    """``question`` answered from claims by their ids."""
    there = [rows[id] for id in question.claims if id in rows]
    found = outcome([side(row, row["id"] in question.against) for row in there])
    as_written = question.written and all(rows.get(id, {}).get("verdict") == v for id, v in question.verdicts.items())
    said = question.written if as_written else question.answers.get(found) or NOTHING[found]
    short, _, text = said.partition(": ")
    awaited = [id for id in question.claims if id not in rows]
    return Answer(question.text, found, short, text, _notes(there, awaited), there, awaited, question.against)


def side(row: dict[str, Any], against: bool) -> Outcome:
    """What a claim says: yes, mixed or no; open where it is not decided, none where it cannot be yet."""
    if row["verdict"] == Verdict.inconclusive:
        return "open"
    found = SIDES.get(row["verdict"], "none")
    return TURNED.get(found, found) if against else found


def outcome(sides: Sequence[Outcome]) -> Outcome:
    """What claims say together: yes or no where all that are decided say so."""
    decided = {each for each in sides if each in ("yes", "mixed", "no")}
    if len(decided) > 1:
        return "mixed"
    return decided.pop() if decided else "open" if "open" in sides else "none"


def stale(row: dict[str, Any]) -> str | None:
    """The day on which another design of a claim was registered that has not been run yet.

    None of algebra, which is the same in any design, and of a claim whose verdict is withdrawn anyway.
    """
    if row["kind"] == "identity" or row["withdrawn"] is not None:
        return None
    return registered_on(row["paper"], but=row["design_hash"])


def awaiting(claims: Rows) -> str:
    """Of what runs are still to be made, in a sentence; of nothing, no sentence."""
    told = (
        (sum(row["withdrawn"] is not None for row in claims), "claim", "under revision"),
        (sum(stale(row) is not None for row in claims), "verdict", "from an earlier design"),
        (sum(map(unrun, claims)), "claim", "without a verdict yet"),
    )
    waits = listed(f"{plural(count, what)} {why}" for count, what, why in told if count)
    return f"Runs of the registered design are still to be made for {waits}." if waits else ""


def _question(found: dict[str, Any]) -> Question:
    against = found.get("against", [])
    texts: dict[Outcome, str] = {"yes": found["if_yes"], "mixed": found["if_mixed"], "no": found["if_no"]}
    written = found.get("written", {"verdicts": {}, "answer": ""})
    claims = (*found["for"], *against)
    return Question(found["question"], claims, frozenset(against), texts, written["verdicts"], written["answer"])


def _seeds(rows: Rows) -> str:
    """On how many seeds verdicts rest: "; n=5 to 10", or nothing where none is random."""
    counts = [effect["n"] for row in rows for effect in row["effects"] if effect["rule"] != "exact"]
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    return f"; n={least}" if least == most else f"; n={least} to {most}"


def _notes(rows: Rows, awaited: list[str]) -> list[str]:
    """What an answer's reader must know: how far it is from the sources' scale, and what may change it."""
    decided = [row for row in rows if row["verdict"] in SIDES]
    scales = Counter(row["scale"] for row in decided)
    each = listed(f"{n} {scale}" for scale, n in scales.items())
    notes = [f"{plural(len(decided), 'verdict')} ({each}{_seeds(decided)})"] if decided else []
    undecided = [row for row in rows if row["verdict"] == Verdict.inconclusive]
    if missing := sum(map(unrun, rows)):
        notes.append(f"{plural(missing, 'claim')} not run yet")
    if measured := len(undecided) - missing:
        notes.append(f"{plural(measured, 'claim')} inconclusive")
    if revised := sum(row["withdrawn"] is not None for row in rows):
        notes.append(f"{plural(revised, 'claim')} under revision")
    if rest := len(rows) - len(decided) - len(undecided) - revised:
        notes.append(f"{plural(rest, 'claim')} not testable")
    if old := sum(stale(row) is not None for row in decided):
        notes.append(f"{plural(old, 'verdict')} from an earlier design: the registered one awaits its runs")
    if awaited:
        notes.append(f"{plural(len(awaited), 'claim')} awaited: no results yet")
    return notes
