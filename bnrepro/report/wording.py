"""What every form of the report says: counts, numbers, scales, when a design was registered."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from bnrepro.claims.evidence import ALPHA, Rule, Verdict
from bnrepro.claims.registering import registered_on, sentence_registered
from bnrepro.claims.words import numbers
from bnrepro.stats import Interval

TITLE = "Claims about batch normalization, run and judged"
LONG = 30  # rows from which a table is folded
NONE = "-"

MEANINGS = {
    Verdict.reproduced: "under every condition that was tried the whole interval is on the claim's side; for a claim "
    "of equality, inside the margin that was set beforehand; an exact claim holds",
    Verdict.partly: "under some conditions it holds, or the effect is there and smaller than what was called "
    "negligible beforehand",
    Verdict.not_reproduced: "under no condition it holds, and under some the whole interval is on the other side, or "
    "below what matters",
    Verdict.inconclusive: "the intervals say neither; where several conditions were tried, by Holm's correction",
    Verdict.not_testable: "the reason stands in its row; where a claim is under revision, its design is being replaced",
    Verdict.too_short: "what the networks were to reach before they are compared, they did not reach",
}
COLUMNS = ("claim", "what it says", "what the source reports", "what was found here", "kind", "q", "verdict")
Q = (
    "q: the false discovery rate at which the claim, by its deciding effect, would be among the discoveries of all "
    "empirical claims together (Benjamini and Hochberg)"
)

Row = dict[str, Any]
Rows = list[Row]
BRIEF = 12  # words
Mark = Callable[[str], str]


def anchor(section: str, row: Row) -> str:
    """A claim's anchor."""
    return f"{section}-{re.sub(r'[^A-Za-z0-9.]+', '-', number_of(row))}"


def number_of(row: Row) -> str:
    """A claim's id within its paper."""
    return str(row["id"]).rpartition("/")[2]


def scale(row: Row) -> str:
    """The scale of a claim with the note: "reduced: 8 epochs"."""
    note = f": {row['scale_note']}" if row["scale_note"] else ""
    return f"{row['scale']}{note}"


def size(row: Row) -> str:
    """What stands behind a verdict, so that none reads like one at the source's scale: " (reduced: 8 epochs)"."""
    return "" if row["scale"] == "exact" else f" ({scale(row)})"


def brief(row: Row) -> str:
    """A claim's answer in at most twelve words, for a row that shows the effect beside it."""
    answer = str(row["answer"])
    if row["deciding"] is None:
        words = answer.split()
        return (
            answer if len(words) <= BRIEF else f"{' '.join(words[: BRIEF - 1]).rstrip(',;:.')} \N{HORIZONTAL ELLIPSIS}"
        )
    said = answer.partition(":")[0]
    condition = row["effects"][row["deciding"]]["condition"] if len(row["effects"]) > 1 else ""
    longer = [f"{said}; deciding: {condition}." if condition else "", f"{said}: {row['estimand']}.", f"{said}."]
    longer.append(f"{said.partition(';')[0]}.")
    return next(text for text in longer if text and (len(text.split()) <= BRIEF or text == longer[-1]))


def counted(claims: Rows) -> str:
    """How many have which verdict: where nothing is random, at the source's scale and at others."""
    parts = []
    sizes_by_name = {"exact": ("exact",), "at the source's scale": ("paper",), "reduced or toy": ("reduced", "toy")}
    for name, sizes in sizes_by_name.items():
        mine = [row for row in claims if row["scale"] in sizes]
        counts = Counter(row["verdict"] for row in mine)
        if mine:
            parts.append(
                f"{name}: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
            )
    return "; ".join(parts)


def p_of(row: Row) -> float | None:
    """The p value of the effect that decided, of what must be rejected for it to hold; None of one that is not random.

    At a look it is that of the whole design, by the same bound that its level comes from.
    """
    if row["deciding"] is None:
        return None
    effect = row["effects"][row["deciding"]]
    seeds = [math.nan if value is None else value for value in effect["seeds"].values()]
    rule = Rule(effect["rule"], effect["bar"], effect["margin"], effect["ratio"])
    if rule.name == "exact" or math.isnan(p := rule.p_values(seeds, effect["unit"])[0]):
        return None
    level = (1 - effect["confidence"]) / (2 if rule.name == "equal" else 1)
    return min(1.0, p * ALPHA / level)


def has_margin(effect: Row) -> bool:
    """Whether there is something to halve and double: a margin, or the bar of `not_lower`, which is one."""
    lower = effect["rule"] == "greater" and not effect["ratio"] and (effect["bar"] or 0) < 0
    return effect["margin"] is not None or lower


def unrun(row: Row) -> bool:
    """Whether a claim is open because nothing was run yet that decides it."""
    return row["verdict"] == Verdict.inconclusive and row["deciding"] is None


def history(row: Row) -> list[tuple[str, str]]:
    """How far a verdict can be trusted to have been asked for beforehand: gate, look, design, first run."""
    facts = []
    if gate := row["gate"]:
        value = NONE if gate["value"] is None else f"{gate['value']:.3g}"
        ended = {True: "passed", False: "failed", None: "not measured"}[gate["passed"]]
        facts.append(("Gate", f"{gate['what']}: {value}, {gate['needed']} needed: {ended}"))
    if look := row["look"]:
        first = (
            f"look {look['number']} of {look['of']}" if look["number"] else f"before the first of {look['of']} looks"
        )
        facts.append(("Look", f"{first}, with {look['seeds']} seeds"))
    facts.append(("Design", _registered(row)))
    worded = sentence_registered(row["paper"], row["id"].rpartition("/")[2], under=row["design_hash"] or "")
    if worded is not None and worded != row["sentence"]:
        quoted = f"\N{LEFT DOUBLE QUOTATION MARK}{worded}\N{RIGHT DOUBLE QUOTATION MARK}"
        facts.append(("Registered as", f"{quoted}; since then the sentence, and nothing else, was fitted to the test"))
    if row.get("first_run"):
        facts.append(("First run", str(row["first_run"])))
    return facts


def _registered(row: Row) -> str:
    """The hash of a claim's design, and when it was registered."""
    known, first = row.get("registration") or {}, row.get("first_run")
    if row["preset"] != "full":
        return f"preset {row['preset']}, which is no evidence and is never registered"
    if not known.get("registered"):
        day = registered_on(row["paper"], but=row["design_hash"])
        later = f"; the one registered on {day} has not been run yet" if day else ""
        return f"{row['design_hash']}, not registered{later}"
    day = known["committed"] or known["registered"]
    commit = f", commit {known['commit'][:10]}" if known["commit"] else ", not committed"
    text = f"{row['design_hash']}, registered {day}{commit}"
    if not known["as_registered"]:
        text += "; it is not judged as registered"
    if first and first < day:
        text += "; its first run is older"
    days = dict.fromkeys(each["on"] for each in known["amended"])
    return text + (f"; amended {listed(list(days))}" if days else "")


def amendments(row: Row) -> list[tuple[str, str]]:
    """Why a claim's design was amended: the same for all claims of an experiment."""
    known = row.get("registration") or {}
    return [
        ("Amended", f"{each['on']}: {each['reason']} (before: {each['hash']})") for each in known.get("amended", [])
    ]


def q_of(q: float | None) -> str:
    """A q value, with the digits that it has; a dash where there is none."""
    return NONE if q is None else f"{q:.2f}" if q >= 0.01 else f"{q:.0e}"


def number(value: Any) -> str:
    """A table's cell: four digits of a number; of an interval, as many as it leaves."""
    if value is None:
        return NONE
    if isinstance(value, Interval):
        if value.n == 0:
            return f"{NONE} (n=0)"
        return f"{numbers(value)} (n={value.n})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys and texts."""
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        pairs += flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", _setting(value))]
    return pairs


def up(text: str) -> str:
    """``text`` with a capital."""
    return text[:1].upper() + text[1:]


def _setting(value: Any) -> str:
    return ", ".join(map(_setting, value)) if isinstance(value, list) else NONE if value is None else str(value)


SPECIAL = re.compile(
    r"(?P<address>https?://[^\s<>()\"'`|\\]*[^\s<>()\"'`|\\.,;:!?])"  # a full stop after it ends the sentence
    r"|`(?P<code>[^`\n]+)`"
)


def marked_up(text: str, plain: Mark, address: Mark, code: Mark) -> str:
    """``text`` with its http(s) addresses, what stands between backticks, and all else, each written its own way."""
    parts, end = [], 0
    for match in SPECIAL.finditer(text):
        parts.append(plain(text[end : match.start()]))
        parts.append(address(match["address"]) if match["address"] else code(match["code"]))
        end = match.end()
    return "".join([*parts, plain(text[end:])])


def plural(count: int, what: str) -> str:
    """``3 claims``, ``1 claim``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, with the digits that matter."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parted(caption: str) -> tuple[str, str]:
    """A caption's first sentence, and the rest. What names a panel ("Top left: ...") is no sentence."""
    found = re.match(r"((?:(?:[^\s.]+ )?[^\s.]+:\s)?.+?[.:?!])\s+(?=[A-Z0-9])(.*)", caption, re.DOTALL)
    return (found[1].rstrip(":"), found[2]) if found and len(found[1]) < len(caption) else (caption, "")


def column(values: list[Any]) -> list[str]:
    """The cells of a table's column: numbers have the digits that they all need, and so the same number of them."""
    intervals = [value for value in values if isinstance(value, Interval)]
    if intervals:
        halves = [(each.high - each.low) / 2 for each in intervals]
        halves = [half for half in halves if 0 < half < math.inf]
        if halves and (digits := _digits(halves)) <= 6:
            return [_spread(value, digits) for value in values]
    sizes = [abs(v) for v in values if isinstance(v, float) and not isinstance(v, bool) and math.isfinite(v) and v]
    whole = all(size == int(size) for size in sizes)
    if intervals or not sizes or whole or any(isinstance(value, str | bool) for value in values):
        return [number(value) for value in values]
    digits = max(3 - math.floor(math.log10(max(sizes))), 1 - math.floor(math.log10(min(sizes))), 0)
    form = f"z,.{digits}f" if digits <= 6 and max(sizes) < 1e6 else "z.2e"
    return [format(v, form) if isinstance(v, int | float) and math.isfinite(v) else number(v) for v in values]


def _digits(halves: list[float]) -> int:
    """Digits of intervals of these half widths: two of the median, and one of the smallest where it is not far off."""
    typical, least = (math.floor(math.log10(of)) for of in (median(halves), min(halves)))
    return max(1 - typical, min(-least, 3 - typical), 0)


def _spread(value: Any, digits: int) -> str:
    """A column's interval, with so many digits."""
    if not isinstance(value, Interval) or value.n == 0 or not abs(value.mean) < 1e6:
        return number(value)
    ends = "" if math.isnan(value.low) else f" [{value.low:z,.{digits}f}, {value.high:z,.{digits}f}]"
    return f"{value.mean:z,.{digits}f}{ends} (n={value.n})"


def counts_of(names: Iterable[str]) -> str:
    """``3 completed, 1 diverged``."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())
