"""Figures 2 and 3: one network with and without BN, at multiples of the learning rate that is best without it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from bnrepro.experiments.ioffe2015.choosing import at, chosen
from bnrepro.record import Run
from bnrepro.train import trainer_of

Row = dict[str, Any]


class Contestant(NamedTuple):
    """An arm of the race."""

    variant: str
    factor: float
    """Of the baseline's learning rate."""
    activation: str = "relu"


ARMS: dict[str, Contestant] = {
    "Baseline": Contestant("nobn", 1),
    "BN-Baseline": Contestant("bn", 1),
    "BN-x5": Contestant("bn", 5),
    "BN-x30": Contestant("bn", 30),
    "BN-x5-Sigmoid": Contestant("bn", 5, "sigmoid"),
    "convbn-x5": Contestant("convbn", 5),
    "no BN, x5": Contestant("nobn", 5),
    "no BN, x30": Contestant("nobn", 30),
    "no BN, sigmoid": Contestant("nobn", 1, "sigmoid"),
}
"""The paper's five, local-gain BN, and what the paper says fails without BN."""


def race(
    run: Run, seed: int, arm: str, cells: list[list[float]], choosing_seeds: int, steps: int, every: int
) -> list[Row]:
    """Train an arm with its multiple of the rate that the baseline's runs chose.

    Rows: val_accuracy (%) by step, every ``every`` steps; test_accuracy (%) at the end; rate; ``diverged`` (value: the
    step) and nothing more from where the loss is not finite.
    """
    who = ARMS[arm]
    rate, std = chosen(run, cells, choosing_seeds)
    cfg = at(run.config, (who.factor * rate, std), seed)
    cfg = replace(cfg, variant=who.variant, model=replace(cfg.model, activation=who.activation))
    trainer = trainer_of(cfg)
    rows: list[Row] = [{"quantity": "rate", "x": None, "value": cfg.optimizer.lr}]
    for batch in trainer.batches(0, steps):
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        done = batch.step + 1
        if not math.isfinite(float(loss)):
            return [*rows, {"quantity": "diverged", "x": None, "value": done}]
        if done % every == 0 or done == steps:
            _, accuracy = trainer.measure(trainer.data.val)
            rows.append({"quantity": "val_accuracy", "x": done, "value": 100 * accuracy})
    _, accuracy = trainer.measure(trainer.data.test)
    return [*rows, {"quantity": "test_accuracy", "x": None, "value": 100 * accuracy}]
