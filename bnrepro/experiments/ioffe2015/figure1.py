"""Figure 1: the network of three layers of 100 sigmoids, and what enters them while it learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.experiments.ioffe2015.choosing import at, chosen
from bnrepro.experiments.ioffe2015.jacobian import spectra
from bnrepro.model import Network
from bnrepro.norm.statistics import batch_statistics
from bnrepro.record import Run
from bnrepro.train import Trainer, trainer_of

Row = dict[str, Any]
PERCENTILES = (15, 50, 85)
UNIT = 0  # the typical sigmoid


def train_and_watch(
    run: Run, seed: int, cells: list[list[float]], choosing_seeds: int, steps: int, every: int, images: int,
    jacobians: int,
) -> list[Row]:  # fmt: skip
    """Train with the learning rate and deviation that the grid's runs chose, and look at it every ``every`` steps.

    Args:
        run: a run of the grid.
        seed: of weights and batches.
        cells: the grid, (learning rate, deviation).
        choosing_seeds: seeds of the grid's runs.
        steps: to train for.
        every: steps between looks.
        images: validation images in the batch whose way into the sigmoids is looked at.
        jacobians: the first so many of them are where Jacobians are taken.

    Rows by step: test_accuracy (%), and p15, p50, p85 of the inputs to unit 0 of the last hidden layer. Rows by unit:
    drift, the deviation over the looks of a percentile, mean of the three; width, (p85 - p15) / 2, mean over the looks.
    Spectra before and after (`bnrepro.experiments.ioffe2015.jacobian`). rate and deviation: what was chosen.
    ``diverged`` (value: the step) where the loss was not finite at a look.
    """
    cell = chosen(run, cells, choosing_seeds)
    trainer = trainer_of(at(run.config, cell, seed))
    rows = [_row("rate", cell[0]), _row("deviation", cell[1])]
    x = trainer.data.normalize(trainer.data.val.images[:images])
    rows += spectra(trainer.network, x, jacobians, "start")
    looks = [_percentiles(trainer.network, x)]
    rows += _look(trainer, looks[0], 0)
    for batch in trainer.batches(0, steps):
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        done = batch.step + 1
        if done % every == 0 or done == steps:
            if not math.isfinite(float(loss)):
                return [*rows, _row("diverged", done)]
            looks.append(_percentiles(trainer.network, x))
            rows += _look(trainer, looks[-1], done)
    path = torch.stack(looks)  # (looks, percentiles, units)
    drift, width = path.std(0, correction=0).mean(0), (path[:, 2] - path[:, 0]).mean(0) / 2
    for quantity, values in (("drift", drift), ("width", width)):
        rows += [_row(quantity, value, unit) for unit, value in enumerate(values.tolist())]
    return rows + spectra(trainer.network, x, jacobians, "end")


def _look(trainer: Trainer, percentiles: Tensor, step: int) -> list[Row]:
    _, accuracy = trainer.measure(trainer.data.test)
    rows = [_row("test_accuracy", 100 * accuracy, step)]
    return rows + [
        _row(f"p{p}", value, step) for p, value in zip(PERCENTILES, percentiles[:, UNIT].tolist(), strict=True)
    ]


@torch.no_grad()
def _percentiles(network: Network, x: Tensor) -> Tensor:
    """(3, units): percentiles over the batch of what enters the sigmoids of the last hidden layer."""
    last = list(network.norms.values())[-1]
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)

    handle = last.register_forward_hook(keep)  # without BN, this "norm" is the identity
    network.eval()
    with batch_statistics(network):
        network(x)
    handle.remove()
    levels = torch.tensor([p / 100 for p in PERCENTILES])
    return torch.quantile(seen[0].float(), levels, 0).double()


def _row(quantity: str, value: float, x: float | None = None) -> Row:
    return {"quantity": quantity, "x": x, "value": float(value)}
