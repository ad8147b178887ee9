r"""NumPyNet's layer with its backward as published, mended in one place or the other, as its text has it, and exact.

With N images of M = w h c values each, ``d = delta * scales`` and every mean over the batch, all of them are::

    dx = rstd * (d - a * mean(d) - b * xhat * mean(d * xhat))

The exact gradient, and the text's, has a = b = 1; the others have the `COEFFICIENTS` below. So for M >> N the published
gradient goes to the detached one.

Source: https://github.com/Nico-Curti/NumPyNet, layers/batchnorm_layer.py, as its documentation prints it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnrepro.norm.function import batch_norm
from bnrepro.norm.oracle import Array

EPSIL = 1e-8  # the source's

COEFFICIENTS: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "code": lambda n, m: (1 / m, n / m),  # as published: invN counts locations, dmu is a mean
    "invN": lambda n, m: (1 / n, 1.0),  # invN mended alone: one over the batch's length
    "sum": lambda n, m: (n / m, n / m),  # dmu mended alone: a sum over the batch
    "detached": lambda n, m: (0.0, 0.0),  # mean and variance taken for constants
}
"""(a, b) for N images of M values."""
GRADIENTS = ("exact", "text", *COEFFICIENTS)


def input_gradient(d: Any, xhat: Any, rstd: Any, gradient: str) -> Any:
    """dx by the coefficients, of arrays or tensors."""
    a, b = COEFFICIENTS[gradient](len(d), math.prod(d.shape[1:]))
    return rstd * (d - a * d.mean(0) - b * xhat * (d * xhat).mean(0))


def closed_form(x: Array, scales: Array, delta: Array, gradient: str) -> Array:
    """dx by the coefficients, for x and delta (N, ...) and scales (...)."""
    rstd = 1 / np.sqrt(x.var(0) + EPSIL)
    return np.asarray(input_gradient(delta * scales, (x - x.mean(0)) * rstd, rstd, gradient))


def text_backward(x: Array, scales: Array, delta: Array) -> Array:
    """The formula for the error that the source's text prints, with its sums over the N images.

    (N d_i - sum_j d_j - xhat_i sum_j d_j xhat_j) / (N sqrt(var + eps)).
    """
    n = len(x)
    std = np.sqrt(x.var(0) + EPSIL)
    xhat = (x - x.mean(0)) / std
    d = delta * scales
    return np.asarray((n * d - d.sum(0) - xhat * (d * xhat).sum(0)) / (n * std))


def published(x: Array, scales: Array, delta: Array, mended: str = "nothing") -> tuple[Array, Array, Array]:
    """``delta``, ``mean_delta`` and ``var_delta`` of the source's backward, line by line, for x and delta (N, w, h, c).

    ``mended``: "invN" is 1 / N instead of one over the number of locations; "sum": ``mean_delta`` is a sum over the
    batch instead of a mean; or "both".
    """
    mean: Any = x.mean(axis=0)
    var = 1.0 / np.sqrt(x.var(axis=0) + EPSIL)  # one over the standard deviation; the source's name
    invn = 1.0 / (len(x) if mended in ("invN", "both") else np.prod(mean.shape))
    d = delta * scales
    dmu = d * (-var)
    mean_delta = dmu.sum(axis=0) if mended in ("sum", "both") else dmu.mean(axis=0)
    var_delta = (d * (x - mean)).sum(axis=0) * (-0.5 * var * var * var)
    return d * var + var_delta * 2 * (x - mean) * invn + mean_delta * invn, mean_delta, var_delta


class NumPyNetNorm(nn.Module):
    """The layer in torch, for (N, *shape), with the backward called ``gradient``: statistics over N, parameters per
    location.

    It keeps the batch's statistics in eval mode too, since the source has no other. Its parameters have the source's
    names, by which the networks do not take its shift for a reason to leave out the bias before it.
    """

    def __init__(self, shape: tuple[int, ...], gradient: str) -> None:
        super().__init__()
        self.gradient = gradient
        self.scales = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient == "exact":
            return batch_norm(x, self.scales[None], self.shift[None], (0,), EPSIL)[0]
        return _Normalize.apply(x, self.scales, self.shift, self.gradient)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, shift: Tensor, gradient: str) -> Tensor:
        mean = x.mean(0)
        rstd = ((x - mean).square().mean(0) + EPSIL).rsqrt()
        xhat = (x - mean) * rstd
        ctx.save_for_backward(xhat, rstd, scales)
        ctx.gradient = gradient
        return xhat * scales + shift

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (delta,) = gradients
        xhat, rstd, scales = ctx.saved_tensors
        d, n = delta * scales, len(delta)
        if ctx.gradient == "text":
            dx = (n * d - d.sum(0) - xhat * (d * xhat).sum(0)) / n * rstd
        else:
            dx = input_gradient(d, xhat, rstd, ctx.gradient)
        return dx, (delta * xhat).sum(0), delta.sum(0), None
