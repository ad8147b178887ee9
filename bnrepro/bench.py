"""Time of the layers, forward and backward, side by side: against torch's own and against the speed of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from bnrepro.config import UserError
from bnrepro.norm import NORMS

SHAPES = (
    (128, 32, 28, 28),
    (128, 64, 32, 32),
    (128, 256, 8, 8),
    (64, 512, 4, 4),
    (256, 16, 64, 64),
    (1024, 100),
)
REFERENCE = "bn"
PASSES = 8  # over the tensor, that forward and backward cannot do without: read x twice and write y; read x and dy
# twice each (once for the sums, once for dx) and write dx. A copy is two passes.
COLUMNS = ("norm", "shape", "dtype", "device", "threads", "milliseconds", "over_bn", "over_floor")


@dataclass(frozen=True)
class Timing:
    """One layer on one shape."""

    norm: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    milliseconds: float
    """Median of forward and backward."""
    reference: float
    """The same of torch's batch normalization, measured in turn with it."""
    floor: float
    """`PASSES` over the tensor at the speed of a copy, measured in turn with it."""

    def row(self) -> dict[str, str | float | int]:
        """As `COLUMNS`."""
        values = (
            self.norm,
            "x".join(map(str, self.shape)),
            str(self.dtype).removeprefix("torch."),
            self.device,
            torch.get_num_threads(),
            round(self.milliseconds, 4),
            round(self.milliseconds / self.reference, 3),
            round(self.milliseconds / self.floor, 3),
        )
        return dict(zip(COLUMNS, values, strict=True))


def layers(
    norms: list[str],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    repeats: int = 30,
) -> list[Timing]:
    """Time each norm on each shape: medians of ``repeats`` rounds, in each of which everything has its turn.

    Raises:
        UserError: a norm that there is not, or that does not fit a shape.
    """
    timings = []
    for shape in shapes:
        x = torch.randn(shape, device=device).to(dtype).requires_grad_()
        upstream = torch.rand_like(x)
        copy = torch.empty_like(x)
        steps: dict[str, Callable[[], object]] = {"copy": lambda c=copy, x=x: c.copy_(x.detach())}  # type: ignore[misc]
        for norm in dict.fromkeys([REFERENCE, *norms]):
            layer = _layer(norm, shape).to(device)
            steps[norm] = lambda layer=layer, x=x, upstream=upstream: _step(layer, x, upstream)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in steps}
        for round_ in range(repeats + 3):
            for name, step in steps.items():
                took = _time(step, device)
                if round_ >= 3:  # the first rounds warm up
                    times[name].append(1e3 * took)
        floor = median(times["copy"]) * PASSES / 2
        for norm in norms:
            timings.append(Timing(norm, shape, dtype, device, median(times[norm]), median(times[REFERENCE]), floor))
    return timings


def _layer(norm: str, shape: tuple[int, ...]) -> nn.Module:
    if norm not in NORMS:
        raise UserError(f"--norms: there is no {norm!r}. There are: {', '.join(NORMS)}.")
    try:
        return NORMS[norm](shape[1], shape[2:])
    except ValueError as error:
        raise UserError(f"--norms: {error}") from error


def _step(layer: nn.Module, x: Tensor, upstream: Tensor) -> None:
    x.grad = None
    layer(x).backward(upstream)


def _time(step: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
