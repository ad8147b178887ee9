"""Wu & He's and Ioffe's experiment: its arms, renorm over parts of the batch, and the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments import wu2018
from bnrepro.experiments.wu2018 import WORKERS, ghost_batches_regularize, over_parts, paper, usual_has_trained
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.variants import BatchRenorm
from bnrepro.training import train
from bnrepro.training.trainer import Trainer

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2 + 1


# --- design ---


@pytest.mark.parametrize("preset", paper.presets)
def test_presets_ask_for_sizes_that_are_there(preset: str) -> None:
    s = paper.settings(preset)
    assert (s.fewest, s.usual) == (min(s.images), max(s.images))
    assert set(s.renorm_images) <= set(s.images)
    assert all(WORKERS * s.usual % part == 0 for part in s.ghosts)


@pytest.mark.parametrize("preset", ["smoke", "full"])
def test_workers_share_a_batch_whose_rate_is_proportional_to_it(preset: str) -> None:
    s = paper.settings(preset)
    arms = [arm for arm in paper.designed(s).arms if arm.config.seed == 1]
    workers = {(a.factors["norm"], a.factors["images"]): a.config for a in arms if a.part == "workers"}
    assert set(workers) == {(norm, images) for norm in ("bn", "group") for images in s.images}
    for (norm, images), cfg in workers.items():
        assert cfg.batch_size == WORKERS * images
        assert cfg.optimizer.lr == pytest.approx(s.rate * images / s.usual)
        assert cfg.variant == ("ghostbn" if norm == "bn" else "groupnorm")
        if norm == "bn":
            assert cfg.norm.ghost_size == images
            assert cfg.norm.momentum is not None
            assert (1 - cfg.norm.momentum) ** WORKERS == pytest.approx(0.9)  # the parts together weigh 0.1
    alone = {a.factors["norm"]: a.config for a in arms if a.part == "alone"}
    assert {norm: cfg.variant for norm, cfg in alone.items()} == {"bn": "bn", "group": "groupnorm"}
    for cfg in alone.values():
        assert cfg.batch_size == s.alone
        assert cfg.optimizer.lr == pytest.approx(s.rate * s.alone / (WORKERS * s.usual))
        assert cfg.norm.momentum is not None
        batches = WORKERS * s.usual / s.alone  # of as many images as the usual one, which together weigh 0.1
        assert (1 - cfg.norm.momentum) ** batches == pytest.approx(0.9)
    others = [arm for arm in arms if arm.part not in ("workers", "alone")]
    assert {arm.config.batch_size for arm in others} == {WORKERS * s.usual}
    rates = {(a.part, a.factors.get("norm")): set[float]() for a in others}
    for arm in others:
        rates[arm.part, arm.factors.get("norm")].add(arm.config.optimizer.lr)
        if arm.part == "rates" and arm.factors["rate"] == s.rate:
            assert arm.config == workers[arm.factors["norm"], s.usual]
    assert rates == {
        **{("rates", norm): set(each) for norm, each in s.rates.items()},
        **{("plain", norm): {s.plain_rate} for norm in ("none", "lrn")},
        ("whole", "bn"): {s.rate},
        ("ghosts", None): {s.rate},
    }
    renorm = [p for p in paper.designed(s).probes if p.seed == 1]
    assert {p.factors["images"] for p in renorm} == set(s.renorm_images)
    for probe in renorm:
        cfg = load_config(probe.arguments["overrides"])
        assert cfg.batch_size == WORKERS * probe.factors["images"]
        assert cfg.optimizer == workers["bn", probe.factors["images"]].optimizer


# --- layers, and the loop ---


def test_renorm_over_parts_begins_as_ghost_bn_and_ends_near_the_running_statistics() -> None:
    x = normal(8, 3, 4, 5)
    layer = over_parts("renorm", 4, 0.1)(3, (4, 5))
    renorm = layer.get_submodule("norm")
    assert isinstance(renorm, BatchRenorm)
    assert layer.bias is not None
    renorm.start, renorm.r_steps, renorm.d_steps = 50, 100, 75
    ghost = NORMS["ghostbn"](3, (4, 5), options=NormOptions(momentum=0.1, ghost_size=4))
    torch.testing.assert_close(layer(x), ghost(x))
    assert int(layer.get_buffer("norm.num_batches_tracked")) == 2  # it counts parts
    for _ in range(60):
        layer(x)
    trained = layer(x).detach()
    torch.testing.assert_close(trained, layer.eval()(x), atol=0.02, rtol=0.02)  # r and d undo the parts' differences
    assert float((trained - ghost(x).detach()).abs().max()) > 0.05


def test_the_loop_is_a_runs_own_with_renorm_over_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With a schedule that never starts, renorm over parts is ghost BN, which a run can train.
    overrides = [*SMOKE.common, "batch_size=32", "data.crop=1", "device=cpu"]
    ghost = ["variant=ghostbn", "norm.ghost_size=4", f"norm.momentum={wu2018.momentum_of_part(0.1, 4, 32)}"]
    cfg = load_config([*overrides, *ghost, "tensorboard=false", f"root={tmp_path}"])
    run = train.Run(train.run(cfg))
    made: list[Trainer] = []
    monkeypatch.setattr(wu2018, "Trainer", lambda *given: made.append(Trainer(*given)) or made[-1])
    data = load(cfg.data, torch.device("cpu"))

    def trained(shares: list[float]) -> float:
        (found,) = wu2018.trained.function(data, 0, [*overrides, "variant=renorm", "norm.momentum=0.1"], 4, shares)
        assert found["quantity"] == "test_accuracy"
        return float(found["value"])

    # Both add in another order, by which one of the thousand test images can turn on some processors.
    assert trained([2.0, 3.0, 3.0]) == pytest.approx(100 * run.summary["test_accuracy"], abs=0.1 + 1e-6)
    stored = torch.load(run.path / "checkpoint.pt", weights_only=True)["network"]
    shared = {name: weight for name, weight in made[-1].network.named_parameters() if name in stored}
    assert len(shared) >= 8
    for name, weight in shared.items():
        assert torch.linalg.norm(weight - stored[name]) <= 1e-3 * torch.linalg.norm(stored[name]), name
    trained([0.25, 1.0, 0.5])
    layers = [layer for layer in made[-1].network.modules() if isinstance(layer, BatchRenorm)]
    parts = 8 * made[-1].steps  # 8 of 4 images in a batch of 32
    assert len(layers) == 7
    assert {(each.start, each.r_steps, each.d_steps) for each in layers} == {(parts // 4, parts, parts // 2)}


# --- claims ---


def runs(part: str, by_images: dict[int, tuple[float, float]], **factors: Any) -> list[dict[str, Any]]:
    who = {"part": part, "status": "completed", **factors}
    return [
        {**who, "images": images, "seed": seed, "test_accuracy": test, "val_accuracy": val}
        for images, (test, val) in by_images.items()
        for seed in range(2)
    ]


def test_ghost_batches_are_chosen_on_validation_data() -> None:
    rows = runs("ghosts", {8: (0.75, 0.6), 16: (0.72, 0.8)})
    rows += [{**row, "norm": "bn"} for row in runs("whole", {0: (0.70, 0.9)})]
    for row in rows[-2:]:
        del row["images"]
    (effect,) = ghost_batches_regularize(Results("full", rows, [], []), SETTINGS).effects
    assert effect.condition == "ghost batches of 16"
    assert effect.interval.mean == pytest.approx(2.0)


@pytest.mark.parametrize(("accuracy", "passed"), [(0.81, True), (0.79, False)])
def test_nothing_is_judged_of_networks_that_have_not_trained(accuracy: float, passed: bool) -> None:
    rows = runs("workers", {SETTINGS.usual: (accuracy, 0.5), 2: (0.1, 0.1)}, norm="bn")
    gate = usual_has_trained(Results("full", rows, [], []), SETTINGS)
    assert gate.passed is passed
    assert gate.value == pytest.approx(100 * accuracy)


def at_rates(norm: str, found: dict[float, tuple[float, float]]) -> list[dict[str, Any]]:
    """Runs of a norm by the rate, with test and validation accuracy."""
    return [row | {"rate": row.pop("images")} for row in runs("rates", found, norm=norm)]


def test_norms_are_compared_each_at_the_rate_that_is_best_on_validation_data() -> None:
    bn = at_rates("bn", {0.2: (0.83, 0.81), 0.4: (0.84, 0.85), 0.8: (0.99, 0.80)})
    group = at_rates("group", {0.05: (0.70, 0.7), 0.1: (0.79, 0.8), 0.2: (0.95, 0.79), 0.4: (0.73, 0.7)})
    (effect,) = wu2018.group_norm_is_worse_on_cifar(Results("full", bn + group, [], []), SETTINGS).effects
    assert effect.interval.mean == pytest.approx(5.0)
    (effect,) = wu2018.group_norm_is_as_good_at_the_usual_batch(Results("full", bn + group, [], []), SETTINGS).effects
    assert effect.interval.mean == pytest.approx(-5.0)
    edge = at_rates("group", {0.05: (0.8, 0.9), 0.1: (0.79, 0.8), 0.2: (0.95, 0.79), 0.4: (0.73, 0.7)})
    evidence = wu2018.group_norm_is_worse_on_cifar(Results("full", bn + edge, [], []), SETTINGS)
    assert evidence.reason == "The best rate of group norm lies on the sweep's edge"
