"""Bjorck, Gomes, Selman & Weinberger, Understanding Batch Normalization (NeurIPS 2018).

https://arxiv.org/abs/1806.02375

Differences from the paper
- Learning rates: narrow residual networks of 20 and 56 layers on digits, until they have learned them, where the source
  trains ResNet-110 on CIFAR-10. Its numbers were not read in its text, and none stands here.
- At initialisation: residual networks of 20, 56 and 110 layers at full width on CIFAR-10, with Glorot's weights: of the
  two usual kinds the one with which variances grow more slowly, which is the stricter test.
- A network counts as trained if its loss stays finite and its training accuracy in the last epoch reaches the preset's.
  The largest rate is the last that trains before the first that does not, going up; the lowest of the grid where none
  trains, and the highest where all do, which both make BN's advantage look smaller.
- The same small rate is the one at which the network without BN does best on validation data. Rates fall to zero by a
  cosine, where the source lowers them in steps; there is no weight decay.
- The diverging update is the last before a batch whose loss is above the preset's or not a number, at a constant rate:
  the lowest of the grid at which that happens. BN is given the same rate and number of updates.
- What the first five seeds left open of B2.3 is judged on twenty others, which nobody had seen when it was decided.
- Layers that died (variance 0) have no place on a logarithmic axis: growth with depth is judged only where nearly none
  has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import dropwhile, product, takewhile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from pydantic import BaseModel

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, equal, greater
from bnrepro.claims.gates import reaches, stays_below
from bnrepro.experiments.bjorck2018 import measurements
from bnrepro.plots.panels import as_high_as_lines, curve, legend, lines, looks, panels, ticks
from bnrepro.plots.style import GREY

RATES, START, AGAIN, DIVERGING = "rates", "start", "start of other seeds", "diverging"
RESNET = ("model=resnet20", "model.width=0.25", "channels_last=true")
NAMES = {"nobn": "no BN", "bn": "framework BN"}
POINTS = "percentage points"
UNREAD = "no number read in the text"
AT_START = "ResNets of 20 to 110 layers on CIFAR-10, as initialised"
DIVERGED = "ResNets of 20 and 56 layers on CIFAR-10"


class Network(BaseModel, extra="forbid", frozen=True):
    layers: int  # that a norm follows, or would
    overrides: list[str]
    rates: list[float] | None = None  # its own, where it has not the preset's


class Settings(Preset):
    networks: dict[str, Network] = {  # by their names in tables
        f"ResNet-{6 * n + 2} x 0.25": Network(layers=6 * n + 1, overrides=[*RESNET, f"model.depth={n}"]) for n in (3, 9)
    }
    common: list[str] = [
        *("data=mnist", "data.val_fraction=0.02", "data.train_images=4500"),
        *("optimizer=sgd", "schedule=cosine", "batch_size=64", "epochs=16"),
    ]
    rates: list[float] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]  # the sweep, two per decade
    trains_accuracy: float = 0.5  # training accuracy in the last epoch from which on a run counts as trained
    learned: float = 95.0  # B1.2, B1.3: % training accuracy without BN at its best rate, from which on it has learned
    looked_into: list[str] = ["data=cifar10", "model=resnet20", "model.init=glorot", "optimizer=sgd", "batch_size=128"]
    blocks: dict[str, int] = {"ResNet-20": 3, "ResNet-56": 9, "ResNet-110": 18}  # B2, at initialisation: in each stage
    diverge: list[str] = ["ResNet-20", "ResNet-56"]  # B2.2: those that are made to diverge
    images: int = 500  # B2: in the batch that is looked at at initialisation
    dead_layers: float = 5.0  # B2.1, B2.2: % of layers from which on growth with depth is not judged
    diverging_loss: float = 1000.0  # B2: the loss above which training has diverged
    diverging_steps: int = 40  # B2: updates in which a rate must diverge
    shares: list[float] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]  # B2: of the diverging update
    growth_decades: float = 1.0  # B2.1, B2.2: growth over the depth, of no BN over BN, that is "exponential"
    margin_points: float = 0.5  # B1.2, B1.3: accuracies that count as alike; 2.5 standard errors of 10,000 test images
    margin_decades: float = 0.04  # B1.1, B2.4, new with the port: a ratio of 1.1 in rates or kurtoses counts as none
    more_seeds: int = 20  # B2.3: after the first, which left it open; it is judged on these alone
    margin_images: float = 2.0  # B2.3, new with the port: percentage points of the images that count as none

    @property
    def new_seeds(self) -> range:
        """Those of B2.3."""
        return range(self.seeds, self.seeds + self.more_seeds)


paper = Paper(__name__, Settings, scale="toy", scale_note="narrow ResNets of 20 and 56 layers on 4,500 digits of MNIST")


@paper.design
def runs(s: Settings) -> Design:
    """Every network at every rate, with and without BN, and a look inside some of them."""
    design = Design(s.seeds)
    for name, network in s.networks.items():
        for rate, variant in product(network.rates or s.rates, NAMES):
            factors: Row = {"network": name, "layers": network.layers, "variant": variant, "rate": rate}
            own = [f"variant={variant}", f"optimizer.lr={rate}"]
            design.train(RATES, factors, [*s.common, *network.overrides, *own])
    for name, depth in s.blocks.items():
        overrides = [*s.looked_into, f"model.depth={depth}"]
        for variant in NAMES:
            asked: Row = {"overrides": [*overrides, f"variant={variant}"], "images": s.images}
            factors = {"network": name, "variant": variant}
            design.measure(START, factors, measurements.at_start, data=s.looked_into, **asked)
            design.measure(AGAIN, factors, measurements.predicted, data=s.looked_into, seeds=s.new_seeds, **asked)
        if name in s.diverge:
            asked = {"overrides": overrides, "rates": s.rates, "shares": s.shares, "steps": s.diverging_steps}
            asked |= {"loss": s.diverging_loss}
            design.measure(DIVERGING, {"network": name}, measurements.diverging, data=s.looked_into, **asked)
    return design


# --- quantities ---


def trains(r: Results, s: Settings) -> Values:
    """1 for each run that trained, 0 for the others, by network, variant and rate."""
    diverged = r.diverged(part=RATES)
    reached = r.of_runs("train_accuracy", part=RATES).map(lambda accuracy: accuracy >= s.trains_accuracy)
    return (0.0 * diverged | reached).without("layers")


def of_trained(r: Results, s: Settings, column: str) -> Values:
    """A column of the runs that trained, in percent."""
    only = 0 * trains(r, s).where(bool)  # a sum has the values that both sides have
    return 100 * r.of_runs(column, part=RATES).without("layers") + only


def of_all_seeds(values: Values, s: Settings) -> Values:
    """The values at those levels at which every seed has one."""
    counts = Counter(label for label, _ in values.data)
    return Values(values.factors, {key: value for key, value in values.data.items() if counts[key[0]] == s.seeds})


def top_rates(r: Results, s: Settings) -> Values:
    """The largest rate that trains, by network and variant."""
    return trains(r, s).along("rate", last_that_trains)


def last_that_trains(rates: list[float], train: list[float]) -> float:
    """The last of the rates that train before the first that does not, going up; the lowest where none trains."""
    sweep = sorted(zip(rates, train, strict=True))
    first = dropwhile(lambda each: not each[1], sweep)
    return max((rate for rate, _ in takewhile(lambda each: each[1], first)), default=sweep[0][0])


def best_rates(r: Results, s: Settings, variant: str) -> dict[str, float]:
    """By network, the rate with the best mean validation accuracy of those at which all seeds train."""
    found = of_all_seeds(of_trained(r, s, "val_accuracy").at(variant=variant), s)
    return {network: values.best("rate") for network, values in found.by("network").items()}


def moments(r: Results, quantity: str, when: str) -> Values:
    """``mean`` or ``variance`` of what enters each norm (or its place), by network, layer x and variant: at
    initialisation, or after the diverging update.
    """
    if when == START:
        return r.measured(quantity, part=START)
    return Values.stacked("variant", {v: r.measured(f"{v}/1/{quantity}", part=DIVERGING) for v in NAMES})


def alive(values: Values) -> Values:
    """Those of layers that did not die."""
    return values.where(lambda value: value > 0)


def dead(r: Results, when: str) -> Values:
    """Percentage of layers that died, by network and variant."""
    return 100 * moments(r, "variance", when).map(lambda value: value == 0).mean("x")


def growth(r: Results, when: str) -> Values:
    """Decades by which the variance grows over the depth, by network and variant: the slope of its log10 against the
    layer, times the layers between the first and the last.
    """

    def over_the_depth(layers: list[float], logs: list[float]) -> float:
        if len(layers) < 2 or not np.isfinite(logs).all():
            return math.nan
        return float(np.polyfit(layers, logs, 1)[0] * (max(layers) - min(layers)))

    return alive(moments(r, "variance", when)).log10().along("x", over_the_depth)


def without_minus_with(values: Values) -> Values:
    """No BN minus BN."""
    return values.at(variant="nobn") - values.at(variant="bn")


def by_variant(values: Values) -> dict[str, Values]:
    """As it is shown beside a difference."""
    return {NAMES[variant]: found for variant, found in values.by("variant").items()}


# --- claims ---


@paper.claim("B1.1", reported=UNREAD)
def larger_rates(r: Results, s: Settings) -> Evidence:
    """Batch normalization enables training with larger learning rates."""
    rates = top_rates(r, s)
    what, unit = "largest rate that trains, BN over no BN", "decades of learning rate"
    evidence = greater(-without_minus_with(rates.log10()), what, unit, margin=s.margin_decades)
    best = trains(r, s).at(variant="nobn").max("rate")
    never = [network for network, found in best.by("network").items() if not any(found)]
    counts = "the lowest of the sweep stands for it, which makes the gain look smaller"
    remark = f"Without BN, no rate trains any seed of {' and '.join(never)}: {counts}." if never else ""
    return replace(evidence.showing(by_variant(rates), "(rate)", ratio=True), remark=remark)


def learned(r: Results, s: Settings) -> Gate:
    """Networks without BN at their best rate; where none trains every seed, the best that each seed reaches.

    The latter was added after the runs, in which no rate did: the gate had no value then, and B1.2 and B1.3 no verdict.
    """
    accuracy, rates = r.accuracy("train_accuracy", part=RATES).at(variant="nobn"), best_rates(r, s, "nobn")
    found = {name: values.without("layers") for name, values in accuracy.by("network").items()}
    at_best = {name: v.at(rate=rates[name]) if name in rates else v.max("rate") for name, v in found.items()}
    return reaches(at_best, s.learned, "training accuracy without BN at its best rate, %")


@paper.claim("B1.2", reported=UNREAD, gate=learned)
def alike_at_the_same_small_rate(r: Results, s: Settings) -> Evidence:
    """At the same small learning rate, networks with and without BN generalize alike."""
    accuracy, rates = of_trained(r, s, "test_accuracy"), best_rates(r, s, "nobn")
    found = {f"{name}, rate {rate:g}": accuracy.at(network=name, rate=rate) for name, rate in rates.items()}
    differences = {name: -without_minus_with(values) for name, values in found.items()}
    evidence = equal(differences, "test accuracy, BN minus no BN, no BN's best rate", POINTS, margin=s.margin_points)
    return replace(evidence, remark=untrained(s, rates))


@paper.claim("B1.3", reported=UNREAD, gate=learned)
def the_rate_is_the_gain(r: Results, s: Settings) -> Evidence:
    """The larger learning rate is what BN's better generalization comes from."""
    accuracy = of_trained(r, s, "test_accuracy").at(variant="bn")
    small, own = (best_rates(r, s, variant) for variant in NAMES)
    gains = {}
    for name in (name for name in small if name in own):
        best, same = (accuracy.at(network=name, rate=rates[name]) for rates in (own, small))
        gains[f"{name}, {own[name]:g} minus {small[name]:g}"] = best - same
    evidence = greater(gains, "BN's test accuracy, best rate minus small", POINTS, margin=s.margin_points)
    return replace(evidence, remark=untrained(s, small))


def untrained(s: Settings, rates: dict[str, float]) -> str:
    """Which networks are missing, in a sentence."""
    missing = [network for network in s.networks if rates and network not in rates]
    return f"Without BN, no rate trains all seeds of {' and '.join(missing)}." if missing else ""


def alive_at(when: str) -> Callable[[Results, Settings], Gate]:
    """A gate: at most a few layers have died, of each network."""

    def gate(r: Results, s: Settings) -> Gate:
        return stays_below(dead(r, when), s.dead_layers, "layers that have died, %")

    return gate


def grows(r: Results, s: Settings, when: str, at: str) -> Evidence:
    """No BN grows more than BN by the decades that are asked for."""
    decades, what = growth(r, when), f"growth of variance with depth, {at}, no BN minus BN"
    evidence = greater(without_minus_with(decades), what, "decades", bar=s.growth_decades)
    return evidence.showing(by_variant(decades)).showing({"dead layers, no BN": dead(r, when).at(variant="nobn")}, "%")


@paper.claim("B2.1", reported=UNREAD, scale="paper", scale_note=AT_START, gate=alive_at(START))
def variance_grows_at_start(r: Results, s: Settings) -> Evidence:
    """At initialisation, the channels' variance grows almost exponentially with depth without BN, and not with it."""
    return grows(r, s, START, "initial")


@paper.claim("B2.2", reported=UNREAD, scale="reduced", scale_note=DIVERGED, gate=alive_at(DIVERGING))
def variance_grows_as_it_diverges(r: Results, s: Settings) -> Evidence:
    """In the update in which a network without BN diverges, its activations grow uncontrollably with depth; BN avoids
    it.
    """
    return grows(r, s, DIVERGING, "diverged")


@paper.claim("B2.3", reported=UNREAD, scale="paper", scale_note=AT_START)
def one_class_whatever_the_image(r: Results, s: Settings) -> Evidence:
    """At initialisation, a network without BN predicts one class whatever the image, so that gradients depend on the
    class; with BN they depend on the image.
    """
    first, majority = (r.measured("majority", part=part) for part in (START, AGAIN))
    what = "images in the most frequent class, no BN minus BN"
    evidence = greater(without_minus_with(majority), what, POINTS, margin=s.margin_images)
    return evidence.showing(by_variant(majority), "%").showing({"first seeds": without_minus_with(first)}, POINTS)


@paper.claim("B2.4", reported=UNREAD, scale="paper", scale_note=AT_START)
def heavier_tails(r: Results, s: Settings) -> Evidence:
    """At initialisation, gradients have heavier tails without BN."""
    kurtosis, what = r.measured("kurtosis", part=START), "kurtosis of the middle layer's gradient, no BN over BN"
    evidence = greater(without_minus_with(kurtosis.log10()), what, "decades", margin=s.margin_decades)
    return evidence.showing(by_variant(kurtosis), "(kurtosis; 3 is normal)", ratio=True)


# --- tables and figures ---


@paper.table(over_seeds=False)
def largest_rates(r: Results, s: Settings) -> list[Row]:
    """Largest learning rate that trains; means and 95% intervals of its log10 over {s.seeds} seeds."""
    rows, trained = [], trains(r, s)
    for network, found in top_rates(r, s).by("network").items():
        row: Row = {"network": network, "layers": s.networks[network].layers}
        highest = max(s.networks[network].rates or s.rates)
        for variant, name in NAMES.items():
            top, at_best = found.at(variant=variant), trained.at(network=network, variant=variant).max("rate")
            row[f"log10 of the largest rate, {name}"] = top.log10().interval()
            row[f"seeds that train at no rate, {name}"] = sum(not each for each in at_best)
            row[f"seeds that train up to the highest, {name}"] = sum(rate == highest for rate in top)
        rows.append(row | {"BN minus no BN, decades": (-without_minus_with(found.log10())).interval()})
    return rows


@paper.table
def accuracy_by_rate(r: Results, s: Settings) -> list[Row]:
    """Test accuracy of the runs that train, by learning rate."""
    rows, accuracy = [], of_trained(r, s, "test_accuracy")
    for network, rate in trains(r, s).by("network", "rate"):
        row: Row = {"network": network, "rate": rate}
        found = accuracy.at(network=network, rate=rate)
        for variant, name in NAMES.items():
            row[f"test accuracy, {name}, %"] = found.at(variant=variant).interval()
            row[f"seeds that train, {name}"] = len(found.at(variant=variant))
        rows.append(row | {"BN minus no BN, points": (-without_minus_with(found)).interval()})
    return rows


@paper.table
def inside(r: Results, s: Settings) -> list[Row]:
    """Inside the networks."""
    columns = {
        "growth of the variance at initialisation, decades": growth(r, START),
        "growth of the variance after the diverging update, decades": growth(r, DIVERGING),
        "layers that died in the diverging update, %": dead(r, DIVERGING),
        "images in the most frequent class, %": r.measured("majority", part=START),
        "kurtosis of the middle layer's gradient": r.measured("kurtosis", part=START),
        "its standard deviation": r.measured("deviation", part=START),
    }
    rate = r.measured("rate", part=DIVERGING)
    return [
        {"network": network, "norm": NAMES[variant]}
        | {name: values.at(network=network, variant=variant).interval() for name, values in columns.items()}
        | {"diverging rate": rate.at(network=network).interval()}
        for network, variant in r.measured("majority", part=START).by("network", "variant")
    ]


@paper.figure
def rates(r: Results, s: Settings) -> Figure | None:
    """Top left: the largest learning rate that trains, by number of layers (lines: fully connected networks; diamonds:
    others); where none trains, the lowest. Means are geometric. Others: test accuracy by rate; a cross is one run where
    not all seeds train.
    """
    found, accuracy, look = top_rates(r, s).log(), of_trained(r, s, "test_accuracy"), looks(NAMES)
    if not found:
        return None
    networks = {network: s.networks[network] for network in found.levels("network")}
    connected = [name for name, network in networks.items() if "model=paper_mlp" in network.overrides]
    figure, (first, *others) = panels(3, -(-(1 + len(networks)) // 3), height=1.9)
    limits = 0.7 * min(s.rates), 1.4 * max(s.rates)
    for variant, lined in look.items():
        alone = lined._replace(dashes="none", marker="D")
        for names, style in ((connected, lined), ([name for name in networks if name not in connected], alone)):
            at = {networks[name].layers: found.at(network=name, variant=variant).interval() for name in names}
            curve(first, at, style, bars=True, log=True)
    first.set(xscale="log", yscale="log", xlabel="layers", ylabel="learning rate", title="largest rate that trains")
    first.set_ylim(limits)
    ticks(first, sorted({network.layers for network in networks.values()}))
    for axes, network in zip(others, networks, strict=False):
        values = accuracy.at(network=network)
        lines(axes, of_all_seeds(values, s), "rate", "variant", look)
        for (variant, rate), some in values.by("variant", "rate").items():
            if len(some) < s.seeds:
                axes.plot([rate] * len(some), list(some), "x", color=look[variant].color, markersize=3.5)
        for variant in (each for each in NAMES if not values.at(variant=each)):
            axes.text(0.05, 0.08, f"{NAMES[variant]} trains at no rate", transform=axes.transAxes, fontsize=7)
        axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy, %", title=network)
        axes.set(xlim=limits, ylim=(0, 103))
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
    for axes in others[len(networks) :]:
        axes.set_visible(False)
    legend(figure, of=first)
    return figure


@paper.figure
def depth(r: Results, s: Settings) -> Figure | None:
    """Absolute mean and variance of a channel, averaged over channels, of what enters each norm (without BN: its
    place): at initialisation, and after the update in which the network without BN diverges. Means are geometric, over
    layers that did not die; wide bands leave the axes.
    """
    columns = {
        "|mean|, initial": moments(r, "mean", START),
        "variance, initial": moments(r, "variance", START),
        "variance, diverged": moments(r, "variance", DIVERGING),
    }
    networks = columns["|mean|, initial"].levels("network")
    if not networks:
        return None
    figure, axes = panels(3, len(networks), height=2.0, sharex="row")
    for each, (network, (title, values)) in zip(axes, product(networks, columns.items()), strict=True):
        found = alive(values).at(network=network)
        each.set_visible(bool(found))  # not every network was made to diverge
        lines(each, found, "x", "variant", looks(NAMES), log=True, marks=False)
        as_high_as_lines(each, room=5)
        each.set(xlabel="layer", xlim=(0.5, None))
        each.set_title(f"{network}: {title}", fontsize=7)
        each.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        each.yaxis.set_major_locator(LogLocator(numticks=6))
        each.yaxis.set_minor_locator(NullLocator())
    legend(figure, of=axes[0])
    return figure


@paper.figure(over_seeds=False)
def diverging(r: Results, s: Settings) -> Figure | None:
    """No BN: means and variances of the channels while the diverging update is applied, from 0 to 100%; means of log10
    over {s.seeds} seeds. White: the layer has died in all of them.
    """
    networks = r.measured("rate", part=DIVERGING).levels("network")
    if not networks:
        return None
    figure, axes = panels(2, len(networks), height=2.1)
    for each, (network, quantity) in zip(axes, product(networks, ("mean", "variance")), strict=True):
        applied = {share: r.measured(f"nobn/{share:g}/{quantity}", part=DIVERGING) for share in s.shares}
        found = Values.stacked("share", applied).at(network=network)
        layers, logs = found.levels("x"), alive(found).log10().by("share", "x")
        means = [[logs.get((share, x), Values()).interval().mean for x in layers] for share in s.shares]
        image = each.pcolormesh(layers, 100 * np.array(s.shares), means, rasterized=True)
        each.grid(visible=False)
        each.set(xlabel="layer", ylabel="update applied, %")
        each.set_title(f"{network}: {'|mean|' if quantity == 'mean' else quantity}", fontsize=8)
        each.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.colorbar(image, ax=each, pad=0.02).set_label("log10")
    return figure


@paper.figure(over_seeds=False)
def gradients(r: Results, s: Settings) -> Figure | None:
    """Gradients at initialisation. Left: the derivative of the loss by each logit, a row for each of 50 images sorted
    by class (seed 0). Right: density of the gradient by the weights of the middle layer, in units of its standard
    deviation, on a logarithmic axis, and a normal distribution in grey; means over {s.seeds} seeds.
    """
    densities = r.measured("density", part=START).by("network")
    if not densities:
        return None
    figure, axes = panels(3, len(densities), height=2.3, width_ratios=(1, 1, 1.6))
    x = np.linspace(-4, 4, 81)
    for right, values in zip(axes[2::3], densities.values(), strict=True):
        right.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=GREY, linewidth=0.8, label="normal")
        for variant, look in looks(NAMES).items():
            found = values.at(variant=variant).intervals("x")
            means = [interval.mean or math.nan for interval in found.values()]  # 0 has no logarithm
            right.plot(list(found), means, color=look.color, linestyle=look.dashes, label=look.label)
        right.set(yscale="log", ylim=(1e-5, 10), ylabel="density")
        right.set(xlim=(-8, 8), xlabel="gradient / its standard deviation")
    pictures = [each for each in axes if each not in axes[2::3]]
    for each, (network, (variant, name)) in zip(pictures, product(densities, NAMES.items()), strict=True):
        logits = r.measured("logit_gradient", part=START, network=network, variant=variant)
        image = each.imshow(np.reshape(list(logits), (-1, 10)), aspect="auto", cmap="PuOr", vmin=-1, vmax=1)
        each.grid(visible=False)
        each.set(xlabel="class", ylabel="image", xticks=[0, 3, 6, 9])
        each.set_title(f"{network}, {name}", fontsize=7)
        figure.colorbar(image, ax=each, pad=0.02, shrink=0.8)
    legend(figure, of=axes[2])
    return figure
