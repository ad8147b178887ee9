"""Evidence in words: the answer, the finding, the rule, and numbers with the digits that they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnrepro.claims.evidence import ALPHA, Effect, Evidence, Judgement, Rule, State, Verdict
from bnrepro.stats import Interval, log, t_quantile

ANSWERS = {
    Verdict.reproduced: "Yes",
    Verdict.partly: "In part",
    Verdict.not_reproduced: "No",
    Verdict.inconclusive: "Open",
}
LONGEST = 25  # words of an answer
POWER = 0.8
MOST_SEEDS = 10_000


def numbers(effect: Interval) -> str:
    """``0.42 [0.31, 0.53]``, with as many digits as the interval leaves: two of its half width."""
    values = (effect.mean, effect.low, effect.high)
    half = (effect.high - effect.low) / 2
    if math.isnan(half) and abs(effect.mean) < 1e6 and math.isclose(effect.mean, round(effect.mean), rel_tol=1e-9):
        return f"{effect.mean:,.0f}"  # a count
    if not all(map(math.isfinite, (*values, half))):
        return f"{effect.mean:.3g}" if math.isnan(half) else "{:.3g} [{:.3g}, {:.3g}]".format(*values)
    if not half > 0:
        return "{:.4g} [{:.4g}, {:.4g}]".format(*values)
    digits = 1 - math.floor(math.log10(half))
    if digits <= 6 and max(map(abs, values)) < 1e6:
        rounded = (round(value, digits) for value in values)
        return "{:,.{d}f} [{:,.{d}f}, {:,.{d}f}]".format(*rounded, d=max(digits, 0))
    return "{:.3g} [{:.3g}, {:.3g}]".format(*values)


def shown(effect: Effect) -> str:
    """The effect's numbers, or what stands for them: ``0.42 [0.31, 0.53]``, ``1.2e-16``, ``yes``."""
    if not effect.seeds:
        return "not measured"
    if effect.label:
        return effect.label
    if effect.rule.name == "exact":
        return f"{effect.interval.mean:.2g}"
    return numbers(effect.interval)


def answer(evidence: Evidence, judgement: Judgement) -> str:
    """The plain answer, in at most 25 words: verdict, deciding effect, n."""
    if evidence.reason:
        reason = evidence.reason.rstrip(".")
        return f"Open: {reason}." if judgement.verdict is Verdict.inconclusive else f"{_capital(reason)}."
    if judgement.deciding is None:
        return "Open: nothing was measured."
    effect = evidence.effects[judgement.deciding]
    said = " ".join(filter(None, (shown(effect), effect.unit if effect.seeds else "")))
    start = ANSWERS[judgement.verdict]
    held = sum(state in (State.holds, State.slight) for state in judgement.states)
    if len(evidence.effects) == 1:
        text = f"{start}: {evidence.estimand}: {said}"
    else:
        decided = f"; {effect.condition}: {said}" if effect.condition else f": {said}"
        count = f"{start}, {held} of {len(evidence.effects)} hold"
        text = f"{count}: {evidence.estimand}{decided}"
    if effect.rule.name == "exact":
        return f"{text}."
    limits = {"bar": effect.rule.bar, "factor" if effect.rule.ratio else "margin": effect.rule.margin}
    held_to = "".join(f", {name} {value:g}" for name, value in limits.items() if value is not None)
    other = effect.rule.name == "equal" or effect.rule.level != ALPHA  # than 95%
    n, level = f"n={effect.interval.n}", f", {100 * effect.rule.confidence:.3g}%" * other
    every = [f"{text} ({n}{level}{more})." for more in (held_to, "")]
    if len(evidence.effects) > 1:
        every.append(f"{count}{decided} ({n}{level}).")
    return next((said for said in every if len(said.split()) <= LONGEST), every[-1])


def finding(evidence: Evidence, judgement: Judgement) -> str:
    """All effects, what they were held against, and what is shown beside them."""
    beside = [
        f"{': '.join(filter(None, (effect.condition, shown(effect))))}{' ' * bool(effect.unit)}{effect.unit}"
        for effect in evidence.beside
    ]
    if evidence.reason:
        measured = f"{_capital(evidence.estimand or 'what is here')}: {'; '.join(beside)}." if beside else ""
        return " ".join(filter(None, (f"{evidence.reason.rstrip('.')}.", measured, evidence.remark)))
    if not judgement.states:
        return " ".join(filter(None, ("Nothing was measured.", evidence.remark)))
    parts, states = [], {id(e): state for e, state in zip(evidence.effects, judgement.states, strict=True)}
    for rule, effects in _alike(evidence.effects):
        each = "; ".join(
            ": ".join(filter(None, (e.condition, shown(e))))
            + left_open(rule, e.interval.low, e.interval.high, states[id(e)])
            for e in effects
        )
        parts.append(f"{each} ({_about(effects)}; {asked(rule)})")
    text = f"{_capital(evidence.estimand)}: {'. '.join(parts)}."
    return " ".join(filter(None, (text, f"Beside it: {'; '.join(beside)}." if beside else "", evidence.remark)))


def left_open(rule: Rule, low: float | None, high: float | None, state: str) -> str:
    """What explains that an effect is open whose interval alone would decide: several conditions were tried."""
    if state != State.open or low is None or high is None:
        return ""
    bar, margin = rule.bar, rule.margin
    if rule.name == "equal":
        decides = margin is not None and (1 / margin if rule.ratio and margin else -margin) < low <= high < margin
    elif bar is None:
        decides = False
    elif rule.name == "greater":
        decides = low > bar or high < max(bar, bar if margin is None else margin)
    else:
        decides = high < bar or low > min(bar, bar if margin is None else margin)
    return " (open by Holm's correction)" if decides else ""


def asked(rule: Rule) -> str:
    """What an effect must be to hold: ``must be above 0``."""
    if rule.name == "exact":
        return "must be so" if rule.bar is None else f"must be at most {rule.bar:g}"
    if rule.name == "equal":
        assert rule.margin is not None
        inside = f"between {1 / rule.margin:.3g} and {rule.margin:g}" if rule.ratio else f"inside ±{rule.margin:g}"
        return f"must be {inside}"
    side = "above" if rule.name == "greater" else "below"
    nearer = "below" if rule.name == "greater" else "above"
    matters = f", and not wholly {nearer} {rule.margin:g}" if rule.margin not in (None, rule.bar) else ""
    return f"must be {side} {rule.bar:g}{matters}"


def needed(effect: Effect) -> int | None:
    """How many seeds would decide with a power of 80%, if mean and deviation are as they look; None if that is unknown.

    n of a paired t test, at the level of the effect's look, whose expected t lies so far beyond the bar; at most
    `MOST_SEEDS`.
    """
    rule, n = effect.rule, len(effect.seeds)
    if rule.name == "exact" or n < 2:
        return None
    values = [log(v) if rule.ratio else v for v in effect.seeds.values()]
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    bar, margin = (None if b is None else log(b) if rule.ratio else b for b in (rule.bar, rule.margin))
    if rule.name == "equal":
        assert margin is not None
        distance = abs(margin - abs(mean))
    else:
        assert bar is not None
        sign = 1 if rule.name == "greater" else -1
        least = bar if margin is None else max(bar, margin, key=lambda b: sign * b)
        distance = max(sign * (mean - bar), sign * (least - mean))
    if not (0 < spread < math.inf and distance > 0):  # values that are all the same say nothing of their spread
        return None
    for size in range(2, MOST_SEEDS + 1):
        quantile = t_quantile(1 - rule.level / 2, size - 1) + t_quantile(POWER, size - 1)
        if quantile * spread / math.sqrt(size) <= distance:
            return size
    return None


def _alike(effects: Sequence[Effect]) -> list[tuple[Rule, list[Effect]]]:
    """Effects by their rule and unit, in order."""
    groups: dict[tuple[Rule, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((effect.rule, effect.unit), []).append(effect)
    return [(rule, group) for (rule, _), group in groups.items()]


def _about(effects: list[Effect]) -> str:
    rule = effects[0].rule
    counts = sorted({effect.interval.n for effect in effects})
    n = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}"
    if rule.name == "exact":
        return effects[0].unit or "exact"
    mean = "geometric means, " if rule.ratio else ""
    unit = f"{effects[0].unit}, " if effects[0].unit else ""
    return f"{unit}{mean}{100 * rule.confidence:.3g}% interval{'s' * (len(effects) > 1)}, {n}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
