"""Frankle et al.'s experiment: arms as the source has them, and the gammas of a known network."""

from __future__ import annotations

from typing import Any

import pytest

from bnrepro.experiments.frankle2021 import TRAINED, gammas_of, paper
from bnrepro.runs.record import Run
from bnrepro.training import train

SMOKE = paper.settings("smoke")


def test_arms_are_as_in_the_sources_code() -> None:
    settings = SMOKE.model_copy(update={"common": ["data=mnist5k"], "depths": [2], "seeds": 1})
    arms = paper.designed(settings).arms
    assert [(a.part, a.factors["trained"]) for a in arms] == [(p, t) for p in ("depth", "width") for t in TRAINED]
    for arm in arms:
        cfg = arm.config
        assert cfg.optimizer.train_only == arm.factors["trained"] and cfg.norm.gamma == "uniform"
        assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.momentum) == ("sgd", 0.1, 0.9)
        assert (cfg.batch_size, cfg.optimizer.weight_decay, cfg.schedule.milestones) == (128, 0.0, [0.5, 0.75])
        assert getattr(cfg.model, arm.part) == arm.factors["size"]


def test_a_network_that_both_parts_have_is_one() -> None:
    assert list(SMOKE.networks) == ["ResNet-8, width 0.125", "ResNet-14, width 0.125"]
    assert len(paper.settings("full").networks) == 5


def test_gammas_of_a_run(tiny: Any) -> None:
    cfg = tiny("epochs=1", "norm.gamma=uniform", "optimizer.train_only=norm", "optimizer=sgd", "optimizer.lr=1e-12")
    run = Run(train.run(cfg))
    rows = gammas_of.function(run, seed=0, threshold=0.5)
    found = {row["quantity"]: row["value"] for row in rows if row["x"] is None}
    assert found["disabled"] == found["disabled_at_start"] == pytest.approx(50, abs=10)  # of U(0, 1)
    assert found["trained"] == 2 * (6 + 16 + 120 + 84)  # lenet's channels and units
    density = {row["x"]: row["value"] for row in rows if row["quantity"] == "density"}
    assert sum(density.values()) * 0.1 == pytest.approx(1)
    assert all(value == 0 for x, value in density.items() if not 0 < x < 1)
    nothing = {row["quantity"]: row["value"] for row in gammas_of.function(run, seed=0, threshold=0.0)}
    assert nothing["disabled"] == 0
