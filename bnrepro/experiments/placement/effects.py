"""Differences of test accuracy, in percentage points and by seed, that verdicts and figures share."""

from __future__ import annotations

from bnrepro.experiments.base import Records
from bnrepro.experiments.placement.grid import DROPOUT, ORDER
from bnrepro.stats import paired

POINTS = 100  # percentage points in 1
ORDER_NAMES = {"before": "BN before", "after": "BN after", "none": "no BN"}


def networks_of(records: Records) -> list[str]:
    """The preset's networks that runs were made of."""
    there = {row["network"] for row in records.select(records.runs, part=ORDER)}
    return [network for network in records.settings["networks"] if network in there]


def by_seed(records: Records, network: str, activation: str, order: str, affine: str = "on") -> dict[int, float]:
    """Test accuracy at the end of a cell's completed runs."""
    factors = {"network": network, "activation": activation, "order": order, "affine": affine}
    return records.by_seed("test_accuracy", part=ORDER, **factors)


def order_effects(records: Records, first: str, second: str) -> dict[tuple[str, str], list[float]]:
    """(network, activation) -> accuracy of one order less that of another, over seeds."""
    return {
        (network, activation): [
            POINTS * d for d in paired(*(by_seed(records, network, activation, order) for order in (first, second)))
        ]
        for network in networks_of(records)
        for activation in records.settings["activations"]
    }


def dropout_effect(records: Records, norm: str, position: str, amount: float) -> list[float]:
    """Accuracy with dropout less that without, over seeds."""
    with_it = records.by_seed("test_accuracy", part=DROPOUT, norm=norm, position=position, amount=amount)
    without = records.by_seed("test_accuracy", part=DROPOUT, norm=norm, position="none", amount=0.0)
    return [POINTS * d for d in paired(with_it, without)]
