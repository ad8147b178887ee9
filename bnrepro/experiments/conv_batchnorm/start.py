"""What the units of a first layer do as it is initialised, with gamma 1 and beta 0, where half of a scene is dark."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.claims import Row, measure, row
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed, epoch_plan, shaded, train_batch
from bnrepro.experiments.conv_batchnorm.checks import EPS
from bnrepro.experiments.conv_batchnorm.networks import RARELY, sides, whole
from bnrepro.norm import NORMS, NormOptions
from bnrepro.training.model import build, norm_of

CHANGED = "changed"
"""The light in which running statistics of plain images meet dark ones: it has changed since training."""
SCENE = 1  # the class of the picture: cars, in CIFAR-10


def lights(shade: float) -> dict[str, dict[str, Any]]:
    """Options of the data: no shade; the same in all images; each batch a shade of its own; plain until the test."""
    return {
        "plain": {},
        "static": {"shade": shade},
        "frames": {"shade": shade, "shade_batches": True},
        CHANGED: {"shade": shade},
    }


class Layer:
    """The first convolution of a network with its initial weights, and norms without gamma and beta to put on it."""

    def __init__(self, cfg: Config, data: Dataset) -> None:
        weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
        network: Any = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)
        self.cfg, self.data, self.convolution = cfg, data, network.layers[0][0]
        height = data.image_size[0]
        _, above, below = sides(network.layers, height)[0]
        lower = torch.arange(height) >= height // 2
        self.units: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
            "all": (self.convolution, above, below),
            "pixels": (nn.Identity(), ~lower, lower),
        }
        """What makes the maps that are normalised, and their rows above and below the horizon."""

    def answers(self) -> Tensor:
        """Cosine of each filter with the one that adds up its window: light raises the answer of one above 0."""
        filters = self.convolution.weight.flatten(1)
        return filters.sum(1) / filters.norm(dim=1) / filters.shape[1] ** 0.5

    def outputs(self, units: str, images: int, light: dict[str, Any], changed: bool = False) -> Tensor:
        """Normalised values of the first ``images`` of training, batch by batch; where the light has ``changed``, by
        running statistics, the average of those of the same batches in plain light.
        """
        enter = self.units[units][0]
        maps = [enter(x) for x in self.batches(images, light)]
        make = norm_of(replace(self.cfg, norm=replace(self.cfg.norm, affine=False)))
        norm: Any = make(maps[0].shape[1], tuple(maps[0].shape[2:])).train()
        if changed:
            norm.momentum = None
            for x in self.batches(images, {}):
                norm(enter(x))
            norm.eval()
        return torch.cat([norm(u) for u in maps])

    def batches(self, images: int, light: dict[str, Any]) -> Iterator[Tensor]:
        """Those with which the first epoch begins."""
        options, size = replace(self.cfg.data, **light), self.cfg.batch_size
        plan = epoch_plan(len(self.data.train.labels), options, self.cfg.seed, 0)
        for start in range(0, images - size + 1, size):
            yield train_batch(self.data, plan, options, start, size)[0]


@measure("conv_batchnorm/at_start")
@torch.inference_mode()
def at_start(data: Dataset, seed: int, overrides: list[str], shade: float, images: int) -> list[Row]:
    """What units do above and below the horizon in each light (x), normalised by their batch's own statistics.

    Units are channels at locations: ``all`` of the layer, those of filters whose answer grows with the ``light``, and
    the others (``dark``); and ``pixels``, where the norm is the first thing that an image meets. Rows: the share of
    values above 0 (``active``), and of units that almost no image activates (``silent``) or almost every one does
    (``always``); ``change``, the root mean square of the layer's values minus those on plain images, over that of
    those. And of each filter (x: its answer to light) in each light: ``filter <light>``, its active values below.
    """
    layer = Layer(load_config([*overrides, f"seed={seed}", "device=cpu"]), data)
    answers, rows = layer.answers(), []
    for units, (_, *places) in layer.units.items():
        plain = layer.outputs(units, images, {})
        for light, options in lights(shade).items():
            y = layer.outputs(units, images, options, light == CHANGED)
            for side, inside in zip(("above", "below"), places, strict=True):
                active, before = (y[:, :, inside] > 0).float().mean(0), plain[:, :, inside]
                kinds = {units: active}
                if units == "all":
                    kinds |= {"light": active[answers > 0], "dark": active[answers <= 0]}
                    change = (y[:, :, inside] - before).square().mean() / before.square().mean()
                    rows.append(row(f"change {side}", change.sqrt(), light))
                for kind, share in kinds.items():
                    rows.append(row(f"active {side} {kind}", share.mean(), light))
                    rows.append(row(f"silent {side} {kind}", (share <= RARELY).float().mean(), light))
                    rows.append(row(f"always {side} {kind}", (share >= 1 - RARELY).float().mean(), light))
            if units == "all":
                each = zip(answers.tolist(), active.mean((1, 2)).tolist(), strict=True)
                rows += [row(f"filter {light}", share, answer) for answer, share in each]
    return rows


@measure("conv_batchnorm/gap_at_start")
@torch.inference_mode()
def gap_at_start(
    data: Dataset, seed: int, variants: list[str], batches: list[int], images: int, population: int
) -> list[Row]:
    """Root mean square over ``images`` of xhat by their batch's statistics minus xhat by those of a ``population`` of
    others, after a random convolution of 32 filters of 5 x 5: ``gap <variant>`` by batch size (x).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    filters = torch.randn((32, data.channels, 5, 5), generator=generator) / (data.channels * 25) ** 0.5
    order = torch.randperm(len(data.train.labels), generator=generator)

    def entering(chosen: Tensor) -> Tensor:
        return nn.functional.conv2d(data.normalize(data.train.images[chosen]), filters)

    u, rows = entering(order[:images]), []
    for variant in variants:
        norm: Any = NORMS[variant](u.shape[1], tuple(u.shape[2:]), options=NormOptions(eps=EPS, affine=False)).train()
        norm.momentum = None  # running statistics are the average over all parts
        for part in order[images : images + population].split(512):
            norm(entering(part))
        for size in batches:
            parts = whole(u, size)
            # In training a norm also updates its running statistics: a copy does.
            by_batch = torch.cat([copy.deepcopy(norm)(part) for part in parts])
            by_all = copy.deepcopy(norm).eval()(torch.cat(parts))
            rows.append(row(f"gap {variant}", (by_batch - by_all).square().mean().sqrt(), size))
    return rows


@measure("conv_batchnorm/scene")
def scene(data: Dataset, seed: int, norms: list[str], shade: float, place: int, batch: int, eps: float) -> list[Row]:
    """A test image's brightness pixel by pixel (x, row by row): plain, dark, and as ``norms`` leave it above 0.

    It is normalised with the others of a ``batch``, in training, and its colours are averaged.

    Args:
        data: its test images of class `SCENE` are those that ``place`` counts.
        seed: not used.
        norms: names of variants.
        shade: factor on the lower half.
        place: of the image.
        batch: images that are normalised together.
        eps: of the norms.
    """
    chosen = (data.test.labels == SCENE).nonzero()[place]
    images = torch.cat([data.test.images[chosen], data.test.images[: batch - 1]])
    dark = shaded(images, shade)
    shown = {"plain": images[0] / 255, "dark": dark[0] / 255}
    for variant in norms:
        norm = NORMS[variant](data.channels, data.image_size, options=NormOptions(eps=eps, affine=False)).train()
        shown[variant] = norm(data.normalize(dark))[0].relu()
    rows = [row("width", data.image_size[1])]
    for what, picture in shown.items():
        rows += [row(f"scene {what}", value, x) for x, value in enumerate(picture.mean(0).flatten().tolist())]
    return rows
