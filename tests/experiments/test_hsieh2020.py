"""Hsieh et al.'s experiment: clients as ghost batches, divergence by hand, and verdicts of made-up accuracies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.clients import label_skewed
from bnrepro.data.dataset import load
from bnrepro.experiments.hsieh2020 import (
    NORMS,
    TOLERANCE,
    averaging,
    best_rate,
    by_clients,
    divergence,
    paper,
    steps,
)
from bnrepro.experiments.wu2021 import trainer_of

FULL, SMOKE = paper.settings("full"), paper.settings("smoke")
GIVEN = {"clients": SMOKE.clients, "images": SMOKE.images}
OVERRIDES = [*SMOKE.common, f"batch_size={SMOKE.clients * SMOKE.size}", "optimizer.lr=0.1"]
GHOSTS = [*OVERRIDES, "variant=ghostbn", f"norm.ghost_size={SMOKE.size}"]


def data() -> Any:
    return load(load_config(SMOKE.common).data, torch.device("cpu"))


def test_arms_differ_in_norm_skew_and_rate_alone() -> None:
    probes = [p for p in paper.designed(FULL).probes if p.seed == 0 and p.part == "clients"]
    cells = {(p.factors["norm"], p.factors["skew"], p.factors["rate"]) for p in probes}
    assert len(cells) == len(probes) == 2 * 2 * len(FULL.rates) + 1
    assert ("bn", 0.8, FULL.rate) in cells
    for probe in probes:
        cfg = load_config(probe.arguments["overrides"])
        assert (cfg.optimizer.lr, probe.arguments["skew"]) == (probe.factors["rate"], probe.factors["skew"])
        assert cfg.batch_size == FULL.clients * FULL.size == 100
        if probe.factors["norm"] == "bn":  # each client's images are a ghost batch
            assert (cfg.variant, cfg.norm.ghost_size) == ("ghostbn", FULL.size)
            assert cfg.norm.momentum is not None
            assert (1 - cfg.norm.momentum) ** FULL.clients == pytest.approx(1 - FULL.momentum)
        else:
            assert cfg.variant == "groupnorm"


def test_averaged_gradients_are_those_of_ghost_batches() -> None:
    for seed in range(2):
        found = {row["x"]: row["value"] for row in averaging.function(seed=seed, clients=5, size=4)}
        assert found["bn, parts"] < TOLERANCE
        assert found["gn"] < TOLERANCE
        assert found["bn, whole"] > 1e-4


def test_steps_are_the_clients_images_one_after_another() -> None:
    trainer = trainer_of(data(), GHOSTS, seed=0)
    labels = trainer.data.train.labels
    parts = label_skewed(labels, SMOKE.clients, 1.0, 0)
    own = [set(labels[part].tolist()) for part in parts]
    for x, y in steps(trainer, parts, 0):
        assert len(x) == trainer.cfg.batch_size
        assert all(set(each.tolist()) <= classes for each, classes in zip(y.chunk(SMOKE.clients), own, strict=True))


def test_divergence_is_that_of_the_clients_means() -> None:
    trainer = trainer_of(data(), GHOSTS, seed=0)
    x = torch.cat([trainer.data.normalize(trainer.data.train.images[:5])] * 5)
    assert divergence(trainer, [x], clients=5)["first"] == pytest.approx(0, abs=1e-5)  # all have the same images
    convolution = trainer.network.layers[0][0]  # type: ignore[index]
    other = x + torch.arange(5).repeat_interleave(5).view(-1, 1, 1, 1)
    with torch.no_grad():
        inputs = convolution(other)
    means = inputs.view(5, 5, *inputs.shape[1:]).mean((1, 3, 4))
    wanted = (means.std(0, correction=0) / inputs.std((0, 2, 3), correction=0)).mean()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    assert divergence(trainer, [other], clients=5)["first"] == pytest.approx(float(wanted), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_a_training_gives_all_that_claims_read_and_is_the_same_twice() -> None:
    rows = by_clients.function(data=data(), seed=0, overrides=GHOSTS, skew=1.0, **GIVEN)
    names = [row["quantity"] if row["x"] is None else f"{row['quantity']} {row['x']}" for row in rows]
    assert names == ["train", "val", "test", "divergence first", "divergence last", "pooled"]
    assert rows == by_clients.function(data=data(), seed=0, overrides=GHOSTS, skew=1.0, **GIVEN)
    assert rows != by_clients.function(data=data(), seed=0, overrides=GHOSTS, skew=0.0, **GIVEN)


# --- claims ---


def made_up(bn: float, gn: float, alike: float = 75.0, best: int = 1, middle: float = 70.0) -> Results:
    """Five seeds: accuracies with skew at the rate ``best``, at which all arms do best; 5 points less elsewhere."""
    rows: list[dict[str, Any]] = []

    def add(norm: str, skew: float, rate: float, value: float) -> None:
        for seed in range(5):
            about = {"part": "clients", "norm": norm, "skew": skew, "rate": rate, "seed": seed, "x": None}
            noise = 0.1 * (seed * 3 % 5 + (skew == 1.0) * seed)
            rows.extend({**about, "quantity": each, "value": value + noise} for each in ("val", "test"))

    for norm, skewed in (("bn", bn), ("gn", gn)):
        for skew, value in ((0.0, alike), (1.0, skewed)):
            for place, rate in enumerate(FULL.rates):
                add(norm, skew, rate, value - 5 * abs(place - best))
    add("bn", 0.8, FULL.rate, middle)
    return Results("full", [], [], rows)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bn": 40.0, "gn": 75.0}, ["reproduced"] * 4),
        ({"bn": 75.0, "gn": 75.0}, ["not reproduced", "inconclusive or not", "reproduced", "partly"]),
        ({"bn": 40.0, "gn": 50.0}, ["reproduced", "not reproduced", "not reproduced", "reproduced"]),
        ({"bn": 40.0, "gn": 75.0, "middle": 30.0}, ["reproduced", "reproduced", "reproduced", "partly"]),
    ],
)
def test_verdicts_follow_the_accuracies(given: dict[str, float], expected: list[str]) -> None:
    found = {each.claim.id: each.verdict.value for each in judged(paper, made_up(**given), FULL)}
    for id, verdict in zip(("N1", "N2", "N3", "N4"), expected, strict=True):
        wanted = ("inconclusive", "not reproduced") if " or " in verdict else (verdict,)
        assert found[id] in wanted, id


def test_a_best_rate_at_the_edge_decides_nothing() -> None:
    results = made_up(40.0, 75.0, best=0)
    assert all(best_rate(results, FULL, norm, 1.0) == FULL.rates[0] for norm in NORMS)
    found = {each.claim.id: each.verdict for each in judged(paper, results, FULL)}
    assert all(found[id] is Verdict.not_testable for id in ("N1", "N2", "N3"))


def test_networks_that_have_not_trained_decide_nothing() -> None:
    found = {each.claim.id: each.verdict for each in judged(paper, made_up(20.0, 40.0, alike=40.0), FULL)}
    assert all(found[id] is Verdict.too_short for id in ("N1", "N2", "N3", "N4"))
