"""The formulas of `bnrepro.norm.function` compiled for this machine's CPU: kernels.cpp, built once, called by pointer.

What does not fit (another device or dtype, a layout with gaps, axes that are neither per channel nor per location,
tensors of torch.func and of tracing) gives None, and the caller computes the formula with tensor operations. So does a
machine without a C++ compiler, after one warning, and BNREPRO_NATIVE=0 in the environment, without.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
WIDE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
"""Dtypes that there are kernels for, and the dtype of their statistics."""


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """``(y, mean, var)`` as `function.BatchNormFunction` defines them; None where the kernels do not apply."""
    view = _view(x, axes)
    if view is None:
        return None
    kind, sizes, statistic = view
    factors = [_a_number_each(p, statistic) for p in (weight, bias)]
    kernel = _kernel(f"{kind}_forward", x.dtype)
    if None in factors or kernel is None:
        return None
    y, mean, var = torch.empty_like(x), torch.empty_like(statistic), torch.empty_like(statistic)
    kernel(x.data_ptr(), *(_pointer(f) for f in factors), y.data_ptr(), mean.data_ptr(), var.data_ptr(),
           *sizes, eps, torch.get_num_threads())  # fmt: skip
    return y, mean, var


def backward(
    x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, axes: tuple[int, ...], eps: float,
    need_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor] | None:  # fmt: skip
    """``(dx, sum_S(dy * xhat), sum_S(dy))``, dx None unless needed; None where the kernels do not apply."""
    view = _view(x, axes)
    if view is None or type(dy) is not Tensor or dy.dtype is not x.dtype:
        return None
    kind, sizes, statistic = view
    factor = _a_number_each(weight, statistic)
    kernel = _kernel(f"{kind}_backward", x.dtype)
    if factor is None or kernel is None or mean.stride() != statistic.stride():
        return None
    if dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x) if need_dx else None
    sum_dy, sum_product = torch.empty_like(mean), torch.empty_like(mean)
    kernel(x.data_ptr(), dy.data_ptr(), _pointer(factor), mean.data_ptr(), var.data_ptr(),
           None if dx is None else dx.data_ptr(), sum_dy.data_ptr(), sum_product.data_ptr(),
           *sizes, eps, torch.get_num_threads())  # fmt: skip
    return dx, sum_product, sum_dy


def _view(x: Tensor, axes: tuple[int, ...]) -> tuple[str, tuple[int, ...], Tensor] | None:
    """Kind of kernel, its sizes, and an empty tensor like a statistic (1 along ``axes``) with x's order in memory."""
    wide = WIDE.get(x.dtype)
    if wide is None or x.device.type != "cpu" or type(x) is not Tensor or x.dim() < 2 or x.numel() == 0:
        return None
    if torch._C._functorch.maybe_current_level() is not None:  # inside torch.func there is no memory to point at
        return None
    n, c, *spatial = x.shape
    contiguous = x.is_contiguous()
    last = not contiguous and _channels_last(x)
    if not contiguous and not last:
        return None
    if axes == (0, *range(2, x.dim())):
        statistic = torch.empty((1, c, *[1] * len(spatial)), dtype=wide)
        length = math.prod(spatial)
        if contiguous and length > 1:
            return "rows", (n, c, length), statistic
        return "columns", (n * length, c), statistic
    if axes == (0,):
        return "columns", (n, c * math.prod(spatial)), torch.empty_like(x[:1], dtype=wide)
    return None


def _channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


_ABSENT = torch.empty(0)  # stands for a weight or bias that is None


def _a_number_each(parameter: Tensor | None, statistic: Tensor) -> Tensor | None:
    """``parameter`` with one number a statistic, in the statistics' dtype and order; None if it has more."""
    if parameter is None:
        return _ABSENT
    if parameter.shape == statistic.shape:
        if parameter.dtype is statistic.dtype and parameter.stride() == statistic.stride():
            return parameter
    elif any(p not in (1, s) for p, s in zip(parameter.shape, statistic.shape, strict=True)):
        return None
    return torch.empty_like(statistic).copy_(parameter)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor is _ABSENT else tensor.data_ptr()


def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None] | None:
    library = _library()
    return None if library is None else library[name, dtype]


@functools.cache
def _library() -> dict[tuple[str, torch.dtype], Callable[..., None]] | None:
    """The kernels by name and dtype, built if need be; None if they cannot be."""
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
    kernels: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for kind, sizes in (("rows", 3), ("columns", 2)):
        for direction, pointers in (("forward", 6), ("backward", 8)):
            for dtype in WIDE:
                name = f"{kind}_{direction}"
                kernel = loaded[f"{name}_{str(dtype).removeprefix('torch.')}"]
                kernel.argtypes = [pointer] * pointers + [size] * sizes + [ctypes.c_double, ctypes.c_int]
                kernel.restype = None
                kernels[name, dtype] = kernel
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
