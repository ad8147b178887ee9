"""What a claim rests on, as data; and the one rule that turns it into a verdict.

Evidence is a list of effects, each measured under one condition (a network, a dataset, a learning rate) and each with
a rule of its own:

=========  ================================================  =====================================================
rule       the effect holds if                               it fails if
=========  ================================================  =====================================================
greater    its 95% interval lies above the bar               the interval lies below the margin, the smallest effect
                                                             that matters (default: below the bar)
less       the same, with the sign turned
equal      its 90% interval lies inside ±margin (TOST, 5%)   its 95% interval lies outside
exact      it is true, or an error is within the bar         it is not
=========  ================================================  =====================================================

An effect that does both is real and too small to matter: slight. One in ``% of seeds``, which each seed has (100) or
has not (0), is a share: its interval and tests are the exact ones of a binomial distribution, not Student's. `judge`
turns all of them into one verdict:

- **reproduced**: every effect holds (each at its own 5%: an intersection-union test), and none is slight;
- **partly**: otherwise, if some hold or are slight;
- **not reproduced**: none holds, and some fail;
- **inconclusive**: none holds, none fails, or nothing was measured.

"Some" is decided with Holm's correction over the effects, so that the chance of a false "partly" or "not reproduced"
is at most 5% in each direction, however many conditions were tried.

A design that looks at growing numbers of seeds (`Preset.looks`) tests each look at a level of its own in place of 5%;
all of them together hold 5% (`bnrepro.stats.looks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, SupportsFloat

from bnrepro.claims.results import MisuseError
from bnrepro.stats import (
    Interval,
    Values,
    equivalence,
    holm,
    log,
    p_value,
    share_interval,
    share_p_value,
    t_interval,
)

__all__ = [
    "Effect",
    "Evidence",
    "Judgement",
    "Rule",
    "State",
    "Verdict",
    "equal",
    "exact",
    "flips_at",
    "greater",
    "judge",
    "less",
    "not_lower",
    "not_testable",
    "verdicts_at",
]

ALPHA = 0.05
SHARE = "% of seeds"
"""The unit of an effect that each seed has, 100, or has not, 0."""


class Verdict(StrEnum):
    """What a claim comes to."""

    reproduced = "reproduced"
    partly = "partly"
    not_reproduced = "not reproduced"
    inconclusive = "inconclusive"
    not_testable = "not testable here"
    too_short = "not testable at this length"
    """Its gate failed: the networks have not trained long enough."""


class State(StrEnum):
    """What one effect comes to."""

    holds = "holds"
    slight = "holds, and is negligible"
    fails = "fails"
    open = "open"


Name = Literal["greater", "less", "equal", "exact"]


@dataclass(frozen=True)
class Rule:
    """When an effect supports its claim. See the module's table."""

    name: Name
    bar: float | None = None
    """None of an exact effect that is true or not."""
    margin: float | None = None
    ratio: bool = False
    """The effect is a ratio: values, bar and margin are compared as logarithms, and shown as they are."""
    level: float = ALPHA
    """Of its tests: 5%, or what a look spends of them."""

    @property
    def confidence(self) -> float:
        """Of the interval that decides."""
        return 1 - 2 * self.level if self.name == "equal" else 1 - self.level

    def p_values(self, values: list[float], unit: str = "") -> tuple[float, float]:
        """(p of what must be rejected for the effect to hold, ... to fail), each to be compared with the level."""
        if not values:
            return math.nan, math.nan
        if self.name == "exact":
            holds = all(value <= (self.bar or 0) for value in values)
            return (0.0, 1.0) if holds else (1.0, 0.0)
        values = [log(v) for v in values] if self.ratio else values
        bar, margin = (None if b is None else log(b) if self.ratio else b for b in (self.bar, self.margin))
        if self.name == "equal":
            assert margin is not None
            beyond = [p_value([v - margin for v in values], "greater"), p_value([v + margin for v in values], "less")]
            return equivalence(values, margin).p, _doubled(min(beyond) if beyond[0] == beyond[0] else math.nan)
        assert bar is not None
        sign = 1 if self.name == "greater" else -1
        least = bar if margin is None else max(bar, margin, key=lambda b: sign * b)
        if _is_share(values, unit):
            count, shares = values.count(100), (bar / 100, least / 100)
            if sign < 0:  # more of the seeds that have it not
                count, shares = values.count(0), (1 - bar / 100, 1 - least / 100)
            above = share_p_value(count, len(values), shares[0], "greater")
            return _doubled(above), _doubled(share_p_value(count, len(values), shares[1], "less"))
        above = p_value([sign * (v - bar) for v in values], "greater")
        below = p_value([sign * (v - least) for v in values], "less")
        return _doubled(above), _doubled(below)


@dataclass(frozen=True)
class Effect:
    """A quantity under one condition, with the value of each seed."""

    condition: str
    """What tells it from the claim's other effects; "" where it is the only one."""
    seeds: dict[int, float]
    rule: Rule
    unit: str = ""
    label: str = ""
    """What is shown instead of numbers: of an exact effect that is no number."""

    @property
    def interval(self) -> Interval:
        """Mean over seeds with the interval that decides; of a ratio, the geometric mean."""
        values = list(self.seeds.values())
        if self.rule.name == "exact":
            values = [max(values, key=abs)] if values else []  # nothing is random: the worst
        if _is_share(values, self.unit) and self.rule.name in ("greater", "less"):
            share = share_interval(values.count(100), len(values), self.rule.confidence)
            return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n)
        if not self.rule.ratio:
            return t_interval(values, self.rule.confidence)
        logs = t_interval([log(v) for v in values], self.rule.confidence)
        return Interval(_exp(logs.mean), _exp(logs.low), _exp(logs.high), logs.n)

    @property
    def p_values(self) -> tuple[float, float]:
        """Those of its rule."""
        return self.rule.p_values(list(self.seeds.values()), self.unit)


@dataclass(frozen=True)
class Evidence:
    """What a claim rests on. Made by `greater`, `less`, `equal`, `exact`, `not_testable`; ``&`` asks for both."""

    estimand: str
    """What the effects are, in a few words: "test accuracy, dropout before each BN minus none"."""
    effects: tuple[Effect, ...] = ()
    beside: tuple[Effect, ...] = ()
    """Effects that are shown and do not decide."""
    reason: str = ""
    """Why the claim cannot be tested here."""
    remark: str = ""
    """A sentence for the reader, without numbers."""

    def __and__(self, other: Evidence) -> Evidence:
        return replace(
            self,
            effects=(*self.effects, *other.effects),
            beside=(*self.beside, *other.beside),
            reason=self.reason or other.reason,
            remark=" ".join(filter(None, (self.remark, other.remark))),
        )

    def __bool__(self) -> bool:
        """Evidence is neither true nor false: ``and`` would silently drop one of two."""
        raise TypeError("two pieces of evidence are joined with &, not with `and`, `or` or `if`")

    def showing(self, values: Values | Mapping[str, Values], unit: str | None = None, ratio: bool = False) -> Evidence:
        """With effects that are shown beside and do not decide; a mapping names them. ``unit``: None for the same."""
        check_given("showing", values, unit=self.unit if unit is None else unit)
        rule = Rule("greater", 1.0 if ratio else 0.0, ratio=ratio)
        more = _effects(values, rule, self.unit if unit is None else unit, "")
        return replace(self, beside=(*self.beside, *(effect for effect in more if effect.seeds)))

    def unless_at_edge(self, best: Mapping[str, tuple[Any, Sequence[Any]]]) -> Evidence:
        """The same where each arm's best learning rate lies inside its sweep.

        Beyond an edge might be a better one: then the claim cannot be tested here, and its effects are shown beside.

        Args:
            best: by the arm's name, its best rate (`Values.best`, of validation data) and all rates that were tried.
        """
        at_edge = [name for name, (rate, rates) in best.items() if rate in (min(rates), max(rates))]
        if not at_edge or not any(effect.seeds for effect in self.effects):
            return self
        named = (replace(effect, condition=effect.condition or self.estimand) for effect in self.effects)
        reason = f"The best rate of {' and of '.join(at_edge)} lies on the sweep's edge"
        return replace(not_testable(reason), beside=(*named, *self.beside))

    def tested_at(self, level: float) -> Evidence:
        """The same with tests, and the intervals that belong to them, at another level than 5%.

        Raises:
            ValueError: ``level``, a chance of error such as 0.01, is not above 0 and below 0.5.
        """
        if not 0 < level < 0.5:
            raise ValueError(
                f"the level of a test is a chance of error above 0 and below 0.5, such as 0.01; got {level}"
            )
        each = ([replace(e, rule=replace(e.rule, level=level)) for e in es] for es in (self.effects, self.beside))
        effects, beside = map(tuple, each)
        return replace(self, effects=effects, beside=beside)

    @property
    def unit(self) -> str:
        """Of the effects."""
        return self.effects[0].unit if self.effects else ""

    @property
    def random(self) -> list[Effect]:
        """The effects that vary with the seed."""
        return [effect for effect in self.effects if effect.rule.name != "exact"]


@dataclass(frozen=True)
class Judgement:
    """What evidence comes to."""

    verdict: Verdict
    states: tuple[State, ...] = ()
    """Of each effect."""
    deciding: int | None = None
    """The effect that decided: the weakest of those that had to hold, or the one that stood against it."""


# --- making evidence ----------------------------------------------------------------------------------------------

Given = Values | Mapping[str, Values]
"""Values; each combination of levels, or each name of a mapping, is a condition."""


def greater(
    values: Given, estimand: str, unit: str, *, bar: float | None = None, margin: float | None = None,
    ratio: bool = False, condition: str = "",
) -> Evidence:  # fmt: skip
    """The claim that something is larger than ``bar`` (default: 0, or 1 for a ratio) under every condition.

    Args:
        values: the effect by seed, positive (or above 1) where the claim is right.
        estimand: what it is, in a few words.
        unit: of the effect.
        bar: what the claim says that it exceeds.
        margin: the smallest effect that matters, at least ``bar``; for `less`, at most.
        ratio: the effect is a ratio, to be averaged and compared as a logarithm.
        condition: in front of the names of conditions.

    Raises:
        ValueError: ``bar`` or ``margin`` is not finite, on the other side of the bar, or not above 0 for a ratio.
    """
    check_given("greater", values, (bar, margin), estimand=estimand, unit=unit, condition=condition)
    return Evidence(estimand, _effects(values, _one_sided("greater", bar, margin, ratio), unit, condition))


def less(
    values: Given, estimand: str, unit: str, *, bar: float | None = None, margin: float | None = None,
    ratio: bool = False, condition: str = "",
) -> Evidence:  # fmt: skip
    """The claim that something is smaller than ``bar``. Otherwise as `greater`."""
    check_given("less", values, (bar, margin), estimand=estimand, unit=unit, condition=condition)
    return Evidence(estimand, _effects(values, _one_sided("less", bar, margin, ratio), unit, condition))


def not_lower(values: Given, estimand: str, unit: str, *, margin: float, condition: str = "") -> Evidence:
    """The claim that something is no loss: above minus ``margin`` (non-inferiority).

    Raises:
        ValueError: ``margin`` is not finite and above 0.
    """
    check_given("not_lower", values, (margin,))
    _check_margin("not_lower", margin)
    return greater(values, estimand, unit, bar=-margin, condition=condition)


def equal(
    values: Given, estimand: str, unit: str, *, margin: float, ratio: bool = False, condition: str = ""
) -> Evidence:
    """The claim that a difference is none: inside ±``margin``; for a ratio, between 1/``margin`` and ``margin``.

    Raises:
        ValueError: ``margin`` is not finite, or nothing lies inside it.
    """
    check_given("equal", values, (margin,), estimand=estimand, unit=unit, condition=condition)
    _check_margin("equal", margin, ratio)
    return Evidence(estimand, _effects(values, Rule("equal", None, margin, ratio), unit, condition))


def exact(
    values: Given | bool, estimand: str, unit: str = "", *, tolerance: float | None = None, condition: str = ""
) -> Evidence:
    """The claim that something is so, where nothing is random: a truth, or errors that are within ``tolerance``.

    Errors count by their size; several seeds by the largest.
    """
    given = Values() if isinstance(values, bool) else values
    check_given("exact", given, (tolerance,), estimand=estimand, unit=unit, condition=condition)
    if isinstance(values, bool):
        rule = Rule("exact")
        return Evidence(estimand, (Effect(condition, {0: float(not values)}, rule, "", "yes" if values else "no"),))
    if tolerance is None or not 0 <= tolerance < math.inf:
        raise ValueError(f"exact: errors need a tolerance, finite and 0 or more; got {tolerance}")
    each = _effects(values, Rule("exact", tolerance), unit, condition)
    return Evidence(estimand, tuple(replace(e, seeds={s: abs(v) for s, v in e.seeds.items()}) for e in each))


def not_testable(reason: str) -> Evidence:
    """A claim that cannot be put to the test here, and why, in one sentence."""
    if not (isinstance(reason, str) and reason.strip()):
        raise MisuseError(f"not_testable takes the reason, as a text; got {reason!r}"[:300])
    return Evidence("", reason=reason)


def check_given(name: str, values: Any, numbers: Sequence[Any] = (), **texts: Any) -> None:
    """Check the types that ``name`` was called with; ``numbers`` may be None.

    Raises:
        MisuseError: one is another.
    """
    each = values.values() if isinstance(values, Mapping) else [values]
    if odd := [group for group in each if not isinstance(group, Values)]:
        raise MisuseError(
            f"{name} takes values with a seed, as r.test_accuracy(...) and r.measured(...) return them, or a dict of "
            f"them; got {odd[0]!r}"[:300]
        )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, SupportsFloat | None):
            raise MisuseError(f"{name}: bars, margins and tolerances are numbers; got {number!r}"[:300])
    for what, text in texts.items():
        if not isinstance(text, str):
            raise MisuseError(f"{name}: the {what} is a text; got {text!r}"[:300])


def _one_sided(name: Literal["greater", "less"], bar: float | None, margin: float | None, ratio: bool) -> Rule:
    bar = (1.0 if ratio else 0.0) if bar is None else bar
    least = 0.0 if ratio else -math.inf
    if not least < bar < math.inf:
        raise _refused(bar, f"{name}: the bar must be finite{' and above 0' if ratio else ''}; got {bar}")
    low, high = (bar, math.inf) if name == "greater" else (least, bar)
    if margin is not None and not (math.isfinite(margin) and low <= margin <= high and margin > least):
        side = "least" if name == "greater" else "most"
        above = " and above 0" if ratio and name == "less" else ""
        raise _refused(margin, f"{name}: the margin must be finite, at {side} the bar of {bar:g}{above}; got {margin}")
    return Rule(name, bar, margin, ratio)


def _check_margin(name: str, margin: float, ratio: bool = False) -> None:
    if not (1 if ratio else 0) < margin < math.inf:
        raise _refused(margin, f"{name}: the margin must be above {1 if ratio else 0}, and finite; got {margin}")


def _refused(number: float, why: str) -> ValueError:
    """The error for a bar or margin that cannot be; NaN alone may come from results that are not there yet."""
    return ValueError(why) if math.isnan(number) else MisuseError(why)


def _effects(values: Given, rule: Rule, unit: str, condition: str) -> tuple[Effect, ...]:
    named = values.items() if isinstance(values, Mapping) else [("", values)]
    # A condition of which nothing was measured stays, and stays open: what is missing is no support.
    cells = [(name, cell, each) for name, group in named for cell, each in (group.cells() or {"": Values()}).items()]
    return tuple(
        Effect(", ".join(filter(None, (condition, name, cell))), each.seeds, rule, unit) for name, cell, each in cells
    )


# --- the rule -----------------------------------------------------------------------------------------------------


def judge(evidence: Evidence) -> Judgement:
    """The verdict on a claim, and the effect that decided it. See the module's description."""
    if evidence.reason:
        return Judgement(Verdict.not_testable)
    effects = evidence.effects
    if not any(effect.seeds for effect in effects):
        return Judgement(Verdict.inconclusive)
    p = [effect.p_values for effect in effects]
    held, failed = (_holm({i: pair[side] for i, pair in enumerate(p)}, effects) for side in (0, 1))
    states = tuple(_state(held[i], failed[i]) for i in range(len(effects)))
    if all(pair[0] <= effect.rule.level for pair, effect in zip(p, effects, strict=True)):
        states = tuple(State.slight if failed[i] else State.holds for i in range(len(effects)))
        verdict = Verdict.partly if State.slight in states else Verdict.reproduced
    elif State.holds in states or State.slight in states:
        verdict = Verdict.partly
    else:
        verdict = Verdict.not_reproduced if State.fails in states else Verdict.inconclusive
    against = {
        Verdict.partly: next((s for s in (State.fails, State.open, State.slight) if s in states), None),
        Verdict.not_reproduced: State.fails,
    }.get(verdict)
    candidates = [i for i, state in enumerate(states) if against in (None, state)]
    if against is State.fails:
        deciding = min(candidates, key=lambda i: p[i][1])
    else:
        deciding = max(candidates, key=lambda i: (1.0 if math.isnan(p[i][0]) else p[i][0], -i))
    return Judgement(verdict, states, deciding)


FACTORS = (0.5, 2.0)


def flips_at(evidence: Evidence, factors: tuple[float, ...] = FACTORS) -> list[float]:
    """The ``factors`` on all margins at which the verdict would change."""
    verdict = judge(evidence).verdict
    return [factor for factor, other in verdicts_at(evidence, factors).items() if other is not verdict]


def verdicts_at(evidence: Evidence, factors: tuple[float, ...] = FACTORS) -> dict[float, Verdict]:
    """The verdict with all margins times each of ``factors``. That of `not_lower` is its bar."""

    def scaled(rule: Rule, factor: float) -> Rule:
        if rule.margin is not None:
            return replace(rule, margin=rule.margin**factor if rule.ratio else rule.margin * factor)
        if rule.name == "greater" and not rule.ratio and rule.bar is not None and rule.bar < 0:
            return replace(rule, bar=rule.bar * factor)
        return rule

    def at(factor: float) -> Evidence:
        return replace(evidence, effects=tuple(replace(e, rule=scaled(e.rule, factor)) for e in evidence.effects))

    return {factor: judge(at(factor)).verdict for factor in factors}


def _holm(p: dict[int, float], effects: tuple[Effect, ...]) -> dict[int, bool]:
    random = {i: value for i, value in p.items() if effects[i].rule.name != "exact"}
    rejected = holm({str(i): value for i, value in random.items()}, effects[0].rule.level)
    return {i: rejected[str(i)] if i in random else value <= ALPHA for i, value in p.items()}


def _state(holds: bool, fails: bool) -> State:
    if holds:
        return State.slight if fails else State.holds
    return State.fails if fails else State.open


def _is_share(values: list[float], unit: str) -> bool:
    return unit == SHARE and bool(values) and set(values) <= {0.0, 100.0}


def _doubled(p: float) -> float:
    return min(1.0, 2 * p) if p == p else p


def _exp(value: float) -> float:
    return math.exp(min(value, 700)) if value == value else value
