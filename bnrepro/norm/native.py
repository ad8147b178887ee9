"""The formulas of `bnrepro.norm.function` compiled for this machine's CPU: kernels.cpp, built once, called by pointer.

What does not fit (another device or dtype, a layout with gaps, axes that are neither per channel nor per location,
tensors of torch.func and of tracing) has no plan, and the caller computes the formula with tensor operations. So it is
on a machine without a C++ compiler, after one warning, and with BNREPRO_NATIVE=0 in the environment, without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
WIDE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
"""Dtypes that there are kernels for, and the dtype of their statistics."""


@dataclass(frozen=True)
class Plan:
    """How the kernels see an input: as ``rows`` (n, c, l) or as ``columns`` (m, k), see kernels.cpp."""

    kind: str
    sizes: tuple[int, ...]
    statistic: Tensor
    """Empty, with the shape and dtype of a statistic and its order in memory."""
    dtype: torch.dtype

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(y, mean, var)`` as `function.batch_norm` defines them."""
        y, mean, var = torch.empty_like(x), torch.empty_like(self.statistic), torch.empty_like(self.statistic)
        factors = [self._a_number_each(p) for p in (weight, bias)]
        pointers = [_pointer(t) for t in (x, *factors, y, mean, var)]
        self._kernel("forward")(*pointers, *self.sizes, eps, torch.get_num_threads())
        return y, mean, var

    def backward(
        self, x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float, need_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """``(dx, sum_S(dy * xhat), sum_S(dy))``, dx None unless needed."""
        if dy.stride() != x.stride() or dy.dtype is not x.dtype:
            dy = torch.empty_like(x).copy_(dy)
        factor = self._a_number_each(weight)
        dx = torch.empty_like(x) if need_dx else None
        sum_dy, sum_product = torch.empty_like(mean), torch.empty_like(mean)
        pointers = [_pointer(t) for t in (x, dy, factor, mean, var, dx, sum_dy, sum_product)]
        self._kernel("backward")(*pointers, *self.sizes, eps, torch.get_num_threads())
        return dx, sum_product, sum_dy

    def _a_number_each(self, parameter: Tensor | None) -> Tensor | None:
        """``parameter`` with one number a statistic, in the statistics' dtype and order."""
        like = self.statistic
        if parameter is None:
            return None
        if (
            parameter.numel() == like.numel()
            and parameter.dtype is like.dtype
            and parameter.is_contiguous()
            and like.is_contiguous()
        ):
            return parameter
        return torch.empty_like(like).copy_(parameter.view(aligned(parameter.shape, like.dim())))

    def _kernel(self, direction: str) -> Callable[..., None]:
        library = _library()
        assert library is not None  # else there is no plan
        return library[self.kind, direction, self.dtype]


def plan(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...]) -> Plan | None:
    """How to compute `function.batch_norm` of these with kernels; None where they do not apply."""
    if x.device.type != "cpu" or type(x) is not Tensor or x.dtype not in WIDE:
        return None
    if torch._C._functorch.maybe_current_level() is not None:  # inside torch.func there is no memory to point at
        return None
    shapes = [None if p is None else p.shape for p in (weight, bias)]
    return _plan(x.shape, x.stride(), x.dtype, *shapes, axes)


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    weight: torch.Size | None,
    bias: torch.Size | None,
    axes: tuple[int, ...],
) -> Plan | None:
    if len(shape) < 2 or 0 in shape:
        return None
    x = torch.empty_strided(shape, stride, dtype=WIDE[dtype], device="meta")
    contiguous = x.is_contiguous()
    if not (contiguous or _channels_last(x)):
        return None
    n, c, *spatial = shape
    length = math.prod(spatial)
    sizes: tuple[int, ...]
    if axes == (0,):
        statistic = torch.empty_like(x[:1], device="cpu")
        kind, sizes = "columns", (n, c * length)
    elif axes == (0, *range(2, len(shape))):
        statistic = torch.empty((1, c, *[1] * len(spatial)), dtype=x.dtype)
        kind, sizes = ("rows", (n, c, length)) if contiguous and length > 1 else ("columns", (n * length, c))
    else:
        return None
    for parameter in (weight, bias):
        if parameter is not None and not _fits(aligned(parameter, len(shape)), statistic.shape):
            return None
    return None if _library() is None else Plan(kind, sizes, statistic, dtype)


def aligned(parameter: Sequence[int], dim: int) -> tuple[int, ...]:
    """The shape in which a parameter of shape (C,) or (C, H, W) broadcasts against ``dim`` axes, from the second on."""
    return tuple(parameter) if len(parameter) == dim else (1, *parameter, *[1] * (dim - 1 - len(parameter)))


def _fits(parameter: tuple[int, ...], statistic: torch.Size) -> bool:
    """Whether a parameter has no more than one number a statistic; one that has is summed over other axes."""
    return all(p in (1, s) for p, s in zip(parameter, statistic, strict=True))


def _channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _library() -> dict[tuple[str, str, torch.dtype], Callable[..., None]] | None:
    """The kernels by kind, direction and dtype, built if need be; None if they cannot be."""
    if os.environ.get("BNREPRO_NATIVE") == "0":
        return None
    try:
        loaded = _loaded()
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            "bnrepro.norm works with tensor operations, several times slower than torch's norms on the CPU, because "
            f"its kernels cannot be compiled here: {_reason(error)}. Install a C++ compiler with OpenMP (on Debian: "
            "apt install g++), name it in CXX, or set BNREPRO_NATIVE=0 to do without and not be told.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    kernels: dict[tuple[str, str, torch.dtype], Callable[..., None]] = {}
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for kind, sizes in (("rows", 3), ("columns", 2)):
        for direction, pointers in (("forward", 6), ("backward", 8)):
            for dtype in WIDE:
                kernel = loaded[f"{kind}_{direction}_{str(dtype).removeprefix('torch.')}"]
                kernel.argtypes = [pointer] * pointers + [size] * sizes + [ctypes.c_double, ctypes.c_int]
                kernel.restype = None
                kernels[kind, direction, dtype] = kernel
    return kernels


def _loaded() -> ctypes.CDLL:
    path = _built()
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # damaged, by a full disk for one
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_built()))


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return said.strip().splitlines()[0] if said and said.strip() else str(error)


def _built() -> Path:
    """The compiled kernels, made if they are not in the user's cache yet. Safe to call from many processes at once."""
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "")
    if not compiler:
        raise OSError("there is no g++ or c++")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    identity = (SOURCE.read_text(), FLAGS, version, _processor())
    name = f"kernels-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bnrepro"
    if (folder / name).exists():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = tempfile.mkdtemp(dir=folder)
    except OSError:  # a home that cannot be written to: built again by each process
        folder = Path(scratch := tempfile.mkdtemp(prefix="bnrepro-"))
    made = Path(scratch) / name
    try:
        subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True, check=True)
        made.replace(folder / name)
    finally:
        if Path(scratch) != folder:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder / name


def _processor() -> Any:
    """What -march=native depends on: a cache may be shared by machines."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine(), platform.processor()
    return sorted({line for line in text.splitlines() if line.startswith(("flags", "model name", "Features"))})
