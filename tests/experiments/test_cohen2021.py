"""The edge of stability: what a descent's rows are, the quadratic's threshold, and verdicts on planted records."""

from __future__ import annotations

import pytest
import torch

from bnrepro.claims import Results, row
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.cohen2021 import NORMS, descent, draw_as_torch, paper, quadratic
from bnrepro.norm import NORMS as TABLE
from bnrepro.training.model import build, weighted_layers

FULL, SMOKE = paper.settings("full"), paper.settings("smoke")


@pytest.mark.parametrize("variant", NORMS.values())
def test_a_descent_is_full_batch_and_its_loss_falls_at_a_small_rate(variant: str) -> None:
    data = load(load_config(SMOKE.data).data, torch.device("cpu"))
    overrides = [*SMOKE.data, *SMOKE.network, f"variant={variant}"]
    asked = {"images": 40, "rate": 1e-3, "time": 9e-3, "points": 3}
    rows = descent.function(data, 1000, overrides, **asked)
    loss = [r["value"] for r in rows if r["quantity"] == "loss"]
    assert [r["x"] for r in rows if r["quantity"] == "sharpness"] == [0, 0.003, 0.006, 0.009]
    assert loss == sorted(loss, reverse=True)
    assert [r["value"] for r in rows if r["quantity"] == "rises"] == [0.0] * 4
    assert rows == descent.function(data, 1000, overrides, **asked)  # nothing but the seed draws
    assert descent.function(data, 1001, overrides, **asked) != rows


def test_weights_are_torchs_default() -> None:
    cfg = load_config([*FULL.data, *FULL.network])
    network = build(cfg.model, TABLE["nobn"], 3, (32, 32), 10, torch.Generator())
    draw_as_torch(network, torch.Generator().manual_seed(0))
    for layer, fan_in in zip(weighted_layers(network), (3072, 100, 100), strict=True):
        theirs = torch.nn.Linear(fan_in, 100).weight
        assert float(layer.weight.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.05)
        assert layer.weight.abs().max() <= fan_in**-0.5


def test_a_quadratic_is_stable_below_the_threshold_alone() -> None:
    rows = quadratic.function(seed=0, size=12, rate=0.1, steps=100)
    for one in rows:
        if one["quantity"] == "growth":
            assert (one["value"] > 1) == (one["x"] > 1)
        else:
            assert abs(one["value"]) < 1e-8


def planted(late: float = 1.05, start: float = 0.5, rises: float = 0.4, end: float = 0.1) -> Results:
    """Sharpness from ``start`` to ``late`` times 2 / rate."""
    rows = [{"part": "quadratic", "seed": 0} | r for r in quadratic.function(seed=0, size=12, rate=0.1, steps=100)]
    for seed in range(5):
        for norm in NORMS:
            for rate in FULL.rates[norm]:
                for x in range(0, 101, 10):
                    share = start if x == 0 else late * (1 + 0.002 * seed)
                    each = [row("sharpness", share * 2 / rate, x), row("accuracy", 95, x)]
                    each += [row("loss", 0.2 if x < 100 else end, x), row("rises", rises * (1 + 0.01 * seed), x)]
                    rows += [{"part": "descent", "seed": seed, "norm": norm, "rate": rate} | r for r in each]
    return Results("full", [], [], rows)


def verdicts(results: Results) -> dict[str, Verdict]:
    return {each.claim.id: each.verdict for each in judged(paper, results, FULL)}


def test_claims_hold_where_they_should_and_fail_where_not() -> None:
    assert set(verdicts(planted()).values()) == {Verdict.reproduced}
    for share in (0.5, 2.0):
        found = verdicts(planted(late=share))
        assert found["E3"] is found["E4"] is Verdict.not_reproduced
    assert verdicts(planted(start=1.05))["E2"] is Verdict.not_reproduced
    assert verdicts(planted(rises=0.0))["E5"] is not Verdict.reproduced
    assert verdicts(planted(end=0.3))["E5"] is not Verdict.reproduced
