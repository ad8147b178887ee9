r"""The subject of the project: batch normalization as one function with a hand-derived backward.

Let :math:`S` be the axes that the statistics are pooled over, :math:`m` the number of values pooled
into each statistic, and let every mean below run over :math:`S`.

Forward, with the *biased* variance (Ioffe & Szegedy 2015, Algorithm 1)::

    mean = mean_S(x)
    var  = mean_S((x - mean)^2)          two passes: no cancellation when |mean| >> std
    rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd
    y    = weight * xhat + bias

Backward. Write ``dy`` for dL/dy, and so on. The parameters are broadcast in the forward, so their
gradients are summed over the axes they were broadcast along, which need not be :math:`S`::

    dbias   = sum(dy)
    dweight = sum(dy * xhat)
    dxhat   = dy * weight

``x`` reaches ``xhat`` three ways: directly, through ``mean`` and through ``var``. With
``dxhat/dmean = -rstd`` (the path from mean to var vanishes, as mean_S(x - mean) = 0) and
``dvar/dx = 2 (x - mean) / m``, the chain rule gives::

    dx = rstd * (dxhat - mean_S(dxhat) - xhat * mean_S(dxhat * xhat))

The two subtracted terms are what "normalising outside the gradient" loses, and what NumPyNet's layer
gets wrong (see `bnrepro.norm.oracle`). They make dx orthogonal, along S, to a constant and to xhat
(the latter up to eps): shifting or scaling x changes nothing.

The 2 x 2 table of the project is two tuples of axes: S, and the axes the parameters are broadcast
along. Both come from the caller; nothing here knows about channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise ``x`` by its own statistics over ``axes``; see the module's docstring for the formula.

    Args:
        x: input of any shape and floating dtype. float16 and bfloat16 are computed in float32.
        weight, bias: None, or tensors that broadcast against ``x`` and have its number of dimensions.
        axes: the axes that the statistics are pooled over.
        eps: added to the variance.

    Returns:
        y in the shape and dtype of ``x``, and the mean and the *biased* variance, with length 1 along
        ``axes``. Gradients flow through y only; the statistics are detached.
    """
    y, mean, var = BatchNormFunction.apply(x, weight, bias, axes, eps)
    return y, mean, var


def widen(x: Tensor) -> Tensor:
    """16-bit floats as float32, anything else as it is: statistics need the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over ``axes``, length 1 kept there. Two passes."""
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes, keepdim=True)
    return mean, var


def affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``weight * xhat + bias``, either of them None."""
    if weight is not None:
        xhat = xhat * weight
    if bias is not None:
        xhat = xhat + bias
    return xhat


class BatchNormFunction(torch.autograd.Function):
    """``apply(x, weight, bias, axes, eps) -> (y, mean, var)``."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = widen(x)
        mean, var = moments(wide, axes)
        y = affine((wide - mean) * (var + eps).rsqrt(), weight, bias)
        return y.to(x.dtype), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, bias, axes, eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        # x and not xhat: no second tensor of x's size is kept alive, and double backward needs x.
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.axes, ctx.eps = axes, eps

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _dmean: Tensor, _dvar: Tensor) -> Gradients:
        x, weight, bias, mean, var = ctx.saved_tensors
        axes, eps = ctx.axes, ctx.eps
        wide, dy = widen(x), widen(dy)
        if torch.is_grad_enabled():
            # Double backward differentiates the lines below. The saved statistics are constants to
            # autograd; made again from x they are the functions of x that they ought to be.
            mean, var = moments(wide, axes)
        rstd = (var + eps).rsqrt()
        xhat = (wide - mean) * rstd

        dx = dweight = dbias = None
        if ctx.needs_input_grad[2]:
            dbias = dy.sum_to_size(bias.shape).to(bias.dtype)
        if ctx.needs_input_grad[1]:
            dweight = (dy * xhat).sum_to_size(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            dxhat = dy if weight is None else dy * weight
            dx = rstd * (dxhat - dxhat.mean(axes, keepdim=True) - xhat * (dxhat * xhat).mean(axes, keepdim=True))
            dx = dx.to(x.dtype)
        return dx, dweight, dbias, None, None
