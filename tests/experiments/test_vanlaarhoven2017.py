"""Weight decay before a norm: the arms' rates, the identities and where they fail, how cells are chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.experiments.vanlaarhoven2017 import best, paper
from bnrepro.experiments.vanlaarhoven2017.measurements import (
    CORRECTED,
    OFF,
    ON,
    REVERSE,
    four_arms,
    invariance,
    layerwise,
    normed_weights,
    norms,
    squares,
    update,
)
from bnrepro.norm import NORMS
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.train import trainer_of

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def test_runs_spare_gamma_and_beta_and_the_arms_are_as_hoffer_et_al() -> None:
    for arm in paper.designed(SETTINGS).arms:
        optimizer = arm.config.optimizer
        assert not optimizer.decay_norm and optimizer.momentum == 0.9
        if arm.part == "grid":
            assert (optimizer.lr, optimizer.weight_decay) == (arm.factors["rate"], arm.factors["decay"])
        else:
            assert (optimizer.lr, SETTINGS.arms.decay) == (0.1, 5e-4)


# --- the identities ---

ARGUMENTS = {"scale": 3.0, "steps": 8, "lr": 0.1, "decay": 0.01}


def values(**changed: float) -> dict[str, float]:
    return {row["quantity"]: row["value"] for row in invariance.function(seed=0, **(ARGUMENTS | changed))}  # type: ignore[arg-type]


def test_identities_hold_with_batch_normalization() -> None:
    found = values()
    small = {name for name, value in found.items() if value < 1e-12}
    assert small == {"loss", "orthogonal", "gradient", "growth", "sgd", "adam"}
    assert min(found[name] for name in ("sgd_same", "adam_same", "adam_squared")) > 1e-3
    assert found["least_growth"] > 0


def test_identities_fail_without_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "custombn", NORMS["nobn"])
    found = values()
    assert min(found[name] for name in ("loss", "orthogonal", "gradient", "growth", "sgd", "adam")) > 1e-4


# --- the arms ---


def run_of(*overrides: str) -> Any:
    cfg = load_config(["optimizer=sgd", *SMOKE.arms.overrides, "epochs=1", *overrides])
    return type("Run", (), {"config": cfg})()


def test_only_weights_that_a_norm_follows_are_decayed() -> None:
    trainer = trainer_of(run_of().config)
    normed = normed_weights(trainer.network)
    linear = [layer for layer in trainer.network.modules() if isinstance(layer, nn.Linear)]
    assert [id(w) for w in normed] == [id(layer.weight) for layer in linear[:-1]]
    groups = layerwise(trainer, 0.01).param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert [id(p) for p in decayed] == [id(w) for w in normed]
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.network.parameters()))


def test_a_step_takes_each_layers_rate() -> None:
    trainer = trainer_of(run_of("optimizer.momentum=0").config)
    trainer.optimizer = layerwise(trainer, 0.0)
    batch = next(trainer.batches())
    weights = normed_weights(trainer.network)
    before = [w.detach().clone() for w in weights]
    update(trainer, batch, [2.0, 1.0, 0.5])
    for w, old, factor in zip(weights, before, (2.0, 1.0, 0.5), strict=True):
        assert isinstance(w.grad, Tensor)
        torch.testing.assert_close(w.detach(), old - 0.1 * factor * w.grad)


def test_corrected_arms_have_the_effective_rates_of_those_that_they_follow() -> None:
    rows = four_arms.function(run=run_of(), seed=0, epochs=2, decay=0.05)
    at = {(row["quantity"], row["x"]): row["value"] for row in rows}
    last = max(row["x"] for row in rows if row["x"] is not None)
    assert at[f"{CORRECTED}: rate", last] == pytest.approx(at[f"{ON}: rate", last])
    assert at[f"{REVERSE}: rate", last] == pytest.approx(at[f"{OFF}: rate", last])
    assert at[f"{ON}: rate", last] > at[f"{OFF}: rate", last]
    assert at[f"{ON}: square", last] < at[f"{OFF}: square", last]
    nothing = four_arms.function(run=run_of(), seed=0, epochs=1, decay=0.0)
    assert len({row["value"] for row in nothing if row["quantity"].endswith(": test")}) == 1  # four times the same


def test_norms_at_the_end_of_a_run_are_over_those_at_its_start(tiny: Any) -> None:
    run = Run(train.run(tiny("epochs=1", "optimizer=sgd", "optimizer.lr=1e-9")))
    found = {row["quantity"]: row["value"] for row in norms.function(run=run, seed=0)}
    assert found["growth"] == pytest.approx(1, abs=1e-6)
    logs = [math.log(square) for square in squares(trainer_of(run.config).network)]
    mean = math.exp(sum(logs) / len(logs))
    assert found["effective_rate"] == pytest.approx(1e-9 / mean)


# --- cells ---


def test_cells_are_chosen_on_validation_data_and_a_run_that_diverged_is_at_chance() -> None:
    accuracies = {(0.1, 0.0): 0.9, (0.3, 0.0): 0.8, (0.1, 0.01): 0.7, (0.3, 0.01): 0.95}
    runs = [
        {"part": "grid", "rate": rate, "decay": decay, "seed": seed, "variant": "bn", "status": "completed"}
        | {"val_accuracy": accuracy, "test_accuracy": 1 - accuracy}
        for (rate, decay), accuracy in accuracies.items()
        for seed in range(2)
    ]
    results = Results("full", runs, [], [])
    assert [best(results, [decay]) for decay in (0.0, 0.01)] == [(0.1, 0.0), (0.3, 0.01)]
    runs[-1] |= {"status": "diverged", "val_accuracy": None}
    assert best(results, [0.01]) == (0.1, 0.01)
