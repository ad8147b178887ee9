"""dksakkos/BatchNorm: its arms are the source's, its probes right, and its verdicts follow the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from bnrepro.config import configs_dir
from bnrepro.experiments.base import Arm, Finding, Records, Verdict
from bnrepro.experiments.keras_curves import EXPERIMENT, analysis, exact
from bnrepro.experiments.keras_curves.grid import ARMS, SETUP, arms
from bnrepro.model import build, norm_of
from bnrepro.norm import NORMS
from bnrepro.schema import DropoutPosition, Initialization, OptimizerName, Placement

FOLDER = configs_dir() / "experiment" / "keras_curves"
SETTINGS: dict[str, Any] = yaml.safe_load((FOLDER / "full.yaml").read_text())
Curve = Callable[[str, str, int, int], dict[str, float]]


# --- arms ---


@pytest.fixture(scope="module")
def grid() -> list[Arm]:
    return arms(SETTINGS)


def test_every_preset_gives_arms_and_probes_and_says_the_same_keys() -> None:
    files = [FOLDER / f"{preset}.yaml" for preset in EXPERIMENT.presets]
    presets = [yaml.safe_load(file.read_text()) for file in files]
    assert all(preset.keys() == SETTINGS.keys() for preset in presets)
    assert len(arms(presets[0])) == presets[0]["seeds"] * 2 * len(ARMS)
    assert all(len(exact.probes(preset)) == preset["lockstep_seeds"] * 4 + 1 for preset in presets)
    assert SETTINGS["seeds"] >= 5


def test_network_is_the_sources(grid: list[Arm]) -> None:
    for arm in (a for a in grid if a.config.seed == 0):
        cfg = arm.config
        net = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator())
        leaves = [m for m in net.modules() if not list(m.children()) and not isinstance(m, torch.nn.Identity)]
        kinds = [type(m).__name__ for m in leaves if "Norm" not in type(m).__name__]
        convolution, dense = ["Conv2d", "ReLU", "AvgPool2d"], ["Linear", "ReLU"]
        assert kinds == [*convolution * 2, "Flatten", *dense * 2, "Linear"]
        # Keras: Conv2D(6), Conv2D(16), Dense(120), Dense(84), Dense(10), all with bias; 4 scalars a unit of a norm.
        layers = sum(
            p.numel() for m in leaves if hasattr(m, "in_channels") or hasattr(m, "in_features") for p in m.parameters()
        )
        assert layers == 60 + 880 + (16 * 25 * 120 + 120) + (120 * 84 + 84) + 850
        assert len(net.norms) == 4


def test_settings_are_the_sources(grid: list[Arm]) -> None:
    of = {(a.factors["arm"], a.factors["flips"]): a.config for a in grid if a.config.seed == 0}
    assert len(of) == 10
    for (_, flips), cfg in of.items():
        adam = cfg.optimizer
        assert (adam.name, adam.lr, adam.beta1, adam.beta2, adam.eps) == (OptimizerName.adam, 1e-3, 0.9, 0.999, 1e-7)
        assert (cfg.batch_size, cfg.model.init, cfg.model.placement) == (256, Initialization.glorot, Placement.before)
        assert (cfg.data.rotate, cfg.data.brightness, cfg.data.samplewise) == (20, 0.5, True)
        assert (cfg.data.flip, cfg.data.val_fraction) == (flips == "with", 0.1)
    assert (of["bn", "with"].norm.eps, of["bn", "with"].norm.momentum) == (1e-3, pytest.approx(1 - 0.99))
    own = of["custombn_own", "with"]
    assert (own.variant, own.norm.eps, own.norm.momentum) == ("custombn", 1e-6, pytest.approx(1 - 0.9))
    same = replace(of["custombn", "with"], variant="bn")
    assert same == of["bn", "with"]  # K3 compares these two: nothing but the implementation may differ
    assert own.model.dropout_position is DropoutPosition.last and own.model.dropout == 0


# --- probes ---


def test_lockstep_tells_equal_layers_from_layers_with_other_settings() -> None:
    overrides = [*SETUP, "data=mnist5k", "model.width=0.5", "batch_size=32", "data.flip=true"]

    def worst(pair: str) -> list[float]:
        precision, theirs = exact.PAIRS[pair]
        rows = exact.lockstep(0, 5, precision, [*overrides, *theirs])
        assert [r["x"] for r in rows if r["quantity"] == "loss"] == [1, 2, 3, 4, 5]
        return [max(r["value"] for r in rows if r["quantity"] == q) for q in ("training", "eval")]

    same, momentum, eps = worst("same settings"), worst("momentum 0.1"), worst("eps 1e-6")
    assert max(same) < 1e-10
    assert momentum[0] < 1e-10 < 1e-3 < momentum[1]
    assert min(eps) > 1e-6


def test_operations_are_those_of_the_text_and_a_wrong_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def errors() -> list[float]:
        rows = exact.operations(0, batch=8, channels=3, height=4, width=4)
        assert {r["quantity"]: r["value"] for r in rows}["without eps"] == 1
        return [r["value"] for r in rows if r["quantity"] == "error"]

    assert max(errors()) < 1e-12

    def biased(features: int, shape: tuple[int, ...], options: Any) -> torch.nn.Module:
        return torch.nn.BatchNorm2d(features, eps=1e-3, momentum=options.momentum)  # another eps

    monkeypatch.setitem(NORMS, "custombn", biased)
    assert max(errors()) > 1e-6


# --- verdicts ---


def made_up(
    accuracy: Callable[[str, str, int], float] = lambda arm, flips, seed: 0.0,
    curve: Callable[[str, int, int], tuple[float, float]] = lambda arm, seed, point: (0.0, 0.0),
    apart: float = 1e-14,
    error: float = 1e-15,
    status: Callable[[str, int], str] = lambda arm, seed: "completed",
) -> Records:
    """Records with noise of about 0.001: ``accuracy`` and ``curve`` (accuracy, loss) are added to a common course."""
    settings = {**SETTINGS, "epochs": 3, "lockstep_steps": 4}
    runs, curves = [], []
    for seed in range(5):
        for flips in ("with", "without"):
            for place, arm in enumerate(ARMS):
                noise = 1e-4 * ((7 * seed + 3 * place) % 5 - 2)
                who: dict[str, Any] = {"part": "curves", "arm": arm, "flips": flips, "seed": seed}
                end: dict[str, Any] = {
                    "test_accuracy": 0.985 + noise + accuracy(arm, flips, seed),
                    "status": status(arm, seed),
                }
                runs.append({**who, **end, "variant": arm, "steps": 30, "epochs": 3})
                for point in range(1, 7):
                    high, low = 0.9 + 0.015 * point + noise, 0.4 - 0.05 * point + noise
                    more, less = curve(arm, seed, point)
                    values = {"train_accuracy": high + more, "val_accuracy": high + more}
                    values |= {"train_loss": low - less, "val_loss": low - less}
                    curves.append({**who, "step": 5 * point, "epoch": point / 2, **values})
    measurements: list[dict[str, Any]] = [
        {"part": "operations", "seed": 0, "quantity": "error", "x": "training", "value": error}
    ]
    measurements += [{"part": "operations", "seed": 0, "quantity": "learned", "x": None, "value": 1.0}]
    for pair in exact.PAIRS:
        who = {"part": "lockstep", "pair": pair, "seed": 0}
        for step in range(1, 5):
            measurements += [{**who, "quantity": q, "x": step, "value": apart * step} for q in ("training", "eval")]
        measurements.append({**who, "quantity": "bias", "x": None, "value": 1e-3})
    return Records("full", settings, runs, curves, measurements, {})


def found(records: Records) -> dict[str, Finding]:
    findings = analysis.judged(records)
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def faster(arm: str, seed: int, point: int) -> tuple[float, float]:
    return (0.0, 0.0) if arm == "nobn" else (0.02, 0.06)


def slower(arm: str, seed: int, point: int) -> tuple[float, float]:
    return (0.02, 0.06) if arm == "nobn" else (0.0, 0.0)


def test_k1_and_k5_follow_the_curves() -> None:
    assert {found(made_up(curve=faster))[k].verdict for k in ("K1", "K5")} == {Verdict.reproduced}
    assert {found(made_up(curve=slower))[k].verdict for k in ("K1", "K5")} == {Verdict.not_reproduced}
    only = made_up(curve=lambda arm, seed, point: faster(arm, seed, point) if arm != "custombn_own" else (0.0, 0.0))
    assert found(only)["K1"].verdict is Verdict.partly
    assert found(made_up())["K1"].verdict is Verdict.inconclusive


def test_k5_looks_at_the_ends_of_epochs_as_the_sources_figures_do() -> None:
    def late(arm: str, seed: int, point: int) -> tuple[float, float]:
        """Validation far worse within epochs, when moving averages lag; better at their ends."""
        more = 0.02 if point % 2 == 0 else -0.3
        return (0.0, 0.0) if arm == "nobn" else (more, more)

    records = made_up(curve=late)
    for row in records.curves:
        row["train_accuracy"], row["train_loss"] = (
            (0.9, 0.5) if row["arm"] == "nobn" else (0.95 + row["step"] / 1e4, 0.4)
        )
    assert found(records)["K5"].verdict is Verdict.reproduced


def test_k1_counts_steps_and_not_noise() -> None:
    finding = found(made_up(curve=faster))["K1"]
    # 0.9 + 0.015 p reaches 0.97 at the fifth of six points (0.975), and with 0.02 more at the fourth (0.98).
    assert finding.effect is not None and finding.effect.mean == pytest.approx(5.0, abs=1.1)


def test_threshold_never_reached_counts_all_steps() -> None:
    rows = [{"step": s, "val_accuracy": 0.1 * s, "train_loss": 1 / s} for s in (1, 2, 3)]
    assert [analysis.steps_to(rows, "val_accuracy", t) for t in (0.1, 0.15, 0.9)] == [1, 2, 3]
    assert [analysis.steps_to(rows, "train_loss", t) for t in (1.0, 0.4, 0.1)] == [1, 3, 3]
    assert [analysis.reached(rows, "train_loss", t) for t in (0.4, 0.1)] == [1, 0]
    assert analysis.steps_to([], "train_loss", 1.0) is None


def test_epochs_are_means_of_training_and_ends_of_validation() -> None:
    rows = [{"epoch": e / 2, "train_loss": float(e), "val_loss": float(e)} for e in (1, 2, 3, 4)]
    assert [analysis.at_epoch(rows, "train_loss", e) for e in (1, 2, 3)] == [1.5, 3.5, None]
    assert [analysis.at_epoch(rows, "val_loss", e) for e in (1, 2)] == [2, 4]


@pytest.mark.parametrize(
    ("points", "verdict"),
    [
        (0.8, Verdict.reproduced),  # above the margin of 0.2
        (0.1, Verdict.partly),  # better, and by less than the margin
        (0.0, Verdict.not_reproduced),  # less than the margin, and zero is possible
        (-1.0, Verdict.not_reproduced),
        (0.2, Verdict.inconclusive),  # across the margin
    ],
)
def test_k2_asks_for_a_margin(points: float, verdict: Verdict) -> None:
    records = made_up(accuracy=lambda arm, flips, seed: points / 100 if arm in ("bn", "custombn_own") else 0.0)
    assert found(records)["K2"].verdict is verdict


def test_k2_speaks_of_the_runs_with_flips_only() -> None:
    records = made_up(accuracy=lambda arm, flips, seed: 0.01 if flips == "without" and arm != "nobn" else 0.0)
    assert found(records)["K2"].verdict is not Verdict.reproduced


def test_k3_needs_both_equality_and_equivalence() -> None:
    assert found(made_up())["K3"].verdict is Verdict.reproduced
    assert found(made_up(apart=1e-6))["K3"].verdict is Verdict.not_reproduced
    worse = made_up(accuracy=lambda arm, flips, seed: -0.01 if arm == "custombn" else 0.0)
    assert found(worse)["K3"].verdict is Verdict.not_reproduced
    noisy = made_up(accuracy=lambda arm, flips, seed: 0.004 * (seed % 2) if arm == "custombn" else 0.0)
    assert found(noisy)["K3"].verdict is Verdict.inconclusive
    # The source's own settings are another matter: they decide nothing here.
    own = made_up(accuracy=lambda arm, flips, seed: -0.01 if arm == "custombn_own" else 0.0)
    assert found(own)["K3"].verdict is Verdict.reproduced


def test_k6_fails_with_a_wrong_layer() -> None:
    assert found(made_up())["K6"].verdict is Verdict.reproduced
    assert found(made_up(error=1e-6))["K6"].verdict is Verdict.not_reproduced


def test_k8_says_which_labels_fit() -> None:
    def lag(arm: str, seed: int, point: int) -> tuple[float, float]:
        return (-0.1, 0.0) if arm == "bn" and point <= 2 else (0.0, 0.0)

    behind = found(made_up(curve=lag))["K8"]
    assert behind.verdict is Verdict.not_reproduced and "opposite of the labels'" in behind.found
    ahead = made_up(curve=lambda arm, seed, point: tuple(-v for v in lag(arm, seed, point)))  # type: ignore[arg-type,return-value]
    assert found(ahead)["K8"].verdict is Verdict.reproduced


def test_what_cannot_be_measured_is_said_to_be_so() -> None:
    findings = found(made_up())
    assert {k for k, f in findings.items() if f.verdict is Verdict.not_testable} == {"K4", "K7"}


def test_diverged_runs_are_left_out_and_no_records_are_no_error() -> None:
    lost = made_up(curve=faster, status=lambda arm, seed: "diverged" if arm == "nobn" and seed == 0 else "completed")
    effect = found(lost)["K2"].effect
    assert effect is not None and effect.n == 4
    empty = Records("full", SETTINGS, [], [], [], {})
    assert {f.verdict for k, f in found(empty).items() if k in ("K1", "K2", "K5", "K8")} == {Verdict.inconclusive}


def test_tables_and_pictures_show_every_arm() -> None:
    result = EXPERIMENT.analyse(made_up(curve=faster))
    assert all(len({tuple(row) for row in table.rows}) == 1 for table in result.tables)
    assert [row["test accuracy"].n for row in result.tables[0].rows] == [5] * 10
    assert {row["reached"] for row in result.tables[1].rows} <= {f"{n} of 5" for n in range(6)}
    assert all(row["epochs"].mean == pytest.approx(row["steps"].mean / 10) for row in result.tables[1].rows)
    pictures = {p.name: p for p in result.pictures}
    both = [f"{what}_{flips}_flips" for flips in ("with", "without") for what in ("curves", "test_accuracy")]
    assert list(pictures) == [*both, "lockstep"]
    overview = pictures["curves_with_flips"].figure
    assert [len(axes.lines) for axes in overview.axes] == [5] * 4
    assert "n=5" in pictures["curves_with_flips"].caption
