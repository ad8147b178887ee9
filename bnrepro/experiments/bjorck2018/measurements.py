"""Activations and gradients of a network at initialisation, and during the update in which its loss diverges."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.training.train import Trainer, trainer_of

SHOWN_IMAGES = 50  # of which the gradient at each logit is kept, for the figure
SHOWN_SEED = 0
BINS = torch.linspace(-8, 8, 65)  # in standard deviations
Row = dict[str, Any]


@measure("bjorck2018/at_start")
def at_start(seed: int, overrides: list[str], variant: str, images: int) -> list[Row]:
    """The first ``images`` training images in one forward and backward pass through the initial network.

    Rows: `layer_rows`; ``majority``, the percentage of images whose largest logit is that of the most frequent class;
    `tails` of the gradient by the weights of the layer before the middle norm; and ``logit_gradient``, the derivative
    of the loss by each logit of some of the images, sorted by class (x = image * classes + class; seed 0 only).
    """
    trainer = trainer_of(configured(overrides, variant, seed))
    data, network = trainer.data, trainer.network.train()
    order = data.train.labels[:images].argsort(stable=True)
    x, y = data.normalize(data.train.images[:images][order]), data.train.labels[:images][order]
    with _Inputs(network) as entered:
        logits = network(x)
    logits.retain_grad()
    F.cross_entropy(logits, y, reduction="sum").backward()
    assert logits.grad is not None
    gradient = _layer_before(network, list(network.norms.values())[len(network.norms) // 2]).weight.grad
    assert isinstance(gradient, Tensor)
    counts = logits.argmax(1).bincount(minlength=data.num_classes)
    rows = [*layer_rows(entered, ""), _row("majority", None, 100 * float(counts.max()) / images), *tails(gradient)]
    if seed == SHOWN_SEED:
        spread = torch.linspace(0, images - 1, min(images, SHOWN_IMAGES)).round().long()  # over all classes
        rows += [_row("logit_gradient", i, v) for i, v in enumerate(logits.grad[spread].flatten().tolist())]
    return rows


def tails(gradient: Tensor) -> list[Row]:
    """``kurtosis`` E[(g - m)^4] / E[(g - m)^2]^2, 3 for a normal distribution; ``deviation``, the standard deviation;
    and ``density`` in units of it, of the entries of ``gradient`` (float64).
    """
    g = gradient.detach().double().flatten()
    centred = g - g.mean()
    variance = centred.square().mean()
    z = centred / variance.sqrt()
    density = torch.histogram(z.float(), BINS).hist / z.numel() / BINS.diff()
    middles = (BINS[1:] + BINS[:-1]) / 2
    return [
        _row("kurtosis", None, float(z.pow(4).mean())),
        _row("deviation", None, float(variance.sqrt())),
        *(_row("density", x, value) for x, value in zip(middles.tolist(), density.tolist(), strict=True)),
    ]


@measure("bjorck2018/diverging")
def diverging(
    seed: int, overrides: list[str], rates: list[float], steps: int, loss: float, shares: list[float]
) -> list[Row]:
    """Train without BN at growing rates, each from the start, until one diverges within ``steps``; then look inside.

    It diverges where a batch's loss is above ``loss`` or not a number; the update before that batch is the diverging
    one. ``shares`` of it are applied (0: the weights before it, 1: after it), and each time the batch that it was
    computed on is sent through, in float64. BN is given the same weights, batches, rate and number of updates.

    Rows: ``rate`` and ``update`` (from 1), and `layer_rows` with the prefix ``<variant>/<share>/``. None where no rate
    diverges.
    """
    for rate in sorted(rates):
        cfg = configured(overrides, "nobn", seed, rate)
        update = first_divergence(cfg, steps, loss)
        if update is None:
            continue
        rows = [_row("rate", None, rate), _row("update", None, update)]
        for variant in ("nobn", "bn"):
            trainer, ends, x = _up_to(replace(cfg, variant=variant), update)
            for share in shares:
                rows += layer_rows(_between(trainer, ends, share, x), f"{variant}/{share:g}/")
        return rows
    return []


def first_divergence(cfg: Config, steps: int, loss: float) -> int | None:
    """The update (from 1) after which the next batch's loss is above ``loss`` or not a number; None if there is none.

    The rate is constant.
    """
    trainer = trainer_of(_long(cfg, steps))
    for batch in trainer.batches(0, steps + 1):
        value = float(trainer.update(batch.x, batch.y, cfg.optimizer.lr)[0])
        if not value <= loss:
            return max(1, batch.step)
    return None


def _up_to(cfg: Config, update: int) -> tuple[Trainer, tuple[list[Tensor], list[Tensor]], Tensor]:
    """A trainer after ``update`` updates, the parameters before and after the last, and its images."""
    trainer = trainer_of(_long(cfg, update))
    before: list[Tensor] = []
    for batch in trainer.batches(0, update):
        before = [p.detach().clone() for p in trainer.network.parameters()]
        trainer.update(batch.x, batch.y, cfg.optimizer.lr)
    after = [p.detach().clone() for p in trainer.network.parameters()]
    return trainer, (before, after), batch.x


@torch.no_grad()
def _between(trainer: Trainer, ends: tuple[list[Tensor], list[Tensor]], share: float, x: Tensor) -> dict[str, Tensor]:
    network = deepcopy(trainer.network).double()
    for p, before, after in zip(network.parameters(), *ends, strict=True):
        p.copy_(before.double() + share * (after.double() - before.double()))
    with _Inputs(network) as entered:
        network.train()(x.double())
    return entered


def layer_rows(entered: dict[str, Tensor], prefix: str) -> list[Row]:
    """``mean``: absolute mean of a channel, ``variance``: its variance, averaged over channels; x = layer from 1."""
    rows: list[Row] = []
    for layer, x in enumerate(entered.values(), 1):
        channels = x.detach().double().transpose(0, 1).flatten(1)  # (C, values)
        rows.append(_row(f"{prefix}mean", layer, float(channels.mean(1).abs().mean())))
        rows.append(_row(f"{prefix}variance", layer, float(channels.var(1, correction=0).mean())))
    return rows


class _Inputs:
    """Within it, what enters each place of a norm (an identity where there is none), by name and in order."""

    def __init__(self, network: Any) -> None:
        self.norms: dict[str, nn.Module] = network.norms
        self.entered: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        self.handles = [norm.register_forward_pre_hook(self._keep(name)) for name, norm in self.norms.items()]
        return self.entered

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, arguments: self.entered.__setitem__(name, arguments[0].detach())


def _layer_before(network: nn.Module, norm: nn.Module) -> nn.Conv2d | nn.Linear:
    """The last convolution or linear layer that was made before ``norm``."""
    made = takewhile(lambda module: module is not norm, network.modules())
    return [module for module in made if isinstance(module, nn.Conv2d | nn.Linear)][-1]


def configured(overrides: list[str], variant: str, seed: int, rate: float | None = None) -> Config:
    """The configuration of a network that is looked into."""
    cfg = replace(load_config(overrides), variant=variant, seed=seed)
    return cfg if rate is None else replace(cfg, optimizer=replace(cfg.optimizer, lr=rate))


def _long(cfg: Config, steps: int) -> Config:
    """``cfg`` with epochs for ``steps`` + 1 steps of any dataset that has a batch."""
    return replace(cfg, epochs=steps + 1)


def _row(quantity: str, x: float | str | None, value: float) -> Row:
    return {"quantity": quantity, "x": x, "value": float(value)}
