"""Luo et al., Towards Understanding Regularization in Batch Normalization (2019).

https://arxiv.org/abs/1809.00846

Differences from the paper
- U1 is measured on an MLP and a small VGG after few epochs of CIFAR-10, while they still make errors on their training
  images; the source's theory is of a single layer, and its networks are convolutional, on CIFAR-10.
- The penalty of U1 is the mean loss of 5,120 training images with each batch's own statistics, minus that with the
  statistics of all 5,120. Its power is that of a line through the batch sizes from 16 on: the theory is a second-order
  expansion in the noise, and at 4 or 8 images the noise is not small.
- U1.2 trains an MLP on 6,000 digits; the source trains convolutional networks on CIFAR-10.
- Population statistics in training are those of a large pool: the batch and other training images, drawn anew in each
  step, whose loss does not count. The gradient goes through them, as it does through a batch's.
- The gamma decay is c / M times the sum of all squared gammas, with M the batch size and one c for all sizes. c is that
  of a grid whose validation loss is nearest to batch normalization's, in the mean of the absolute differences over
  sizes; the claim is judged on the test set. The source's coefficient depends on the data, and its formula was not read
  again.
- At test all networks have the statistics of the whole training set. The learning rate is proportional to the batch
  size, and the same for both normalizations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean, linear_regression
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, greater, not_testable
from bnrepro.claims.gates import reaches, stays_below
from bnrepro.data.dataset import Split, derive_seed
from bnrepro.norm import reestimate_statistics
from bnrepro.norm.statistics import batch_statistics, tracking_layers
from bnrepro.plots import style as figures
from bnrepro.plots.panels import legend, lines, looks, panels, ticks
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.trainer import Trainer, loss_and_accuracy

NOISE, TRAINING = "noise", "training"
BN, PN = "bn", "pn"
MLP = ("model=paper_mlp", "model.activation=relu")
UNREAD = "no number read in the text"


class Noise(BaseModel, extra="forbid", frozen=True):
    """U1: the networks whose penalty is measured."""

    networks: dict[str, list[str]] = {
        "MLP": [*MLP, "epochs=2"],
        "VGG": ["model=vgg_small", "model.width=0.25", "channels_last=true", "epochs=4"],
    }
    common: list[str] = ["data=cifar10", "data.crop=0", "data.flip=false", "batch_size=64"]
    images: int = 5120  # of the training set: the population, a multiple of each size
    sizes: list[int] = [4, 8, 16, 32, 64, 128, 256]  # batches
    fitted: int = 16  # the smallest batch that the power is fitted to
    repeats: int = 4  # draws of all batches


class Training(BaseModel, extra="forbid", frozen=True):
    """U1.2: batch and population normalization by batch size."""

    overrides: list[str] = ["data=mnist", "data.val_fraction=0.9", *MLP, "optimizer=sgd", "schedule=cosine"]
    sizes: list[int] = [8, 32, 128]
    rate: float = 0.05  # at a batch of 32
    epochs: int = 10
    pool: int = 1000  # images beside the batch in the population's statistics
    decays: list[float] = [
        0.0,
        0.03,
        0.1,
        0.3,
        1.0,
    ]  # c: gamma decay is c / (batch size); 0: population statistics alone


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    noise: Noise = Noise()
    training: Training = Training()
    learned: float = 40.0  # U1: % accuracy on training images, from which on a network is no random one
    interpolates: float = 90.0  # U1: % from which on it is taken to interpolate
    trained: float = 94.0  # U1.2: % test accuracy with BN at each size
    power_margin: float = 0.2  # U1: a power of the batch size this near to -1 counts as -1
    margin_loss: float = 1.05  # U1.2: ratio of test losses that counts as none


paper = Paper(__name__, Settings, scale="toy", scale_note="an MLP on 6,000 digits, 10 epochs")


@paper.design
def runs(s: Settings) -> Design:
    """The penalty by batch size; batch normalization, and population normalization by the strength of gamma decay.

    `trained` trains by itself, from the configuration of a run of one epoch.
    """
    design = Design(s.seeds)
    asked = s.noise.model_dump(include={"images", "sizes", "repeats"})
    for network, overrides in s.noise.networks.items():
        design.train(NOISE, {"network": network}, [*s.noise.common, *overrides], (penalties, asked))
    for size in s.training.sizes:
        rate = s.training.rate * size / 32
        overrides = [*s.training.overrides, "epochs=1", f"batch_size={size}", f"optimizer.lr={rate:g}"]
        for kind, pool, decay in ((BN, 0, 0.0), *((PN, s.training.pool, c) for c in s.training.decays)):
            factors = {"kind": kind, "size": size, "decay": decay}
            arguments = {"epochs": s.training.epochs, "pool": pool, "decay": decay}
            design.train(TRAINING, factors, overrides, (trained, arguments), record=False)
    return design


# --- measurements ---


@measure("luo2019/penalty", version=2)
def penalties(run: Run, seed: int, images: int, sizes: list[int], repeats: int) -> list[Row]:
    """Loss of training images with the statistics of each batch, minus that with those of all of them, by batch size.

    Rows: ``penalty`` (x = batch size), over ``repeats`` divisions of the first ``images`` training images into batches;
    and ``loss`` and ``accuracy`` (%) of these images with the statistics of all.
    """
    cfg, data, network = inference.restore(run)
    x, y = data.train.images[:images], data.train.labels[:images]
    reestimate_statistics(network, [data.normalize(x)])
    base, accuracy = loss_and_accuracy(network, data, Split(x, y), cfg)
    rows: list[Row] = [row("loss", base), row("accuracy", 100 * accuracy)]
    for size in sizes:
        losses = []
        for repeat in range(repeats):
            generator = torch.Generator().manual_seed(derive_seed(seed, "penalty", repeat))
            order = torch.randperm(len(y), generator=generator)
            with batch_statistics(network):
                losses.append(loss_and_accuracy(network, data, Split(x[order], y[order]), cfg, size)[0])
        rows.append(row("penalty", fmean(losses) - base, size))
    return rows


@measure("luo2019/trained")
def trained(run: Run, seed: int, epochs: int, pool: int, decay: float) -> list[Row]:
    """A training in which the statistics are those of the batch and ``pool`` other images, with gamma decay.

    The loss of a step is the batch's mean cross-entropy plus ``decay`` / M times the sum of the squared gammas. With
    ``pool`` = 0 and ``decay`` = 0 it is batch normalization.

    Rows, with the statistics of all training images: loss and accuracy (%) of each split, and the mean squared gamma.
    """
    trainer = train.trainer_again(replace(run.config, epochs=epochs))
    data, others, found = trainer.data, drawn_images(trainer, pool, seed), {}
    for batch in trainer.batches():
        step(trainer, batch.x, batch.y, batch.lr, next(others), decay / len(batch.y))
    reestimate_statistics(trainer.network, [data.normalize(data.train.images)])
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        found[f"{name}_loss"], accuracy = trainer.measure(split)
        found[f"{name}_accuracy"] = 100 * accuracy
    found["gamma_squared"] = float(torch.cat([gamma.detach().square() for gamma in gammas(trainer.network)]).mean())
    return [row(quantity, value) for quantity, value in found.items()]


def drawn_images(trainer: Trainer, pool: int, seed: int) -> Iterator[Tensor]:
    """``pool`` training images, normalized, anew for each step."""
    images, generator = trainer.data.train.images, torch.Generator().manual_seed(derive_seed(seed, "pool"))
    while True:
        yield trainer.data.normalize(images[torch.randperm(len(images), generator=generator)[:pool]])


def step(trainer: Trainer, x: Tensor, y: Tensor, lr: float, others: Tensor, decay: float) -> None:
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


def ratio_of_losses(r: Results) -> Values:
    """Test loss with population normalization over that with batch normalization, by size and decay."""
    loss = r.measured("test_loss", part=TRAINING)
    return loss.at(kind=PN) / loss.at(kind=BN, decay=0.0)


def chosen(r: Results) -> float | None:
    """The strength c whose validation loss is nearest to batch normalization's over the batch sizes."""
    distances = {
        c: fmean(abs(found.mean) for found in values.intervals("size").values())
        for c, values in difference(r, "val_loss").by("decay").items()
        if c > 0
    }
    return min(distances, key=lambda c: distances[c], default=None)


def penalty_by_size(r: Results, s: Settings, **factors: Any) -> Values:
    """The penalty at the batch sizes that the power is fitted to."""
    sizes = [size for size in s.noise.sizes if size >= s.noise.fitted]
    return r.measured("penalty", part=NOISE, **factors).at(x=sizes)


# --- claims ---


def learned_and_makes_errors(r: Results, s: Settings) -> Gate:
    """Networks where the penalty is measured: neither random, nor interpolating."""
    accuracy = r.measured("accuracy", part=NOISE)
    gate = reaches(accuracy, s.learned, "accuracy on the training images, %")
    return gate & stays_below(accuracy, s.interpolates, "accuracy on the training images, %")


def trained_with_bn(r: Results, s: Settings) -> Gate:
    """Batch normalization, at each batch size."""
    return reaches(r.measured("test_accuracy", part=TRAINING, kind=BN), s.trained, "test accuracy with BN, %")


@paper.claim(
    "U1",
    reported=UNREAD,
    scale="reduced",
    scale_note="an MLP and a small VGG at a quarter of its width, 2 and 4 epochs of CIFAR-10",
    gate=learned_and_makes_errors,
)
def the_penalty_is_inverse(r: Results, s: Settings) -> Evidence:
    """While a network does not interpolate, the noise of a batch's statistics adds a penalty to the loss whose strength
    falls as one over the batch size, from batches of 16 on.
    """
    powers = penalty_by_size(r, s).along("x", slope)
    evidence = equal(powers + 1, "power of the batch size, minus -1", "in the power", margin=s.power_margin)
    of_all = r.measured("penalty", part=NOISE).along("x", slope)
    remark = (
        "To second order in the noise it follows for any smooth network, as the variance of the statistics is "
        "proportional to 1 / M; training does not enter."
    )
    evidence = evidence.showing({"power": powers, f"power from batches of {min(s.noise.sizes)} on": of_all}, "")
    return replace(evidence, remark=remark)


@paper.claim(
    "U1.2",
    quote="BN can be decomposed into population normalization (PN) and gamma decay as an explicit regularization",
    where="abstract",
    reported=UNREAD,
    gate=trained_with_bn,
)
def gamma_decay_is_what_bn_adds(r: Results, s: Settings) -> Evidence:
    """Batch normalization can be decomposed into population normalization and gamma decay: trained so, a network
    generalizes as with batch normalization, and without gamma decay it does not.
    """
    c, loss, accuracy = chosen(r), ratio_of_losses(r), difference(r, "test_accuracy")
    estimand = "test loss, population normalization over BN" + (f", c = {c:g}" if c is not None else "")
    margin, decayed = s.margin_loss, "gamma decay c / M, size"
    evidence = equal(loss.at(decay=c), estimand, "times", margin=margin, ratio=True, condition=decayed)
    # Where population statistics alone do as well, there is nothing that gamma decay could explain.
    alone = "no gamma decay, size"
    evidence &= greater(loss.at(decay=0.0), "", "times", margin=margin, ratio=True, condition=alone)
    accuracies = {f"accuracy, {decayed}": accuracy.at(decay=c), f"accuracy, {alone}": accuracy.at(decay=0.0)}
    evidence = evidence.showing(accuracies, "percentage points")
    squared = r.measured("gamma_squared", part=TRAINING)
    kinds = {f"population normalization, {decayed}": squared.at(kind=PN, decay=c), "BN, size": squared.at(kind=BN)}
    remark = "Gammas that decay to other sizes than BN's speak against the decomposition, and decide nothing here."
    if c == min(each for each in s.training.decays if each > 0):
        remark += " The best c is the smallest that was tried."
    return replace(evidence.showing(kinds, "mean squared gamma"), remark=remark)


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
        {"network": network, "batch size": size}
        | {"penalty": values.interval(), "times the batch size": (size * values).interval()}
        for (network, size), values in r.measured("penalty", part=NOISE).by("network", "x").items()
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
    """Left: training loss with each batch's own statistics minus that with the population's, of networks that do not
    interpolate, and lines of slope -1 through the last points; means are geometric. The power is fitted from
    {s.noise.fitted} images on. Middle and right: test loss and mean squared gamma after training with batch statistics,
    population statistics, and population statistics with gamma decay.
    """
    of_batches, c = r.measured("penalty", part=NOISE).where(lambda value: value > 0), chosen(r)
    if not of_batches or c is None:
        return None
    figure, (left, middle, right) = panels(3, height=2.7)
    names = {BN: "batch", PN: "population", "decayed": f"population, gamma decay {c:g} / M"}
    look = looks(names | {network: network for network in s.noise.networks})
    lines(left, of_batches, "x", "network", look, log=True)
    for values in of_batches.by("network").values():
        sizes = values.levels("x")
        end = math.exp(values.log().at(x=sizes[-1]).interval().mean)
        left.plot(sizes, [end * sizes[-1] / size for size in sizes], color=figures.GREY, linestyle="--", zorder=1)
    left.set(yscale="log", title="penalty", ylabel="difference of losses, nats")
    left.legend()
    for axes, quantity, title in ((middle, "test_loss", "test loss, nats"), (right, "gamma_squared", "mean gamma²")):
        values = r.measured(quantity, part=TRAINING)
        batch, population = values.at(kind=BN, decay=0.0), values.at(kind=PN)
        joined = batch.join("kind", BN, pn=population.at(decay=0.0), decayed=population.at(decay=c))
        lines(axes, joined, "size", "kind", look, bars=True)
        axes.set(title=title)
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="batch size M")
        ticks(axes, s.noise.sizes if axes is left else s.training.sizes)
    legend(figure, of=middle)
    return figure
