"""Tent: its first step by hand, what it moves, and that it lowers the entropy."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from bnrepro.training.adaptation import entropy, tent


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def batches(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 + torch.randn((20, 1, 8, 8), generator=generator) for _ in range(count)]


def test_entropy_is_that_of_the_prediction() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([3.0, 1.0]).log())


def test_logits_are_those_of_the_batchs_statistics_before_its_step() -> None:
    net, x = network(), batches(2)
    reference = deepcopy(net).train()
    first, second = tent(net, x, lr=0.1)
    torch.testing.assert_close(first, reference(x[0]).detach())
    moved = [reference[1].weight, reference[1].bias]
    optimizer = torch.optim.Adam(moved, lr=0.1)
    entropy(reference(x[0])).mean().backward()
    optimizer.step()
    torch.testing.assert_close(second, reference(x[1]).detach())


def test_gamma_and_beta_alone_move() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    list(tent(net, batches()))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias"}
    assert all(p.grad is None for name, p in net.named_parameters() if not name.startswith("1."))


def test_predictions_get_more_certain() -> None:
    x = batches(1)[0]
    logits = list(tent(network(), [x] * 20, lr=0.05))
    assert float(entropy(logits[-1]).mean()) < 0.8 * float(entropy(logits[0]).mean())


def test_it_works_where_gradients_are_off_and_needs_gamma_and_beta() -> None:
    with torch.no_grad():
        assert len(list(tent(network(), batches(2)))) == 2
    with pytest.raises(ValueError, match="the network has none"):
        list(tent(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), batches(1)))
