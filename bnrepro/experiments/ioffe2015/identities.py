"""Sections 3.1 to 3.3 in float64: what cancels, the effective mini-batch of a convolution, Algorithm 2."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.data.dataset import derive_seed
from bnrepro.norm import NORMS, NormOptions, reestimate_statistics
from bnrepro.norm.function import batch_norm
from bnrepro.norm.oracle import batch_norm_forward

Row = dict[str, Any]
EPS = 1e-5


@measure("ioffe2015/cancelled_bias")
def cancelled_bias(seed: int, steps: int) -> list[Row]:
    """I3. BN(W u + b) against BN(W u): relative change of the ``output`` and of the weights ``trained`` with either,
    and the largest ``gradient`` of b.
    """
    draw = _drawer(seed, "bias")
    u, target, weight, bias = draw(64, 20), draw(64, 8), draw(8, 20), draw(8)

    def output(weight: Tensor, bias: Tensor | None) -> Tensor:
        return batch_norm(F.linear(u, weight, bias), None, None, (0,), EPS)[0]

    tracked = bias.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((output(weight, tracked) * target).sum(), tracked)

    def trained(*parameters: Tensor) -> Tensor:
        for _ in range(steps):
            parameters = tuple(p.detach().requires_grad_() for p in parameters)
            loss = (output(parameters[0], parameters[1] if len(parameters) > 1 else None) - target).square().mean()
            moves = torch.autograd.grad(loss, parameters)
            parameters = tuple(p - 0.1 * g for p, g in zip(parameters, moves, strict=True))
        return parameters[0].detach()

    return [
        _row("output", _error(output(weight, bias), output(weight, None))),
        _row("gradient", float(gradient.abs().max())),
        _row("trained", _error(trained(weight, bias), trained(weight))),
    ]


@measure("ioffe2015/scaled_weights")
def scaled_weights(seed: int, eps: float, scales: list[float]) -> list[Row]:
    """I4. BN(a W u) against BN(W u) for W ~ N(0, 0.01^2) with 20 inputs.

    Rows by a: relative change of the ``output``, of the gradient ``du``, and of ``dw_times_a``, a times the gradient of
    the scaled weights. With eps = 0 there is none; otherwise eps weighs against the variance, 0.002 here.
    """
    draw = _drawer(seed, "scale")
    u, upstream, weight = draw(256, 20), draw(256, 8), 0.01 * draw(8, 20)

    def at(a: float) -> tuple[Tensor, Tensor, Tensor]:
        inputs, scaled = u.clone().requires_grad_(), (a * weight).requires_grad_()
        y = batch_norm(F.linear(inputs, scaled), None, None, (0,), eps)[0]
        du, dw = torch.autograd.grad(y, (inputs, scaled), upstream)
        return y.detach(), du, a * dw

    right, rows = at(1.0), []
    for a in scales:
        changed = zip(("output", "du", "dw_times_a"), at(a), right, strict=True)
        rows += [_row(name, _error(mine, its), a) for name, mine, its in changed]
    return rows


@measure("ioffe2015/channels")
@torch.no_grad()
def channels(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """I3. How many numbers each parameter and statistic holds (``size``), and the largest difference between the output
    and NumPy's with statistics per map (``error``).
    """
    x = 2 * _drawer(seed, "channels")(batch, channels, height, width) - 1
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=EPS)).double()
    tensors = [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]
    want = torch.from_numpy(batch_norm_forward(x.numpy(), None, None, (0, 2, 3), EPS)[0])
    error = _row("error", float((layer(x) - want).abs().max()), "per channel")
    return [*(_row("size", tensor.numel(), f"tensor {place}") for place, tensor in enumerate(tensors)), error]


@measure("ioffe2015/effective_batch")
@torch.no_grad()
def effective_batch(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """I3. m' from the layer's own variances (``effective``), and m p q (``expected``).

    The running variance is the unbiased one, sigma^2 m'/(m' - 1), so with r = unbiased / biased m' = r / (r - 1).
    """
    x = _drawer(seed, "effective batch")(batch, channels, height, width)
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=EPS, momentum=1.0)).double()
    layer(x)
    ratio = layer.get_buffer("running_var") / x.var((0, 2, 3), correction=0)
    return [_row("effective", float((ratio / (ratio - 1)).mean())), _row("expected", batch * height * width)]


@measure("ioffe2015/algorithm_2")
@torch.no_grad()
def algorithm_2(seed: int, values: int, batch: int, features: int) -> list[Row]:
    """I7. Every mini-batch of ``batch`` draws, with replacement, from a population of ``values`` vectors.

    The expectation over mini-batches is exact: there are values^batch of them, all equally likely. ``variance``: the
    largest relative difference of the layer's cumulative average (momentum=None) to the population's variance; ``mean``
    the same of the mean; ``biased``: the ratio of E_B[sigma_B^2] to the population's variance, (m - 1) / m; ``precise``
    the largest relative difference of `reestimate_statistics` (variance="mean") to Algorithm 2's. ``affine``,
    ``linear`` and ``convolution``: largest difference of the output in eval mode to one affine map
    gamma x / sqrt(Var + eps) + (beta - gamma E / sqrt(Var + eps)), and to a linear layer and a convolution that it was
    folded into.
    """
    draw = _drawer(seed, "algorithm 2")
    population = draw(values, features)
    batches = [population[list(index)] for index in product(range(values), repeat=batch)]
    layer = nn.BatchNorm1d(features, eps=EPS, momentum=None).double()
    layer.weight.copy_(draw(features))
    layer.bias.copy_(draw(features))
    for x in batches:
        layer(x)
    mean, var = layer.get_buffer("running_mean").clone(), layer.get_buffer("running_var").clone()
    want_mean, want_var = population.mean(0), population.var(0, correction=0)
    biased = torch.stack([x.var(0, correction=0) for x in batches]).mean(0)
    reestimate_statistics(layer, batches, variance="mean")
    precise = (layer.get_buffer("running_var") / var - 1).abs().max()
    layer.eval()
    scale = layer.weight / (var + EPS).sqrt()
    shift = layer.bias - scale * mean
    # As one layer with what stands before it: scale (W u + b) + shift.
    u, weight, bias = draw(batch, 2 * features), draw(features, 2 * features), draw(features)
    maps, kernel = draw(batch, 2, 6, 6), draw(features, 2, 3, 3)
    linear = F.linear(u, scale[:, None] * weight, scale * bias + shift)
    convolved = F.conv2d(maps, scale[:, None, None, None] * kernel, scale * bias + shift)
    normed = F.batch_norm(F.conv2d(maps, kernel, bias), mean, var, layer.weight, layer.bias, False, 0.0, EPS)
    return [
        _row("mean", float((mean - want_mean).abs().max())),
        _row("variance", float((var / want_var - 1).abs().max())),
        _row("biased", float((biased / want_var).mean())),
        _row("expected", (batch - 1) / batch),
        _row("precise", float(precise)),
        _row("affine", float((layer(population) - (population * scale + shift)).abs().max())),
        _row("linear", float((layer(F.linear(u, weight, bias)) - linear).abs().max())),
        _row("convolution", float((normed - convolved).abs().max())),
    ]


def _drawer(seed: int, purpose: str) -> Any:
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose))
    return lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)


def _error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, in the Euclidean norm."""
    return float((a - b).norm() / b.norm())


def _row(quantity: str, value: float, x: float | str | None = None) -> Row:
    return {"quantity": quantity, "x": x, "value": value}
