"""Sections 3.1 and 3.2 in float64: the effective mini-batch of a convolution, and Algorithm 2."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.data import mix
from bnrepro.norm import NORMS, NormOptions, reestimate_statistics

Row = dict[str, Any]
EPS = 1e-5


@torch.no_grad()
def effective_batch(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """I3. m' from the layer's own variances, and m p q.

    The running variance is the unbiased one, sigma^2 m'/(m' - 1), so with r = unbiased / biased m' = r / (r - 1).
    """
    generator = torch.Generator().manual_seed(mix(seed, "effective batch"))
    x = torch.randn((batch, channels, height, width), dtype=torch.float64, generator=generator)
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=EPS, momentum=1.0)).double()
    layer(x)
    ratio = layer.get_buffer("running_var") / x.var((0, 2, 3), correction=0)
    return [
        _row("effective", float((ratio / (ratio - 1)).mean())),
        _row("expected", batch * height * width),
    ]


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
    generator = torch.Generator().manual_seed(mix(seed, "algorithm 2"))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

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


def _row(quantity: str, value: float) -> Row:
    return {"quantity": quantity, "x": None, "value": value}
