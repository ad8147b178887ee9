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

Parameter = tuple[torch.Size, torch.dtype]
"""What a plan depends on in a weight or bias."""


@dataclass(frozen=True)
class KernelPlan:
    """How the kernels see an input: as ``rows`` (n, c, l) or as ``columns`` (m, k), see kernels.cpp."""

    kind: str
    sizes: tuple[int, ...]
    statistic: Tensor
    """Empty, with the shape and dtype of a statistic and its order in memory, which is the kernels'."""
    contiguous: bool
    forward_kernel: library.Kernel
    backward_kernel: library.Kernel

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(y, mean, var)`` as `function.batch_norm` defines them."""
        y, mean, var = torch.empty_like(x), torch.empty_like(self.statistic), torch.empty_like(self.statistic)
        factors = [self._a_number_each(p) for p in (weight, bias)]
        pointers = [None if t is None else t.data_ptr() for t in (x, *factors, y, mean, var)]
        self.forward_kernel(*pointers, *self.sizes, eps, min(torch.get_num_threads(), CORES))
        return y, mean, var

    def backward(
        self, x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float, need_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """``(dx, sum_S(dy * xhat), sum_S(dy))``, dx None unless needed; the sums shaped as ``weight`` if it fits."""
        if dy.stride() != x.stride():
            dy = torch.empty_like(x).copy_(dy)
        factors = [self._a_number_each(t) for t in (weight, mean, var)]
        dx = torch.empty_like(x) if need_dx else None
        like = self.statistic if weight is None or factors[0] is not weight else weight
        sum_dy, sum_product = torch.empty_like(like), torch.empty_like(like)
        pointers = [None if t is None else t.data_ptr() for t in (x, dy, *factors, dx, sum_dy, sum_product)]
        self.backward_kernel(*pointers, *self.sizes, eps, min(torch.get_num_threads(), CORES))
        return dx, sum_product, sum_dy

    def _a_number_each(self, values: Tensor | None) -> Tensor | None:
        """``values`` with one number for each statistic, in the statistics' dtype and order."""
        like = self.statistic
        if values is None:
            return None
        if values.dtype is like.dtype and (
            (self.contiguous and values.is_contiguous() and values.numel() == like.numel())
            or (values.stride() == like.stride() and values.shape == like.shape)
        ):
            return values
        return torch.empty_like(like).copy_(values.view(aligned(values.shape, like.dim())))


def plan(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...]) -> KernelPlan | None:
    """How to compute `function.batch_norm` of these with kernels; None where they do not apply."""
    if not _plain(x, weight, bias):
        return None
    of_weight = None if weight is None else (weight.shape, weight.dtype)  # of_parameter, without a call
    of_bias = None if bias is None else (bias.shape, bias.dtype)
    return _plan(x.shape, x.stride(), x.dtype, of_weight, of_bias, axes)


def backward_plan(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Parameter | None,
    mean: Tensor,
    var: Tensor,
    axes: tuple[int, ...],
) -> KernelPlan | None:
    """The same for the gradients, from the tensors that the backward gets: hooks may have changed those it saved."""
    if dy.shape != x.shape or dy.dtype is not x.dtype or not _plain(x, dy, weight, mean, var):
        return None
    of_weight = None if weight is None else (weight.shape, weight.dtype)
    found = _plan(x.shape, x.stride(), x.dtype, of_weight, bias, axes)
    return found if found and mean.shape == var.shape == found.statistic.shape else None


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
PLAIN = frozenset({_key_set("CPU", "AutocastCPU", "ADInplaceOrView", "AutogradCPU"), _key_set("CPU", "AutocastCPU")})
OUTSIDE = frozenset({_key_set("BackendSelect", "ADInplaceOrView"), _key_set("BackendSelect")})
"""The second of each: under `torch.inference_mode`."""
TYPES = frozenset({Tensor, nn.Parameter})
_keys: Any = getattr(torch._C, "_dispatch_keys", None)
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
def _plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    weight: Parameter | None,
    bias: Parameter | None,
    axes: tuple[int, ...],
) -> KernelPlan | None:
    if dtype not in WIDE or len(shape) < 2 or 0 in shape:
        return None
    x = torch.empty_strided(shape, stride, dtype=WIDE[dtype], device="meta")
    contiguous = x.is_contiguous()
    if not (contiguous or _channels_last(x)):
        return None
    n, c, *spatial = shape
    length = math.prod(spatial)
    sizes: tuple[int, ...]
    if axes == (0,):
        statistic = torch.empty_like(x[:1])
        kind, sizes = "columns", (n, c * length)
    elif axes == (0, *range(2, len(shape))):
        statistic = torch.empty((1, c, *[1] * len(spatial)), dtype=x.dtype, device="meta")
        kind, sizes = ("rows", (n, c, length)) if contiguous and length > 1 else ("columns", (n * length, c))
    else:
        return None
    for parameter in (weight, bias):
        if parameter is not None and not _fits(*parameter, statistic):
            return None
    if (kernels := _library()) is None:
        return None
    name = str(dtype).removeprefix("torch.")
    forward, backward = (kernels[kind, direction, name] for direction in ("forward", "backward"))
    return KernelPlan(
        kind, sizes, torch.empty_like(statistic, device="cpu"), statistic.is_contiguous(), forward, backward
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
