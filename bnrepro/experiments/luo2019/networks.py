"""Training with the statistics of a pool and gamma decay; the penalty that a batch's own statistics come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro import checkpoint, record, train
from bnrepro.config import load_config
from bnrepro.data import Split, mix
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.norm import reestimate_statistics
from bnrepro.norm.statistics import batch_statistics, tracking_layers
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import Trainer, trainer_of

NOISE, TRAINING = "noise", "training"
BN, PN = "bn", "pn"

Row = dict[str, Any]


def arms(settings: Settings) -> list[Arm]:
    """The trained networks of which the penalty is measured; and an epoch of those that the probes train."""
    made: list[Arm] = []
    for seed in range(settings["seeds"]):
        made.append(Arm(NOISE, {}, _config(seed, *settings["noise"]["overrides"])))
        for size, rate in settings["training"]["sizes"]:
            made.append(Arm(TRAINING, {"size": size}, _training(settings, seed, size, rate)))
    return made


def probes(settings: Settings) -> list[Probe]:
    """The penalty by batch size; batch normalization, and population normalization by the strength of gamma decay."""
    noise, training = settings["noise"], settings["training"]
    made: list[Probe] = []
    for seed in range(settings["seeds"]):
        penalties = {"sizes": noise["sizes"], "repeats": noise["repeats"]}
        made.append(Probe(NOISE, {}, seed, penalty, penalties, _config(seed, *noise["overrides"])))
        for size, rate in training["sizes"]:
            cfg = _training(settings, seed, size, rate)
            kinds = [(BN, 0, 0.0), *((PN, training["pool"], c) for c in training["decays"])]
            for kind, pool, decay in kinds:
                factors = {"kind": kind, "size": size, "decay": decay}
                arguments = {"epochs": training["epochs"], "pool": pool, "decay": decay}
                made.append(Probe(TRAINING, factors, seed, trained, arguments, cfg))
    return made


def _training(settings: Settings, seed: int, size: int, rate: float) -> Config:
    overrides = (*settings["training"]["overrides"], "epochs=1", f"batch_size={size}", f"optimizer.lr={rate}")
    return _config(seed, *overrides)


def _config(seed: int, *overrides: str) -> Config:
    return replace(_composed("variant=bn", *overrides), seed=seed)


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))  # takes a tenth of a second


def penalty(run: Run, seed: int, sizes: list[int], repeats: int) -> list[Row]:
    """Loss of the training images with the statistics of each batch, less that with those of all, by batch size.

    ``repeats`` times with batches drawn anew; an incomplete last batch is left out of them.
    """
    trainer = trainer_of(run.config)
    trainer.network.load_state_dict(checkpoint.load(run.path / record.CHECKPOINT)["network"])
    whole = trainer.data.train
    population(trainer)
    base, _ = train.measure(trainer.network, trainer.data, whole, trainer.cfg)
    rows: list[Row] = [{"quantity": "loss", "x": None, "value": base}]
    for size in sizes:
        losses = []
        for repeat in range(repeats):
            generator = torch.Generator().manual_seed(mix(seed, "penalty", repeat))
            order = torch.randperm(len(whole.labels), generator=generator)[: len(whole.labels) // size * size]
            split = Split(whole.images[order], whole.labels[order])
            with batch_statistics(trainer.network):
                losses.append(train.measure(trainer.network, trainer.data, split, trainer.cfg, size)[0])
        rows.append({"quantity": "penalty", "x": size, "value": sum(losses) / repeats - base})
    return rows


def population(trainer: Trainer) -> None:
    """The statistics of all training images into the network's layers."""
    data = trainer.data
    reestimate_statistics(trainer.network, [data.normalize(data.train.images)])


def trained(run: Run, seed: int, epochs: int, pool: int, decay: float) -> list[Row]:
    """A training in which the statistics are those of the batch and ``pool`` other images, with gamma decay.

    The loss of a step is the batch's mean cross-entropy plus ``decay`` / M times the sum of the squared gammas. With
    ``pool`` = 0 and ``decay`` = 0 it is batch normalization.

    Rows, with the statistics of all training images: loss and accuracy (%) of each split, and the mean squared gamma.
    """
    trainer = trainer_of(replace(run.config, epochs=epochs))
    others = _others(trainer, pool, seed)
    for batch in trainer.batches():
        step(trainer, batch.x, batch.y, batch.lr, next(others), decay / len(batch.y))
    population(trainer)
    rows: list[Row] = []
    for name, split in (("train", trainer.data.train), ("val", trainer.data.val), ("test", trainer.data.test)):
        loss, accuracy = trainer.measure(split)
        rows.append({"quantity": f"{name}_loss", "x": None, "value": loss})
        rows.append({"quantity": f"{name}_accuracy", "x": None, "value": 100 * accuracy})
    squares = torch.cat([gamma.detach().square() for gamma in gammas(trainer.network)])
    return [*rows, {"quantity": "gamma_squared", "x": None, "value": float(squares.mean())}]


def _others(trainer: Trainer, pool: int, seed: int) -> Iterator[Tensor]:
    """``pool`` training images, normalised, anew for each step."""
    images, generator = trainer.data.train.images, torch.Generator().manual_seed(mix(seed, "pool"))
    while True:
        chosen = torch.randperm(len(images), generator=generator)[:pool]
        yield trainer.data.normalize(images[chosen])


def step(trainer: Trainer, x: Tensor, y: Tensor, lr: float, others: Tensor, decay: float) -> None:
    """One step on the loss of ``x`` alone, normalised by the statistics of ``x`` and ``others`` together."""
    trainer.network.train()
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    trainer.optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(trainer.network(torch.cat([x, others]))[: len(y)], y)
    if decay:
        for gamma in gammas(trainer.network):
            loss = loss + decay * gamma.square().sum()
    loss.backward()
    trainer.optimizer.step()


def gammas(network: nn.Module) -> list[Tensor]:
    """Of all batch normalizations."""
    return [layer.weight for layer in tracking_layers(network).values()]
