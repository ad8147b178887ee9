"""A training loop for probes that do something of their own at each step: the weights and batches are a run's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bnrepro import train
from bnrepro.data import epoch_plan, load, mix, train_batch
from bnrepro.model import build, norm_of
from bnrepro.optimizer import lr_factor
from bnrepro.schema import Config
from bnrepro.train import Trainer


class Batch(NamedTuple):
    """One step's images (normalised), labels and learning rate; ``step`` counts from 0."""

    step: int
    x: Tensor
    y: Tensor
    lr: float


def trainer_of(cfg: Config) -> Trainer:
    """A trainer with the initial weights that a run of ``cfg`` starts from."""
    cfg = train.resolve(cfg)
    data = load(cfg.data, torch.device(cfg.device.value))
    weights = torch.Generator().manual_seed(mix(cfg.seed, "weights"))
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)
    return Trainer(cfg, data, network)


def batches(trainer: Trainer, start: int = 0, end: int | None = None) -> Iterator[Batch]:
    """The batches of steps ``start`` to ``end`` (None: the last), with the rates of the schedule, as in a run."""
    cfg, data, per_epoch = trainer.cfg, trainer.data, trainer.steps_per_epoch
    planned, plan = -1, None
    for step in range(start, trainer.steps if end is None else end):
        epoch, position = divmod(step, per_epoch)
        if plan is None or epoch != planned:
            planned, plan = epoch, epoch_plan(len(data.train.labels), cfg.data, cfg.seed, epoch)
        first = position * cfg.batch_size
        x, y = train_batch(data, plan, cfg.data, first, cfg.batch_size, channels_last=cfg.channels_last)
        yield Batch(step, x, y, cfg.optimizer.lr * lr_factor(cfg.schedule, step, trainer.steps, per_epoch))
