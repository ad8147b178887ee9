"""Signals by depth against closed forms: gradients of a known chain, ranks of known features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnrepro.config import load_config
from bnrepro.norm import NORMS
from bnrepro.training.depth import by_depth, effective_rank, growth
from bnrepro.training.model import build


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scaled(*factors: float, width: int = 6) -> nn.Sequential:
    """Linear layers that multiply by these factors, in float64."""
    layers = [nn.Linear(width, width, bias=False).double() for _ in factors]
    for layer, factor in zip(layers, factors, strict=True):
        nn.init.eye_(layer.weight).data.mul_(factor)
    return nn.Sequential(*layers)


def test_sizes_are_those_of_a_known_chain() -> None:
    x = torch.randn(8, 6, dtype=torch.float64, generator=generator())
    layers = by_depth(scaled(2.0, 3.0, 5.0), x)
    assert [layer.name for layer in layers] == ["0", "1", "2"]
    square = float(x.square().mean())
    assert [layer.activation for layer in layers] == pytest.approx([4 * square, 36 * square, 900 * square])
    last = layers[-1].gradient  # that of the random function itself
    assert [layer.gradient for layer in layers] == pytest.approx([225 * last, 25 * last, last])
    assert growth(layers) == pytest.approx(15)  # sqrt(9 * 25)
    assert growth(by_depth(scaled(1.0, 2.0, 3.0, 7.0), x), skip=1) == pytest.approx(9)


def test_gradients_are_those_of_the_cross_entropy_where_there_are_labels() -> None:
    x, y = torch.randn(5, 4, generator=generator()), torch.tensor([0, 1, 2, 0, 1])
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    network.requires_grad_(False)  # which is no reason not to look at it
    inner = network[0](x).requires_grad_()
    loss = nn.functional.cross_entropy(network[2](inner.tanh()), y, reduction="sum")
    (expected,) = torch.autograd.grad(loss, inner)
    first, _ = by_depth(network, x, y=y)
    assert first.gradient == pytest.approx(float(expected.square().mean()))


def test_the_random_function_depends_on_its_seed_alone_and_the_networks_gradients_stay() -> None:
    network, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(5, 4, generator=generator())
    one, same, other = (by_depth(network, x, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert all(p.grad is None for p in network.parameters())


def test_norms_of_a_network_can_be_looked_at() -> None:
    cfg = load_config(["model=resnet20", "model.depth=1", "model.width=0.25"])
    network = build(cfg.model, NORMS["bn"], 3, (16, 16), 10, generator())
    layers = by_depth(network.train(), torch.randn(8, 3, 16, 16, generator=generator()), network.norms)
    assert [layer.name for layer in layers] == [f"norm{i}" for i in range(1, 8)]
    assert all(layer.activation == pytest.approx(1, abs=1e-2) for layer in layers)  # gamma = 1, beta = 0
    assert all(1 < layer.rank <= layer.above <= 8 for layer in layers)


def test_a_module_that_is_used_twice_or_never_is_an_error() -> None:
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="more than once"):
        by_depth(nn.Sequential(shared, shared), torch.ones(2, 3), {"shared": shared})
    with pytest.raises(ValueError, match="is not used"):
        by_depth(nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3), {"shared": shared})
    with pytest.raises(ValueError, match="no growth"):
        growth(by_depth(scaled(1.0, 2.0), torch.ones(2, 6, dtype=torch.float64)), skip=1)


# --- ranks ---


def features(*values: float, rows: int = 12, columns: int = 20) -> torch.Tensor:
    """A matrix with these singular values."""
    shape = rows, len(values)
    left = torch.linalg.qr(torch.randn(shape, generator=generator(), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator(1), dtype=torch.float64)).Q
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def test_effective_rank_counts_equal_singular_values_whatever_the_scale_and_the_shape() -> None:
    assert effective_rank(features(2.0, 2.0, 2.0)) == pytest.approx(3)
    assert effective_rank(1e-180 * features(2.0, 2.0, 2.0)) == pytest.approx(3)
    assert effective_rank(1e180 * features(2.0, 2.0, 2.0, columns=5)) == pytest.approx(3)
    assert effective_rank(features(1.0, 0.5)) == pytest.approx((1 + 0.25) ** 2 / (1 + 0.0625))
    assert effective_rank(features(1.0).view(12, 5, 2, 2)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 4)) == 0


def test_singular_values_below_a_hundredth_of_the_largest_do_not_count() -> None:
    identity = nn.Linear(20, 20, bias=False).double()
    nn.init.eye_(identity.weight)
    (layer,) = by_depth(nn.Sequential(identity), features(1.0, 0.5, 0.02, 0.005))
    assert layer.above == 3
    assert layer.rank == pytest.approx(effective_rank(features(1.0, 0.5, 0.02, 0.005)))
