r"""The sharpness of a loss: the largest eigenvalue of its Hessian, by Lanczos's method, without the Hessian.

Gradient descent at the rate :math:`\eta` is stable on a quadratic whose largest eigenvalue is below :math:`2 / \eta`,
and no other. For a network of your own::

    network.train()
    value = sharpness(lambda: F.cross_entropy(network(x), y), network.parameters())

The loss is computed some twenty times with second derivatives: take as many images as fit into memory. In training mode
the running statistics of batch normalization move with each of them (`bnrepro.norm.freeze` is another loss).

Sources: Lanczos (1950); Cohen et al. (2021) for what gradient descent does to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["hessian_product", "largest_eigenvalue", "sharpness"]

Product = Callable[[Tensor], Tensor]


def sharpness(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    *,
    iterations: int = 40,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> float:
    """The largest eigenvalue of the Hessian of ``loss`` with respect to ``parameters``.

    Args:
        loss: computes it, with a graph, where the parameters stand; the same at each call.
        parameters: of the Hessian; the others count as constants.
        iterations, tolerance, seed: of `largest_eigenvalue`.
    """
    each = list(parameters)
    size = sum(p.numel() for p in each)
    return largest_eigenvalue(hessian_product(loss, each), size, iterations=iterations, tolerance=tolerance, seed=seed)


def hessian_product(loss: Callable[[], Tensor], parameters: list[Tensor]) -> Product:
    """The function v -> H v, of vectors as long as all parameters together (Pearlmutter 1994)."""

    def product(v: Tensor) -> Tensor:
        parts = v.to(parameters[0].dtype).split([p.numel() for p in parameters])
        gradient = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
        along = torch.stack([(g.flatten() * part).sum() for g, part in zip(gradient, parts, strict=True)]).sum()
        if not along.requires_grad:  # the loss is linear
            return torch.zeros_like(v)
        found = torch.autograd.grad(along, parameters, materialize_grads=True)
        return torch.cat([f.flatten() for f in found])

    return product


def largest_eigenvalue(
    product: Product, size: int, *, iterations: int = 40, tolerance: float = 1e-3, seed: int = 0
) -> float:
    """The largest eigenvalue of a symmetric matrix of which ``product`` gives the products with vectors.

    Lanczos's method with full reorthogonalization, in float64, from a random vector.

    Args:
        product: v -> A v.
        size: rows of A.
        iterations: at most so many products.
        tolerance: it ends when a product has changed the value by a smaller share; from below, and it is no bound.
        seed: of the vector.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    start = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").double()
    basis = (start / start.norm())[None]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = previous = float("nan")
    for _ in range(min(iterations, size)):
        w = product(basis[-1]).detach().double().cpu()
        if not w.isfinite().all():
            return float("nan")
        scale = w.norm()
        diagonal.append(w @ basis[-1])
        for _ in range(2):  # once leaves what rounding has left
            w = w - basis.T @ (basis @ w)
        matrix = torch.diag(torch.stack(diagonal))
        if beside:
            matrix = matrix + torch.diag(torch.stack(beside), 1) + torch.diag(torch.stack(beside), -1)
        previous, value = value, float(torch.linalg.eigvalsh(matrix)[-1])
        if abs(value - previous) <= tolerance * abs(value) or w.norm() <= 1e-12 * scale:
            break
        beside.append(w.norm())
        basis = torch.cat([basis, (w / w.norm())[None]])
    return value
