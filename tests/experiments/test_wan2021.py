"""Spherical motion: the model against torch's own SGD, and what a training's angles are read from."""

from __future__ import annotations

import math

import pytest
import torch

from bnrepro.claims import Results, row
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.wan2021 import NO_DECAY, Steps, along, equilibrium_norm, in_the_model, model_step, paper
from bnrepro.training.rotation import angle

FULL, SMOKE = paper.settings("full"), paper.settings("smoke")


def test_each_factor_of_the_formula_changes_in_some_cell() -> None:
    cells = list(FULL.decayed.values())
    angles = [cell.angle for cell in cells]
    for one, other in ((0, 1), (0, 2), (1, 2)):  # apart by more than the margin allows for one of them
        assert abs(math.log(angles[one] / angles[other])) > 2 * math.log(FULL.margin)
    assert FULL.cells[NO_DECAY].weight_decay == 0
    assert NO_DECAY not in FULL.decayed
    for cell in cells:  # the slowest comes to a hundredth of its distance in half of the training
        assert (1 - cell.momentum) / (4 * cell.lr * cell.weight_decay) * math.log(100) < 0.6 * 1053


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_recursion_is_torchs_sgd_where_gradients_are_orthogonal(momentum: float) -> None:
    """In as many dimensions as there are steps, each gradient has an axis of its own."""
    steps, size, count = Steps(lr=0.2, weight_decay=0.05, momentum=momentum), 1.5, 80
    w = torch.zeros(count + 1, dtype=torch.float64)
    w[0] = 2.0
    w.requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.2, weight_decay=0.05, momentum=momentum)
    state = (4.0, 0.0, 0.0)
    for step in range(1, count + 1):
        before = w.detach().clone()
        w.grad = torch.zeros_like(w)
        w.grad[step] = size / before.norm()
        optimizer.step()
        state, turned = model_step(state, steps, size)
        assert turned == pytest.approx(angle(before, w), rel=1e-10)
        assert state[0] == pytest.approx(float(w.detach().square().sum()), rel=1e-10)


@pytest.mark.parametrize("steps", FULL.models, ids=str)
def test_the_models_fixed_point_is_the_closed_form(steps: Steps) -> None:
    found = {r["quantity"]: r["value"] for r in in_the_model.function(seed=0, **steps.model_dump())}
    assert found["angle"] < 1e-9
    assert found["norm"] < 1e-9
    assert -steps.lr * steps.weight_decay < found["formula"] < 0  # arccos(1 - x) is above sqrt(2 x)
    assert equilibrium_norm(steps, 4.0) == pytest.approx(2 * equilibrium_norm(steps, 1.0))


def test_a_training_is_measured_and_its_steps_are_the_runs() -> None:
    overrides = [*SMOKE.common, *SMOKE.cells["usual"].overrides]
    data = load(load_config(SMOKE.common).data, torch.device("cpu"))
    rows = along.function(data, 1000, overrides, every=1, points=3, fall=4.0, after=2)
    found = {r["quantity"]: r["value"] for r in rows if r["x"] is None}
    assert 0 <= found["train_accuracy"] <= 100
    assert found["drift"] > 0
    assert found["fallen"] > 0
    assert [r["x"] for r in rows if r["quantity"] == "angle"] == [4, 8, 12]
    layers = [r["x"] for r in rows if r["quantity"] == "settled"]
    assert layers == [f"layer{i}" for i in range(1, 8)]  # ResNet-8 without its last
    assert rows == along.function(data, 1000, overrides, every=1, points=3, fall=4.0, after=2)


def planted(factor: float = 1.0, fallen: float = 1.0, drift: float = 1.0, layer: float = 1.0) -> Results:
    """Records in which angles are ``factor`` times those in equilibrium, one layer's ``layer`` times that."""
    rows = [{"part": "model", "seed": 0, "model": i} | r for i, m in enumerate(FULL.models)
            for r in in_the_model.function(seed=0, **m.model_dump())]  # fmt: skip
    for seed in range(5):
        for name, cell in FULL.cells.items():
            size = (cell.angle or FULL.cells["usual"].angle / 2) * factor * (1 + 0.002 * seed)
            each = [row("settled", size * (layer if i == 2 else 1), f"layer{i}") for i in range(1, 8)]
            each += [row("angle", size * 500 / x, x) for x in (500, 1000)] + [
                row("norm", 1 + x / 1000, x) for x in (500, 1000)
            ]
            each += [row("drift", drift), row("fallen", size / FULL.fall * fallen), row("train_accuracy", 60)]
            rows += [{"part": "cells", "seed": seed, "cell": name} | r for r in each]
    return Results("full", [], [], rows)


def verdicts(results: Results) -> dict[str, Verdict]:
    return {each.claim.id: each.verdict for each in judged(paper, results, FULL)}


def test_claims_hold_where_they_should_and_fail_where_not() -> None:
    assert set(verdicts(planted()).values()) == {Verdict.reproduced}
    assert verdicts(planted(factor=1.38))["M2"] is Verdict.not_reproduced
    assert verdicts(planted(layer=1.6))["M3"] is Verdict.not_reproduced
    assert verdicts(planted(fallen=2.0))["M4"] is Verdict.not_reproduced
    assert verdicts(planted(drift=30))["M2"] is Verdict.too_short
