"""What claims, tables and figures read from the results."""

from __future__ import annotations

import math
from itertools import takewhile
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bnrepro.claims import Results, Values
from bnrepro.experiments.ioffe2015.networks import Cell
from bnrepro.plots.style import label

if TYPE_CHECKING:
    from bnrepro.experiments.ioffe2015 import Settings

WITH = {"nobn": "without BN", "bn": "with BN"}
NORMS = tuple(WITH)
CHANCE = 10.0  # %: all datasets of the presets have ten classes
LEAST = 1e-12


def single(value: float) -> Values:
    """One number, which is no mean over seeds."""
    return Values((), {((), 0): value})


def shared(values: Values) -> Values:
    """The number that is the same for every seed."""
    return single(next(iter(values))) if values else values


def total(values: Values) -> Values:
    """The mean over seeds as one number, of shares that are 0 or 100 for each."""
    return single(fmean(values)) if values else values


def merged(of: Values, over: Values) -> Values:
    """``of``, replaced by ``over`` where that has a value."""
    return Values(of.factors or over.factors, {**of.data, **over.data})


# --- steps ---


def steps_to(level: Values, curves: Values, lost: Values, limit: int) -> Values:
    """Steps after which each curve is first at its seed's level, counted up to ``limit``.

    A curve that never gets there, or whose network diverged before, counts as ``limit``, so that ratios of steps are
    nearer to 1 than they are, on either side.
    """
    gap = curves - level
    place = gap.factors.index("x") if gap else 0
    reached = {(at, seed): float((at[place] or 1) if d >= 0 else limit) for (at, seed), d in gap.data.items()}
    return merged(lost.map(lambda _: float(limit)), Values(gap.factors, reached).min("x"))


def named(arm: str) -> str:
    """An arm of the race as it is shown."""
    return arm.replace("convbn", label("convbn"))


def race(r: Results) -> Values:
    """Validation accuracy (%) by arm and step (x), as far as the network was trained."""
    return r.measured("val_accuracy", part="speed")


def race_steps(r: Results, s: Settings) -> Values:
    """Steps to the baseline's best validation accuracy, by arm."""
    level = race(r).at(arm="Baseline").max("x")
    return steps_to(level, race(r), r.measured("diverged", part="speed"), s.speed.steps)


def reached(r: Results) -> Values:
    """1 for each network whose validation accuracy reaches the baseline's best, else 0, by arm."""
    gap = race(r).max("x") - race(r).at(arm="Baseline").max("x")
    return merged(r.measured("rate", part="speed") * 0, gap.map(lambda d: float(d >= 0)))


def figure1_steps(r: Results, s: Settings) -> Values:
    """Steps to the best test accuracy without BN, by variant."""
    curves = r.measured("test_accuracy", part="figure1")
    level = curves.at(variant="nobn").max("x")
    return steps_to(level, curves, r.measured("diverged", part="figure1"), s.figure1.steps)


# --- accuracies ---


def ends(r: Results) -> Values:
    """Test accuracy (%) at the end of the race, by arm; of a network that diverged, chance."""
    return merged(r.measured("rate", part="speed") * 0 + CHANCE, r.measured("test_accuracy", part="speed"))


def diverged(r: Results) -> Values:
    """100 for each network of the race whose loss was not finite, else 0, by arm."""
    lost = r.measured("diverged", part="speed").map(lambda _: 100.0)
    return merged(r.measured("rate", part="speed") * 0, lost)


def largest_rate(r: Results, s: Settings, variant: str) -> Values:
    """The largest learning rate at which all networks on digits train, as at all smaller ones; 0: there is none."""
    accuracy = merged(r.diverged(part="rates", variant=variant) * 0, r.test_accuracy(part="rates", variant=variant))
    worst = {rate: min(values) for rate, values in sorted(accuracy.by("rate").items())}
    train = takewhile(lambda rate: worst[rate] >= CHANCE + s.chance_points, worst)
    return single(max(train, default=0.0)) if worst else accuracy


def dropout_effect(r: Results, variant: str, amount: float) -> Values:
    """Test accuracy with no dropout minus that with ``amount``, in points."""
    accuracy = r.test_accuracy(part="dropout", variant=variant)
    return accuracy.at(amount=0.0) - accuracy.at(amount=amount)


def shuffle_effect(r: Results, variant: str) -> Values:
    """Test accuracy with batches drawn anew minus that with fixed ones, in points."""
    accuracy = r.test_accuracy(part="shuffle", variant=variant)
    return accuracy.at(fixed=False) - accuracy.at(fixed=True)


# --- the inputs of sigmoids ---


def drift_ratios(r: Results) -> dict[str, Values]:
    """log2 of the drift without BN over that with BN, by unit (x): as it is, and each divided by its width."""
    drift, width = (
        r.measured(quantity, part="figure1").map(lambda v: max(v, LEAST)) for quantity in ("drift", "width")
    )
    kinds = {"absolute": drift, "relative to the width": drift / width}
    return {name: (of.at(variant="nobn") / of.at(variant="bn")).log() / math.log(2) for name, of in kinds.items()}


def share_positive(values: Values) -> Values:
    """Percentage of the units above 0."""
    return values.map(lambda v: 100.0 * (v > 0)).mean()


# --- what was chosen ---


def choices(r: Results, part: str, **who: Any) -> dict[Cell, list[float]]:
    """Validation accuracies of a grid's runs, by cell; 0 for those that diverged."""
    accuracy = merged(r.diverged(part=part, **who) * 0, r.of_runs("val_accuracy", part=part, **who))
    if not accuracy:
        return {}
    cells = accuracy.by("rate", "deviation") if "deviation" in accuracy.factors else accuracy.by("rate")
    return {cell if isinstance(cell, tuple) else (cell, 0.0): list(values) for cell, values in cells.items()}
