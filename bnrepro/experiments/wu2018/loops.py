"""Training with norms over parts of the batch, or with batches of few classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnrepro import train
from bnrepro.data import Dataset, load, mix
from bnrepro.experiments.wu2018 import layers
from bnrepro.model import MakeNorm, build, norm_of
from bnrepro.norm.statistics import batch_statistics
from bnrepro.optimizer import lr_factor
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import Trainer

Row = dict[str, Any]
VARIANTS = {"bn": "bn", "group": "groupnorm"}


def trained(
    run: Run, seed: int, norm: str, images: int, classes: int, momentum: float, renorm_shares: list[float]
) -> list[Row]:
    """Train as ``run`` was, from the same weights, with another norm or other batches.

    Args:
        run: whose configuration is followed.
        seed: the run's.
        norm: bn, group, renorm or local.
        images: in a part of the batch, from which renorm's and local statistics come.
        classes: 0: the run's own batches. Otherwise how many runs of images of one class a batch is made of.
        momentum: of the running statistics, for a whole batch.
        renorm_shares: of the training's batches: start of renorm's schedule, end of r's, end of d's.

    Rows: ``test_accuracy`` in %, and for BN with ``classes`` ``batch_accuracy``: of test batches so composed, by their
    own statistics. ``diverged`` (the step) in their place where the loss is no number.
    """
    cfg = train.resolve(run.config)
    data = load(cfg.data, torch.device(cfg.device.value))
    steps = cfg.epochs * (len(data.train.labels) // cfg.batch_size)
    make = _factory(cfg, norm, images, momentum, renorm_shares, steps)
    weights = torch.Generator().manual_seed(mix(cfg.seed, "weights"))
    network = build(cfg.model, make, data.channels, data.image_size, data.num_classes, weights)
    trainer = Trainer(cfg, data, network)
    for step in range(trainer.steps):
        epoch, position = divmod(step, trainer.steps_per_epoch)
        if position == 0:
            order = epoch_order(data.train.labels, cfg, classes, epoch)
        index = order[position * cfg.batch_size : (position + 1) * cfg.batch_size]
        lr = cfg.optimizer.lr * lr_factor(cfg.schedule, step, trainer.steps, trainer.steps_per_epoch)
        loss, _ = trainer.update(data.normalize(data.train.images[index]), data.train.labels[index], lr)
        if not math.isfinite(float(loss)):
            return [_row("diverged", step)]
    rows = [_row("test_accuracy", 100 * train.measure(network, data, data.test, cfg)[1])]
    if norm == "bn" and classes:
        rows.append(_row("batch_accuracy", 100 * by_batches(trainer, data, classes)))
    return rows


def _factory(cfg: Config, norm: str, images: int, momentum: float, renorm_shares: list[float], steps: int) -> MakeNorm:
    of_part = layers.momentum_of_part(momentum, images, cfg.batch_size)
    if norm == "renorm":
        return layers.renorm(images, of_part, renorm_shares, steps * max(1, cfg.batch_size // images))
    if norm == "local":
        return layers.local(images, of_part)
    return norm_of(replace(cfg, variant=VARIANTS[norm], norm=replace(cfg.norm, momentum=momentum)))


def epoch_order(labels: Tensor, cfg: Config, classes: int, epoch: int) -> Tensor:
    """The order of an epoch's images: the run's own, or `in_runs` of batch / ``classes`` images."""
    generator = torch.Generator().manual_seed(mix(cfg.seed, "order", epoch))
    if not classes:
        return torch.randperm(len(labels), generator=generator)
    return in_runs(labels, cfg.batch_size // classes, generator)


def in_runs(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """An order of all images in which ``size`` images of one class follow one another.

    Each class's images are shuffled and cut into runs, and the runs are shuffled. What is left of the classes, fewer
    than ``size`` of each, comes last, class by class.
    """
    order = torch.randperm(len(labels), generator=generator)
    runs: list[Tensor] = []
    rest: list[Tensor] = []
    for label in labels.unique():
        own = order[labels[order] == label]
        whole = len(own) // size * size
        runs += list(own[:whole].view(-1, size))
        rest.append(own[whole:])
    shuffled = torch.randperm(len(runs), generator=generator).tolist()
    return torch.cat([*(runs[i] for i in shuffled), *rest])


def by_batches(trainer: Trainer, data: Dataset, classes: int) -> float:
    """Test accuracy in batches of few classes, as those of training, by each batch's own statistics."""
    size = trainer.cfg.batch_size
    generator = torch.Generator().manual_seed(mix(0, "evaluation"))
    order = in_runs(data.test.labels, size // classes, generator)
    right = 0
    whole = order[: len(order) // size * size].split(size)
    trainer.network.eval()
    with torch.inference_mode(), batch_statistics(trainer.network):
        for index in whole:
            logits = trainer.network(data.normalize(data.test.images[index]))
            right += int((logits.argmax(1) == data.test.labels[index]).sum())
    return right / (len(whole) * size)


def _row(quantity: str, value: float) -> Row:
    return {"quantity": quantity, "x": None, "value": float(value)}
