"""The norms by name: the one place that knows the names. A new norm is one function and one row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvBatchNorm2d, NormError, Pooling, _HandDerived
from bnrepro.norm.variants import (
    BatchRenorm,
    DetachedBatchNorm,
    DynamicTanh,
    GhostBatchNorm,
    LocalResponseNorm,
    LpBatchNorm,
    LpNorm,
    Noise,
    NoisyBatchNorm,
)


@dataclass(frozen=True)
class NormOptions:
    """What can be asked of every norm; None keeps the layer's own default, and a norm without one ignores it."""

    eps: float | None = None
    """Added to the variance."""
    momentum: float | None = None
    """Weight of the new batch in the running statistics (torch's sense)."""
    affine: bool = True
    """Whether gamma and beta are learned."""
    ghost_size: int | None = None
    """Images in a ghost batch."""
    kernel_size: int | None = None
    """Length of the sides of an adaptive norm's window."""

    def given(self, *names: str) -> dict[str, Any]:
        """Those of ``names`` that were set, as keyword arguments."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


NormFactory = Callable[..., nn.Module]
"""``(num_features, spatial_shape, options=NormOptions())``; ``spatial_shape`` is (H, W), () after a linear layer."""

_ALL = ("eps", "momentum", "affine")


def _none(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """No normalization: `torch.nn.Identity`, which the networks know by its type (they keep the bias then)."""
    return nn.Identity()


def _noise(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """Noise alone; the bias before it is kept, since nothing cancels it."""
    return Noise()


def _channel(*by_dimensions: type[nn.Module]) -> NormFactory:
    """Statistics and parameters per channel: one class for maps of 0, 1, 2 and 3 dimensions each."""

    def make(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        return by_dimensions[len(spatial_shape)](num_features, **options.given(*_ALL))

    return make


def _cell(statistics: Pooling, parameters: Pooling) -> NormFactory:
    """A cell of the 2 x 2 table. After a linear layer there is one location, and the four are the same layer."""

    def make(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        given = {"eps": 1e-3, **options.given(*_ALL)}
        if not spatial_shape:
            return BatchNorm1d(num_features, **given)
        height, width = _two(spatial_shape, "a norm with statistics or parameters per location")
        return ConvBatchNorm2d(num_features, (height, width), statistics=statistics, parameters=parameters, **given)

    return make


def _adaptive(variance: Literal["pooled", "window"]) -> NormFactory:
    """A window of 5 x 5, or as asked, on maps; after a linear layer, the batch's own statistics, in eval too."""

    def make(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        given = {"eps": 1e-3, **options.given("eps", "affine")}
        if not spatial_shape:
            return BatchNorm1d(num_features, track_running_stats=False, **given)
        _two(spatial_shape, "an adaptive norm")
        return ConvAdaptiveNorm2d(num_features, options.kernel_size or 5, variance=variance, **given)

    return make


def _two(spatial_shape: tuple[int, ...], what: str) -> tuple[int, int]:
    """(H, W), or a sentence that says what other maps are wrong for."""
    if len(spatial_shape) != 2:
        raise NormError(f"{what} is made for maps (H, W) and for linear layers, not for maps {spatial_shape}.")
    return spatial_shape[0], spatial_shape[1]


def _variant(kind: type[nn.Module], **settings: Any) -> NormFactory:
    """A relative of BN from `bnrepro.norm.variants`, with its own settings."""

    def make(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
        layer = kind(num_features, **options.given(*_ALL))
        for name, value in settings.items():
            setattr(layer, name, value)
        if isinstance(layer, GhostBatchNorm) and options.ghost_size is not None:
            layer.ghost_size = options.ghost_size
        return layer

    return make


def _frozen(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """BN whose statistics never move from mean 0 and variance 1: what gamma and beta do by themselves."""
    layer = NORMS["custombn"](num_features, spatial_shape, options=options)
    assert isinstance(layer, _HandDerived)
    layer.frozen = True
    return layer


def _group(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """`torch.nn.GroupNorm` with at most 32 groups (Wu & He 2018), of at least 8 channels each where there are 8."""
    groups = max(n for n in range(1, 33) if num_features % n == 0 and (n == 1 or num_features // n >= 8))
    return nn.GroupNorm(groups, num_features, **options.given("eps", "affine"))


def _layer(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """`torch.nn.LayerNorm` over channels and locations; gamma and beta are per channel and location."""
    given = options.given("eps")
    return nn.LayerNorm((num_features, *spatial_shape), elementwise_affine=options.affine, **given)


def _tanh(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """A learned tanh in a norm's place (Zhu et al. 2025)."""
    return DynamicTanh(num_features, **options.given("affine"))


def _instance(num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()) -> nn.Module:
    """`torch.nn.InstanceNorm2d`. After a linear layer there is one value an instance, and nothing to normalize by."""
    if math.prod(spatial_shape) == 1:
        raise NormError(
            "instancenorm needs maps of more than one location, and here is one (a linear layer, or a map of 1 x 1): "
            "each value would be normalized by itself, to zero. Use a network without hidden linear layers, as "
            "model=resnet20 is."
        )
    by_dimensions = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    return by_dimensions[len(spatial_shape)](num_features, **options.given("eps", "affine"))


def _local_response(
    num_features: int, spatial_shape: tuple[int, ...], options: NormOptions = NormOptions()
) -> nn.Module:
    """Local response normalization with AlexNet's constants; nothing after a linear layer, as there."""
    return LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0) if spatial_shape else nn.Identity()


NORMS: dict[str, NormFactory] = {
    "nobn": _none,
    "bn": _channel(nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "custombn": _channel(BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d),
    "convbn": _cell("location", "channel"),
    "peractivationbn": _cell("location", "location"),
    "locationaffinebn": _cell("channel", "location"),
    "adaptive": _adaptive("pooled"),
    "adaptivewindow": _adaptive("window"),
    "ghostbn": _variant(GhostBatchNorm),
    "renorm": _variant(BatchRenorm),
    "detachedmean": _variant(DetachedBatchNorm, detach="mean"),
    "detached": _variant(DetachedBatchNorm, detach="both"),
    "noisybn": _variant(NoisyBatchNorm),
    "l1bn": _variant(LpBatchNorm, p=1.0),
    "linfbn": _variant(LpBatchNorm, p=math.inf),
    "l1norm": _variant(LpNorm, p=1.0),
    "l2norm": _variant(LpNorm, p=2.0),
    "linfnorm": _variant(LpNorm, p=math.inf),
    "noise": _noise,
    "frozenbn": _frozen,
    "groupnorm": _group,
    "layernorm": _layer,
    "instancenorm": _instance,
    "lrn": _local_response,
    "dyt": _tanh,
}

SHIPPED = dict(NORMS)
"""The package's own: what a user puts into NORMS counts in a run's identity by its code."""
