"""dksakkos/BatchNorm: its arms are the source's, its measurements right, and its curves read as Keras reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.config.schema import Config, DropoutPosition, Initialization, OptimizerName, Placement
from bnrepro.data.dataset import load
from bnrepro.experiments.keras_curves import (
    ARMS,
    PAIRS,
    SETUP,
    at_epoch,
    curves,
    in_lockstep,
    operations,
    paper,
    saved_steps,
    steps_to,
)
from bnrepro.norm import NORMS
from bnrepro.training.model import build, norm_of

SETTINGS = paper.settings("full")
CONFIGS: dict[tuple[str, str], Config] = {
    (arm.factors["arm"], arm.factors["flips"]): arm.config
    for arm in paper.designed(SETTINGS).arms
    if arm.config.seed == 0
}


# --- arms ---


@pytest.mark.parametrize("arm", ARMS)
def test_network_is_the_sources(arm: str) -> None:
    cfg = CONFIGS[arm, "with"]
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
    assert len(CONFIGS) == 10
    for (_, flips), cfg in CONFIGS.items():
        adam = cfg.optimizer
        assert (adam.name, adam.lr, adam.beta1, adam.beta2, adam.eps) == (OptimizerName.adam, 1e-3, 0.9, 0.999, 1e-7)
        assert (cfg.batch_size, cfg.model.init, cfg.model.placement) == (256, Initialization.glorot, Placement.before)
        assert (cfg.data.rotate, cfg.data.brightness, cfg.data.samplewise) == (20, 0.5, True)
        assert (cfg.data.flip, cfg.data.val_fraction) == (flips == "with", 0.1)
    framework, own = CONFIGS["bn", "with"], CONFIGS["custombn_own", "with"]
    assert (framework.norm.eps, framework.norm.momentum) == (1e-3, pytest.approx(1 - 0.99))
    assert (own.variant, own.norm.eps, own.norm.momentum) == ("custombn", 1e-6, pytest.approx(1 - 0.9))
    assert own.model.dropout_position is DropoutPosition.last and own.model.dropout == 0
    # K3 compares these two: nothing but the implementation may differ.
    assert replace(CONFIGS["custombn", "with"], variant="bn") == framework


# --- measurements ---


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


def made_up(values: dict[str, Sequence[float]], diverged: tuple[str, int] | None = None) -> Results:
    """Two seeds of each arm with these points of all four columns, two an epoch; the second seed's are 0.01 more."""
    runs, points = [], []
    for arm, course in values.items():
        for seed in (0, 1):
            who = {"part": "curves", "arm": arm, "flips": "with", "seed": seed}
            status = "diverged" if (arm, seed) == diverged else "completed"
            runs.append({**who, "status": status, "steps": 5 * len(course), "test_accuracy": 0.9})
            for place, value in enumerate(course, 1):
                at = {"step": 5 * place, "epoch": place / 2}
                columns = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
                points.append({**who, **at, **dict.fromkeys(columns, value + 0.01 * seed)})
    return Results("full", runs, points, [])


def test_threshold_never_reached_counts_all_steps() -> None:
    found = curves(made_up({"bn": [0.1, 0.3, 0.2]}), "val_accuracy").at(arm="bn", flips="with")
    for column, threshold, first in (
        ("val_accuracy", 0.1, 5),
        ("val_accuracy", 0.25, 10),
        ("val_accuracy", 0.9, 15),
        ("train_loss", 0.15, 5),
        ("train_loss", 0.05, 15),
    ):
        assert steps_to(found, column, threshold).seeds == {0: first, 1: first}


def test_epochs_are_means_of_training_and_ends_of_validation() -> None:
    results = made_up({"bn": [1.0, 2.0, 3.0, 4.0]})
    of_bn = {"arm": "bn", "flips": "with"}
    assert [at_epoch(results, "train_loss", e, **of_bn).seeds[0] for e in (1, 2)] == [1.5, 3.5]
    assert [at_epoch(results, "val_loss", e, **of_bn).seeds[0] for e in (1, 2)] == [2, 4]
    assert not at_epoch(results, "val_loss", 3, **of_bn)


def test_steps_are_saved_against_no_bn_and_diverged_runs_are_left_out() -> None:
    slow, fast = [0.9, 0.92, 0.98, 0.98], [0.97, 0.98, 0.98, 0.98]
    results = made_up({"nobn": slow, "bn": fast, "custombn_own": slow}, diverged=("bn", 1))
    saved = saved_steps(results, SETTINGS, "with")
    assert saved["framework BN, validation accuracy 0.97"].seeds == {0: 10}
    assert saved["custom BN, source's settings, validation accuracy 0.97"].seeds == {0: 0, 1: 0}


def test_all_four_curves_of_both_layers_count() -> None:
    results = made_up({"nobn": [0.5] * 8, "bn": [0.6] * 8, "custombn_own": [0.7] * 8})
    (k5,) = (each for each in judged(paper, results, SETTINGS) if each.claim.id == "K5")
    found = {effect.condition: effect.interval.mean for effect in k5.evidence.effects}
    assert len(found) == 8
    assert found["framework BN, validation accuracy"] == pytest.approx(0.1)
    assert found["custom BN, source's settings, training loss"] == pytest.approx(-0.2)  # a higher loss is worse
