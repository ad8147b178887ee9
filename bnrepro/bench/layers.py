"""The layers: time of forward and backward, and peak memory, beside torch's own and the speed of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.bench.timing import Table, alone, forget_peak, in_turn, machine, resident
from bnrepro.errors import UserError, known_are
from bnrepro.norm import NORMS, FusedSequential

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = (
    (128, 32, 28, 28),
    (128, 64, 32, 32),
    (128, 256, 8, 8),
    (128, 512, 4, 4),
    (64, 512, 4, 4),
    (256, 16, 64, 64),
    (1024, 100),
)
BATCHES = tuple((n, 64, 16, 16) for n in (8, 16, 32, 64, 128, 256, 512))
CHANNELS = tuple((64, c, 16, 16) for c in (8, 16, 32, 64, 128, 256, 512))
REFERENCE = "bn"
PASSES = 8  # over the tensor: forward reads x twice and writes y; backward reads x and dy twice each and writes dx
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LARGEST = 2**24  # values of a shape of the grid
# Every fourth point of the product of powers of two, each value of one axis with each of another; what is too large is
# left out.
GRID = tuple(
    (n, c, h, h)
    for (i, c), (j, h), (k, n) in product(
        *(list(enumerate(2**p for p in range(*powers))) for powers in ((4, 10), (2, 7), (1, 9)))
    )
    if (i + 2 * j + 3 * k) % 4 == 0 and n * c * h * h <= LARGEST
)


def layers(norms: Sequence[str], repeats: int, device: str) -> Table:
    """Each norm on each shape, beside torch's BN and the memory floor."""
    rows = [row for dtype in DTYPES for shape in SHAPES for row in _on_shape(norms, shape, dtype, device, repeats)]
    return Table(
        "layers",
        f"Forward and backward, milliseconds (median of {repeats}, in turn); over_bn: over torch's BatchNorm; "
        f"over_floor: over {PASSES} passes at the speed of a copy. {machine(device)}.",
        rows,
    )


def growth(norms: Sequence[str], repeats: int, device: str) -> Table:
    """Time against batch size and channels."""
    rows = []
    for along, shapes in (("batch", BATCHES), ("channels", CHANNELS)):
        for shape in shapes:
            rows += [{"along": along, **row} for row in _on_shape(norms, shape, "float32", device, repeats)]
    return Table(
        "layers_growth",
        f"Forward and backward against batch size and channels, milliseconds (median of {repeats}). {machine(device)}.",
        rows,
    )


def grid(norms: Sequence[str], repeats: int, device: str) -> Table:
    """Every norm, alone and before a ReLU, on every shape of the grid: times over torch's, and the worst of them."""
    rows = []
    for dtype, layout, shape in product(DTYPES, LAYOUTS, GRID):
        rounds = max(3, min(repeats, int(repeats * 2**20 / torch.Size(shape).numel())))
        rows.append(_beside_torch(norms, shape, dtype, layout, device, rounds))
    ratios = [column for column in rows[0] if column.endswith(("_over_bn", "_over_bn_relu", "_over_floor"))]
    notes = []
    for dtype, layout, ratio in product(DTYPES, LAYOUTS, ratios):
        values = {row["shape"]: row[ratio] for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)}
        worst = max(values, key=lambda shape: values[shape])
        tenth = quantiles(values.values(), n=10)[-1] if len(values) > 1 else values[worst]
        notes.append(
            f"{dtype}, {layout}, {ratio}: worst {values[worst]:.2f} ({worst}), 90th percentile {tenth:.2f}, "
            f"median {median(values.values()):.2f}"
        )
    return Table(
        "layers_grid",
        f"Forward and backward on {len(GRID)} shapes (least of up to {repeats} rounds, in turn): over torch's "
        "BatchNorm, with a ReLU over torch's BatchNorm and ReLU, and over the memory floor "
        f"({PASSES} passes at the speed of a copy). {machine(device)}.",
        rows,
        notes,
    )


def memory(norms: Sequence[str], device: str) -> Table:
    """Peak memory of forward and backward, over the input's size and over torch's."""
    rows = []
    for shape in ((128, 64, 32, 32), (256, 16, 64, 64)):
        peaks = {norm: alone(_peak, norm, shape, device) for norm in dict.fromkeys([REFERENCE, *norms])}
        for norm in norms:
            size = 4 * torch.Size(shape).numel()
            over = {"over_input": round(peaks[norm] / size, 3), "over_bn": round(peaks[norm] / peaks[REFERENCE], 3)}
            rows.append({"norm": norm, "shape": _name(shape), "peak_bytes": peaks[norm], **over})
    return Table(
        "layers_memory",
        "Peak memory that forward and backward take beyond the layer, its input and the upstream gradient, in bytes "
        f"(one process each, float32). {machine(device)}.",
        rows,
    )


def _beside_torch(
    norms: Sequence[str], shape: Shape, dtype: str, layout: str, device: str, rounds: int
) -> dict[str, Any]:
    x = torch.randn(shape, device=device).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout]).requires_grad_()
    upstream, copy = torch.rand_like(x), torch.empty_like(x)
    both = [REFERENCE, *(norm for norm in norms if norm != REFERENCE)]
    steps: dict[str, Callable[[], object]] = {"copy": partial(copy.copy_, x.detach())}
    for norm in both:
        steps[norm] = partial(step, make(norm, shape).to(device), x, upstream)
        steps[f"{norm}_relu"] = partial(step, with_relu(norm, shape).to(device), x, upstream)
    times = in_turn(steps, rounds, device, of=min)
    row: dict[str, Any] = {"shape": _name(shape), "dtype": dtype, "layout": layout}
    for norm in both[1:]:
        row[f"{norm}_over_bn"] = round(times[norm] / times[REFERENCE], 3)
        row[f"{norm}_relu_over_bn_relu"] = round(times[f"{norm}_relu"] / times[f"{REFERENCE}_relu"], 3)
        row[f"{norm}_over_floor"] = round(times[norm] * 2 / (times["copy"] * PASSES), 3)
    return row


def with_relu(norm: str, shape: Shape) -> nn.Module:
    """The norm and a ReLU after it, as one pass if it is ours."""
    return (nn.Sequential if norm == REFERENCE else FusedSequential)(make(norm, shape), nn.ReLU())


def _on_shape(norms: Sequence[str], shape: Shape, dtype: str, device: str, repeats: int) -> list[dict[str, Any]]:
    x = torch.randn(shape, device=device).to(DTYPES[dtype]).requires_grad_()
    upstream, copy = torch.rand_like(x), torch.empty_like(x)
    steps: dict[str, Callable[[], object]] = {"copy": partial(copy.copy_, x.detach())}
    for norm in dict.fromkeys([REFERENCE, *norms]):
        steps[norm] = partial(step, make(norm, shape).to(device), x, upstream)
    times = in_turn(steps, repeats, device)
    floor = times["copy"] * PASSES / 2
    return [
        {
            "norm": norm,
            "shape": _name(shape),
            "dtype": dtype,
            "milliseconds": round(times[norm], 4),
            "over_bn": round(times[norm] / times[REFERENCE], 3),
            "over_floor": round(times[norm] / floor, 3),
            "floor_milliseconds": round(floor, 4),
        }
        for norm in norms
    ]


def _peak(norm: str, shape: Shape, device: str) -> int:
    x = torch.randn(shape, device=device).requires_grad_()
    upstream = torch.rand_like(x)
    layer = make(norm, shape).to(device)
    small = torch.randn((2, *shape[1:]), device=device).requires_grad_()
    step(layer, small, torch.rand_like(small))  # what is loaded or built at the first use is not the layer's memory
    x.grad = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(layer, x, upstream)
        return torch.cuda.max_memory_allocated() - before
    forget_peak()
    before = resident()
    step(layer, x, upstream)
    return resident(peak=True) - before


def make(norm: str, shape: Shape) -> nn.Module:
    """The norm for inputs of ``shape``.

    Raises:
        UserError: there is none of that name, or it does not fit.
    """
    if norm not in NORMS:
        raise UserError(f"--variants: there is no {norm!r}.{known_are(norm, NORMS)}")
    try:
        return NORMS[norm](shape[1], shape[2:])
    except ValueError as error:
        raise UserError(f"--variants: {error}") from error


def step(layer: nn.Module, x: Tensor, upstream: Tensor) -> None:
    """Forward and backward."""
    x.grad = None
    layer(x).backward(upstream)


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))
