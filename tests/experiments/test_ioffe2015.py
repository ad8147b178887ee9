"""Ioffe & Szegedy's experiment: the paper's arms, what is trained and measured, closed forms."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnrepro.claims import Results, Values
from bnrepro.config import command, load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import load
from bnrepro.errors import UserError
from bnrepro.experiments.ioffe2015 import levelled_off, measurements, paper, shown
from bnrepro.experiments.ioffe2015.measurements import ARMS, at, best, chosen, random_share, spectra
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.model import Network, build, norm_of
from bnrepro.training.train import trainer_of

FULL, SMOKE = paper.settings("full"), paper.settings("smoke")
Rows = list[dict[str, Any]]
watch, race = measurements.train_and_watch.function, measurements.race.function


def values(rows: Rows, quantity: str) -> dict[Any, float]:
    return {row["x"]: row["value"] for row in rows if row["quantity"] == quantity}


# --- what is trained ---


@pytest.mark.parametrize("preset", paper.presets)
def test_what_chooses_is_found_from_a_run_that_does_not_diverge(preset: str) -> None:
    s = paper.settings(preset)
    runs = [arm.config for arm in paper.designed(s).arms]
    probes = [probe for probe in paper.designed(s).probes if probe.config]
    assert all(probe.config in runs for probe in probes)
    assert {p.config.optimizer.lr for p in probes if p.config and p.part == "speed"} == {min(s.speed.rates)}
    assert s.figure1.rate in s.figure1.rates
    assert s.dropout_amounts[0] == 0
    assert s.dropout_amounts[-1] == 0.4
    assert 0 in s.scale_eps
    assert s.choosing_seeds <= s.seeds


def test_figure_1_in_full_is_the_papers() -> None:
    assert FULL.figure1.steps == 50_000
    probes = [probe for probe in paper.designed(FULL).probes if probe.part == "figure1"]
    assert len(probes) == len(FULL.figure1.rates) * 2 * FULL.seeds
    for probe in probes:
        cfg = load_config([*FULL.figure1.data, *probe.arguments["network"]])
        assert (cfg.data.name, cfg.data.binarize, cfg.batch_size) == ("mnist", True, 60)
        assert (cfg.optimizer.name, cfg.optimizer.momentum, cfg.schedule.name) == ("sgd", 0, "constant")
        assert (cfg.model.init, cfg.variant) == ("gaussian", probe.factors["variant"])
        assert cfg.optimizer.lr == probe.factors["rate"]
        net = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator())
        norm = nn.BatchNorm1d if cfg.variant == "bn" else nn.Identity
        leaves = [m for m in net.modules() if not list(m.children())]
        kinds: list[type[nn.Module]] = [nn.Flatten, *[nn.Linear, norm, nn.Sigmoid] * 3, nn.Linear]
        assert [type(m) for m in leaves] == kinds
        assert [m.out_features for m in leaves if isinstance(m, nn.Linear)] == [100, 100, 100, 10]


def test_arms_of_the_race_have_the_papers_multiples() -> None:
    assert {arm: ARMS[arm][1] for arm in shown.REPORTED} == {
        "Baseline": 1,
        "BN-Baseline": 1,
        "BN-x5": 5,
        "BN-x30": 30,
        "BN-x5-Sigmoid": 5,
    }
    assert {variant for arm, (variant, _, _) in ARMS.items() if arm.startswith(("Base", "no"))} == {"nobn"}
    assert [arm for arm, (_, _, activation) in ARMS.items() if activation == "sigmoid"] == [
        "BN-x5-Sigmoid",
        "no BN, sigmoid",
    ]


def test_only_the_batches_differ_where_shuffling_is_the_question() -> None:
    made = paper.designed(SMOKE).arms
    fixed, anew = (
        [a.config for a in made if a.part == "shuffle" and a.factors["fixed"] is kept] for kept in (True, False)
    )
    assert [replace(c, data=replace(c.data, together=0)) for c in fixed] == anew
    assert {c.data.together for c in fixed} == {fixed[0].batch_size}
    dropped = [a for a in made if a.part == "dropout"]
    assert all(a.config.model.dropout == a.factors["amount"] for a in dropped)
    assert {a.config.model.dropout_position.value for a in dropped} == {"last"}


# --- choosing, Figure 1, the race ---


def test_the_best_mean_is_chosen_and_of_equals_the_first() -> None:
    assert best({(0.1, 1.0): [0.9, 0.7], (1.0, 1.0): [0.85, 0.8], (2.0, 1.0): [0.99, 0.0]}) == (1.0, 1.0)
    assert best({(0.1, 1.0): [0.5], (1.0, 1.0): [0.5]}) == (0.1, 1.0)


@pytest.fixture
def sigmoids(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """A small version of Figure 1's network."""

    def make(*overrides: str) -> Config:
        mlp = ["model=paper_mlp", "model.init=gaussian", "model.init_std=0.1", "data.binarize=true"]
        return tiny(*mlp, "optimizer=sgd", "optimizer.momentum=0", "model.width=0.2", *overrides)

    return make


def test_the_baseline_is_chosen_by_its_validation_accuracy(sigmoids: Callable[..., Config]) -> None:
    cfg = sigmoids("variant=bn")
    cells = [[1e-4, 0.1], [1.0, 0.1]]
    runs = [Run(train.run(at(cfg, (lr, std), 0))) for lr, std in cells]
    right = [run.summary["val_accuracy"] for run in runs]
    winner = runs[right.index(max(right))]
    first, rate = runs[0], winner.config.optimizer.lr
    assert chosen(first, cells, 1) == chosen(runs[1], cells, 1) == (rate, 0.1)
    with pytest.raises(UserError, match="seed 1 did not finish"):
        chosen(first, cells, 2)


def test_networks_of_figure_1_are_trained_as_a_run_would(sigmoids: Callable[..., Config]) -> None:
    cfg = sigmoids("variant=bn", "optimizer.lr=1")
    run = Run(train.run(cfg))
    data, steps, network = load(cfg.data, torch.device("cpu")), int(run.summary["steps"]), shlex.split(command(cfg))[2:]
    rows = watch(data, 0, network, steps, 4, 10, 50, 3)
    accuracy = values(rows, "test_accuracy")
    assert list(accuracy) == [0, 2, 4, 10, steps]
    assert list(values(rows, "p15")) == [0, 10, steps]
    assert accuracy[steps] == pytest.approx(100 * run.summary["test_accuracy"], abs=1e-9)
    # Another seed is another network; the drift is that of the percentiles that are reported.
    assert values(watch(data, 1, network, 7, 7, 7, 50, 3), "p50") != values(rows, "p50")
    paths = [np.std(list(values(rows, q).values())) for q in ("p15", "p50", "p85")]
    assert values(rows, "drift")[0] == pytest.approx(np.mean(paths), rel=1e-9)
    width = [(b - a) / 2 for a, b in zip(*(values(rows, q).values() for q in ("p15", "p85")), strict=True)]
    assert values(rows, "width")[0] == pytest.approx(np.mean(width), rel=1e-9)
    assert len(values(rows, "drift")) == 20


def test_what_enters_the_last_sigmoids(sigmoids: Callable[..., Config]) -> None:
    trainer = trainer_of(sigmoids("variant=nobn"))
    x = trainer.data.normalize(trainer.data.val.images[:40])
    y = x.flatten(1).double()
    linear = [m.double() for m in trainer.network.modules() if isinstance(m, nn.Linear)]
    for layer in linear[:2]:
        y = layer(y).sigmoid()
    want = np.percentile(linear[2](y).detach().numpy(), [15, 50, 85], axis=0)
    for layer in linear:
        layer.float()
    np.testing.assert_allclose(measurements._percentiles(trainer.network, x).numpy(), want, atol=1e-5)
    normed = trainer_of(sigmoids("variant=bn"))
    inside = measurements._percentiles(normed.network, x)
    assert inside[0].max() < -0.5 < 0.5 < inside[2].min()  # one standard deviation to each side, by the batch's own
    assert normed.network.norms["norm3"].get_buffer("num_batches_tracked") == 0


def test_race_has_its_multiple_of_the_rate_and_says_where_it_diverged(tiny: Callable[..., Config]) -> None:
    cfg = tiny("variant=nobn", "optimizer=sgd", "epochs=1", "optimizer.lr=0.1", "model.init_std=0.01")
    run = Run(train.run(cfg))
    steps = int(run.summary["steps"])
    rows = race(run, 0, "Baseline", [[0.1, 0.01]], 1, steps, 5)
    assert list(values(rows, "val_accuracy")) == [5, steps]
    assert values(rows, "test_accuracy")[None] == pytest.approx(100 * run.summary["test_accuracy"], abs=1e-9)
    fit = values(measurements.fit.function(run=run, seed=0), "test_accuracy")
    assert 100 * fit[None] == pytest.approx(values(rows, "test_accuracy")[None], abs=1e-9)
    assert values(race(run, 0, "BN-x5", [[0.1, 0.01]], 1, 2, 1), "rate") == {None: 0.5}
    hot = Run(train.run(at(cfg, (1e4, 0.01), 0)))
    assert hot.status == "diverged"
    rows = race(hot, 0, "no BN, x30", [[1e4, 0.01]], 1, 60, 1)
    assert not values(rows, "test_accuracy")
    assert 1 <= values(rows, "diverged")[None] < 60


# --- singular values ---


def mlp(variant: str) -> Network:
    cfg = load_config(["model=paper_mlp", "model.width=0.09", f"variant={variant}"])
    return build(cfg.model, norm_of(cfg), 1, (3, 3), 10, torch.Generator().manual_seed(0))


def test_orthogonal_layers_have_singular_values_of_1_between_normalised_vectors() -> None:
    network = mlp("nobn")
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear[0].weight.copy_(0.01 * torch.eye(9))
        for layer in linear[1:3]:
            layer.weight.copy_(0.01 * torch.linalg.qr(torch.randn(9, 9, generator=generator))[0])
    x = torch.randn(20_000, 1, 3, 3, generator=generator)
    rows = spectra(network, x, 5, "start")
    assert list(values(rows, "normalised_start").values()) == pytest.approx([1.0] * 21, rel=0.03)
    assert list(values(rows, "plain_start").values()) == pytest.approx([0.01 / 4] * 21, rel=0.01)
    assert values(rows, "normalised_near_start")[None] == 100
    assert values(rows, "plain_near_start")[None] == 0
    assert values(rows, "plain_far_start")[None] == pytest.approx(math.log2(400), rel=0.01)


def test_jacobian_with_bn_is_autograds_with_the_statistics_as_constants() -> None:
    network = mlp("bn").double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 1, 3, 3, dtype=torch.float64, generator=generator)
    units = [unit for unit in network.layers.children() if isinstance(unit, nn.Sequential)]
    a, inputs = x.flatten(1), []
    for unit in units:
        norm = unit[1]
        assert isinstance(norm, nn.BatchNorm1d)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-1, 1, generator=generator)
            u = unit[0](a)
            norm.running_mean, norm.running_var = u.mean(0), u.var(0, correction=0)
            inputs.append(norm.eval()(u))
            a = unit[2](inputs[-1])
    s = [y.std(0, correction=0) for y in inputs]
    found: dict[str, list[Tensor]] = {"plain": [], "normalised": []}
    for layer in (1, 2):

        def ahead(y: Tensor, unit: nn.Sequential = units[layer]) -> Tensor:
            return unit[1](unit[0](y.sigmoid()[None]))[0]

        for image in range(4):
            jacobian = torch.autograd.functional.jacobian(ahead, inputs[layer - 1][image])
            found["plain"].append(torch.linalg.svdvals(jacobian))
            found["normalised"].append(torch.linalg.svdvals(jacobian * s[layer - 1] / s[layer][:, None]))
    rows = spectra(network, x, 4, "end")
    for kind, parts in found.items():
        joined = torch.cat(parts).numpy()
        np.testing.assert_allclose(list(values(rows, f"{kind}_end").values()), np.percentile(joined, range(0, 101, 5)))


def test_share_of_a_random_matrix() -> None:
    entries = torch.randn(300, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(entries / entries.norm(dim=1, keepdim=True))
    assert random_share() == pytest.approx(100 * ((s >= 0.5) & (s <= 2)).double().mean(), abs=1)


# --- identities ---


def test_biases_cancel_and_the_scale_of_weights_does_but_for_eps() -> None:
    assert max(row["value"] for row in measurements.cancelled_bias.function(0, 20)) < 1e-12
    assert max(row["value"] for row in measurements.scaled_weights.function(0, 0.0, [0.1, 1.0, 10.0])) < 1e-12
    broken = values(measurements.scaled_weights.function(0, 1e-3, [0.1, 10.0]), "output")
    # y = W u / sqrt(v + eps / a^2), v = 0.002 on average over the channels
    expected = {a: abs(math.sqrt((0.002 + 1e-3) / (0.002 + 1e-3 / a**2)) - 1) for a in broken}
    assert broken == pytest.approx(expected, rel=0.2)


def test_a_convolution_has_m_p_q_values_and_one_parameter_a_map() -> None:
    batch = {row["quantity"]: row["value"] for row in measurements.effective_batch.function(0, 3, 2, 4, 5)}
    assert batch["expected"] == 60
    assert batch["effective"] == pytest.approx(60, rel=1e-10)
    rows = measurements.channels.function(0, 3, 2, 4, 5)
    assert values(rows, "size") == {f"tensor {place}": 2 for place in range(4)}
    assert values(rows, "error")["per channel"] < 1e-12


def test_algorithm_2_is_exact_over_all_mini_batches() -> None:
    rows = {row["quantity"]: row["value"] for row in measurements.algorithm_2.function(3, 4, 2, 3)}
    assert rows["biased"] == pytest.approx(0.5, abs=1e-12)
    assert rows["expected"] == 0.5
    assert max(value for q, value in rows.items() if q not in ("biased", "expected")) < 1e-12


# --- what claims read ---


@pytest.mark.parametrize(
    ("rate", "end", "passed"), [(0.003, 70.0, True), (0.0003, 70.0, False), (0.003, 72.0, False), (0.03, 70.0, False)]
)
def test_a_race_is_judged_where_the_baseline_has_levelled_off_inside_the_grid(
    rate: float, end: float, passed: bool
) -> None:
    steps = FULL.speed.steps
    path = {steps // 4: 40.0, 3 * steps // 4: 69.5, steps: end}
    rows = [
        {"part": "speed", "arm": arm, "seed": 0, "quantity": quantity, "x": x, "value": value}
        for arm in ("Baseline", "BN-Baseline")
        for quantity, x, value in (("rate", None, rate), *(("val_accuracy", x, value) for x, value in path.items()))
    ]
    gate = levelled_off(Results("full", [], [], rows), FULL)
    assert gate.passed is passed
    assert levelled_off(Results("full", [], [], []), FULL).passed is None


def test_steps_are_to_the_first_look_at_the_level_and_never_is_all_of_them() -> None:
    level = Values((), {((), 0): 60.0, ((), 1): 50.0, ((), 2): 50.0})
    curves = {0: {10: 59.9, 20: 60.0, 30: 61.0, 40: 60.0}, 1: {10: 49.0, 40: 49.9}, 2: {10: 50.0}}
    data = {(("a", x), seed): value for seed, path in curves.items() for x, value in path.items()}
    lost = Values(("arm",), {(("a",), 2): 15.0, (("a",), 3): 5.0})  # seed 3 before it was looked at
    found = shown.steps_to(level, Values(("arm", "x"), data), lost, 40)
    assert found.at(arm="a").seeds == {0: 20, 1: 40, 2: 10, 3: 40}


def test_a_network_that_diverged_is_at_chance_and_infinite() -> None:
    rows = [
        {"part": "speed", "arm": "no BN, x5", "seed": seed, "quantity": quantity, "x": None, "value": value}
        for seed, quantity, value in (
            (0, "rate", 0.1),
            (1, "rate", 0.1),
            (0, "test_accuracy", 50.0),
            (1, "diverged", 3),
        )
    ]
    results = Results("full", [], [], rows)
    assert shown.race(results, "test_accuracy", 10.0).at(arm="no BN, x5").seeds == {0: 50, 1: 10}
    assert shown.race(results, "diverged", 0.0).at(arm="no BN, x5").seeds == {0: 0, 1: 3}


def test_the_largest_rate_is_below_the_first_at_which_some_network_fails() -> None:
    def run(rate: float, seed: int, accuracy: float | None) -> dict[str, Any]:
        status = "diverged" if accuracy is None else "completed"
        about = {"part": "rates", "variant": "bn", "rate": rate, "seed": seed}
        return {**about, "status": status, "test_accuracy": accuracy}

    runs = [run(0.1, 0, 0.9), run(0.1, 1, 0.8), run(1.0, 0, 0.9), run(1.0, 1, None), run(9.0, 0, 0.9), run(9.0, 1, 0.9)]
    assert shown.largest_rate(Results("full", runs, [], []), FULL, "bn").only() == 0.1
    assert shown.largest_rate(Results("full", runs[2:], [], []), FULL, "bn").only() == 0
