"""Signals by depth: how large activations and gradients are in each layer of a network, and of which rank.

Made for networks as they are initialised, where all of this is decided before a step is taken, and usable by itself::

    for layer in by_depth(network, x):
        print(layer.name, layer.activation, layer.gradient, layer.rank)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["Layer", "by_depth", "effective_rank", "growth"]

SHARE = 0.01
"""Singular values below this share of the largest do not count in `Layer.above`."""


@dataclass(frozen=True)
class Layer:
    """What leaves one module, for a batch."""

    name: str
    activation: float
    """Mean square."""
    gradient: float
    """Mean square of the derivative of the loss by it."""
    rank: float
    """Effective rank of the batch's features, see `effective_rank`."""
    above: int
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

    Args:
        network: in the mode (train, eval) in which it is to be looked at; its running statistics move as they do in
            any pass, and its gradients stay.
        x: a batch.
        modules: by name; None: all convolutions and linear layers. A network of ours has its norms in ``.norms``.
        y: labels, of which the loss is the cross-entropy, summed over the batch. None: the loss is a random linear
            function of all outputs, so that a gradient's mean square stands for that of the Jacobian's entries.
        seed: of that function.

    Raises:
        ValueError: a module is not used, or more than once.
    """
    if modules is None:
        modules = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if name in found:
            raise ValueError(f"{name} is used more than once in a pass: there is no one output to look at")
        found[name] = output

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
    try:
        output = network(x.detach().requires_grad_())  # so that there are gradients where nothing is trained
    finally:
        for handle in handles:
            handle.remove()
    if unused := next((name for name in modules if name not in found), None):
        raise ValueError(f"{unused} is not used when the network is called")
    if y is None:
        generator = torch.Generator(output.device).manual_seed(seed)
        direction = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        loss = (output * direction).sum()
    else:
        loss = nn.functional.cross_entropy(output, y, reduction="sum")
    gradients = torch.autograd.grad(loss, list(found.values()))
    layers = []
    for (name, features), gradient in zip(found.items(), gradients, strict=True):
        squares = squared_singular_values(features.detach())
        above = int((squares >= SHARE**2 * squares.max()).sum()) if squares.max() > 0 else 0
        activation, size = (float(each.detach().double().square().mean()) for each in (features, gradient))
        layers.append(Layer(name, activation, size, participation(squares), above))
    return layers


def effective_rank(features: Tensor) -> float:
    """(sum of s_i^2)^2 / sum of s_i^4 over the singular values s_i of a batch's features, (N, ...).

    It is k where k of them are equal and the others 0, does not change with the features' scale, and is at most their
    rank. The mean is not taken off. 0 where all features are.
    """
    return participation(squared_singular_values(features))


def squared_singular_values(features: Tensor) -> Tensor:
    """Of features (N, ...) as a matrix of N rows, in float64."""
    matrix = features.flatten(1).double()
    matrix = matrix / matrix.abs().max().clamp(
        min=torch.finfo(torch.float64).tiny
    )  # squares neither over- nor underflow
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def participation(squares: Tensor) -> float:
    """(sum)^2 / sum of squares: how many of these share the total."""
    total = float(squares.sum())
    return total**2 / float(squares.square().sum()) if total > 0 else 0.0


def growth(layers: list[Layer], skip: int = 0) -> float:
    """The factor by which the gradient's mean square grows per layer, from the last of ``layers`` to the first.

    Args:
        layers: as `by_depth` returns them, of equal widths.
        skip: layers that are left out at either end, where it is not that of the middle yet.
    """
    middle = layers[skip : len(layers) - skip]
    if len(middle) < 2:
        raise ValueError(f"of {len(layers)} layers, {len(middle)} are left: no growth can be said")
    return float((middle[0].gradient / middle[-1].gradient) ** (1 / (len(middle) - 1)))
