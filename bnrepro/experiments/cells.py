"""Verdicts on a claim that is tested in several cells: networks, learning rates, datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnrepro.experiments.base import Claim, Finding, Verdict
from bnrepro.experiments.judge import numbers
from bnrepro.stats import Interval, equivalence, holm, p_value, t_interval

Cells = Mapping[str, list[float]]
"""Differences over seeds, by cell."""


def equal_everywhere(claim: Claim, differences: Cells, margin: float, unit: str, lead: str) -> Finding:
    """Equality in every cell: TOST in each, at 5%.

    Reproduced if all are equivalent. Where some lie beyond the margin (Holm over the cells), it is not reproduced, or
    partly if others are equivalent. Otherwise inconclusive. ``lead`` begins the sentence that lists the cells.
    """
    tests = {cell: equivalence(values, margin) for cell, values in differences.items()}
    equivalent = {cell: test.equivalent for cell, test in tests.items()}
    beyond = holm({cell: _beyond(values, margin) for cell, values in differences.items()})
    intervals = {cell: test.interval for cell, test in tests.items()}
    return _together(claim, equivalent, beyond, intervals, unit, lead, f"90% intervals, margin ±{margin:g}")


def greater_everywhere(claim: Claim, differences: Cells, at_least: float, unit: str, lead: str) -> Finding:
    """Larger by ``at_least`` in every cell: each 95% interval lies above it.

    Where it is smaller in some (one-sided t tests, Holm over the cells), it is not reproduced, or partly if it is
    larger in others. Otherwise inconclusive.
    """
    intervals = {cell: t_interval(values) for cell, values in differences.items()}
    above = {cell: interval.low > at_least for cell, interval in intervals.items()}
    below = holm({cell: p_value([d - at_least for d in v], "less") for cell, v in differences.items()})
    return _together(claim, above, below, intervals, unit, lead, f"95% intervals, to be above {at_least:g}")


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict of several cells': the same if all agree, partly if some hold, else (and for none) inconclusive."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    some = {Verdict.reproduced, Verdict.partly} & set(verdicts)
    return Verdict.partly if some else Verdict.inconclusive


def _beyond(differences: list[float], margin: float) -> float:
    sides = (
        p_value([d - margin for d in differences], "greater"),
        p_value([d + margin for d in differences], "less"),
    )
    return min(1.0, 2 * min(sides))


def _together(
    claim: Claim, holds: Mapping[str, bool], fails: Mapping[str, bool], intervals: Mapping[str, Interval],
    unit: str, lead: str, how: str,
) -> Finding:  # fmt: skip
    if not intervals:
        return Finding(claim, Verdict.inconclusive, f"{lead}: nothing to compare.")
    if all(holds.values()):
        verdict = Verdict.reproduced
    elif any(fails.values()):
        verdict = Verdict.partly if any(holds.values()) else Verdict.not_reproduced
    else:
        verdict = Verdict.inconclusive
    largest = max(intervals, key=lambda cell: abs(intervals[cell].mean))
    each = "; ".join(f"{cell}: {numbers(interval)}" for cell, interval in intervals.items())
    n = min(interval.n for interval in intervals.values())
    return Finding(claim, verdict, f"{lead}, {unit} ({how}, n={n}): {each}.", intervals[largest], unit)
