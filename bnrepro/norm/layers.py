"""Layers over `bnrepro.norm.function`: torch's batch normalization, and the local-gain kind."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from bnrepro.norm.function import affine, against, batch_norm, by_kernels, dense_both_ways, moments, widen


class NormError(ValueError, RuntimeError):
    """An input or a network that a norm cannot take. The message says what, where and what to do.

    Torch's layers raise now a ValueError, now a RuntimeError; what catches either of them catches this.
    """


class UnsupportedInput(NormError, NotImplementedError):
    """An input of a dtype or layout that torch's layers have no kernel for either."""


_TAKEN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DENSE = torch.strided


def check_tensors(layer: Any, x: Tensor, *own_tensors: Tensor | None) -> None:
    """Reject the inputs torch rejects, for which broadcasting or type promotion would silently compute something."""
    dtype = x.dtype
    if dtype not in _TAKEN or x.layout is not _DENSE:
        what = str(dtype if x.layout is _DENSE else x.layout).removeprefix("torch.")
        raise UnsupportedInput(
            f"{type(layer).__name__} takes dense floating-point inputs of 16, 32 or 64 bits, and the input of "
            f"shape {tuple(x.shape)} is {what}. Convert it first, for example with "
            f"{'.float()' if x.layout is _DENSE else '.to_dense()'}."
        )
    if getattr(layer, "eps", 0.0) < 0:
        raise NormError(f"{type(layer).__name__}: eps must be non-negative, got {layer.eps}.")
    channels = x.shape[1]
    for tensor in own_tensors:
        if tensor is None:
            continue
        if tensor.shape[0] != channels:
            raise NormError(
                f"{type(layer).__name__} was made for {tensor.shape[0]} channels (a parameter or statistic of it has "
                f"the shape {tuple(tensor.shape)}), and the input of shape {tuple(x.shape)} has {channels}. "
                "Make the layer for the channels of its input."
            )
        own = tensor.dtype
        if own != dtype and not (own == torch.float32 and dtype in (torch.bfloat16, torch.float16)):
            raise NormError(
                f"{type(layer).__name__} keeps {str(own).removeprefix('torch.')} parameters and statistics, and "
                f"the input is {str(dtype).removeprefix('torch.')}. Convert one of them: layer.to(input.dtype) or "
                "input.to(layer's dtype); only 16-bit inputs may meet float32."
            )


def two_lengths(name: str, given: Any) -> tuple[int, int]:
    """The argument ``name``, (H, W) or one number for both."""
    try:
        height, width = (index(side) for side in given) if isinstance(given, Iterable) else (index(given), index(given))
    except (TypeError, ValueError):
        raise NormError(f"{name} must be (H, W), or one number for both; got {given!r}.") from None
    if height < 1 or width < 1:
        raise NormError(f"{name} must be at least 1, got {given!r}.")
    return height, width


def copied_in_its_group(layer: Any, memo: dict[int, Any]) -> Any:
    """``__deepcopy__`` of a layer that works in the same process group, which cannot be copied."""
    memo[id(layer.process_group)] = layer.process_group
    memo[id(layer)] = new = object.__new__(type(layer))
    # Of a parametrized layer torch lets the state be copied, but not be asked for.
    state = vars(layer) if is_parametrized(layer) else layer.__getstate__()
    new.__setstate__(copy.deepcopy(state, memo))
    return new


class _HandDerived(_BatchNorm):
    """What the layers share: which statistics normalize, and how the running ones are kept.

    torch's `_BatchNorm` supplies the constructor, the buffers and their `state_dict` (versions and
    old checkpoints included), and the type that torch's own tools look for (`swa_utils.update_bn`).
    As in torch's layers, attributes count when they are used: ``momentum``, ``track_running_stats`` and the tensors
    (None, or of another number of channels) may change at any time.
    """

    frozen = False
    """Whether the running statistics normalize in training too (`bnrepro.norm.freeze`)."""

    __deepcopy__ = copied_in_its_group

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        without = {} if bias else {"bias": False}  # which older versions of torch do not know
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **without)
        self.process_group = process_group
        # torch.fx and what is built on it (feature extraction, quantization) keep a module whole, one node of the
        # graph, if this attribute of the instance begins like that of torch's layers. The class's own is not touched.
        self.__dict__["__module__"] = "torch.nn"

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1 and no batch seen; frozen statistics stay. `torch.optim.swa_utils.update_bn` calls it."""
        if not self.frozen:
            super().reset_running_stats()

    def statistics_axes(self, x: Tensor) -> tuple[int, ...]:
        """The axes of ``x`` that the statistics are pooled over: all but the channels."""
        return (0, *range(2, x.dim()))

    def moments(
        self, x: Tensor, axes: tuple[int, ...], group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, Tensor]:
        """What ``x`` is normalized by in training: its mean, and its biased variance or what stands for it."""
        return moments(x, axes, group)

    def forward(self, input: Tensor) -> Tensor:
        y = self.in_one_call(input)
        return self._by_parts(input) if y is None else y

    def in_one_call(self, x: Tensor, relu: bool = False) -> Tensor | None:
        """Training by the kernels, with running statistics and, if asked for, a ReLU of the output.

        None, and nothing done, where the kernels do not apply, or `forward` has an error to tell.
        """
        kind, parameters, buffers = type(self), self._parameters, self._buffers
        if (
            not self.training
            or self.frozen
            or self.process_group is not None
            or kind._normalize is not _HandDerived._normalize
            or kind._update_running is not _HandDerived._update_running
        ):
            return None
        try:
            weight, bias = parameters["weight"], parameters["bias"]
            mean, var = buffers["running_mean"], buffers["running_var"]
            batches = buffers["num_batches_tracked"]
        except KeyError:  # one is computed from others
            return None
        momentum, running = self.momentum, None
        if self.track_running_stats and (mean is not None or var is not None or batches is not None):
            if mean is None or var is None or batches is None or type(momentum) is not float:
                return None
            running = (mean, var, batches, momentum)
        self._check_input_dim(x)
        return by_kernels(x, weight, bias, running, self.statistics_axes(x), self.eps, relu) if self.eps >= 0 else None

    def _by_parts(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        weight, bias, running_mean, running_var = self.weight, self.bias, self.running_mean, self.running_var
        check_tensors(self, x, weight, bias, running_mean, running_var)
        learning = self.training and not self.frozen
        if learning or (running_mean is None and running_var is None):
            axes = self.statistics_axes(x)
            group = self.process_group if learning else None
            count = self._count(x, axes, group)
            y, mean, var = self._normalize(x, weight, bias, axes, group)
            if learning:
                self._update_running(running_mean, running_var, mean, var, count)
            return y
        if running_mean is None or running_var is None:
            raise NormError(self._one_statistic())
        x = dense_both_ways(x)
        xhat = (widen(x) - against(running_mean, x)) * (against(running_var, x) + self.eps).rsqrt()
        return affine(xhat, against(weight, x), against(bias, x)).to(x.dtype)

    def _normalize(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axes: tuple[int, ...],
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output by the batch's own statistics, and these, which are `moments`, detached."""
        return batch_norm(x, weight, bias, axes, self.eps, group)

    def _count(self, x: Tensor, axes: tuple[int, ...], group: dist.ProcessGroup | None) -> int:
        count = math.prod([x.shape[axis] for axis in axes])
        if group is not None:
            joint = torch.tensor(count, device=x.device)
            dist.all_reduce(joint, group=group)
            count = int(joint)
        if count == 1:
            raise NormError(self._one_value(x))
        return count

    def _one_statistic(self) -> str:
        return (
            f"{type(self).__name__} has one of running_mean and running_var, and the other is None. Set both to "
            "None to normalize by the batch, or neither."
        )

    def _one_value(self, x: Tensor) -> str:
        return (
            f"{type(self).__name__} needs more than 1 value per channel to train, and an input of shape "
            f"{tuple(x.shape)} has 1: normalized by itself it is zero whatever it was. Train on batches of 2 "
            "or more (drop_last=True in a DataLoader drops an odd last one), or call .eval()."
        )

    def _update_running(
        self, running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, count: int
    ) -> None:
        """Move the running statistics to the batch's, the variance to the unbiased one.

        With m for ``count``, and a momentum of None for one over the number of batches that were seen::

            running_mean = (1 - momentum) * running_mean + momentum * mean
            running_var  = (1 - momentum) * running_var + momentum * var * m / (m - 1)

        An empty batch moves nothing.
        """
        if not self.track_running_stats:
            return
        if (running_mean is None) != (running_var is None):
            raise NormError(self._one_statistic())
        batches = self.num_batches_tracked
        if batches is not None:
            batches.add_(1)
        if count == 0:  # an empty batch says nothing about the population
            return
        factor: Any = self.momentum
        if factor is None:  # the cumulative average over all batches seen
            if batches is None:  # as in torch: without a count there is no average
                return
            factor = batches.to(mean.dtype).reciprocal()
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            if running is not None:
                weight = factor if self.momentum is not None else factor.to(running.dtype)
                running.lerp_(batch.view(running.shape).to(running.dtype), weight)

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles, and leaves, in this layer's place: torch's own, over the same tensors."""
        kinds = {BatchNorm1d: nn.BatchNorm1d, BatchNorm2d: nn.BatchNorm2d, BatchNorm3d: nn.BatchNorm3d}
        kind = kinds.get(type(self))
        if kind is None or self.frozen or self.process_group is not None:
            what = f"{'A frozen' if self.frozen else 'A'} {type(self).__name__}"
            raise NormError(
                f"{what} cannot be compiled by torch.jit.script. Fold the network first (bnrepro.norm.fold, in eval "
                "mode), or use torch.jit.trace or torch.export on it."
            )
        theirs = kind.__new__(kind)
        theirs.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("process_group", "__module__")})
        return theirs


class BatchNorm1d(_HandDerived, nn.BatchNorm1d):
    r"""`torch.nn.BatchNorm1d` with a hand-derived backward: same arguments, `state_dict` and semantics.

    .. math:: y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Shapes: (N, C) or (N, C, L), statistics over N (and L), gamma and beta (C,).

    In training the *biased* variance of the batch normalizes, and the *unbiased* one, times m/(m-1) for m
    values per channel, goes into ``running_var``: ``running = (1 - momentum) * running + momentum * batch``.
    ``momentum`` is torch's (Keras's is 1 - momentum); None keeps the cumulative average. In ``eval()`` the
    running statistics normalize, or the batch's with ``track_running_stats=False``.

    float16 and bfloat16 are computed in float32, and come out as they went in. With a ``process_group`` the
    statistics in training are those of the joined batch of its processes, which may be uneven (on gloo and on the
    CPU too, where `torch.nn.SyncBatchNorm` does not run); `bnrepro.norm.synchronize` gives it to a whole network, and
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` replaces this layer, frozen or not, by torch's.

    Raises:
        NormError: (a ValueError and a RuntimeError) one value per channel in training; another number of channels; a
            dtype that is not that of the parameters (16-bit inputs may meet float32); complex numbers, integers, 8-bit
            floats and sparse tensors (then also a NotImplementedError).
        ValueError: another number of dimensions.

    Source: Ioffe & Szegedy, "Batch Normalization" (2015), Algorithms 1 and 2.
    """


class BatchNorm2d(_HandDerived, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a hand-derived backward. Input (N, C, H, W), statistics over N, H and W.

    Formula, train and eval, errors and source: `BatchNorm1d`.
    """


class BatchNorm3d(_HandDerived, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with a hand-derived backward. Input (N, C, D, H, W), statistics over all but C.

    Formula, train and eval, errors and source: `BatchNorm1d`.
    """


Pooling = Literal["location", "channel"]


class ConvBatchNorm2d(_HandDerived):
    r"""Convolutional, local-gain batch normalization: statistics per channel and location, parameters per channel.

    .. math:: y_{nchw} = \gamma_c \frac{x_{nchw} - \mu_{chw}}{\sqrt{\sigma^2_{chw} + \epsilon}} + \beta_c, \quad
              \mu_{chw} = \frac{1}{N} \sum_n x_{nchw}, \quad
              \sigma^2_{chw} = \frac{1}{N} \sum_n (x_{nchw} - \mu_{chw})^2

    Shapes: (N, C, H, W) in and out. ``statistics`` and ``parameters`` pick a cell of the 2 x 2 table:

    ============================  ============================  =======================================
    statistics / parameters       ``"channel"`` (C,)            ``"location"`` (C, H, W)
    ============================  ============================  =======================================
    ``"channel"`` (over N, H, W)  batch normalization           the control
    ``"location"`` (over N)       local gain (the default)      per-activation batch normalization
    ============================  ============================  =======================================

    Train and eval as in `BatchNorm1d`; the running statistics have the statistics' shape, so with local
    statistics the buffers are 2CHW numbers and fix the input's size. A location that is constant over the
    batch (the border of a digit) has variance 0 and divides by sqrt(eps): hence the larger default ``eps``. In eval an
    unusual value there is multiplied by up to 1 / sqrt(eps), and again by each norm that follows, so that deep networks
    can fail on such images; statistics that are re-estimated (`reestimate_statistics`) are less affected.

    Args:
        num_features: C of the input.
        spatial_shape: (H, W) of the input; one number stands for both.
        eps: added to the variance. Default: 1e-3.
        momentum: weight of the new batch in the running statistics; None for the cumulative average. Default: 0.1.
        affine: whether there are gamma and beta. Default: True.
        track_running_stats: whether there are running statistics; without them a batch's own normalize in eval mode
            too. Default: True.
        statistics, parameters: the cell of the table. Default: "location" and "channel".
        device, dtype: of parameters and buffers.
        process_group: of the processes whose joint batch the statistics are of. Default: None, one process.

    Raises:
        NormError: (a ValueError) a training batch of 1 with local statistics; another spatial shape than
            ``spatial_shape`` where statistics or parameters are local; a ``spatial_shape`` that is not of lengths from
            1 on; another number of channels; a dtype that `BatchNorm1d` refuses.
        ValueError: not four dimensions; a ``statistics`` or ``parameters`` of another name.

    Source: https://github.com/lmcintosh/conv-batchnorm (2018), class ``ConvBatchNormalization``. Different there:
    the running variance is corrected by n/(n - 1.001), and a batch of 1 is let through.
    """

    def __init__(
        self,
        num_features: int,
        spatial_shape: int | tuple[int, int],
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        statistics: Pooling = "location",
        parameters: Pooling = "channel",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        for argument, value in (("statistics", statistics), ("parameters", parameters)):
            if value not in ("location", "channel"):
                raise ValueError(f"{argument} must be 'location' or 'channel', got {value!r}")
        # torch's constructor makes parameters and buffers per channel; what is local is made again below.
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, process_group=process_group
        )
        height, width = self.spatial_shape = two_lengths("spatial_shape", spatial_shape)
        self.statistics = statistics
        self.parameters_per = parameters
        full = (num_features, height, width)
        if affine and parameters == "location":
            self.weight = nn.Parameter(torch.ones(full, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(full, device=device, dtype=dtype))
        if track_running_stats and statistics == "location":
            self.running_mean = torch.zeros(full, device=device, dtype=dtype)
            self.running_var = torch.ones(full, device=device, dtype=dtype)

    def statistics_axes(self, x: Tensor) -> tuple[int, ...]:  # noqa: ARG002  as in the class above
        """(0,) for local statistics, (0, 2, 3) for statistics per channel."""
        return (0,) if self.statistics == "location" else (0, 2, 3)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(f"ConvBatchNorm2d takes a 4D input (N, C, H, W), got {x.dim()}D of shape {tuple(x.shape)}")
        local = [
            name
            for name, kept in (("statistics", self.statistics), ("parameters", self.parameters_per))
            if kept == "location"
        ]
        if local and tuple(x.shape[2:]) != self.spatial_shape:
            raise NormError(
                f"ConvBatchNorm2d keeps {' and '.join(local)} per location for maps of {_size(self.spatial_shape)}, "
                f"and the input's are {_size(x.shape[2:])}: what belongs to a location has no meaning on a map of "
                "another size. Resize the input, make the layer with that spatial_shape, or use a norm per channel "
                "(BatchNorm2d)."
            )

    def _one_value(self, x: Tensor) -> str:
        if self.statistics == "channel":
            return super()._one_value(x)
        return (
            "ConvBatchNorm2d takes its statistics over the batch alone, so a training batch of 1 (input of shape "
            f"{tuple(x.shape)}) normalizes every value by itself, to zero. Train on batches of 2 or more, the larger "
            "the better (drop_last=True in a DataLoader drops an odd last one), or call .eval()."
        )

    def extra_repr(self) -> str:
        """The arguments, as torch's layers show theirs."""
        return (
            f"{self.num_features}, {self.spatial_shape}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}, "
            f"statistics={self.statistics!r}, parameters={self.parameters_per!r}"
        )


def _size(shape: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, shape))
