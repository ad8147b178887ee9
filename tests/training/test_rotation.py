"""Angles between weights: of known vectors, of tiny steps, of a network's layers; and what TensorBoard shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bnrepro.config import load_config, run_dir
from bnrepro.config.schema import Config
from bnrepro.training import train
from bnrepro.training.rotation import angle, equilibrium_angle, turns, weights


@pytest.mark.parametrize("size", [1e-9, 1e-4, 0.3, math.pi / 2, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 7.0])
def test_the_angle_is_that_of_the_plane_whatever_the_scale(size: float, scale: float) -> None:
    before = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    after = scale * torch.tensor([[math.cos(size), math.sin(size)], [0.0, 0.0]], dtype=torch.float64)
    assert angle(before, after) == pytest.approx(size, rel=1e-6)
    assert angle(after, before) == pytest.approx(size, rel=1e-6)


def test_the_equilibrium_is_the_sources_formula_for_small_steps() -> None:
    for lr, decay, momentum in ((0.1, 1e-4, 0.9), (1.0, 5e-4, 0.0)):
        formula = math.sqrt(2 * lr * decay / (1 + momentum))
        assert equilibrium_angle(lr, decay, momentum) == pytest.approx(formula, rel=1e-3)
    assert math.cos(equilibrium_angle(1.0, 0.5)) == pytest.approx(0.5)


def test_turns_are_of_all_layers_but_the_last() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3))
    before = weights(network)
    assert list(before) == ["layer1", "layer2"]
    with torch.no_grad():
        network[0].weight.mul_(3)  # no turn
        network[3].weight[0].zero_()
    found = turns(before, network, lr=0.5)
    assert found["layer1"].angle == pytest.approx(0, abs=1e-7)
    assert found["layer2"].angle > 0.1
    for name, turn in found.items():
        assert turn.norm == pytest.approx(float(before[name].norm()))
        assert turn.effective_lr == pytest.approx(0.5 / turn.norm**2)


def test_tensorboard_shows_angles_when_asked_for_and_the_run_is_the_same(tiny: Callable[..., Config]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ("tensorboard=true", "optimizer=sgd", "optimizer.lr=0.1", "epochs=2")
    assert run_dir(tiny(*overrides, "angles=true")) == run_dir(tiny(*overrides))
    plain = Path(train.run(tiny(*overrides)))
    metrics = (plain / "metrics.csv").read_text().splitlines()
    shown = EventAccumulator(str(plain)).Reload().Tags()["scalars"]
    assert not [tag for tag in shown if tag.startswith("layer1/")]
    again = Path(train.run(tiny(*overrides, "angles=true"), force=True))
    for old, new in zip(metrics, (again / "metrics.csv").read_text().splitlines(), strict=True):
        assert old.split(",")[:-1] == new.split(",")[:-1]  # but for the seconds
    events = EventAccumulator(str(again)).Reload()
    for key in ("angle", "norm", "effective_lr"):
        points = events.Scalars(f"layer1/{key}")
        assert [point.step for point in points] == [9, 18]
        assert all(point.value > 0 for point in points)
    assert load_config(["angles=true"]).angles
