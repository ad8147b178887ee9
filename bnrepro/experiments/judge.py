"""From differences over seeds to verdicts: one rule for each kind of claim, the same in all experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnrepro.experiments.base import Claim, Finding, Verdict
from bnrepro.stats import Interval, equivalence, t_interval

ALPHA = 0.05


def greater(
    claim: Claim,
    differences: Sequence[float],
    unit: str,
    at_least: float = 0.0,
    margin: float | None = None,
    found: str = "{effect}",
) -> Finding:
    """A claim that something is larger, by ``at_least``.

    Reproduced if the 95% interval of the mean difference lies above ``at_least``; not reproduced if it lies below, or
    inside ±``margin``, which is what the preset calls negligible. An effect that is both (above ``at_least``, and
    negligible) is partly reproduced. What the interval leaves open is inconclusive.

    Args:
        claim: the claim.
        differences: over seeds, positive where the claim is right.
        unit: of the differences.
        at_least: what the claim says that the effect exceeds.
        margin: below which a difference is negligible; None: none is.
        found: a sentence; ``{effect}`` in it becomes the mean, its interval and n.
    """
    effect = t_interval(differences)
    above, below = effect.low > at_least, effect.high < at_least  # nan is neither
    negligible = margin is not None and -margin < effect.low and effect.high < margin
    if above:
        verdict = Verdict.partly if negligible else Verdict.reproduced
    else:
        verdict = Verdict.not_reproduced if below or negligible else Verdict.inconclusive
    return Finding(claim, verdict, found.replace("{effect}", in_words(effect, unit)), effect, unit)


def equal(claim: Claim, differences: Sequence[float], margin: float, unit: str, found: str = "{effect}") -> Finding:
    """A claim that two things are the same: TOST with ``margin`` at 5%, so the interval is the 90% one.

    Reproduced if the interval lies inside ±``margin``, not reproduced if it lies outside, inconclusive if it crosses.
    """
    test = equivalence(differences, margin, ALPHA)
    effect = test.interval
    if test.equivalent:
        verdict = Verdict.reproduced
    elif effect.low > margin or effect.high < -margin:
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.inconclusive
    text = f"{in_words(effect, unit, 1 - 2 * ALPHA)}, margin ±{margin:g}"
    return Finding(claim, verdict, found.replace("{effect}", text), effect, unit)


def exact(claim: Claim, holds: bool, found: str) -> Finding:
    """A claim in which nothing is random: an identity, a count."""
    return Finding(claim, Verdict.reproduced if holds else Verdict.not_reproduced, found)


def not_testable(claim: Claim, reason: str) -> Finding:
    """A claim that cannot be put to the test here, and why."""
    return Finding(claim, Verdict.not_testable, reason)


def in_words(effect: Interval, unit: str, confidence: float = 0.95) -> str:
    """``0.42 [0.31, 0.53] percentage points (95% interval, n=5)``; without an interval, it says so."""
    words = f" {unit}" if unit else ""
    if effect.n == 0:
        return "nothing to compare (n=0)"
    if math.isnan(effect.low):
        return f"{effect.mean:.3g}{words} (n={effect.n}, no interval)"
    return f"{numbers(effect)}{words} ({100 * confidence:g}% interval, n={effect.n})"


def numbers(effect: Interval) -> str:
    """``0.42 [0.31, 0.53]``, with as many digits as the interval leaves: two of its half width."""
    values = (effect.mean, effect.low, effect.high)
    half = (effect.high - effect.low) / 2
    if not all(map(math.isfinite, (*values, half))):
        return f"{effect.mean:.3g}" if math.isnan(half) else "{:.3g} [{:.3g}, {:.3g}]".format(*values)
    if not half > 0:
        return "{:.4g} [{:.4g}, {:.4g}]".format(*values)
    digits = 1 - math.floor(math.log10(half))
    if 0 <= digits <= 6 and max(map(abs, values)) < 1e6:
        return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*values, d=digits)
    return "{:.3g} [{:.3g}, {:.3g}]".format(*values)
