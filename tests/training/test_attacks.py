"""PGD: exact on a linear classifier, within its cube, and no weaker with more restarts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnrepro.training.attacks import margin, pgd


def data(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(40, 216, (count, 1, 5, 5), generator=generator, dtype=torch.uint8)
    return images, torch.randint(3, (count,), generator=generator)


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 3))


def deep() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))


@pytest.mark.parametrize("epsilon", [4.0, 12.0, 36.0])
def test_a_linear_classifier_is_fooled_exactly_where_it_can_be(epsilon: float) -> None:
    net, (images, _) = linear(), data()
    with torch.no_grad():
        logits = net(images.float())
        labels = logits.argmax(1)  # all are right at first
        weight = net[1].weight
        reach = epsilon * (weight[None] - weight[labels][:, None]).abs().sum(2)  # by which each logit can gain
        gain = logits - logits.gather(1, labels[:, None]) + reach
        wanted = gain.scatter(1, labels[:, None], -torch.inf).amax(1) >= 0
    _, fooled = pgd(net, images, labels, epsilon, steps=40, restarts=3)
    assert not (fooled & ~wanted).any()
    assert (fooled == wanted).float().mean() > 0.97
    assert wanted.any()


def test_images_stay_in_the_cube_and_among_the_levels() -> None:
    images, labels = data()
    images[:20] = 255
    images[20:30] = 0
    adversarial, fooled = pgd(deep(), images, labels, 6.0, steps=5, restarts=2)
    assert (adversarial - images.float()).abs().max() <= 6.0 + 1e-4
    assert adversarial.min() >= 0
    assert adversarial.max() <= 255
    with torch.no_grad():
        assert torch.equal(margin(deep()(adversarial), labels) >= 0, fooled)


def test_what_is_wrong_already_is_left_as_it_is() -> None:
    net, (images, labels) = deep(), data()
    with torch.no_grad():
        wrong = net(images.float()).argmax(1) != labels
    adversarial, fooled = pgd(net, images, labels, 0.0, steps=2, restarts=1)
    assert torch.equal(fooled, wrong)
    assert torch.equal(adversarial, images.float())


def test_more_steps_and_restarts_find_no_fewer_and_the_seed_draws() -> None:
    net, (images, _) = deep(), data(200)
    with torch.no_grad():
        labels = net(images.float()).argmax(1)

    def found(steps: int, restarts: int, seed: int = 0) -> int:
        return int(pgd(net, images, labels, 3.0, steps=steps, restarts=restarts, seed=seed)[1].sum())

    assert 0 < found(1, 1) < found(20, 1) <= found(20, 4)
    one, same, other = (pgd(net, images, labels, 3.0, steps=1, restarts=1, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_gradients_reach_no_parameter() -> None:
    net, (images, labels) = deep(), data()
    with torch.no_grad():
        pgd(net, images, labels, 2.0, steps=2, restarts=1)
    assert all(p.grad is None for p in net.parameters())


def test_margin_is_the_largest_other_minus_the_labels() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [-3.0, 3.0]
