"""The formulas of `bnrepro.norm.function` compiled for this machine's CPU: kernels.cpp, called by pointer.

The kernels read and write memory behind torch's back. So they are for plain tensors only: dense, strided, on the CPU,
outside tracing, batching, functional transforms, modes and subclasses. Everything else (another device or dtype, a
layout with gaps, axes that are neither per channel nor per location) has no plan, and the caller computes the formula
with tensor operations. So it is on a machine without a C++ compiler, after one warning, and with BNREPRO_NATIVE=0 in
the environment, without.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from bnrepro.norm import library

WIDE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
"""Dtypes that there are kernels for, and the dtype of their statistics."""
CORES = os.cpu_count() or 1
SMALL_MAP = 64
"""Values of a map up to which several channels at a time are seen as columns."""

Parameter = tuple[torch.Size, torch.dtype]
"""What a plan depends on in a weight or bias."""
Running = tuple[Tensor, Tensor, Tensor, float]
"""Running mean and variance, the number of batches, and the weight of a new one."""
_pack = struct.Struct("@13Q48s2q2d").pack
"""A Call of kernels.cpp; what depends on the plan alone is packed once."""
_pack_sizes = struct.Struct("@6q").pack


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """How the kernels see an input: as ``rows`` or as ``columns`` (n, c, l), see kernels.cpp."""

    kind: str
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    axes: tuple[int, ...]
    sizes: bytes
    """Those of the view, how many numbers weight and bias have, how many neighbouring statistics share one, and the
    order of the running statistics: the middle of a Call of kernels.cpp."""
    statistic: Tensor
    """On the device "meta", with the shape, dtype and strides of a statistic, whose order is the kernels'."""
    own: Tensor
    """Of no values, with a statistic's dtype and this process's CPU: others are made like it."""
    weight: Parameter | None
    bias: Parameter | None
    expanded: bool
    """Whether parameters are given to the kernels as one number a statistic, in the statistics' order and dtype."""
    sums: tuple[int, ...]
    """The shape in which the kernels give the gradients of weight and bias."""
    statistics_count: int
    statistics_bytes: int
    values: int
    """Of a statistic."""
    forward_kernel: library.Kernel
    backward_kernel: library.Kernel

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        relu: bool = False,
        running: Running | None = None,
    ) -> tuple[Tensor, Tensor]:
        """y of `function.batch_norm` or its ReLU, and for the backward the statistics: see `statistics`."""
        y = torch.empty_like(x)
        kept = self.own.new_empty((3 if relu else 2) * self.statistics_count)
        if self.expanded:
            weight, bias = self._expand(weight), self._expand(bias)
        mean = kept.data_ptr()
        var = mean + self.statistics_bytes
        running_mean = running_var = batches = 0
        momentum = 0.0
        if running is not None:
            to_mean, to_var, to_batches, momentum = running
            running_mean, running_var, batches = to_mean.data_ptr(), to_var.data_ptr(), to_batches.data_ptr()
            _increment_version((to_mean, to_var, to_batches))
        self.forward_kernel(
            _pack(
                x.data_ptr(),
                0,
                0 if weight is None else weight.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                y.data_ptr(),
                mean,
                var,
                var + self.statistics_bytes if relu else 0,
                running_mean,
                running_var,
                0,
                0,
                batches,
                self.sizes,
                relu,
                min(_threads(), CORES),
                eps,
                momentum,
            )
        )
        return y, kept

    def statistics(self, kept: Tensor) -> list[Tensor]:
        """Mean and variance, and after a ReLU what was added, as tensors that broadcast against the input."""
        shape, stride, numel = self.statistic.shape, self.statistic.stride(), self.statistics_count
        kept = kept.contiguous()
        start = kept.storage_offset()
        return [kept.as_strided(shape, stride, start + i * numel) for i in range(len(kept) // numel)]

    def takes(self, x: Tensor, dy: Tensor, weight: Tensor | None, kept: Tensor) -> bool:
        """Whether `backward` can be called with these: hooks may have changed what was saved."""
        return (
            _plain(x, dy, weight, kept)
            and x.shape == dy.shape == self.shape
            and x.stride() == self.stride
            and x.dtype is dy.dtype is self.dtype
            and kept.dtype is self.own.dtype
            and kept.is_contiguous()
            and (None if weight is None else (weight.shape, weight.dtype)) == self.weight
            and (self.expanded or weight is None or weight.is_contiguous())
        )

    def backward(
        self,
        x: Tensor,
        dy: Tensor,
        weight: Tensor | None,
        kept: Tensor,
        eps: float,
        relu: bool = False,
        need_dx: bool = True,
        need_sums: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``(dx, sum_S(dy * xhat), sum_S(dy))``, None unless needed.

        The sums are shaped as the parameters are, or as a statistic if the plan expands them or there are none.
        """
        if dy.stride() != self.stride:
            dy = torch.empty_like(x).copy_(dy)
        dx = torch.empty_like(x) if need_dx else None
        sum_dy = sum_product = None
        if need_sums:
            sum_dy, sum_product = self.own.new_empty(self.sums), self.own.new_empty(self.sums)
        if self.expanded:
            weight = self._expand(weight)
        mean = kept.data_ptr()
        var = mean + self.statistics_bytes
        self.backward_kernel(
            _pack(
                x.data_ptr(),
                dy.data_ptr(),
                0 if weight is None else weight.data_ptr(),
                0,
                0 if dx is None else dx.data_ptr(),
                mean,
                var,
                var + self.statistics_bytes if relu else 0,
                0,
                0,
                0 if sum_dy is None else sum_dy.data_ptr(),
                0 if sum_product is None else sum_product.data_ptr(),
                0,
                self.sizes,
                relu,
                min(_threads(), CORES),
                eps,
                0.0,
            )
        )
        if self.expanded and sum_dy is not None and sum_product is not None:  # in the statistics' order
            shape, stride = self.statistic.shape, self.statistic.stride()
            sum_dy, sum_product = sum_dy.as_strided(shape, stride), sum_product.as_strided(shape, stride)
        return dx, sum_product, sum_dy

    def _expand(self, values: Tensor | None) -> Tensor | None:
        """``values`` with one number for each statistic, in the statistics' dtype and order."""
        if values is None:
            return None
        like = torch.empty_like(self.statistic, device="cpu")
        return like.copy_(values.view(aligned(values.shape, like.dim())))


def plan(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...]) -> KernelPlan | None:
    """How to compute `function.batch_norm` of these with kernels; None where they do not apply."""
    if not _plain(x, weight, bias):
        return None
    gapless = (weight is None or weight.is_contiguous()) and (bias is None or bias.is_contiguous())
    return _plan(x.shape, x.stride(), x.dtype, of_parameter(weight), of_parameter(bias), axes, gapless)


def layer_plan(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor, Tensor] | None,
    axes: tuple[int, ...],
) -> KernelPlan | None:
    """The same for a layer, which gives its running mean and variance and its number of batches to be changed too.

    None also for what a layer refuses: then it says so.
    """
    if not _plain(x, weight, bias):
        return None
    if (weight is not None and not weight.is_contiguous()) or (bias is not None and not bias.is_contiguous()):
        return None
    of_running = None
    if running is not None:
        for t in running:
            if type(t) is not Tensor or _keys(t).raw_repr() != NORMAL or t.requires_grad or not t.is_contiguous():
                return None
        mean, var, batches = running
        of_running = (mean.shape, mean.dtype, var.shape, var.dtype, batches.shape, batches.dtype)
    of_weight = None if weight is None else (weight.shape, weight.dtype)  # of_parameter, without a call
    of_bias = None if bias is None else (bias.shape, bias.dtype)
    return _layer_plan(x.shape, x.stride(), x.dtype, of_weight, of_bias, of_running, axes)


@overload
def of_parameter(parameter: None) -> None: ...


@overload
def of_parameter(parameter: Tensor) -> Parameter: ...


def of_parameter(parameter: Tensor | None) -> Parameter | None:
    """What a plan depends on in ``parameter``."""
    return None if parameter is None else (parameter.shape, parameter.dtype)


def arithmetic() -> str:
    """What the norms on this process's CPU have computed with so far: "kernels" or "tensor operations"."""
    return "kernels" if _library.cache_info().currsize and _library() else "tensor operations"


# --- what is plain ---


def _key_set(*names: str) -> int:
    """The number of a set of dispatch keys; -1, which no set has, where torch has no such interface any more."""
    keys: Any = getattr(torch._C, "DispatchKeySet", None)
    try:
        found = keys(getattr(torch._C.DispatchKey, names[0]))
        for name in names[1:]:
            found = found.add(getattr(torch._C.DispatchKey, name))
        return int(found.raw_repr())
    except (AttributeError, TypeError):
        return -1


# Tracers, batching, functional transforms and modes each include a key of their own in the thread's, and the tensors
# that they wrap have one; so have conjugates, negatives, zeros without memory, sparse, quantised and nested tensors.
NORMAL = _key_set("CPU", "AutocastCPU", "ADInplaceOrView", "AutogradCPU")
PLAIN = frozenset({NORMAL, _key_set("CPU", "AutocastCPU")})
OUTSIDE = frozenset({_key_set("BackendSelect", "ADInplaceOrView"), _key_set("BackendSelect")})
"""The second of each: under `torch.inference_mode`."""
TYPES = frozenset({Tensor, nn.Parameter})
_keys: Any = getattr(torch._C, "_dispatch_keys", None)
_increment_version: Any = torch._C._increment_version
_threads = torch.get_num_threads
_included: Any = getattr(torch._C, "_dispatch_tls_local_include_set", None)
_function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 0)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors and no mode, tracer or transform is active."""
    if forward_ad._current_level >= 0 or _included is None or _included().raw_repr() not in OUTSIDE:
        return False
    for t in tensors:
        if t is not None and (type(t) not in TYPES or _keys(t).raw_repr() not in PLAIN):
            return False
    return not _function_modes() or _only_default_devices()


def _only_default_devices() -> bool:
    """Whether all active function modes are default devices, which do not affect the kernels."""
    stack = [torch._C._get_function_stack_at(i) for i in range(_function_modes())]
    return all(type(mode) is DeviceContext for mode in stack)


@functools.lru_cache(maxsize=1024)
def _layer_plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    weight: Parameter | None,
    bias: Parameter | None,
    running: tuple[Any, ...] | None,
    axes: tuple[int, ...],
) -> KernelPlan | None:
    if (found := _plan(shape, stride, dtype, weight, bias, axes, True)) is None or found.values < 2:
        return None
    wide = found.statistic.dtype
    for parameter in (weight, bias):
        if parameter and (parameter[0][:1] != shape[1:2] or parameter[1] not in (dtype, wide)):
            return None
    if running is not None:
        mean, of_mean, var, of_var, batches, of_batches = running
        numbers = found.statistic.numel()
        if (
            not of_mean == of_var == wide
            or not mean[:1] == var[:1] == shape[1:2]
            or not mean.numel() == var.numel() == numbers
            or of_batches is not torch.int64
            or batches.numel() != 1
        ):
            return None
    return found


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    weight: Parameter | None,
    bias: Parameter | None,
    axes: tuple[int, ...],
    gapless: bool,
) -> KernelPlan | None:
    if dtype not in WIDE or len(shape) < 2 or 0 in shape:
        return None
    x = torch.empty_strided(shape, stride, dtype=WIDE[dtype], device="meta")
    contiguous = x.is_contiguous()
    if not (contiguous or _channels_last(x)):
        return None
    n, c, *spatial = shape
    length = math.prod(spatial)
    local = axes == (0,)
    if local:
        statistic = torch.empty_like(x[:1])
        kind, sizes = "columns", (n, c * length, 1)
    elif axes == (0, *range(2, len(shape))):
        statistic = torch.empty((1, c, *[1] * len(spatial)), dtype=x.dtype, device="meta")
        if not contiguous or length == 1:
            kind, sizes = "columns", (n * length, c, 1)
        elif length <= SMALL_MAP:
            kind, sizes = "columns", (n, c * length, length)
        else:
            kind, sizes = "rows", (n, c, length)
    else:
        return None
    given = [parameter for parameter in (weight, bias) if parameter is not None]
    if not all(_fits(*parameter, statistic) for parameter in given):
        return None
    same = gapless and len({*given}) == 1 and given[0][1] is x.dtype
    per_statistic = same and statistic.is_contiguous() and all(p.numel() == statistic.numel() for p, _ in given)
    per_channel = same and local and all(p.numel() == c == aligned(p, len(shape))[1] for p, _ in given)
    expanded = not (per_statistic or per_channel)
    if (kernels := _library()) is None:
        return None
    name = str(dtype).removeprefix("torch.")
    return KernelPlan(
        kind=kind,
        shape=shape,
        stride=stride,
        dtype=dtype,
        axes=axes,
        sizes=_pack_sizes(
            *sizes,
            c if per_channel else statistic.numel(),
            1 if not per_channel or per_statistic else length if contiguous else 0,
            0 if contiguous or not local else length,
        ),
        statistic=statistic,
        own=torch.empty(0, dtype=x.dtype, device="cpu"),
        weight=weight,
        bias=bias,
        expanded=expanded,
        sums=(statistic.numel(),) if expanded else given[0][0],
        statistics_count=statistic.numel(),
        statistics_bytes=statistic.numel() * statistic.element_size(),
        values=math.prod(shape) // statistic.numel(),
        forward_kernel=kernels[kind, "forward", name],
        backward_kernel=kernels[kind, "backward", name],
    )


def aligned(parameter: Sequence[int], dim: int) -> tuple[int, ...]:
    """The shape in which a parameter of shape (C,) or (C, H, W) broadcasts against ``dim`` axes, from the second on."""
    return tuple(parameter) if len(parameter) == dim else (1, *parameter, *[1] * (dim - 1 - len(parameter)))


def _fits(shape: torch.Size, dtype: torch.dtype, statistic: Tensor) -> bool:
    """Whether a parameter has at most one element per statistic and no higher precision."""
    per_axis = zip(aligned(shape, statistic.dim()), statistic.shape, strict=True)
    return (
        dtype.is_floating_point
        and torch.promote_types(dtype, statistic.dtype) is statistic.dtype
        and all(p in (1, s) for p, s in per_axis)
    )


def _channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


@functools.cache
def _library() -> dict[tuple[str, str, str], library.Kernel] | None:
    """The kernels by kind, direction and dtype; None if there are none here, or they are not wanted."""
    if os.environ.get("BNREPRO_NATIVE", "").strip().lower() in ("0", "off", "no", "false"):
        return None
    return library.kernels(tuple(str(dtype).removeprefix("torch.") for dtype in WIDE))
