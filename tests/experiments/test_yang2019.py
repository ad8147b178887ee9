"""Yang et al.'s experiment: its rates of growth against integration by chance and the layer that they are of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.experiments.yang2019 import (
    LIMIT,
    deep_networks_are_not_trainable,
    exactly,
    growth_of_layer,
    in_random_network,
    linear_rate,
    paper,
    random_network,
    relu_rate,
)

SETTINGS = paper.settings("full")


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


# --- formulas ---


@pytest.mark.parametrize("batch", [4, 5, 9, 32])
def test_rate_of_linear_networks_is_that_of_the_layer(batch: int) -> None:
    """An identity: held to 1e-10, as in the claim."""
    assert growth_of_layer("custombn", batch) == pytest.approx(linear_rate(batch), rel=1e-10)
    assert growth_of_layer("bn", batch, eps=1e-12) == pytest.approx(linear_rate(batch), rel=1e-8)


def test_other_layers_and_a_large_eps_have_another_rate() -> None:
    assert growth_of_layer("nobn", 8) == pytest.approx(1 * 8 / 7 * 7 / 8)
    assert abs(growth_of_layer("custombn", 8, eps=0.1) / linear_rate(8) - 1) > 0.01
    rows = [row | {"part": "exact", "seed": 0} for row in exactly.function(0, SETTINGS.exact_batches)]

    def verdict(factor: float) -> Verdict:
        off = [row | {"value": row["value"] * factor} for row in rows]
        return next(j for j in judged(paper, Results("full", [], [], off), SETTINGS) if j.claim.id == "Y1").verdict

    assert (verdict(1.0), verdict(1 + 1e-9)) == (Verdict.reproduced, Verdict.not_reproduced)


@pytest.mark.parametrize("batch", [6, 16])
def test_rate_with_relu_is_that_of_integration_by_chance(batch: int) -> None:
    """The backward pass of BN and ReLU written out, over random inputs of an infinitely wide network."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(400_000, batch, dtype=torch.float64, generator=generator)
    h = h - h.mean(1, keepdim=True)
    length = h.norm(dim=1, keepdim=True)
    z = math.sqrt(batch) * h / length
    x = z.relu()
    centred = x - x.mean(1, keepdim=True)
    variance = float(centred.square().sum(1).mean()) / (batch - 1)  # of the next layer's inputs about their mean
    above = torch.randn(h.shape, dtype=torch.float64, generator=generator)
    above = (above - above.mean(1, keepdim=True)) * (z > 0)
    u = h / length
    inner = above - above.mean(1, keepdim=True) - u * (u * above).sum(1, keepdim=True)
    squares = batch * inner.square().sum(1) / (batch - 1)  # of a gradient of size 1 at |h| = 1
    found = float(squares.mean()) / (variance * (batch - 3))  # E[1 / |h|^2], whose average by chance is a bad one
    assert found == pytest.approx(relu_rate(batch), rel=0.005)


def test_rates_tend_to_their_limits() -> None:
    batches = [2**k for k in range(3, 21)]
    for rate, limit in ((relu_rate, LIMIT), (linear_rate, 1.0)):
        found = [rate(batch) for batch in batches]
        assert found == sorted(found, reverse=True)
        assert found[-1] == pytest.approx(limit, rel=1e-5)
        assert found[0] / limit > 1.1
    assert pytest.approx(1.467, abs=5e-4) == LIMIT
    assert SETTINGS.margin_limit - 1 == pytest.approx((relu_rate(32) / LIMIT - 1) / 2, abs=2e-3)


# --- networks ---

SMALL: dict[str, Any] = {"activation": "relu", "batch": 32, "variance": 2.0, "width": 128, "depth": 12, "skipped": 2}


def test_random_networks_grow_at_the_exact_rate_with_bn_and_not_without() -> None:
    def mean(norm: str) -> float:
        found = [values(in_random_network.function(seed, norm=norm, **SMALL)) for seed in range(1000, 1006)]
        assert {x for quantity, x in found[0] if quantity == "gradient"} == set(range(1, 13))
        assert found[0]["gradient", 12] == 1
        return math.exp(sum(math.log(each["growth", None]) for each in found) / len(found))

    assert mean("bn") == pytest.approx(relu_rate(32), rel=0.05)
    assert mean("nobn") == pytest.approx(1, rel=0.1)


def test_growth_does_not_depend_on_the_weights_variance_with_bn_and_is_it_without() -> None:
    def found(norm: str, variance: float) -> float:
        return values(in_random_network.function(1000, norm=norm, **SMALL | {"variance": variance}))["growth", None]

    assert found("bn", 8.0) == pytest.approx(found("bn", 2.0), rel=1e-3)  # eps is all that knows of it
    assert found("nobn", 8.0) == pytest.approx(4 * found("nobn", 2.0), rel=1e-3)


def test_weights_have_their_variance_and_are_the_same_with_and_without_bn() -> None:
    with_bn, plain = (random_network(3, 200, norm, "tanh", 0.5, 7) for norm in ("bn", "nobn"))
    assert torch.equal(with_bn[0].weight, plain[0].weight)
    assert float(plain[3].weight.detach().var()) * 200 == pytest.approx(0.5, rel=0.03)
    assert [type(each).__name__ for each in plain] == ["Linear", "Identity", "Tanh"] * 3


# --- what is read from the records ---


def swept(shallow: tuple[float, ...], deep: tuple[float, ...]) -> Results:
    """Runs whose validation accuracies are these, by rate; test accuracies are 0.01 less."""
    rows = [
        {"part": "trained", "norm": "bn", "depth": depth, "rate": rate, "variant": "bn", "seed": seed}
        | {"status": "completed", "val_accuracy": value, "test_accuracy": value - 0.01}
        for depth, found in ((SETTINGS.shallow, shallow), (SETTINGS.deep, deep))
        for rate, value in zip(SETTINGS.rates, found, strict=True)
        for seed in range(2)
    ]
    return Results("full", rows, [], [])


def test_depths_are_compared_at_their_best_rates_of_the_validation_data() -> None:
    results = swept((0.5, 0.9, 0.95, 0.1), (0.1, 0.3, 0.2, 0.1))
    (effect,) = deep_networks_are_not_trainable(results, SETTINGS).effects
    assert effect.interval.mean == pytest.approx(65)
    at_edge = deep_networks_are_not_trainable(swept((0.96, 0.9, 0.95, 0.1), (0.1, 0.3, 0.2, 0.1)), SETTINGS)
    assert not at_edge.effects
    assert "edge" in at_edge.reason
