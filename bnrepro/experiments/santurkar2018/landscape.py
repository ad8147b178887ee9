r"""What Santurkar et al. measure, as functions of a network's parameters: the same code for every network.

With a loss :math:`L`, parameters :math:`\theta`, gradient :math:`g = \nabla L(\theta)` and steps :math:`\eta` along it,
:math:`\theta_\eta = \theta - \eta g`, and :math:`g_\eta = \nabla L(\theta_\eta)`:

- variation of the loss (their Figure 4a): the range of :math:`L(\theta_\eta)`;
- gradient predictiveness (4b): the range of :math:`\|g_\eta - g\|`;
- effective smoothness (4c): :math:`\beta = \max_\eta \|g_\eta - g\| / (\eta \|g\|)`;
- internal covariate shift of layer i (Definition 2.1): :math:`\|G_i - G_i'\|` and :math:`\cos(G_i, G_i')`, where
  :math:`G_i` is the gradient with respect to that layer's weights, and :math:`G_i'` the same after all earlier layers
  have made their step of gradient descent, on the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Row = dict[str, Any]
Parameters = list[Tensor]


class Factor(nn.Module):
    """A layer W of a deep linear network, from Glorot's weights: (1, n, samples) -> (1, n, samples)."""

    def __init__(self, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, features))
        nn.init.xavier_uniform_(self.weight, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x[0])[None]


LAYERS = (nn.Conv2d, nn.Linear, Factor)


class Objective:
    """The loss of a network on one batch, in training mode, as a function of the parameters.

    The network stays as it is: it is called with the parameters that are given, and with copies of its running
    statistics, which take the updates.
    """

    def __init__(self, network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        self.network, self.x, self.loss = network.train(), x, loss
        self.names = [name for name, _ in network.named_parameters()]
        self.layer_of, self.weight_of = _layers(network)

    def gradient(self, parameters: Parameters) -> tuple[float, Parameters]:
        """The loss and its gradient at ``parameters``, in the order of the network's own."""
        leaves = [p.detach().requires_grad_() for p in parameters]
        state = dict(zip(self.names, leaves, strict=True)) | copies(self.network)
        value = self.loss(functional_call(self.network, state, (self.x,)))
        return float(value.detach()), list(torch.autograd.grad(value, leaves))


def copies(network: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's running statistics."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def _layers(network: nn.Module) -> tuple[list[int], dict[int, int]]:
    """The layer (from 1) that each parameter belongs to, and where in their list each layer's weight stands.

    A norm's parameters belong to the layer before it.
    """
    owners = [(module, p) for module in network.modules() for p in module.parameters(recurse=False)]
    layer_of: list[int] = []
    weight_of: dict[int, int] = {}
    last: nn.Module | None = None
    for place, (module, _) in enumerate(owners):
        if isinstance(module, LAYERS) and module is not last:
            last = module
            weight_of[len(weight_of) + 1] = place  # a layer's weight comes before its bias
        layer_of.append(len(weight_of))
    return layer_of, weight_of


def measured(
    step: int, objective: Objective, parameters: Parameters, lr: float, along: list[float], layers: list[int]
) -> list[Row]:
    """All measures at one step, as rows (x = ``step``).

    Args:
        step: of the training.
        objective: the loss on the step's batch.
        parameters: where the network stands.
        lr: the learning rate.
        along: steps along the gradient, as multiples of ``lr``.
        layers: those whose internal covariate shift is measured, from 1.
    """
    loss, gradient = objective.gradient(parameters)
    values = {"loss": loss, "gradient": norm(gradient)}
    values |= along_gradient(objective, parameters, gradient, [lr * factor for factor in along])
    for layer in layers:
        difference, cosine = covariate_shift(objective, parameters, gradient, lr, layer)
        values |= {f"difference_{layer}": difference, f"cosine_{layer}": cosine}
    return [{"quantity": name, "x": step, "value": value} for name, value in values.items()]


def along_gradient(
    objective: Objective, parameters: Parameters, gradient: Parameters, steps: list[float]
) -> dict[str, float]:
    """The extremes of the loss and of the change of the gradient over ``steps`` along it, and the effective beta.

    nan counts as infinite: the numbers have overflowed.
    """
    losses, changes = [], []
    for step in steps:
        loss, other = objective.gradient(_moved(parameters, gradient, step))
        losses.append(_number(loss))
        changes.append(_number(norm(_difference(other, gradient))))
    length = norm(gradient)
    betas = [change / (step * length) for change, step in zip(changes, steps, strict=True)] if length else [math.nan]
    low_high = {"loss_low": min(losses), "loss_high": max(losses), "change_low": min(changes)}
    return low_high | {"change_high": max(changes), "beta": max(betas)}


def covariate_shift(
    objective: Objective, parameters: Parameters, gradient: Parameters, lr: float, layer: int
) -> tuple[float, float]:
    """Norm of the difference, and cosine, of a layer's gradients before and after all earlier layers have moved."""
    stepped = _moved(parameters, gradient, lr)
    earlier = [of < layer for of in objective.layer_of]
    mixed = [after if moves else before for before, after, moves in zip(parameters, stepped, earlier, strict=True)]
    place = objective.weight_of[layer]
    before, after = gradient[place], objective.gradient(mixed)[1][place]
    product = norm([before]) * norm([after])
    cosine = float((before.double() * after.double()).sum()) / product if product else math.nan
    return norm([before - after]), cosine


def norm(tensors: Parameters) -> float:
    """Euclidean norm of all tensors as one vector, summed in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _moved(parameters: Parameters, gradient: Parameters, step: float) -> Parameters:
    return [p.detach() - step * g for p, g in zip(parameters, gradient, strict=True)]


def _difference(a: Parameters, b: Parameters) -> Parameters:
    return [x - y for x, y in zip(a, b, strict=True)]


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value
