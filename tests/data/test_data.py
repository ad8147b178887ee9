"""Splits, batches and augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bnrepro.cli import listing, progress
from bnrepro.config import load_config
from bnrepro.config.schema import Config, Data, Source
from bnrepro.data.dataset import (
    Dataset,
    EpochPlan,
    Split,
    crop_and_flip,
    derive_seed,
    epoch_plan,
    eval_batches,
    load,
    rotate,
    shaded,
    train_batch,
)
from bnrepro.errors import UserError
from bnrepro.report import compare, figures
from bnrepro.runs import index
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.trainer import Progress

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


def test_fewer_training_images_are_the_first_of_those_that_validation_leaves(digits: Path) -> None:
    archive = Data(name="digits", source=Source.npz, path=str(digits), val_fraction=0.25)
    whole, some = load(archive, CPU), load(replace(archive, train_images=100), CPU)
    assert torch.equal(some.train.images, whole.train.images[:100])
    assert torch.equal(some.val.images, whole.val.images)
    assert torch.equal(some.test.images, whole.test.images)
    with pytest.raises(UserError, match=r"data\.train_images=451: validation leaves 450 of 600 images"):
        load(replace(archive, train_images=451), CPU)


def test_without_validation_every_training_image_is_trained_on(digits: Path, tiny: Callable[..., Config]) -> None:
    whole = load(Data(name="digits", source=Source.npz, path=str(digits), val_fraction=0), CPU)
    assert [len(s.labels) for s in (whole.train, whole.val, whole.test)] == [600, 0, 200]
    cfg = tiny("data.val_fraction=0", "tensorboard=true", "epochs=1")
    said: list[Progress] = []
    with progress.TrainBar(cfg) as bar:
        path = train.run(cfg, report=lambda p: (said.append(p), bar.update(p))[0])
    run = Run(path)
    assert said[-1].row is not None
    assert run.metrics[-1]["val_loss"] is run.metrics[-1]["val_accuracy"] is None
    assert run.summary["val_accuracy"] is run.summary["val_loss"] is None
    assert run.summary["test_accuracy"] > 0
    assert run.metrics[-1]["step"] == 10
    assert list(inference.evaluate(run)) == ["test"]
    comparison = compare.collect([run])
    compare.save(comparison, path / "compare")
    stored = compare.open_comparison(path / "compare")
    others = [replace(stored, settings={"threshold": threshold}) for threshold in (None, 0.1)]
    assert [row["reached"] for other in others for row in compare.table(other)] == [0, 0]
    assert "Epochs: to none (there is no validation set)" in " ".join(listing.comparison_table(stored).split())
    compare.write_board(stored, path / "board")
    assert all(file.is_file() for file in figures.draw(stored, path / "figures"))
    assert [run.value("val_accuracy") for run in index.select(Path(cfg.root))] == [None]


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
    plan = EpochPlan(torch.arange(540), torch.zeros(540, 2, dtype=torch.int64), torch.zeros(540, dtype=torch.bool))
    x, _ = train_batch(data, plan, cfg, 0, 10)
    assert torch.equal(x[:, :, 3:, 3:], data.normalize(data.train.images[:10])[:, :, :-3, :-3])
    black = data.normalize(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item()
    assert (x[:, :, :3] == black).all()


def test_a_quarter_turn_is_counter_clockwise_and_moves_pixels_only() -> None:
    images = torch.randint(0, 256, (3, 2, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    turned = rotate(images, torch.tensor([0.0, math.pi / 2, -math.pi / 2]))
    want = torch.stack([images[0], images[1].rot90(1, (1, 2)), images[2].rot90(-1, (1, 2))])
    torch.testing.assert_close(turned, want.float(), atol=1e-2, rtol=0)


def test_rotation_keeps_its_angle_in_an_oblong_image() -> None:
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(20.0) - 9.5, indexing="ij")
    angle = torch.tensor(0.3)
    plane = (3 * x + 2 * y)[None, None]  # linear, so that interpolation is exact
    want = 3 * (x * angle.cos() - y * angle.sin()) + 2 * (x * angle.sin() + y * angle.cos())
    turned = rotate(plane, angle.view(1))[0, 0]
    torch.testing.assert_close(turned[15:25, 5:15], want[15:25, 5:15], atol=1e-3, rtol=0)


def test_angles_and_factors_fill_their_ranges_and_change_nothing_else() -> None:
    plain = epoch_plan(4000, Data(name="x", crop=2, flip=True), seed=0, epoch=0)
    plan = epoch_plan(4000, Data(name="x", crop=2, flip=True, rotate=20, brightness=0.5), seed=0, epoch=0)
    assert plain.angles is plain.factors is None
    for name in ("order", "offsets", "flips"):
        assert torch.equal(getattr(plain, name), getattr(plan, name))
    assert plan.angles is not None
    assert plan.factors is not None
    assert plan.angles.rad2deg().abs().max() == pytest.approx(20, rel=0.01)
    assert plan.angles.rad2deg().mean() == pytest.approx(0, abs=0.6)
    assert (plan.factors.min(), plan.factors.max()) == (pytest.approx(0.5, rel=0.01), pytest.approx(1.5, rel=0.01))
    assert abs(torch.corrcoef(torch.stack([plan.angles, plan.factors]))[0, 1]) < 0.05


def test_brightness_saturates_at_white(data: Dataset) -> None:
    some = torch.arange(540)
    factors = torch.full((540,), 1.5)
    plan = EpochPlan(some, torch.zeros(540, 2, dtype=torch.int64), torch.zeros(540, dtype=torch.bool), factors=factors)
    x, _ = train_batch(data, plan, Data(name="digits", brightness=0.5), 0, 10)
    torch.testing.assert_close(x, data.normalize((data.train.images[:10] * 1.5).clamp(max=255)))


def test_samplewise_normalisation_is_each_images_own_and_undoes_darkening(digits: Path) -> None:
    own = load(Data(name="digits", source=Source.npz, path=str(digits), samplewise=True), CPU)
    x = own.normalize(own.train.images[:20]).double()
    assert x.mean((1, 2, 3)).abs().max() < 1e-6
    assert (x.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-6
    torch.testing.assert_close(own.normalize(own.train.images[:20] * 0.5), x.float(), atol=1e-5, rtol=0)
    seen, _ = next(eval_batches(own, own.test, 20))
    assert torch.equal(seen, own.normalize(own.test.images[:20]))


def test_binary_images_are_0_below_one_half_and_1_from_there_on(digits: Path) -> None:
    own = load(Data(name="digits", source=Source.npz, path=str(digits), binarize=True), CPU)
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8).view(1, 1, 2, 3)
    assert own.normalize(levels).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    x, _ = next(eval_batches(own, own.test, 20, channels_last=True))
    assert torch.equal(x, (own.test.images[:20] > 127).float())
    assert x.dtype == torch.float32


@pytest.mark.parametrize("low", [0, 128])
@pytest.mark.parametrize("part", ["train", "test"])
def test_binarizing_that_makes_all_pixels_the_same_is_refused(tmp_path: Path, low: int, part: str) -> None:
    images, labels = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8), np.arange(20) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "a.npz", **arrays | {f"x_{part}": images % 17 + low})
    cfg = Data(name="x", source=Source.npz, path=str(tmp_path / "a.npz"))
    assert len(load(cfg, CPU).train.labels) == 18
    with pytest.raises(
        UserError,
        match=rf"data.binarize=true .* {part}(ing)? pixels .* from {low} to {low + 16}, .* 128",
    ):
        load(replace(cfg, binarize=True), CPU)


@pytest.mark.parametrize("crop", [28, 1000])
def test_crop_that_can_leave_nothing_of_an_image_is_refused(digits: Path, crop: int) -> None:
    cfg = Data(name="digits", source=Source.npz, path=str(digits), crop=crop)
    with pytest.raises(UserError, match=rf"data\.crop={crop} .* images of 28 x 28\. Use less than 28"):
        load(cfg, CPU)
    assert load(replace(cfg, crop=27), CPU).image_size == (28, 28)


def test_single_test_image_is_the_reason_that_is_told(tmp_path: Path) -> None:
    images, labels = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    with pytest.raises(UserError, match="there is 1 test image, but at least two are needed"):
        load(Data(name="x", source=Source.npz, path=str(tmp_path / "a.npz")), CPU)


@pytest.mark.parametrize("images", [60, 63, 8])
def test_images_that_stay_together_do_so_in_an_order_of_groups_that_changes(images: int) -> None:
    cfg = Data(name="x", together=12)
    first, second = (epoch_plan(images, cfg, seed=0, epoch=epoch).order for epoch in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(images))
    groups = [{frozenset(part.tolist()) for part in order.split(12) if len(part) == 12} for order in (first, second)]
    assert groups[0] == groups[1]
    assert len(groups[0]) == images // 12
    assert torch.equal(first, second) == (images < 12)
    assert torch.equal(first[images // 12 * 12 :], second[images // 12 * 12 :])
    assert {frozenset(p.tolist()) for p in epoch_plan(60, cfg, seed=1, epoch=0).order.split(12)} != groups[0]


def test_normalising_leaves_its_input_alone(data: Dataset) -> None:
    images = data.train.images[:3].float()
    before = images.clone()
    data.normalize(images)
    assert torch.equal(images, before)


def test_evaluation_sees_all_images_in_order(data: Dataset) -> None:
    labels = torch.cat([y for _, y in eval_batches(data, data.test, 64)])
    assert torch.equal(labels, data.test.labels)
    x, _ = next(eval_batches(data, data.test, 64, channels_last=True))
    assert x.shape == (50, 1, 28, 28)  # parts are equal, so that none is left with a single image


def test_channels_last_changes_layout_and_no_value() -> None:
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("x", "", False, "", _split(images), _split(images), _split(images), 2)
    x = data.normalize(images, channels_last=True)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, data.normalize(images))


def test_shade_multiplies_the_lower_half_and_nothing_else() -> None:
    images = torch.randint(0, 256, (6, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dark = shaded(images, 0.3)
    assert dark.dtype == torch.uint8
    assert torch.equal(dark[:, :, :3], images[:, :, :3])
    want = np.rint(images[:, :, 3:].numpy().astype(np.float32) * np.float32(0.3))
    assert (dark[:, :, 3:].numpy() == want).all()
    assert shaded(images, 1.0) is images
    assert (shaded(images, 300.0)[:, :, 3:] == torch.where(images[:, :, 3:] > 0, 255, 0)).all()  # capped, not wrapped


def test_one_shade_holds_in_training_and_evaluation(data: Dataset) -> None:
    cfg = Data(name="digits", shade=0.25)
    plan = epoch_plan(540, cfg, seed=0, epoch=0)
    x, _ = train_batch(data, plan, cfg, 0, 10)
    assert torch.equal(x, data.normalize(shaded(data.train.images[plan.order[:10]], 0.25)))
    seen = torch.cat([x for x, _ in eval_batches(data, data.test, 64, cfg)])
    assert torch.equal(seen, data.normalize(shaded(data.test.images, 0.25)))


def test_each_batch_has_a_shade_of_its_own_and_the_order_stays(data: Dataset) -> None:
    cfg, plain = Data(name="digits", shade=0.2, shade_batches=True), Data(name="digits")
    plan, without = (epoch_plan(540, c, seed=0, epoch=0) for c in (cfg, plain))
    assert torch.equal(plan.order, without.order)
    assert plan.shades is not None
    assert without.shades is None
    assert 0.2 <= plan.shades.min() < 0.3
    assert 0.9 < plan.shades.max() <= 1
    for start in (0, 60):
        x, _ = train_batch(data, plan, cfg, start, 60)
        images = data.train.images[plan.order[start : start + 60]]
        assert torch.equal(x, data.normalize(shaded(images, float(plan.shades[start]))))
    again, other = (epoch_plan(540, cfg, seed=0, epoch=epoch).shades for epoch in (0, 1))
    assert torch.equal(plan.shades, again)
    assert not torch.equal(plan.shades, other)
    factors = (0.3, 0.5, 0.7, 0.9)  # the middles of four equal parts of [0.2, 1]
    batches = [x for x, _ in eval_batches(data, data.test, 50, cfg)]
    for x, factor, images in zip(batches, factors, data.test.images.split(50), strict=True):
        assert torch.allclose(x, data.normalize(shaded(images, factor)))


def test_shade_of_the_test_overrides_that_of_training(data: Dataset) -> None:
    for cfg in (Data(name="x", shade_test=0.5), Data(name="x", shade=0.1, shade_batches=True, shade_test=0.5)):
        x, _ = next(eval_batches(data, data.test, 20, cfg))
        assert torch.equal(x, data.normalize(shaded(data.test.images[:20], 0.5)))
    plan = epoch_plan(540, Data(name="x"), seed=0, epoch=0)
    x, _ = train_batch(data, plan, Data(name="x", shade_test=0.5), 0, 20)
    assert torch.equal(x, train_batch(data, plan, Data(name="x"), 0, 20)[0])


def test_without_options_no_pixel_changes(data: Dataset) -> None:
    cfg = Data(name="digits")
    x, _ = next(eval_batches(data, data.test, 20, cfg))
    assert torch.equal(x, data.normalize(data.test.images[:20]))


def test_purposes_have_seeds_of_their_own() -> None:
    seeds = {
        derive_seed(seed, purpose, epoch) for seed in range(20) for purpose in ("order", "crop") for epoch in range(20)
    }
    assert len(seeds) == 800


def test_a_shuffled_split_has_one_order_of_which_fewer_images_are_the_first(data: Dataset) -> None:
    whole, few = inference.shuffled(data.test), inference.shuffled(data.test, 7)
    assert torch.equal(few.images, whole.images[:7])
    assert torch.equal(few.labels, whole.labels[:7])
    assert torch.equal(whole.labels.bincount(), data.test.labels.bincount())
    assert not torch.equal(whole.labels, data.test.labels)


def _split(images: torch.Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64))
