"""Santurkar et al. 2018: what is trained, the measures against closed forms, and what claims are made of."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from bnrepro.claims import Results
from bnrepro.config.schema import Initialization, OptimizerName
from bnrepro.data.dataset import load
from bnrepro.experiments.santurkar2018 import LP, NAMES, after_few_steps, early, last_losses, late, paper, ratios
from bnrepro.experiments.santurkar2018.measurements import (
    Factor,
    Objective,
    along_gradient,
    covariate_shift,
    deep_linear,
    distributions,
    landscape,
    measured,
    network,
    problem,
    sampled,
    shift,
)
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.variants import Noise, NoisyBatchNorm
from bnrepro.runs.record import Run
from bnrepro.training import train
from bnrepro.training.model import build, norm_of

SETTINGS = paper.settings("full")
ARMS = {(a.factors["variant"], a.factors["rate"]): a for a in paper.designed(SETTINGS).arms if a.config.seed == 0}


# --- what is trained ---


def test_full_is_as_the_paper() -> None:
    assert SETTINGS.rates == [0.1, 0.5]
    assert (min(SETTINGS.landscape.along), max(SETTINGS.landscape.along)) == (0.5, 4)
    linear = SETTINGS.deep_linear
    assert (linear.depth, linear.width, linear.samples) == (25, 10, 1000)
    assert (min(linear.along), max(linear.along)) == (0.01, 30)
    steps = {rate: (of["nobn"], of["bn"]) for rate, of in SETTINGS.deep_linear_runs}
    assert steps == dict.fromkeys((1e-6, 1e-7), (10_000, 10_000))
    for noise in (NoisyBatchNorm, Noise):
        assert (noise.n_mean, noise.n_std, noise.spread) == (0.5, 1.25, 0.1)


def test_arms_are_plain_sgd_from_glorots_weights() -> None:
    assert list(ARMS) == [*((variant, 0.1) for variant in NAMES), ("nobn", 0.5), ("bn", 0.5)]
    for (variant, rate), arm in ARMS.items():
        cfg = arm.config
        assert (cfg.variant, cfg.optimizer.lr) == (variant, rate)
        assert (cfg.optimizer.name, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (OptimizerName.sgd, 0, 0)
        assert (cfg.batch_size, cfg.model.init) == (128, Initialization.glorot)
        assert (cfg.data.crop, cfg.data.flip, cfg.model.name) == (0, False, "vgg_small")
    probes = paper.designed(SETTINGS).probes
    assert {p.config.optimizer.lr for p in probes if p.config} == {0.1}
    assert sum(p.arguments.get("ridges", 0) > 0 for p in probes) == 3  # of the first seed
    cfg = ARMS["noise", 0.1].config
    net = build(cfg.model, norm_of(cfg), 3, (32, 32), 10, torch.Generator())
    assert {type(norm) for norm in net.norms.values()} == {Noise}
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_norms_are_there_and_lp_are_the_papers() -> None:
    assert set(NAMES) <= set(NORMS)
    x = 5 + torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for variant, p in zip(LP, (1, 2, math.inf), strict=True):
        y = NORMS[variant](3, (), options=NormOptions(affine=False, eps=1e-12)).train()(x)
        size = torch.linalg.vector_norm(x, p, 0) / 64 ** (1 / p)
        torch.testing.assert_close(y, (x - x.mean(0)) / size)


# --- measures ---


class Point(nn.Module):
    """A network that is its parameters."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def test_landscape_of_a_quadratic() -> None:
    """L = p'Hp / 2: g = Hp, g(p - s g) - g = -s H g, and beta = |Hg| / |g| whatever the steps."""
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    objective = Objective(Point(1.0, -2.0), torch.zeros(1), lambda p: p @ hessian @ p / 2)
    p = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss, gradient = objective.gradient([p])
    assert loss == pytest.approx(float(p @ hessian @ p) / 2)
    g = hessian @ p
    torch.testing.assert_close(gradient[0], g)
    steps = [0.1, 0.3, 1.0]
    found = along_gradient(objective, gradient, steps)
    losses = [float((p - s * g) @ hessian @ (p - s * g)) / 2 for s in steps]
    size = float((hessian @ g).norm())
    assert (found["loss_low"], found["loss_high"]) == pytest.approx((min(losses), max(losses)))
    assert (found["change_low"], found["change_high"]) == pytest.approx((0.1 * size, size))
    assert found["beta"] == pytest.approx(size / float(g.norm()))


def test_beta_is_the_largest_along_the_way() -> None:
    """L = p^4 / 4 at 1: g = 1, and |(1 - s)^3 - 1| / s."""
    objective = Objective(Point(1.0), torch.zeros(1), lambda p: (p**4 / 4).sum())
    one = torch.ones(1, dtype=torch.float64)
    found = along_gradient(objective, [one], [0.5, 2.0, 4.0])
    assert found["beta"] == pytest.approx(28 / 4)
    assert (found["change_low"], found["change_high"]) == pytest.approx((1 - 0.125, 28))


def test_a_loss_that_is_no_number_is_infinite() -> None:
    objective = Objective(Point(1.0), torch.zeros(1), lambda p: p.sqrt().sum())
    one = torch.ones(1, dtype=torch.float64)
    found = along_gradient(objective, [one], [0.5, 2.0])  # sqrt(-1)
    assert found["loss_high"] == found["change_high"] == found["beta"] == math.inf
    assert found["loss_low"] == pytest.approx(math.sqrt(0.5))


def scalar(first: float, second: float) -> nn.Sequential:
    made = nn.Sequential(*(Factor(1, torch.Generator()) for _ in range(2))).double()
    with torch.no_grad():
        for layer, value in zip(made, (first, second), strict=True):
            cast(Factor, layer).weight.fill_(value)
    return made


@pytest.mark.parametrize("rate", [0.01, 1.0])  # the second flips the sign of the gradient
def test_covariate_shift_of_two_numbers(rate: float) -> None:
    """y = b a x, L = (y - t)^2: dL/db = 2 (b a x - t) a x, before and after a has moved and b has not."""
    a, b, x, t = 0.5, 2.0, 3.0, 1.0
    objective = Objective(scalar(a, b), torch.full((1, 1, 1), x, dtype=torch.float64), lambda y: (y - t).square().sum())
    _, gradient = objective.gradient(objective.parameters)
    moved = a - rate * 2 * (b * a * x - t) * b * x
    before, after = (2 * (b * value * x - t) * value * x for value in (a, moved))
    difference, cosine = covariate_shift(objective, gradient, rate, 2)
    assert difference == pytest.approx(abs(before - after))
    assert cosine == pytest.approx(math.copysign(1, before * after))
    assert covariate_shift(objective, gradient, rate, 1) == pytest.approx((0, 1))  # nothing is before it


def test_earlier_layers_move_with_their_norms_and_the_layer_itself_stays() -> None:
    net = network("bn", depth=3, width=2, samples=8, seed=0)
    x, target = problem(2, 8, 0)
    objective = Objective(net, x, lambda y: (y - target).square().sum())
    assert objective.layer_of == [1, 1, 1, 2, 2, 2, 3]
    parameters = [p.detach() for p in net.parameters()]
    _, gradient = objective.gradient(parameters)
    by_hand = [p - 0.01 * g if i < 3 else p for i, (p, g) in enumerate(zip(parameters, gradient, strict=True))]
    want = objective.gradient(by_hand)[1][3]
    difference, _ = covariate_shift(objective, gradient, 0.01, 2)
    assert difference == pytest.approx(float((want - gradient[3]).norm()), rel=1e-6)
    assert difference > 0


def test_layers_are_told_from_norms_in_a_run_s_network() -> None:
    arm = ARMS["bn", 0.1]
    net = build(arm.config.model, norm_of(arm.config), 3, (32, 32), 10, torch.Generator())
    objective = Objective(net, torch.zeros(2, 3, 32, 32), lambda y: y.sum())
    assert set(objective.layer_of) == set(range(1, 9))  # six convolutions, one hidden layer, the logits
    assert objective.layer_of[-2:] == [8, 8]  # weight and bias
    first = [objective.layer_of.index(layer) for layer in range(1, 9)]
    assert first == [place for place, p in enumerate(net.parameters()) if p.dim() > 1]  # a layer's weight is its first


def test_measuring_leaves_the_network_as_it_is() -> None:
    net = network("bn", depth=3, width=4, samples=16, seed=0)
    x, target = problem(4, 16, 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objective = Objective(net, x, lambda y: (y - target).square().sum())
    rows = measured(7, objective, 1e-3, [1.0, 2.0], [2])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert {row["x"] for row in rows} == {7}
    assert all(math.isfinite(row["value"]) for row in rows)


# --- deep linear networks ---

SMALL = {"width": 3, "samples": 20, "along": [0.1, 1.0], "layers": [1]}


def values(rows: list[dict[str, Any]], quantity: str) -> list[float]:
    return [row["value"] for row in rows if row["quantity"] == quantity]


def test_one_layer_is_linear_regression() -> None:
    rate, steps = 1e-3, 5
    rows = deep_linear.function(seed=4, variant="nobn", rate=rate, depth=1, steps=steps, every=1, **SMALL)
    x, target = (t[0].double() for t in problem(3, 20, 4))
    w = next(network("nobn", 1, 3, 20, 4).parameters()).detach().double()
    want = []
    for _ in range(steps + 1):
        want.append(float((w @ x - target).square().sum()))
        w = w - rate * 2 * (w @ x - target) @ x.T
    assert values(rows, "loss") == pytest.approx(want, rel=1e-4)


def test_norms_share_weights_and_data_and_the_last_layer_has_none() -> None:
    nets = {v: network(v, 4, 10, 50, 3) for v in ("nobn", "bn", "l1norm")}
    weights = {v: [m.weight for m in net if isinstance(m, Factor)] for v, net in nets.items()}
    for v in nets:
        assert all(torch.equal(a, b) for a, b in zip(weights["nobn"], weights[v], strict=True))
        assert isinstance(nets[v][-1], Factor)
        assert len(nets[v]) == 7
    assert max(float(w.detach().abs().max()) for w in weights["bn"]) <= math.sqrt(6 / 20)
    x, _ = problem(10, 50, 3)
    y = nets["bn"][:2].train()(x)
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 2), correction=0), torch.ones(10), atol=1e-3, rtol=0)


def test_a_smaller_network_of_the_same_kind_trains_and_is_deterministic() -> None:
    arguments = {"depth": 10, "width": 10, "samples": 200, "steps": 150, "every": 75, "layers": [4, 7]}
    arguments["along"] = [0.01, 1.0, 30.0]
    rows = {v: deep_linear.function(seed=0, variant=v, rate=5e-6, **arguments) for v in ("nobn", "bn")}
    assert rows["bn"] == deep_linear.function(seed=0, variant="bn", rate=5e-6, **arguments)
    for found in rows.values():
        losses = values(found, "loss")
        assert len(losses) == 3
        assert losses[-1] < losses[0]
        assert all(-1 - 1e-6 <= cosine <= 1 + 1e-6 for cosine in values(found, "cosine_4"))
    # What is measured at the small rate is that almost nothing moves, and without a norm most of all.
    assert values(rows["nobn"], "cosine_4")[0] > max(0.9, values(rows["bn"], "cosine_4")[0])


@pytest.mark.slow
def test_the_papers_network_reaches_a_lower_loss_with_bn() -> None:
    """25 layers as in the paper, for the first fifth of its steps."""
    arguments = SETTINGS.deep_linear.model_dump(exclude={"every"})
    losses = {
        v: values(deep_linear.function(seed=0, variant=v, rate=1e-6, steps=2000, every=500, **arguments), "loss")
        for v in ("nobn", "bn")
    }
    assert all(bn < 0.5 * nobn for bn, nobn in zip(losses["bn"][1:], losses["nobn"][1:], strict=True)), losses
    assert all(found[-1] < 0.5 * found[0] for found in losses.values()), losses


def test_divergence_is_a_row() -> None:
    rows = deep_linear.function(seed=0, variant="nobn", rate=1.0, depth=3, steps=50, every=10, **SMALL)
    assert rows[-1]["quantity"] == "diverged"
    assert 0 < rows[-1]["value"] < 50


# --- trajectories ---


@pytest.fixture(scope="module")
def tiny() -> Any:
    arm = next(a for a in paper.designed(paper.settings("smoke")).arms if a.factors["variant"] == "noisybn")
    return dataclasses.replace(arm.config, eval_every=1, tensorboard=False, channels_last=False)


def test_a_probe_goes_the_way_of_the_run(tiny: Any, tmp_path: Path) -> None:
    cfg = dataclasses.replace(tiny, variant="bn", epochs=1, root=str(tmp_path))
    run = Run(train.run(cfg))
    rows = landscape.function(run=run, seed=cfg.seed, steps=6, every=2, along=[0.5, 4.0], layers=[2])
    at_steps = {int(row["step"] or 0): row["train_loss"] for row in run.metrics}
    assert values(rows, "loss") == pytest.approx([at_steps[step + 1] for step in (0, 2, 4)], rel=1e-5)
    assert all(low <= high for low, high in zip(values(rows, "loss_low"), values(rows, "loss_high"), strict=True))


def test_distributions_of_single_activations(tiny: Any) -> None:
    run = cast(Run, SimpleNamespace(config=tiny))
    asked = {"images": 40, "units": 4, "layers": [1, 2]}
    rows = distributions.function(run=run, seed=0, steps=4, every=2, ridges=2, **asked)
    assert [row["x"] for row in rows if row["quantity"] == "shift"] == [2, 4]
    assert {row["quantity"] for row in rows} == {"shift", *(f"density_{i}_{step}" for i in (1, 2) for step in (0, 4))}
    for name in ("density_1_0", "density_2_4"):
        middles = [row["x"] for row in rows if row["quantity"] == name]
        assert sum(values(rows, name)) * (middles[1] - middles[0]) == pytest.approx(1, abs=0.1)
    assert rows == distributions.function(run=run, seed=0, steps=4, every=2, ridges=2, **asked)
    flat = distributions.function(run=run, seed=0, steps=4, every=2, ridges=0, **asked)
    assert {row["quantity"] for row in flat} == {"shift"}


def test_looking_at_activations_changes_neither_network_nor_noise(tiny: Any) -> None:
    data = load(tiny.data, torch.device("cpu"))
    net = build(tiny.model, norm_of(tiny), 1, (28, 28), 10, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = sampled(net, data.normalize(data.val.images[:10]), 3, 1, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name: tuple(v.shape) for name, v in found.items()} == dict.fromkeys(net.norms, (10, 3))
    again = sampled(net, data.normalize(data.val.images[:10]), 3, 2, 0)
    assert not torch.equal(found["norm1"], again["norm1"])  # other noise


def test_shift_is_in_standard_deviations() -> None:
    base = torch.tensor([-1.0, 1.0])[:, None]
    moved = {"norm1": base + 0.5, "norm2": 3 * base}
    got = shift({"norm1": base, "norm2": base}, moved)
    assert got == pytest.approx((0.5 + 2 / math.sqrt(5)) / 2)
    scaled = shift({"norm1": 7 * base}, {"norm1": 7 * (base + 0.5)})
    assert scaled == pytest.approx(0.5)


# --- what claims are made of ---


def measurement(quantity: str, variant: str, x: int | None, value: float, seed: int = 0) -> dict[str, Any]:
    where = {"part": "deep_linear", "variant": variant, "rate": 1e-6, "seed": seed}
    return where | {"quantity": quantity, "x": x, "value": value}


def test_runs_that_diverge_count_as_chance() -> None:
    run = {"part": "curves", "variant": "bn", "rate": 0.5, "seed": 0, "status": "completed", "test_accuracy": 0.6}
    runs = [run, run | {"seed": 1, "status": "diverged", "test_accuracy": None}, run | {"seed": 2, "status": "failed"}]
    assert Results("full", runs, [], []).accuracy(part="curves").at(variant="bn", rate=0.5).seeds == {0: 60.0, 1: 10.0}


def test_shorter_runs_are_compared_with_the_others_after_as_many_steps() -> None:
    who = {"part": "curves", "rate": 0.1}
    runs = [who | {"variant": v, "seed": n, "status": "completed"} for v in ("bn", "noisybn") for n in (0, 1)]
    runs[1]["status"] = "diverged"
    steps = SETTINGS.few_steps, SETTINGS.epochs * 382
    curves = [
        {**run, "step": step, "train_accuracy": 0.5 if step == steps[0] else 0.9}
        for run in runs
        for step in steps
        if run["status"] == "completed" and not (run["variant"] == "noisybn" and step == steps[1])
    ]
    curves = [{key: value for key, value in point.items() if key != "status"} for point in curves]
    found = after_few_steps(Results("full", runs, curves, []), SETTINGS, "train")
    assert found.at(variant="bn").seeds == {0: 50, 1: 10}
    assert found.at(variant="noisybn").seeds == {0: 50, 1: 50}


def test_steps_before_both_networks_have_begun_are_told_apart() -> None:
    of = {"part": "landscape", "quantity": "beta", "variant": "bn", "rate": 0.1, "seed": 0}
    rows = [{**of, "x": x, "value": float(x)} for x in range(0, SETTINGS.landscape.steps, SETTINGS.landscape.every)]
    found = Results("full", [], [], rows).measured("beta", part="landscape", variant="bn", rate=0.1)
    first, rest = early(found, SETTINGS), late(found, SETTINGS)
    assert max(first) < SETTINGS.early_steps <= min(rest)
    assert len(first) + len(rest) == len(found)
    assert SETTINGS.landscape.steps - SETTINGS.early_steps >= 1500
    assert SETTINGS.early_steps % 382 == SETTINGS.few_steps % 382 == 0  # steps at which there is an evaluation


def test_ratios_leave_out_what_is_zero_or_not_finite() -> None:
    top, bottom = (1.0, math.inf, 100.0, 1.0, 5.0), (10.0, 1.0, 1.0, 0.0, math.inf)
    rows = [measurement("beta", v, x, y) for v, ys in (("nobn", top), ("bn", bottom)) for x, y in enumerate(ys)]
    rows += [measurement(f"loss_{end}", v, 0, y) for v in ("nobn", "bn") for end, y in (("low", 1.0), ("high", 3.0))]
    results = Results("full", [], [], rows)
    of = {"part": "deep_linear", "rate": 1e-6}
    found = {x: values.only() for x, values in ratios(results, "beta", **of).by("x").items()}
    assert found == pytest.approx({0: -1.0, 2: 2.0})
    assert ratios(results, "loss_range", **of).mean().seeds == {0: 0.0}


def test_last_losses_are_at_a_common_step_and_the_first_where_a_network_diverged() -> None:
    rows = [measurement("loss", "bn", x, 100.0 - x, seed) for x in (0, 10, 20) for seed in (0, 1)]
    rows += [measurement("loss", "nobn", x, 200.0 - x, seed) for x in (0, 10) for seed in (0, 1)]
    rows += [measurement("diverged", "nobn", None, 15.0, seed=1)]
    found = last_losses(Results("full", [], [], rows), 1e-6, "nobn", "bn")
    assert found.at(variant="bn").seeds == {0: 90.0, 1: 90.0}
    assert found.at(variant="nobn").seeds == {0: 190.0, 1: 200.0}
