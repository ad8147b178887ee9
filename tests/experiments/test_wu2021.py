"""Statistics at inference: averages against torch's own, the population against brute force, frozen ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.experiments.wu2021 import (
    BATCH,
    CUMULATIVE,
    FROZEN,
    POPULATION,
    SMALL,
    Averages,
    early,
    ema,
    ghost_batches,
    paper,
    places,
    population,
)
from bnrepro.norm.statistics import tracking_layers
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.train import trainer_of

SMOKE = paper.settings("smoke")


def test_presets_have_what_claims_are_about() -> None:
    for settings in map(paper.settings, paper.presets):
        path, ghost = settings.path, settings.ghost
        assert settings.enough in path.samples and {"ema 0.1", "ema 1"} <= set(map(ema, path.momenta))
        assert set(SMALL) <= set(ghost.sizes) and ghost.frozen_epochs <= ghost.epochs


def test_runs_are_the_first_epoch_of_what_is_measured() -> None:
    arms, probes = paper.designed(SMOKE).arms, paper.designed(SMOKE).probes
    assert [arm.config for arm in arms] == [probe.config for probe in probes]
    assert {arm.config.epochs for arm in arms} == {1}
    assert {arm.config.variant for arm in arms} == {"bn", "convbn", "ghostbn"}
    assert {arm.config.norm.ghost_size for arm in arms if arm.part == "ghost"} == {2, 4}


# --- measurements ---


def test_the_loop_trains_what_a_run_trains(tiny: Callable[..., Config]) -> None:
    cfg = tiny("schedule=cosine", "epochs=2")
    run = Run(train.run(cfg))
    trainer = trainer_of(cfg)
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
    assert layer.running_mean is not None and layer.running_var is not None
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)


def test_the_population_is_that_of_so_many_images(tiny: Callable[..., Config]) -> None:
    trainer = trainer_of(replace(tiny(), epochs=1))
    first = next(iter(tracking_layers(trainer.network).values()))
    population(trainer, None, size=len(trainer.data.train.labels))
    convolution = next(c for c in trainer.network.modules() if isinstance(c, nn.Conv2d))
    with torch.no_grad():
        inputs = convolution(trainer.data.normalize(trainer.data.train.images))
    assert first.running_mean is not None and first.running_var is not None
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, inputs.transpose(0, 1).flatten(1).var(1))
    whole = first.running_mean.clone()
    population(trainer, 100)
    assert not torch.allclose(first.running_mean, whole)


def test_places_are_dense_in_the_first_fifth() -> None:
    marks = places(100, 10)
    assert marks == [4, 8, 12, 16, 20, 36, 52, 68, 84, 100]
    assert places(3, 4) == [1, 2, 3]


def test_frozen_statistics_stay_and_only_what_is_after_the_fork_differs() -> None:
    cfg = load_config([*SMOKE.ghost.overrides, "variant=ghostbn", "norm.ghost_size=4", "epochs=1"])
    run = type("Run", (), {"config": cfg})()
    wanted = {"images": 50, "samples": 40, "size": 4}
    rows = ghost_batches.function(run=run, seed=0, epochs=1, frozen_epochs=1, **wanted)
    again = ghost_batches.function(run=run, seed=0, epochs=1, frozen_epochs=0, **wanted)
    values, others = ({(r["quantity"], r["x"]): r["value"] for r in found} for found in (rows, again))
    kinds = {"ema", POPULATION, BATCH, FROZEN}
    assert set(values) == {(split, kind) for split in ("test", "train") for kind in kinds}
    assert all(values[key] == others[key] for key in values if key[1] != FROZEN)
    assert others["test", FROZEN] == others["test", POPULATION]  # nothing is trained after freezing


def test_the_beginning_is_the_first_fifth_of_the_points() -> None:
    who = {"part": "path", "variant": "bn", "batch": "large", "seed": 0, "quantity": f"accuracy_{POPULATION}"}
    rows = [{**who, "x": step, "value": float(step)} for step in places(83, 8)]  # a fifth of 83 is no whole step
    assert early(Results("full", [], [], rows), POPULATION).levels("x") == [4, 8, 13, 17]
