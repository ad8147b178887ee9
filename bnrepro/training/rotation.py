r"""How far a step turns the weights in front of norms, and the learning rate that it amounts to.

A norm makes the loss invariant to the scale of the weights :math:`w` in front of it: only their direction counts. A
step :math:`w \to w'` turns it by their angle, the angular update; on weights of norm 1 the same step has the learning
rate :math:`\eta / |w|^2`, the effective one. For a network and an optimizer of your own::

    before = weights(network)
    optimizer.step()
    for name, turn in turns(before, network, lr=0.1).items():
        print(name, turn.angle, turn.effective_lr)

``angles=true`` has TensorBoard show both for a run: ``layer1/angle``, ``layer1/effective_lr``, ``layer1/norm``, ...

Sources: van Laarhoven (2017) for the effective rate; Wan et al. (2021) for the angular update and its equilibrium.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnrepro.training.model import weighted_layers

__all__ = ["Turn", "angle", "equilibrium_angle", "turns", "weights"]


class Turn(NamedTuple):
    """What a step did to a layer's weights."""

    angle: float
    """Between the weights before and after, in radians."""
    norm: float
    """Of the weights before."""
    effective_lr: float
    """Learning rate over the squared norm."""


def angle(before: Tensor, after: Tensor) -> float:
    """The angle between two tensors as vectors, in radians; nan where one is 0.

    In float64, and as ``2 atan2(|u - v|, |u + v|)`` of the unit vectors: the cosine of a small angle has lost it.
    """
    u, v = (t.detach().double().flatten() for t in (before, after))
    u, v = u / u.norm(), v / v.norm()
    return float(2 * torch.atan2((u - v).norm(), (u + v).norm()))


def equilibrium_angle(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""Where torch's SGD with weight decay has the angular update settle: :math:`\arccos(1 - \eta\lambda/(1+\mu))`.

    That is :math:`\sqrt{2\eta\lambda/(1+\mu)}` for small steps (Wan et al. 2021), whatever the loss, the layer and its
    gradients, as long as these have a constant expected size and no correlation from one step to the next.
    """
    return math.acos(1 - lr * weight_decay / (1 + momentum))


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of all convolutions and linear layers but the last: layer1, layer2, ...

    The last is that of the logits, which no norm follows. Whether one follows the others is the caller's to know.
    """
    return {f"layer{i}": each.weight.detach().clone() for i, each in enumerate(weighted_layers(network)[:-1], 1)}


def turns(before: dict[str, Tensor], network: nn.Module, lr: float) -> dict[str, Turn]:
    """What has become of the weights since they were ``before``, by the name of the layer."""
    found = {}
    for name, after in weights(network).items():
        norm = float(before[name].double().norm())
        found[name] = Turn(angle(before[name], after), norm, lr / norm**2 if norm else math.inf)
    return found
