"""Schneider et al.'s experiment: accuracies against brute force, what is chosen on validation data, and verdicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.data.corruptions import KINDS, corrupt
from bnrepro.experiments import schneider2020
from bnrepro.experiments.schneider2020 import (
    AFFINE,
    BATCH,
    MINIMIZED,
    MIXED,
    TOGETHER,
    TOLERANCE,
    TRAINED,
    adapted,
    adapted_to,
    affine,
    by_images,
    chosen,
    entropy_minimized,
    paper,
)
from bnrepro.runs.record import Run
from bnrepro.training import evaluation, train

FULL = paper.settings("full")


@pytest.fixture(scope="module")
def run(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from bnrepro.config import load_config
    from tests.conftest import TINY, changed

    own = changed(TINY, f"data.path={digits}", f"root={tmp_path_factory.mktemp('runs')}", "epochs=1", "batch_size=30")
    return Run(train.run(load_config(own)))


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def test_presets_have_what_claims_are_about() -> None:
    for settings in map(paper.settings, paper.presets):
        assert {1, 32} <= set(settings.sizes)
        assert 0 in settings.priors
        assert max(settings.severities) == 5
        whole = [TOGETHER // size * size for size in settings.sizes]
        assert all(images % size == 0 for images, size in zip(whole, settings.sizes, strict=True))


def test_the_runs_are_of_all_networks_and_the_first_has_all_measurements() -> None:
    design = paper.designed(FULL)
    made = {(p.factors.get("network"), p.measure.name) for p in design.probes if p.seed == 0}
    first, second = FULL.networks
    names = ("adapted", "by_images", "entropy_minimized")
    assert made == {(first, f"schneider2020/{name}") for name in names} | {
        (second, "schneider2020/adapted"),
        (None, "schneider2020/affine"),
    }
    assert {arm.config.variant for arm in design.arms} == {"bn"}


def test_accuracies_are_those_of_corrupted_images(run: Run) -> None:
    found = values(adapted.function(run=run, seed=3, severities=[5], images=200))
    _, data, network = evaluation.restore(run)
    split = evaluation.shuffled(data.test, 200)
    for kind in KINDS:
        x = data.normalize(corrupt(split.images, kind, 5, seed=3))
        for name, mode in ((TRAINED, False), (BATCH, True)):  # 200 images are one batch
            with torch.no_grad():
                right = network.train(mode)(x).argmax(1) == split.labels
            assert found[name, f"{kind} 5"] == pytest.approx(100 * float(right.double().mean()))
            network = evaluation.restore(run)[2]  # training mode has moved the statistics
    assert found[TRAINED, "none"] == pytest.approx(100 * run.summary["test_accuracy"])


def test_many_pseudo_samples_are_the_statistics_of_training(run: Run) -> None:
    rows = by_images.function(run=run, seed=0, sizes=[1, 32], priors=[0, 10**12], images=64, choosing_images=50)
    found = values(rows)
    for split in ("test", "val"):
        for size in (1, 32):
            assert found[f"{split} {size}", 10**12] == found[f"{split} 0", None]
    assert found["test 32", 0] != found["test 0", None]


def test_tent_at_rate_zero_is_the_batchs_statistics_and_moves_above(run: Run) -> None:
    still, moved = (
        values(entropy_minimized.function(run=run, seed=0, images=200, batch=50, rate=rate)) for rate in (0.0, 0.05)
    )
    for kind in KINDS:
        assert still[MINIMIZED, kind] == still[MIXED, kind] == moved[MIXED, kind]
    assert any(moved[MINIMIZED, kind] != still[MINIMIZED, kind] for kind in KINDS)


def test_an_affine_change_is_undone_by_the_batch_and_not_by_what_is_kept() -> None:
    for seed in range(3):
        found = values(affine.function(seed=seed))
        assert {x for _, x in found} == set(AFFINE)
        assert all(found[BATCH, x] < TOLERANCE < 1e-3 < found[TRAINED, x] for x in AFFINE)


def test_padding_before_the_norm_is_what_the_identity_excludes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = schneider2020.load_config
    monkeypatch.setattr(schneider2020, "load_config", lambda o: real(["model=resnet20", "model.depth=1", *o[1:]]))
    found = values(affine.function(seed=0))
    assert found[BATCH, "contrast"] < TOLERANCE  # a factor alone is undone all the same
    assert found[BATCH, "brightness"] > 1e-3


# --- claims ---


def made_up(gain: float, one: float = 3.0, tent: float = 2.0, clean: float = 80.0, harm: float = 30.0) -> Results:
    """Five seeds of both networks."""
    rows: list[dict[str, Any]] = []

    def add(network: str, quantity: str, x: Any, value: float) -> None:
        about = {"part": "main", "network": network, "quantity": quantity, "x": x}
        rows.extend({**about, "seed": seed, "value": value + 0.1 * seed * (x != "none")} for seed in range(5))

    for name in FULL.networks:
        add(name, TRAINED, "none", clean)
        add(name, BATCH, "none", clean)
        for kind in KINDS:
            add(name, TRAINED, f"{kind} 5", clean - harm)
            add(name, BATCH, f"{kind} 5", clean - harm + gain)
    first = FULL.first
    for split in ("test", "val"):
        add(first, f"{split} 0", None, 50.0)
        for size in FULL.sizes:
            for prior in FULL.priors:
                best = prior == 16
                add(first, f"{split} {size}", prior, 50.0 + (one if best else -9.0))
    for kind in KINDS:
        add(first, MIXED, kind, 60.0)
        add(first, MINIMIZED, kind, 60.0 + tent)
    return Results("full", [], [], rows)


def verdicts(results: Results) -> dict[str, Verdict]:
    return {each.claim.id: each.verdict for each in judged(paper, vary(results), FULL)}


def vary(results: Results) -> Results:
    """A little noise, which a test needs; not the same for all quantities."""
    for place, row in enumerate(results.measurements):
        row["value"] += 0.01 * (place * 7919 % 11 - 5)
    return results


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gain": 10.0}, (Verdict.reproduced,) * 3),
        ({"gain": 2.0}, (Verdict.partly, Verdict.reproduced, Verdict.reproduced)),  # it helps, by less than matters
        ({"gain": -2.0}, (Verdict.not_reproduced, Verdict.reproduced, Verdict.reproduced)),
        ({"gain": 10.0, "one": -1.0}, (Verdict.reproduced, Verdict.not_reproduced, Verdict.reproduced)),
        ({"gain": 10.0, "tent": -1.0}, (Verdict.reproduced, Verdict.reproduced, Verdict.not_reproduced)),
        ({"gain": 10.0, "clean": 50.0}, (Verdict.too_short,) * 3),
        ({"gain": 10.0, "harm": 1.0}, (Verdict.too_short,) * 3),  # there is nothing to give back
    ],
)
def test_verdicts_follow_the_effects_and_the_gate(given: dict[str, float], expected: tuple[Verdict, ...]) -> None:
    found = verdicts(made_up(**given))
    assert tuple(found[id] for id in ("S2.1", "S2.2", "S2.3")) == expected


def test_pseudo_samples_are_chosen_on_validation_images() -> None:
    results = made_up(10.0)
    assert chosen(results, 1) == 16
    for row in results.measurements:
        if row["quantity"] == "test 1" and row["x"] == 64:
            row["value"] += 50  # better on test images, which choose nothing
    assert adapted_to(results, 1).interval().mean == pytest.approx(3.0)
