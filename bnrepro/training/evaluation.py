"""A stored network under each kind of inference statistics."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.config import command, config_hash, earlier_hash, user_files, yaml_differences
from bnrepro.config.schema import Config, Device, in_channels_last
from bnrepro.data.dataset import Dataset, Split, derive_seed, epoch_plan, load, train_batch
from bnrepro.errors import UserError, known_are, out_of_memory
from bnrepro.norm import reestimate_statistics, resize
from bnrepro.norm.statistics import batch_statistics
from bnrepro.norm.table import NORMS, SHIPPED
from bnrepro.runs import checkpoint, record
from bnrepro.system.cores import use_threads
from bnrepro.training import train
from bnrepro.training.model import Network, build, load_state, norm_of
from bnrepro.training.trainer import loss_and_accuracy
from bnrepro.training.user_modules import own_files


class Statistics(StrEnum):
    """What stands for mean and variance at inference."""

    ema = "ema"
    population = "population"
    batch = "batch"


def restore(run: record.Run, data: Dataset | None = None) -> tuple[Config, Dataset, Network]:
    """A run's configuration, its data (``data``, where they are at hand), and its network as it ended.

    Raises:
        UserError: no checkpoint, or one that does not fit; configuration, data or code were changed after the run.
    """
    cfg, file = train.resolve(_located(run)), run.path / record.CHECKPOINT
    if not file.exists():
        raise UserError(f"There is no checkpoint {file}{_how_to_train(run, cfg)}")
    state = checkpoint.load(file)
    # The device is where, not what: the run of a GPU may be evaluated on a machine without.
    changed = yaml_differences(state["config"], cfg) if "config" in state else []
    if changed := [each for each in changed if not each.startswith("device is ")]:
        raise UserError(
            f"{run.path / record.CONFIG} was changed after the run ('there' is {record.CHECKPOINT}): "
            f"{', '.join(changed[:3])}. Change it back; this trains what it says now: {command(cfg)}"
        )
    data = data or _data(run, cfg)
    if own_files(cfg) or NORMS.get(cfg.variant) is not SHIPPED.get(cfg.variant):
        same = {earlier_hash(cfg), *(config_hash(replace(cfg, device=each)) for each in Device)}
        if run.summary.get("config_hash") not in (None, *same):
            raise UserError(f"{run.path}: code of your own was changed after the run. Train it again.")
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, torch.Generator())
    try:
        load_state(network, state)
    except ValueError as error:
        raise UserError(
            f"{run.path / record.CHECKPOINT} does not fit the run's configuration ({error}). Train the run again with "
            "--force."
        ) from error
    return cfg, data, network.to(cfg.device.value)


def _located(run: record.Run) -> Config:
    """The configuration, with relative paths that lead nowhere from here as they are from where it was started.

    That is known of a run that lies below its relative root.
    """
    cfg, whole = run.config, _whole(run.path)
    below = (*Path(cfg.root).parts, *_group(cfg))
    if Path(cfg.root).is_absolute() or whole.parts[-len(below) - 1 : -1] != below:
        return cfg
    started = whole.parents[len(below)]

    def found(path: str) -> str:
        return str(started / path) if not os.path.lexists(path) and os.path.lexists(started / path) else path

    data = replace(cfg.data, root=found(cfg.data.root), path=cfg.data.path and found(cfg.data.path))
    return replace(cfg, root=found(cfg.root), data=data)


def _whole(path: Path) -> Path:
    return path.resolve() if ".." in path.parts else path.absolute()


def _group(cfg: Config) -> tuple[str, str, str]:
    return cfg.data.name, cfg.model.name, cfg.variant


def _how_to_train(run: record.Run, cfg: Config) -> str:
    """The end of a sentence on what is missing, and how the run is trained again."""
    whole = _whole(run.path)
    if whole.parts[-4:-1] != _group(cfg):
        return (
            f", and training makes none there. This trains the run where it belongs, if it is not there: {command(cfg)}"
        )
    again = replace(cfg, root=str(whole.parents[3]))
    return f". This trains the run again: {command(again, *(['--force'] if run.finished else []))}"


def _data(run: record.Run, cfg: Config) -> Dataset:
    """The data that the run was trained on.

    Raises:
        UserError: they are no longer there.
    """
    if (path := cfg.data.path) is not None and not os.path.lexists(path):
        raise UserError(
            f"The archive of {run.path}, data.path={path}, does not exist. Put it there again, or write its path as "
            f"data.path in {run.path / record.CONFIG}."
        )
    data = load(cfg.data, torch.device(cfg.device.value))
    if run.summary.get("data_fingerprint") not in (None, data.fingerprint):
        there = f"data.path={path}" if path is not None else f"data={cfg.data.name} in data.root={cfg.data.root}"
        raise UserError(
            f"{there} was changed after the run {run.path}: its fingerprint is {data.fingerprint}, not "
            f"{run.summary['data_fingerprint']}. Restore the run's data, or train on the current data: {command(cfg)}"
        )
    return data


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
            return {name: loss_and_accuracy(network, data, split, cfg, batch_size) for name, split in splits.items()}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if said := user_files.blamed(error, own_files(cfg)):
            raise UserError(f"The evaluation fails in code of your own. {said}") from error
        if isinstance(error, ValueError):  # NormError is one, as is what torch's norms raise
            raise UserError(f"--statistics={statistics}: {error}") from error
        if size is not None and out_of_memory(error):
            raise UserError(f"--size={size}: memory ran out. Use a smaller --size.") from error
        if size is None or not isinstance(error, RuntimeError):
            if not (own := own_files(cfg)) or isinstance(error, UserError | OSError) or out_of_memory(error):
                raise
            raise UserError(f"The evaluation fails in code of your own. {user_files.blame(error, own)}") from error
        if any(isinstance(each, nn.LayerNorm) and len(each.normalized_shape) > 1 for each in network.modules()):
            raise UserError(
                f"--size={size}: variant={cfg.variant} takes maps of one size, since it has parameters for each of "
                "their locations. Use a run with another norm."
            ) from error
        raise UserError(
            f"--size={size}: {cfg.model.name} takes images of one size, since it ends in fully connected layers. "
            "Use a run of model=resnet20."
        ) from error


def differs(run: record.Run, accuracy: float) -> str | None:
    """A sentence if the test ``accuracy`` of a completed run's network, as trained, is not the one on record."""
    recorded = run.summary.get("test_accuracy")
    if recorded in (None, accuracy):
        return None
    reason = "another machine, version of torch or number of threads rounds differently"
    if own := own_files(run.config):
        reason = (
            f"what {own[0].name} keeps elsewhere than in parameters and buffers, as in attributes or generators of its "
            "own, a checkpoint does not hold"
        )
    return f"The recorded test accuracy is {recorded:.4f}. Most likely {reason}."


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, C, H, W) as (N, C, size, size), bilinearly, with antialiasing."""
    return _interpolate(images.float(), size).round().clamp(0, 255).to(torch.uint8)


def _interpolate(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True)


def _training_batches(cfg: Config, data: Dataset, size: int | None) -> Iterator[Tensor]:
    """One epoch after the last, augmented as in training, at the size of the evaluation."""
    plan = epoch_plan(len(data.train.labels), cfg.data, cfg.seed, cfg.epochs)
    for start in range(0, len(data.train.labels) - cfg.batch_size + 1, cfg.batch_size):
        x, _ = train_batch(data, plan, cfg.data, start, cfg.batch_size, channels_last=in_channels_last(cfg))
        yield x if size is None else _interpolate(x, size)


def shuffled(split: Split, images: int | None = None) -> Split:
    """The first ``images`` in an order drawn once: a set sorted by class would make batches of one class."""
    generator = torch.Generator().manual_seed(derive_seed(0, "evaluation"))
    order = torch.randperm(len(split.labels), generator=generator)[:images].to(split.labels.device)
    return Split(split.images[order], split.labels[order])
