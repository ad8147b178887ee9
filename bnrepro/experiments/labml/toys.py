"""Without a network: statistics outside the gradient, cancelled biases, scaled weights, float32 variance.

Plain functions, which papers of the same identities make measures of under names of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnrepro.data.dataset import derive_seed
from bnrepro.norm.function import batch_norm, moments

Row = dict[str, Any]


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


def outside(seed: int, statistic: str, detached: bool, steps: int, lr: float, every: int) -> list[Row]:
    """Gradient descent through a statistic that is a constant to the gradient, or is not.

    mean: x = u + b, xhat = x - E[x], and b is trained from 0. variance: x = w u, xhat = x / std(x), and w is trained
    from 1. The loss is the mean of (xhat - target)^2 / 2. xhat depends neither on b nor on w > 0, so the loss cannot
    change. Detached, the gradients are -mean(target), which moves b by the same amount in each step, and
    mean((xhat - target) xhat) / w, which moves w with the square root of the steps. float64.

    Rows: parameter and loss by step.
    """
    generator = _generator(seed, "outside")
    u = torch.randn(64, dtype=torch.float64, generator=generator)
    u = u - u.mean()
    noise = 0.5 * torch.randn(64, dtype=torch.float64, generator=generator)
    target = 1.5 + noise if statistic == "mean" else 2 * u / u.std(correction=0) + noise  # wants more than xhat can be
    parameter = torch.tensor(0.0 if statistic == "mean" else 1.0, dtype=torch.float64, requires_grad=True)
    rows: list[Row] = []
    for step in range(steps + 1):
        x = u + parameter if statistic == "mean" else parameter * u
        known = x.mean() if statistic == "mean" else x.std(correction=0)
        known = known.detach() if detached else known
        xhat = x - known if statistic == "mean" else x / known
        loss = (xhat - target).square().mean() / 2
        if step % every == 0:
            rows.append({"quantity": "parameter", "x": step, "value": float(parameter.detach())})
            rows.append({"quantity": "loss", "x": step, "value": float(loss.detach())})
        (gradient,) = torch.autograd.grad(loss, parameter)
        parameter = (parameter - lr * gradient).detach().requires_grad_()
    return rows


def cancelled_bias(seed: int, steps: int) -> list[Row]:
    """BN(W u + b) against BN(W u) in float64: outputs, the gradient of b, the weights after training with either."""
    generator = _generator(seed, "bias")
    u, target = (torch.randn(64, n, dtype=torch.float64, generator=generator) for n in (20, 8))
    weight = torch.randn(8, 20, dtype=torch.float64, generator=generator)
    bias = torch.randn(8, dtype=torch.float64, generator=generator)

    def output(weight: Tensor, bias: Tensor | None) -> Tensor:
        return batch_norm(F.linear(u, weight, bias), None, None, (0,), 1e-5)[0]

    tracked = bias.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((output(weight, tracked) * target).sum(), tracked)
    ends = []
    for with_bias in (True, False):
        parameters = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        for _ in range(steps):
            loss = (output(parameters[0], parameters[1] if with_bias else None) - target).square().mean()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            parameters = [
                (p if g is None else p - 0.1 * g).detach().requires_grad_()
                for p, g in zip(parameters, gradients, strict=True)
            ]
        ends.append(parameters[0].detach())
    return [
        {"quantity": "output", "x": None, "value": _error(output(weight, bias), output(weight, None))},
        {"quantity": "gradient", "x": None, "value": float(gradient.abs().max())},
        {"quantity": "trained", "x": None, "value": _error(ends[0], ends[1])},
    ]


def scaled_weights(seed: int, eps: float, scales: list[float]) -> list[Row]:
    """BN(a W u) against BN(W u) for W ~ N(0, 0.01^2) with 20 inputs, in float64: output and both gradients.

    Rows by a: relative changes of the output, of d/du and of d/dW, and of a times d/dW, which Ioffe & Szegedy
    (section 3.3) say stays. With eps = 0 all is exact; otherwise eps weighs against the variance, 0.002 here.
    """
    generator = _generator(seed, "scale")
    u, upstream = (torch.randn(256, n, dtype=torch.float64, generator=generator) for n in (20, 8))
    weight = 0.01 * torch.randn(8, 20, dtype=torch.float64, generator=generator)

    def at(a: float) -> tuple[Tensor, Tensor, Tensor]:
        inputs, scaled = u.clone().requires_grad_(), (a * weight).requires_grad_()
        y = batch_norm(F.linear(inputs, scaled), None, None, (0,), eps)[0]
        du, dw = torch.autograd.grad(y, (inputs, scaled), upstream)
        return y.detach(), du, dw

    y, du, dw = at(1.0)
    rows: list[Row] = []
    for a in scales:
        y_a, du_a, dw_a = at(a)
        for name, value in (("output", _error(y_a, y)), ("du", _error(du_a, du)), ("dw", _error(dw_a, dw)),
                            ("dw_times_a", _error(a * dw_a, dw))):  # fmt: skip
            rows.append({"quantity": name, "x": a, "value": value})
    return rows


def cancellation(seed: int, mean: float, std: float, draws: int) -> list[Row]:
    """The variance in float32 by E[x^2] - E[x]^2, by torch's batch normalization and by ours, against float64.

    ``draws`` channels of 64 x 64 normal values. Rows by implementation: ``error``, the median over the channels of the
    relative error of the variance; ``variance``, its median; ``nan``, the percentage of channels whose
    sqrt(var + 1e-5) is no number.
    """
    x = mean + std * torch.randn(64 * 64, draws, generator=_generator(seed, "cancellation"))  # (values, channels)
    right = x.double().var(0, correction=0)
    running_mean, running_var = torch.zeros(draws), torch.zeros(draws)
    F.batch_norm(x, running_mean, running_var, training=True, momentum=1.0)
    computed = {
        "E[x²] - E[x]²": x.square().mean(0) - x.mean(0).square(),
        "torch": running_var * ((len(x) - 1) / len(x)),
        "ours": moments(x, (0,))[1].flatten(),
    }
    rows: list[Row] = []
    for name, var in computed.items():
        nan = 100 * float(((var + 1e-5) < 0).float().mean())
        rows.append({"quantity": "error", "x": name, "value": float((var.double() / right - 1).abs().median())})
        rows.append({"quantity": "variance", "x": name, "value": float(var.median())})
        rows.append({"quantity": "nan", "x": name, "value": nan})
    return rows


def gaussian_share() -> float:
    """P(|z| < 1) of a standard normal: 68.3%."""
    return float(torch.special.erf(torch.tensor(0.5**0.5, dtype=torch.float64)))


def _error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, in the Euclidean norm."""
    return float((a - b).norm() / b.norm())
