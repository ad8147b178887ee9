"""Signals by depth against closed forms: gradients of a known chain, ranks of known features."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

from bnrepro.config import load_config
from bnrepro.norm import NORMS
from bnrepro.training.depth import Layer, by_depth, effective_rank, growth
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
    with pytest.raises(ValueError, match=r"is not used .* give `modules` without it"):
        by_depth(nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3), {"shared": shared})
    with pytest.raises(ValueError, match="no growth"):
        growth(by_depth(scaled(1.0, 2.0), torch.ones(2, 6, dtype=torch.float64)), skip=1)


def normed(inplace: bool, first: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    relus = [nn.ReLU(inplace) for _ in range(3)]
    blocks = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relus[0], nn.Conv2d(4, 5, 3), relus[1], nn.Flatten()]
    return nn.Sequential(*relus[2:] * first, *blocks, nn.Linear(80, 6), nn.Dropout(0.0, inplace))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kinds", [(nn.Conv2d, nn.Linear), (nn.BatchNorm2d,), (nn.ReLU,)])
def test_activations_in_place_change_nothing(kinds: tuple[type[nn.Module], ...], first: bool) -> None:
    x = torch.randn(6, 3, 8, 8, generator=generator())
    before = x.clone()

    def layers(inplace: bool) -> list[Layer]:
        network = normed(inplace, first)
        return by_depth(network, x, {name: each for name, each in network.named_modules() if isinstance(each, kinds)})

    assert layers(True) == layers(False)
    assert torch.equal(x, before)


def exploding() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(60) for layer in (nn.Linear(64, 64), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0, 2)
    return nn.Sequential(*layers)


def test_what_overflows_is_reported_as_not_finite() -> None:
    layers = by_depth(exploding(), torch.randn(8, 64, generator=generator()))
    assert len(layers) == 60
    assert [math.isfinite(layer.activation) for layer in layers] == [math.isfinite(layer.rank) for layer in layers]
    assert math.isfinite(layers[0].activation)
    assert math.isnan(layers[-1].rank)
    assert math.isnan(layers[-1].above)
    for value in (math.nan, math.inf):
        assert math.isnan(effective_rank(torch.tensor([[1.0, value], [2.0, 3.0]])))
        (layer,) = by_depth(scaled(1.0), torch.full((2, 6), value, dtype=torch.float64))
        assert not math.isfinite(layer.activation)
    with pytest.raises(ValueError, match="the gradient at 1 is 0"):
        growth([Layer(name, 1.0, gradient, 1.0, 1) for name, gradient in (("0", 1.0), ("1", 0.0))])


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_they_are_off(block: Callable[[], AbstractContextManager[None]]) -> None:
    x = torch.randn(6, 3, 8, 8, generator=generator())
    network = normed(True)
    wanted = by_depth(network, x)
    with block():
        assert by_depth(network, x.clone()) == wanted


class Returning(nn.Module):
    """A network whose layer and output are as ``how`` has them."""

    def __init__(self, how: Callable[[torch.Tensor], object], *, of_layer: bool = False) -> None:
        super().__init__()
        self.linear, self.other, self.how, self.of_layer = nn.Linear(3, 3), nn.Identity(), how, of_layer

    def forward(self, x: torch.Tensor) -> object:
        y = self.linear(x)
        return y + self.other(y.detach()) if self.of_layer else self.how(y)


ONES = torch.ones(2, 3)
REFUSED = {
    "outputs": (Returning(lambda y: (y, y)), ONES, None, "the network gives a tuple, and not one tensor.* return one"),
    "whole outputs": (Returning(lambda y: y.argmax(1)), ONES, None, "the network gives a tensor without gradients"),
    "detached": (Returning(id, of_layer=True), ONES, "other", r"other gives a tensor without gradients.*without it"),
    "no layers": (nn.Sequential(nn.ReLU()), ONES, None, "no convolution .* give `modules`"),
    "whole inputs": (nn.Linear(3, 3), ONES.long(), None, r"got int64 of shape \(2, 3\). Convert"),
    "no inputs": (nn.Linear(3, 3), ONES[:0], None, r"got float32 of shape \(0, 3\)"),
}


@pytest.mark.parametrize(("network", "x", "module", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_looked_at_is_told(network: nn.Module, x: torch.Tensor, module: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        by_depth(network, x, {module: network.get_submodule(module)} if module else None)
    assert not any(each._forward_hooks for each in network.modules())


def test_a_layer_that_the_output_does_not_depend_on_has_no_gradient() -> None:
    assert by_depth(Returning(lambda y: 0 * y.detach() + torch.ones(3, requires_grad=True)), ONES)[0].gradient == 0


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
