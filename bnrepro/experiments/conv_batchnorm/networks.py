"""What is measured of trained networks: statistics in training and in eval, shifts, shading, maps, windows, eps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
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
from bnrepro.training.trainer import loss_and_accuracy

IMAGES = 1024  # of the test set, where not all of them are needed
TRIM = 3  # pixels at each border where a shifted map is not compared: no padding reaches further
RARELY = 0.01  # of the images: less often a ReLU is as good as silent, and more often than 0.99 as good as always on
SIDES = {1: "above", 2: "below"}  # the horizon: places in what `sides` returns
WHAT: dict[str, Callable[[Tensor], Tensor]] = {  # of the share of images that activate each unit
    "active": lambda share: share,
    "silent": lambda share: share <= RARELY,
    "switching": lambda share: (share > RARELY) & (share < 1 - RARELY),
}
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

    def images(self, count: int, of: Split | None = None) -> Tensor:
        """`some` images of a split (the test set) as one normalised batch, shaded as in the run's own evaluation."""
        split = self.some(of or self.data.test, count)
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
        return loss_and_accuracy(self.network, self.data, split, cfg, batch_size)[1]


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


@measure("conv_batchnorm/extremes", version=2)
@torch.inference_mode()
def extremes(run: Run, seed: int, batches: list[int], eps: list[float]) -> list[Row]:
    """Largest xhat in eval after the first layer, and shares of positions that do not vary over a batch.

    ``largest`` is with running statistics at the eps of the training; ``largest at`` of the same network at each of
    ``eps`` (x), with those of as many training images: of running ones, which begin at 1, something is left where a
    location never varies.
    ``constant`` is of what enters the first norm (channels and locations), ``constant pixels`` of the images.
    """
    it = Opened(run)
    x = it.images(IMAGES)
    u = it.entering(x)
    rows = [row("largest", it.norm(training=False)(u).abs().max())]
    for each in eps:
        norm: Any = it.norm(training=True)
        norm.eps, norm.momentum, norm.num_batches_tracked = each, None, torch.zeros_like(norm.num_batches_tracked)
        norm(it.entering(it.images(IMAGES, it.data.train)))
        rows.append(row("largest at", norm.eval()(u).abs().max(), each))
    for quantity, values in (("constant", u), ("constant pixels", x)):
        limit = CONSTANT * values.std()
        for size in batches:
            shares = [((part.amax(0) - part.amin(0)) <= limit).float().mean() for part in whole(values, size)]
            rows.append(row(quantity, torch.stack(shares).mean(), size))
    return rows


def sides(units: Iterable[Any], height: int) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """The convolutional units, each with the rows of its map that see only the upper, and only the lower half.

    Args:
        units: of a network that goes straight on: convolutions, poolings, and sequences that begin with them.
        height: of the images. The horizon is at height // 2.
    """
    horizon = height // 2
    first = last = torch.arange(height)  # rows of the image that each row of the map sees
    found = []
    for unit in units:
        layers: list[Any] = [m for m in unit.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
        if not layers:
            break
        for layer in layers:
            sizes: Any = (layer.kernel_size, layer.stride, layer.padding)
            kernel, stride, padding = (size if isinstance(size, int) else size[0] for size in sizes)
            top = torch.arange((len(first) + 2 * padding - kernel) // stride + 1) * stride - padding
            first, last = first[top.clamp(min=0)], last[(top + kernel - 1).clamp(max=len(last) - 1)]
        if isinstance(layers[0], nn.Conv2d):
            found.append((unit, last < horizon, first >= horizon))
    return found


@measure("conv_batchnorm/horizon", version=3)
@torch.inference_mode()
def horizon(run: Run, seed: int, layers: int, shades: list[float]) -> list[Row]:
    """Accuracy on the test set, and what the ReLUs of the first ``layers`` do above and below the horizon.

    ``accuracy`` by the shade of the test images: "own" is that which the run itself is tested with, and "batch" the
    same where each batch (of the training's size) is normalised by its own statistics, as in ``accuracy by the batch``
    at each of ``shades``. In the own light, over the units
    (channels at locations) of a layer and then over layers: the share of ``active`` values; of ``silent`` units, which
    almost no image activates; and of ``switching`` ones, which some images activate and some do not: in the others the
    ReLU is no more than a constant or the identity.
    """
    it = Opened(run)
    test = it.data.test
    found = sides(it.network.layers, it.data.image_size[0])[:layers]
    active: list[Any] = [0] * len(found)

    def count(layer: int, y: Tensor) -> None:
        active[layer] += (y > 0).sum(0).double()

    hooks = [
        unit.register_forward_hook(lambda _unit, _x, y, layer=layer: count(layer, y))
        for layer, (unit, _, _) in enumerate(found)
    ]
    rows = [row("accuracy", it.accuracy(test), "own")]
    for hook in hooks:
        hook.remove()
    rows += [row("accuracy", it.accuracy(test, data=replace(it.cfg.data, shade_test=s)), s) for s in shades]
    with batch_statistics(it.network):
        mixed, size = it.some(test, len(test.labels)), it.cfg.batch_size
        rows.append(row("accuracy", it.accuracy(mixed, size), "batch"))
        for shade in shades:
            light = replace(it.cfg.data, shade_test=shade)
            rows.append(row("accuracy by the batch", it.accuracy(mixed, size, light), shade))
    for side in (1, 2):
        shares = [each[:, of[side].to(each.device)] / len(test.labels) for each, of in zip(active, found, strict=True)]
        for what, share_of in WHAT.items():
            value = sum(share_of(share).double().mean() for share in shares) / len(shares)
            rows.append(row(f"{what} {SIDES[side]}", value))
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
