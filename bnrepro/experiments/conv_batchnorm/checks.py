"""What needs no training: identities, counts and refusals of the layers, in float64. `CHECKS` lists them by claim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.claims import Measure, Row, measure, row
from bnrepro.norm import NORMS, NormError, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.training.model import size_of

EPS = 1e-3
VARIANTS = ["bn", "convbn", "peractivationbn", "locationaffinebn", "adaptive"]


def _normal(seed: int, *shape: int) -> Tensor:
    """Values whose mean and standard deviation differ from channel to channel and from location to location."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    scale, shift = torch.rand((2, 1, *shape[1:]), dtype=torch.float64, generator=generator)
    return values * (0.5 + scale) + 3 * shift


def _layer(variant: str, channels: int, height: int, width: int, kernel_size: int | None = None) -> Any:
    """A norm in float64 whose gamma and beta are not 1 and 0."""
    options = NormOptions(eps=EPS, kernel_size=kernel_size)
    layer: Any = NORMS[variant](channels, (height, width), options=options).double()
    with torch.no_grad():
        for parameter, value in ((layer.weight, 0.5), (layer.bias, -1.0)):
            steps = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
            parameter.copy_(value + steps / parameter.numel())
    return layer


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a - b).detach().abs().max())


def _takes(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer takes ``x``; else it must refuse in words."""
    try:
        layer(x)
    except NormError:
        return False
    return True


@measure("conv_batchnorm/counts")
def counts(seed: int, variants: list[str], channels: int, height: int, width: int) -> list[Row]:
    """L1. Numbers in parameters and in running statistics, for a map (channels, height, width)."""
    rows = []
    for variant in variants:
        parameters, buffers = size_of(NORMS[variant](channels, (height, width)))
        rows += [row("parameters", parameters, variant), row("buffers", buffers, variant)]
    return rows


@measure("conv_batchnorm/flattened")
def flattened(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    """L2. Local gain is `torch.nn.BatchNorm1d` over C*H*W features and then gamma and beta per channel."""
    layer = _layer("convbn", channels, height, width)
    reference: Any = nn.BatchNorm1d(channels * height * width, eps=EPS, affine=False).double()

    def expected(x: Tensor) -> Any:
        return reference(x.flatten(1)).view_as(x) * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    batches = [_normal(seed + step, batch, channels, height, width) for step in range(3)]
    errors = {"training": max(_apart(layer(x), expected(x)) for x in batches)}
    errors["running mean"] = _apart(layer.running_mean.flatten(), reference.running_mean)
    errors["running variance"] = _apart(layer.running_var.flatten(), reference.running_var)
    layer.eval()
    reference.eval()
    errors["eval"] = _apart(layer(batches[-1]), expected(batches[-1]))
    one, channel = _layer("convbn", channels, 1, 1), _layer("bn", channels, 1, 1)
    x = _normal(seed, batch, channels, 1, 1)
    errors["one location"] = _apart(one(x), channel(x))
    return [row("error", error, where) for where, error in errors.items()]


@measure("conv_batchnorm/gradients")
def gradients(seed: int, batch: int, channels: int, height: int, width: int) -> list[Row]:
    r"""L3. The gradients of the layer against the closed formulas, and against per-activation BN's, summed.

    With :math:`g = \partial L / \partial y`, means over the batch alone:
    :math:`d\gamma_c = \sum_{nhw} g \hat x`, :math:`d\beta_c = \sum_{nhw} g`,
    :math:`dx = \gamma_c / \sigma_{chw} (g - \bar g - \hat x\, \overline{g \hat x})`.
    """
    layer = _layer("convbn", channels, height, width)
    x = _normal(seed, batch, channels, height, width).requires_grad_()
    g = _normal(seed + 1, batch, channels, height, width)  # neither constant nor of mean zero
    ours = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), g)
    values = x.detach()
    deviation = (values.var(0, correction=0, keepdim=True) + EPS).sqrt()
    xhat = (values - values.mean(0, keepdim=True)) / deviation
    gain = layer.weight.detach().view(-1, 1, 1) / deviation
    dx = gain * (g - g.mean(0) - xhat * (g * xhat).mean(0))
    formula = (dx, (g * xhat).sum((0, 2, 3)), g.sum((0, 2, 3)))
    untied = _layer("peractivationbn", channels, height, width)
    with torch.no_grad():
        untied.weight.copy_(layer.weight.view(-1, 1, 1).expand_as(untied.weight))
        untied.bias.copy_(layer.bias.view(-1, 1, 1).expand_as(untied.bias))
    each = torch.autograd.grad(untied(x), (x, untied.weight, untied.bias), g)
    summed = (each[0], each[1].sum((1, 2)), each[2].sum((1, 2)))
    references = {"closed formula": formula, "per-activation BN, summed over locations": summed}
    rows = [row("error", max(map(_apart, ours, reference)), name) for name, reference in references.items()]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    inputs = (x, layer.weight, layer.bias)
    for name, check in (("gradcheck", torch.autograd.gradcheck), ("gradgradcheck", torch.autograd.gradgradcheck)):
        rows.append(row("passes", check(function, inputs, raise_exception=False), name))
    return rows


@measure("conv_batchnorm/other_sizes")
def other_sizes(seed: int, variants: list[str], channels: int, made_for: int, given: int) -> list[Row]:
    """L5. Whether a layer made for square maps of one size takes another in eval."""
    x = torch.zeros(2, channels, given, given)
    layers = {variant: NORMS[variant](channels, (made_for, made_for)).eval() for variant in variants}
    return [row("takes", _takes(layer, x), variant) for variant, layer in layers.items()]


@measure("conv_batchnorm/window_ends")
def window_ends(seed: int, batch: int, channels: int, size: int) -> list[Row]:
    """L8. The adaptive norm's train and eval, its ends, and whether an image's output depends on its batch."""
    x = _normal(seed, batch, channels, size, size)
    adaptive = _layer("adaptive", channels, size, size)
    rows = [row("train minus eval", _apart(adaptive.train()(x), adaptive.eval()(x)))]
    for kernel_size, like in ((1, "convbn"), (2 * size - 1, "bn")):
        ends = _layer("adaptive", channels, size, size, kernel_size), _layer(like, channels, size, size)
        rows.append(row("error", _apart(*(end(x) for end in ends)), like))
    others = torch.cat([x[:1], _normal(seed + 1, batch - 1, channels, size, size)])
    rows.append(row("depends on its batch", _apart(adaptive(x)[0], adaptive(others)[0])))
    return rows


@measure("conv_batchnorm/bessel")
def bessel(seed: int, source_eps: float, batches: list[int]) -> list[Row]:
    """L9. The factor from the batch's variance to the running one: the source's, the unbiased one, and ours.

    The mean of the batch's biased variance is (n - 1) / n of the population's, so n / (n - 1) corrects it.
    """
    rows = []
    for n in batches:
        rows.append(row("source", n / (n - (1 + source_eps)), n))
        if n == 1:
            continue
        rows.append(row("unbiased", n / (n - 1), n))
        layer: Any = NORMS["convbn"](1, (1, 1), options=NormOptions(momentum=1.0)).double()
        x = _normal(seed, n, 1, 1, 1)
        layer(x)
        rows.append(row("ours", float(layer.running_var) / float(x.var(correction=0)), n))
    return rows


@measure("conv_batchnorm/one_image")
def one_image(seed: int, channels: int, size: int) -> list[Row]:
    """L-one. A training batch of 1: what it would come to, and whether our layer refuses it."""
    x = _normal(seed, 1, channels, size, size)
    y, _ = batch_norm_forward(x.numpy(), None, None, (0,), EPS)
    refused = not _takes(NORMS["convbn"](channels, (size, size)).double(), x)
    return [row("largest output", abs(y).max()), row("refused", refused)]


_SMALL = {"batch": 5, "channels": 3, "height": 4, "width": 3}
CHECKS: dict[str, tuple[Measure, dict[str, Any]]] = {
    "L1": (counts, {"variants": VARIANTS, "channels": 6, "height": 24, "width": 24}),
    "L2": (flattened, _SMALL),
    "L3": (gradients, _SMALL),
    "L5": (other_sizes, {"variants": VARIANTS, "channels": 3, "made_for": 12, "given": 10}),
    "L8": (window_ends, {"batch": 5, "channels": 3, "size": 6}),
    "L9": (bessel, {"source_eps": EPS, "batches": [1, 2, 4, 8, 32, 128]}),
    "L-one": (one_image, {"channels": 3, "size": 4}),
}
"""By claim: the check, and what it is given."""
