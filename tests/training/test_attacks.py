"""PGD: exact on a linear classifier, within its cube, and no weaker with more restarts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

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


def not_a_number(x: torch.Tensor) -> torch.Tensor:
    """Logits of class 0, NaN for images that begin with a level of 250 or more."""
    first = x.flatten(1)[:, :1]
    return torch.cat([first.where(first < 250, torch.nan), 0 * first, 0 * first], 1)


def test_what_is_not_a_number_is_not_right() -> None:
    images, labels = torch.full((4, 1, 2, 2), 100.0), torch.zeros(4, dtype=torch.int64)
    images[2:] = torch.tensor([255.0, 240.0]).view(2, 1, 1, 1)
    _, fooled = pgd(not_a_number, images, labels, 0.0, steps=1, restarts=1)
    assert fooled.tolist() == [False, False, True, False]
    _, fooled = pgd(lambda x: torch.full((len(x), 3), torch.nan, requires_grad=True), images, labels, 1.0, restarts=0)
    assert fooled.all()


def test_a_gradient_that_is_not_a_number_leads_nowhere() -> None:
    images, labels = torch.full((4, 1, 2, 2), 100.0), torch.zeros(4, dtype=torch.int64)
    ahead = torch.tensor([1.0, 0.0, 0.0])
    found, fooled = pgd(lambda x: (x - x).flatten(1)[:, :3].sqrt() + ahead, images, labels, 2.0, steps=3)
    assert found.isfinite().all()
    assert not fooled.any()


def in_training() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.Flatten())


IMAGES, LABELS = data()
REFUSED = {
    "no steps": ({"steps": 0}, "steps must be a whole number from 1 on, got 0"),
    "half a step": ({"steps": 1.5}, "steps must be a whole number from 1 on, got 1.5"),
    "restarts": ({"restarts": -1}, "restarts must be a whole number from 0 on, got -1"),
    "epsilon": ({"epsilon": -1.0}, "epsilon must be a number from 0 on, got -1.0"),
    "no epsilon": ({"epsilon": torch.nan}, "epsilon must be a number from 0 on, got nan"),
    "size": ({"size": 0.0}, "size must be a number above 0"),
    "labels' dtype": ({"labels": LABELS.float()}, r"labels must be torch\.int64 .* got torch\.float32 \(60,\)"),
    "labels' number": ({"labels": LABELS[:9]}, r"one of each image, \(60,\); got torch\.int64 \(9,\)"),
    "one-hot labels": ({"labels": torch.eye(3).long()[LABELS]}, r"got torch\.int64 \(60, 3\)"),
    "labels' range": ({"labels": LABELS + 1}, "labels must be from 0 to 2"),
    "logits": (
        {"logits_of": nn.Identity()},
        r"logits must be \(images, classes\), .*; got \(60, 1, 5, 5\)",
    ),
    "training": ({"logits_of": in_training()}, r"a BatchNorm2d in it would .* Call \.eval\(\)"),
    "training within": ({"logits_of": lambda x, network=in_training(): network(x / 255)}, r"Call \.eval\(\)"),
}


@pytest.mark.parametrize(("changed", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_do_is_told(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pgd(**{"logits_of": linear(), "images": IMAGES, "labels": LABELS, "epsilon": 1.0, **changed})


def test_running_statistics_stay() -> None:
    network = in_training()
    with pytest.raises(ValueError, match="training mode"):
        pgd(network, IMAGES, LABELS, 1.0)
    assert network[1].num_batches_tracked == 0
    pgd(network.eval(), IMAGES, LABELS, 1.0, steps=1, restarts=1)
    network(IMAGES.float()), network.train()(IMAGES.float())  # nobody watches any more
    assert network[1].num_batches_tracked == 1


def test_torchs_defaults_change_nothing(torchs_defaults: Callable[[], AbstractContextManager[None]]) -> None:
    network = deep()
    wanted = pgd(network, IMAGES, LABELS, 3.0, steps=2)
    with torchs_defaults():
        assert all(map(torch.equal, pgd(network, IMAGES, LABELS, 3.0, steps=2), wanted))
