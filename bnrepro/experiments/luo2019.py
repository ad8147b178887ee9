"""Luo et al., Towards Understanding Regularization in Batch Normalization (2019).

https://arxiv.org/abs/1809.00846

Differences from the paper
- An MLP on digits; the source has a single layer in theory and convolutional networks on CIFAR-10.
- Population statistics in training are those of a large pool: the batch and other training images, drawn anew in each
  step, whose loss does not count. The gradient goes through them, as it does through a batch's.
- The gamma decay is c / M times the sum of all squared gammas, with M the batch size and one c for all sizes. c is that
  of a grid whose validation loss is nearest to batch normalization's, in the mean of the absolute differences over
  sizes; the claim is judged on the test set. The source's coefficient depends on the data, and its formula was not read
  again.
- The penalty of U1 is measured on a trained network: the mean loss of training images with each batch's own statistics,
  minus that with the statistics of all.
- At test all networks have the statistics of the whole training set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean, linear_regression

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, equal, measure, not_testable, row
from bnrepro.data.dataset import Split, derive_seed
from bnrepro.norm import reestimate_statistics
from bnrepro.norm.statistics import batch_statistics, tracking_layers
from bnrepro.plots import style as figures
from bnrepro.plots.panels import Look, legend, lines, looks, panels, ticks
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train

NOISE, TRAINING = "noise", "training"
BN, PN = "bn", "pn"
MLP = ("model=paper_mlp", "model.activation=relu")
UNREAD = "no number read in the text"


class Noise(BaseModel, extra="forbid", frozen=True):
    """U1: the network whose penalty is measured."""

    overrides: list[str] = ["data=mnist5k", *MLP, "batch_size=64", "epochs=10"]
    sizes: list[int] = [4, 8, 16, 32, 64, 128]  # batches
    repeats: int = 20  # draws of all batches


class Training(BaseModel, extra="forbid", frozen=True):
    """U1.2: batch and population normalization by batch size."""

    overrides: list[str] = ["data=mnist5k", "data.val_fraction=0.5", *MLP, "optimizer=sgd", "schedule=cosine"]
    sizes: list[tuple[int, float]] = [(8, 0.01), (16, 0.02), (32, 0.03), (128, 0.1)]  # batch size, learning rate
    epochs: int = 10
    pool: int = 1000  # images beside the batch in the population's statistics
    decays: list[float] = [0.0, 0.001, 0.01, 0.1]  # c: gamma decay is c / (batch size); 0: population statistics alone


class Settings(Preset):
    noise: Noise = Noise()
    training: Training = Training()
    power_margin: float = 0.2  # U1: a power of the batch size this near to -1 counts as -1
    margin_points: float = 0.5  # U1.2: test accuracies that count as alike


paper = Paper(__name__, Settings, scale="toy", scale_note="an MLP on 2,000 to 3,600 digits, 10 epochs")


@paper.design
def runs(s: Settings) -> Design:
    """The penalty by batch size; batch normalization, and population normalization by the strength of gamma decay.

    `trained` trains by itself, from the configuration of a run of one epoch.
    """
    design = Design(s.seeds)
    asked = {"sizes": s.noise.sizes, "repeats": s.noise.repeats}
    design.train(NOISE, {}, ["variant=bn", *s.noise.overrides], (penalties, asked))
    for size, rate in s.training.sizes:
        overrides = ["variant=bn", *s.training.overrides, "epochs=1", f"batch_size={size}", f"optimizer.lr={rate}"]
        design.train(TRAINING, {"size": size}, overrides)
        for kind, pool, decay in ((BN, 0, 0.0), *((PN, s.training.pool, c) for c in s.training.decays)):
            factors = {"kind": kind, "size": size, "decay": decay}
            arguments = {"epochs": s.training.epochs, "pool": pool, "decay": decay}
            design.train(TRAINING, factors, overrides, (trained, arguments), record=False)
    return design


# --- measurements ---


@measure("luo2019/penalty")
def penalties(run: Run, seed: int, sizes: list[int], repeats: int) -> list[Row]:
    """Loss of the training images with the statistics of each batch, minus that with those of all, by batch size.

    Rows: ``penalty`` (x = batch size), over ``repeats`` draws of the batches, without an incomplete last one; and
    ``loss``, that with the statistics of all.
    """
    cfg, data, network = inference.restore(run)
    images, labels = data.train.images, data.train.labels
    reestimate_statistics(network, [data.normalize(images)])
    base, _ = train.measure(network, data, data.train, cfg)
    rows: list[Row] = [row("loss", base)]
    for size in sizes:
        losses = []
        for repeat in range(repeats):
            generator = torch.Generator().manual_seed(derive_seed(seed, "penalty", repeat))
            order = torch.randperm(len(labels), generator=generator)[: len(labels) // size * size]
            with batch_statistics(network):
                losses.append(train.measure(network, data, Split(images[order], labels[order]), cfg, size)[0])
        rows.append(row("penalty", sum(losses) / repeats - base, size))
    return rows


@measure("luo2019/trained")
def trained(run: Run, seed: int, epochs: int, pool: int, decay: float) -> list[Row]:
    """A training in which the statistics are those of the batch and ``pool`` other images, with gamma decay.

    The loss of a step is the batch's mean cross-entropy plus ``decay`` / M times the sum of the squared gammas. With
    ``pool`` = 0 and ``decay`` = 0 it is batch normalization.

    Rows, with the statistics of all training images: loss and accuracy (%) of each split, and the mean squared gamma.
    """
    trainer = train.trainer_of(replace(run.config, epochs=epochs))
    data, others, found = trainer.data, drawn_images(trainer, pool, seed), {}
    for batch in trainer.batches():
        step(trainer, batch.x, batch.y, batch.lr, next(others), decay / len(batch.y))
    reestimate_statistics(trainer.network, [data.normalize(data.train.images)])
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        found[f"{name}_loss"], accuracy = trainer.measure(split)
        found[f"{name}_accuracy"] = 100 * accuracy
    found["gamma_squared"] = float(torch.cat([gamma.detach().square() for gamma in gammas(trainer.network)]).mean())
    return [row(quantity, value) for quantity, value in found.items()]


def drawn_images(trainer: train.Trainer, pool: int, seed: int) -> Iterator[Tensor]:
    """``pool`` training images, normalized, anew for each step."""
    images, generator = trainer.data.train.images, torch.Generator().manual_seed(derive_seed(seed, "pool"))
    while True:
        yield trainer.data.normalize(images[torch.randperm(len(images), generator=generator)[:pool]])


def step(trainer: train.Trainer, x: Tensor, y: Tensor, lr: float, others: Tensor, decay: float) -> None:
    """One step on the loss of ``x`` alone, normalized by the statistics of ``x`` and ``others`` together."""
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


# --- quantities ---


def slope(sizes: list[int], values: list[float]) -> float:
    """Of log penalty against log batch size; nan where a penalty is not positive."""
    if len(sizes) < 2 or min(values) <= 0:
        return math.nan
    return linear_regression([math.log(m) for m in sizes], [math.log(v) for v in values]).slope


def difference(r: Results, quantity: str) -> Values:
    """Population normalization minus batch normalization, by size and decay."""
    values = r.measured(quantity, part=TRAINING)
    return values.at(kind=PN) - values.at(kind=BN, decay=0.0)


def chosen(r: Results) -> float | None:
    """The strength c whose validation loss is nearest to batch normalization's over the batch sizes."""
    distances = {
        c: fmean(abs(found.mean) for found in values.intervals("size").values())
        for c, values in difference(r, "val_loss").by("decay").items()
        if c > 0
    }
    return min(distances, key=lambda c: distances[c], default=None)


# --- claims ---


@paper.claim(
    "U1",
    reported=UNREAD,
    withdrawn="measured once the network interpolates; the batch sizes of the power law are to be said",
)
def the_penalty_is_inverse(r: Results, s: Settings) -> Evidence:
    """The noise of a batch's statistics adds a penalty to the loss whose strength falls as one over the batch size."""
    powers = r.measured("penalty", part=NOISE).along("x", slope)
    evidence = equal(powers + 1, "power of the batch size, minus -1", "in the power", margin=s.power_margin)
    return evidence.showing({"power": powers}, "")


@paper.claim("U1.2", reported=UNREAD)
def gamma_decay_is_what_bn_adds(r: Results, s: Settings) -> Evidence:
    """Batch normalization can be decomposed into population normalization and gamma decay: trained so, a network
    generalizes as with batch normalization.
    """
    c = chosen(r)
    if c is None:
        return Evidence("test accuracy")
    accuracy, loss = difference(r, "test_accuracy"), difference(r, "test_loss")
    estimand = f"test accuracy, population with gamma decay {c:g} / M minus BN"
    evidence = equal(accuracy.at(decay=c), estimand, "percentage points", margin=s.margin_points)
    losses = {"test loss": loss.at(decay=c), "test loss without gamma decay": loss.at(decay=0.0)}
    return evidence.showing({"without gamma decay": accuracy.at(decay=0.0)}, "points").showing(losses, "")


@paper.claim("U1.3", reported=UNREAD)
def theory_of_one_layer(r: Results, s: Settings) -> Evidence:
    """Statistical mechanics of a single layer with one teacher gives batch normalization's generalization."""
    why = "A limit of theory (one layer, Gaussian inputs, infinitely many of them), which no trained network decides."
    return not_testable(why)


# --- tables and figures ---


@paper.table
def penalty(r: Results, s: Settings) -> list[Row]:
    """Training loss with a batch's statistics minus that with the population's."""
    return [
        {"batch size": size, "penalty": values.interval(), "times the batch size": (size * values).interval()}
        for size, values in r.measured("penalty", part=NOISE).by("x").items()
    ]


@paper.table
def training(r: Results, s: Settings) -> list[Row]:
    """Gamma decay of strength c / M, with population statistics at test."""
    names = ("test accuracy, %", "test loss", "validation loss", "training loss", "mean squared gamma")
    quantities = ("test_accuracy", "test_loss", "val_loss", "train_loss", "gamma_squared")
    found = [r.measured(quantity, part=TRAINING).by("size", "kind", "decay") for quantity in quantities]
    return [
        {"batch size": size, "normalization": "batch" if kind == BN else "population", "c": decay}
        | {name: values[size, kind, decay].interval() for name, values in zip(names, found, strict=True)}
        for size, kind, decay in found[0]
    ]


@paper.figure
def regularization(r: Results, s: Settings) -> Figure | None:
    """Left: training loss with each batch's own statistics minus that with the population's, of one trained network per
    seed, and a line of slope -1; means are geometric. Middle and right: test loss and mean squared gamma after training
    with batch statistics, population statistics, and population statistics with gamma decay.
    """
    of_batches, c = r.measured("penalty", part=NOISE).where(lambda value: value > 0), chosen(r)
    if not of_batches or c is None:
        return None
    figure, (left, middle, right) = panels(3, height=2.7)
    lines(left, of_batches, "x", look=Look(figures.BLACK, "-", "o", "_"), log=True)
    sizes = of_batches.levels("x")
    end = math.exp(of_batches.log().at(x=sizes[-1]).interval().mean)
    left.plot(sizes, [end * sizes[-1] / size for size in sizes], color=figures.GREY, linestyle="--", label="1 / M")
    left.set(yscale="log", title="penalty")
    names = {BN: figures.label(BN), PN: "population", "decayed": f"population, gamma decay {c:g} / M"}
    for axes, quantity, title in ((middle, "test_loss", "test loss"), (right, "gamma_squared", "mean gamma²")):
        values = r.measured(quantity, part=TRAINING)
        batch, population = values.at(kind=BN, decay=0.0), values.at(kind=PN)
        joined = batch.join("kind", BN, pn=population.at(decay=0.0), decayed=population.at(decay=c))
        lines(axes, joined, "size", "kind", looks(names), bars=True)
        axes.set(title=title)
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="batch size M")
        ticks(axes, sizes if axes is left else [size for size, _ in s.training.sizes])
    legend(figure)
    return figure
