"""Frankle et al.'s experiment: arms as the source has them, and the gammas of a known network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bnrepro.config import config_hash, load_config
from bnrepro.config.schema import Config, TrainOnly
from bnrepro.experiments.frankle2021 import SOURCE_RATES, by_decay_alone, gammas_of, paper
from bnrepro.norm import NORMS
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.freezing import freeze_parameters
from bnrepro.training.model import build

FULL = paper.settings("full")
GENERATOR = torch.Generator()


def test_arms_are_as_in_the_sources_code() -> None:
    arms = [arm for arm in paper.designed(FULL).arms if arm.config.seed == 0 and arm.part == "depth"]
    compared = [("norm", 1), ("norm", 4), ("random", 1), ("random", 4)]
    at = {rate: [a for a in arms if a.factors["rate"] == rate] for rate in (0.1, *FULL.tuned.values())}
    named = {rate: [(arm.factors["trained"], arm.factors["depth"]) for arm in found] for rate, found in at.items()}
    assert named == {0.1: [*compared, ("all", 4)], 1.0: compared[:2], 3.0: compared[2:]}
    for arm in arms:
        cfg = arm.config
        assert cfg.optimizer.train_only == arm.factors["trained"]
        assert cfg.norm.gamma == "uniform"
        assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.momentum) == ("sgd", arm.factors["rate"], 0.9)
        assert (cfg.batch_size, cfg.schedule.name, cfg.data.crop) == (128, "linear", 4)
        assert cfg.model.depth == arm.factors["depth"]
        assert cfg.data.flip
        # Frozen weights must not decay.
        assert cfg.optimizer.weight_decay == (0.0 if arm.factors["trained"] == "random" else 1e-4)


def test_network_of_the_gate_has_its_own_decay_where_training_is_short() -> None:
    def of(preset: str) -> dict[str, Config]:
        arms = paper.designed(paper.settings(preset)).arms
        deep = {arm.part: arm.config for arm in arms if arm.factors["trained"] == "all" and arm.config.seed == 0}
        assert set(deep) == {"depth", "reference"}
        return deep

    full, source = of("full"), of("paper")
    decay = full["reference"].optimizer.weight_decay
    assert decay == FULL.reference_decay > FULL.decay
    own = replace(full["depth"], optimizer=replace(full["depth"].optimizer, weight_decay=decay))
    assert config_hash(own) == config_hash(full["reference"])
    # The sum of rate times decay over 351 steps an epoch is that of the source's training.
    assert 0.1 * 8 * 351 / 2 * decay == pytest.approx(SOURCE_RATES * 1e-4, rel=0.01)
    assert config_hash(source["depth"]) == config_hash(source["reference"])


def test_decay_alone_shrinks_gammas_as_its_formula_says() -> None:
    gamma = torch.nn.Parameter(torch.rand(4000, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD([gamma], lr=0.1, momentum=0.9, weight_decay=1e-3)
    gamma.grad = torch.zeros_like(gamma)
    for rate, steps in ((0.1, 3128), (0.01, 1564), (0.001, 1564)):  # a tenth of the source's, at ten times its decay
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(steps):
            optimizer.step()
    share = 100 * float((gamma < 0.01).float().mean())
    assert share == pytest.approx(by_decay_alone(SOURCE_RATES, 1e-4, 0.01), abs=1.5)


def test_as_many_other_weights_are_trained() -> None:
    network = build(load_config(["model=resnet20", "model.width=0.5"]).model, NORMS["bn"], 3, (32, 32), 10, GENERATOR)
    counts = {which: freeze_parameters(network, TrainOnly(which), GENERATOR) for which in ("norm", "random")}
    assert counts["norm"] == counts["random"] > 0


def test_gammas_of_a_run(tiny: Any) -> None:
    cfg = tiny("epochs=1", "norm.gamma=uniform", "optimizer.train_only=norm", "optimizer=sgd", "optimizer.lr=1e-12")
    run = Run(train.run(cfg))
    rows = gammas_of.function(run, seed=0, threshold=0.5)
    found = {row["quantity"]: row["value"] for row in rows if row["x"] is None}
    assert found["disabled"] == pytest.approx(50, abs=10)  # of U(0, 1)
    assert found["alone"] == pytest.approx(50)
    assert found["trained"] == 2 * (6 + 16 + 120 + 84)  # lenet's channels and units
    density = {row["x"]: row["value"] for row in rows if row["quantity"] == "density"}
    assert sum(density.values()) * 0.1 == pytest.approx(1)
    assert all(value == 0 for x, value in density.items() if not 0 < x < 1)
    nothing = {row["quantity"]: row["value"] for row in gammas_of.function(run, seed=0, threshold=0.0)}
    assert nothing["disabled"] == 0
