"""Luo et al.'s experiment: a pool of none is batch normalization, the penalty by brute force, the choice of c."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bnrepro.claims import Results
from bnrepro.experiments.luo2019 import (
    BN,
    NOISE,
    PN,
    TRAINING,
    chosen,
    drawn_images,
    gammas,
    paper,
    penalties,
    penalty_by_size,
    slope,
    step,
)  # fmt: skip
from bnrepro.norm import reestimate_statistics
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.train import trainer_of

SETTINGS = paper.settings("full")


def test_each_size_has_batch_and_population_normalization_on_one_configuration() -> None:
    probes = [p for p in paper.designed(paper.settings("smoke")).probes if p.part == TRAINING and p.seed == 0]
    kinds = {(p.factors["kind"], p.factors["size"], p.factors["decay"]): p for p in probes}
    assert set(kinds) == {(BN, m, 0.0) for m in (10, 40)} | {(PN, m, c) for m in (10, 40) for c in (0.0, 0.1)}
    for (kind, size, decay), probe in kinds.items():
        assert probe.config is not None
        assert probe.config.batch_size == size
        assert (probe.arguments["pool"] > 0) == (kind == PN)
        assert probe.arguments["decay"] == decay
    assert len({repr(p.config) for p in probes}) == 2


# --- measurements ---


def test_a_pool_of_none_is_batch_normalization(tiny: Any) -> None:
    cfg = tiny("variant=bn", "optimizer=sgd", "epochs=1")
    ordinary, ours, pooled = (trainer_of(cfg) for _ in range(3))
    others = next(drawn_images(pooled, 20, 0))
    for batch in ordinary.batches(0, 2):
        ordinary.update(batch.x, batch.y, batch.lr)
        step(ours, batch.x, batch.y, batch.lr, batch.x[:0], 0.0)
        step(pooled, batch.x, batch.y, batch.lr, others, 0.0)
    parameters = [list(t.network.parameters()) for t in (ordinary, ours, pooled)]
    assert all(torch.equal(a, b) for a, b in zip(*parameters[:2], strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(parameters[0], parameters[2], strict=True))


def test_gamma_decay_pulls_gamma_by_its_gradient(tiny: Any) -> None:
    cfg = tiny("variant=bn", "optimizer=sgd", "optimizer.momentum=0")
    plain, decayed = trainer_of(cfg), trainer_of(cfg)
    batch = next(plain.batches())
    for trainer, decay in ((plain, 0.0), (decayed, 0.05)):
        step(trainer, batch.x, batch.y, 0.1, batch.x[:0], decay)
    for a, b in zip(gammas(plain.network), gammas(decayed.network), strict=True):
        torch.testing.assert_close(b, a - 0.1 * 2 * 0.05 * torch.ones_like(a))  # gamma was 1


def test_the_penalty_is_the_loss_with_batch_statistics_minus_that_with_all(tiny: Any) -> None:
    run = Run(train.run(tiny("variant=bn", "epochs=2", "model=paper_mlp", "model.activation=relu")))
    asked = {"images": 60, "sizes": [4, 30, 60], "repeats": 2}
    found = {(row["quantity"], row["x"]): row["value"] for row in penalties.function(run=run, seed=0, **asked)}
    assert found["penalty", 4] > found["penalty", 30] > abs(found["penalty", 60])  # one batch is the population
    _, data, network = inference.restore(run)
    images, labels = data.normalize(data.train.images[:60]), data.train.labels[:60]
    reestimate_statistics(network, [images])
    with torch.no_grad():
        logits = network.eval()(images)
    assert found["loss", None] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    assert found["accuracy", None] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))


# --- quantities ---


def test_the_power_is_fitted_to_the_larger_batches_alone() -> None:
    sizes = SETTINGS.noise.sizes
    values = {4: 9.0, 8: 9.0} | {m: 1 / m for m in sizes if m >= SETTINGS.noise.fitted}
    who = {"part": NOISE, "network": "MLP", "seed": 0, "quantity": "penalty"}
    results = Results("full", [], [], [{**who, "x": m, "value": values[m]} for m in sizes])
    (power,) = penalty_by_size(results, SETTINGS).along("x", slope)
    assert power == pytest.approx(-1)


def test_slope_of_a_power() -> None:
    assert slope([4, 8, 32], [3 / m for m in (4, 8, 32)]) == pytest.approx(-1)
    assert slope([4, 8, 32], [m**-0.5 for m in (4, 8, 32)]) == pytest.approx(-0.5)
    assert math.isnan(slope([4, 8], [0.1, -0.01]))
    assert math.isnan(slope([4], [0.1]))


@pytest.mark.parametrize("best", [0.001, 0.01, 0.1])
def test_the_strength_is_chosen_by_validation_loss_alone(best: float) -> None:
    rows = []
    for size in (8, 32):
        for kind, decay in ((BN, 0.0), *((PN, c) for c in (0.0, 0.001, 0.01, 0.1))):
            who = {"part": TRAINING, "kind": kind, "size": size, "decay": decay, "seed": 0, "x": None}
            away = 0.0 if kind == BN else 0.02 if decay == best else 0.1 * (-1) ** size if decay else 0.0
            rows += [{**who, "quantity": "val_loss", "value": 0.2 + away}]
            rows += [{**who, "quantity": "test_loss", "value": 0.2 + decay}]
    assert chosen(Results("full", [], [], rows)) == best  # without decay it would be nearer still
    assert chosen(Results("full", [], [], [])) is None
