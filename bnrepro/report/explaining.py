"""A claim unfolded: why it has this verdict, what would change it, what it cost, and where that is decided."""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import quote

from bnrepro.claims.evidence import Rule, State, Verdict
from bnrepro.claims.words import asked, left_open
from bnrepro.report.forest import deciding
from bnrepro.report.wording import NONE, Row, amendments, duration, has_margin, history, listed, plural, unrun, up

HOME = Path(__file__).parents[2]
"""Where the package lies: of a clone, its root."""
STATES = {State.holds: "holds", State.slight: "is there and negligible", State.fails: "fails", State.open: "is open"}
COUNTED = {State.holds: "hold", State.slight: "are negligible", State.fails: "fail", State.open: "are open"}


def why(row: Row) -> str:
    """The rule, the effect that decided, and what the conditions come to, in sentences."""
    effect = deciding(row)
    if row["withdrawn"]:
        return f"Its verdict is withdrawn until its new design has run: {row['withdrawn']}."
    if unrun(row):
        return "What would decide it was not run yet."
    if effect is None:
        return f"{up(row['found'].rstrip('.'))}."
    where = f" under “{effect['condition']}”" if effect["condition"] else ""
    what = " ".join(filter(None, (effect["shown"], effect["unit"])))
    state = f"{STATES.get(effect['state'], effect['state'])}{by_holm(effect)}"
    return f"An effect {_rule(effect)}. {_decided(row)}{where}: {what}, which {state}."


def by_holm(effect: Row) -> str:
    """Of an effect that is open although its interval alone would decide."""
    rule = Rule(effect["rule"], effect["bar"], effect["margin"], effect["ratio"])
    return left_open(rule, effect["low"], effect["high"], effect["state"])


def _rule(effect: Row) -> str:
    """What an effect must be to hold: "must be above 0, and not wholly below 2 percentage points, by ..."."""
    rule = Rule(effect["rule"], effect["bar"], effect["margin"], effect["ratio"])
    if rule.name == "exact":
        return f"{asked(rule)}: nothing is random"
    if not rule.margin if rule.name == "equal" else rule.bar is None:  # a file can hold anything
        return f"must be {rule.name}"
    unit = f" {effect['unit']}" if effect["unit"] else ""
    mean = ", geometric mean" if effect["ratio"] else ""
    return f"{asked(rule)}{unit}, by the whole {100 * effect['confidence']:.3g}% interval{mean}"


def _decided(row: Row) -> str:
    """How the conditions stand, and which of them decided."""
    counts = Counter(effect["state"] for effect in row["effects"])
    if len(row["effects"]) == 1:
        return "There is one condition, which decides"
    each = listed(
        f"{counts[state]} {STATES[state] if counts[state] == 1 else words}"
        for state, words in COUNTED.items()
        if counts[state]
    )
    last = {
        Verdict.reproduced: "all hold, and the weakest decides",
        Verdict.partly: f"{each}, and what stands against the rest decides",
        Verdict.not_reproduced: f"{each}, and the clearest failure decides",
    }.get(row["verdict"], f"{each}, and the least certain is shown")
    return f"Of {len(row['effects'])} conditions, {last}"


def changes(row: Row) -> str:
    """What would change the verdict."""
    effect, parts = deciding(row), []
    if row["withdrawn"]:
        return "The runs of its new design."
    if row["verdict"] == Verdict.too_short:
        return "Longer training: its gate failed."
    if unrun(row):
        return f"Its runs, which are still to be made: bnrepro reproduce {row['id']} --preset=full."
    if effect is None:
        return "Something that tests it."
    if effect["rule"] == "exact":
        return "Nothing random enters: only other code, or another reading of the sentence."
    if row["needed"]:
        parts.append(f"{plural(row['needed'], 'seed')} would decide what is open, if mean and spread are as they look")
    if row["flips_at"]:
        factors = {0.5: "half", 2.0: "double"}
        others = row.get("at_margins", {})
        names = {each: f"at {factors.get(each, f'{each:g} times')} the margin" for each in row["flips_at"]}
        parts.append(listed(f"{name} it would be {others.get(f'{f:g}', 'another')}" for f, name in names.items()))
    elif row["kind"] != "identity" and has_margin(effect):
        parts.append("half or double the margin would not")
    return f"{up('; '.join(parts))}." if parts else "More seeds, if anything: no margin was set that could be moved."


def facts(row: Row) -> list[tuple[str, str]]:
    """(what, text) that stands below a claim's forest plot."""
    found = [("Why this verdict", why(row)), ("What would change it", changes(row)), *history(row), *amendments(row)]
    seconds = row["seconds"]
    cost = f"{duration(seconds)} of one process, for all claims of {row['paper']} together" if seconds else ""
    seeds = sorted({effect["n"] for effect in row["effects"] if effect["rule"] != "exact"})
    used = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}" if seeds else ""
    needed = f"; {row['needed']:,} would decide" if row["needed"] else ""
    found += [("Seeds", f"{used}{needed}" if used else ""), ("Cost", cost), ("Machine", row["machine"])]
    return [(what, text) for what, text in found if text and text != NONE]


def judged_at(row: Row) -> tuple[str, str]:
    """The file that judges a claim, and its place there: ("bnrepro/experiments/placement.py", "line 120")."""
    file, _, function = row["judged_in"].rpartition(":")
    line = _lines(HOME / file).get(function) if file.startswith("bnrepro/") else None
    return file, f"line {line}" if line else function


def link(row: Row, out: Path | None) -> str | None:
    """The address of that file beside the page in ``out``: a page in a clone leads there, one that is sent does not."""
    file, place = judged_at(row)
    if out is None or not (HOME / "pyproject.toml").is_file() or not _lines(HOME / file):
        return None
    if not (out.resolve().is_relative_to(HOME) and (HOME / file).resolve().is_relative_to(HOME / "bnrepro")):
        return None
    anchor = place.replace("line ", "#L") if place.startswith("line ") else ""
    return quote(Path(os.path.relpath(HOME / file, out.resolve())).as_posix()) + anchor


@cache
def _lines(file: Path) -> dict[str, int]:
    """The line on which each function of a module begins; none where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    lines = enumerate(text.splitlines(), 1)
    return {found[1]: number for number, line in lines if (found := re.match(r"\s*def (\w+)\(", line))}
