"""Datasets as uint8 tensors on a device, and batches made from them by index.

A dataset is kept whole on the device. An epoch's order, crops and flips come from generators seeded by
(seed, epoch) alone, so that a run can go on from any step and all variants of a seed see the same batches.
Normalization and augmentation work on whole batches, never on single images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bnrepro.config.schema import Data
from bnrepro.data import sources
from bnrepro.data.arrays import one_value
from bnrepro.errors import UserError

HALF = 128  # of 256 levels: from here on a binarized pixel is 1
SPLIT_SEED = 1  # of the validation split, the same for everyone


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64, on one device."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """A dataset in its three splits. Only the validation set may choose; the test set gives the final number."""

    name: str
    description: str
    """What reports call it; says so where it is not the official data."""
    official: bool
    """Whether its pixels and labels are, byte for byte, those published under this name."""
    fingerprint: str
    """SHA-256 over pixels and labels, before the validation split; 16 hexadecimal digits."""
    train: Split
    val: Split
    """Empty where `data.val_fraction` is 0."""
    test: Split
    num_classes: int
    samplewise: bool = False
    """Whether each image is normalized by its own mean and deviation."""
    binarize: bool = False
    """Whether pixels are 0 or 1 instead."""

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.train.images.shape[2], self.train.images.shape[3]

    @cached_property
    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """1 / std and mean / std of the training pixels per channel, (1, C, 1, 1): normalized is x * scale - shift."""
        planes = self.train.images.transpose(0, 1).flatten(1)
        counts = torch.stack([plane.bincount(minlength=256) for plane in planes]).double()
        values = torch.arange(256, dtype=torch.float64, device=planes.device)
        mean = counts @ values / counts.sum(1)
        std = (counts @ values.square() / counts.sum(1) - mean.square()).clamp(min=1).sqrt()
        return (1 / std).float().view(1, -1, 1, 1), (mean / std).float().view(1, -1, 1, 1)

    def normalize(self, images: Tensor, channels_last: bool = False) -> Tensor:
        """Images of 0 to 255 as float32 of mean 0 and deviation 1: per channel over the training set, or one by one.

        Where pixels are binary, they become 0 or 1 instead.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if self.binarize:
            return (images >= HALF).to(torch.float32, memory_format=layout)
        x = images.to(torch.float32, memory_format=layout, copy=True)
        if self.samplewise:
            x -= x.mean((1, 2, 3), keepdim=True)
            return x.div_(x.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6)  # Keras's place and size of epsilon
        scale, shift = self.scale_and_shift
        return x.mul_(scale).sub_(shift)


def load(cfg: Data, device: torch.device) -> Dataset:
    """The dataset that ``cfg`` names, checked, split, and on ``device``. What is missing is downloaded.

    Raises:
        UserError: an unknown name; a file that is missing, damaged or not what its name says; too few images.
    """
    found = sources.read_with_notes(cfg)
    (x, y), test = found.pair
    held_out = round(cfg.val_fraction * len(y))
    if len(test[1]) < 2:
        raise UserError(f"data: there is {len(test[1])} test image, but at least two are needed.")
    if min(held_out or (2 if cfg.val_fraction == 0 else 0), len(y) - held_out) < 2:
        raise UserError(
            f"data.val_fraction={cfg.val_fraction}: {len(y)} images leave fewer than two for training or for "
            "validation. Use a fraction nearer to 0.1, 0 for no validation, or more images."
        )
    left = len(y) - held_out
    if cfg.train_images is not None and not 2 <= cfg.train_images <= left:
        raise UserError(
            f"data.train_images={cfg.train_images}: validation leaves {left} of {len(y)} images to train on. Use 2 to "
            f"{left}, or null for all of them."
        )
    order = np.random.RandomState(SPLIT_SEED).permutation(len(y))
    trained_on = order[held_out:][: cfg.train_images]
    if cfg.crop >= min(x.shape[2:]):
        raise UserError(
            f"data.crop={cfg.crop} can leave nothing but padding in images of {x.shape[2]} x {x.shape[3]}. Use less "
            f"than {min(x.shape[2:])}."
        )
    for part, images in (("training", x), ("test", test[0])) if cfg.binarize else ():
        if one_value(images, HALF):
            raise UserError(
                f"data.binarize=true makes all {part} pixels equal: their levels range from {images.min()} to "
                f"{images.max()}, and {HALF} and above become 1. Leave data.binarize out, or save the images with "
                "levels from 0 to 255."
            )
    fingerprint = sources.fingerprint(found.pair)
    description, official = sources.describe(cfg, fingerprint, found.notes)

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(torch.tensor(images, device=device), torch.tensor(labels, device=device))

    return Dataset(
        name=cfg.name,
        description=description,
        official=official,
        fingerprint=fingerprint,
        train=split(x[trained_on], y[trained_on]),
        val=split(x[order[:held_out]], y[order[:held_out]]),
        test=split(*test),
        num_classes=int(y.max()) + 1,
        samplewise=cfg.samplewise,
        binarize=cfg.binarize,
    )


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """A seed for one purpose and epoch, unrelated to those of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()[:7], "big")


@dataclass(frozen=True)
class EpochPlan:
    """What happens to each image of an epoch: its place in the order, its crop, whether it is mirrored, and so on."""

    order: Tensor
    offsets: Tensor
    flips: Tensor
    shades: Tensor | None = None
    """Factors on the lower halves; a batch has that of its first image. None: all have the configuration's."""
    angles: Tensor | None = None
    """Radians to turn each image by; None: none is turned."""
    factors: Tensor | None = None
    """To multiply each image's brightness by; None: it stays."""


def epoch_plan(images: int, cfg: Data, seed: int, epoch: int) -> EpochPlan:
    """The plan of an epoch over ``images`` images; the order does not depend on the augmentation."""

    def generator(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch))

    def between(purpose: str, low: float, high: float) -> Tensor:
        return torch.rand(images, generator=generator(purpose)) * (high - low) + low

    turn = math.radians(cfg.rotate)
    order = torch.randperm(images, generator=generator("order"))
    return EpochPlan(
        order=in_groups(order, cfg.together, derive_seed(seed, "order")) if cfg.together else order,
        offsets=torch.randint(0, 2 * cfg.crop + 1, (images, 2), generator=generator("crop")),
        flips=torch.rand(images, generator=generator("flip")) < (0.5 if cfg.flip else 0.0),
        shades=between("shade", cfg.shade, 1) if cfg.shade_batches else None,
        angles=between("rotate", -turn, turn) if cfg.rotate else None,
        factors=between("brightness", 1 - cfg.brightness, 1 + cfg.brightness) if cfg.brightness else None,
    )


def in_groups(order: Tensor, size: int, seed: int) -> Tensor:
    """An order of the same images in which groups of ``size``, which ``seed`` alone draws, stay together.

    The groups follow one another as their numbers do in ``order``; the images of an incomplete last one come last.
    """
    first = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
    groups = len(order) // size
    if groups == 0:
        return first
    return torch.cat(
        [first[: groups * size].view(groups, size)[order[order < groups]].flatten(), first[groups * size :]]
    )


def train_batch(
    data: Dataset,
    plan: EpochPlan,
    cfg: Data,
    start: int,
    size: int,
    *,
    channels_last: bool = False,
    part: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Images ``start`` to ``start + size`` of the epoch, augmented and normalized, and their labels.

    With ``part``, only those of the batch's images, as they are in the whole batch.
    """
    device = data.train.labels.device
    wanted = range(start, start + size)[part]
    where = slice(wanted.start, wanted.stop)
    index = plan.order[where].to(device)
    images, labels = data.train.images[index], data.train.labels[index]
    if cfg.crop or cfg.flip:
        images = crop_and_flip(images, cfg.crop, plan.offsets[where].to(device), plan.flips[where].to(device))
    if plan.angles is not None:
        images = rotate(images, plan.angles[where].to(device))
    if plan.factors is not None:
        factors = plan.factors[where].to(device)
        images = (images * factors.view(-1, 1, 1, 1)).clamp_(max=255)
    images = shaded(images, cfg.shade if plan.shades is None else float(plan.shades[start]))
    return data.normalize(images, channels_last), labels


def shaded(images: Tensor, factor: float) -> Tensor:
    """Images (N, C, H, W) with the pixels of their lower half (from row H // 2 on) times ``factor``.

    Products are rounded to the nearest of the 256 levels, and capped at the brightest.
    """
    if factor == 1:
        return images
    horizon = images.shape[2] // 2
    dark = (images[:, :, horizon:] * factor).round().clamp(max=255).to(images.dtype)
    return torch.cat([images[:, :, :horizon], dark], 2)


def crop_and_flip(images: Tensor, pad: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """Pad each image with ``pad`` black pixels, cut the original size at its offset, mirror it where ``flips`` says.

    Args:
        images: (N, C, H, W).
        pad: pixels on each side.
        offsets: (N, 2) integers in [0, 2 pad], top and left of the cut.
        flips: (N,) booleans.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    rows = offsets[:, :1] + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device).expand(n, w)
    columns = offsets[:, 1:] + torch.where(flips[:, None], columns.flip(1), columns)
    each = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=images.device).view(1, c, 1, 1)
    return padded[each, channel, rows.view(n, 1, h, 1), columns.view(n, 1, 1, w)]


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Turn each image (N, C, H, W) about its centre by ``angles`` (N,) radians, counter-clockwise, as float32.

    Values between pixels are interpolated linearly; outside the image stands its nearest pixel (Keras's default too).
    """
    _, _, h, w = images.shape
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # From output to input places, in units of half the height and half the width.
    rows = [cos, -sin * (h / w), zero, sin * (w / h), cos, zero]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def eval_batches(
    data: Dataset, split: Split, size: int, cfg: Data | None = None, *, channels_last: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of ``split`` in order, normalized, in equal parts of about ``size`` (see `equal_parts`).

    Their lower halves are shaded as ``cfg`` says. Where batches have factors of their own, these stand at equal
    distances between ``cfg.shade`` and 1, from the first batch to the last.
    """
    parts = equal_parts(len(split.labels), size)
    factors = _eval_shades(cfg, len(parts)) if cfg else [1.0] * len(parts)
    for part, factor in zip(parts, factors, strict=True):
        yield data.normalize(shaded(split.images[part], factor), channels_last), split.labels[part]


def equal_parts(count: int, size: int) -> list[slice]:
    """``count`` images in parts of at most ``size`` that differ by one at most.

    No part has one image alone, whose batch statistics are none; rather than that, one has an image more than ``size``.
    """
    parts = max(1, min(-(-count // size), count // 2))
    ends = [count // parts * i + min(i, count % parts) for i in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _eval_shades(cfg: Data, batches: int) -> list[float]:
    if cfg.shade_test is not None or not cfg.shade_batches:
        return [cfg.shade if cfg.shade_test is None else cfg.shade_test] * batches
    return [cfg.shade + (1 - cfg.shade) * (batch + 0.5) / batches for batch in range(batches)]
