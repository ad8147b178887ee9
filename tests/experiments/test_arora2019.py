"""Arora et al.'s and Kohler et al.'s experiment: the layer's gradient against the theorem's, and descents."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.arora2019 import (
    NAMES,
    decades,
    descent,
    direction_gradient,
    falls,
    least_squares,
    paper,
    problem,
)

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


# --- least squares ---


def test_problems_have_their_covariance() -> None:
    x, y, eigenvalues = problem(1000, 50.0)
    assert float(x.mean(0).abs().max()) < 1e-12
    assert float(y.mean().abs()) < 1e-12
    found = torch.linalg.eigvalsh(x.T @ x / len(x))
    torch.testing.assert_close(found, eigenvalues)
    assert float(found[-1] / found[0]) == pytest.approx(50)


def test_gradient_of_the_layer_is_that_of_the_rayleigh_quotient() -> None:
    x, y, _ = problem(1000, 50.0)
    covariance, u = x.T @ x / len(x), x.T @ y / len(x)
    w = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    square, across = w @ covariance @ w, u @ w
    expected = (across**2 / square * (covariance @ w) - across * u) / square  # of -(u w)^2 / (2 w S w)
    torch.testing.assert_close(direction_gradient(x, y, w), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(direction_gradient(x, y, 3 * w), expected / 3, rtol=1e-10, atol=1e-14)


def test_direction_converges_within_the_bound() -> None:
    """An identity: held to 1e-9, as in the claim."""
    measured = least_squares.function(1000, conditions=[10.0, 100.0], steps=40)
    found = values(measured)
    assert found["excess", 10.0] <= 1e-9
    assert found["excess", 100.0] <= 1e-9
    assert found["left", 10.0] < 1e-3 < found["left", 100.0] < 0.5

    def verdict(excess: float) -> Verdict:
        changed = [r | ({"value": excess} if r["quantity"] == "excess" else {}) for r in measured]
        rows = [r | {"part": "squares", "seed": 0} for r in changed]
        settings = SETTINGS.model_copy(update={"conditions": [10.0, 100.0]})
        return next(j for j in judged(paper, Results("full", [], [], rows), settings) if j.claim.id == "A1").verdict

    assert (verdict(0.0), verdict(1e-6)) == (Verdict.reproduced, Verdict.not_reproduced)


# --- descent ---


def test_rate_is_that_of_weights_before_a_norm_and_tunes_itself_with_bn() -> None:
    data = load(load_config([o for o in SMOKE.common if o.startswith("data")]).data, torch.device("cpu"))
    asked: dict[str, Any] = {"images": 50, "steps": 30, "others": 0.3}

    def found(norm: str, rate: float) -> dict[tuple[str, Any], float]:
        return values(descent.function(data, 1000, [*SMOKE.common, f"variant={norm}"], rate=rate, **asked))

    usual, large = found("bn", 0.3), found("bn", 1000.0)
    assert ("diverged", None) not in large
    assert large["accuracy", None] > 20
    assert usual["gradient", 30] < usual["gradient", 1] == pytest.approx(large["gradient", 1])
    gradients = [value for (quantity, _), value in usual.items() if quantity == "gradient"]
    assert gradients == sorted(gradients, reverse=True)
    assert found("nobn", 1000.0)["accuracy", None] < large["accuracy", None]


def descents(accuracies: dict[str, list[float]], power: float = -1.0) -> Results:
    """Descents that end with these accuracies by rate, with gradients that fall as a power of the step."""
    who = [(n, rate, a) for n in NAMES for rate, a in zip(SETTINGS.rates, accuracies[n], strict=True)]
    rows = [
        {"part": "descent", "norm": n, "rate": rate, "seed": seed, "quantity": "accuracy", "x": None, "value": a}
        for n, rate, a in who
        for seed in range(5)
    ]
    rows += [
        {"part": "descent", "norm": n, "rate": rate, "seed": seed, "quantity": "gradient", "x": t}
        | {"value": (2 + seed) * t ** (power + 0.001 * seed)}
        for n, rate, _ in who
        for seed in range(5)
        for t in (1, 10, 60, 200, 500)
    ]
    return Results("full", [], [], rows)


def test_decades_are_counted_around_the_best_rate() -> None:
    with_bn = [50.0, *[99.0] * 11, 90.0]
    plain = [99.0, 50, 50, 96, 97, 100, 90, 10, 10, 10, 10, 99, 10]
    results = descents({"bn": with_bn, "nobn": plain})
    assert list(decades(results, SETTINGS, "bn")) == pytest.approx([5.0] * 5)
    assert list(decades(results, SETTINGS, "nobn")) == pytest.approx([1.0] * 5)
    nothing = descents({"bn": with_bn, "nobn": [50.0] * 13})
    assert set(decades(nothing, SETTINGS, "nobn")) == {0.0}


def test_verdicts_follow_the_power_and_the_decades() -> None:
    wide, narrow = [99.0] * 13, [50.0] * 5 + [99.0] + [50.0] * 7

    def verdicts(of: dict[str, list[float]], power: float) -> tuple[Verdict, Verdict]:
        found = {each.claim.id: each.verdict for each in judged(paper, descents(of, power), SETTINGS)}
        return found["A2"], found["A3"]

    yes, no = Verdict.reproduced, Verdict.not_reproduced
    assert verdicts({"bn": wide, "nobn": narrow}, -0.6) == (yes, yes)
    assert verdicts({"bn": wide, "nobn": wide}, -0.2) == (no, no)
    assert set(falls(descents({"bn": wide, "nobn": wide}, -0.5), SETTINGS).at(rate=0.3).seeds) == set(range(5))
    assert math.isclose(falls(descents({"bn": wide, "nobn": wide}), SETTINGS).at(rate=0.3).seeds[0], -1, rel_tol=1e-9)
