"""Galloway et al.'s experiment: arms, accuracies under noise and attack, and verdicts of made-up ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.experiments.galloway2019 import best_rates, paper, under_attack, under_noise
from bnrepro.runs.record import Run
from bnrepro.training import evaluation, train

FULL = paper.settings("full")


@pytest.fixture(scope="module")
def run(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from bnrepro.config import load_config
    from tests.conftest import TINY, changed

    own = changed(TINY, f"data.path={digits}", f"root={tmp_path_factory.mktemp('runs')}", "epochs=3", "batch_size=30")
    return Run(train.run(load_config(own)))


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def test_arms_differ_in_norm_and_rate_and_the_middle_is_attacked() -> None:
    design = paper.designed(FULL)
    arms = [arm for arm in design.arms if arm.config.seed == 0]
    assert {(a.config.variant, a.config.optimizer.lr) for a in arms} == {
        (norm, rate) for norm, rates in FULL.rates.items() for rate in rates
    }
    assert len({(a.config.epochs, a.config.batch_size, a.config.optimizer.weight_decay) for a in arms}) == 1
    found = {(p.factors["norm"], p.factors["rate"]) for p in design.probes if p.measure.name.endswith("under_attack")}
    assert found == {("bn", 0.4), ("nobn", 0.05)}


def test_presets_have_what_claims_read() -> None:
    for settings in map(paper.settings, paper.presets):
        assert settings.noise in settings.deviations
        assert set(settings.attacks) < set(settings.sizes)
        assert max(settings.sizes) not in settings.attacks  # which the gate is about


def test_noise_lowers_the_accuracy_and_without_it_it_is_the_runs(run: Run) -> None:
    found = values(under_noise.function(run=run, seed=0, deviations=[0.1, 1.0], images=200))
    assert found["noise", 0.0] == pytest.approx(100 * run.summary["test_accuracy"])
    assert found["noise", 1.0] < found["noise", 0.0] - 10
    assert found != values(under_noise.function(run=run, seed=1, deviations=[0.1, 1.0], images=200))


def test_attacks_only_lower_the_accuracy_and_are_no_weaker_with_more_steps(run: Run) -> None:
    sizes = [4, 32, 255]
    found = values(under_attack.function(run=run, seed=0, sizes=sizes, images=120, steps=8, restarts=2))
    _, data, network = evaluation.restore(run)
    split = evaluation.shuffled(data.test, 120)
    with torch.no_grad():
        right = network.eval()(data.normalize(split.images)).argmax(1) == split.labels
    strong = [found["attack", float(size)] for size in (0, *sizes)]
    assert strong[0] == pytest.approx(100 * float(right.double().mean()))
    assert strong == sorted(strong, reverse=True)
    assert strong[-1] < 5
    assert all(found["attack", float(size)] <= found["weak", float(size)] for size in sizes)


# --- claims ---


def made_up(noise: float, attack: float, left: float = 1.0, best: int = 1, clean: float = 80.0) -> Results:
    """Five seeds in which BN minus none is ``noise`` and ``attack`` points, and ``left`` % under the largest attack."""
    runs, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for norm, rates in FULL.rates.items():
        for place, rate in enumerate(rates):
            for seed in range(5):
                about = {"part": "main", "norm": norm, "rate": rate, "seed": seed}
                validation = 0.8 - 0.1 * abs(place - (best if norm == "nobn" else 1))
                runs.append({**about, "variant": norm, "status": "completed", "val_accuracy": validation})
                sign, some = (0.5 if norm == "bn" else -0.5), 0.2 * (seed * 3 % 5) * (norm == "bn")
                for x in (0.0, *FULL.deviations):
                    value = 50 + sign * noise + some if x else clean
                    rows.append({**about, "quantity": "noise", "x": x, "value": value})
                for size in (0.0, *map(float, FULL.sizes)) if place == 1 else ():
                    value = left if size == max(FULL.sizes) else 30 + sign * attack + some
                    rows.append({**about, "quantity": "attack", "x": size, "value": value})
                    rows.append({**about, "quantity": "weak", "x": size, "value": value + 1})
    return Results("full", runs, [], rows)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"noise": -15.0, "attack": -20.0}, (Verdict.reproduced, Verdict.reproduced)),
        ({"noise": -5.0, "attack": -20.0}, (Verdict.partly, Verdict.reproduced)),  # less than double digits
        ({"noise": -15.0, "attack": 3.0}, (Verdict.reproduced, Verdict.not_reproduced)),
        ({"noise": -15.0, "attack": -20.0, "left": 30.0}, (Verdict.reproduced, Verdict.too_short)),  # weak attacks
        ({"noise": -15.0, "attack": -20.0, "clean": 50.0}, (Verdict.too_short, Verdict.too_short)),
        ({"noise": -15.0, "attack": -20.0, "best": 2}, (Verdict.not_testable, Verdict.not_testable)),
    ],
)
def test_verdicts_follow_effects_gate_and_sweep(given: dict[str, Any], expected: tuple[Verdict, Verdict]) -> None:
    results = made_up(**given)
    assert tuple(each.verdict for each in judged(paper, results, FULL)) == expected
    assert best_rates(results, FULL)["BN"][0] == FULL.middle("bn")
