"""A stored network under each kind of inference statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F

from bnrepro.config import command, config_hash, user_files
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, Split, derive_seed, epoch_plan, load, train_batch
from bnrepro.errors import UserError, known_are, out_of_memory
from bnrepro.norm import reestimate_statistics, resize
from bnrepro.norm.statistics import batch_statistics
from bnrepro.runs import checkpoint, record
from bnrepro.system.cores import use_threads
from bnrepro.training import train
from bnrepro.training.model import Network, build, norm_of
from bnrepro.training.user_modules import own_files


class Statistics(StrEnum):
    """What stands for mean and variance at inference."""

    ema = "ema"
    population = "population"
    batch = "batch"


def restore(run: record.Run, data: Dataset | None = None) -> tuple[Config, Dataset, Network]:
    """A run's configuration, its data (``data``, where they are at hand), and its network as it ended.

    Raises:
        UserError: no checkpoint, or one that does not fit.
    """
    cfg = train.resolve(run.config)
    device = torch.device(cfg.device.value)
    if not (run.path / record.CHECKPOINT).exists():
        again = replace(cfg, root=str(run.path.parents[3]))
        how = command(again, *(["--force"] if run.finished else []))
        raise UserError(f"There is no checkpoint {run.path / record.CHECKPOINT}. This trains the run again: {how}")
    if own_files(cfg) and run.summary.get("config_hash") not in (None, config_hash(run.config)):
        raise UserError(f"{run.path / record.CODE}: code of your own was changed after the run. Train it again.")
    state = checkpoint.load(run.path / record.CHECKPOINT)
    data = data or load(cfg.data, device)
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, torch.Generator())
    try:
        network.load_state_dict(state["network"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{run.path / record.CHECKPOINT} does not fit the run's configuration.") from error
    return cfg, data, network.to(device)


def evaluate(run: record.Run, statistics: str = "ema", size: int | None = None) -> dict[str, tuple[float, float]]:
    """(mean cross-entropy, accuracy) of a run's checkpoint on the validation set, if there is one, and the test set.

    Args:
        run: a run with a checkpoint.
        statistics: ``ema``: the running averages, as trained. ``population``: mean and unbiased variance over one
            epoch of training batches (Ioffe & Szegedy 2015, Algorithm 2). ``batch``: each batch's own, in batches of
            the training's size, shuffled by a fixed seed.
        size: height and width that the images are resized to first (bilinearly, with antialiasing). What the norms
            keep per location is interpolated to fit (`bnrepro.norm.resize`).

    Raises:
        UserError: no such kind; no checkpoint, or one that does not fit; a network that takes images of one size.
    """
    if statistics not in list(Statistics):
        raise UserError(f"--statistics: there is no {statistics!r}.{known_are(statistics, Statistics)}")
    use_threads()
    cfg, data, network = restore(run)
    splits = {"validation": data.val, "test": data.test} if len(data.val.labels) else {"test": data.test}
    batch_size = None
    two = data.test.images[:2]
    try:
        if size is not None:
            twice = 2 * data.image_size[0]
            if cfg.model.file is None and size > twice:  # a network that does not take this takes no larger one either
                resize(deepcopy(network), data.normalize(resized(two, twice)))
            resize(network, data.normalize(resized(two, size)))
            splits = {name: Split(resized(split.images, size), split.labels) for name, split in splits.items()}
        if statistics == Statistics.population:
            reestimate_statistics(network, _training_batches(cfg, data, size))
        if statistics == Statistics.batch:
            splits = {name: shuffled(split) for name, split in splits.items()}
            batch_size = cfg.batch_size
        with batch_statistics(network) if statistics == Statistics.batch else nullcontext():
            return {name: train.measure(network, data, split, cfg, batch_size) for name, split in splits.items()}
    except Exception as error:
        if said := user_files.blamed(error, own_files(cfg)):
            raise UserError(f"The evaluation fails in code of your own. {said}") from error
        if isinstance(error, ValueError):  # NormError is one, as is what torch's norms raise
            raise UserError(f"--statistics={statistics}: {error}") from error
        if size is not None and out_of_memory(error):
            raise UserError(f"--size={size}: memory ran out. Use a smaller --size.") from error
        if size is None or not isinstance(error, RuntimeError):
            raise
        raise UserError(
            f"--size={size}: {cfg.model.name} takes images of one size, since it ends in fully connected layers. "
            "Use a run of model=resnet20."
        ) from error


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, C, H, W) as (N, C, size, size), bilinearly, with antialiasing."""
    return _interpolate(images.float(), size).round().clamp(0, 255).to(torch.uint8)


def _interpolate(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True)


def _training_batches(cfg: Config, data: Dataset, size: int | None) -> Iterator[Tensor]:
    """One epoch after the last, augmented as in training, at the size of the evaluation."""
    plan = epoch_plan(len(data.train.labels), cfg.data, cfg.seed, cfg.epochs)
    for start in range(0, len(data.train.labels) - cfg.batch_size + 1, cfg.batch_size):
        x, _ = train_batch(data, plan, cfg.data, start, cfg.batch_size, channels_last=cfg.channels_last)
        yield x if size is None else _interpolate(x, size)


def shuffled(split: Split, images: int | None = None) -> Split:
    """The first ``images`` in an order drawn once: a set sorted by class would make batches of one class."""
    generator = torch.Generator().manual_seed(derive_seed(0, "evaluation"))
    order = torch.randperm(len(split.labels), generator=generator)[:images].to(split.labels.device)
    return Split(split.images[order], split.labels[order])
