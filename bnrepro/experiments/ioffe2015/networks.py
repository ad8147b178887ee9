"""What is trained beyond ordinary runs, and measured: Figure 1's networks, and the race of Figures 2 and 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnrepro.claims import measure
from bnrepro.config import run_dir
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.experiments.ioffe2015.jacobian import spectra
from bnrepro.norm.statistics import batch_statistics
from bnrepro.runs.record import Run, Status
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.model import Network
from bnrepro.training.train import Trainer, trainer_of

Row = dict[str, Any]
Cell = tuple[float, float]
"""Learning rate, and standard deviation of the initial weights (which only init=gaussian reads)."""
PERCENTILES = (15, 50, 85)
UNIT = 0  # the typical sigmoid, fixed beforehand


# --- what the paper does not state, chosen on validation data ---


def best(accuracies: Mapping[Cell, list[float]]) -> Cell:
    """The cell with the highest mean validation accuracy; the first of equals."""
    return max(accuracies, key=lambda cell: fmean(accuracies[cell]))


def at(cfg: Config, cell: Cell, seed: int) -> Config:
    """``cfg`` with a cell's learning rate and initial standard deviation."""
    optimizer, model = replace(cfg.optimizer, lr=cell[0]), replace(cfg.model, init_std=cell[1])
    return replace(cfg, optimizer=optimizer, model=model, seed=seed)


def chosen(run: Run, cells: list[list[float]], seeds: int) -> Cell:
    """The best cell of the grid that ``run`` belongs to; a run that diverged counts as 0.

    Raises:
        UserError: a run of the grid is missing or did not finish.
    """
    found: dict[Cell, list[float]] = {}
    for lr, std in cells:
        for seed in range(seeds):
            other = Run(run.path.parent / run_dir(at(run.config, (lr, std), seed)).name)  # they lie side by side
            if not other.finished:
                raise UserError(f"the run with learning rate {lr:g}, init_std {std:g} and seed {seed} did not finish")
            completed = other.status == Status.completed
            found.setdefault((lr, std), []).append(other.summary["val_accuracy"] if completed else 0.0)
    return best(found)


# --- Figure 1 ---


@measure("ioffe2015/train_and_watch")
def train_and_watch(
    run: Run, seed: int, cells: list[list[float]], choosing_seeds: int, steps: int, every: int, images: int,
    jacobians: int,
) -> list[Row]:  # fmt: skip
    """Train with the learning rate and initial weights that the grid's runs chose, looking every ``every`` steps.

    Args:
        run: a run of the grid.
        seed: of weights and batches.
        cells: the grid.
        choosing_seeds: seeds of the grid's runs.
        steps: to train for.
        every: steps between looks.
        images: size of the fixed batch of validation images with which the sigmoids' inputs are computed.
        jacobians: how many of them, from the first, Jacobians are computed at.

    Rows by step: test_accuracy (%), and p15, p50, p85 of the inputs to unit 0 of the last hidden layer. Rows by unit:
    drift, the standard deviation over the looks of a percentile, mean of the three; width, (p85 - p15) / 2, mean over
    the looks. `spectra` before (``_start``) and after (``_end``). ``rate`` and ``deviation``: what was chosen.
    ``diverged`` (value: the step) where the loss was not finite at a look.
    """
    cell = chosen(run, cells, choosing_seeds)
    trainer = trainer_of(at(run.config, cell, seed))
    x = trainer.data.normalize(trainer.data.val.images[:images])
    looks = [_percentiles(trainer.network, x)]
    rows = [_row("rate", cell[0]), _row("deviation", cell[1]), *spectra(trainer.network, x, jacobians, "start")]
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
    inputs = zip(PERCENTILES, percentiles[:, UNIT].tolist(), strict=True)
    return [_row("test_accuracy", 100 * accuracy, step), *(_row(f"p{p}", value, step) for p, value in inputs)]


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


# --- Figures 2 and 3 ---


class Contestant(NamedTuple):
    """An arm of the race."""

    variant: str
    factor: float
    """Of the baseline's learning rate."""
    activation: str = "relu"


ARMS: dict[str, Contestant] = {
    "Baseline": Contestant("nobn", 1),
    "BN-Baseline": Contestant("bn", 1),
    "BN-x5": Contestant("bn", 5),
    "BN-x30": Contestant("bn", 30),
    "BN-x5-Sigmoid": Contestant("bn", 5, "sigmoid"),
    "convbn-x5": Contestant("convbn", 5),
    "no BN, x5": Contestant("nobn", 5),
    "no BN, x30": Contestant("nobn", 30),
    "no BN, sigmoid": Contestant("nobn", 1, "sigmoid"),
}
"""The paper's five, local-gain BN, and what the paper says fails without BN."""


@measure("ioffe2015/race")
def race(
    run: Run, seed: int, arm: str, cells: list[list[float]], choosing_seeds: int, steps: int, every: int
) -> list[Row]:
    """Train an arm with its multiple of the rate that the baseline's runs chose.

    Rows: val_accuracy (%) by step, every ``every`` steps; test_accuracy (%) at the end; rate; ``diverged`` (value: the
    step) and nothing more from where the loss is not finite.
    """
    who = ARMS[arm]
    rate, std = chosen(run, cells, choosing_seeds)
    cfg = at(run.config, (who.factor * rate, std), seed)
    cfg = replace(cfg, variant=who.variant, model=replace(cfg.model, activation=who.activation))
    trainer = trainer_of(cfg)
    rows = [_row("rate", cfg.optimizer.lr)]
    for batch in trainer.batches(0, steps):
        loss, _ = trainer.update(batch.x, batch.y, batch.lr)
        done = batch.step + 1
        if not math.isfinite(float(loss)):
            return [*rows, _row("diverged", done)]
        if done % every == 0 or done == steps:
            rows.append(_row("val_accuracy", 100 * trainer.measure(trainer.data.val)[1], done))
    return [*rows, _row("test_accuracy", 100 * trainer.measure(trainer.data.test)[1])]


# --- section 3.4 ---


@measure("ioffe2015/fit")
def fit(run: Run, seed: int) -> list[Row]:
    """Loss and accuracy on the training and the test set in eval mode, and the gap of the losses, test - training.

    The training loss in metrics.csv is no measure of fit here: it is that of the batches' own noisy statistics.
    """
    cfg, data, network = inference.restore(run)
    found = {name: train.measure(network, data, getattr(data, name), cfg) for name in ("train", "test")}
    rows = [_row(f"{name}_loss", loss) for name, (loss, _) in found.items()]
    rows += [_row(f"{name}_accuracy", accuracy) for name, (_, accuracy) in found.items()]
    return [*rows, _row("gap", found["test"][0] - found["train"][0])]


def _row(quantity: str, value: float, x: float | None = None) -> Row:
    return {"quantity": quantity, "x": x, "value": float(value)}
