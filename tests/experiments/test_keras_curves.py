"""dksakkos/BatchNorm: its arms are the source's, its measurements right, and its curves read as Keras reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.config.schema import Config, DropoutPosition, Initialization, OptimizerName, Placement
from bnrepro.data.dataset import load
from bnrepro.experiments.keras_curves import (
    ARMS,
    PAIRS,
    SETUP,
    Plateau,
    Stopping,
    at_end,
    curves,
    ended,
    epochs_to,
    in_lockstep,
    operations,
    paper,
    ratio,
    trained,
)
from bnrepro.norm import NORMS
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.model import build, norm_of

SETTINGS = paper.settings("full")
CONFIGS: dict[str, Config] = {
    probe.factors["arm"]: load_config(probe.arguments["overrides"])
    for probe in paper.designed(SETTINGS).probes
    if probe.part == "curves" and probe.seed == 0
}


# --- arms ---


@pytest.mark.parametrize("arm", ARMS)
def test_network_is_the_sources(arm: str) -> None:
    cfg = CONFIGS[arm]
    net = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator())
    leaves = [m for m in net.modules() if not list(m.children()) and not isinstance(m, torch.nn.Identity)]
    kinds = [type(m).__name__ for m in leaves if "Norm" not in type(m).__name__]
    assert kinds == [*["Conv2d", "ReLU", "AvgPool2d"] * 2, "Flatten", *["Linear", "ReLU"] * 2, "Linear"]
    # Keras: Conv2D(6), Conv2D(16), Dense(120), Dense(84), Dense(10), all with bias.
    layers = [m for m in leaves if hasattr(m, "in_channels") or hasattr(m, "in_features")]
    numbers = sum(p.numel() for m in layers for p in m.parameters())
    assert numbers == 60 + 880 + (16 * 25 * 120 + 120) + (120 * 84 + 84) + 850
    assert len(net.norms) == 4


def test_settings_are_the_sources() -> None:
    assert CONFIGS.keys() == {"nobn", "bn", "custombn_own"}
    for cfg in CONFIGS.values():
        adam = cfg.optimizer
        assert (adam.name, adam.lr, adam.beta1, adam.beta2, adam.eps) == (OptimizerName.adam, 1e-3, 0.9, 0.999, 1e-7)
        assert (cfg.batch_size, cfg.model.init, cfg.model.placement) == (256, Initialization.glorot, Placement.before)
        assert (cfg.data.name, cfg.data.rotate, cfg.data.brightness, cfg.data.samplewise) == ("mnist", 20, 0.5, True)
        assert (cfg.data.flip, cfg.data.val_fraction, cfg.schedule.name) == (True, 0.1, "constant")
    framework, own = CONFIGS["bn"], CONFIGS["custombn_own"]
    assert (framework.norm.eps, framework.norm.momentum) == (1e-3, pytest.approx(1 - 0.99))
    assert (own.variant, own.norm.eps, own.norm.momentum) == ("custombn", 1e-6, pytest.approx(1 - 0.9))
    assert own.model.dropout_position is DropoutPosition.last
    assert own.model.dropout == 0
    # K3 compares these two: nothing but the implementation and its two constants may differ.
    assert replace(own, variant="bn", norm=framework.norm) == framework


# --- measurements ---


def test_rule_halves_the_rate_after_three_epochs_and_stops_after_ten() -> None:
    plateau = Plateau(Stopping(), 1.0)
    assert plateau.after(0.5)
    assert plateau.after(0.6)
    assert plateau.after(0.6)
    assert plateau.rate == 1.0
    assert plateau.after(0.5 - 5e-5)  # lower, by less than counts for the rate: the third epoch that does not
    assert plateau.rate == 0.5
    goes_on = [plateau.after(0.7) for _ in range(10)]
    assert goes_on == [True] * 9 + [False]  # ten after the lowest
    assert plateau.rate == 0.5**4


def test_training_is_a_runs_own_until_it_stops(tmp_path: Path) -> None:
    overrides = [*SETUP, "data=mnist5k", "data.val_fraction=0.9", "model.width=0.25", "batch_size=64", "device=cpu"]
    cfg = load_config([*overrides, "epochs=2", "tensorboard=false", f"root={tmp_path}"])
    run = Run(train.run(cfg))
    data = load(cfg.data, torch.device("cpu"))

    def found(**rule: Any) -> dict[tuple[str, Any], float]:
        rows = trained.function(data, 0, overrides, Stopping(**rule).model_dump())
        return {(row["quantity"], row["x"]): row["value"] for row in rows}

    whole = found(epochs=2)
    assert whole["epochs", None] == 2
    assert whole["rate", 2] == pytest.approx(1e-3)
    for quantity in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert whole[quantity, 2] == pytest.approx(run.summary[quantity], rel=1e-5)
    assert whole["test_accuracy", None] == pytest.approx(run.summary["test_accuracy"])
    # The second epoch does not lower the loss by so much, so that the third has half the rate.
    assert found(epochs=3, rate_patience=1, least=100.0)["rate", 3] == pytest.approx(5e-4)


def test_lockstep_tells_equal_layers_from_layers_with_other_settings() -> None:
    overrides = [*SETUP, "data=mnist5k", "model.width=0.5", "batch_size=32", "data.flip=true"]
    data = load(load_config(overrides).data, torch.device("cpu"))

    def worst(pair: str) -> list[float]:
        precision, theirs = PAIRS[pair]
        rows = in_lockstep.function(data, 0, 5, precision, [*overrides, *theirs])
        assert [r["x"] for r in rows if r["quantity"] == "loss"] == [1, 2, 3, 4, 5]
        return [max(r["value"] for r in rows if r["quantity"] == q) for q in ("training", "eval")]

    same, momentum, eps = worst("same settings"), worst("momentum 0.1"), worst("eps 1e-6")
    assert max(same) < 1e-10
    assert momentum[0] < 1e-10 < 1e-3 < momentum[1]
    assert min(eps) > 1e-6


def test_operations_are_those_of_the_text_and_a_wrong_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def errors() -> list[float]:
        rows = operations.function(0, batch=8, channels=3, height=4, width=4)
        assert {r["quantity"]: r["value"] for r in rows}["without eps"] == 1
        return [r["value"] for r in rows if r["quantity"] == "error"]

    assert max(errors()) < 1e-12

    def other_eps(features: int, shape: tuple[int, ...], options: Any) -> torch.nn.Module:
        return torch.nn.BatchNorm2d(features, eps=1e-3, momentum=options.momentum)

    monkeypatch.setitem(NORMS, "custombn", other_eps)
    assert max(errors()) > 1e-6


# --- curves ---


def made_up(values: dict[str, Sequence[float]]) -> Results:
    """Two seeds of each arm with these values of all columns, one an epoch; the second seed's are 0.01 more."""
    rows = []
    for arm, course in values.items():
        for seed in (0, 1):
            who = {"part": "curves", "arm": arm, "seed": seed}
            ends = {"epochs": len(course), "test_accuracy": course[-1], "test_loss": course[-1]}
            rows += [{**who, "quantity": quantity, "x": None, "value": value} for quantity, value in ends.items()]
            for x, value in enumerate(course, 1):
                columns = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
                rows += [{**who, "quantity": each, "x": x, "value": value + 0.01 * seed} for each in columns]
    return Results("full", [], [], rows)


def test_threshold_never_reached_counts_all_epochs() -> None:
    found = curves(made_up({"bn": [0.9, 0.3, 0.2]}), "train_loss").at(arm="bn")
    for threshold, first in ((1.0, 1), (0.35, 2), (0.05, 3)):
        assert epochs_to(found, threshold).seeds == {0: first, 1: first}


def test_ratios_are_geometric_over_the_epochs_in_common_and_ends_each_arms_own() -> None:
    results = made_up({"nobn": [0.8, 0.2, 0.1], "bn": [0.4, 0.4]})
    losses = curves(results, "train_loss")
    assert ratio(losses, "nobn", "bn").seeds[0] == pytest.approx(1.0)  # of 2 and 1/2
    ends = at_end(results, "val_accuracy")
    assert (ends.at(arm="nobn").seeds[0], ends.at(arm="bn").seeds[0]) == (pytest.approx(10), pytest.approx(40))
    assert at_end(results, "epochs").at(arm="nobn").seeds == {0: 3, 1: 3}


def test_nothing_is_judged_of_arms_that_have_not_stopped() -> None:
    assert ended(made_up({arm: [0.99] * 20 for arm in ARMS}), SETTINGS).passed
    assert ended(made_up({arm: [0.99] * 100 for arm in ARMS}), SETTINGS).passed is False
    assert ended(made_up({arm: [0.5] * 20 for arm in ARMS}), SETTINGS).passed is False


def test_all_four_curves_of_both_layers_count() -> None:
    results = made_up({"nobn": [0.5] * 8, "bn": [0.6] * 8, "custombn_own": [0.7] * 9})
    (k5,) = (each for each in paper.claims if each.id == "K5")
    found = {effect.condition: effect.interval.mean for effect in k5.evidence(results, SETTINGS).effects}
    assert len(found) == 8
    assert found["framework BN, validation accuracy"] == pytest.approx(10)
    assert found["custom BN, source's settings, training loss, no BN over it"] == pytest.approx(
        (50 / 70 * 51 / 71) ** 0.5
    )  # a higher loss is worse
