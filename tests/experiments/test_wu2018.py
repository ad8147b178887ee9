"""Wu & He's and Ioffe's experiment: its arms, layers over parts of the batch, runs of one class, and the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.data.dataset import derive_seed, epoch_plan
from bnrepro.experiments import wu2018
from bnrepro.experiments.wu2018 import accuracies, ghost_batches_regularize, over_parts, paper
from bnrepro.norm import NORMS, ConvBatchNorm2d, NormOptions
from bnrepro.norm.variants import BatchRenorm
from bnrepro.runs import record
from bnrepro.training import train

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2 + 1


# --- design ---


@pytest.mark.parametrize("preset", paper.presets)
def test_presets_ask_for_sizes_that_are_there(preset: str) -> None:
    s = paper.settings(preset)
    assert s.fewest == min(s.images)
    assert s.microbatch in s.few_images and set(s.few_images) <= set(s.images)
    assert s.batch % s.classes == 0 and all(s.batch % images == 0 for images in s.images)


def test_arms_differ_in_the_norm_and_its_part_alone() -> None:
    got = {(a.factors["norm"], a.factors["images"]): a.config for a in paper.designed(SMOKE).arms if a.config.seed == 1}
    assert set(got) == {("bn", 32), ("group", 32), ("none", 32), ("lrn", 32), ("bn", 2), ("bn", 4)}
    for (norm, images), cfg in got.items():
        assert cfg.batch_size == 32 and cfg.optimizer.lr == got["bn", 32].optimizer.lr
        if norm == "bn" and images < 32:
            assert (cfg.variant, cfg.norm.ghost_size) == ("ghostbn", images)
            assert cfg.norm.momentum is not None
            assert (1 - cfg.norm.momentum) ** (32 / images) == pytest.approx(0.9)  # parts together weigh 0.1
    probes = [p for p in paper.designed(SMOKE).probes if p.seed == 1]
    assert all(p.config == got["bn", 32] for p in probes)
    parts = {(p.factors["norm"], p.factors["images"]) for p in probes if p.part == "parts"}
    assert parts == {(norm, images) for norm in ("local", "renorm") for images in (4, 32)}
    composed = {(p.factors["norm"], p.factors["classes"]) for p in probes if p.part == "sorted"}
    assert composed == {(norm, classes) for norm in ("bn", "renorm", "group") for classes in (0, 2)}


# --- layers ---


def test_parts_of_local_statistics_are_the_layers_of_each_part() -> None:
    x = normal(8, 3, 4, 5)
    layer = over_parts("convbn", 4, 0.2)(3, (4, 5))
    alone = ConvBatchNorm2d(3, (4, 5), momentum=0.2)
    expected = torch.cat([alone(x[:4]), alone(x[4:])])
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.get_buffer("norm.running_var"), alone.get_buffer("running_var"))
    torch.testing.assert_close(layer.eval()(x), alone.eval()(x))
    assert layer.bias is not None  # by which the network knows that the layer before needs none
    linear = over_parts("convbn", 4, 0.2)(3, ())
    ghost = NORMS["ghostbn"](3, (), options=NormOptions(eps=1e-3, momentum=0.2, ghost_size=4))
    torch.testing.assert_close(linear(x[:, :, 0, 0]), ghost(x[:, :, 0, 0]))


def test_renorm_over_parts_begins_as_ghost_bn_and_ends_near_the_running_statistics() -> None:
    x = normal(8, 3, 4, 5)
    layer = over_parts("renorm", 4, 0.1)(3, (4, 5))
    renorm = layer.get_submodule("norm")
    assert isinstance(renorm, BatchRenorm)
    renorm.start, renorm.r_steps, renorm.d_steps = 50, 100, 75
    ghost = NORMS["ghostbn"](3, (4, 5), options=NormOptions(momentum=0.1, ghost_size=4))
    torch.testing.assert_close(layer(x), ghost(x))
    assert int(layer.get_buffer("norm.num_batches_tracked")) == 2  # it counts parts
    for _ in range(60):
        layer(x)
    trained = layer(x).detach()
    torch.testing.assert_close(trained, layer.eval()(x), atol=0.02, rtol=0.02)  # r and d undo the parts' differences
    assert float((trained - ghost(x).detach()).abs().max()) > 0.05


# --- batches of few classes, and the loop ---


def test_runs_of_one_class_hold_each_image_once() -> None:
    labels = torch.randint(0, 10, (403,), generator=torch.Generator().manual_seed(1))
    order = wu2018.in_runs(labels, 16, 2)
    assert torch.equal(order.sort().values, torch.arange(403))
    whole = int((labels.bincount() // 16).sum())
    runs = labels[order[: whole * 16]].view(-1, 16)
    assert (runs == runs[:, :1]).all()
    assert (runs[:, 0].diff() < 0).any()  # in no order of classes
    rest = labels[order[whole * 16 :]]
    assert (rest.diff() >= 0).all() and rest.bincount().max() < 16


def test_epochs_without_runs_are_the_runs_own() -> None:
    cfg = load_config(SMOKE.common)
    labels = torch.arange(400) % 10
    order = wu2018.in_runs(labels, 0, derive_seed(cfg.seed, "order", 3))
    assert torch.equal(order, epoch_plan(400, cfg.data, cfg.seed, 3).order)


def test_the_loop_is_the_runs_own_where_nothing_differs(tmp_path: Path) -> None:
    cfg = load_config([*SMOKE.common, "variant=bn", "epochs=1", "tensorboard=false", f"root={tmp_path}"])
    run = record.Run(train.run(cfg))

    def trained(classes: int) -> dict[str, float]:
        rows = wu2018.trained.function(run, 0, "bn", 32, classes, 0.1, SMOKE.renorm_shares)
        return {row["quantity"]: row["value"] for row in rows}

    found, apart = trained(0), trained(2)
    assert found == {"test_accuracy": pytest.approx(100 * run.summary["test_accuracy"], abs=1e-6)}
    assert 0 <= apart["batch_accuracy"] <= 100 and apart["test_accuracy"] != found["test_accuracy"]


def test_renorms_schedule_is_of_the_trainings_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made, trainer_of = [], train.trainer_of

    def kept(*arguments: Any, **options: Any) -> train.Trainer:
        made.append(trainer_of(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(train, "trainer_of", kept)
    run = type("Run", (), {"config": load_config([*SMOKE.common, "variant=bn", "epochs=1"])})()
    wu2018.trained.function(run, 0, "renorm", 4, 0, 0.1, [0.25, 1.0, 0.5])
    layers = [layer for layer in made[0].network.modules() if isinstance(layer, BatchRenorm)]
    parts = 8 * made[0].steps  # 8 of 4 images in a batch of 32
    assert len(layers) == 4
    assert {(each.start, each.r_steps, each.d_steps) for each in layers} == {(parts // 4, parts, parts // 2)}


# --- claims ---


def test_ghost_batches_are_chosen_on_validation_data_among_the_smaller_ones() -> None:
    whole, few = SETTINGS.batch, 16
    test, val = {whole: 0.70, 8: 0.75, few: 0.72}, {whole: 0.9, 8: 0.6, few: 0.8}
    who = {"part": "parts", "norm": "bn", "status": "completed"}
    rows = [
        {**who, "images": images, "seed": seed, "test_accuracy": test[images], "val_accuracy": val[images]}
        for images in (whole, 8, few)
        for seed in range(2)
    ]
    results = Results("full", rows, [], [])
    assert accuracies(results).levels("images") == [8, few, whole]  # in order, as lines are drawn
    (effect,) = ghost_batches_regularize(results, SETTINGS).effects
    assert effect.condition == f"ghost batches of {few}" and effect.interval.mean == pytest.approx(2.0)
