"""DyT: the transformer and its norms, what alpha is held against, and verdicts on planted records."""

from __future__ import annotations

import math

import pytest
import torch

from bnrepro.claims import Results, Values, row
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.zhu2025 import correlations, layer, paper, sines, transformer, vision_transformer
from bnrepro.norm.variants import DynamicTanh

FULL, SMOKE = paper.settings("full"), paper.settings("smoke")
SIZES = {"patch": SMOKE.patch, "features": SMOKE.features, "blocks": SMOKE.blocks}


def test_sweeps_have_an_inside() -> None:
    for settings in map(paper.settings, paper.presets):
        assert all(len(rates) >= 3 and rates == sorted(rates) for rates in settings.rates.values())
        assert set(settings.rates["bn"]) & set(settings.rates["dyt"])


def test_transformers_differ_in_their_norms_alone_and_start_from_the_same_weights() -> None:
    data = load(load_config(SMOKE.data).data, torch.device("cpu"))
    one, other = (vision_transformer(norm, data, 1000, **SIZES) for norm in ("layernorm", "dyt"))
    assert [type(norm) for norm in one.norms.values()] == [torch.nn.LayerNorm] * 3
    assert [type(norm) for norm in other.norms.values()] == [DynamicTanh] * 3
    shared = one.state_dict().keys() & other.state_dict().keys()
    assert "layers.patches.weight" in shared
    assert len(shared) >= 12
    for name in shared:
        torch.testing.assert_close(one.state_dict()[name], other.state_dict()[name])
    x = data.normalize(data.test.images[:4])
    assert one(x).shape == (4, 10)
    assert not torch.allclose(one(x), other(x))


def test_tokens_are_normalised_each_by_itself() -> None:
    data = load(load_config(SMOKE.data).data, torch.device("cpu"))
    network = vision_transformer("layernorm", data, 1000, **SIZES)
    x = data.normalize(data.test.images[:4])
    torch.testing.assert_close(network(x)[:2], network(x[:2]))
    assert sines(16, 8).shape == (16, 8)
    assert len(torch.unique(sines(16, 8), dim=0)) == 16


def test_a_transformer_is_trained_and_its_alphas_are_read() -> None:
    data = load(load_config(SMOKE.data).data, torch.device("cpu"))
    overrides = [*SMOKE.data, "model=resnet20", *SMOKE.transformer]
    rows = transformer.function(data, 1000, overrides, norm="dyt", **SIZES)
    found = {r["quantity"]: r["value"] for r in rows if r["x"] is None}
    assert 0 <= found["train_accuracy"] <= 100
    assert 0 <= found["test_accuracy"] <= 100
    assert [r["x"] for r in rows if r["quantity"] == "alpha"] == [1, 2, 3]
    assert all(r["value"] > 0 and r["value"] != 0.5 for r in rows if r["quantity"] in ("alpha", "spread"))
    assert [r["x"] for r in rows if r["quantity"] == "loss"] == [1, 2]
    assert rows == transformer.function(data, 1000, overrides, norm="dyt", **SIZES)


def test_the_layer_is_its_formula_to_rounding() -> None:
    rows = layer.function(seed=0)
    assert {r["quantity"] for r in rows} == {"output", "gradient", "others", "modes", "start"}
    assert all(r["value"] < 1e-12 for r in rows)


def test_correlations_are_pearsons_of_each_seed() -> None:
    spread = {((x,), seed): x + 1.0 for x in (1, 2, 3) for seed in (0, 1)}
    alpha = {((x,), seed): (1 if seed == 0 else -1) / (x + 1.0) for x in (1, 2, 3) for seed in (0, 1)}
    found = correlations(Values(("x",), alpha), Values(("x",), spread))
    assert found.seeds == pytest.approx({0: 1.0, 1: -1.0})


def planted(gap: float = 0.0, loss: float = 3.0, sign: float = 1.0, best: int = 1) -> Results:
    """Transformers that are ``gap`` apart, and networks that lose ``loss``, with the best rate at place ``best``."""
    rows = [{"part": "layer", "seed": 0} | r for r in layer.function(seed=0)]
    runs = []
    for seed in range(5):
        for norm in ("layernorm", "dyt"):
            value = 60 + 0.05 * seed + (gap + 0.02 * seed) * (norm == "dyt")
            each = [row("test_accuracy", value), row("train_accuracy", value)]
            each += [row("alpha", 1 / x if sign > 0 else x, x) for x in range(1, 10)] if norm == "dyt" else []
            each += [row("spread", x + 0.1 * math.sin(seed), x) for x in range(1, 10)] if norm == "dyt" else []
            rows += [{"part": "transformer", "seed": seed, "norm": norm} | r for r in each]
        for network in FULL.convolutional:
            for norm, rates in FULL.rates.items():
                for place, rate in enumerate(rates):
                    value = (70 + 0.05 * seed - (loss + 0.02 * seed) * (norm == "dyt") - 5 * abs(place - best)) / 100
                    of = {"part": "convolutional", "seed": seed, "network": network, "norm": norm, "rate": rate}
                    runs.append(
                        of | {"variant": norm, "status": "completed", "test_accuracy": value, "val_accuracy": value}
                    )
    return Results("full", runs, [], rows)


def verdicts(results: Results) -> dict[str, Verdict]:
    return {each.claim.id: each.verdict for each in judged(paper, results, FULL)}


def test_claims_hold_where_they_should_and_fail_where_not() -> None:
    assert set(verdicts(planted()).values()) == {Verdict.reproduced}
    assert verdicts(planted(gap=-3.0))["Z2"] is Verdict.not_reproduced
    assert verdicts(planted(loss=-3.0))["Z3"] is Verdict.not_reproduced
    assert verdicts(planted(best=0))["Z3"] is Verdict.not_testable  # the best rate is at the edge
    assert verdicts(planted(sign=-1.0))["Z4"] is Verdict.not_reproduced
