"""The norms by name: the one place that knows the names. A new norm is one function and one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, ConvBatchNorm2d, Pooling


@dataclass(frozen=True)
class NormOptions:
    """What can be asked of every norm; None keeps the layer's own default, and a norm without one ignores it."""

    eps: float | None = None
    """Added to the variance."""
    momentum: float | None = None
    """Weight of the new batch in the running statistics (torch's sense)."""
    affine: bool = True
    """Whether gamma and beta are learned."""

    def given(self, *names: str) -> dict[str, Any]:
        """Those of ``names`` that were set, as keyword arguments."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


NormFactory = Callable[..., nn.Module]
"""``(num_features, spatial_shape, options=NormOptions())``; ``spatial_shape`` is (H, W), () after a linear layer."""

_ALL = ("eps", "momentum", "affine")


def _none(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """No normalization: `torch.nn.Identity`, which the networks know by its type (they keep the bias then)."""
    return nn.Identity()


def _channel(flat: type[nn.Module], spatial: type[nn.Module]) -> NormFactory:
    """Statistics and parameters per channel: ``flat`` after a linear layer, ``spatial`` on maps."""

    def make(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        return (spatial if spatial_shape else flat)(num_features, **options.given(*_ALL))

    return make


def _cell(statistics: Pooling, parameters: Pooling) -> NormFactory:
    """A cell of the 2 x 2 table. After a linear layer there is one location, and the four are the same layer."""

    def make(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        given = {"eps": 1e-3, **options.given(*_ALL)}
        if not spatial_shape:
            return BatchNorm1d(num_features, **given)
        height, width = spatial_shape
        return ConvBatchNorm2d(num_features, (height, width), statistics=statistics, parameters=parameters, **given)

    return make


def _adaptive(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """A 5 x 5 window on maps; after a linear layer, the batch's own statistics in training and in eval."""
    given = {"eps": 1e-3, **options.given("eps", "affine")}
    if not spatial_shape:
        return BatchNorm1d(num_features, track_running_stats=False, **given)
    return ConvAdaptiveNorm2d(num_features, kernel_size=5, **given)


NORMS: dict[str, NormFactory] = {
    "nobn": _none,
    "bn": _channel(nn.BatchNorm1d, nn.BatchNorm2d),
    "custombn": _channel(BatchNorm1d, BatchNorm2d),
    "convbn": _cell("location", "channel"),
    "peractivationbn": _cell("location", "location"),
    "locationaffinebn": _cell("channel", "location"),
    "adaptive": _adaptive,
}
