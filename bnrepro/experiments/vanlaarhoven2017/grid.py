"""What is trained: weight decay by learning rate as runs, and the four arms side by side in one measurement."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.experiments.vanlaarhoven2017.exact import invariance
from bnrepro.experiments.vanlaarhoven2017.training import four_arms, norms
from bnrepro.schema import Config

GRID, ARMS, EXACT = "grid", "arms", "exact"


def arms(settings: Settings) -> list[Arm]:
    """The grid; and an epoch of the network that the four arms train, which says where its data are."""
    grid, made = settings["grid"], []
    for seed in range(settings["seeds"]):
        for lr in grid["rates"]:
            for decay in grid["decays"]:
                cfg = _config(seed, *grid["overrides"], f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}")
                made.append(Arm(GRID, {"rate": lr, "decay": decay}, cfg))
        made.append(Arm(ARMS, {}, _config(seed, *settings["arms"]["overrides"], "epochs=1")))
    return made


def probes(settings: Settings) -> list[Probe]:
    """The exact statements, the norms at the end of each run of the grid, and the four arms."""
    four = {key: settings["arms"][key] for key in ("epochs", "decay")}
    made = [Probe(EXACT, {}, seed, invariance, dict(settings["exact"])) for seed in range(settings["seeds"])]
    for arm in arms(settings):
        if arm.part == GRID:
            made.append(Probe(GRID, arm.factors, arm.config.seed, norms, {}, arm.config))
        else:
            made.append(Probe(ARMS, {}, arm.config.seed, four_arms, four, arm.config))
    return made


def _config(seed: int, *overrides: str) -> Config:
    return replace(_composed(*overrides), seed=seed)


@cache
def _composed(*overrides: str) -> Config:
    sgd = ("optimizer=sgd", "optimizer.decay_norm=false", "schedule=constant")
    return load_config([*sgd, *overrides])  # takes a tenth of a second
