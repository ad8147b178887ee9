r"""The deep linear network: :math:`\min \sum_x \|W_1 \cdots W_k x - A x\|^2` by gradient descent on all samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.data import mix
from bnrepro.experiments.santurkar2018.landscape import Factor, Objective, Row, measured
from bnrepro.norm import NORMS


def network(variant: str, depth: int, width: int, samples: int, seed: int) -> nn.Sequential:
    """``depth`` layers of ``width`` x ``width`` (Glorot), a norm after each but the last; all norms share weights."""
    generator = torch.Generator().manual_seed(mix(seed, "weights"))
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(Factor(width, generator))
        if index < depth - 1:
            layers.append(NORMS[variant](width, (samples,)))
    return nn.Sequential(*layers)


def problem(width: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs x and targets A x, both (1, width, samples), all of x and A standard normal."""
    generator = torch.Generator().manual_seed(mix(seed, "data"))
    x = torch.randn(1, width, samples, generator=generator)
    return x, torch.randn(width, width, generator=generator) @ x


def trained(
    seed: int,
    variant: str,
    rate: float,
    depth: int,
    width: int,
    samples: int,
    steps: int,
    every: int,
    along: list[float],
    layers: list[int],
) -> list[Row]:
    """Full-batch gradient descent from Glorot's weights, measured every so many steps (`landscape.measured`).

    A network whose loss is no number any more stops there: row ``diverged``.
    """
    x, target = problem(width, samples, seed)
    loss_of = _squared_error(target)
    net = network(variant, depth, width, samples, seed)
    objective = Objective(net, x, loss_of)
    parameters: list[Tensor] = list(net.parameters())
    rows: list[Row] = []
    for step in range(steps + 1):
        if step % every == 0:
            rows += measured(step, objective, parameters, rate, along, layers)
        loss = loss_of(net(x))
        if not bool(loss.isfinite()):
            return [*rows, {"quantity": "diverged", "x": None, "value": step}]
        gradient = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradient, alpha=-rate)
    return rows


def _squared_error(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: F.mse_loss(y, target, reduction="sum")
