"""`frankle2021`: arms as the source has them, gammas of a known network, verdicts on made-up records."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bnrepro import train
from bnrepro.config import configs_dir
from bnrepro.experiments.base import Records, Verdict
from bnrepro.experiments.frankle2021 import EXPERIMENT, analysis, networks
from bnrepro.experiments.frankle2021.networks import DEPTH, TRAINED, WIDTH
from bnrepro.record import Run

FOLDER = configs_dir() / "experiment" / "frankle2021"
PRESETS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets}
FULL: dict[str, Any] = PRESETS["full"]
SMOKE: dict[str, Any] = PRESETS["smoke"]


def test_presets_say_the_same_keys_and_full_has_seeds_enough() -> None:
    assert all(preset.keys() == FULL.keys() for preset in PRESETS.values())
    assert FULL["seeds"] >= 5 and len(FULL["depths"]) >= 3


def test_arms_are_as_in_the_sources_code() -> None:
    arms = EXPERIMENT.arms(SMOKE | {"common": ["data=mnist5k"], "depths": [2], "seeds": 1})
    assert [(a.part, a.factors["trained"]) for a in arms] == [(p, t) for p in (DEPTH, WIDTH) for t in TRAINED]
    for arm in arms:
        cfg = arm.config
        assert cfg.optimizer.train_only == arm.factors["trained"] and cfg.norm.gamma == "uniform"
        assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.momentum) == ("sgd", 0.1, 0.9)
        assert (cfg.batch_size, cfg.optimizer.weight_decay, cfg.schedule.milestones) == (128, 0.0, [0.5, 0.75])
        assert getattr(cfg.model, arm.part) == arm.factors["size"]


def test_gammas_of_a_run(tiny: Any) -> None:
    cfg = tiny("epochs=1", "norm.gamma=uniform", "optimizer.train_only=norm", "optimizer=sgd", "optimizer.lr=1e-12")
    run = Run(train.run(cfg))
    rows = networks.gammas(run, seed=0, threshold=0.5)
    found = {row["quantity"]: row["value"] for row in rows if row["x"] is None}
    assert found["disabled"] == found["disabled_at_start"] == pytest.approx(50, abs=10)  # of U(0, 1)
    assert found["trained"] == 2 * (6 + 16 + 120 + 84)  # lenet's channels and units
    density = {row["x"]: row["value"] for row in rows if row["quantity"] == "density"}
    assert sum(density.values()) * 0.1 == pytest.approx(1)
    assert all(value == 0 for x, value in density.items() if not 0 < x < 1)
    with torch.no_grad():
        nothing = {row["quantity"]: row["value"] for row in networks.gammas(run, seed=0, threshold=0.0)}
    assert nothing["disabled"] == 0


# --- verdicts ---


def made_up(**changed: float) -> Records:
    """Five seeds in which every claim holds, but for what ``changed`` says."""
    effect = {"gain": 20.0, "deep": 5.0, "disabled": 33.0, "usual": 2.0, "noise": 0.1} | changed
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        draw = random.Random(seed)
        for part, values in ((DEPTH, FULL["depths"]), (WIDTH, FULL["widths"])):
            for value in values:
                for trained in TRAINED:
                    who = {"part": part, "size": value, "trained": trained, "seed": seed}
                    deeper = effect["deep"] * (value - 1) if part == DEPTH else 10 * value
                    base = {"norm": 40 + effect["gain"], "random": 40.0, "last": 35.0, "all": 80.0}[trained] + deeper
                    accuracy = (base + draw.gauss(0, effect["noise"])) / 100
                    runs.append({**who, "status": "completed", "test_accuracy": accuracy})
                    share = effect["disabled"] if trained == "norm" else effect["usual"]
                    numbers = {"trained": 100.0, "disabled": share + draw.gauss(0, 1), "disabled_at_start": 1.0}
                    rows += [{**who, "quantity": q, "x": None, "value": v} for q, v in numbers.items()]
                    rows += [{**who, "quantity": "density", "x": x / 10, "value": 0.5} for x in range(-15, 25)]
    return Records("full", FULL, runs, [], rows, {})


def verdicts(**changed: float) -> dict[str, Verdict]:
    findings = analysis.judged(made_up(**changed))
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding.verdict for finding in findings}


def test_all_is_reproduced_where_all_holds() -> None:
    assert verdicts() == {
        "F1": Verdict.reproduced,
        "F1.2": Verdict.reproduced,
        "F1.3": Verdict.reproduced,
        "F1.4": Verdict.not_testable,
    }


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({"gain": -5.0}, "F1", Verdict.not_reproduced),
        ({"gain": 0.0}, "F1", Verdict.not_reproduced),
        ({"gain": 1.0, "noise": 2.0}, "F1", Verdict.inconclusive),
        ({"deep": -5.0}, "F1.2", Verdict.not_reproduced),
        ({"deep": 0.0}, "F1.2", Verdict.not_reproduced),
        ({"deep": 0.0, "noise": 5.0}, "F1.2", Verdict.inconclusive),
        ({"disabled": 60.0}, "F1.3", Verdict.partly),  # more than without, and not a third
        ({"disabled": 10.0}, "F1.3", Verdict.partly),
        ({"disabled": 33.0, "usual": 50.0}, "F1.3", Verdict.not_reproduced),  # training everything disables more
        ({"disabled": 33.0, "usual": 33.0}, "F1.3", Verdict.inconclusive),
    ],
)
def test_other_records_give_other_verdicts(changed: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert verdicts(**changed)[claim] is verdict


def test_no_records_are_no_error() -> None:
    whole = EXPERIMENT.analyse(Records("full", FULL, [], [], [], {}))
    assert {finding.verdict for finding in whole.findings} == {Verdict.inconclusive, Verdict.not_testable}


def test_figures_and_tables() -> None:
    whole = EXPERIMENT.analyse(made_up())
    for table in whole.tables:
        assert table.rows and len({tuple(row) for row in table.rows}) == 1
    for picture in whole.pictures:
        FigureCanvasAgg(picture.figure).draw()
        assert "n=5" in picture.caption
