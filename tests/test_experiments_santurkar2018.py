"""Santurkar et al. 2018: the measures against closed formulas, what is trained, and the verdicts on made-up records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from bnrepro import train
from bnrepro.config import configs_dir
from bnrepro.data import load
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.santurkar2018 import EXPERIMENT, analysis, deep_linear, trajectory
from bnrepro.experiments.santurkar2018.drawing import pictures
from bnrepro.experiments.santurkar2018.grid import LP, VARIANTS
from bnrepro.experiments.santurkar2018.landscape import Factor, Objective, along_gradient, covariate_shift, measured
from bnrepro.experiments.santurkar2018.traces import RANGE, log_ratios, means, traces
from bnrepro.model import build, norm_of
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.variants import Noise, NoisyBatchNorm
from bnrepro.record import Run
from bnrepro.schema import Initialization, OptimizerName

FOLDER = configs_dir() / "experiment" / "santurkar2018"
SETTINGS: dict[str, Any] = yaml.safe_load((FOLDER / "full.yaml").read_text())
SMOKE: dict[str, Any] = yaml.safe_load((FOLDER / "smoke.yaml").read_text())


# --- what is trained ---


def test_presets_say_the_same_keys_and_full_is_as_the_paper() -> None:
    presets = [yaml.safe_load((FOLDER / f"{preset}.yaml").read_text()) for preset in EXPERIMENT.presets]
    assert all(preset.keys() == SETTINGS.keys() for preset in presets)
    assert all(p[key].keys() == SETTINGS[key].keys() for p in presets for key in ("landscape", "deep_linear"))
    assert SETTINGS["seeds"] >= 5
    assert SETTINGS["rates"] == [0.1, 0.5]
    assert (min(SETTINGS["landscape"]["along"]), max(SETTINGS["landscape"]["along"])) == (0.5, 4)
    linear = SETTINGS["deep_linear"]
    assert (linear["depth"], linear["width"], linear["samples"]) == (25, 10, 1000)
    assert (min(linear["along"]), max(linear["along"])) == (0.01, 30)
    runs = dict(SETTINGS["deep_linear_runs"])
    assert list(runs) == [1e-6, 1e-7]
    assert all(runs[rate][variant] == 10_000 for rate in runs for variant in ("nobn", "bn"))
    assert (NoisyBatchNorm.n_mean, NoisyBatchNorm.n_std, NoisyBatchNorm.spread) == (0.5, 1.25, 0.1)
    assert (Noise.n_mean, Noise.n_std, Noise.spread) == (0.5, 1.25, 0.1)


def test_arms_are_plain_sgd_from_glorots_weights() -> None:
    arms = EXPERIMENT.arms({**SETTINGS, "seeds": 1})
    assert [(a.factors["variant"], a.factors["rate"]) for a in arms] == [
        *((variant, 0.1) for variant in VARIANTS),
        ("nobn", 0.5),
        ("bn", 0.5),
    ]
    for arm in arms:
        cfg = arm.config
        assert (cfg.variant, cfg.optimizer.lr) == (arm.factors["variant"], arm.factors["rate"])
        assert (cfg.optimizer.name, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (OptimizerName.sgd, 0, 0)
        assert (cfg.batch_size, cfg.model.init) == (128, Initialization.glorot)
        assert (cfg.data.crop, cfg.data.flip, cfg.model.name) == (0, False, "vgg_small")
    probes = EXPERIMENT.probes({**SETTINGS, "seeds": 2})
    assert {p.config.optimizer.lr for p in probes if p.config} == {0.1}
    assert sum(p.arguments.get("ridges", 0) > 0 for p in probes) == 3  # of the first seed
    network = build(arms[3].config.model, norm_of(arms[3].config), 3, (32, 32), 10, torch.Generator())
    assert {type(norm) for norm in network.norms.values()} == {Noise}
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))


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
    found = along_gradient(objective, [p], gradient, steps)
    losses = [float((p - s * g) @ hessian @ (p - s * g)) / 2 for s in steps]
    size = float((hessian @ g).norm())
    assert (found["loss_low"], found["loss_high"]) == pytest.approx((min(losses), max(losses)))
    assert (found["change_low"], found["change_high"]) == pytest.approx((0.1 * size, size))
    assert found["beta"] == pytest.approx(size / float(g.norm()))


def test_beta_is_the_largest_along_the_way() -> None:
    """L = p^4 / 4 at 1: g = 1, and |(1 - s)^3 - 1| / s."""
    objective = Objective(Point(1.0), torch.zeros(1), lambda p: (p**4 / 4).sum())
    one = torch.ones(1, dtype=torch.float64)
    found = along_gradient(objective, [one], [one], [0.5, 2.0, 4.0])
    assert found["beta"] == pytest.approx(28 / 4)
    assert (found["change_low"], found["change_high"]) == pytest.approx((1 - 0.125, 28))


def test_a_loss_that_is_no_number_is_infinite() -> None:
    objective = Objective(Point(1.0), torch.zeros(1), lambda p: p.sqrt().sum())
    one = torch.ones(1, dtype=torch.float64)
    found = along_gradient(objective, [one], [one], [0.5, 2.0])  # sqrt(-1)
    assert found["loss_high"] == found["change_high"] == found["beta"] == math.inf
    assert found["loss_low"] == pytest.approx(math.sqrt(0.5))


def scalar(first: float, second: float) -> nn.Sequential:
    made = nn.Sequential(*(Factor(1, torch.Generator()) for _ in range(2))).double()
    with torch.no_grad():
        for layer, value in zip(made, (first, second), strict=True):
            cast(Factor, layer).weight.fill_(value)
    return made


@pytest.mark.parametrize("rate", [0.01, 1.0])  # the second turns the gradient round
def test_covariate_shift_of_two_numbers(rate: float) -> None:
    """y = b a x, L = (y - t)^2: dL/db = 2 (b a x - t) a x, before and after a has moved and b has not."""
    a, b, x, t = 0.5, 2.0, 3.0, 1.0
    objective = Objective(scalar(a, b), torch.full((1, 1, 1), x, dtype=torch.float64), lambda y: (y - t).square().sum())
    parameters = [p.detach() for p in objective.network.parameters()]
    _, gradient = objective.gradient(parameters)
    moved = a - rate * 2 * (b * a * x - t) * b * x
    before, after = (2 * (b * value * x - t) * value * x for value in (a, moved))
    difference, cosine = covariate_shift(objective, parameters, gradient, rate, 2)
    assert difference == pytest.approx(abs(before - after))
    assert cosine == pytest.approx(math.copysign(1, before * after))
    assert covariate_shift(objective, parameters, gradient, rate, 1) == pytest.approx((0, 1))  # nothing is before it


def test_earlier_layers_move_with_their_norms_and_the_layer_itself_stays() -> None:
    net = deep_linear.network("bn", depth=3, width=2, samples=8, seed=0)
    x, target = deep_linear.problem(2, 8, 0)
    objective = Objective(net, x, lambda y: (y - target).square().sum())
    assert objective.layer_of == [1, 1, 1, 2, 2, 2, 3]
    assert objective.weight_of == {1: 0, 2: 3, 3: 6}
    parameters = [p.detach() for p in net.parameters()]
    _, gradient = objective.gradient(parameters)
    by_hand = [p - 0.01 * g if i < 3 else p for i, (p, g) in enumerate(zip(parameters, gradient, strict=True))]
    want = objective.gradient(by_hand)[1][3]
    difference, _ = covariate_shift(objective, parameters, gradient, 0.01, 2)
    assert difference == pytest.approx(float((want - gradient[3]).norm()), rel=1e-6)
    assert difference > 0


def test_layers_are_told_from_norms_in_a_run_s_network() -> None:
    arm = EXPERIMENT.arms({**SETTINGS, "seeds": 1})[1]
    network = build(arm.config.model, norm_of(arm.config), 3, (32, 32), 10, torch.Generator())
    objective = Objective(network, torch.zeros(2, 3, 32, 32), lambda y: y.sum())
    assert len(objective.weight_of) == 8  # six convolutions, one hidden layer, the logits
    assert objective.layer_of[-2:] == [8, 8]  # weight and bias
    weights = [p for p in network.parameters() if p.dim() > 1]
    assert [
        list(network.parameters())[place] is w for place, w in zip(objective.weight_of.values(), weights, strict=True)
    ]


def test_measuring_leaves_the_network_as_it_is() -> None:
    net = deep_linear.network("bn", depth=3, width=4, samples=16, seed=0)
    x, target = deep_linear.problem(4, 16, 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objective = Objective(net, x, lambda y: (y - target).square().sum())
    rows = measured(7, objective, [p.detach() for p in net.parameters()], 1e-3, [1.0, 2.0], [2])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert {row["x"] for row in rows} == {7} and all(math.isfinite(row["value"]) for row in rows)


# --- deep linear networks ---

SMALL = {"width": 3, "samples": 20, "along": [0.1, 1.0], "layers": [1]}


def values(rows: list[dict[str, Any]], quantity: str) -> list[float]:
    return [row["value"] for row in rows if row["quantity"] == quantity]


def test_one_layer_is_linear_regression() -> None:
    rate, steps = 1e-3, 5
    rows = deep_linear.trained(4, "nobn", rate, depth=1, steps=steps, every=1, **SMALL)
    x, target = (t[0].double() for t in deep_linear.problem(3, 20, 4))
    w = next(deep_linear.network("nobn", 1, 3, 20, 4).parameters()).detach().double()
    want = []
    for _ in range(steps + 1):
        want.append(float((w @ x - target).square().sum()))
        w = w - rate * 2 * (w @ x - target) @ x.T
    assert values(rows, "loss") == pytest.approx(want, rel=1e-4)


def test_norms_share_weights_and_data_and_the_last_layer_has_none() -> None:
    nets = {v: deep_linear.network(v, 4, 10, 50, 3) for v in ("nobn", "bn", "l1norm")}
    weights = {v: [m.weight for m in net if isinstance(m, Factor)] for v, net in nets.items()}
    for v in nets:
        assert all(torch.equal(a, b) for a, b in zip(weights["nobn"], weights[v], strict=True))
        assert isinstance(nets[v][-1], Factor) and len(nets[v]) == 7
    assert max(float(w.detach().abs().max()) for w in weights["bn"]) <= math.sqrt(6 / 20)
    x, _ = deep_linear.problem(10, 50, 3)
    y = nets["bn"][:2].train()(x)
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 2), correction=0), torch.ones(10), atol=1e-3, rtol=0)


def test_a_smaller_network_of_the_same_kind_trains_and_is_deterministic() -> None:
    arguments = {"depth": 10, "width": 10, "samples": 200, "steps": 150, "every": 75, "layers": [4, 7]}
    arguments["along"] = [0.01, 1.0, 30.0]
    rows = {v: deep_linear.trained(0, v, 5e-6, **arguments) for v in ("nobn", "bn")}
    assert rows["bn"] == deep_linear.trained(0, "bn", 5e-6, **arguments)
    for found in rows.values():
        losses = values(found, "loss")
        assert len(losses) == 3 and losses[-1] < losses[0]
        assert all(-1 - 1e-6 <= cosine <= 1 + 1e-6 for cosine in values(found, "cosine_4"))
    # What is measured at the small rate is that almost nothing moves, and without a norm most of all.
    assert values(rows["nobn"], "cosine_4")[0] > max(0.9, values(rows["bn"], "cosine_4")[0])


@pytest.mark.slow
def test_the_papers_network_reaches_a_lower_loss_with_bn() -> None:
    """25 layers as in the paper, for the first fifth of its steps."""
    linear = SETTINGS["deep_linear"]
    arguments = {key: linear[key] for key in ("depth", "width", "samples", "along", "layers")}
    losses = {
        v: values(deep_linear.trained(0, v, 1e-6, steps=2000, every=500, **arguments), "loss") for v in ("nobn", "bn")
    }
    assert all(bn < 0.5 * nobn for bn, nobn in zip(losses["bn"][1:], losses["nobn"][1:], strict=True)), losses
    assert all(found[-1] < 0.5 * found[0] for found in losses.values()), losses


def test_divergence_is_a_row() -> None:
    rows = deep_linear.trained(0, "nobn", 1.0, depth=3, steps=50, every=10, **SMALL)
    assert rows[-1]["quantity"] == "diverged" and 0 < rows[-1]["value"] < 50


# --- trajectories ---


@pytest.fixture(scope="module")
def tiny() -> Any:
    arm = next(a for a in EXPERIMENT.arms(SMOKE) if a.factors["variant"] == "noisybn")
    return dataclasses.replace(arm.config, eval_every=1, tensorboard=False, channels_last=False)


def test_a_probe_goes_the_way_of_the_run(tiny: Any, tmp_path: Path) -> None:
    cfg = dataclasses.replace(tiny, variant="bn", epochs=1, root=str(tmp_path))
    run = Run(train.run(cfg))
    rows = trajectory.landscape(run, cfg.seed, steps=6, every=2, along=[0.5, 4.0], layers=[2])
    at_steps = {int(row["step"] or 0): row["train_loss"] for row in run.metrics}
    assert values(rows, "loss") == pytest.approx([at_steps[step + 1] for step in (0, 2, 4)], rel=1e-5)
    assert all(low <= high for low, high in zip(values(rows, "loss_low"), values(rows, "loss_high"), strict=True))


def test_distributions_of_single_activations(tiny: Any) -> None:
    run = cast(Run, SimpleNamespace(config=tiny))
    asked = {"images": 40, "units": 4, "layers": [1, 2]}
    rows = trajectory.distributions(run, 0, steps=4, every=2, ridges=2, **asked)
    assert [row["x"] for row in rows if row["quantity"] == "shift"] == [2, 4]
    assert {row["quantity"] for row in rows} == {"shift", *(f"density_{i}_{step}" for i in (1, 2) for step in (0, 4))}
    for name in ("density_1_0", "density_2_4"):
        middles = [row["x"] for row in rows if row["quantity"] == name]
        assert sum(values(rows, name)) * (middles[1] - middles[0]) == pytest.approx(1, abs=0.1)
    assert rows == trajectory.distributions(run, 0, steps=4, every=2, ridges=2, **asked)
    assert {r["quantity"] for r in trajectory.distributions(run, 0, steps=4, every=2, ridges=0, **asked)} == {"shift"}


def test_looking_at_activations_changes_neither_network_nor_noise(tiny: Any) -> None:
    data = load(tiny.data, torch.device("cpu"))
    network = build(tiny.model, norm_of(tiny), 1, (28, 28), 10, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    chosen: dict[str, Tensor] = {}
    found = trajectory._sampled(network, data.normalize(data.val.images[:10]), 3, chosen, 1, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name: tuple(v.shape) for name, v in found.items()} == dict.fromkeys(network.norms, (10, 3))
    again = trajectory._sampled(network, data.normalize(data.val.images[:10]), 3, chosen, 2, 0)
    assert not torch.equal(found["norm1"], again["norm1"])  # other noise


def test_shift_is_in_deviations() -> None:
    base = torch.tensor([-1.0, 1.0])[:, None]
    moved = {"norm1": base + 0.5, "norm2": 3 * base}
    got = trajectory._shift({"norm1": base, "norm2": base}, moved)
    assert got == pytest.approx((0.5 + 2 / math.sqrt(5)) / 2)
    scaled = trajectory._shift({"norm1": 7 * base}, {"norm1": 7 * (base + 0.5)})
    assert scaled == pytest.approx(0.5)


# --- verdicts ---

Accuracy = Callable[[str, float], float]
STEPS = list(range(0, 200, 10))
AS_REPORTED = {
    "nobn": 40.0,
    "bn": 50.0,
    "noisybn": 49.5,
    "noise": 10.5,
    "l1norm": 50.5,
    "l2norm": 50.0,
    "linfnorm": 49.5,
}


def as_reported(variant: str, rate: float) -> float:
    return AS_REPORTED[variant]


def made_up(
    accuracy: Accuracy = as_reported,
    decades: dict[str, float] | None = None,
    shifts: dict[str, float] | None = None,
    cosines: dict[str, float] | None = None,
    linear_cosines: dict[str, float] | None = None,
    linear_losses: dict[str, float] | None = None,
    noise: float = 0.02,
) -> Records:
    """Five seeds: accuracies in percent, and measures whose no-BN value is 10^decades times that with BN."""
    decades = {"range": 1.0, "change": 2.0, "beta": 1.0, "difference": -0.5, "linear": 1.0} | (decades or {})
    shifts = {"nobn": 0.5, "bn": 0.4, "noisybn": 1.5} | (shifts or {})
    cosines = {"nobn": 0.8, "bn": 0.6} | (cosines or {})
    linear_cosines = {"nobn": 0.99, "bn": 0.0} | (linear_cosines or {})
    linear_losses = {"nobn": 1000.0, "bn": 100.0, "l1norm": 50.0} | (linear_losses or {})
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def add(part: str, seed: int, quantity: str, x: Any, value: float, **factors: Any) -> None:
        rows.append({"part": part, "seed": seed, **factors, "quantity": quantity, "x": x, "value": value})

    for seed in range(5):
        wobble = 1 + noise * (seed - 2)
        for rate in SETTINGS["rates"]:
            for variant in VARIANTS if rate == SETTINGS["rates"][0] else VARIANTS[:2]:
                value = accuracy(variant, rate) / 100 + noise * 0.2 * ((seed * 7 + len(variant)) % 5 - 2) / 10
                run = {"part": "curves", "variant": variant, "rate": rate, "seed": seed, "status": "completed"}
                runs.append({**run, "test_accuracy": value, "train_accuracy": value, "val_accuracy": value})
        for variant, shift in shifts.items():
            for x in (20, 40):
                add("distributions", seed, "shift", x, shift * wobble, variant=variant)
        for part, rates, layers in (
            ("landscape", SETTINGS["rates"][:1], SETTINGS["landscape"]["layers"]),
            ("deep_linear", [1e-6, 1e-7], SETTINGS["deep_linear"]["layers"]),
        ):
            linear = part == "deep_linear"
            for rate in rates:
                for variant in ("nobn", "bn"):
                    who = {"variant": variant, "rate": rate}

                    def times(
                        name: str, variant: str = variant, linear: bool = linear, wobble: float = wobble
                    ) -> float:
                        power = decades["linear" if linear else name]
                        return wobble * 10**power if variant == "nobn" else 1.0

                    for x in STEPS:
                        loss = linear_losses[variant] if linear else 2.0
                        add(part, seed, "loss", x, loss * wobble, **who)
                        add(part, seed, "loss_low", x, 1.0, **who)
                        add(part, seed, "loss_high", x, 1.0 + times("range"), **who)
                        add(part, seed, "change_low", x, 0.1, **who)
                        add(part, seed, "change_high", x, times("change"), **who)
                        add(part, seed, "beta", x, times("beta"), **who)
                        for layer in layers:
                            add(part, seed, f"difference_{layer}", x, times("difference"), **who)
                            cosine = (linear_cosines if linear else cosines)[variant]
                            add(part, seed, f"cosine_{layer}", x, cosine + noise * 0.1 * (seed - 2), **who)
        for x in STEPS[:8]:
            add("deep_linear", seed, "loss", x, linear_losses["l1norm"] * wobble**2, variant="l1norm", rate=1e-6)
    return Records("full", SETTINGS, runs, [], rows, {})


def judged(records: Records) -> dict[str, Finding]:
    findings = analysis.judged(records, traces(records))
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def test_all_claims_hold_where_the_records_say_what_the_paper_says() -> None:
    findings = judged(made_up())
    assert {name: f.verdict for name, f in findings.items()} == dict.fromkeys(findings, Verdict.reproduced)
    assert all(str(f.effect.n) in "5" for f in findings.values() if f.effect)


def test_no_records_are_no_error() -> None:
    records = Records("full", SETTINGS, [], [], [], {})
    assert {f.verdict for f in judged(records).values()} == {Verdict.inconclusive}
    assert EXPERIMENT.analyse(records).pictures == []


YES, PARTLY, NO, OPEN = Verdict.reproduced, Verdict.partly, Verdict.not_reproduced, Verdict.inconclusive


def with_accuracy(**changed: float) -> Records:
    return made_up(accuracy=lambda variant, rate: {**AS_REPORTED, **changed}[variant])


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({"bn": 30.0}, "S1", NO),
        ({"bn": 30.0}, "S1.2", NO),
        ({"noisybn": 45.0}, "S3", NO),
        ({"noisybn": 45.0}, "S3.2", YES),
        ({"noisybn": 35.0}, "S3.2", NO),
        ({"noisybn": 41.0}, "S3.2", PARTLY),  # better, by what is negligible
        ({"noise": 30.0}, "S3.3", NO),
        ({"noise": 14.0}, "S3.3", YES),
        ({"nobn": 12.0}, "S3.3", OPEN),  # there was no training to prevent
        ({"l1norm": 45.0}, "S8", PARTLY),
        ({"l1norm": 45.0, "l2norm": 45.0, "linfnorm": 40.0}, "S8", NO),
        ({"l1norm": 60.0}, "S8", YES),  # better than BN is comparable too
    ],
)
def test_accuracies_decide(changed: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert judged(with_accuracy(**changed))[claim].verdict is verdict


def test_s1_is_partly_so_where_the_rates_disagree() -> None:
    records = made_up(accuracy=lambda variant, rate: 60.0 if (variant, rate) == ("nobn", 0.5) else AS_REPORTED[variant])
    finding = judged(records)["S1"]
    assert finding.verdict is PARTLY
    assert "at 0.1: 50.0% and 40.0%; at 0.5: 50.0% and 60.0%" in finding.found


def test_runs_that_diverge_count_as_chance_and_are_told() -> None:
    records = made_up()
    for run in records.runs:
        if run["variant"] == "nobn" and run["rate"] == 0.5:
            run |= {"status": "diverged", "test_accuracy": None, "train_accuracy": 0.3}
    finding = judged(records)["S1"]
    assert "learning rate 0.5: 40.0" in finding.found and "5 runs diverged" in finding.found
    assert "(nobn at 0.5)" in finding.found


@pytest.mark.parametrize(
    ("decades", "claim", "verdict"),
    [
        ({"range": -1.0}, "S5", NO),
        ({"range": 0.0}, "S5", NO),  # negligible
        ({"change": -0.5}, "S6", NO),
        ({"change": 1.0}, "S6", YES),
        ({"change": 1.0}, "S6.2", NO),
        ({"beta": -0.2}, "S7", NO),
        ({"difference": 0.0}, "S4", YES),  # similar
        ({"difference": 0.2}, "S4", YES),  # a factor of 1.6 is similar too
        ({"difference": 1.0}, "S4", NO),  # BN has less
        ({"linear": -1.0}, "S9.2", NO),
    ],
)
def test_measures_decide(decades: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert judged(made_up(decades=decades))[claim].verdict is verdict


@pytest.mark.parametrize(
    ("records", "claim", "verdict"),
    [
        (made_up(shifts={"bn": 0.1}), "S2", NO),
        (made_up(shifts={"bn": 1.5}), "S2", NO),
        (made_up(shifts={"noisybn": 0.2}), "S3.4", NO),
        (made_up(cosines={"bn": 0.75}), "S4.2", YES),
        (made_up(cosines={"bn": 0.85}), "S4.2", YES),
        (made_up(cosines={"bn": 0.99}), "S4.2", NO),
        (made_up(linear_cosines={"bn": 0.6}), "S4.3", PARTLY),
        (made_up(linear_cosines={"bn": 0.6, "nobn": 0.1}), "S4.3", NO),
        (made_up(linear_losses={"l1norm": 200.0}), "S8.2", NO),
        (made_up(linear_losses={"nobn": 20.0}), "S9", NO),
    ],
)
def test_distributions_shift_and_linear_networks_decide(records: Records, claim: str, verdict: Verdict) -> None:
    assert judged(records)[claim].verdict is verdict


def test_noise_leaves_verdicts_open() -> None:
    def scattered(variant: str, rate: float) -> float:
        return 50.0

    records = made_up(accuracy=scattered)
    for i, run in enumerate(records.runs):
        run["test_accuracy"] = 0.5 + 0.05 * ((i * 37) % 11 - 5) / 5
    findings = judged(records)
    assert {findings[claim].verdict for claim in ("S1", "S3", "S3.2", "S8")} == {OPEN}


def test_ratios_leave_out_what_is_not_finite_and_say_so() -> None:
    top = {0: {0: 10.0, 1: math.inf, 2: 100.0, 3: 1.0}, 1: {0: math.inf}}
    bottom = {0: {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}, 1: {0: 1.0}}
    assert log_ratios(top, bottom) == {0: {0: 1.0, 2: 2.0}}
    assert log_ratios(top, bottom, 0.25) == {0: {0: 1.0}}
    assert means({0: {0: 1.0, 1: math.nan, 2: 3.0}, 1: {0: math.inf}}) == {0: 2.0}
    records = made_up()
    for row in records.measurements:
        if row["part"] == "landscape" and row["quantity"] == "beta" and row["variant"] == "nobn" and row["x"] == 10:
            row["value"] = math.inf
    finding = judged(records)["S7"]
    assert finding.verdict is YES and "At 5 of 100 steps" in finding.found


def test_a_linear_network_that_diverges_counts_with_its_first_loss() -> None:
    records = made_up(linear_losses={"nobn": 20.0})  # better than BN to the eye, but it does not last
    for seed in range(5):
        who = {"part": "deep_linear", "variant": "nobn", "rate": 1e-6, "seed": seed}
        records.measurements.append({**who, "quantity": "diverged", "x": None, "value": 195})
        first = next(r for r in records.measurements if r.get("quantity") == "loss" and who.items() <= r.items())
        first["value"] = 5000.0
    assert judged(records)["S9"].verdict is PARTLY  # at the other rate it is better
    assert np.isfinite(judged(records)["S9"].effect.mean)  # type: ignore[union-attr]


def test_range_of_the_loss_is_high_less_low() -> None:
    records = made_up()
    found = traces(records).of("landscape", "bn", RANGE, 0.1)
    assert found[0] == dict.fromkeys(STEPS, 1.0)


# --- tables and figures ---


def test_tables_and_figures_are_those_of_the_paper() -> None:
    records = made_up()
    for run in records.runs:
        for step in (38, 76):
            who = {key: run[key] for key in ("part", "variant", "rate", "seed")}
            accuracy = {"train_accuracy": run["test_accuracy"], "val_accuracy": run["test_accuracy"]}
            records.curves.append({**who, "step": step, **accuracy})
    for layer in SETTINGS["distributions"]["layers"]:
        for variant in ("nobn", "bn", "noisybn"):
            for step in (0, 20):
                for x in (-1.0, 0.0, 1.0):
                    who = {"part": "distributions", "seed": 0, "variant": variant}
                    records.measurements.append({**who, "quantity": f"density_{layer}_{step}", "x": x, "value": 0.3})
    found = traces(records)
    accuracies, measures = analysis.tables(records, found)
    assert len(accuracies.rows) == len(VARIANTS) + 2
    assert all(len({tuple(row) for row in table.rows}) == 1 for table in (accuracies, measures))
    betas = [r for r in measures.rows if r["measure"] == "effective beta"]
    assert [r["log10 of no BN over BN"].mean for r in betas] == pytest.approx([1.0] * 3, abs=1e-3)
    drawn = {p.name: p.figure for p in pictures(records, found)}
    assert list(drawn) == [
        "training", "noisy", "distributions", "covariate_shift", "landscape", "deep_linear", "norms",
    ]  # fmt: skip
    assert [axes.get_yscale() for axes in drawn["landscape"].axes] == ["log"] * 3
    assert len(drawn["deep_linear"].axes) == 8 and len(drawn["covariate_shift"].axes) == 8
    labels = [text.get_text() for text in drawn["norms"].legends[0].get_texts()]
    assert labels == ["no BN", "BN", "l1 norm", "l2 norm", "maximum norm"]
    lines = drawn["landscape"].axes[2].get_lines()
    assert [float(np.mean(line.get_ydata())) for line in lines] == pytest.approx([10.0, 1.0], rel=1e-2)


def test_norms_of_the_grid_are_there_and_lp_are_the_papers() -> None:
    assert set(VARIANTS) <= set(NORMS)
    x = 5 + torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for variant, p in zip(LP, (1, 2, math.inf), strict=True):
        y = NORMS[variant](3, (), options=NormOptions(affine=False, eps=1e-12)).train()(x)
        size = torch.linalg.vector_norm(x, p, 0) / 64 ** (1 / p)
        torch.testing.assert_close(y, (x - x.mean(0)) / size)
