"""Section 3.3's conjecture: the singular values of a layer's Jacobian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.training.model import Network

Row = dict[str, Any]
LEVELS = tuple(range(0, 101, 5))
NEAR = 2.0  # "close to 1" is within a factor of 2
KINDS = ("normalised", "plain")


def random_share() -> float:
    """Percentage of the singular values within a factor of `NEAR` of 1, of a large square matrix of random entries.

    Scaled to rows of unit length, they have the quarter-circle law's density sqrt(4 - s^2) / pi on [0, 2].
    """

    def below(s: float) -> float:
        return (s / 2 * math.sqrt(4 - s * s) + 2 * math.asin(s / 2)) / math.pi

    return 100 * (below(min(2.0, NEAR)) - below(1 / NEAR))


@torch.no_grad()
def spectra(network: Network, x: Tensor, images: int, when: str) -> list[Row]:
    r"""Singular values of the Jacobians between the inputs of one sigmoid layer and those of the next.

    With :math:`y_{l+1} = G (W g(y_l)) + c`, where G is gamma / sqrt(var + eps) with BN and 1 without, the Jacobian at
    an image is ``plain`` :math:`J = G W \mathrm{diag}(g'(y_l))`. The section's is between *normalised* vectors, whose
    units have mean 0 and standard deviation 1 over the batch: ``normalised``
    :math:`\mathrm{diag}(1 / s_{l+1})\, J\, \mathrm{diag}(s_l)` with the standard deviations s of y. With BN these
    vectors are the layers' own :math:`\hat x`. Statistics are those of ``x`` as one batch, and constants.

    Args:
        network: linear layers with a norm (or none) and sigmoids.
        x: the batch.
        images: how many of them, from the first, Jacobians are computed at.
        when: suffix of the quantities' names.

    Rows, over images and pairs of layers: ``<kind>_<when>`` by percentile (x) of the singular values;
    ``<kind>_near_<when>``, the percentage of them within a factor of 2 of 1; ``<kind>_far_<when>``, the mean of
    abs(log2 s), values below 2^-20 counted as that.
    """
    units = [unit for unit in network.layers.children() if isinstance(unit, nn.Sequential)]
    inputs, gains, weights = [], [], []
    a = x.flatten(1).double()
    for unit in units:
        linear, norm = unit[0], unit[1]
        assert isinstance(linear, nn.Linear)
        weights.append(linear.weight.double())
        y = a @ weights[-1].T
        if isinstance(norm, nn.Identity):
            y = y + linear.bias.double()
            gains.append(torch.ones_like(y[0]))
        else:
            assert isinstance(norm, nn.BatchNorm1d)
            weight, bias = (norm.get_parameter(name).double() for name in ("weight", "bias"))
            gains.append(weight / (y.var(0, correction=0) + norm.eps).sqrt())
            y = (y - y.mean(0)) * gains[-1] + bias
        inputs.append(y)
        a = y.sigmoid()
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for here, there, gain, w in zip(inputs, inputs[1:], gains[1:], weights[1:], strict=False):
        g = here[:images].sigmoid()
        plain = (gain[:, None] * w) * (g * (1 - g))[:, None, :]  # (images, outputs, inputs)
        s_here, s_there = (y.std(0, correction=0).clamp(min=1e-12) for y in (here, there))
        for kind, jacobian in (("plain", plain), ("normalised", plain * s_here / s_there[:, None])):
            found[kind].append(torch.linalg.svdvals(jacobian).flatten())
    rows: list[Row] = []
    for kind, parts in found.items():
        s = torch.cat(parts)
        distance = s.clamp(min=2.0**-20).log2().abs()
        levels = torch.tensor([level / 100 for level in LEVELS], dtype=s.dtype)
        for level, value in zip(LEVELS, torch.quantile(s, levels).tolist(), strict=True):
            rows.append({"quantity": f"{kind}_{when}", "x": level, "value": value})
        near = 100 * (distance <= torch.tensor(NEAR).log2()).double().mean()
        rows.append({"quantity": f"{kind}_near_{when}", "x": None, "value": float(near)})
        rows.append({"quantity": f"{kind}_far_{when}", "x": None, "value": float(distance.mean())})
    return rows
