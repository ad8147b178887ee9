"""labml's claims: toys against closed forms, networks as the source says, verdicts on made-up records."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bnrepro import train
from bnrepro.compare import RUN_COLUMNS
from bnrepro.experiments.base import Records, Verdict
from bnrepro.experiments.labml import EXPERIMENT, networks, toys
from bnrepro.experiments.labml.analysis import findings
from bnrepro.experiments.reproduce import settings
from bnrepro.record import COLUMNS, Run
from bnrepro.schema import Config

Rows = list[dict[str, Any]]


def values(rows: Rows, quantity: str) -> dict[Any, float]:
    return {row["x"]: row["value"] for row in rows if row["quantity"] == quantity}


# --- toys ---


def test_detached_mean_moves_the_bias_by_the_same_amount_each_step() -> None:
    rows = toys.outside(3, "mean", True, 40, 0.1, 1)
    b, loss = (list(values(rows, q).values()) for q in ("parameter", "loss"))
    assert b[1] > 0.1  # lr times the mean of the targets, which are about 1.5
    assert b == pytest.approx([b[1] * step for step in range(41)], rel=1e-12)
    assert loss == pytest.approx([loss[0]] * 41, rel=1e-12)


def test_detached_deviation_moves_the_factor_by_gradient_over_factor() -> None:
    w = list(values(toys.outside(3, "variance", True, 40, 0.1, 1), "parameter").values())
    force = w[1] - w[0]
    for before, after in pairwise(w):
        assert after - before == pytest.approx(force / before, rel=1e-10)


@pytest.mark.parametrize(("statistic", "start"), [("mean", 0.0), ("variance", 1.0)])
def test_attached_statistics_move_nothing(statistic: str, start: float) -> None:
    rows = toys.outside(3, statistic, False, 40, 0.1, 1)
    assert list(values(rows, "parameter").values()) == pytest.approx([start] * 41, abs=1e-12)


def test_bias_is_cancelled() -> None:
    assert max(row["value"] for row in toys.cancelled_bias(0, 20)) < 1e-12


def test_gradient_by_scaled_weights_is_one_over_the_scale() -> None:
    rows = toys.scaled_weights(0, 0.0, [0.1, 1.0, 10.0])
    for quantity in ("output", "du", "dw_times_a"):
        assert max(values(rows, quantity).values()) < 1e-12
    assert values(rows, "dw") == pytest.approx({0.1: 9.0, 1.0: 0.0, 10.0: 0.9}, abs=1e-9)


def test_eps_breaks_the_invariance() -> None:
    """At a = 0.1 the variance of 0.002 becomes 2e-5: beside eps = 1e-3 hardly anything of the output is left."""
    rows = toys.scaled_weights(0, 1e-3, [0.1, 10.0])
    v = 20 * 0.01**2
    for a in (0.1, 10.0):
        ratio = a * math.sqrt((v + 1e-3) / (a * a * v + 1e-3))
        assert values(rows, "output")[a] == pytest.approx(abs(ratio - 1), abs=0.12)  # a sample of 8 x 20 weights


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (3000.0, 1.0), (300.0, 0.1)])
def test_two_passes_are_right_where_one_is_not(mean: float, std: float) -> None:
    rows = toys.cancellation(0, mean, std, 100)
    error, nan = values(rows, "error"), values(rows, "nan")
    assert error["ours"] < 1e-5
    assert error["torch"] < 1e-2
    assert (error["E[x²] - E[x]²"] > 0.1) == (mean > 0)
    assert (nan["E[x²] - E[x]²"] > 0) == (mean > 0)
    assert nan["ours"] == 0


def test_share_of_a_normal_distribution() -> None:
    assert toys.gaussian_share() == pytest.approx(0.6827, abs=1e-4)


# --- runs and their networks ---


@pytest.mark.parametrize("preset", EXPERIMENT.presets)
def test_runs_are_the_sources(preset: str) -> None:
    chosen = settings(EXPERIMENT, preset)
    made = EXPERIMENT.arms(chosen)
    assert made == EXPERIMENT.arms(chosen)
    for arm in made:
        cfg = arm.config
        assert (cfg.optimizer.name, cfg.batch_size, cfg.variant) == ("adam", 64, arm.factors["variant"])
        assert cfg.model.keep_bias == arm.factors.get("keep_bias", False)
        if arm.factors.get("network") == "cifar":
            assert (cfg.optimizer.lr, cfg.data.crop, cfg.data.flip) == (2.5e-4, 4, True)
        else:
            assert (cfg.optimizer.lr, cfg.data.crop, cfg.data.flip) == (1e-3, 0, False)
    assert {arm.config.seed for arm in made} == set(range(chosen["seeds"]))
    probes = EXPERIMENT.probes(chosen)
    assert len({(p.part, str(p.factors), p.seed) for p in probes}) == len(probes)
    runs = [arm.config for arm in made]
    assert all(probe.config in runs for probe in probes if probe.config)


def test_full_is_the_sources_mnist_network_with_enough_seeds() -> None:
    chosen = settings(EXPERIMENT, "full")
    mnist = [arm.config for arm in EXPERIMENT.arms(chosen) if arm.factors.get("network") == "mnist"]
    assert chosen["seeds"] >= 5
    assert {(c.data.name, c.model.name, c.model.width) for c in mnist} == {("mnist", "labml_cnn", 1.0)}


def trained(tiny: Callable[..., Config], *overrides: str) -> Run:
    return Run(train.run(tiny("model.width=0.5", *overrides)))


def test_statistics_of_a_network_at_inference(tiny: Callable[..., Config]) -> None:
    run = trained(tiny, "variant=bn")
    rows = networks.statistics(run, seed=0, parts=[1, 9])  # 540 images are 9 batches of 60
    accuracy, parts = values(rows, "accuracy"), values(rows, "part_accuracy")
    assert list(accuracy) == ["ema", "population", "batch"]
    assert accuracy["ema"] == pytest.approx(100 * run.summary["test_accuracy"])
    assert parts[9] == accuracy["population"]  # the whole epoch


def test_norm_of_cancelled_biases(tiny: Callable[..., Config]) -> None:
    plain = networks.outside_network(trained(tiny, "variant=bn"), seed=0)
    kept = networks.outside_network(trained(tiny, "variant=detached", "model.keep_bias=true"), seed=0)
    assert values(plain, "bias_norm")[None] == 0
    assert values(kept, "bias_norm")[None] > 0.01
    assert values(plain, "weight_norm")[None] > 1


def test_sigmoid_inputs_before_and_after_training(tiny: Callable[..., Config]) -> None:
    run = trained(tiny, "variant=bn", "model=paper_mlp", "optimizer.lr=0.02")
    rows = networks.sigmoid_inputs(run, seed=0)
    start, end = values(rows, "input_start"), values(rows, "input_end")
    assert list(start) == list(end) == ["norm1", "norm2", "norm3"]
    assert start == values(rows, "normalised_start")
    assert start == pytest.approx(dict.fromkeys(start, 68.3), abs=8)
    assert end != values(rows, "normalised_end")
    density = values(rows, "density_start")
    assert 0.25 * sum(density.values()) == pytest.approx(1, abs=0.01)
    assert max(density, key=lambda x: density[x]) == pytest.approx(0, abs=0.6)


# --- verdicts ---


def made_up(**changed: Any) -> Records:
    """Records in which every claim comes out as the mathematics has it, with what ``changed`` says otherwise."""
    effect = {
        "force": 0.15, "leak": 0.0, "loss": 0.0, "detached": -20.0, "kept": 0.0, "start": 68.0, "end": 55.0,
        "output": 0.0, "du": 0.0, "dw": 9.0, "bn": 2.0, "gap": 1.0, "population": 0.0, "one_pass": 0.5, "nan": 0.0,
    } | changed  # fmt: skip
    chosen = settings(EXPERIMENT, "smoke") | {"seeds": 3}
    runs: Rows = []
    curves: Rows = []
    rows: Rows = []

    def add(part: str, seed: int, quantity: str, x: Any, value: float, **factors: Any) -> None:
        rows.append({"part": part, "seed": seed, "quantity": quantity, "x": x, "value": value, **factors})

    def ran(part: str, seed: int, accuracy: float, train: float = 99.0, **factors: Any) -> None:
        row = dict.fromkeys(RUN_COLUMNS) | {
            "part": part,
            "seed": seed,
            "status": "completed",
            "parameters": 7,
            **factors,
        }
        row |= {"train_loss": 0.1, "test_loss": 0.2}
        runs.append(row | {"test_accuracy": accuracy / 100, "train_accuracy": train / 100})
        point = {"part": part, "seed": seed, **factors, "epoch": 1.0, "val_accuracy": 0.9, "train_loss": 0.1}
        curves.append(dict.fromkeys(COLUMNS) | point)

    for seed in range(3):
        noise = 0.1 * (seed - 1)
        for step in range(0, 401, 50):
            for statistic in ("mean", "variance"):
                moved = {"mean": effect["force"] * step, "variance": math.sqrt(1 + effect["force"] * step)}[statistic]
                still = {"mean": 0.0, "variance": 1.0}[statistic] + effect["leak"] * step
                for detached, value in ((True, moved), (False, still)):
                    add("toy", seed, "parameter", step, value, statistic=statistic, detached=detached)
                    loss = 1 + effect["loss"] * step
                    add("toy", seed, "loss", step, loss, statistic=statistic, detached=detached)
        for quantity in ("output", "gradient", "trained"):
            add("bias", seed, quantity, None, effect["output"])
        for eps in chosen["scale_eps"]:
            for a in chosen["scales"]:
                for quantity, value in (("output", eps), ("du", effect["du"]), ("dw", effect["dw"]), ("dw_times_a", 0)):
                    add("scale", seed, quantity, a, value, eps=eps)
        for mean, std in chosen["cancellation"]:
            off = effect["one_pass"] if mean == 3000 else 0.0
            for name, error in (("E[x²] - E[x]²", off), ("torch", 0.0), ("ours", 0.0)):
                nan = effect["nan"] if name.startswith("E") else 0.0
                for quantity, value in (("error", error), ("variance", std**2), ("nan", nan)):
                    add("cancellation", seed, quantity, name, value, mean=mean, std=std)
        for variant, kept, extra in (
            ("bn", False, 0.0),
            ("bn", True, effect["kept"]),
            ("detachedmean", True, effect["detached"]),
            ("detached", True, effect["detached"]),
        ):
            ran(
                "outside",
                seed,
                95 + extra + noise * (2 if kept and variant == "bn" else 1),
                variant=variant,
                keep_bias=kept,
            )
            for quantity in ("bias_norm", "weight_norm", "batch_accuracy"):
                add("outside", seed, quantity, None, 1.0, variant=variant, keep_bias=kept)
        for variant, extra in (("nobn", 0.0), ("bn", effect["bn"])):
            gap = effect["gap"] if variant == "nobn" else 0.0
            accuracy = 95 + extra + noise * (variant == "bn")
            ran("networks", seed, accuracy, accuracy + gap + noise, network="mnist", variant=variant)
        for kind, extra in (("ema", 0.0), ("population", effect["population"]), ("batch", 0.0)):
            where = {"network": "mnist", "variant": "bn"}
            add("inference", seed, "accuracy", kind, 95 + extra + noise * (kind == "ema"), **where)
            add("inference", seed, "loss", kind, 0.2, **where)
        for count in chosen["population_batches"]:
            add("inference", seed, "part_accuracy", count, 95.0, network="mnist", variant="bn")
        for layer in ("norm1", "norm2"):
            for when in ("start", "end"):
                for quantity in ("input", "normalised"):
                    add(
                        "sigmoid",
                        seed,
                        f"{quantity}_{when}",
                        layer,
                        effect[when] + noise * (when == "end"),
                        variant="bn",
                    )
                add("sigmoid", seed, f"density_{when}", 0.0, 0.4, variant="bn")
    return Records("smoke", chosen, runs, curves, rows, {})


def verdicts(**changed: Any) -> dict[str, Verdict]:
    return {finding.claim.id: finding.verdict for finding in findings(made_up(**changed))}


def test_verdicts_where_the_mathematics_holds() -> None:
    assert verdicts() == {
        "A1": Verdict.reproduced,
        "A1.2": Verdict.reproduced,
        "A1.3": Verdict.reproduced,
        "A2": Verdict.reproduced,
        "A2.2": Verdict.reproduced,
        "A3": Verdict.reproduced,
        "A4": Verdict.partly,  # d/du is invariant, d/dW is not
        "A5": Verdict.reproduced,
        "A5.2": Verdict.reproduced,
        "A6": Verdict.reproduced,
        "A7": Verdict.not_testable,
        "A8": Verdict.not_testable,
        "A9": Verdict.not_reproduced,
    }


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({"force": -0.0}, "A1", Verdict.not_reproduced),  # b stands still
        ({"force": 0.0}, "A1.2", Verdict.not_reproduced),
        ({"leak": 1e-3}, "A1", Verdict.not_reproduced),  # the attached one moves too
        ({"loss": 1e-3}, "A1.2", Verdict.not_reproduced),  # the loss does not stand still
        ({"detached": 0.0}, "A1.3", Verdict.not_reproduced),  # it does work
        ({"detached": -1.05}, "A1.3", Verdict.inconclusive),
        ({"start": 40.0}, "A2", Verdict.not_reproduced),
        ({"end": 75.0}, "A2.2", Verdict.not_reproduced),
        ({"output": 1e-3}, "A3", Verdict.not_reproduced),  # not cancelled
        ({"kept": 5.0}, "A3", Verdict.partly),  # cancelled, and yet of use
        ({"kept": 1.0}, "A3", Verdict.inconclusive),
        ({"du": 1e-3}, "A4", Verdict.not_reproduced),
        ({"dw": 0.0}, "A4", Verdict.reproduced),
        ({"bn": -2.0}, "A5", Verdict.not_reproduced),
        ({"bn": 0.0}, "A5", Verdict.inconclusive),
        ({"gap": -1.0}, "A5.2", Verdict.not_reproduced),
        ({"population": -5.0}, "A6", Verdict.not_reproduced),
        ({"population": 0.5}, "A6", Verdict.inconclusive),  # at the margin
        ({"one_pass": 0.0}, "A9", Verdict.reproduced),
        ({"one_pass": 0.0, "nan": 5.0}, "A9", Verdict.not_reproduced),
    ],
)
def test_other_records_give_other_verdicts(changed: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert verdicts(**changed)[claim] is verdict


def test_every_claim_has_a_finding_and_every_figure_can_be_drawn() -> None:
    analysis = EXPERIMENT.analyse(made_up())
    assert [finding.claim for finding in analysis.findings] == list(EXPERIMENT.claims)
    for table in analysis.tables:
        assert table.rows
        assert len({tuple(row) for row in table.rows}) == 1
    for picture in analysis.pictures:
        FigureCanvasAgg(picture.figure).draw()
        assert "n = 3" in picture.caption
