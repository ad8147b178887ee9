"""Corruptions: the formulas against SciPy and Python's colours, severities that grow, and noise of a seed."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bnrepro.data.corruptions import AMOUNTS, KINDS, SEVERITIES, corrupt, corrupted
from bnrepro.data.dataset import Split
from bnrepro.errors import UserError

over_kinds = pytest.mark.parametrize("kind", KINDS)


def images(count: int = 8, channels: int = 3, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, (count, channels, 12, 10), generator=generator, dtype=torch.uint8)


def levels(x: np.ndarray) -> np.ndarray:
    """0 to 1 as whole levels, cut off; 1e-4 as there is rounding in float32."""
    return np.floor(np.clip(x, 0, 1) * 255 + 1e-4)


@over_kinds
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_input_stay(kind: str, channels: int) -> None:
    x = images(channels=channels)
    before = x.clone()
    for severity in SEVERITIES:
        y = corrupt(x, kind, severity)
        assert y.shape == x.shape
        assert y.dtype == torch.uint8
        assert not torch.equal(y, x)
    assert torch.equal(x, before)


@over_kinds
def test_severities_grow(kind: str) -> None:
    x = images(count=40, low=60, high=190)
    change = [float((corrupt(x, kind, s).float() - x.float()).square().mean()) for s in SEVERITIES]
    assert change == sorted(change)
    assert change[0] > 0
    assert len(set(AMOUNTS[kind])) == 5


def test_blur_is_scipys() -> None:
    x = images()
    for severity, deviation in enumerate(AMOUNTS["blur"], 1):
        want = gaussian_filter(x.double().numpy() / 255, (0, 0, deviation, deviation), mode="nearest", truncate=4.0)
        assert np.abs(corrupt(x, "blur", severity).numpy() - levels(want)).max() <= 1
        assert (corrupt(x, "blur", severity).numpy() != levels(want)).mean() < 0.01  # where rounding decides


def test_contrast_is_towards_each_images_mean() -> None:
    x = images().double().numpy() / 255
    mean = x.mean((2, 3), keepdims=True)
    for severity, factor in enumerate(AMOUNTS["contrast"], 1):
        got = corrupt(images(), "contrast", severity).numpy()
        assert np.abs(got - levels(factor * x + (1 - factor) * mean)).max() <= 1
        assert (got != levels(factor * x + (1 - factor) * mean)).mean() < 0.01


def test_brightness_is_that_of_hsv() -> None:
    x = images(count=2)
    x[0, :, 0, 0] = 0  # black has no hue
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy() / 255
    for severity, amount in enumerate(AMOUNTS["brightness"], 1):
        want = []
        for pixel in pixels:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            want.append(colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + amount)))
        got = corrupt(x, "brightness", severity).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        assert np.abs(got - levels(np.array(want))).max() <= 1


def test_noise_has_its_deviation_and_seed() -> None:
    x = torch.full((30, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, deviation in enumerate(AMOUNTS["noise"], 1):
        noise = (corrupt(x, "noise", severity).double() - 128) / 255
        assert float(noise.std()) == pytest.approx(deviation, rel=0.02)
        assert float(noise.mean()) == pytest.approx(-0.5 / 255, abs=1e-3)  # levels are cut off
    assert torch.equal(corrupt(x, "noise", 3, seed=1), corrupt(x, "noise", 3, seed=1))
    assert not torch.equal(corrupt(x, "noise", 3, seed=1), corrupt(x, "noise", 3, seed=2))


@over_kinds
def test_no_images_are_none(kind: str) -> None:
    assert corrupt(images()[:0], kind, 5).shape == (0, 3, 12, 10)


def test_a_split_keeps_its_labels() -> None:
    split = Split(images(), torch.arange(8))
    found = corrupted(split, "blur", 2)
    assert torch.equal(found.labels, split.labels)
    assert torch.equal(found.images, corrupt(split.images, "blur", 2))


def test_what_there_is_not_is_told() -> None:
    with pytest.raises(UserError, match=r"no corruption 'noize'.*noise"):
        corrupt(images(), "noize", 1)
    with pytest.raises(UserError, match="from 1 to 5"):
        corrupt(images(), "noise", 6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (images().float() / 255, r"got torch\.float32 \(8, 3, 12, 10\)\. .*\(255 \* images\)\.round\(\)"),
        (images().int(), r"got torch\.int32"),
        (images()[0], r"got torch\.uint8 \(3, 12, 10\)"),
        (images().numpy(), "got a ndarray"),
    ],
)
@over_kinds
def test_other_images_are_refused(kind: str, given: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        corrupt(given, kind, 1)


@over_kinds
def test_torchs_defaults_change_nothing(kind: str, torchs_defaults: Callable[[], AbstractContextManager[None]]) -> None:
    x = images()
    with torchs_defaults():
        found = corrupt(x, kind, 3)
    assert torch.equal(found, corrupt(x, kind, 3))
