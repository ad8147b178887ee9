"""Placement: its arms are what their factors say, its probes right, and its verdicts follow the records."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import nn

from bnrepro.config import configs_dir
from bnrepro.experiments.base import Arm, Finding, Records, Verdict
from bnrepro.experiments.cells import combined
from bnrepro.experiments.placement import EXPERIMENT, analysis, drawing, exact
from bnrepro.experiments.placement.claims import REPORTED
from bnrepro.experiments.placement.grid import POSITIONS, arms
from bnrepro.model import build, norm_of
from bnrepro.norm import NORMS, BatchNorm2d, NormOptions
from bnrepro.norm.variants import GhostBatchNorm

FOLDER = configs_dir() / "experiment" / "placement"
SETTINGS: dict[str, Any] = yaml.safe_load((FOLDER / "full.yaml").read_text())
SMOKE: dict[str, Any] = yaml.safe_load((FOLDER / "smoke.yaml").read_text())


# --- arms ---


@pytest.fixture(scope="module")
def grid() -> list[Arm]:
    return [arm for arm in arms({**SMOKE, "networks": {"LeNet": ["model=lenet"]}}) if arm.config.seed == 0]


def leaves(arm: Arm) -> list[nn.Module]:
    cfg = arm.config
    net = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator())
    return [m for m in net.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]


def test_presets_say_the_same_keys_and_full_has_seeds_enough() -> None:
    presets = [yaml.safe_load((FOLDER / f"{preset}.yaml").read_text()) for preset in EXPERIMENT.presets]
    assert all(preset.keys() == SETTINGS.keys() for preset in presets)
    assert SETTINGS["seeds"] >= 5
    assert all(preset["ghost_decides"] in preset["ghost_sizes"] for preset in presets)
    assert set(SETTINGS["activations"]) == {"relu", "elu", "tanh", "sigmoid", "prelu"}
    assert SETTINGS["dropout_amounts"] == sorted(SETTINGS["dropout_amounts"]) == [0.1, 0.2, 0.3, 0.5]


def test_each_order_stands_where_its_factor_says(grid: list[Arm]) -> None:
    orders = [arm for arm in grid if arm.part == "order"]
    assert len(orders) == 3 * 3 + 2
    activations = {"relu": nn.ReLU, "elu": nn.ELU, "prelu": nn.PReLU}
    for arm in orders:
        modules = leaves(arm)
        kind = activations[arm.factors["activation"]]
        norm = [isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules]
        if arm.factors["order"] == "none":
            assert not any(norm)
            continue
        acts = [isinstance(m, kind) for m in modules]
        first, second = (norm, acts) if arm.factors["order"] == "before" else (acts, norm)
        assert sum(norm) == sum(acts) == 4
        assert all(b for a, b in zip(first, second[1:], strict=False) if a)  # each is followed by the other
        affine = {m.affine for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        assert affine == {arm.factors["affine"] == "on"}


def test_dropout_and_ghost_batches_are_those_of_their_factors() -> None:
    made = [a for a in arms({**SMOKE, "regularized": ["model=lenet"]}) if a.config.seed == 0]
    cells = set()
    for arm in (a for a in made if a.part == "dropout"):
        modules = leaves(arm)
        drops = [m for m in modules if isinstance(m, nn.Dropout)]
        assert {m.p for m in drops} == ({arm.factors["amount"]} if arm.factors["amount"] else set())
        after = {type(modules[i + 1]).__name__ for i, m in enumerate(modules) if isinstance(m, nn.Dropout)}
        norms = {"BatchNorm1d", "BatchNorm2d"}
        if arm.factors["position"] == "before_norm":
            assert after == norms
        elif arm.factors["position"] == "last":
            assert after == {"Linear"} and len(drops) == 1
        elif arm.factors["norm"] == "bn" and drops:
            assert not after & norms and len(drops) == 4
        cells.add((arm.factors["norm"], arm.factors["position"], arm.factors["amount"]))
    everywhere = {("bn", position, amount) for position in POSITIONS for amount in (0.1, 0.5)}
    assert cells == everywhere | {("bn", "none", 0.0), ("nobn", "none", 0.0), ("nobn", "after_norm", 0.5)}
    for arm in (a for a in made if a.part == "ghost"):
        sizes = {m.ghost_size for m in leaves(arm) if isinstance(m, GhostBatchNorm)}
        assert sizes == ({arm.factors["size"]} if arm.factors["size"] < arm.config.batch_size else set())
    assert [a.factors["size"] for a in made if a.part == "ghost"] == [32, 4, 8]
    probes = [p for p in EXPERIMENT.probes(SMOKE) if p.part == "ghost"]
    assert {p.config.variant for p in probes if p.config} == {"bn", "ghostbn"} and len(probes) == 6


# --- probes ---


def rows_of(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


SHAPE = {"batch": 8, "channels": 3, "height": 5, "width": 4}


def test_identity_holds_and_misses_by_eps_where_the_formula_has_none() -> None:
    values = rows_of(exact.identity(0, **SHAPE))
    assert values["error", "sqrt(variance + eps)"] < 1e-12
    assert values["moved", None] < 1e-12
    x = exact.draw(0, **SHAPE).numpy()
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    by_hand = np.abs(np.sqrt(var) * (x - mean) / np.sqrt(var + 1e-5) + mean - x).max()
    assert values["error", "deviation"] == pytest.approx(by_hand, rel=1e-6)
    assert values["expected", "deviation"] == pytest.approx(by_hand, rel=1e-6)
    assert by_hand > 1e-7


def test_a_layer_that_is_not_per_channel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts() -> tuple[Verdict, Verdict]:
        rows = [{**r, "part": "identity", "seed": 0} for r in exact.identity(0, **SHAPE)]
        rows += [{**r, "part": "channels", "seed": 0} for r in exact.channels(0, **SHAPE)]
        records = Records("full", SETTINGS, [], [], rows, {})
        return analysis.p4(records).verdict, analysis.p5(records).verdict

    assert verdicts() == (Verdict.reproduced, Verdict.reproduced)

    class Whole(BatchNorm2d):
        """Statistics over the channels too."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x - x.mean()) / (x.var(correction=0) + self.eps).sqrt()
            return y * self.weight[:, None, None] + self.bias[:, None, None]

    def whole(features: int, shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        return Whole(features, eps=1e-5)

    monkeypatch.setitem(NORMS, "bn", whole)
    assert verdicts() == (Verdict.not_reproduced, Verdict.not_reproduced)


# --- verdicts ---

NETWORKS = list(SETTINGS["networks"])
Cell = Callable[[str, str, str, str], float]


def made_up(
    order: Cell = lambda network, activation, order, affine: 0.0,
    dropout: Callable[[str, str, float], float] = lambda norm, position, amount: 0.0,
    ghost: Callable[[int], tuple[float, float]] = lambda size: (0.0, 0.0),
    noise: float = 0.05,
) -> Records:
    """Records of 5 seeds whose accuracies are 90 points plus an effect plus noise, whose mean over seeds is zero."""
    runs: list[dict[str, Any]] = []
    measurements: list[dict[str, Any]] = []

    def add(part: str, points: float, seed: int, **factors: Any) -> None:
        wobble = random.Random(str(factors)).sample(range(-2, 3), 5)[seed]
        accuracy = 0.9 + (points + noise * wobble) / 100
        who = {"part": part, "seed": seed, "status": "completed", **factors}
        runs.append({**who, "test_accuracy": accuracy})

    for seed in range(5):
        for network in NETWORKS:
            for activation in SETTINGS["activations"]:
                for where in ("before", "after", "none"):
                    for affine in ("on", "off") if activation == "relu" and where != "none" else ("on",):
                        cell = {"network": network, "activation": activation, "order": where, "affine": affine}
                        add("order", order(network, activation, where, affine), seed, **cell)
        cells = [("bn", p, a) for p in POSITIONS for a in SETTINGS["dropout_amounts"]]
        for norm, position, amount in [
            *cells,
            *(("bn", "none", 0.0), ("nobn", "none", 0.0), ("nobn", "after_norm", 0.5)),
        ]:
            add("dropout", dropout(norm, position, amount), seed, norm=norm, position=position, amount=amount)
        for size in (4, 8, 16, 32, 64, 128):
            gap, accuracy = ghost(size)
            wobble = 1e-3 * ((7 * seed + size) % 5 - 2)
            values = {"gap": 0.1 + gap + wobble, "train_loss": 0.05 - gap / 2, "test_loss": 0.15 + gap / 2 + wobble}
            values["test_accuracy"] = 0.9 + (accuracy + noise * ((3 * seed + size) % 5 - 2)) / 100
            who = {"part": "ghost", "size": size, "seed": seed, "x": None}
            measurements += [{**who, "quantity": quantity, "value": value} for quantity, value in values.items()]
    for part, rows in (("identity", exact.identity(0, **SHAPE)), ("channels", exact.channels(0, **SHAPE))):
        measurements += [{**row, "part": part, "seed": 0} for row in rows]
    return Records("full", SETTINGS, runs, [], measurements, {})


def found(records: Records) -> dict[str, Finding]:
    findings = analysis.judged(records)
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def after_is(points: float, networks: list[str] = NETWORKS) -> Cell:
    return lambda network, activation, order, affine: points if order == "after" and network in networks else 0.0


@pytest.mark.parametrize(
    ("points", "networks", "verdict"),
    [
        (2.0, NETWORKS, Verdict.reproduced),
        (2.0, NETWORKS[:1], Verdict.partly),
        (-2.0, NETWORKS, Verdict.not_reproduced),
        (-2.0, NETWORKS[:1], Verdict.not_reproduced),
        (0.0, NETWORKS, Verdict.not_reproduced),  # less than is negligible, everywhere
    ],
)
def test_p1_follows_the_sign_by_network(points: float, networks: list[str], verdict: Verdict) -> None:
    assert found(made_up(order=after_is(points, networks)))["P1"].verdict is verdict


def test_p1_is_open_where_noise_hides_the_effect_and_partly_where_signs_differ() -> None:
    assert found(made_up(noise=2.0))["P1"].verdict is Verdict.inconclusive
    mixed: Cell = lambda network, activation, order, affine: (  # noqa: E731
        (2.0 if activation == "relu" else -2.0) if order == "after" else 0.0
    )
    finding = found(made_up(order=mixed))["P1"]
    assert finding.verdict is Verdict.partly
    assert "better than before in 3 and worse in 12" in finding.found


@pytest.mark.parametrize(
    ("half", "tenth", "verdict"),
    [
        (-2.0, 0.0, Verdict.reproduced),
        (-2.0, -1.0, Verdict.partly),  # even the amount that the seed allows harms
        (2.0, 0.0, Verdict.not_reproduced),
        (0.0, 0.0, Verdict.not_reproduced),
    ],
)
def test_p2_looks_at_dropout_after_the_norm(half: float, tenth: float, verdict: Verdict) -> None:
    def effect(norm: str, position: str, amount: float) -> float:
        if (norm, position) != ("bn", "after_norm"):
            return -5.0 if norm == "bn" and position == "before_norm" else 0.0
        return {0.5: half, 0.1: tenth}.get(amount, 0.0)

    assert found(made_up(dropout=effect))["P2"].verdict is verdict


@pytest.mark.parametrize(
    ("gap", "accuracy", "verdict"),
    [
        (-0.02, 0.3, Verdict.reproduced),
        (-0.02, -2.0, Verdict.partly),  # noise that narrows the gap by fitting worse is not what one wants
        (0.02, 0.3, Verdict.not_reproduced),
        (0.0, 0.0, Verdict.inconclusive),
    ],
)
def test_p3_asks_for_a_narrower_gap_at_no_loss(gap: float, accuracy: float, verdict: Verdict) -> None:
    records = made_up(ghost=lambda size: (gap, accuracy) if size == SETTINGS["ghost_decides"] else (0.0, 0.0))
    assert found(records)["P3"].verdict is verdict


def test_p6_follows_gamma_and_beta_in_either_order() -> None:
    def as_reported(network: str, activation: str, order: str, affine: str) -> float:
        return 1.0 if (order, affine) in (("before", "on"), ("after", "off")) else 0.0

    def always(network: str, activation: str, order: str, affine: str) -> float:
        return 1.0 if affine == "on" else 0.0

    def reverse(network: str, activation: str, order: str, affine: str) -> float:
        return -as_reported(network, activation, order, affine)

    verdicts = [found(made_up(order=cell))["P6"].verdict for cell in (as_reported, always, reverse)]
    assert verdicts == [Verdict.reproduced, Verdict.partly, Verdict.not_reproduced]


def test_p7_wants_the_three_alike_with_bn_and_nearer_than_without() -> None:
    def apart(with_bn: float, without: float) -> Cell:
        def cell(network: str, activation: str, order: str, affine: str) -> float:
            place = {"relu": -1.0, "elu": 1.0}.get(activation, 0.0)
            return place * (without if order == "none" else with_bn)

        return cell

    verdicts = [found(made_up(order=apart(*pair)))["P7"].verdict for pair in ((0.0, 1.0), (0.0, 0.0), (1.0, 2.0))]
    assert verdicts == [Verdict.reproduced, Verdict.partly, Verdict.not_reproduced]
    only = made_up(
        order=lambda n, a, o, f: apart(0.0, 1.0)(n, a, o, f) if n == NETWORKS[0] else apart(1.0, 1.0)(n, a, o, f)
    )
    assert found(only)["P7"].verdict is Verdict.partly


def test_verdicts_of_networks_combine() -> None:
    yes, partly, no, open_ = Verdict.reproduced, Verdict.partly, Verdict.not_reproduced, Verdict.inconclusive
    assert combined([yes, yes]) is yes and combined([no, no]) is no
    assert combined([yes, no]) is partly and combined([partly, open_]) is partly
    assert combined([no, open_]) is open_


def test_no_records_are_no_error() -> None:
    findings = found(Records("full", SETTINGS, [], [], [], {}))
    assert {f.verdict for f in findings.values()} == {Verdict.inconclusive}
    assert EXPERIMENT.analyse(Records("full", SETTINGS, [], [], [], {})).pictures == []


def test_tables_hold_the_benchmarks_numbers_beside_ours() -> None:
    records = made_up(order=after_is(2.0))
    tables = {table.name: table for table in analysis.tables(records)}
    assert all(len({tuple(row) for row in table.rows}) == 1 for table in tables.values())
    rows = {row["network"]: row for row in tables["beside_the_source"].rows}
    assert len(rows) == len(REPORTED) + len(NETWORKS)
    differences = {name: row["after - before, points"].mean for name, row in rows.items()}
    assert differences["CaffeNet128, ImageNet (source)"] == pytest.approx(2.5)
    assert differences["GoogLeNet128, orthogonal (source)"] == pytest.approx(-2.3)
    assert differences[f"{NETWORKS[0]} (here)"] == pytest.approx(2.0, abs=0.3)
    assert len(tables["accuracies"].rows) == 15 and len(tables["dropout"].rows) == 15 and len(tables["ghost"].rows) == 6


def test_heat_map_stars_what_is_significant() -> None:
    records = made_up(order=after_is(2.0, NETWORKS[:1]))
    pictures = {p.name: p for p in drawing.pictures(records)}
    assert list(pictures) == ["order", "dropout", "ghost"]
    top = pictures["order"].figure.axes[0]
    texts = [text.get_text() for text in top.texts]
    assert len(texts) == 15
    assert ["*" in text for text in texts] == [True] * 5 + [False] * 10
    assert texts[0].startswith("+2.00*\n[+1.")
