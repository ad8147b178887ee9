"""De & Smith's experiment: what the shortcut and the branch bring to a sum, and SkipInit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bnrepro.claims import Results, Values
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.desmith2020 import (
    BN,
    PLAIN,
    SKIP,
    at_start,
    exponent,
    network_of,
    paper,
    skip_init_trains,
    sums,
    trained,
)
from bnrepro.training.model import parameter_groups
from bnrepro.training.networks import ResidualBlock, add_skip_init

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")
DATA = load(load_config([o for o in SMOKE.common if o.startswith("data")]).data, torch.device("cpu"))


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


def network(variant: str = BN, depth: int = 2) -> nn.Module:
    return network_of(DATA, load_config([*SMOKE.common, f"model.depth={depth}", f"variant={variant}", "seed=1000"]))


X = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))


# --- SkipInit ---


def test_networks_begin_with_their_shortcuts_alone_and_keep_their_other_weights() -> None:
    plain, skipping = network(PLAIN).eval(), network(PLAIN).eval()
    scales = add_skip_init(skipping)
    assert len(scales) == 6
    assert all(float(scale.alpha.detach()) == 0 for scale in scales)
    names = dict(skipping.named_parameters())
    assert all(torch.equal(names[name], p) for name, p in plain.named_parameters())
    x = next(iter(skipping.layers))(X)
    for block in (module for module in skipping.layers if isinstance(module, ResidualBlock)):
        shortcut = x[:, :, :: block.stride, :: block.stride]
        sides = block.extra // 2, block.extra - block.extra // 2
        x = block(x)
        torch.testing.assert_close(x, nn.functional.pad(shortcut, (0, 0, 0, 0, *sides)).relu())
    for scale in scales:
        nn.init.ones_(scale.alpha)
    torch.testing.assert_close(skipping(X), plain(X))


def test_scalars_are_trained_and_are_not_decayed_where_gamma_is_not() -> None:
    skipping = network(PLAIN)
    scales = add_skip_init(skipping, 0.5)
    skipping(X).square().sum().backward()
    assert all(scale.alpha.grad is not None and float(scale.alpha.grad.abs()) > 0 for scale in scales)
    decayed = {id(p) for g in parameter_groups(skipping, 0.1, False) if g["weight_decay"] for p in g["params"]}
    assert decayed
    assert not decayed & {id(scale.alpha) for scale in scales}


def test_networks_without_residual_branches_are_refused() -> None:
    with pytest.raises(ValueError, match="residual blocks"):
        add_skip_init(nn.Sequential(nn.Linear(3, 3)))


# --- scales ---


def test_sums_are_of_what_is_added() -> None:
    found = sums(network(depth=1), X)
    assert len(found) == 3
    assert [branch for _, branch in found] == pytest.approx([1, 1, 1], abs=0.01)  # BN's output
    block = next(module for module in network(depth=1).modules() if isinstance(module, ResidualBlock))
    entered = torch.rand(4, block.conv.in_channels, 6, 6)
    ((skip, branch),) = sums(block, entered)
    assert skip == pytest.approx(float(entered.square().mean()), rel=1e-5)
    inner = block.before_sum(block.conv(block.inner(entered))).detach()
    assert branch == pytest.approx(float(inner.square().mean()), rel=1e-4)


def test_channels_that_are_padded_with_zeros_count() -> None:
    model = network(depth=1)
    wider = [module for module in model.modules() if isinstance(module, ResidualBlock)][1]
    assert wider.stride == 2
    assert wider.extra > 0
    entered = torch.ones(4, wider.conv.out_channels - wider.extra, 6, 6)
    skip, _ = sums(wider, entered)[0]
    assert skip == pytest.approx(1 - wider.extra / wider.conv.out_channels)


def test_scale_grows_with_bn_and_not_without() -> None:
    def last(norm: str, depth: int) -> float:
        overrides = [*SMOKE.start, f"model.depth={depth}", f"variant={norm}"]
        rows = at_start.function(DATA, 1000, overrides, 20)
        assert [row["x"] for row in rows] == list(range(1, 3 * depth + 1))
        return float(rows[-1]["value"])

    assert last(BN, 8) > 1.5 * last(BN, 2)
    assert last(PLAIN, 8) < 1.3 * last(PLAIN, 2)


def test_exponents_of_known_powers() -> None:
    data = {((blocks,), seed): 3 * blocks**0.5 for blocks in SETTINGS.blocks for seed in range(2)}
    assert list(exponent(Values(("blocks",), data))) == pytest.approx([0.5, 0.5])


def test_verdicts_on_networks_of_known_scales() -> None:
    def verdicts(power: float, plain: float) -> list[Verdict]:
        at = [(norm, blocks, p) for norm, p in ((BN, power), (PLAIN, plain)) for blocks in SETTINGS.blocks]
        rows = [
            {"part": "start", "norm": norm, "blocks": blocks, "x": 3 * blocks, "quantity": "scale", "seed": seed}
            | {"value": blocks**p * (1 + 0.01 * (seed % 2) * blocks / 18)}
            for norm, blocks, p in at
            for seed in range(5)
        ]
        found = {each.claim.id: each.verdict for each in judged(paper, Results("full", [], [], rows), SETTINGS)}
        return [found["D1"], found["D2"]]

    assert verdicts(0.5, 0.0) == [Verdict.reproduced, Verdict.reproduced]
    assert verdicts(1.0, 0.5) == [Verdict.not_reproduced, Verdict.partly]


# --- training ---


def test_training_with_skip_init_moves_its_scalars() -> None:
    overrides = [*SMOKE.common, "model.depth=1", f"variant={PLAIN}", "optimizer.lr=0.1"]
    found = values(trained.function(DATA, 1000, overrides, True))
    assert found["alpha", None] > 0
    assert 0 <= found["test_accuracy", None] <= 100
    plain = values(trained.function(DATA, 1000, overrides, False))
    assert ("alpha", None) not in plain
    assert 0 <= plain["test_accuracy", None] <= 100
    diverged = values(trained.function(DATA, 1000, [*overrides[:-1], "optimizer.lr=1e30"], False))
    assert diverged["test_accuracy", None] == diverged["val_accuracy", None] == 10
    assert ("diverged", None) in diverged


def test_arms_are_compared_at_best_rates_inside_the_sweep() -> None:
    def swept(skipping: list[float]) -> Results:
        arms = ((BN, SETTINGS.rates, [50.0, 95, 80, 10]), (SKIP, SETTINGS.rates, skipping))
        plain = (PLAIN, SETTINGS.plain_rates, [12.0, 10, 10])
        rows = [
            {"part": "trained", "arm": arm, "rate": rate, "quantity": quantity, "seed": seed, "x": None}
            | {"value": value - (quantity == "test_accuracy")}
            for arm, rates, found in (*arms, plain)
            for rate, value in zip(rates, found, strict=True)
            for quantity in ("val_accuracy", "test_accuracy")
            for seed in range(2)
        ]
        return Results("full", [], [], rows)

    (effect,) = skip_init_trains(swept([50, 94, 80, 10]), SETTINGS).effects
    assert effect.interval.mean == pytest.approx(82)
    assert "SkipInit" in skip_init_trains(swept([96, 94, 80, 10]), SETTINGS).reason
