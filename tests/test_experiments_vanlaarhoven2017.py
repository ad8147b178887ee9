"""`vanlaarhoven2017`: the arms' rates, identities and where they fail, verdicts on made-up records."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn

from bnrepro.config import configs_dir, load_config
from bnrepro.experiments.base import Records, Verdict
from bnrepro.experiments.vanlaarhoven2017 import EXPERIMENT, analysis, exact, training
from bnrepro.experiments.vanlaarhoven2017.grid import ARMS, EXACT, GRID
from bnrepro.experiments.vanlaarhoven2017.training import CORRECTED, OFF, ON, REVERSE
from bnrepro.norm import NORMS
from bnrepro.train import trainer_of

FOLDER = configs_dir() / "experiment" / "vanlaarhoven2017"
PRESETS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets}
FULL: dict[str, Any] = PRESETS["full"]
SMOKE: dict[str, Any] = PRESETS["smoke"]


def test_presets_say_the_same_keys_and_full_is_as_hoffer_et_al() -> None:
    for preset in PRESETS.values():
        assert preset.keys() == FULL.keys()
        assert 0.0 in preset["grid"]["decays"] and max(preset["grid"]["decays"]) > 0
    assert FULL["seeds"] >= 5
    cfg = load_config(["optimizer=sgd", *FULL["arms"]["overrides"]])
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, FULL["arms"]["decay"]) == (0.1, 0.9, 5e-4)


def test_arms_are_the_grid_and_spare_gamma_and_beta() -> None:
    arms = EXPERIMENT.arms(SMOKE)
    cells = {(a.factors["rate"], a.factors["decay"], a.config.seed) for a in arms if a.part == GRID}
    assert len(cells) == 2 * 2 * 2
    for arm in arms:
        assert not arm.config.optimizer.decay_norm and arm.config.optimizer.momentum == 0.9
        if arm.part == GRID:
            optimizer = arm.config.optimizer
            assert (optimizer.lr, optimizer.weight_decay) == (arm.factors["rate"], arm.factors["decay"])


# --- the identities ---

ARGUMENTS = {"scale": 3.0, "steps": 8, "lr": 0.1, "decay": 0.01}


def values(**changed: float) -> dict[str, float]:
    return {row["quantity"]: row["value"] for row in exact.invariance(0, **(ARGUMENTS | changed))}  # type: ignore[arg-type]


def test_identities_hold_with_batch_normalization() -> None:
    found = values()
    small = {name for name, value in found.items() if value < 1e-12}
    assert small == {"loss", "orthogonal", "gradient", "growth", "sgd", "adam"}
    assert min(found[name] for name in ("sgd_same", "adam_same", "adam_squared")) > 1e-3
    assert found["least_growth"] > 0


def test_identities_fail_without_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "custombn", NORMS["nobn"])
    found = values()
    assert min(found[name] for name in ("loss", "orthogonal", "gradient", "growth", "sgd", "adam")) > 1e-4


# --- the arms ---


def run_of(*overrides: str) -> Any:
    cfg = load_config(["optimizer=sgd", *SMOKE["arms"]["overrides"], "epochs=1", *overrides])
    return type("Run", (), {"config": cfg})()


def test_only_weights_that_a_norm_follows_are_decayed() -> None:
    trainer = trainer_of(run_of().config)
    normed = training.normed_weights(trainer.network)
    linear = [layer for layer in trainer.network.modules() if isinstance(layer, nn.Linear)]
    assert [id(w) for w in normed] == [id(layer.weight) for layer in linear[:-1]]
    groups = training.layerwise(trainer, 0.01).param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert [id(p) for p in decayed] == [id(w) for w in normed]
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.network.parameters()))


def test_a_step_takes_each_layers_rate() -> None:
    trainer = trainer_of(run_of("optimizer.momentum=0").config)
    trainer.optimizer = training.layerwise(trainer, 0.0)
    batch = next(trainer.batches())
    weights = training.normed_weights(trainer.network)
    before = [w.detach().clone() for w in weights]
    training.update(trainer, batch, [2.0, 1.0, 0.5])
    for w, old, factor in zip(weights, before, (2.0, 1.0, 0.5), strict=True):
        assert isinstance(w.grad, Tensor)
        torch.testing.assert_close(w.detach(), old - 0.1 * factor * w.grad)


def test_corrected_arms_have_the_effective_rates_of_those_that_they_follow() -> None:
    rows = training.four_arms(run_of(), seed=0, epochs=2, decay=0.05)
    at = {(row["quantity"], row["x"]): row["value"] for row in rows}
    last = max(row["x"] for row in rows if row["x"] is not None)
    assert at[f"{CORRECTED}: rate", last] == pytest.approx(at[f"{ON}: rate", last])
    assert at[f"{REVERSE}: rate", last] == pytest.approx(at[f"{OFF}: rate", last])
    assert at[f"{ON}: rate", last] > at[f"{OFF}: rate", last]
    assert at[f"{ON}: square", last] < at[f"{OFF}: square", last]
    nothing = training.four_arms(run_of(), seed=0, epochs=1, decay=0.0)
    assert len({row["value"] for row in nothing if row["quantity"].endswith(": test")}) == 1  # four times the same


def test_norms_at_the_end_of_a_run_are_over_those_at_its_start(tiny: Any) -> None:
    from bnrepro import train
    from bnrepro.record import Run

    run = Run(train.run(tiny("epochs=1", "optimizer=sgd", "optimizer.lr=1e-9")))
    found = {row["quantity"]: row["value"] for row in training.norms(run, seed=0)}
    assert found["growth"] == pytest.approx(1, abs=1e-6)
    squares = training.squares(trainer_of(run.config).network)
    mean = math.exp(sum(map(math.log, squares)) / len(squares))
    assert found["effective_rate"] == pytest.approx(1e-9 / mean)


# --- verdicts ---


def made_up(**changed: float) -> Records:
    """Five seeds in which every claim holds, but for what ``changed`` says."""
    effect = {"decay": 0.0, "benefit": 2.0, "corrected": 0.0, "loss": 0.0, "sgd": 0.0, "sgd_same": 1.0,
              "least": 1e-5, "adam_same": 0.3, "noise": 0.05} | changed  # fmt: skip
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        draw = random.Random(seed)
        numbers = {
            "loss": effect["loss"], "orthogonal": 0.0, "gradient": 0.0, "growth": 0.0, "least_growth": effect["least"],
            "sgd": effect["sgd"], "sgd_same": effect["sgd_same"], "adam": 0.0, "adam_same": effect["adam_same"],
            "adam_squared": 1.0,
        }  # fmt: skip
        rows += [{"part": EXACT, "seed": seed, "quantity": q, "x": None, "value": v} for q, v in numbers.items()]
        for rate in FULL["grid"]["rates"]:
            for decay in FULL["grid"]["decays"]:
                who = {"part": GRID, "seed": seed, "rate": rate, "decay": decay}
                peak = 90 - abs(math.log10(rate / 0.03)) - abs(math.log10(decay / 0.002) if decay else 0)
                right = (peak + (effect["decay"] if decay else 0) + draw.gauss(0, effect["noise"])) / 100
                runs.append({**who, "status": "completed", "val_accuracy": right, "test_accuracy": right})
                for quantity, value in (("growth", 1 + rate / (decay + 0.01)), ("effective_rate", rate)):
                    rows.append({**who, "quantity": quantity, "x": None, "value": value})
        ends = {ON: effect["benefit"], OFF: 0.0, CORRECTED: effect["benefit"] + effect["corrected"], REVERSE: 0.0}
        for arm, points in ends.items():
            who = {"part": ARMS, "seed": seed}
            for step in (100, 200, 300):
                for quantity, value in (("error", 30 - step / 50), ("square", step**0.5), ("rate", 1 / step)):
                    wobble = 1 + 0.05 * draw.random()
                    rows.append({**who, "quantity": f"{arm}: {quantity}", "x": step, "value": value * wobble})
            for quantity, value in (("test", 70 + points + draw.gauss(0, effect["noise"])), ("train", 0.5)):
                rows.append({**who, "quantity": f"{arm}: {quantity}", "x": None, "value": value})
    return Records("full", FULL, runs, [], rows, {})


def verdicts(**changed: float) -> dict[str, Verdict]:
    findings = analysis.judged(made_up(**changed))
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding.verdict for finding in findings}


def test_all_is_reproduced_where_all_holds() -> None:
    assert set(verdicts().values()) == {Verdict.reproduced}


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({"loss": 1e-3}, "V1", Verdict.not_reproduced),
        ({"sgd": 1e-3}, "V1.2", Verdict.not_reproduced),
        ({"sgd_same": 0.0}, "V1.2", Verdict.not_reproduced),  # the scale has no effect at all
        ({"least": -1e-5}, "V1.3", Verdict.not_reproduced),
        ({"adam_same": 0.0}, "V1.4", Verdict.not_reproduced),  # Adam removes it altogether
        ({"decay": 3.0}, "V1.5", Verdict.not_reproduced),  # decay does more than a rate can
        ({"noise": 2.0}, "V1.5", Verdict.inconclusive),
        ({"benefit": -2.0}, "V2", Verdict.not_reproduced),
        ({"benefit": 0.0}, "V2", Verdict.not_reproduced),
        ({"corrected": -2.0}, "V2.2", Verdict.not_reproduced),
        ({"corrected": 0.5, "noise": 0.3}, "V2.2", Verdict.inconclusive),
        ({"benefit": -0.1}, "V2.2", Verdict.inconclusive),  # nothing to recover
    ],
)
def test_other_records_give_other_verdicts(changed: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert verdicts(**changed)[claim] is verdict


def test_cells_are_chosen_on_validation_data() -> None:
    records = made_up()
    assert analysis.chosen(records) == ((0.03, 0.002), (0.03, 0.0))
    for run in records.runs:
        run["test_accuracy"] = run["rate"]  # chooses nothing
    assert analysis.chosen(records) == ((0.03, 0.002), (0.03, 0.0))
    for run in records.runs:
        if (run["rate"], run["decay"]) == (0.03, 0.002):
            run["status"] = "diverged"
    assert analysis.chosen(records) != ((0.03, 0.002), (0.03, 0.0))


def test_no_records_are_no_error() -> None:
    whole = EXPERIMENT.analyse(Records("full", FULL, [], [], [], {}))
    assert {finding.verdict for finding in whole.findings} == {Verdict.inconclusive}


def test_figures_and_tables() -> None:
    whole = EXPERIMENT.analyse(made_up())
    for table in whole.tables:
        assert table.rows and len({tuple(row) for row in table.rows}) == 1
    for picture in whole.pictures:
        FigureCanvasAgg(picture.figure).draw()
        assert "n=5" in picture.caption
