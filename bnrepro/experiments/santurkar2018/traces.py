"""The measurements by seed and step, and the ratios that verdicts are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bnrepro.experiments.base import Records
from bnrepro.experiments.santurkar2018.grid import CURVES

CHANCE = 10.0  # %: ten classes
RANGE = "loss_range"  # loss_high - loss_low
Trace = dict[Any, float]
Key = tuple[str, str, float | None, str]


@dataclass(frozen=True)
class Traces:
    """(part, variant, rate, quantity) -> seed -> step -> value."""

    values: dict[Key, dict[int, Trace]]

    def of(self, part: str, variant: str, quantity: str, rate: float | None = None) -> dict[int, Trace]:
        """By seed; none if nothing was measured."""
        return self.values.get((part, variant, rate, quantity), {})


def traces(records: Records) -> Traces:
    """All measurements, and the range of the loss along the gradient."""
    found: dict[Key, dict[int, Trace]] = {}
    for row in records.measurements:
        key = (row["part"], row["variant"], row.get("rate"), row["quantity"])
        found.setdefault(key, {}).setdefault(int(row["seed"]), {})[row["x"]] = float(row["value"])
    for (part, variant, rate, quantity), by_seed in list(found.items()):
        if quantity == "loss_high":
            low = found[part, variant, rate, "loss_low"]
            found[part, variant, rate, RANGE] = {
                seed: {x: value - low[seed][x] for x, value in trace.items()} for seed, trace in by_seed.items()
            }
    return Traces(found)


def log_ratios(top: dict[int, Trace], bottom: dict[int, Trace], share: float = 1.0) -> dict[int, Trace]:
    """log10(top / bottom) by seed and step, over the first ``share`` of the steps that both have.

    Steps at which either is zero or not finite have no ratio and are left out.
    """
    found = {}
    for seed in sorted(top.keys() & bottom.keys()):
        both = [x for x in top[seed] if x in bottom[seed]]
        steps = both[: math.ceil(share * len(both))]
        pairs = {x: (top[seed][x], bottom[seed][x]) for x in steps}
        found[seed] = {x: math.log10(a / b) for x, (a, b) in pairs.items() if 0 < a < math.inf and 0 < b < math.inf}
    return {seed: trace for seed, trace in found.items() if trace}


def means(by_seed: dict[int, Trace]) -> dict[int, float]:
    """The mean over the steps, by seed; steps without a number are left out."""
    finite = {seed: [v for v in trace.values() if math.isfinite(v)] for seed, trace in by_seed.items()}
    return {seed: fmean(values) for seed, values in finite.items() if values}


def last_loss(found: Traces, part: str, variant: str, rate: float | None, step: Any) -> dict[int, float]:
    """The loss at ``step`` by seed; that of the start where the network diverged: it has learned nothing."""
    diverged = found.of(part, variant, "diverged", rate)
    losses = found.of(part, variant, "loss", rate)
    return {
        seed: trace[next(iter(trace))] if seed in diverged else trace[step]
        for seed, trace in losses.items()
        if seed in diverged or step in trace
    }


def accuracies(records: Records, variant: str, rate: float, column: str) -> dict[int, float]:
    """Accuracy in percent at the end of a run, by seed; that of chance where the run diverged."""
    found = {}
    for run in records.select(records.runs, part=CURVES, variant=variant, rate=rate):
        if run["status"] == "diverged":
            found[int(run["seed"])] = CHANCE
        elif run["status"] == "completed" and run.get(column) is not None:
            found[int(run["seed"])] = 100 * float(run[column])
    return found
