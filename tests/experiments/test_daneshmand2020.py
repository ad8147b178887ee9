"""Daneshmand et al.'s experiment: ranks of random networks, where they are taken, and exponents of known powers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnrepro.claims import Results, Values
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import derive_seed, load
from bnrepro.experiments.daneshmand2020 import (
    VARIANCES,
    at_start,
    exponent,
    in_random_network,
    paper,
    where_rank_stays_it_trains,
)
from bnrepro.experiments.yang2019 import random_network
from bnrepro.training.depth import effective_rank

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


@pytest.mark.parametrize("activation", VARIANCES)
def test_rank_collapses_without_bn_and_stays_with_it(activation: str) -> None:
    asked: dict[str, Any] = {"activation": activation, "width": 16, "marks": [1, 50, 100]}
    with_bn, plain = (values(in_random_network.function(1000, norm=norm, **asked)) for norm in ("bn", "nobn"))
    assert plain["rank", 1] > 5
    assert plain["rank", 100] < 1.2
    assert plain["above", 100] <= 4
    assert with_bn["rank", 1] > 5
    assert with_bn["rank", 100] > 2
    assert with_bn["above", 100] > 4


def test_ranks_are_those_of_what_leaves_the_norm() -> None:
    found = values(in_random_network.function(1000, norm="bn", activation="relu", width=8, marks=[1, 3]))
    network = random_network(3, 8, "bn", "relu", 2.0, 1000)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(derive_seed(1000, "inputs")))
    third = network[:8](x).detach()
    assert float(third.mean(0).abs().max()) < 1e-5  # it is a norm's output
    assert found["rank", 3] == pytest.approx(effective_rank(third), rel=1e-5)


def test_trained_networks_are_looked_at_as_they_begin() -> None:
    data = load(load_config([o for o in SMOKE.common if o.startswith("data")]).data, torch.device("cpu"))
    overrides = [*SMOKE.common, "model.depth=12"]
    found = {n: values(at_start.function(data, 1000, [*overrides, f"variant={n}"])) for n in ("bn", "nobn")}
    assert {x for _, x in found["bn"]} == set(range(1, 13))
    assert found["nobn"]["rank", 12] < 1.5 < found["bn"]["rank", 12]


def test_exponents_of_known_powers() -> None:
    powers = {"linear": 0.5, "relu": 1.0}
    data = {((a, w), s): (3 + s) * w**p for a, p in powers.items() for w in (8, 32, 64) for s in range(2)}
    found = exponent(Values(("activation", "width"), data))
    assert list(found.at(activation="linear")) == pytest.approx([0.5, 0.5])
    assert list(found.at(activation="relu")) == pytest.approx([1.0, 1.0])


def with_ranks(power: float, plain: float) -> Results:
    """Random networks with BN whose rank is the width to a power, and without, ``plain``."""
    at = [(a, w, n, x) for a in VARIANCES for w in SETTINGS.widths for n in ("bn", "nobn") for x in SETTINGS.marks]
    rows = [
        {"part": "random", "activation": a, "width": w, "norm": n, "x": x, "quantity": q, "seed": seed}
        | {"value": (w**power if n == "bn" else plain) * (1 + 0.01 * seed)}
        for a, w, n, x in at
        for q in ("rank", "above")
        for seed in range(5)
    ]
    return Results("full", [], [], rows)


def test_verdicts_on_networks_of_known_rank() -> None:
    def verdicts(power: float, plain: float) -> list[Verdict]:
        found = {each.claim.id: each.verdict for each in judged(paper, with_ranks(power, plain), SETTINGS)}
        return [found[claim] for claim in ("R1", "R2", "R3")]

    yes, no = Verdict.reproduced, Verdict.not_reproduced
    assert verdicts(0.5, 1.0) == [yes, yes, yes]
    assert verdicts(0.2, 1.0) == [yes, yes, no]
    assert verdicts(0.5, 30.0)[0] == no


def test_arms_are_compared_at_best_rates_inside_the_sweep() -> None:
    def swept(plain: list[float]) -> Results:
        rows = [
            {"part": "trained", "norm": norm, "rate": rate, "variant": norm, "seed": seed, "status": "completed"}
            | {"val_accuracy": value, "test_accuracy": value - 0.01}
            for norm, found in (("bn", [0.5, 0.8, 0.85, 0.9, 0.1]), ("nobn", plain))
            for rate, value in zip(SETTINGS.rates, found, strict=True)
            for seed in range(2)
        ]
        return Results("full", rows, [], [])

    first = where_rank_stays_it_trains(swept([0.1, 0.6, 0.5, 0.1, 0.1]), SETTINGS).effects[0]
    assert first.interval.mean == pytest.approx(30)
    assert "no BN" in where_rank_stays_it_trains(swept([0.7, 0.6, 0.5, 0.1, 0.1]), SETTINGS).reason
