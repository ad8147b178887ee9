"""What is measured of trained networks: statistics in training and in eval, shifts, shading, maps, windows, eps."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.claims import Row, measure, row
from bnrepro.config.schema import Data
from bnrepro.data.dataset import Split, derive_seed, eval_batches
from bnrepro.experiments.conv_batchnorm.checks import EPS
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.statistics import batch_statistics
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train

IMAGES = 1024  # of the test set, where not all of them are needed
TRIM = 3  # pixels at each border where a shifted map is not compared: no padding reaches further
RARELY = 0.01  # of the images: less often a ReLU is as good as silent, and more often than 0.99 as good as always on
CONSTANT = 1e-5  # of the map's standard deviation: what varies less over a batch is constant but for rounding


class Opened:
    """A stored run's network in eval mode, with its configuration and data."""

    network: Any

    def __init__(self, run: Run) -> None:
        self.cfg, self.data, self.network = inference.restore(run)
        self.network.eval()
        self.first_norm: Any = next(iter(self.network.norms.values()))

    def some(self, split: Split, count: int) -> Split:
        """``count`` images of ``split`` (or all), shuffled by a fixed seed: sets may be sorted."""
        generator = torch.Generator().manual_seed(derive_seed(0, "measurement"))
        chosen = torch.randperm(len(split.labels), generator=generator)[:count].to(split.labels.device)
        return Split(split.images[chosen], split.labels[chosen])

    def images(self, count: int) -> Tensor:
        """`some` test images as one normalised batch, shaded as in the run's own evaluation."""
        split = self.some(self.data.test, count)
        return next(eval_batches(self.data, split, len(split.labels), self.cfg.data))[0]

    def entering(self, x: Tensor) -> Tensor:
        """What enters the first norm."""
        return self.network.layers[0][0](x)

    def norm(self, *, training: bool, affine: bool = False) -> nn.Module:
        """A copy of the first norm, in training or in eval, without its gamma and beta unless asked for."""
        norm = copy.deepcopy(self.first_norm)
        if not affine and not isinstance(norm, nn.Identity):
            norm.weight = norm.bias = None
        return norm.train(training)

    def accuracy(self, split: Split, batch_size: int | None = None, data: Data | None = None) -> float:
        """Of the network, on ``split`` shaded as ``data`` says (None: as the run's own evaluation)."""
        cfg = replace(self.cfg, data=data or self.cfg.data)
        return train.measure(self.network, self.data, split, cfg, batch_size)[1]


def whole(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """``x`` in batches of ``size``; what is over is left out."""
    return x[: len(x) // size * size].split(size)


@measure("conv_batchnorm/statistics")
@torch.inference_mode()
def statistics(run: Run, seed: int, batches: list[int]) -> list[Row]:
    """`gap`, `shift`, and accuracy on the test set with running statistics and with each batch's own, and on as many
    training images in eval. The batches are of the training's size and shuffled.
    """
    it = Opened(run)
    test, seen = (it.some(split, len(it.data.test.labels)) for split in (it.data.test, it.data.train))
    rows = [row("accuracy", it.accuracy(test), "running"), row("accuracy", it.accuracy(seen), "training images")]
    with batch_statistics(it.network):
        rows.append(row("accuracy", it.accuracy(test, it.cfg.batch_size), "batch"))
    return [*rows, *gap(it, batches), *shift(it)]


def gap(it: Opened, batches: list[int]) -> list[Row]:
    """Root mean square of xhat in training minus xhat in eval after the first layer, by batch size."""
    u = it.entering(it.images(IMAGES))
    in_eval = it.norm(training=False)(u)
    rows = []
    for size in batches:
        in_training = torch.cat([it.norm(training=True)(part) for part in whole(u, size)])
        rows.append(row("gap", (in_training - in_eval[: len(in_training)]).square().mean().sqrt(), size))
    return rows


def shift(it: Opened) -> list[Row]:
    """How far the first norm's output for images moved right by a pixel is from its output, moved.

    Relative: the norm of the difference over that of the output, away from the borders; 0 for a layer that is
    equivariant to shifts. In eval (running statistics) and in training (those of the batch, which is moved as a whole).
    """
    x = it.images(256)
    moved = torch.cat([x[..., :1], x[..., :-1]], 3)
    rows = []
    for mode, training in (("eval", False), ("training", True)):
        before, after = (it.norm(training=training, affine=True)(it.entering(images)) for images in (x, moved))
        inside = before[..., TRIM:-TRIM, TRIM : -TRIM - 1]
        difference = after[..., TRIM:-TRIM, TRIM + 1 : -TRIM] - inside
        rows.append(row("shift error", difference.norm() / inside.norm(), mode))
    return rows


@measure("conv_batchnorm/extremes")
@torch.inference_mode()
def extremes(run: Run, seed: int, batches: list[int]) -> list[Row]:
    """Largest xhat in eval after the first layer, and shares of positions that do not vary over a batch.

    ``constant`` is of what enters the first norm (channels and locations), ``constant pixels`` of the images.
    """
    it = Opened(run)
    x = it.images(IMAGES)
    u = it.entering(x)
    rows = [row("largest", it.norm(training=False)(u).abs().max())]
    for quantity, values in (("constant", u), ("constant pixels", x)):
        limit = CONSTANT * values.std()
        for size in batches:
            shares = [((part.amax(0) - part.amin(0)) <= limit).float().mean() for part in whole(values, size)]
            rows.append(row(quantity, torch.stack(shares).mean(), size))
    return rows


def sides(units: Iterable[Any], height: int) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """The convolutional units, each with the rows of its map that see only the upper, and only the lower half.

    Args:
        units: of a network that goes straight on: convolutions, poolings, and sequences that begin with one.
        height: of the images. The horizon is at height // 2.
    """
    horizon = height // 2
    first = last = torch.arange(height)  # rows of the image that each row of the map sees
    found = []
    for unit in units:
        layer = unit[0] if isinstance(unit, nn.Sequential) else unit
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            break
        sizes: Any = (layer.kernel_size, layer.stride, layer.padding)
        kernel, stride, padding = (size if isinstance(size, int) else size[0] for size in sizes)
        top = torch.arange((len(first) + 2 * padding - kernel) // stride + 1) * stride - padding
        first, last = first[top.clamp(min=0)], last[(top + kernel - 1).clamp(max=len(last) - 1)]
        if isinstance(layer, nn.Conv2d):
            found.append((unit, last < horizon, first >= horizon))
    return found


@measure("conv_batchnorm/horizon")
@torch.inference_mode()
def horizon(run: Run, seed: int, shades: list[float]) -> list[Row]:
    """Accuracy on the test set and what the ReLUs do above and below the horizon, by the test images' shade.

    For each convolutional layer, counted from 1: the share of ``active`` values; the share of ``silent`` units
    (channels at locations), which almost no image activates; and of ``switching`` ones, which some images activate
    and some do not: in the others the ReLU is no more than a constant or the identity. "own" is the shade that the
    run itself is tested with.
    """
    it = Opened(run)
    test, found = it.data.test, sides(it.network.layers, it.data.image_size[0])
    active: list[Any] = []

    def count(layer: int, y: Tensor) -> None:
        active[layer] += (y > 0).sum(0).double()

    for layer, (unit, _, _) in enumerate(found):
        unit.register_forward_hook(lambda _unit, _x, y, layer=layer: count(layer, y))
    lights: dict[float | str, Data] = {"own": it.cfg.data}
    lights |= {shade: replace(it.cfg.data, shade_test=shade) for shade in shades}
    rows = []
    for shade, data in lights.items():
        active[:] = [0] * len(found)
        rows.append(row("accuracy", it.accuracy(test, data=data), shade))
        for layer, (_, above, below) in enumerate(found):
            for side, places in (("above", above), ("below", below)):
                share = active[layer][:, places.to(test.labels.device)] / len(test.labels)
                switching = (share > RARELY) & (share < 1 - RARELY)
                for what, value in (("active", share), ("silent", share <= RARELY), ("switching", switching)):
                    rows.append(row(f"{what} {side} {layer + 1}", value.double().mean(), shade))
    return rows


@measure("conv_batchnorm/halves")
@torch.inference_mode()
def halves(run: Run, seed: int) -> list[Row]:
    """``deviation``: the first norm's running standard deviation, mean over locations above and below the horizon."""
    it = Opened(run)
    _, above, below = sides(it.network.layers, it.data.image_size[0])[0]
    deviation = it.first_norm.running_var.sqrt().mean(0)
    return [row("deviation", deviation[part].mean(), side) for side, part in (("above", above), ("below", below))]


@measure("conv_batchnorm/maps")
@torch.inference_mode()
def maps(run: Run, seed: int) -> list[Row]:
    """Local running statistics of the first norm by location, counted row by row; and the ``width`` of a row.

    ``deviation map``: running standard deviation, mean over channels; ``mean map``: root mean square over channels of
    the running mean minus the channel's average.
    """
    norm = Opened(run).first_norm
    deviation = norm.running_var.sqrt().mean(0)
    apart = (norm.running_mean - norm.running_mean.mean((1, 2), keepdim=True)).square().mean(0).sqrt()
    rows = [row("width", deviation.shape[1])]
    for quantity, values in (("deviation map", deviation), ("mean map", apart)):
        rows += [row(quantity, value, place) for place, value in enumerate(values.flatten().tolist())]
    return rows


@measure("conv_batchnorm/window")
@torch.inference_mode()
def window(run: Run, seed: int, kernels: list[int]) -> list[Row]:
    """Distance of the adaptive norm's output from that of local and of channel statistics, by its window.

    Root mean squares over one batch (of the training's size) of what enters the run's first norm, all in training mode,
    without gamma and beta.
    """
    it = Opened(run)
    u = it.entering(it.images(it.cfg.batch_size))
    channels, height, width = u.shape[1:]

    def output(variant: str, kernel_size: int | None = None) -> Tensor:
        options = NormOptions(eps=EPS, affine=False, kernel_size=kernel_size)
        return NORMS[variant](channels, (height, width), options=options).to(u.device)(u)

    ends = {"to local": output("convbn"), "to channel": output("bn")}
    rows = []
    for kernel_size in kernels:
        y = output("adaptive", kernel_size)
        rows += [row(name, (y - end).square().mean().sqrt(), kernel_size) for name, end in ends.items()]
    return rows
