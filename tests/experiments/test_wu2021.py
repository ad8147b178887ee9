"""Statistics at inference: averages against torch's own, the population against brute force, frozen ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import load
from bnrepro.experiments.wu2021 import (
    BATCH,
    CUMULATIVE,
    FROZEN,
    POPULATION,
    Averages,
    early,
    ema,
    ghost_batches,
    paper,
    places,
    population,
    trainer_of,
)
from bnrepro.norm.statistics import tracking_layers
from bnrepro.runs.record import Run
from bnrepro.training import train

FULL, SMOKE = paper.settings("full"), paper.settings("smoke")


def test_presets_have_what_claims_are_about() -> None:
    for settings in map(paper.settings, paper.presets):
        assert set(settings.suffice) <= set(settings.samples)
        assert {0.1, 1.0} <= set(settings.momenta)
        assert settings.sizes == [2, 4]
        assert settings.frozen_epochs < settings.ghost_epochs
    assert FULL.frozen_epochs / FULL.ghost_epochs == 20 / 100  # the source's share


def test_networks_differ_in_the_batch_or_the_ghost_batch_alone() -> None:
    probes = [probe for probe in paper.designed(FULL).probes if probe.seed == 0]
    configs = [load_config(probe.arguments["overrides"]) for probe in probes]
    assert [(c.variant, c.batch_size, c.optimizer.lr, c.norm.ghost_size) for c in configs] == [
        ("bn", 256, 0.4, None),
        ("bn", 1024, 1.6, None),
        ("ghostbn", 256, 0.2, 2),
        ("ghostbn", 256, 0.2, 4),
    ]
    assert all(probe.data and probe.data.name == "cifar10" for probe in probes)


# --- measurements ---


def test_the_loop_trains_what_a_run_trains(tiny: Callable[..., Config]) -> None:
    cfg = tiny("schedule=cosine", "epochs=2")
    run = Run(train.run(cfg))
    trainer = train.trainer_of(cfg)
    for batch in trainer.batches():
        trainer.update(batch.x, batch.y, batch.lr)
    assert trainer.measure(trainer.data.test) == (run.summary["test_loss"], run.summary["test_accuracy"])


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5, 1.0, None])
def test_averages_are_those_of_a_layer_with_that_momentum(momentum: float | None) -> None:
    torch.manual_seed(0)
    layer, reference = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=momentum)
    averages = Averages(tracking_layers(nn.Sequential(layer)), [0.01, 0.1, 0.5, 1.0])
    for _ in range(7):
        x = 2 + 3 * torch.randn(5, 3)
        layer(x), reference(x)
        averages.update()
    averages.put(CUMULATIVE if momentum is None else ema(momentum))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)


def test_the_population_is_that_of_so_many_images(tiny: Callable[..., Config]) -> None:
    trainer = train.trainer_of(replace(tiny(), epochs=1))
    first = next(iter(tracking_layers(trainer.network).values()))
    population(trainer, None, size=len(trainer.data.train.labels))
    convolution = next(c for c in trainer.network.modules() if isinstance(c, nn.Conv2d))
    with torch.no_grad():
        inputs = convolution(trainer.data.normalize(trainer.data.train.images))
    assert first.running_mean is not None
    assert first.running_var is not None
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, inputs.transpose(0, 1).flatten(1).var(1))
    whole = first.running_mean.clone()
    population(trainer, 100)
    assert not torch.allclose(first.running_mean, whole)


def test_a_trainer_is_that_of_a_run() -> None:
    overrides = [*SMOKE.common, *SMOKE.batches["usual"], "epochs=1"]
    cfg = load_config([*overrides, "seed=3", "device=cpu"])
    ours, other = trainer_of(load(cfg.data, torch.device("cpu")), overrides, seed=3), train.trainer_of(cfg)
    assert train.resolve(ours.cfg) == other.cfg
    for mine, theirs in zip(ours.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_places_are_dense_in_the_first_fifth() -> None:
    assert places(344, 8, 44) == [44, 52, 61, 69, 138, 206, 275, 344]
    assert places(100, 4, 44) == [20, 60, 100]  # nothing is settled in the first fifth but its end
    assert places(3, 4, 1) == [1, 2, 3]


def test_frozen_statistics_stay_and_only_what_is_after_the_fork_differs() -> None:
    overrides = [*SMOKE.common, *SMOKE.on_parts, "norm.ghost_size=4", "epochs=1"]
    data = load(load_config(overrides).data, torch.device("cpu"))
    wanted = {"data": data, "seed": 0, "overrides": overrides, "images": 50, "samples": 40}
    rows = ghost_batches.function(frozen_epochs=1, **wanted)
    again = ghost_batches.function(frozen_epochs=0, **wanted)
    values, others = ({(r["quantity"], r["x"]): r["value"] for r in found} for found in (rows, again))
    assert set(values) == {(split, kind) for split in ("test", "train") for kind in (POPULATION, BATCH, FROZEN)}
    assert all(values[key] == others[key] for key in values if key[1] != FROZEN)
    assert others["test", FROZEN] == others["test", POPULATION]  # nothing is trained after freezing


# --- claims ---


def test_the_beginning_is_the_first_fifth_of_each_training() -> None:
    rows = [
        {"part": "path", "batch": batch, "seed": 0, "quantity": f"accuracy_{POPULATION}", "x": step, "value": 1.0}
        for batch, steps in (("usual", 1400), ("large", 83))  # a fifth of 83 is no whole step
        for step in places(steps, 8, 4)
    ]
    found = early(Results("full", [], [], rows), POPULATION)
    assert {batch: of.levels("x")[-1] for batch, of in found.by("batch").items()} == {"usual": 280, "large": 17}


def made_up(ends: float, averages: float) -> Results:
    """Five seeds of a training whose population ends at one accuracy and whose moving averages at another."""
    kinds = {POPULATION: ends} | {ema(momentum): averages for momentum in FULL.momenta}
    rows = [
        {"part": "path", "batch": batch, "seed": seed, "quantity": f"final_{kind}", "x": None, "value": value + seed}
        for batch in FULL.batches
        for seed in range(FULL.looks[0])
        for kind, value in kinds.items()
    ]
    return Results("full", [], [], rows)


@pytest.mark.parametrize(
    ("ends", "averages", "verdict"),
    [
        (85, 85, Verdict.reproduced),
        (85, 86, Verdict.not_reproduced),
        (60, 60, Verdict.too_short),
    ],
)
def test_w1_is_judged_where_networks_have_trained(ends: float, averages: float, verdict: Verdict) -> None:
    found = {each.claim.id: each for each in judged(paper, made_up(ends, averages), FULL)}
    assert found["W1"].verdict is verdict
