"""Activations and gradients of a network at initialisation, and during the update in which its loss diverges."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bnrepro.claims import Row, measure, row
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.training.model import Network, at_norms, build, norm_of, weighted_layers
from bnrepro.training.trainer import Trainer

SHOWN_IMAGES = 50  # of which the gradient at each logit is kept, for the figure
BINS = torch.linspace(-8, 8, 65)  # in standard deviations


@measure("bjorck2018/at_start", version=2)
def at_start(data: Dataset, seed: int, overrides: list[str], images: int) -> list[Row]:
    """The first ``images`` training images in one forward and backward pass through the initial network.

    Rows: `layer_rows`; ``majority``, the percentage of images whose largest logit is that of the most frequent class;
    `tails` of the gradient by the weights of the layer before the middle norm; and ``logit_gradient``, the derivative
    of the loss by each logit of some of the images, sorted by class (x = image * classes + class; seed 0 only).
    """
    network = trainer(data, load_config([*overrides, f"seed={seed}", "device=cpu"])).network.train()
    order = data.train.labels[:images].argsort(stable=True)
    x, y = data.normalize(data.train.images[:images][order]), data.train.labels[:images][order]
    logits, entered = forward(network, x)
    weight = weighted_layers(network)[len(network.norms) // 2].weight
    by_logit, by_weight = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), (logits, weight))
    rows = [*layer_rows(entered, ""), of_most_frequent(logits), *tails(by_weight)]
    if seed == 0:
        spread = torch.linspace(0, images - 1, min(images, SHOWN_IMAGES)).round().long()  # over all classes
        rows += [row("logit_gradient", value, i) for i, value in enumerate(by_logit[spread].flatten().tolist())]
    return rows


@measure("bjorck2018/predicted")
def predicted(data: Dataset, seed: int, overrides: list[str], images: int) -> list[Row]:
    """Row ``majority`` of `at_start` alone."""
    network = trainer(data, load_config([*overrides, f"seed={seed}", "device=cpu"])).network.train()
    with torch.no_grad():
        return [of_most_frequent(network(data.normalize(data.train.images[:images])))]


def of_most_frequent(logits: Tensor) -> Row:
    """``majority``, the percentage of images whose largest logit is that of the most frequent class."""
    return row("majority", 100 * float(logits.argmax(1).bincount().max()) / len(logits))


def tails(gradient: Tensor) -> list[Row]:
    """``kurtosis`` E[(g - m)^4] / E[(g - m)^2]^2, 3 for a normal distribution; ``deviation``, the standard deviation;
    and ``density`` in units of it, of the entries of ``gradient`` (float64).
    """
    g = gradient.double().flatten()
    deviation = (g - g.mean()).square().mean().sqrt()
    z = (g - g.mean()) / deviation
    density = torch.histogram(z.float(), BINS).hist / z.numel() / BINS.diff()
    middles = ((BINS[1:] + BINS[:-1]) / 2).tolist()
    rows = [row("density", value, x) for x, value in zip(middles, density, strict=True)]
    return [row("kurtosis", z.pow(4).mean()), row("deviation", deviation), *rows]


@measure("bjorck2018/diverging", version=2)
def diverging(
    data: Dataset, seed: int, overrides: list[str], rates: list[float], steps: int, loss: float, shares: list[float]
) -> list[Row]:
    """Train without BN at growing rates, each from the start, until one diverges within ``steps``; then look inside.

    It diverges where a batch's loss is above ``loss`` or not a number; the update before that batch is the diverging
    one. ``shares`` of it are applied (0: the weights before it, 1: after it), and each time the batch that it was
    computed on is sent through, in float64. BN is given the same weights, batches, rate and number of updates.

    Rows: ``rate`` and ``update`` (from 1), and `layer_rows` with the prefix ``<variant>/<share>/``. None where no rate
    diverges.
    """
    for rate in sorted(rates):
        cfg = load_config([*overrides, "variant=nobn", f"seed={seed}", f"optimizer.lr={rate}", "device=cpu"])
        update = first_divergence(data, cfg, steps, loss)
        if update is not None:
            break
    else:
        return []
    rows = [row("rate", rate), row("update", update)]
    for variant in ("nobn", "bn"):
        before, after, x = last_update(data, replace(cfg, variant=variant), update)
        for share in shares:
            _, entered = forward(between(before, after, share), x.double())
            rows += layer_rows(entered, f"{variant}/{share:g}/")
    return rows


def trainer(data: Dataset, cfg: Config) -> Trainer:
    """Of ``data``, with the weights that all variants of a seed share."""
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)
    return Trainer(cfg, data, network)


def first_divergence(data: Dataset, cfg: Config, steps: int, loss: float) -> int | None:
    """The update (from 1, at a constant rate) after which the next batch's loss is above ``loss`` or not a number."""
    trained = trainer(data, replace(cfg, epochs=steps + 1))  # an epoch has at least one step
    for batch in trained.batches(0, steps + 1):
        if not float(trained.update(batch.x, batch.y, cfg.optimizer.lr)[0]) <= loss:
            return max(1, batch.step)
    return None


def last_update(data: Dataset, cfg: Config, updates: int) -> tuple[Network, Network, Tensor]:
    """The network before and after the last of ``updates`` updates, and the images of that one."""
    trained = trainer(data, replace(cfg, epochs=updates + 1))
    for batch in trained.batches(0, updates):
        before = deepcopy(trained.network)
        trained.update(batch.x, batch.y, cfg.optimizer.lr)
    return before, trained.network, batch.x


@torch.no_grad()
def between(before: Network, after: Network, share: float) -> Network:
    """The network with ``share`` of an update, in float64 and training mode."""
    network = deepcopy(after).double().train()
    for p, old in zip(network.parameters(), before.parameters(), strict=True):
        p.copy_(old.double() + share * (p - old.double()))
    return network


def forward(network: Network, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits, and what enters each place of a norm (an identity where there is none), in order."""
    with at_norms(network) as entered:
        return network(x), list(entered.values())


def layer_rows(entered: list[Tensor], prefix: str) -> list[Row]:
    """``mean``: absolute mean of a channel, ``variance``: its variance, averaged over channels; x = layer from 1."""
    rows: list[Row] = []
    for layer, x in enumerate(entered, 1):
        channels = x.double().transpose(0, 1).flatten(1)  # (C, values)
        rows.append(row(f"{prefix}mean", channels.mean(1).abs().mean(), layer))
        rows.append(row(f"{prefix}variance", channels.var(1, correction=0).mean(), layer))
    return rows
