"""Numbers that verdicts, tables and figures share."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import numpy as np

from bnrepro.experiments.base import Records
from bnrepro.experiments.bjorck2018.grid import DIVERGING, RATES, START


def networks_of(records: Records) -> list[str]:
    """The preset's networks that were trained, in its order."""
    there = {row["network"] for row in records.select(records.runs, part=RATES)}
    return [network for network in records.settings["networks"] if network in there]


def inside_of(records: Records) -> list[str]:
    """The preset's networks that were looked into."""
    there = {row["network"] for row in records.select(records.measurements, part=START)}
    return [network for network in records.settings["inside"] if network in there]


def trained(records: Records, row: dict[str, Any]) -> bool:
    """Whether a run trained: its loss stayed finite, and it fits the training data as well as the preset asks."""
    good = row["status"] == "completed" and row["train_accuracy"] is not None
    return bool(good and row["train_accuracy"] >= records.settings["trains_accuracy"])


def largest_rates(records: Records, network: str, variant: str) -> tuple[dict[int, float], int, int]:
    """log10 of the largest rate that trains, by seed; and for how many seeds none trains, and the highest does.

    From the lowest rate that trains, up to the last before one that does not. Where none trains: the lowest.
    """
    by_seed: dict[int, list[tuple[float, bool]]] = {}
    for row in records.select(records.runs, part=RATES, network=network, variant=variant):
        by_seed.setdefault(int(row["seed"]), []).append((float(row["rate"]), trained(records, row)))
    found, below, above = {}, 0, 0
    for seed, pairs in sorted(by_seed.items()):
        pairs.sort()
        rates, ok = [rate for rate, _ in pairs], [good for _, good in pairs]
        if not any(ok):
            found[seed] = math.log10(rates[0])
            below += 1
            continue
        first = ok.index(True)
        last = next((i for i in range(first, len(ok)) if not ok[i]), len(ok)) - 1
        found[seed] = math.log10(rates[last])
        above += last == len(ok) - 1
    return found, below, above


def at_rate(records: Records, column: str, network: str, variant: str, rate: float) -> dict[int, float]:
    """A column of the runs that trained at a rate, by seed."""
    rows = records.select(records.runs, part=RATES, network=network, variant=variant, rate=rate)
    return {int(row["seed"]): float(row[column]) for row in rows if trained(records, row)}


def best_rate(records: Records, network: str, variant: str) -> float | None:
    """The rate with the best mean validation accuracy of those at which all seeds train; None if there is none."""
    means = {}
    for rate in records.settings["rates"]:
        rows = records.select(records.runs, part=RATES, network=network, variant=variant, rate=rate)
        values = at_rate(records, "val_accuracy", network, variant, rate)
        if rows and len(values) == len(rows):
            means[rate] = fmean(values.values())
    return max(means, key=lambda rate: means[rate]) if means else None


def layers(records: Records, quantity: str, **who: Any) -> dict[int, dict[int, float]]:
    """log10 of a quantity that has a value a layer, by seed and layer; dead layers, whose value is 0, are left out."""
    found: dict[int, dict[int, float]] = {}
    for row in records.select(records.measurements, quantity=quantity, **who):
        value = float(row["value"])
        by_layer = found.setdefault(int(row["seed"]), {})
        if value > 0:  # nor is it no number
            by_layer[int(row["x"])] = math.log10(value)
    return found


def growth(by_layer: dict[int, float]) -> float:
    """Decades by which a quantity grows from the first layer to the last: the slope of its log10 times the layers."""
    x, y = np.array(list(by_layer)), np.array(list(by_layer.values()))
    if len(x) < 2 or not np.isfinite(y).all():
        return math.nan
    return float(np.polyfit(x, y, 1)[0] * (x.max() - x.min()))


def growths(records: Records, when: str, network: str, variant: str) -> dict[int, float]:
    """`growth` of the variance by seed, at the start or after the diverging update."""
    if when == START:
        found = layers(records, "variance", part=START, network=network, variant=variant)
    else:
        found = layers(records, f"{variant}/1/variance", part=DIVERGING, network=network)
    return {seed: growth(values) for seed, values in found.items()}
