"""Signals by depth: how large activations and gradients are in each layer of a network, and of which rank.

Made for networks as they are initialized, where all of this is decided before a step is taken, and usable by itself::

    for layer in by_depth(network, x):
        print(layer.name, layer.activation, layer.gradient, layer.rank)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Layer", "by_depth", "effective_rank", "growth"]

SHARE = 0.01
"""Singular values below this share of the largest do not count in `Layer.above`."""


@dataclass(frozen=True)
class Layer:
    """What leaves one module, for a batch; not finite where that is not, the rank and `above` NaN."""

    name: str
    activation: float
    """Mean square."""
    gradient: float
    """Mean square of the derivative of the loss by it."""
    rank: float
    """Effective rank of the batch's features, see `effective_rank`."""
    above: float
    """Number of their singular values that are at least `SHARE` of the largest."""


def by_depth(
    network: nn.Module,
    x: Tensor,
    modules: Mapping[str, nn.Module] | None = None,
    *,
    y: Tensor | None = None,
    seed: int = 0,
) -> list[Layer]:
    """What leaves each of ``modules`` when ``x`` passes through ``network`` forward and back, in order of the pass.

    It is looked at before an activation in place overwrites it. Gradients are taken within `torch.no_grad` too.

    Args:
        network: in the mode (train, eval) in which it is to be looked at; its running statistics move as they do in
            any pass, and its gradients stay.
        x: a batch, of floating-point numbers.
        modules: by name; None: all convolutions and linear layers. A network of ours has its norms in ``.norms``.
        y: labels, of which the loss is the cross-entropy, summed over the batch. None: the loss is a random linear
            function of all outputs, so that a gradient's mean square stands for that of the Jacobian's entries.
        seed: of that function.

    Raises:
        ValueError: a module is not used, or more than once, or what leaves it or the network is no tensor with a
            gradient; there are no modules, images or floating-point numbers to look at.
    """
    if not x.is_floating_point() or not x.numel():
        given = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
        raise ValueError(f"by_depth needs floating-point inputs, one or more, got {given}. Convert them first.")
    if modules is None:
        modules = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    if not modules:
        raise ValueError("there is no convolution (Conv2d) or linear layer to look at: give `modules`, by name")
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Any) -> Tensor:
        if name in found:
            raise ValueError(f"{name} is used more than once in a pass: there is no one output to look at")
        found[name] = _differentiable(name, output, "Give `modules` without it.")
        return found[name].clone()  # which may be overwritten

    with torch.inference_mode(False), torch.enable_grad():
        handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
        try:
            start = x.detach().clone().requires_grad_()  # so that there are gradients where nothing is trained
            output = _differentiable("the network", network(start.clone()), "Call eval, or return one.")
        finally:
            for handle in handles:
                handle.remove()
        if unused := next((name for name in modules if name not in found), None):
            raise ValueError(f"{unused} is not used when the network is called: give `modules` without it")
        gradients = torch.autograd.grad(_loss(output, y, seed), list(found.values()), materialize_grads=True)
    layers = []
    for (name, features), gradient in zip(found.items(), gradients, strict=True):
        squares = squared_singular_values(features.detach())
        activation, size = (float(each.detach().double().square().mean()) for each in (features, gradient))
        layers.append(Layer(name, activation, size, participation(squares), _above(squares)))
    return layers


def _differentiable(what: str, output: Any, remedy: str) -> Tensor:
    """``output``, if gradients can be taken by it."""
    if not isinstance(output, Tensor):
        raise ValueError(f"{what} gives a {type(output).__name__}, and not one tensor. {remedy}")
    if not output.requires_grad:
        raise ValueError(f"{what} gives a tensor without gradients (no_grad, detach, whole numbers). {remedy}")
    return output


def _loss(output: Tensor, y: Tensor | None, seed: int) -> Tensor:
    """The cross-entropy where there are labels, else a random linear function."""
    if y is None:
        generator = torch.Generator(output.device).manual_seed(seed)
        direction = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return (output * direction).sum()
    return nn.functional.cross_entropy(output, y, reduction="sum")


def _above(squares: Tensor) -> float:
    """The number of squared singular values from `SHARE` of the largest on; NaN where they are."""
    if squares.isnan().any():
        return math.nan
    return int((squares >= SHARE**2 * squares.max()).sum()) if squares.max() > 0 else 0


def effective_rank(features: Tensor) -> float:
    """(sum of s_i^2)^2 / sum of s_i^4 over the singular values s_i of a batch's features, (N, ...).

    It is k where k of them are equal and the others 0, does not change with the features' scale, and is at most their
    rank. The mean is not taken off. 0 where all features are, NaN where one is not finite.
    """
    return participation(squared_singular_values(features))


def squared_singular_values(features: Tensor) -> Tensor:
    """Of features (N, ...) as a matrix of N rows, in float64; all NaN where a feature is not finite."""
    matrix = features.flatten(1).double()
    if not matrix.isfinite().all():
        return matrix.new_full((min(matrix.shape),), math.nan)
    matrix = matrix / matrix.abs().max().clamp(
        min=torch.finfo(torch.float64).tiny
    )  # squares neither over- nor underflow
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def participation(squares: Tensor) -> float:
    """(sum)^2 / sum of squares: how many of these share the total; 0 or NaN where that is."""
    total = float(squares.sum())
    return total**2 / float(squares.square().sum()) if total > 0 else total


def growth(layers: list[Layer], skip: int = 0) -> float:
    """The factor by which the gradient's mean square grows per layer, from the last of ``layers`` to the first.

    Args:
        layers: as `by_depth` returns them, of equal widths.
        skip: layers that are left out at either end, where it is not that of the middle yet.
    """
    middle = layers[skip : len(layers) - skip]
    if len(middle) < 2:
        raise ValueError(f"of {len(layers)} layers, {len(middle)} are left: no growth can be said")
    if middle[-1].gradient == 0:
        raise ValueError(f"the gradient at {middle[-1].name} is 0: no growth can be said")
    return float((middle[0].gradient / middle[-1].gradient) ** (1 / (len(middle) - 1)))
