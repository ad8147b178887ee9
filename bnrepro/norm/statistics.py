"""What normalises at inference: the running average, the population's statistics, or the batch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.norm.function import centred_moments, pooled_mean, widen
from bnrepro.norm.layers import NormError


def tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-normalization layers of ``model``, torch's and ours, that keep running statistics; none is frozen."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not (hasattr(type(module), "frozen") and module.frozen)  # of ours; not an attribute of the user's
    }


class _Pooled:
    """Mean and variance of all values that were added, batch by batch (Chan, Golub & LeVeque 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor
        self.square: Tensor  # sum of squared distances from the mean
        self.within: Tensor  # sum over batches of count times unbiased variance

    def add(self, x: Tensor, axes: tuple[int, ...]) -> None:
        wide = widen(x)
        mean = pooled_mean(wide, axes)
        rest, var = (s.double() for s in centred_moments(wide - mean, axes, None))
        mean = mean.double() + rest
        count = x.numel() // max(mean.numel(), 1)
        if count == 0:
            return
        within = var * count * (count / max(count - 1, 1))
        if self.count == 0:
            self.count, self.mean, self.square, self.within = count, mean, var * count, within
            return
        self.within = self.within + within
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.square = self.square + var * count + delta.square() * (self.count * count / total)
        self.count = total


@torch.no_grad()
def reestimate_statistics(
    model: nn.Module, batches: Iterable[Tensor], *, variance: Literal["pooled", "mean"] = "pooled"
) -> nn.Module:
    """Replace the running statistics of ``model``'s norms by those of the population in ``batches`` ("precise BN").

    Each batch goes through the model in training mode, so every layer sees inputs normalised by their own batch,
    as in training. A layer's ``running_mean`` becomes the mean of all values that entered it, its ``running_var``

    - ``variance="pooled"``: their *unbiased* variance, equal to one pass over the joined values, however they were
      split (as far as the layers before are not themselves changed by the split);
    - ``variance="mean"``: the mean of the batches' *unbiased* variances, each weighted by its number of values, which
      leaves out how the batches' means differ (Ioffe & Szegedy's Algorithm 2 for batches of one size).

    Dropout is left off.

    Args:
        model: any network with torch's or our batch-normalization layers. Changed in place and returned, in the
            mode (train or eval) that it was in. A layer that no batch reaches keeps its statistics.
        batches: inputs of the model, each of 2 or more.
        variance: which estimator.

    Raises:
        NormError: (a ValueError) ``batches`` is empty.
        ValueError: another name of an estimator.

    Source: Ioffe & Szegedy (2015), Algorithm 2; Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3.
    """
    if variance not in ("pooled", "mean"):
        raise ValueError(f"variance must be 'pooled' or 'mean', got {variance!r}")
    layers = tracking_layers(model)
    pooled = {name: _Pooled() for name in layers}
    modes = {module: module.training for module in model.modules()}

    def collect(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            (x,) = inputs or keywords.values()
            axes = getattr(module, "statistics_axes", _channel_axes)(x)
            pooled[name].add(x, axes)

        return hook

    handles = [layer.register_forward_pre_hook(collect(name), with_kwargs=True) for name, layer in layers.items()]
    seen = 0
    model.eval()
    try:
        with batch_statistics(model):
            for batch in batches:
                seen += 1
                model(batch[0] if isinstance(batch, list | tuple) else batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if layers and not seen:
        raise NormError("reestimate_statistics got no batches: give it the training set's inputs.")
    for name, layer in layers.items():
        total = pooled[name]
        if total.count > 1:
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.copy_(total.mean.reshape(layer.running_mean.shape))
            var = total.square / (total.count - 1) if variance == "pooled" else total.within / total.count
            layer.running_var.copy_(var.reshape(layer.running_var.shape))
    return model


def _channel_axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, the norms of ``model`` normalise by the batch in eval mode too; their buffers are not touched."""
    layers = list(tracking_layers(model).values())
    kept = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, (mean, var, batches) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, batches
