"""Corrupted images: noise, blur, contrast and brightness as CIFAR-10-C has them, made from a seed; no download.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (2019), draw
them once and publish the arrays. The formulas and the five severities here are those of the authors' script
(hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py); the noise is drawn from a seed of one's own, so that it can
be drawn again, and for any images::

    noisy = corrupt(images, "noise", severity=5, seed=0)  # uint8 (N, C, H, W) in and out
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bnrepro.data.dataset import Split, derive_seed
from bnrepro.errors import UserError, known_are

__all__ = ["SEVERITIES", "corrupt", "corrupted"]

LEVELS = 255.0
AT_ONCE = 1000  # images in float32 at a time

AMOUNTS: dict[str, list[float]] = {
    "noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "blur": [0.4, 0.6, 0.7, 0.8, 1.0],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
}
"""What severities 1 to 5 are: standard deviation of the noise, that of the blur in pixels, the factor on what differs
from an image's mean, and what is added to the brightest channel. Pixels are from 0 to 1."""
SEVERITIES = (1, 2, 3, 4, 5)
"""How strong a corruption can be."""


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """``images`` (N, C, H, W) uint8 under a corruption. As there, results are cut off to whole levels, not rounded.

    Args:
        images: of 0 to 255; they are not changed.
        kind: ``noise`` (Gaussian, for each pixel and channel), ``blur`` (Gaussian), ``contrast`` (towards the mean of
            each image and channel), ``brightness`` (HSV's value).
        severity: 1 to 5.
        seed: of the noise.

    Raises:
        UserError: there is no such corruption or severity; ``images`` is something else.
    """
    if kind not in KINDS:
        raise UserError(f"There is no corruption {kind!r}.{known_are(kind, KINDS)}")
    if severity not in SEVERITIES:
        raise UserError(f"A corruption has a severity from 1 to {SEVERITIES[-1]}; got {severity}.")
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, f"corruption {kind} {severity}"))
    return corrupt_by(images, kind, AMOUNTS[kind][severity - 1], generator)


def corrupt_by(images: Tensor, kind: str, amount: float, generator: torch.Generator) -> Tensor:
    """As `corrupt`, by any amount of what `AMOUNTS` lists; ``generator`` draws the noise."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
        tensor = isinstance(images, Tensor)
        given = f"{images.dtype} {tuple(images.shape)}" if tensor else f"a {type(images).__name__}"
        raise UserError(
            f"Corruptions take a tensor of images (N, C, H, W) in torch.uint8, of 0 to 255; got {given}. Convert them "
            "first: images of 0 to 1 are (255 * images).round().to(torch.uint8)."
        )
    parts = []
    for part in images.split(AT_ONCE):
        changed = KINDS[kind](part.float() / LEVELS, amount, generator)
        # 1e-4 of a level: what rounding in float32 takes from a whole number.
        parts.append((changed.clamp(0, 1) * LEVELS + 1e-4).to(torch.uint8))
    return torch.cat(parts) if parts else images.clone()


def corrupted(split: Split, kind: str, severity: int, seed: int = 0) -> Split:
    """A split with its images under `corrupt` and the same labels."""
    return replace(split, images=corrupt(split.images, kind, severity, seed))


def _noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return x + deviation * drawn.to(x.device)


def _blur(x: Tensor, deviation: float, _: torch.Generator) -> Tensor:
    """Gaussian weights up to four standard deviations; outside the image stands its nearest pixel (as in skimage)."""
    radius = int(4 * deviation + 0.5)
    places = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (places / deviation) ** 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    planes = F.pad(x.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")  # (N C, 1, H, W)
    return F.conv2d(F.conv2d(planes, weights), weights.transpose(2, 3)).view(x.shape)


def _contrast(x: Tensor, factor: float, _: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def _brightness(x: Tensor, amount: float, _: torch.Generator) -> Tensor:
    """HSV's value is the largest channel; with hue and saturation as they are, all channels grow by its factor."""
    value = x.amax(1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1 / LEVELS)), brighter)  # black turns grey


KINDS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
}
"""The corruptions by name: pixels from 0 to 1 in and out."""
