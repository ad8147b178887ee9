"""labml's page: toys against closed forms, networks as the source says, and what its measurements find in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from bnrepro.claims import Results
from bnrepro.config.schema import Config
from bnrepro.experiments.labml import (
    GAUSSIAN_SHARE,
    exponent,
    have_trained,
    it_improves_generalization,
    it_improves_generalization_on_photographs,
    it_regularizes,
    paper,
)
from bnrepro.experiments.labml.measurements import (
    cancellation,
    cancelled_bias,
    outside,
    outside_network,
    scaled_weights,
    sigmoid_inputs,
    statistics,
)
from bnrepro.runs.record import Run
from bnrepro.training import train

SETTINGS = paper.settings("full")


def values(rows: list[dict[str, Any]], quantity: str) -> dict[Any, float]:
    return {row["x"]: row["value"] for row in rows if row["quantity"] == quantity}


# --- toys ---


def test_detached_mean_moves_the_bias_by_the_same_amount_each_step() -> None:
    rows = outside.function(3, "mean", True, 40, 0.1, 1)
    b, loss = (list(values(rows, q).values()) for q in ("parameter", "loss"))
    assert b[1] > 0.1  # lr times the mean of the targets, which are about 1.5
    assert b == pytest.approx([b[1] * step for step in range(41)], rel=1e-12)
    assert loss == pytest.approx([loss[0]] * 41, rel=1e-12)
    assert exponent(b, 1) == pytest.approx(1)


def test_detached_deviation_moves_the_factor_by_gradient_over_factor() -> None:
    w = list(values(outside.function(3, "variance", True, 40, 0.1, 1), "parameter").values())
    force = w[1] - w[0]
    for before, after in pairwise(w):
        assert after - before == pytest.approx(force / before, rel=1e-10)
    assert exponent(w, 2) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("statistic", "start"), [("mean", 0.0), ("variance", 1.0)])
def test_attached_statistics_move_nothing(statistic: str, start: float) -> None:
    rows = outside.function(3, statistic, False, 40, 0.1, 1)
    assert list(values(rows, "parameter").values()) == pytest.approx([start] * 41, abs=1e-12)


def test_bias_is_cancelled() -> None:
    assert max(row["value"] for row in cancelled_bias.function(0, 20)) < 1e-12


def test_gradient_by_scaled_weights_is_one_over_the_scale() -> None:
    rows = scaled_weights.function(0, 0.0, [0.1, 1.0, 10.0])
    for quantity in ("output", "du", "dw_times_a"):
        assert max(values(rows, quantity).values()) < 1e-12
    assert values(rows, "dw") == pytest.approx({0.1: 9.0, 1.0: 0.0, 10.0: 0.9}, abs=1e-9)


def test_eps_breaks_the_invariance() -> None:
    """At a = 0.1 the variance of 0.002 becomes 2e-5: beside eps = 1e-3 hardly anything of the output is left."""
    rows = scaled_weights.function(0, 1e-3, [0.1, 10.0])
    v = 20 * 0.01**2
    for a in (0.1, 10.0):
        ratio = a * math.sqrt((v + 1e-3) / (a * a * v + 1e-3))
        assert values(rows, "output")[a] == pytest.approx(abs(ratio - 1), abs=0.12)  # a sample of 8 x 20 weights


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (3000.0, 1.0), (300.0, 0.1)])
def test_two_passes_are_right_where_one_is_not(mean: float, std: float) -> None:
    rows = cancellation.function(0, mean, std, 100)
    error, nan = values(rows, "error"), values(rows, "nan")
    assert error["ours"] < 1e-5
    assert error["torch"] < 1e-2
    assert (error["E[x²] - E[x]²"] > 0.1) == (mean > 0)
    assert (nan["E[x²] - E[x]²"] > 0) == (mean > 0)
    assert nan["ours"] == 0


def test_share_of_a_normal_distribution() -> None:
    assert pytest.approx(68.27, abs=1e-2) == GAUSSIAN_SHARE


# --- runs ---


@pytest.mark.parametrize("preset", paper.presets)
def test_runs_are_the_sources(preset: str) -> None:
    chosen = paper.settings(preset)
    arms = paper.designed(chosen).arms
    for arm in arms:
        cfg = arm.config
        assert (cfg.optimizer.name, cfg.batch_size, cfg.variant) == ("adam", 64, arm.factors["variant"])
        assert cfg.model.keep_bias == arm.factors.get("keep_bias", False)
        of_cifar = cfg.data.name == "cifar10"
        assert (cfg.data.crop, cfg.data.flip) == ((4, True) if of_cifar else (0, False))
        assert cfg.optimizer.lr == arm.factors.get("rate", 1e-3)
    runs = [arm.config for arm in arms]
    assert all(probe.config in runs for probe in paper.designed(chosen).probes if probe.config)


def test_full_is_the_sources_mnist_network_and_its_rate_is_in_the_sweep_of_the_other() -> None:
    configs: dict[str, list[Config]] = {}
    for arm in paper.designed(SETTINGS).arms:
        configs.setdefault(arm.factors.get("network", arm.part), []).append(arm.config)
    kinds = {(c.data.name, c.model.name, c.model.width, c.epochs, c.optimizer.lr) for c in configs["MNIST"]}
    assert kinds == {("mnist", "labml_cnn", 1.0, 10, 1e-3)}
    assert {c.data.val_fraction for c in configs["6,000 digits"]} == {0.9}
    assert min(c.optimizer.lr for c in configs["CIFAR-10"]) == 2.5e-4
    few = [c for c in configs["6,000 digits"] if c.variant == "bn"]
    assert all(each in configs["outside"] for each in few)  # and so are trained once


# --- what is read from the records ---


def swept(plain: tuple[float, ...], normed: tuple[float, ...]) -> Results:
    """Runs of each network without and with BN, with these validation accuracies at CIFAR-10's rates."""
    rows = []
    for variant, of_cifar in (("nobn", plain), ("bn", normed)):
        for network, part in SETTINGS.networks.items():
            for place, rate in enumerate(part.rates):
                value = of_cifar[place] if len(part.rates) > 1 else 0.9
                who = {"part": "networks", "network": network, "variant": variant, "rate": rate}
                accuracies = {"val_accuracy": value, "test_accuracy": value - 0.1}
                rows += [{**who, "seed": seed, "status": "completed", **accuracies} for seed in range(2)]
    return Results("full", rows, [], [])


def test_each_arm_has_its_best_rate_of_the_validation_data() -> None:
    records = swept((0.3, 0.7, 0.2, 0.1), (0.3, 0.7, 0.8, 0.1))
    (found,) = it_improves_generalization_on_photographs(records, SETTINGS).effects
    assert (found.interval.mean, found.rule.margin) == (pytest.approx(10.0), 0.5)
    on_digits = {e.condition: e.rule.margin for e in it_improves_generalization(records, SETTINGS).effects}
    assert on_digits == {"MNIST": 0.2, "6,000 digits": 0.2}
    at_edge = swept((0.8, 0.7, 0.2, 0.1), (0.3, 0.7, 0.8, 0.1))
    assert it_improves_generalization(at_edge, SETTINGS).effects
    untested = it_improves_generalization_on_photographs(at_edge, SETTINGS)
    assert not untested.effects
    assert "CIFAR-10, no BN" in untested.reason
    gate = have_trained("nobn", "bn")(swept((0.3, 0.7, 0.2, 0.1), (0.3, 0.7, 0.8, 0.1)), SETTINGS)
    assert gate.passed is False  # 80% of MNIST


def test_regularization_asks_for_the_gap_and_for_the_test_accuracy() -> None:
    results = swept((0.3, 0.7, 0.2, 0.1), (0.3, 0.7, 0.8, 0.1))
    fitted = [
        {"part": "networks", "network": row["network"], "variant": row["variant"], "rate": row["rate"]}
        | {"seed": row["seed"], "quantity": "train_accuracy", "value": 0.9 if row["variant"] == "bn" else 1.0}
        for row in results.runs
    ]
    found = it_regularizes(Results("full", results.runs, [], fitted), SETTINGS).effects
    means = {effect.condition: effect.interval.mean for effect in found}
    assert means == {
        "MNIST": pytest.approx(10.0),
        "MNIST, test accuracy": pytest.approx(0.0),
        "6,000 digits": pytest.approx(10.0),
        "6,000 digits, test accuracy": pytest.approx(0.0),
    }


# --- runs and their networks ---


def trained(tiny: Callable[..., Config], *overrides: str) -> Run:
    return Run(train.run(tiny("model.width=0.5", *overrides)))


def test_statistics_of_a_network_at_inference(tiny: Callable[..., Config]) -> None:
    run = trained(tiny, "variant=bn")
    rows = statistics.function(run, seed=0, parts=[1, 9])  # 540 images are 9 batches of 60
    accuracy, parts = values(rows, "accuracy"), values(rows, "part_accuracy")
    assert list(accuracy) == ["ema", "population", "batch"]
    assert accuracy["ema"] == pytest.approx(100 * run.summary["test_accuracy"])
    assert parts[9] == accuracy["population"]  # the whole epoch


def test_norm_of_cancelled_biases(tiny: Callable[..., Config]) -> None:
    plain = outside_network.function(trained(tiny, "variant=bn"), seed=0)
    kept = outside_network.function(trained(tiny, "variant=detached", "model.keep_bias=true"), seed=0)
    assert values(plain, "bias_norm")[None] == 0
    assert values(kept, "bias_norm")[None] > 0.01
    assert values(plain, "weight_norm")[None] > 1


def test_sigmoid_inputs_before_and_after_training(tiny: Callable[..., Config]) -> None:
    run = trained(tiny, "variant=bn", "model=paper_mlp", "optimizer.lr=0.02")
    rows = sigmoid_inputs.function(run, seed=0)
    start, end = values(rows, "input_start"), values(rows, "input_end")
    assert list(start) == list(end) == ["norm1", "norm2", "norm3"]
    assert start == values(rows, "normalised_start")
    assert start == pytest.approx(dict.fromkeys(start, 68.3), abs=8)
    assert end != values(rows, "normalised_end")
    density = values(rows, "density_start")
    assert 0.25 * sum(density.values()) == pytest.approx(1, abs=0.01)
    assert max(density, key=lambda x: density[x]) == pytest.approx(0, abs=0.6)
