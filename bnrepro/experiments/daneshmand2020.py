"""Daneshmand et al., Batch Normalization Provably Avoids Rank Collapse for Randomly Initialised Deep Networks (NeurIPS
2020).

https://arxiv.org/abs/2003.01652

Differences from the paper
- Its abstract was read (papers.nips.cc), and a review (papers.neurips.cc, ...-Review.html), which names the bound: of
  the order of the root of the width. The theorem's constants, its weak residual connection and the sizes of its
  experiments were not read. No public attempt to repeat it was found.
- The rank is the effective one, (sum of s^2)^2 / sum of s^4 of the features' singular values s, of what leaves the
  norms (`bnrepro.training.depth.effective_rank`). It knows no threshold, and where one singular value is left it is 1.
  The number of singular values above a hundredth of the largest stands beside it.
- Networks of equal layers without skip connections; inputs are normal noise, twice as many as a layer has units; BN has
  gamma = 1 and beta = 0 and takes the mean off. Weights are normal with variance 1 / inputs in linear networks, and 2 /
  inputs (He's) with ReLU: without BN the activations keep their size, and only directions are at stake.
- R4 trains networks on digits with SGD at the best of several rates on validation data for each arm. That rank and
  training go together is no proof that rank is what training needs; the source changes the rank at initialisation
  without BN, which is not repeated here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, reaches, row
from bnrepro.claims.evidence import greater, less, not_lower
from bnrepro.config import load_config
from bnrepro.data.dataset import Dataset, derive_seed
from bnrepro.experiments.yang2019 import random_network
from bnrepro.plots.panels import legend, lines, looks, panels, ticks
from bnrepro.plots.style import GREY
from bnrepro.training.depth import by_depth
from bnrepro.training.model import build, norm_of

VARIANCES = {"linear": 1.0, "relu": 2.0}
"""Of the weights, times their number of inputs."""
NAMES = {"linear": "linear", "relu": "ReLU"}
NORMS = {"bn": "BN", "nobn": "no BN"}
COLLAPSE = "the rank of the intermediate representations in unnormalized networks collapses quickly with depth"
AVOIDS = "batch normalization is an effective strategy to avoid rank collapse for both linear and ReLU networks"
BOUND = "we derive a meaningful lower rank bound in deep linear networks"
CRUCIAL = "rank stability is indeed a crucial condition for training modern-day deep neural architectures"
WHERE = "abstract"
POINTS = "percentage points of test accuracy"


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    widths: list[int] = [16, 32, 64, 128]
    marks: list[int] = [1, 10, 50, 100, 200, 400]  # layers that are looked at; the last is the depth
    settled: int = 100  # the layer from which on the rank must not fall with BN
    trained_depth: int = 24  # R4
    common: list[str] = [
        *("data=mnist5k", "model=paper_mlp", "model.activation=relu", "model.init=he", "optimizer=sgd"),
        *("schedule=cosine", "batch_size=128", "epochs=20"),
    ]
    rates: list[float] = [0.003, 0.01, 0.03, 0.1, 0.3]  # R4: the sweep of each arm
    trained: float = 80.0  # R4: % test accuracy with BN at its best rate; a pilot (seed 1000, 8 epochs) had 78
    collapsed: float = 2.0  # R1: an effective rank of 1 is collapse; below 2, one direction has most of all features
    margin_ratio: float = 1.5  # R2: what BN's rank must be over that without, at least
    falls: float = 0.8  # R2: the last layer's rank with BN over that of the settled one; below, it has fallen
    margin_exponent: float = 0.1  # R3: a fifth of the root's exponent
    margin_points: float = 5.0  # R4: five standard errors of 1,000 test images

    @property
    def depth(self) -> int:
        """Layers of the random networks."""
        return max(self.marks)

    @property
    def widest(self) -> int:
        """Units of the widest of them."""
        return max(self.widths)


paper = Paper(__name__, Settings, scale="paper", scale_note="random networks of 16 to 128 units and 400 layers")


@paper.design
def runs(s: Settings) -> Design:
    """Ranks along random networks; networks that are trained, and the rank that they begin with."""
    design = Design(s.seeds)
    for activation, width, norm in product(VARIANCES, s.widths, NORMS):
        factors: Row = {"norm": norm, "activation": activation, "width": width}
        design.measure("random", factors, in_random_network, **factors, marks=s.marks)
    for norm in NORMS:
        overrides = [*s.common, f"model.depth={s.trained_depth}", f"variant={norm}"]
        design.measure("start", {"norm": norm}, at_start, s.common, overrides=overrides)
        for rate in s.rates:
            design.train("trained", {"norm": norm, "rate": rate}, [*overrides, f"optimizer.lr={rate}"])
    return design


# --- measurements ---


@measure("daneshmand2020/random")
def in_random_network(seed: int, norm: str, activation: str, width: int, marks: list[int]) -> list[Row]:
    """``rank``, the effective one, and ``above``, the number of singular values above a hundredth of the largest, of
    what leaves the norms of a random network, or enters the activations without (x: layer from 1, of ``marks``).
    """
    network = random_network(max(marks), width, norm, activation, VARIANCES[activation], seed)
    x = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(derive_seed(seed, "inputs")))
    return ranks(network, x, {str(mark): network[3 * mark - 2] for mark in marks})  # linear, norm, activation


def ranks(network: nn.Module, x: torch.Tensor, modules: dict[str, nn.Module]) -> list[Row]:
    """Rows ``rank`` and ``above`` by layer, the names of ``modules``."""
    layers = by_depth(network, x, modules)
    found: list[dict[str, Any]] = [{"rank": layer.rank, "above": layer.above} for layer in layers]
    return [row(key, each[key], int(a.name)) for each, a in zip(found, layers, strict=True) for key in each]


@measure("daneshmand2020/start")
def at_start(data: Dataset, seed: int, overrides: list[str]) -> list[Row]:
    """``rank`` and ``above``, as in random networks, of a run's initial network on its first 200 training images."""
    cfg = load_config([*overrides, f"seed={seed}", "device=cpu"])
    weights = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    network = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights).train()
    modules = {str(place): norm for place, norm in enumerate(network.norms.values(), 1)}
    return ranks(network, data.normalize(data.train.images[:200]), modules)


# --- claims ---


def rank(r: Results, layer: int, quantity: str = "rank") -> Values:
    """Of a layer of the random networks, by norm, activation and width."""
    return r.measured(quantity, part="random", x=layer)


def named(values: Values) -> dict[str, Values]:
    """By activation and width, for effects."""
    return {f"{NAMES[a]}, {width} units": each for (a, width), each in values.by("activation", "width").items()}


@paper.claim("R1", quote=COLLAPSE, where=WHERE, reported="no number in the abstract; a review: to rank one")
def it_collapses_without(r: Results, s: Settings) -> Evidence:
    """Without normalization, the rank of the intermediate representations has collapsed in the last layer of a deep
    network.
    """
    found = rank(r, s.depth).at(norm="nobn")
    evidence = less(named(found), f"effective rank at layer {s.depth} without BN", "", bar=s.collapsed)
    remark = "How quickly it collapses is not judged; the widest networks show it."
    return replace(evidence.showing(on_the_way(r, s, "nobn")), remark=remark)


@paper.claim("R2", quote=AVOIDS, where=WHERE, reported="no number in the abstract")
def it_does_not_with_bn(r: Results, s: Settings) -> Evidence:
    """Batch normalization keeps the rank from collapsing, in linear and in ReLU networks: in the last layer it is
    larger than without, and it has stopped falling.
    """
    last, settled = rank(r, s.depth), rank(r, s.settled)
    ratio, with_bn = last.at(norm="bn") / last.at(norm="nobn"), last.at(norm="bn") / settled.at(norm="bn")
    over = {f"BN over none, {name}": each for name, each in named(ratio).items()}
    evidence = greater(over, f"effective rank at layer {s.depth}", "", margin=s.margin_ratio, ratio=True)
    kept = {
        f"over layer {s.settled}'s, {NAMES[a]}, BN": geometric(each) for a, each in with_bn.by("activation").items()
    }
    evidence &= greater(kept, "", "", bar=s.falls, ratio=True)
    evidence = evidence.showing({f"BN, {name}": each for name, each in named(last.at(norm="bn")).items()}, "")
    remark = f"How far it falls up to layer {s.settled} is not judged; the widest networks show it."
    return replace(evidence.showing(on_the_way(r, s, "bn"), ""), remark=remark)


def on_the_way(r: Results, s: Settings, norm: str) -> dict[str, Values]:
    """Rank in the layers up to the settled one, of the widest networks."""
    each = {mark: named(rank(r, mark).at(norm=norm, width=[s.widest])) for mark in s.marks if mark <= s.settled}
    return {f"layer {mark}, {NORMS[norm]}, {name}": values for mark, of in each.items() for name, values in of.items()}


def geometric(values: Values) -> Values:
    """Each seed's geometric mean over the widths."""
    return values.log().mean("width").map(math.exp)


@paper.claim("R3", quote=BOUND, where=WHERE, reported="of the order of the root of the width (a review)")
def it_is_of_the_order_of_the_root(r: Results, s: Settings) -> Evidence:
    """With batch normalization the rank in deep linear networks is at least of the order of the root of the width."""
    found = exponent(rank(r, s.depth).at(norm="bn"))
    estimand = f"exponent of the effective rank in the width, layer {s.depth}, minus 1/2"
    evidence = not_lower(found.at(activation="linear") - 0.5, estimand, "", margin=s.margin_exponent)
    above = exponent(rank(r, s.depth, "above").at(norm="bn"))
    beside = {"ReLU": found.at(activation="relu") - 0.5}
    beside["linear, of the singular values above a hundredth"] = above.at(activation="linear") - 0.5
    return evidence.showing(beside)


def exponent(values: Values) -> Values:
    """The slope of the logarithm against that of the width."""

    def slope(widths: list[int], found: list[float]) -> float:
        return float(np.polyfit(np.log(widths), np.log(found), 1)[0]) if len(widths) > 1 else math.nan

    return values.along("width", slope).where(math.isfinite)


def best_rate(r: Results, s: Settings, norm: str) -> Any:
    """The rate with the best mean validation accuracy."""
    return r.accuracy("val_accuracy", part="trained", norm=norm).without("variant").best("rate", s.rates[0])


def at_best(r: Results, s: Settings, norm: str) -> Values:
    """Test accuracy at `best_rate`."""
    return r.accuracy(part="trained", norm=norm, rate=best_rate(r, s, norm)).without("variant")


def with_bn_it_trains(r: Results, s: Settings) -> Gate:
    """The network with BN at its best rate."""
    return reaches(at_best(r, s, "bn"), s.trained, f"test accuracy of {s.trained_depth} layers with BN, %")


@paper.claim(
    "R4",
    quote=CRUCIAL,
    where=WHERE,
    reported="no number in the abstract",
    scale="reduced",
    scale_note="24 layers of 100 units on 4,500 digits",
    gate=with_bn_it_trains,
)
def where_rank_stays_it_trains(r: Results, s: Settings) -> Evidence:
    """Deep networks without normalization, whose rank collapses at initialisation, are less accurate after training
    than those with batch normalization, whose rank stays, each at its best rate.
    """
    gain = at_best(r, s, "bn") - at_best(r, s, "nobn")
    estimand = f"test accuracy of {s.trained_depth} layers, BN minus none, each at its best rate"
    evidence = greater(gain, estimand, POINTS, margin=s.margin_points)
    last = r.measured("rank", part="start", x=s.trained_depth)
    ratio = last.at(norm="bn") / last.at(norm="nobn")
    condition = "effective rank of the last layer at the start, BN over none"
    evidence &= greater(ratio, "", "", margin=s.margin_ratio, ratio=True, condition=condition)
    evidence = evidence.showing({f"accuracy, {name}": at_best(r, s, norm) for norm, name in NORMS.items()}, "%")
    evidence = evidence.unless_at_edge({name: (best_rate(r, s, norm), s.rates) for norm, name in NORMS.items()})
    remark = "The rank is the premise, the accuracy the conclusion: a larger rank alone does not support the claim."
    return replace(evidence, remark=remark)


# --- tables and figures ---


@paper.table
def by_layer(r: Results, s: Settings) -> list[Row]:
    """Effective rank along random networks, for a batch of twice as many inputs as a layer has units."""
    found = r.measured("rank", part="random")
    rows = []
    for (activation, width, norm), values in found.by("activation", "width", "norm").items():
        row: Row = {"network": NAMES[activation], "units": width, "norm": NORMS[norm]}
        rows.append(row | {f"layer {mark}": values.at(x=mark).interval() for mark in s.marks})
    return rows


@paper.table
def trained(r: Results, s: Settings) -> list[Row]:
    """Networks of {s.trained_depth} layers: test accuracy by rate, and the last layer's effective rank at the start."""
    accuracy, diverged = r.accuracy(part="trained").without("variant"), r.diverged(part="trained").without("variant")
    last = r.measured("rank", part="start", x=s.trained_depth)
    return [
        {"norm": NORMS[norm], "rate": rate, "test accuracy, %": values.interval()}
        | {"rank at the start": last.at(norm=norm).interval(), "diverged": int(sum(diverged.at(norm=norm, rate=rate)))}
        for (norm, rate), values in accuracy.by("norm", "rate").items()
    ]


@paper.figure
def collapse(r: Results, s: Settings) -> Figure | None:
    """Left: effective rank by layer of random networks of {s.widest} units. Right: that of layer {s.depth} by
    the width; dashed: the root of the width.
    """
    found = r.measured("rank", part="random")
    if not found:
        return None
    figure, (left, right) = panels(2, height=2.5)
    arms = {f"{NAMES[a]}, {name}": found.at(activation=a, norm=n) for n, name in NORMS.items() for a in VARIANCES}
    look = looks({name: name for name in arms})
    lines(left, Values.stacked("arm", {a: v.at(width=s.widest) for a, v in arms.items()}), "x", "arm", look)
    lines(right, Values.stacked("arm", {a: v.at(x=s.depth) for a, v in arms.items()}), "width", "arm", look)
    right.plot(s.widths, np.sqrt(s.widths), color=GREY, linestyle=(0, (4, 2)), label="root of the width")
    for axes, places, name in ((left, s.marks, "layer"), (right, s.widths, "units in a layer")):
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        ticks(axes, places)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel=name, ylabel="effective rank")
        axes.set_ylim(bottom=0.8)
    legend(figure, 3)
    return figure
