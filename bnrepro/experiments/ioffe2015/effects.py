"""Numbers over seeds that verdicts, tables and figures share."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from bnrepro.experiments.base import Records
from bnrepro.experiments.ioffe2015.choosing import Cell, accuracy, best
from bnrepro.experiments.ioffe2015.grid import DROPOUT, FIGURE1, RACE, RATES, SHUFFLE
from bnrepro.stats import paired

POINTS = 100  # percentage points in 1
Curve = dict[float, float]


def seeds(records: Records) -> range:
    """The preset's."""
    return range(records.settings["seeds"])


def curves(records: Records, quantity: str, part: str, **who: Any) -> dict[int, Curve]:
    """A quantity by seed and step."""
    found: dict[int, Curve] = {}
    for row in records.select(records.measurements, part=part, quantity=quantity, **who):
        found.setdefault(int(row["seed"]), {})[float(row["x"])] = float(row["value"])
    return found


# --- Figure 1 ---


def first_at(curve: Curve, level: float) -> float | None:
    """The step at which a curve first stands at ``level``; None if it never does."""
    return next((step for step, value in curve.items() if value >= level), None)


def speed_ups(base: dict[int, Curve], other: dict[int, Curve]) -> dict[int, float]:
    """By seed: the steps of ``base`` to its own best value, over those of ``other`` to the same; 0 if it never is."""
    found = {}
    for seed in sorted(base.keys() & other.keys()):
        level = max(base[seed].values())
        own, its = first_at(base[seed], level), first_at(other[seed], level)
        found[seed] = 0.0 if not its else (own or 0.0) / its
    return found


def figure1_curves(records: Records, quantity: str, variant: str) -> dict[int, Curve]:
    """Without the networks that diverged."""
    found = curves(records, quantity, FIGURE1, variant=variant)
    lost = records.measured("diverged", part=FIGURE1, variant=variant)
    return {seed: curve for seed, curve in found.items() if seed not in lost}


def final(curves_: dict[int, Curve]) -> dict[int, float]:
    """The last value of each curve."""
    return {seed: list(curve.values())[-1] for seed, curve in curves_.items()}


def unit_ratios(records: Records, *, relative: bool = False) -> dict[int, Curve]:
    """log2 of the drift without BN over that with BN, by seed and unit; ``relative``: each in units of its width."""

    def of(variant: str) -> dict[int, Curve]:
        drift = curves(records, "drift", FIGURE1, variant=variant)
        width = curves(records, "width", FIGURE1, variant=variant)
        if not relative:
            return drift
        return {s: {u: d / max(width[s][u], 1e-12) for u, d in units.items()} for s, units in drift.items()}

    without, with_bn = of("nobn"), of("bn")
    return {
        seed: {u: math.log2(max(without[seed][u], 1e-12) / max(with_bn[seed][u], 1e-12)) for u in without[seed]}
        for seed in sorted(without.keys() & with_bn.keys())
    }


def choices(records: Records, part: str, **who: Any) -> dict[Cell, list[float]]:
    """Validation accuracy of a grid's runs, by cell."""
    found: dict[Cell, list[float]] = {}
    for run in records.select(records.runs, part=part, **who):
        cell = (float(run["rate"]), float(run.get("deviation") or 0.0))
        found.setdefault(cell, []).append(accuracy(str(run["status"]), run["val_accuracy"]))
    return found


def chosen_cell(records: Records, part: str, **who: Any) -> Cell | None:
    """The best of them."""
    found = choices(records, part, **who)
    return best(found) if found else None


# --- Figures 2 and 3 ---


def race_curves(records: Records, arm: str) -> dict[int, Curve]:
    """Validation accuracy by seed and step, as far as it went."""
    return curves(records, "val_accuracy", RACE, arm=arm)


def highest(records: Records, arm: str) -> dict[int, float]:
    """Best validation accuracy by seed."""
    return {seed: max(curve.values()) for seed, curve in race_curves(records, arm).items()}


def race_speed_ups(records: Records, arm: str) -> dict[int, float]:
    """How many times fewer steps than the baseline, to the baseline's best accuracy; 0 where an arm never reached it.

    A seed whose arm diverged before it was looked at never reached it.
    """
    base, other = race_curves(records, "Baseline"), race_curves(records, arm)
    lost = records.measured("diverged", part=RACE, arm=arm)
    never: dict[int, Curve] = {seed: {} for seed in lost}
    return speed_ups(base, never | other)


def infinite(records: Records, arm: str) -> int:
    """Seeds in which the loss was not finite."""
    return len(records.measured("diverged", part=RACE, arm=arm))


def chance(records: Records) -> float:
    """Percent of right answers by guessing."""
    return 100 / 10  # all datasets of the presets have ten classes


def failed(records: Records, arm: str) -> int:
    """Seeds that diverged or ended where guessing is (test accuracy)."""
    level = chance(records) + records.settings["chance_points"]
    guessing = [v for v in records.measured("test_accuracy", part=RACE, arm=arm).values() if v < level]
    return infinite(records, arm) + len(guessing)


def asked(records: Records, arm: str) -> int:
    """Seeds of an arm that were run."""
    rows = records.select(records.measurements, part=RACE, arm=arm, quantity="rate")
    return len({int(row["seed"]) for row in rows})


def by_rate(records: Records, variant: str) -> dict[float, list[float | None]]:
    """Test accuracy (%) of all seeds by learning rate; None where it diverged."""
    found: dict[float, list[float | None]] = {}
    for run in records.select(records.runs, part=RATES, variant=variant):
        value = run["test_accuracy"]
        ok = run["status"] == "completed" and value is not None
        found.setdefault(float(run["rate"]), []).append(POINTS * float(value) if ok else None)
    return found


def trains(records: Records, values: list[float | None]) -> bool:
    """Whether every seed ended above guessing."""
    level = chance(records) + records.settings["chance_points"]
    return bool(values) and all(value is not None and value >= level for value in values)


def largest_rate(records: Records, variant: str) -> float | None:
    """The largest learning rate up to which every seed trains, at it and at all below."""
    largest = None
    for rate, values in sorted(by_rate(records, variant).items()):
        if not trains(records, values):
            break
        largest = rate
    return largest


# --- sections 3.4 and 4.2.1 ---


def dropout_effect(records: Records, variant: str, amount: float) -> list[float]:
    """Test accuracy with no dropout less that with ``amount``, in points over seeds."""
    none, some = (records.by_seed("test_accuracy", part=DROPOUT, variant=variant, amount=a) for a in (0.0, amount))
    return [POINTS * d for d in paired(none, some)]


def shuffle_effect(records: Records, variant: str) -> dict[int, float]:
    """Test accuracy with batches drawn anew less that with fixed ones, in points by seed."""
    anew, fixed = (
        records.by_seed("test_accuracy", part=SHUFFLE, variant=variant, fixed=kept) for kept in (False, True)
    )
    return {seed: POINTS * (anew[seed] - fixed[seed]) for seed in sorted(anew.keys() & fixed.keys())}


def mean(values: list[float]) -> float:
    """Of none: nan."""
    return fmean(values) if values else math.nan
