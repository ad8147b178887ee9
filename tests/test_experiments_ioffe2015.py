"""The paper's experiment: arms as it has them, probes against closed forms and runs, verdicts on made-up records."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn

from bnrepro import train
from bnrepro.config import UserError, load_config
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.ioffe2015 import EXPERIMENT, analyse, effects, exact, figure1, grid
from bnrepro.experiments.ioffe2015.choosing import at, best, chosen
from bnrepro.experiments.ioffe2015.claims import REPORTED
from bnrepro.experiments.ioffe2015.findings import judged
from bnrepro.experiments.ioffe2015.jacobian import random_share, spectra
from bnrepro.experiments.ioffe2015.race import ARMS, race
from bnrepro.experiments.labml import toys
from bnrepro.experiments.placement.exact import channels
from bnrepro.experiments.reproduce import settings
from bnrepro.model import Network, build, norm_of
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import trainer_of

YES, PARTLY, NO, OPEN = Verdict.reproduced, Verdict.partly, Verdict.not_reproduced, Verdict.inconclusive
Rows = list[dict[str, Any]]


def values(rows: Rows, quantity: str) -> dict[Any, float]:
    return {row["x"]: row["value"] for row in rows if row["quantity"] == quantity}


# --- what is trained ---


@pytest.mark.parametrize("preset", EXPERIMENT.presets)
def test_presets_are_whole_and_each_probe_has_its_run(preset: str) -> None:
    asked = settings(EXPERIMENT, preset)
    assert asked.keys() == settings(EXPERIMENT, "full").keys()
    made, probes = EXPERIMENT.arms(asked), EXPERIMENT.probes(asked)
    runs = [arm.config for arm in made]
    assert all(probe.config in runs for probe in probes if probe.config)
    assert len({(p.part, str(p.factors), p.seed) for p in probes}) == len(probes)
    carriers = {p.config.optimizer.lr for p in probes if p.config and p.part == grid.FIGURE1}
    assert carriers == {min(asked["figure1"]["rates"])}
    assert asked["dropout_amounts"][0] == 0 and asked["dropout_amounts"][-1] == 0.4
    assert 0 in asked["scale_eps"] and asked["choosing_seeds"] <= asked["seeds"]


def test_figure_1_in_full_is_the_papers() -> None:
    asked = settings(EXPERIMENT, "full")
    assert asked["seeds"] >= 5 and asked["figure1"]["steps"] == 50_000
    for arm in (a for a in EXPERIMENT.arms(asked) if a.part == grid.CHOICE1):
        cfg = arm.config
        assert (cfg.data.name, cfg.data.binarize, cfg.batch_size) == ("mnist", True, 60)
        assert (cfg.optimizer.name, cfg.optimizer.momentum, cfg.schedule.name) == ("sgd", 0, "constant")
        assert (cfg.model.init, cfg.model.init_std) == ("gaussian", arm.factors["deviation"])
        net = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator())
        norm = nn.BatchNorm1d if cfg.variant == "bn" else nn.Identity
        leaves = [m for m in net.modules() if not list(m.children())]
        kinds: list[type[nn.Module]] = [nn.Flatten, *[nn.Linear, norm, nn.Sigmoid] * 3, nn.Linear]
        assert [type(m) for m in leaves] == kinds
        assert [m.out_features for m in leaves if isinstance(m, nn.Linear)] == [100, 100, 100, 10]


def test_arms_of_the_race_have_the_papers_multiples() -> None:
    assert {arm: who.factor for arm, who in ARMS.items() if arm in REPORTED} == {
        "Baseline": 1,
        "BN-Baseline": 1,
        "BN-x5": 5,
        "BN-x30": 30,
        "BN-x5-Sigmoid": 5,
    }
    assert {who.variant for arm, who in ARMS.items() if arm.startswith(("Base", "no"))} == {"nobn"}
    assert [arm for arm, who in ARMS.items() if who.activation == "sigmoid"] == ["BN-x5-Sigmoid", "no BN, sigmoid"]


def test_only_the_batches_differ_where_shuffling_is_the_question() -> None:
    made = EXPERIMENT.arms(settings(EXPERIMENT, "smoke"))
    fixed, anew = (
        [a.config for a in made if a.part == grid.SHUFFLE and a.factors["fixed"] is kept] for kept in (True, False)
    )
    assert [replace(c, data=replace(c.data, together=0)) for c in fixed] == anew
    assert {c.data.together for c in fixed} == {fixed[0].batch_size}
    dropped = [a for a in made if a.part == grid.DROPOUT]
    assert all(a.config.model.dropout == a.factors["amount"] for a in dropped)
    assert {a.config.model.dropout_position.value for a in dropped} == {"last"}


# --- choosing ---


def test_the_best_mean_is_chosen_and_a_diverged_run_counts_as_nothing() -> None:
    assert best({(0.1, 1.0): [0.9, 0.7], (1.0, 1.0): [0.85, 0.8], (2.0, 1.0): [0.99, 0.0]}) == (1.0, 1.0)
    assert best({(0.1, 1.0): [0.5], (1.0, 1.0): [0.5]}) == (0.1, 1.0)


@pytest.fixture
def sigmoids(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """A small version of Figure 1's network."""

    def make(*overrides: str) -> Config:
        mlp = ["model=paper_mlp", "model.init=gaussian", "model.init_std=0.1", "data.binarize=true"]
        return tiny(*mlp, "optimizer=sgd", "optimizer.momentum=0", "model.width=0.2", *overrides)

    return make


def test_networks_are_trained_as_a_run_would_with_what_was_chosen(sigmoids: Callable[..., Config]) -> None:
    cfg = sigmoids("variant=bn")
    cells = [[1e-4, 0.1], [1.0, 0.1]]
    runs = [Run(train.run(at(cfg, (lr, std), 0))) for lr, std in cells]
    right = [run.summary["val_accuracy"] for run in runs]
    winner = runs[right.index(max(right))]
    rate = winner.config.optimizer.lr
    first = runs[0]
    assert chosen(first, cells, 1) == chosen(runs[1], cells, 1) == (rate, 0.1)
    with pytest.raises(UserError, match="seed 1, did not finish"):
        chosen(first, cells, 2)
    steps = int(winner.summary["steps"])
    rows = figure1.train_and_watch(first, 0, cells, 1, steps, 7, 50, 3)
    assert values(rows, "rate") == {None: rate}
    accuracy = values(rows, "test_accuracy")
    assert list(accuracy) == [0, 7, 14, steps]
    assert accuracy[steps] == pytest.approx(100 * winner.summary["test_accuracy"], abs=1e-9)
    # Another seed is another network; the drift is that of the percentiles that were told.
    assert values(figure1.train_and_watch(first, 1, cells, 1, 7, 7, 50, 3), "p50") != values(rows, "p50")
    told = [np.std(list(values(rows, q).values())) for q in ("p15", "p50", "p85")]
    assert values(rows, "drift")[0] == pytest.approx(np.mean(told), rel=1e-9)
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
    np.testing.assert_allclose(figure1._percentiles(trainer.network, x).numpy(), want, atol=1e-5)
    normed = trainer_of(sigmoids("variant=bn"))
    inside = figure1._percentiles(normed.network, x)
    assert inside[0].max() < -0.5 < 0.5 < inside[2].min()  # one deviation to each side, by the batch's own statistics
    assert normed.network.norms["norm3"].get_buffer("num_batches_tracked") == 0


def test_race_has_its_multiple_of_the_rate_and_says_where_it_diverged(tiny: Callable[..., Config]) -> None:
    cfg = tiny("variant=nobn", "optimizer=sgd", "epochs=1", "optimizer.lr=0.1", "model.init_std=0.01")
    run = Run(train.run(cfg))
    steps = int(run.summary["steps"])
    rows = race(run, 0, "Baseline", [[0.1, 0.01]], 1, steps, 5)
    assert list(values(rows, "val_accuracy")) == [5, steps]
    assert values(rows, "test_accuracy")[None] == pytest.approx(100 * run.summary["test_accuracy"], abs=1e-9)
    assert values(race(run, 0, "BN-x5", [[0.1, 0.01]], 1, 2, 1), "rate") == {None: 0.5}
    hot = Run(train.run(at(cfg, (1e4, 0.01), 0)))
    assert hot.status == "diverged"
    rows = race(hot, 0, "no BN, x30", [[1e4, 0.01]], 1, 60, 1)
    assert not values(rows, "test_accuracy") and 1 <= values(rows, "diverged")[None] < 60


# --- singular values ---


def mlp(variant: str, width: float = 0.09) -> Network:
    cfg = load_config(["model=paper_mlp", f"model.width={width}", f"variant={variant}"])
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
    assert values(rows, "normalised_near_start")[None] == 100 and values(rows, "plain_near_start")[None] == 0
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


# --- the algebra ---


def test_algorithm_2_is_exact_over_all_mini_batches() -> None:
    rows = {row["quantity"]: row["value"] for row in exact.algorithm_2(3, 4, 2, 3)}
    assert rows["biased"] == pytest.approx(0.5, abs=1e-12) and rows["expected"] == 0.5
    assert max(value for q, value in rows.items() if q not in ("biased", "expected")) < 1e-12


def test_effective_batch_is_m_p_q() -> None:
    rows = {row["quantity"]: row["value"] for row in exact.effective_batch(0, 3, 2, 4, 5)}
    assert rows["expected"] == 60 and rows["effective"] == pytest.approx(60, rel=1e-10)


# --- verdicts ---

SETTINGS = settings(EXPERIMENT, "full")
SEEDS = range(5)
CURVE = [10, 40, 50, 55, 60]
PAPER: dict[str, Any] = {
    # Figure 1: test accuracy by step, drift of each unit, share of singular values near 1 and their distance
    "accuracy": {"nobn": [50, 80, 90, 94, 95], "bn": [90, 96, 97, 97.5, 98]},
    "drift": {"nobn": [1.0] * 4, "bn": [0.1] * 4},
    "width": {"nobn": 1.0, "bn": 1.0},
    "near": {"nobn": 30.0, "bn": 90.0},
    # section 3.4: loss gaps, accuracy by amount of dropout, and batches that stay
    "gap": {"nobn": 0.3, "bn": 0.1},
    "dropout": {"nobn": {0.0: 95, 0.1: 96, 0.4: 97}, "bn": {0.0: 98, 0.1: 98, 0.4: 98}},
    "shuffle": {"nobn": 0.0, "bn": 1.0},
    # Figure 2: validation accuracy at steps 1 to 5, and test accuracy; None: diverged
    "race": {
        "Baseline": CURVE,
        "BN-Baseline": [40, 60, 61, 62, 63],
        "BN-x5": [60, 61, 62, 63, 64],
        "BN-x30": [50, 62, 64, 66, 68],
        "BN-x5-Sigmoid": [20, 30, 40, 50, 55],
        "convbn-x5": [60, 61, 62, 63, 64],
        "no BN, x5": None,
        "no BN, x30": None,
        "no BN, sigmoid": [10, 10, 10, 10, 10],
    },
}


@cache
def identities() -> dict[str, Rows]:
    shape = {"batch": 4, "channels": 3, "height": 5, "width": 4}
    made = {
        "bias": toys.cancelled_bias(0, 5),
        "channels": channels(0, **shape),
        "effective batch": exact.effective_batch(0, **shape),
        "algorithm 2": exact.algorithm_2(0, 3, 2, 2),
    }
    for eps in SETTINGS["scale_eps"]:
        made[f"scale, eps {eps:g}"] = toys.scaled_weights(0, eps, SETTINGS["scales"])
    return made


def made_up(noise: float = 1.0, **changes: Any) -> Records:
    """Records in which the paper is right but for ``changes``, with noise over seeds of 0.1 or less."""
    world = {key: {**value, **changes.get(key, {})} for key, value in PAPER.items()}
    runs: Rows = []
    measured: Rows = []

    def jitter(*what: Any) -> float:
        return random.Random(str(what)).uniform(-0.1, 0.1) * noise

    def add(part: str, seed: int, quantity: str, x: Any, value: float, **factors: Any) -> None:
        measured.append({"part": part, "seed": seed, "quantity": quantity, "x": x, "value": value, **factors})

    def ran(part: str, seed: int, accuracy: float | None, **factors: Any) -> None:
        status = "completed" if accuracy is not None else "diverged"
        own = {"val_accuracy": accuracy, "test_accuracy": accuracy, "status": status, "seconds": 1.0}
        runs.append({"part": part, "seed": seed, **own, **factors})

    for seed in SEEDS:
        for variant in ("nobn", "bn"):
            who = {"variant": variant}
            for step, value in enumerate(world["accuracy"][variant]):
                add(
                    grid.FIGURE1,
                    seed,
                    "test_accuracy",
                    10 * step,
                    value + (jitter(seed, variant) if step else 0),
                    **who,
                )
                for p, place in ((15, -1), (50, 0), (85, 1)):
                    add(grid.FIGURE1, seed, f"p{p}", 10 * step, place + jitter(seed), **who)
            for unit, value in enumerate(world["drift"][variant]):
                add(grid.FIGURE1, seed, "drift", unit, value * (1 + jitter(seed, unit, variant) / 2), **who)
                add(grid.FIGURE1, seed, "width", unit, world["width"][variant], **who)
            for kind in ("normalised", "plain"):
                for when in ("start", "end"):
                    near = world["near"][variant] + jitter(seed, kind, variant)
                    add(grid.FIGURE1, seed, f"{kind}_near_{when}", None, near, **who)
                    add(grid.FIGURE1, seed, f"{kind}_far_{when}", None, (100 - near) / 10, **who)
                    for x in (0, 50, 100):
                        add(grid.FIGURE1, seed, f"{kind}_{when}", x, 0.5 + x / 100, **who)
            add(
                grid.DROPOUT,
                seed,
                "gap",
                None,
                world["gap"][variant] + jitter(seed, "gap", variant) / 10,
                **who,
                amount=0.0,
            )
            add(grid.DROPOUT, seed, "train_loss", None, 0.1, **who, amount=0.0)
            for amount, value in world["dropout"][variant].items():
                ran(grid.DROPOUT, seed, (value + jitter(seed, amount, variant)) / 100, **who, amount=amount)
            for fixed in (True, False):
                value = 95 + (0 if fixed else world["shuffle"][variant] + jitter(seed, "shuffle", variant))
                ran(grid.SHUFFLE, seed, value / 100, **who, fixed=fixed)
            ran(grid.CHOICE1, seed, 0.9, **who, rate=1.0, deviation=0.1)
            for rate in SETTINGS["rates"]["rates"]:
                ran(grid.RATES, seed, None if variant == "nobn" and rate > 0.1 else 0.9, **who, rate=rate)
        ran(grid.CHOICE2, seed, 0.6, variant="nobn", rate=0.01)
        for arm, curve in world["race"].items():
            add(grid.RACE, seed, "rate", None, 0.01, arm=arm)
            if curve is None or (isinstance(curve, int) and seed < curve):
                add(grid.RACE, seed, "diverged", None, 3, arm=arm)
                continue
            for step, value in enumerate(curve if isinstance(curve, list) else CURVE, 1):
                add(
                    grid.RACE,
                    seed,
                    "val_accuracy",
                    step,
                    value + (jitter(seed, arm) if arm == "BN-x30" else 0),
                    arm=arm,
                )
            end = curve[-1] if isinstance(curve, list) else CURVE[-1]
            add(grid.RACE, seed, "test_accuracy", None, end + jitter(seed, "end", arm), arm=arm)
    for what, rows in identities().items():
        measured += [{"part": grid.EXACT, "what": what, "seed": 0, **row} for row in rows]
    return Records("full", SETTINGS, runs, [], measured, {})


def found(records: Records) -> dict[str, Finding]:
    findings = judged(records)
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def test_where_the_paper_is_right_all_is_reproduced() -> None:
    verdicts = {claim: finding.verdict for claim, finding in found(made_up()).items()}
    assert verdicts.pop("I12") is Verdict.not_testable
    assert set(verdicts.values()) == {YES}


FLAT = [60, 60, 60, 60, 60]
CASES: list[tuple[str, dict[str, Any], Verdict]] = [
    ("I1", {"accuracy": {"bn": [90, 92, 93, 94, 94]}}, NO),
    ("I1", {"accuracy": {"bn": [50, 80, 90, 94, 95]}}, OPEN),
    ("I1.2", {"accuracy": {"bn": [10, 20, 30, 40, 50]}}, NO),  # never there
    ("I2", {"drift": {"bn": [3.0] * 4}}, NO),
    ("I2", {"drift": {"bn": [1.5] * 4}, "width": {"bn": 4.0}}, PARTLY),  # steadier only for its width
    ("I2", {"drift": {"bn": [0.5] * 4}, "width": {"bn": 0.1}}, PARTLY),
    ("I5", {"near": {"nobn": 10.0, "bn": 50.0}}, PARTLY),  # nearer, but not near
    ("I5", {"near": {"nobn": 60.0, "bn": 50.0}}, NO),
    ("I5", {"near": {"nobn": 95.0, "bn": 90.0}}, PARTLY),  # near, and nearer without
    ("I6", {"gap": {"bn": 0.4}}, NO),
    ("I6", {"gap": {"bn": 0.3}}, OPEN),
    ("I6.2", {"dropout": {"bn": {0.0: 96, 0.1: 98, 0.4: 98}}}, NO),
    ("I6.2", {"dropout": {"nobn": {0.0: 97, 0.1: 97, 0.4: 96}}}, PARTLY),  # nothing that could be replaced
    ("I8", {"race": {"BN-Baseline": FLAT}}, YES),
    ("I8", {"race": {"BN-Baseline": [10, 20, 30, 60, 60]}}, PARTLY),
    ("I8", {"race": {"BN-Baseline": CURVE}}, OPEN),  # exactly as fast
    ("I8", {"race": {"BN-Baseline": [10, 10, 10, 10, 10]}}, NO),
    ("I9", {"race": {"BN-x5": [10, 20, 30, 40, 60]}}, NO),
    ("I9", {"race": {"BN-x5": [10, 60, 61, 62, 63]}}, OPEN),  # as fast as BN-Baseline
    ("I9.2", {"race": {"BN-x30": [60, 62, 64, 66, 68]}}, PARTLY),  # higher, and no slower
    ("I9.2", {"race": {"BN-x30": [10, 20, 30, 40, 50]}}, NO),
    ("I9.2", {"race": {"BN-x30": [50, 62, 63, 64, 64]}}, OPEN),
    ("I9.3", {"race": {"BN-x5-Sigmoid": [20, 30, 50, 60, 65]}}, NO),
    ("I10", {"race": {"no BN, x5": [10, 10, 10, 10, 10]}}, PARTLY),  # fails, but is finite
    ("I10", {"race": {"no BN, x5": CURVE}}, PARTLY),  # fails at x30 only
    ("I10", {"race": {"no BN, x5": CURVE, "no BN, x30": CURVE}}, NO),
    ("I10", {"race": {"BN-x5": None, "BN-x30": None}}, NO),  # BN fails as well
    ("I10", {"race": {"no BN, x5": 2, "no BN, x30": 2}}, OPEN),  # two seeds of five
    ("I10.2", {"race": {"no BN, sigmoid": [10, 20, 30, 40, 50]}}, PARTLY),
    ("I10.2", {"race": {"BN-x5-Sigmoid": [10, 10, 10, 10, 10]}}, NO),
    ("I11", {"shuffle": {"bn": -1.0}}, NO),
    ("I11", {"shuffle": {"bn": 0.2}}, PARTLY),  # less than is negligible
    ("I11", {"shuffle": {"bn": 0.0}}, NO),
]


@pytest.mark.parametrize(("claim", "changes", "verdict"), CASES)
def test_verdicts_follow_the_records(claim: str, changes: dict[str, Any], verdict: Verdict) -> None:
    assert found(made_up(**changes))[claim].verdict is verdict


def test_cells_of_the_grid_in_which_bn_is_ahead_are_counted() -> None:
    records = made_up()
    for run in records.select(records.runs, part=grid.CHOICE1, variant="bn"):
        run["val_accuracy"] = 0.95
    extra = [{**run, "rate": 3.0, "val_accuracy": 0.8} for run in records.select(records.runs, part=grid.CHOICE1)]
    records.runs.extend(extra)
    assert "BN is ahead in 1 of 2 cells" in found(records)["I1.2"].found


def test_noise_leaves_it_open() -> None:
    findings = found(made_up(noise=40, accuracy={"bn": [50, 80, 90, 94, 96]}, shuffle={"bn": 0.5}))
    assert (findings["I1"].verdict, findings["I11"].verdict) == (OPEN, OPEN)


@pytest.mark.parametrize(
    ("claim", "what", "quantity", "value"),
    [
        ("I3", "bias", "gradient", 1e-3),
        ("I3", "effective batch", "effective", 79.0),
        ("I4", "scale, eps 0", "dw_times_a", 0.5),
        ("I7", "algorithm 2", "variance", 1e-3),
        ("I7", "algorithm 2", "biased", 0.6),
    ],
)
def test_an_identity_that_is_off_is_not_reproduced(claim: str, what: str, quantity: str, value: float) -> None:
    records = made_up()
    for row in records.select(records.measurements, part=grid.EXACT, what=what, quantity=quantity):
        row["value"] = value
    assert found(records)[claim].verdict is NO


def test_no_records_are_no_error() -> None:
    analysis = analyse(Records("full", SETTINGS, [], [], [], {}))
    verdicts = {finding.claim.id: finding.verdict for finding in analysis.findings}
    assert verdicts.pop("I12") is Verdict.not_testable
    assert set(verdicts.values()) == {OPEN} and analysis.pictures == []


# --- numbers, tables, figures ---


def test_speed_up_is_the_ratio_of_steps_to_the_baselines_best() -> None:
    base = {0: {10.0: 50.0, 20.0: 60.0, 30.0: 60.0, 40.0: 59.0}, 1: {10.0: 50.0}}
    other = {0: {10.0: 59.9, 20.0: 60.0}, 1: {10.0: 49.0}, 2: {10.0: 90.0}}
    assert effects.speed_ups(base, other) == {0: 1.0, 1: 0.0}
    assert effects.speed_ups(base, {0: {10.0: 60.0}}) == {0: 2.0}


def test_table_has_the_papers_columns_beside_ours() -> None:
    tables = {table.name: table for table in analyse(made_up(race={"no BN, x5": 2})).tables}
    assert all(len({tuple(row) for row in table.rows}) == 1 for table in tables.values())
    rows = {row["model"]: row for row in tables["figure3"].rows}
    assert list(rows) == list(ARMS)
    ours = rows["BN-x5"]["times as fast (0: never)"]
    assert (ours.mean, ours.n) == (5, 5) and rows["BN-x5"]["steps to the baseline's best"].mean == 1
    assert [rows[arm]["paper: times as fast"] for arm in REPORTED] == [1.0, 2.33, 14.76, 11.48, None]
    assert rows["BN-x5-Sigmoid"]["seeds that reached it"] == 0
    assert (rows["no BN, x5"]["diverged"], rows["no BN, x5"]["best validation accuracy, %"].n) == (2, 3)
    rates = [(r["variant"], r["rate"], r["diverged"]) for r in tables["rates"].rows if r["variant"] == "nobn"]
    assert [diverged for _, rate, diverged in rates] == [5 if rate > 0.1 else 0 for _, rate, _ in rates]
    assert tables["units"].rows[0]["units with less drift with BN, %"].mean == 100


def test_figures_are_the_papers_panels() -> None:
    pictures = {picture.name: picture for picture in analyse(made_up()).pictures}
    assert list(pictures) == ["figure1", "singular_values", "figure2", "rates", "regularisers"]
    for picture in pictures.values():
        FigureCanvasAgg(picture.figure).draw()
    a, b, c = pictures["figure1"].figure.axes
    assert a.get_ylim() == (0.7, 1.0) and b.get_ylim() == c.get_ylim() == (-2.0, 2.0)
    assert len(b.lines) == len(c.lines) == 3 * len(SEEDS)
    assert len(pictures["figure2"].figure.axes[0].lines) == len(ARMS)
