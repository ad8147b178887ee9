"""A stored network under each kind of inference statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum

import torch
from torch import Tensor

from bnrepro import record, train
from bnrepro.config import Config, UserError
from bnrepro.data import Dataset, Split, epoch_plan, load, mix, train_batch
from bnrepro.model import build, norm_of
from bnrepro.norm import NormError, reestimate_statistics
from bnrepro.norm.statistics import batch_statistics


class Statistics(StrEnum):
    """What stands for mean and variance at inference."""

    ema = "ema"
    population = "population"
    batch = "batch"


def evaluate(run: record.Run, statistics: str = "ema") -> dict[str, tuple[float, float]]:
    """(mean cross-entropy, accuracy) of a run's checkpoint on the validation and the test set.

    Args:
        run: a run with a checkpoint.
        statistics: ``ema``: the running averages, as trained. ``population``: mean and unbiased variance over one
            epoch of training batches (Ioffe & Szegedy 2015, Algorithm 2). ``batch``: each batch's own, in batches of
            the training's size, shuffled by a fixed seed.

    Raises:
        UserError: no such kind; no checkpoint, or one that does not fit.
    """
    if statistics not in list(Statistics):
        raise UserError(f"--statistics: there is no {statistics!r}. There are: {', '.join(Statistics)}.")
    cfg = train.resolve(run.config)
    state = record.load_checkpoint(run.path / record.CHECKPOINT)
    device = torch.device(cfg.device.value)
    data = load(cfg.data, device)
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, torch.Generator())
    try:
        network.load_state_dict(state["network"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{run.path / record.CHECKPOINT} does not fit the run's configuration.") from error
    network.to(device)
    splits = {"validation": data.val, "test": data.test}
    size = None
    try:
        if statistics == Statistics.population:
            reestimate_statistics(network, _training_batches(cfg, data))
        if statistics == Statistics.batch:
            splits = {name: _shuffled(split) for name, split in splits.items()}
            size = cfg.batch_size
        with batch_statistics(network) if statistics == Statistics.batch else nullcontext():
            return {name: train.measure(network, data, split, cfg, size) for name, split in splits.items()}
    except NormError as error:
        raise UserError(f"--statistics={statistics}: {error}") from error


def _training_batches(cfg: Config, data: Dataset) -> Iterator[Tensor]:
    """One epoch after the last, augmented as in training."""
    plan = epoch_plan(len(data.train.labels), cfg.data, cfg.seed, cfg.epochs)
    for start in range(0, len(data.train.labels) - cfg.batch_size + 1, cfg.batch_size):
        yield train_batch(data, plan, cfg.data, start, cfg.batch_size, channels_last=cfg.channels_last)[0]


def _shuffled(split: Split) -> Split:
    """A set sorted by class would make batches of one class."""
    generator = torch.Generator().manual_seed(mix(0, "evaluation"))
    order = torch.randperm(len(split.labels), generator=generator).to(split.labels.device)
    return Split(split.images[order], split.labels[order])
