"""`luo2019`: a pool of none is batch normalization, the penalty by brute force, verdicts on made-up records."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.nn import functional as F

from bnrepro import checkpoint, train
from bnrepro.config import configs_dir
from bnrepro.experiments.base import Records, Verdict
from bnrepro.experiments.luo2019 import EXPERIMENT, analysis, networks
from bnrepro.experiments.luo2019.networks import BN, NOISE, PN, TRAINING
from bnrepro.record import Run
from bnrepro.train import trainer_of

FOLDER = configs_dir() / "experiment" / "luo2019"
PRESETS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets}
FULL: dict[str, Any] = PRESETS["full"]
SMOKE: dict[str, Any] = PRESETS["smoke"]


def test_presets_say_the_same_keys_and_full_has_seeds_enough() -> None:
    for preset in PRESETS.values():
        assert preset.keys() == FULL.keys()
        assert all(preset[part].keys() == FULL[part].keys() for part in (NOISE, TRAINING))
        assert preset["training"]["decays"][0] == 0 and len(preset["training"]["decays"]) > 1
    assert FULL["seeds"] >= 5


def test_each_size_has_batch_and_population_normalization_on_one_configuration() -> None:
    probes = [p for p in EXPERIMENT.probes(SMOKE) if p.part == TRAINING and p.seed == 0]
    kinds = {(p.factors["kind"], p.factors["size"], p.factors["decay"]): p for p in probes}
    assert set(kinds) == {(BN, m, 0.0) for m in (10, 40)} | {(PN, m, c) for m in (10, 40) for c in (0.0, 0.01)}
    for (kind, size, decay), probe in kinds.items():
        assert probe.config is not None and probe.config.batch_size == size
        assert (probe.arguments["pool"] > 0) == (kind == PN) and probe.arguments["decay"] == decay
    assert {id(p.config) for p in kinds.values()} and len({p.config.batch_size for p in probes if p.config}) == 2


# --- measurements ---


def test_a_pool_of_none_is_batch_normalization(tiny: Any) -> None:
    cfg = tiny("variant=bn", "optimizer=sgd", "epochs=1")
    ordinary, ours, pooled = (trainer_of(cfg) for _ in range(3))
    others = next(networks._others(pooled, 20, 0))
    for batch in ordinary.batches(0, 2):
        ordinary.update(batch.x, batch.y, batch.lr)
        networks.step(ours, batch.x, batch.y, batch.lr, batch.x[:0], 0.0)
        networks.step(pooled, batch.x, batch.y, batch.lr, others, 0.0)
    parameters = [list(t.network.parameters()) for t in (ordinary, ours, pooled)]
    assert all(torch.equal(a, b) for a, b in zip(*parameters[:2], strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(parameters[0], parameters[2], strict=True))


def test_gamma_decay_pulls_gamma_by_its_gradient(tiny: Any) -> None:
    cfg = tiny("variant=bn", "optimizer=sgd", "optimizer.momentum=0")
    plain, decayed = trainer_of(cfg), trainer_of(cfg)
    batch = next(plain.batches())
    for trainer, decay in ((plain, 0.0), (decayed, 0.05)):
        networks.step(trainer, batch.x, batch.y, 0.1, batch.x[:0], decay)
    for a, b in zip(networks.gammas(plain.network), networks.gammas(decayed.network), strict=True):
        torch.testing.assert_close(b, a - 0.1 * 2 * 0.05 * torch.ones_like(a))  # gamma was 1


def test_the_penalty_is_the_loss_with_batch_statistics_less_that_with_all(tiny: Any) -> None:
    cfg = tiny("variant=bn", "epochs=2", "model=paper_mlp", "model.activation=relu")
    run = Run(train.run(cfg))
    found = {row["x"]: row["value"] for row in networks.penalty(run, seed=0, sizes=[4, 60], repeats=2)}
    assert found[4] > found[60] > 0
    trainer = trainer_of(cfg)
    from bnrepro import record

    trainer.network.load_state_dict(checkpoint.load(run.path / record.CHECKPOINT)["network"])
    networks.population(trainer)
    images, labels = trainer.data.normalize(trainer.data.train.images), trainer.data.train.labels
    with torch.no_grad():
        base = float(F.cross_entropy(trainer.network.eval()(images), labels))
    assert found[None] == pytest.approx(base, rel=1e-4)


def test_slope_of_a_power() -> None:
    assert analysis.slope({m: 3 / m for m in (4, 8, 32)}) == pytest.approx(-1)
    assert analysis.slope({m: m**-0.5 for m in (4, 8, 32)}) == pytest.approx(-0.5)
    assert math.isnan(analysis.slope({4: 0.1, 8: -0.01})) and math.isnan(analysis.slope({4: 0.1}))


# --- verdicts ---


def made_up(**changed: float) -> Records:
    """Five seeds in which every claim holds, but for what ``changed`` says."""
    effect = {"power": -1.0, "with": 0.0, "without": -1.0, "best": 0.01, "noise": 0.05} | changed
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        draw = random.Random(seed)
        for size in FULL["noise"]["sizes"]:
            value = 0.5 * size ** effect["power"] * math.exp(draw.gauss(0, effect["noise"]))
            rows.append({"part": NOISE, "seed": seed, "quantity": "penalty", "x": size, "value": value})
        for size, _ in FULL["training"]["sizes"]:
            for kind, decay in ((BN, 0.0), *((PN, c) for c in FULL["training"]["decays"])):
                right = kind == BN or decay == effect["best"]
                points = 0.0 if kind == BN else effect["with"] if right else effect["without"]
                loss = 0.2 + (0.0 if right else 0.1) + 1e-3 * draw.random()
                values = {"test_accuracy": 95 + points + draw.gauss(0, effect["noise"]), "gamma_squared": 1 - decay}
                values |= {f"{split}_loss": loss for split in ("train", "val", "test")}
                who = {"part": TRAINING, "kind": kind, "size": size, "decay": decay, "seed": seed, "x": None}
                rows += [{**who, "quantity": quantity, "value": value} for quantity, value in values.items()]
    return Records("full", FULL, [], [], rows, {})


def verdicts(**changed: float) -> dict[str, Verdict]:
    findings = analysis.judged(made_up(**changed))
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding.verdict for finding in findings}


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({}, "U1", Verdict.reproduced),
        ({"power": -0.5}, "U1", Verdict.not_reproduced),
        ({"power": -1.2, "noise": 0.3}, "U1", Verdict.inconclusive),
        ({}, "U1.2", Verdict.reproduced),
        ({"with": -2.0}, "U1.2", Verdict.not_reproduced),
        ({"with": 2.0}, "U1.2", Verdict.not_reproduced),  # better is not the same either
        ({"with": 0.44}, "U1.2", Verdict.inconclusive),  # one interval crosses the margin
        ({}, "U1.3", Verdict.not_testable),
    ],
)
def test_verdicts_follow_the_records(changed: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert verdicts(**changed)[claim] is verdict


@pytest.mark.parametrize("best", [0.001, 0.01, 0.1])
def test_the_strength_is_chosen_by_validation_loss(best: float) -> None:
    records = made_up(best=best)
    assert analysis.chosen(records) == best
    for row in records.measurements:
        if row["quantity"].startswith("test"):
            row["value"] = random.Random(str(row)).random()
    assert analysis.chosen(records) == best  # the test set has no say


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
