"""Splits, batches and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bnrepro.config import UserError, load_config
from bnrepro.data import Dataset, Plan, Split, crop_and_flip, epoch_plan, eval_batches, load, mix, train_batch
from bnrepro.schema import Data, Source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(digits: Path) -> Dataset:
    return load(Data(name="digits", source=Source.npz, path=str(digits)), CPU)


def test_splits_share_no_image_and_lose_none(data: Dataset, digits: Path) -> None:
    assert [len(s.labels) for s in (data.train, data.val, data.test)] == [540, 60, 200]
    stored = np.load(digits)["x_train"]
    kept = sorted(image.numpy().tobytes() for split in (data.train, data.val) for image in split.images)
    assert kept == sorted(image.tobytes() for image in stored)


def test_split_is_the_same_for_every_seed_and_loading(data: Dataset, digits: Path) -> None:
    again = load(Data(name="digits", source=Source.npz, path=str(digits)), CPU)
    assert torch.equal(again.val.images, data.val.images)
    assert again.fingerprint == data.fingerprint


def test_default_dataset_is_as_documented() -> None:
    mnist5k = load(load_config([]).data, CPU)
    assert [len(s.labels) for s in (mnist5k.train, mnist5k.val, mnist5k.test)] == [3600, 400, 1000]
    assert mnist5k.official
    assert (mnist5k.channels, mnist5k.image_size, mnist5k.num_classes) == (1, (28, 28), 10)
    assert mnist5k.train.images.dtype == torch.uint8


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_split_that_leaves_nothing_is_refused(digits: Path, fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        load(Data(name="digits", source=Source.npz, path=str(digits), val_fraction=fraction), CPU)


def test_normalised_training_set_has_mean_0_and_deviation_1_per_channel() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 4
    split = _split(images)
    x = Dataset("x", "", False, "", split, split, split, 2).normalize(images)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_constant_channel_is_normalised_to_finite_values() -> None:
    images = torch.full((4, 1, 3, 3), 7, dtype=torch.uint8)
    split = _split(images)
    assert Dataset("x", "", False, "", split, split, split, 2).normalize(images).abs().max() < 1e-5


def test_an_epoch_sees_every_image_once(data: Dataset) -> None:
    plan = epoch_plan(540, Data(name="digits"), seed=3, epoch=1)
    labels = torch.cat([train_batch(data, plan, Data(name="digits"), start, 60)[1] for start in range(0, 540, 60)])
    assert torch.equal(labels, data.train.labels[plan.order])
    assert torch.equal(plan.order.sort().values, torch.arange(540))


def test_order_depends_on_seed_and_epoch_and_not_on_augmentation() -> None:
    plain, augmented = Data(name="x"), Data(name="x", crop=4, flip=True)
    first = epoch_plan(100, plain, seed=0, epoch=0)
    assert torch.equal(first.order, epoch_plan(100, augmented, seed=0, epoch=0).order)
    assert not torch.equal(first.order, epoch_plan(100, plain, seed=0, epoch=1).order)
    assert not torch.equal(first.order, epoch_plan(100, plain, seed=1, epoch=0).order)
    assert not first.flips.any()
    assert not first.offsets.any()


def test_augmentation_draws_for_each_image_anew() -> None:
    cfg = Data(name="x", crop=2, flip=True)
    plan = epoch_plan(4000, cfg, seed=0, epoch=0)
    share = torch.bincount(plan.offsets.flatten(), minlength=5) / 8000
    assert (share - 0.2).abs().max() < 0.02
    assert abs(plan.flips.float().mean() - 0.5) < 0.03
    other = epoch_plan(4000, cfg, seed=0, epoch=1)
    assert not torch.equal(plan.offsets, other.offsets)
    assert not torch.equal(plan.flips, other.flips)


def test_crop_and_flip_equal_a_loop_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 7, 5), dtype=torch.uint8, generator=generator)
    plan = epoch_plan(40, Data(name="x", crop=2, flip=True), seed=1, epoch=0)
    got = crop_and_flip(images, 2, plan.offsets, plan.flips)
    for i in range(40):
        padded = np.pad(images[i].numpy(), ((0, 0), (2, 2), (2, 2)))
        top, left = plan.offsets[i].tolist()
        want = padded[:, top : top + 7, left : left + 5]
        assert (got[i].numpy() == (want[:, :, ::-1] if plan.flips[i] else want)).all()


def test_batch_is_normalised_after_augmentation(data: Dataset) -> None:
    cfg = Data(name="digits", crop=3, flip=True)
    plan = Plan(torch.arange(540), torch.zeros(540, 2, dtype=torch.int64), torch.zeros(540, dtype=torch.bool))
    x, _ = train_batch(data, plan, cfg, 0, 10)
    assert torch.equal(x[:, :, 3:, 3:], data.normalize(data.train.images[:10])[:, :, :-3, :-3])
    black = data.normalize(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item()
    assert (x[:, :, :3] == black).all()


def test_evaluation_sees_all_images_in_order(data: Dataset) -> None:
    labels = torch.cat([y for _, y in eval_batches(data, data.test, 64)])
    assert torch.equal(labels, data.test.labels)
    x, _ = next(eval_batches(data, data.test, 64, channels_last=True))
    assert x.shape == (64, 1, 28, 28)


def test_channels_last_changes_layout_and_no_value() -> None:
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("x", "", False, "", _split(images), _split(images), _split(images), 2)
    x = data.normalize(images, channels_last=True)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, data.normalize(images))


def test_purposes_have_seeds_of_their_own() -> None:
    seeds = {mix(seed, purpose, epoch) for seed in range(20) for purpose in ("order", "crop") for epoch in range(20)}
    assert len(seeds) == 800


def _split(images: torch.Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64))
