"""Weight decay before a norm: the arms' rates, the identities and where they fail, how cells are chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.experiments.vanlaarhoven2017 import SGD, best, measurements, paper
from bnrepro.experiments.vanlaarhoven2017.measurements import (
    CORRECTED,
    OFF,
    ON,
    REVERSE,
    four_arms,
    invariance,
    layerwise,
    normed_weights,
    squares,
    tuned,
    update,
)
from bnrepro.norm import NORMS
from bnrepro.training.train import trainer_of
from bnrepro.training.trainer import Batch, Trainer

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def test_all_trainings_are_sgd_with_momentum_and_leave_decay_to_the_measurement() -> None:
    probes = [probe for probe in paper.designed(SETTINGS).probes if probe.seed == 0 and probe.config]
    assert len(probes) == 5 * 3 + 1
    for probe in probes:
        optimizer = probe.config.optimizer
        assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 0)
        factors = probe.factors or {"rate": 0.1, "decay": 5e-3}  # Hoffer et al.'s rate, and ten times their decay
        assert (optimizer.lr, probe.arguments["decay"]) == (factors["rate"], factors["decay"])


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
    cfg = load_config([*SGD, *SMOKE.common, "optimizer.lr=0.1", *overrides])
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
    trainer = trainer_of(run_of("optimizer.momentum=0", "schedule.warmup_epochs=0").config)
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


# --- the grid ---


def tuned_at(*overrides: str, decay: float = 0.0) -> dict[str, float]:
    rows = tuned.function(run=run_of(*overrides), seed=0, epochs=2, decay=decay)
    return {row["quantity"]: row["value"] for row in rows}


def test_norms_and_effective_rates_of_a_training() -> None:
    still = tuned_at("optimizer.lr=1e-9", "schedule=constant", "schedule.warmup_epochs=0")
    assert still["growth"] == pytest.approx(1, abs=1e-6)
    logs = [math.log(square) for square in squares(trainer_of(run_of().config).network)]
    assert still["effective_rate"] == pytest.approx(1e-9 / math.exp(sum(logs) / len(logs)), rel=1e-5)
    without, decayed = tuned_at(), tuned_at(decay=0.05)
    assert decayed["growth"] < without["growth"]
    assert decayed["effective_rate"] > without["effective_rate"]


def test_of_weights_that_decay_to_nothing_there_is_no_effective_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(trainer: Trainer, batch: Batch) -> float:
        with torch.no_grad():
            normed_weights(trainer.network)[0].zero_()
        return math.log(10)

    monkeypatch.setattr(measurements, "update", vanish)
    found = tuned_at()
    assert found.keys() == {"growth", "val", "test"}
    assert found["growth"] == 0


def test_a_training_of_the_grid_without_decay_is_that_of_the_trainer() -> None:
    trainer = trainer_of(replace(run_of().config, epochs=2))
    for batch in trainer.batches():
        trainer.update(batch.x, batch.y, batch.lr)
    assert tuned_at()["test"] == pytest.approx(100 * trainer.measure(trainer.data.test)[1])


def test_cells_are_chosen_on_validation_data_and_what_diverged_is_at_chance() -> None:
    accuracies = {(0.1, 0.0): 90.0, (0.3, 0.0): 80.0, (0.1, 0.01): 70.0, (0.3, 0.01): 95.0}
    rows = [
        {"part": "grid", "rate": rate, "decay": decay, "seed": seed, "quantity": quantity, "x": None, "value": value}
        for (rate, decay), accuracy in accuracies.items()
        for quantity, value in (("val", accuracy), ("test", 100 - accuracy))
        for seed in range(2)
    ]
    results = Results("full", [], [], rows)
    assert [best(results, [decay]) for decay in (0.0, 0.01)] == [(0.1, 0.0), (0.3, 0.01)]
    kept = [row for row in rows if not (row["seed"] == 1 and row["rate"] == 0.3 and row["decay"] == 0.01)]
    lost = {"part": "grid", "rate": 0.3, "decay": 0.01, "seed": 1, "quantity": "diverged", "x": None, "value": 7.0}
    assert best(Results("full", [], [], [*kept, lost]), [0.01]) == (0.1, 0.01)
