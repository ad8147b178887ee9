"""Placement: its arms are what their factors say, and its measurements are right and find a layer that is not BN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnrepro.claims import Results, Values
from bnrepro.claims.design import Arm
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.experiments.placement import (
    POSITIONS,
    REPORTED,
    SHAPE,
    Network,
    after_is_better,
    beside_the_source,
    best_rate,
    example,
    fit,
    identity,
    noise_regularizes,
    paper,
    per_channel,
    spread,
)
from bnrepro.norm import NORMS, BatchNorm2d, NormOptions
from bnrepro.norm.variants import GhostBatchNorm
from bnrepro.runs import record
from bnrepro.training import train
from bnrepro.training.model import build, norm_of

LENET: Any = {
    "networks": {"LeNet": Network(overrides=["model=lenet"], trained=50.0)},
    "regularized": ["model=lenet"],
}
SETTINGS = paper.settings("smoke").model_copy(update=LENET)
BN = nn.modules.batchnorm._BatchNorm


@pytest.fixture(scope="module")
def grid() -> list[Arm]:
    return [arm for arm in paper.designed(SETTINGS).arms if arm.config.seed == 0]


def leaves(arm: Arm) -> list[nn.Module]:
    net = build(arm.config.model, norm_of(arm.config), 1, (28, 28), 10, torch.Generator())
    return [m for m in net.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]


# --- arms ---


def test_each_order_stands_where_its_factor_says(grid: list[Arm]) -> None:
    orders = [arm for arm in grid if arm.part == "order"]
    assert len(orders) == 2 * 3 + 2 + 2 + 3  # the sweep, gamma and beta, other activations with BN, and without
    activations = {"relu": nn.ReLU, "elu": nn.ELU, "prelu": nn.PReLU}
    for arm in orders:
        modules = leaves(arm)
        norm = [isinstance(m, BN) for m in modules]
        if arm.factors["order"] == "none":
            assert not any(norm)
            continue
        acts = [isinstance(m, activations[arm.factors["activation"]]) for m in modules]
        first, second = (norm, acts) if arm.factors["order"] == "before" else (acts, norm)
        assert sum(norm) == sum(acts) == 4
        assert all(b for a, b in zip(first, second[1:], strict=False) if a)  # each is followed by the other
        assert {m.affine for m in modules if isinstance(m, BN)} == {arm.factors["affine"] == "on"}


def test_dropout_stands_where_its_factor_says(grid: list[Arm]) -> None:
    cells = set()
    for arm in (arm for arm in grid if arm.part == "dropout"):
        position, amount = arm.factors["position"], arm.factors["amount"]
        modules = leaves(arm)
        drops = [i for i, m in enumerate(modules) if isinstance(m, nn.Dropout)]
        followed_by_norm = [isinstance(modules[i + 1], BN) for i in drops]
        assert [modules[i].p for i in drops] == [amount] * len(drops)
        if position == "before_norm":
            assert len(drops) == 4
            assert all(followed_by_norm)
        elif position == "last":
            assert len(drops) == 1
            assert isinstance(modules[drops[0] + 1], nn.Linear)
        elif position == "after_norm":
            assert len(drops) == 4
            assert not any(followed_by_norm)
        else:
            assert not drops
        cells.add((position, amount))
    assert cells == {(position, amount) for position in POSITIONS for amount in (0.1, 0.5)} | {("none", 0.0)}


def test_rates_are_the_sweeps_and_the_middle_elsewhere(grid: list[Arm]) -> None:
    rates: dict[tuple[str, str, str], list[float]] = {}
    for arm in (arm for arm in grid if arm.part == "order"):
        assert arm.config.optimizer.lr == arm.factors["rate"]
        rates.setdefault((arm.factors["order"], arm.factors["activation"], arm.factors["affine"]), []).append(
            arm.factors["rate"]
        )
    middle = SETTINGS.rates[1]
    for (order, activation, affine), found in rates.items():
        swept = order != "none" and activation == "relu" and affine == "on"
        assert found == (SETTINGS.rates if swept else [SETTINGS.plain_rate if order == "none" else middle])


def test_ghost_batches_are_those_of_their_factor_and_all_are_measured(grid: list[Arm]) -> None:
    ghosts = [arm for arm in grid if arm.part == "ghost"]
    assert [arm.factors["size"] for arm in ghosts] == [SETTINGS.whole, 4, 8] == [32, 4, 8]
    for arm in ghosts:
        sizes = {m.ghost_size for m in leaves(arm) if isinstance(m, GhostBatchNorm)}
        assert sizes == ({arm.factors["size"]} if arm.factors["size"] < arm.config.batch_size else set())
    measured = [probe.config for probe in paper.designed(SETTINGS).probes if probe.part == "ghost" and probe.seed == 0]
    assert measured == [arm.config for arm in ghosts]


# --- measurements ---


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def test_identity_holds_and_misses_by_eps_where_the_formula_has_none() -> None:
    found = values(identity.function(0, **SHAPE))
    assert found["error", "sqrt(variance + eps)"] < 1e-12
    assert found["moved", None] < 1e-12
    x = example(0, **SHAPE)[0].numpy()
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    by_hand = np.abs(np.sqrt(var) * (x - mean) / np.sqrt(var + 1e-5) + mean - x).max()
    assert found["error", "deviation"] == pytest.approx(by_hand, rel=1e-6)
    assert found["expected", "deviation"] == pytest.approx(by_hand, rel=1e-6)
    assert by_hand > 1e-7


def test_a_layer_that_is_not_per_channel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts() -> list[Verdict]:
        made = {"identity": identity, "channels": per_channel}
        rows = [{**row, "part": p, "seed": 0} for p, measure in made.items() for row in measure.function(0, **SHAPE)]
        found = {each.claim.id: each for each in judged(paper, Results("full", [], [], rows), SETTINGS)}
        return [found[claim].verdict for claim in ("P4", "P5")]

    assert verdicts() == [Verdict.reproduced, Verdict.reproduced]

    class Whole(BatchNorm2d):
        """Statistics over the channels too."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x - x.mean()) / (x.var(correction=0) + self.eps).sqrt()
            return y * self.weight[:, None, None] + self.bias[:, None, None]

    def whole(features: int, shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        return Whole(features, eps=1e-5)

    monkeypatch.setitem(NORMS, "bn", whole)
    assert verdicts() == [Verdict.not_reproduced, Verdict.partly]  # sizes are right, and it isn't per location


def test_fit_is_that_of_the_run_in_eval_mode(tmp_path: Path) -> None:
    cfg = next(arm.config for arm in paper.designed(paper.settings("smoke")).arms if arm.part == "ghost")
    cfg.root, cfg.tensorboard = str(tmp_path), False
    run = record.Run(train.run(cfg))
    found = values(fit.function(run=run, seed=0))
    assert found["test_accuracy", None] == pytest.approx(run.summary["test_accuracy"], abs=1e-6)
    assert found["gap", None] == found["test_loss", None] - found["train_loss", None]


# --- what is read from the records ---


def swept(by_order: dict[str, tuple[float, float, float]]) -> Results:
    """Runs of the sweep with these validation accuracies at its rates; test accuracies are 0.1 less."""
    rows = [
        {"part": "order", "network": "LeNet", "activation": "relu", "affine": "on", "order": order, "rate": rate}
        | {"variant": "bn", "seed": seed, "status": "completed", "val_accuracy": value, "test_accuracy": value - 0.1}
        for order, found in by_order.items()
        for rate, value in zip(SETTINGS.rates, found, strict=True)
        for seed in range(2)
    ]
    return Results("full", rows, [], [])


def test_orders_are_compared_at_their_best_rates_of_the_validation_data() -> None:
    low, middle, high = SETTINGS.rates
    results = swept({"before": (0.5, 0.8, 0.6), "after": (0.5, 0.9, 0.7)})
    assert best_rate(results, SETTINGS, "LeNet", "after") == middle
    (effect,) = after_is_better(results, SETTINGS).effects
    assert effect.interval.mean == pytest.approx(10.0)
    at_edge = swept({"before": (0.5, 0.8, 0.6), "after": (0.5, 0.8, 0.9)})
    assert best_rate(at_edge, SETTINGS, "LeNet", "after") == high != low
    evidence = after_is_better(at_edge, SETTINGS)
    assert not evidence.effects
    assert "LeNet, BN after" in evidence.reason
    diverged = swept({"before": (0.5, 0.8, 0.6), "after": (0.5, 0.9, 0.7)})
    for row in diverged.runs:
        if row["rate"] == middle and row["seed"] == 0:
            row.update(status="diverged", val_accuracy=None, test_accuracy=None)
    assert best_rate(diverged, SETTINGS, "LeNet", "after") == high  # it counts as chance


def test_ghost_batches_are_chosen_on_validation_data() -> None:
    sizes = {SETTINGS.whole: (0.5, 0.7), 4: (0.6, 0.9), 8: (0.8, 0.71)}  # validation, test
    who = {"part": "ghost", "variant": "bn", "status": "completed"}
    pairs = [(size, each, seed) for size, each in sizes.items() for seed in range(2)]
    runs = [{**who, "size": size, "seed": seed, "val_accuracy": val} for size, (val, _), seed in pairs]
    measured = {"part": "ghost", "quantity": "test_accuracy"}
    rows = [{**measured, "size": size, "seed": seed, "value": test} for size, (_, test), seed in pairs]
    (effect,) = noise_regularizes(Results("full", runs, [], rows), SETTINGS).effects
    assert effect.interval.mean == pytest.approx(1.0)


def test_spread_is_best_minus_worst_where_all_three_are_there() -> None:
    data = {(("relu",), 0): 1.0, (("elu",), 0): 4.0, (("prelu",), 0): 2.0, (("tanh",), 0): 9.0}
    data |= {(("relu",), 1): 1.0, (("elu",), 1): 4.0}  # PReLU's run of seed 1 is missing
    assert spread(Values(("activation",), data)).seeds == {0: 3.0}


def test_the_benchmarks_differences_are_its_own_numbers() -> None:
    rows = {row["network"]: row for row in beside_the_source(Results("full", [], [], []), SETTINGS)}
    assert rows.keys() == REPORTED.keys()
    gains = [row["after - before, points"].mean for row in rows.values()]
    assert gains == pytest.approx([2.5, 1.5, -0.7, -2.3])
