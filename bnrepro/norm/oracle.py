"""The reference in NumPy, float64 and as plain as it gets: what every other implementation is held to.

Also `seed004_backward`, the backward of NumPyNet's layer as published, kept to be measured against.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Cache", "batch_norm_backward", "batch_norm_forward", "seed004_backward"]

Array = NDArray[np.float64]


class Cache(NamedTuple):
    """What the backward needs of the forward. Parameters keep their own shape beside the one that broadcasts."""

    xhat: Array
    rstd: Array
    weight: Array | None
    weight_shape: tuple[int, ...] | None
    bias_shape: tuple[int, ...] | None
    axes: tuple[int, ...]


def batch_norm_forward(
    x: ArrayLike, weight: ArrayLike | None, bias: ArrayLike | None, axes: tuple[int, ...] | int, eps: float = 1e-5
) -> tuple[Array, Cache]:
    """``y = weight * (x - mean) / sqrt(var + eps) + bias``, statistics over ``axes``, variance biased.

    Args:
        x: any shape.
        weight, bias: None (no scaling, no shift), or per channel (length of axis 1), or of the statistics' shape
            (that of ``x`` without ``axes``), or any shape that broadcasts against ``x`` by NumPy's rules.
        axes: the axes the statistics are taken over.
        eps: added to the variance.

    Returns:
        y in the shape of ``x``, and a cache for `batch_norm_backward`.

    Raises:
        ValueError: ``weight`` or ``bias`` does not fit ``x``.
    """
    x = np.asarray(x, np.float64)
    axes = tuple(int(a) % x.ndim for a in np.atleast_1d(axes))
    mean = x.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + eps)
    xhat = (x - mean) * rstd
    w, b = _against(weight, x, axes, "weight"), _against(bias, x, axes, "bias")
    y = xhat.copy()
    if w is not None:
        y = y * w
    if b is not None:
        y = y + b
    weight_shape = None if weight is None else np.shape(weight)
    bias_shape = None if bias is None else np.shape(bias)
    return y, Cache(xhat, rstd, w, weight_shape, bias_shape, axes)


def batch_norm_backward(dy: ArrayLike, cache: Cache) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `batch_norm_forward`: ``(dx, dweight, dbias)`` for an upstream ``dy`` in the shape of y.

    ``dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))`` with ``dxhat = dy * weight`` and the means
    over the statistics' axes. ``dweight`` and ``dbias`` have the shapes the parameters came in, None for None.
    """
    dy = np.asarray(dy, np.float64)
    dxhat = dy if cache.weight is None else dy * cache.weight
    mean = dxhat.mean(cache.axes, keepdims=True)
    projection = (dxhat * cache.xhat).mean(cache.axes, keepdims=True)
    dx = cache.rstd * (dxhat - mean - cache.xhat * projection)
    dweight = _sum_to(dy * cache.xhat, cache.weight_shape, cache.axes)
    dbias = _sum_to(dy, cache.bias_shape, cache.axes)
    return dx, dweight, dbias


def _broadcast_shape(shape: tuple[int, ...], x_shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """``shape`` with the ones that make it broadcast against ``x_shape``; None if it does not fit."""
    rest = tuple(n for axis, n in enumerate(x_shape) if axis not in axes)
    if len(shape) < len(x_shape):
        if shape == rest:
            return tuple(1 if axis in axes else n for axis, n in enumerate(x_shape))
        if len(x_shape) > 1 and shape == (x_shape[1],):
            return (1, x_shape[1], *[1] * (len(x_shape) - 2))
    padded = (1,) * (len(x_shape) - len(shape)) + shape
    fits = len(padded) == len(x_shape) and all(p in (1, n) for p, n in zip(padded, x_shape, strict=True))
    return padded if fits else None


def _against(parameter: ArrayLike | None, x: Array, axes: tuple[int, ...], name: str) -> Array | None:
    if parameter is None:
        return None
    array = np.asarray(parameter, np.float64)
    shape = _broadcast_shape(array.shape, x.shape, axes)
    if shape is None:
        raise ValueError(f"{name} of shape {array.shape} does not fit x of shape {x.shape} with axes {axes}")
    return array.reshape(shape)


def _sum_to(gradient: Array, shape: tuple[int, ...] | None, axes: tuple[int, ...]) -> Array | None:
    if shape is None:
        return None
    broadcast = _broadcast_shape(shape, gradient.shape, axes)
    assert broadcast is not None  # checked in the forward
    summed = tuple(axis for axis, n in enumerate(broadcast) if n == 1)
    return np.asarray(gradient.sum(summed, keepdims=True).reshape(shape))


def seed004_backward(
    x: ArrayLike, scales: ArrayLike, delta: ArrayLike, epsil: float = 1e-8
) -> tuple[Array, Array, Array]:
    """NumPyNet's ``BatchNorm_layer.backward``, line by line; the gradient that it returns is **wrong**.

    ``invN`` should be one over the batch's length, not over the number of locations, and ``mean_delta`` should
    be a sum over the batch, not a mean. With N images of M values each it returns::

        dx = rstd * (dxhat - mean(dxhat) / M - (N / M) * xhat * mean(dxhat * xhat))

    which for M >> N is the gradient that takes mean and variance for constants: labml's "normalizing outside
    the gradient". Names as in the source, where ``var`` holds one over the standard deviation.

    Args:
        x, delta: (N, w, h, c), the input and dL/dy.
        scales: (w, h, c), gamma.
        epsil: added to the variance.

    Returns:
        ``(delta, scales_updates, bias_updates)``: the wrong dx, and dgamma and dbeta, which are right.

    Source: https://github.com/Nico-Curti/NumPyNet, layers/batchnorm_layer.py, as its documentation prints it.
    """
    x = np.asarray(x, np.float64)
    delta = np.array(delta, np.float64)
    mean: Any = x.mean(axis=0)
    var = 1.0 / np.sqrt(x.var(axis=0) + epsil)
    x_norm = (x - mean) * var

    invN = 1.0 / np.prod(mean.shape)
    bias_updates = delta.sum(axis=0)
    scales_updates = (delta * x_norm).sum(axis=0)
    delta *= np.asarray(scales, np.float64)
    mean_delta = (delta * (-var)).mean(axis=0)
    var_delta = (delta * (x - mean)).sum(axis=0) * (-0.5 * var * var * var)
    delta = delta * var + var_delta * 2 * (x - mean) * invN + mean_delta * invN
    return np.asarray(delta), scales_updates, bias_updates
