"""Santurkar, Tsipras, Ilyas & Madry, How Does Batch Normalization Help Optimization? (NeurIPS 2018).

https://arxiv.org/abs/1805.11604

Differences from the paper
- The VGG is small and narrow (six convolutions of 3 x 3, one hidden linear layer) and trains for hundreds of steps; the
  paper has a standard VGG and 15,000 steps. What the paper says of early training can be seen here, and only the
  beginning of the rest. A run that diverges counts as chance.
- Learning rates, batch size, Glorot's initial weights, plain SGD and no augmentation are the paper's. Layers that no
  norm follows have biases.
- The paper's text says which range the steps along the gradient span, not how many there are; beta is the largest of
  their ratios. All are measured along one trajectory, on its own batches, in training mode, without touching the
  running statistics. Steps at which a measure is zero or not finite have no ratio and are left out.
- A layer's internal covariate shift is measured by the gradient of its weight; the earlier layers move with all their
  parameters, gamma and beta among them.
- A distribution is that of a single activation (channel and location) over validation images in training mode. Its
  stability is how far it moves from one measurement to the next, in its own standard deviations; the paper shows
  pictures.
- The noise is drawn for each activation, a channel and location, and follows gamma and beta.
- The average of an lp norm is taken over the values of a channel that BN has its statistics from: the mean of |x|, the
  root of the mean of x squared, or the largest |x|; each before the mean is subtracted.
- The loss of the deep linear network is the sum over samples and outputs: with their mean, a learning rate of 1e-6
  would leave the network without BN where it is. A norm follows each layer but the last. A network that diverges
  counts with its first loss.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel

from bnrepro.claims import (
    Design,
    Evidence,
    Paper,
    Preset,
    Results,
    Row,
    Values,
    equal,
    greater,
    not_lower,
    not_testable,
)
from bnrepro.claims.plots import legend, lines, looks, panels
from bnrepro.experiments.santurkar2018 import measurements
from bnrepro.plots.style import COLUMN, label, log_ticks

BOTH = ("nobn", "bn")
LP = ("l1norm", "l2norm", "linfnorm")
NAMES = {variant: label(variant) for variant in BOTH} | {
    "noisybn": "noisy BN", "noise": "no BN, same noise", "l1norm": "l1 norm", "l2norm": "l2 norm",
    "linfnorm": "maximum norm",
}  # fmt: skip
LOOKS = looks(NAMES)
POINTS = "percentage points"
DECADES = "decades"
UNREAD = "no number read in the text"
TWO_ORDERS = "close to two orders of magnitude"
REVISED = "Figure 2 shows training accuracy, and appendix A.2.1 draws the noise per image, channel and location"
CHANCE = 10.0  # %: ten classes
MEASURES = {"loss_range": "range of the loss", "change_high": "change of the gradient", "beta": "effective beta"}
STABILITY = "140 of 15,000 steps, a small VGG at quarter width"
LANDSCAPE = "200 of 15,000 steps, a small VGG at quarter width"
DEEP_LINEAR = "the paper's network, rates and steps"


class Along(BaseModel, extra="forbid"):
    every: int  # steps between measurements
    layers: list[int]  # whose internal covariate shift is measured, from 1
    along: list[float]  # steps along the gradient, in learning rates

    @property
    def reach(self) -> str:
        """For captions."""
        return f"{min(self.along):g} to {max(self.along):g}"


class Landscape(Along):
    steps: int


class DeepLinear(Along):
    depth: int
    width: int
    samples: int


class Distributions(BaseModel, extra="forbid"):
    every: int  # steps between measurements
    layers: list[int]  # whose densities are drawn, from 1
    steps: int
    images: int
    units: int  # activations per layer
    ridges: int  # times at which densities are drawn


class Settings(Preset):
    rates: list[float]
    network: list[str]
    landscape: Landscape
    distributions: Distributions
    deep_linear: DeepLinear
    deep_linear_runs: list[tuple[float, dict[str, int]]]
    early: float
    close_to_two: float
    negligible_points: float
    chance_points: float
    negligible_factor: float
    marginal_factor: float
    similar_factor: float
    similar_cosine: float
    cosine_near: float

    @property
    def rate(self) -> float:
        """Of everything but S1."""
        return self.rates[0]

    @property
    def slow(self) -> float:
        """The smallest rate of deep linear networks."""
        return min(rate for rate, _ in self.deep_linear_runs)


paper = Paper(__name__, Settings, scale="reduced", scale_note="382 of 15,000 steps, a small VGG at quarter width")


@paper.design
def runs(s: Settings) -> Design:
    """Curves without and with BN at all rates, and of noise and other norms at the first; what is measured there; and
    deep linear networks.
    """
    design = Design(s.seeds)

    def network(variant: str, rate: float = s.rate) -> list[str]:
        return [*s.network, f"variant={variant}", f"optimizer.lr={rate}"]

    for rate in s.rates:
        for variant in NAMES if rate == s.rate else BOTH:
            design.train("curves", {"variant": variant, "rate": rate}, network(variant, rate))
    for variant in BOTH:
        asked = (measurements.landscape, s.landscape.model_dump())
        design.train("landscape", {"variant": variant, "rate": s.rate}, network(variant), asked, record=False)
    # Densities of single activations are of one seed: they have no mean.
    for variant in (*BOTH, "noisybn"):
        for seeds, ridges in ((design.seeds[:1], s.distributions.ridges), (design.seeds[1:], 0)):
            asked = (measurements.distributions, s.distributions.model_dump() | {"ridges": ridges})
            design.train("distributions", {"variant": variant}, network(variant), asked, seeds=seeds, record=False)
    for rate, variants in s.deep_linear_runs:
        for variant, steps in variants.items():
            of: dict[str, Any] = {"variant": variant, "rate": rate}
            design.measure("deep_linear", of, measurements.deep_linear, **s.deep_linear.model_dump(), **of, steps=steps)
    return design


# --- quantities, by variant ---


def accuracy(r: Results, column: str = "test_accuracy", **of: float) -> Values:
    """In percent at the end of training; that of chance where the run diverged."""
    diverged, ends = r.diverged(part="curves", **of), 100 * r.of_runs(column, part="curves", **of)
    return Values(diverged.factors, (CHANCE * diverged.where(bool)).data | ends.data)


def over_steps(r: Results, quantity: str, part: str) -> Values:
    """The mean of a measurement over the steps at which it is finite."""
    return r.measured(quantity, part=part).where(math.isfinite).mean("x")


def last_losses(r: Results, rate: float, *variants: str) -> Values:
    """Of deep linear networks, at the last step that all ``variants`` have; the first loss where one diverged."""
    of = {"part": "deep_linear", "rate": rate, "variant": list(variants)}
    loss, diverged = r.measured("loss", **of), r.measured("diverged", **of)
    step = min((max(each.levels("x")) for each in loss.by("variant").values()), default=0)
    at_first = {key: value for key, value in loss.at(x=0).data.items() if key in diverged.data}
    return Values(("variant",), loss.at(x=step).data | at_first)


def minus(values: Values, one: str, other: str) -> Values:
    """Of one variant minus another."""
    return values.at(variant=one) - values.at(variant=other)


def over(values: Values, one: str, other: str) -> Values:
    """log10 of one variant's over another's."""
    return (values.at(variant=one) / values.at(variant=other)).log10()


def ratios(r: Results, quantity: str, one: str = "nobn", other: str = "bn", **of: str | float) -> Values:
    """`over`, of a measure of the landscape, at each step at which both are positive and finite."""
    if quantity == "loss_range":
        values = r.measured("loss_high", **of) - r.measured("loss_low", **of)
    else:
        values = r.measured(quantity, **of)
    return over(values, one, other).where(math.isfinite)


def early(values: Values, s: Settings) -> Values:
    """Those of the first steps of the landscape."""
    return values.at(x=[x for x in values.levels("x") if x < s.early * s.landscape.steps])


def arms(values: Values, *variants: str, of: str = "") -> dict[str, Values]:
    """The values of each of ``variants``, to be shown beside."""
    return {of + ("BN" if variant == "bn" else NAMES[variant]): values.at(variant=variant) for variant in variants}


def decades(factor: float) -> float:
    """A factor as a margin."""
    return round(math.log10(factor), 3)


# --- claims ---


def gain(r: Results, s: Settings, column: str, name: str) -> Evidence:
    """Accuracy with BN minus without, at each rate."""
    found = accuracy(r, column)
    evidence = greater(minus(found, "bn", "nobn"), f"{name}, BN minus no BN", POINTS, margin=s.negligible_points)
    return evidence.showing(arms(found, "bn", "nobn"), "%")


@paper.claim(
    "S1",
    where="Figure 1 (a, b)",
    reported="83% with BN and 80% without after 15,000 steps; 92% and 88% with augmentation",
)
def bn_is_more_accurate(r: Results, s: Settings) -> Evidence:
    """A VGG on CIFAR-10, trained by plain SGD, has a higher test accuracy with BN, at either learning rate."""
    return gain(r, s, "test_accuracy", "test accuracy")


@paper.claim("S1.2", where="Figure 1", reported=UNREAD)
def bn_trains_faster(r: Results, s: Settings) -> Evidence:
    """The VGG also trains faster with BN."""
    return gain(r, s, "train_accuracy", "training accuracy over the last batches")


@paper.claim("S2", where="Figure 1 (c)", reported=UNREAD, scale_note=STABILITY)
def stability_differs_marginally(r: Results, s: Settings) -> Evidence:
    """The difference in distributional stability of the activations, with BN and without, seems marginal."""
    shift, what = over_steps(r, "shift", "distributions"), "log10 of how far distributions move, BN over no BN"
    evidence = equal(over(shift, "bn", "nobn"), what, DECADES, margin=decades(s.marginal_factor))
    return evidence.showing(arms(shift, "bn", "nobn"), "standard deviations")


@paper.claim("S3", where="section 2.2, Figure 2", reported=UNREAD, withdrawn=REVISED)
def noisy_bn_is_like_bn(r: Results, s: Settings) -> Evidence:
    """BN followed by noise whose distribution changes at each step performs nearly as well as BN."""
    test, training = (accuracy(r, column, rate=s.rate) for column in ("test_accuracy", "train_accuracy"))
    difference, shown = minus(test, "noisybn", "bn"), ("noisybn", "bn", "nobn")
    evidence = equal(difference, "test accuracy, noisy BN minus BN", POINTS, margin=s.negligible_points)
    evidence = evidence.showing(arms(test, *shown, of="test, ") | arms(training, *shown, of="training, "), "%")
    remark = "At test the noise is off, while the running statistics of later layers are those with the noise."
    return replace(evidence, remark=remark)


@paper.claim("S3.2", where="Figure 2", reported=UNREAD, withdrawn=REVISED)
def noisy_bn_is_better_than_none(r: Results, s: Settings) -> Evidence:
    """BN followed by such noise performs better than no BN."""
    difference = minus(accuracy(r, rate=s.rate), "noisybn", "nobn")
    return greater(difference, "test accuracy, noisy BN minus no BN", POINTS, margin=s.negligible_points)


@paper.claim("S3.3", where="section 2.2", reported=UNREAD)
def noise_alone_prevents_training(r: Results, s: Settings) -> Evidence:
    """The same amount of noise on the activations of the network without BN prevents it from training entirely."""
    training = accuracy(r, "train_accuracy", rate=s.rate) - CHANCE
    noise, without = training.at(variant="noise"), training.at(variant="nobn")
    if without.interval().low <= s.chance_points:
        untrained = not_testable("The network has hardly trained without the noise either, so nothing was prevented.")
        return untrained.showing({"noise": noise, "no noise": without}, f"{POINTS} above chance")
    evidence = equal(noise, "training accuracy with noise and no BN, minus chance", POINTS, margin=s.chance_points)
    return evidence.showing(arms(accuracy(r, rate=s.rate), "noise", "nobn", of="test, "), "%")


@paper.claim("S3.4", where="section 2.2, Figure 2", reported=UNREAD, scale_note=STABILITY)
def noise_unsettles_distributions(r: Results, s: Settings) -> Evidence:
    """With this noise after BN the distributions are less stable than in the network without BN."""
    shift, what = over_steps(r, "shift", "distributions"), "log10 of how far distributions move, noisy BN over no BN"
    evidence = greater(over(shift, "noisybn", "nobn"), what, DECADES, margin=decades(s.marginal_factor))
    return evidence.showing(arms(shift, "noisybn", "nobn"), "standard deviations")


@paper.claim("S4", where="section 2.3, Figure 3", reported=UNREAD, scale_note=LANDSCAPE)
def covariate_shift_is_no_smaller(r: Results, s: Settings) -> Evidence:
    """With BN, the VGG's internal covariate shift (norm of the difference between a layer's gradients before and after
    the earlier layers are updated) is similar or worse.
    """
    norms = {
        f"layer {layer}": ratios(r, f"difference_{layer}", "bn", "nobn", part="landscape").mean("x")
        for layer in s.landscape.layers
    }
    margin = decades(s.similar_factor)
    return not_lower(norms, "log10 of the norm of the difference, BN over no BN", DECADES, margin=margin)


@paper.claim("S4.2", where="Figure 3", reported=UNREAD, scale_note=LANDSCAPE)
def gradients_are_no_closer(r: Results, s: Settings) -> Evidence:
    """The cosine between these gradients is similar or worse with BN, too."""
    cosines = {layer: over_steps(r, f"cosine_{layer}", "landscape") for layer in s.landscape.layers}
    differences = {f"layer {layer}": minus(cosine, "nobn", "bn") for layer, cosine in cosines.items()}
    return not_lower(differences, "mean cosine of the two gradients, no BN minus BN", "", margin=s.similar_cosine)


@paper.claim("S4.3", where="section 2.3, Figure 3", reported=UNREAD, scale="paper", scale_note=DEEP_LINEAR)
def deep_linear_gradients(r: Results, s: Settings) -> Evidence:
    """In deep linear networks there is almost no internal covariate shift without BN, and with BN the two gradients are
    almost uncorrelated.
    """
    cosines = {f"layer {layer}": over_steps(r, f"cosine_{layer}", "deep_linear") for layer in s.deep_linear.layers}
    without, with_bn = ({name: each.at(variant=variant) for name, each in cosines.items()} for variant in BOTH)
    what = "mean cosine of the two gradients"
    near_one = greater(without, what, "", bar=1 - s.cosine_near, condition="no BN")
    return near_one & equal(with_bn, what, "", margin=s.cosine_near, condition="BN")


def smoother(r: Results, s: Settings, quantity: str) -> Evidence:
    """A measure of the landscape without BN over that with it, averaged over the steps."""
    found, estimand = ratios(r, quantity, part="landscape"), f"log10 of the {MEASURES[quantity]}, no BN over BN"
    evidence = greater(found.mean("x"), estimand, DECADES, margin=decades(s.negligible_factor))
    return evidence.showing({"early in training": early(found, s).mean("x")})


@paper.claim("S5", where="section 3.2, Figure 4 (a)", reported=UNREAD, scale_note=LANDSCAPE)
def loss_varies_less(r: Results, s: Settings) -> Evidence:
    """The loss varies less along the gradient with BN."""
    return smoother(r, s, "loss_range")


@paper.claim("S6", where="Figure 4 (b)", reported=UNREAD, scale_note=LANDSCAPE)
def gradient_is_more_predictive(r: Results, s: Settings) -> Evidence:
    """The gradient is more predictive with BN: it changes less along its own direction."""
    return smoother(r, s, "change_high")


@paper.claim("S6.2", where="Figure 4 (b)", quote=TWO_ORDERS, reported=TWO_ORDERS, scale_note=LANDSCAPE)
def early_by_two_orders(r: Results, s: Settings) -> Evidence:
    """Early in training the change of the gradient differs by close to two orders of magnitude."""
    largest = early(ratios(r, "change_high", part="landscape"), s).max("x")
    return greater(largest, "largest early log10 of the gradient's change, no BN over BN", DECADES, bar=s.close_to_two)


@paper.claim("S7", where="Figure 4 (c)", reported=UNREAD, scale_note=LANDSCAPE)
def beta_is_smaller(r: Results, s: Settings) -> Evidence:
    """The effective beta-smoothness (largest change of the gradient over the distance moved) is better with BN."""
    return smoother(r, s, "beta")


@paper.claim("S8", where="section 3.3, Figure 5", reported=UNREAD)
def lp_norms_are_as_good(r: Results, s: Settings) -> Evidence:
    """Normalization by the average l1, l2 or maximum norm, which does not fix the second moment, performs comparably
    to BN.
    """
    test = accuracy(r, rate=s.rate)
    differences = {NAMES[variant]: minus(test, variant, "bn") for variant in LP}
    evidence = not_lower(differences, "test accuracy, each norm minus BN", POINTS, margin=s.negligible_points)
    return evidence.showing(arms(test, "bn", "nobn", of="test, "), "%")


@paper.claim("S8.2", where="section 3.3", reported=UNREAD, scale_note="the paper's network, 2,000 of 10,000 steps")
def l1_is_better_in_deep_linear(r: Results, s: Settings) -> Evidence:
    """For deep linear networks l1 normalization performs even better than BN."""
    rate = next(rate for rate, variants in s.deep_linear_runs if "l1norm" in variants)
    ratio = over(last_losses(r, rate, "bn", "l1norm"), "bn", "l1norm")
    return greater(ratio, "log10 of the loss, BN over l1 norm", DECADES, margin=decades(s.negligible_factor))


@paper.claim("S9", where="section 2.3 and appendix", reported=UNREAD, scale="paper", scale_note=DEEP_LINEAR)
def deep_linear_loss_is_lower(r: Results, s: Settings) -> Evidence:
    """A deep linear network of 25 layers, trained by full-batch gradient descent, reaches a lower loss with BN."""
    loss = Values.stacked("rate", {rate: last_losses(r, rate, *BOTH) for rate, _ in s.deep_linear_runs})
    ratio, margin = over(loss, "nobn", "bn"), decades(s.negligible_factor)
    evidence = greater(ratio, "log10 of the last loss, no BN over BN", DECADES, margin=margin)
    return evidence.showing(arms(loss, "bn", "nobn"), "summed squared error")


@paper.claim("S9.2", where="section 3.2 and appendix", reported=UNREAD, scale="paper", scale_note=DEEP_LINEAR)
def deep_linear_is_smoother(r: Results, s: Settings) -> Evidence:
    """The landscape of deep linear networks is smoother with BN, too: loss, gradient predictiveness and beta."""
    found = {name: ratios(r, quantity, part="deep_linear").mean("x") for quantity, name in MEASURES.items()}
    return greater(found, "log10 of the measure, no BN over BN", DECADES, margin=decades(s.negligible_factor))


# --- tables and figures ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Accuracies at the end of training."""
    found = {f"{split} accuracy, %": accuracy(r, f"{split}_accuracy") for split in ("train", "val", "test")}
    return [
        {"norm": variant, "learning rate": rate}
        | {name: values.at(variant=variant, rate=rate).interval() for name, values in found.items()}
        | {"diverged": int(sum(diverged))}
        for (variant, rate), diverged in r.diverged(part="curves").by("variant", "rate").items()
    ]


@paper.table
def measures(r: Results, s: Settings) -> list[Row]:
    """Measures without BN over those with BN: log10, averaged over the steps."""
    rows = []
    networks = [("landscape", "VGG", s.rate, s.landscape.layers)]
    networks += [("deep_linear", "deep linear", rate, s.deep_linear.layers) for rate, _ in s.deep_linear_runs]
    for part, network, rate, layers in networks:
        quantities = {"loss": "loss", **MEASURES, "gradient": "norm of the gradient"}
        quantities |= {f"difference_{layer}": f"gradient difference, layer {layer}" for layer in layers}
        for quantity, name in quantities.items():
            found = ratios(r, quantity, part=part, rate=rate).mean("x").interval()
            rows.append({"network": network, "learning rate": rate, "measure": name, "log10 of no BN over BN": found})
    return rows


@paper.figure
def training(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 1 (a, b): accuracy on the training batches since the point before, and on the validation
    set, at each learning rate. A last point after few batches is left out; runs that diverged are drawn up to there.
    """
    if not r.curves:
        return None
    figure, axes = panels(len(s.rates), 2, height=1.8, sharex=True, sharey=True)
    places = [(split, rate) for split in ("train", "val") for rate in s.rates]
    for each, (split, rate) in zip(axes, places, strict=True):
        draw_accuracies(each, r, split, rate, *BOTH)
        each.label_outer()
        if split == "train":
            each.set_title(f"learning rate {rate:g}", fontsize=8)
    legend(figure, of=axes[0])
    return figure


@paper.figure
def noisy(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 2: BN followed by noise whose distribution changes at each step, and the same noise without
    BN, at learning rate {s.rate:g}. There is no noise at validation.
    """
    if not r.curves:
        return None
    figure, axes = panels(2, sharey=True)
    for each, split in zip(axes, ("train", "val"), strict=True):
        draw_accuracies(each, r, split, s.rate, *BOTH, "noisybn", "noise")
    legend(figure, of=axes[0])
    return figure


@paper.figure
def distributions(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figures 1 (c) and 2: densities of the input of one activation (channel and location) over the
    first {s.distributions.images} validation images in training mode, at several steps (one seed). Below: how far a
    distribution moves from one measurement to the next, in its own standard deviations, averaged over sampled
    activations of all layers; means are geometric.
    """
    shifts = r.measured("shift", part="distributions")
    if not shifts:
        return None
    variants, layers = (*BOTH, "noisybn"), s.distributions.layers
    figure = Figure(figsize=(2 * COLUMN, 2.0 + 1.5 * len(layers)), layout="constrained")
    grid = figure.add_gridspec(len(layers) + 1, len(variants), height_ratios=[1.2] * len(layers) + [1])
    for row, layer in enumerate(layers):
        for column, variant in enumerate(variants):
            axes = figure.add_subplot(grid[row, column])
            draw_ridges(axes, r, variant, layer)
            axes.set_title(f"{NAMES[variant]}, layer {layer}", fontsize=8)
            axes.set(xlabel="input of an activation", ylabel="step" if column == 0 else "")
    axes = figure.add_subplot(grid[len(layers), :])
    draw_log(axes, shifts, *variants, marks=True)
    axes.set(xlabel="step", ylabel="shift, std. dev.")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.3)  # room for the legend
    axes.legend(ncols=3, loc="upper right", handlelength=2.6)
    return figure


@paper.figure
def covariate_shift(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 3: a layer's gradient before and after all earlier layers have made their step, on the same
    batch, at learning rates {s.rate:g} and {s.slow:g}. Above: the cosine of the two. Below: the norm of their
    difference; means are geometric. Wide bands may leave the axes.
    """
    cells = [("landscape", s.rate, layer, f"VGG, layer {layer}") for layer in s.landscape.layers]
    cells += [("deep_linear", s.slow, layer, f"deep linear, layer {layer}") for layer in s.deep_linear.layers]
    figure, axes = panels(len(cells), 2, height=1.7, sharex="col")
    for (part, rate, layer, title), top, bottom in zip(cells, axes, axes[len(cells) :], strict=False):
        of = {"part": part, "rate": rate, "variant": BOTH}
        cosine = r.measured(f"cosine_{layer}", **of).where(math.isfinite)
        if not cosine:
            return None
        lines(top, cosine, "x", "variant", LOOKS, marks=False)
        top.set(ylim=(-1.05, 1.05), ylabel="cosine" if top is axes[0] else "")
        top.set_title(title, fontsize=8)
        draw_log(bottom, r.measured(f"difference_{layer}", **of), *BOTH)
        bottom.set(xlabel="step", ylabel="norm of difference" if top is axes[0] else "")
        bottom.xaxis.set_major_locator(MaxNLocator(3))
    legend(figure, of=axes[0])
    return figure


@paper.figure
def landscape(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 4: along the gradient, with steps of {s.landscape.reach} learning rates ({s.rate:g}), the
    loss, the change of the gradient, and its largest change over the distance. Bands of the first two reach from the
    lowest value along the gradient to the highest, each averaged over seeds; that of the third is an interval, and may
    leave the axes. Means are geometric.
    """
    figure, axes = panels(3, height=2.5)
    if not draw_along(axes, r, part="landscape"):
        return None
    legend(figure, of=axes[0])
    return figure


@paper.figure
def deep_linear(r: Results, s: Settings) -> Figure | None:
    """As the paper's figures of deep linear networks ({s.deep_linear.depth} layers of {s.deep_linear.width} x
    {s.deep_linear.width}, {s.deep_linear.samples:,} samples, full-batch gradient descent): the loss, and along the
    gradient, with steps of {s.deep_linear.reach} learning rates, the loss, the change of the gradient, and its largest
    change over the distance. Bands of the second and third reach from the lowest value along the gradient to the
    highest, each averaged over seeds; the others are intervals, and may leave the axes. Means are geometric.
    """
    figure, axes = panels(4, len(s.deep_linear_runs), height=1.9)
    for row, (rate, _) in enumerate(s.deep_linear_runs):
        first, *others = axes[4 * row : 4 * row + 4]
        draw_log(first, r.measured("loss", part="deep_linear", rate=rate), *BOTH, "l1norm")
        if not draw_along(others, r, part="deep_linear", rate=rate):
            return None
        first.set_title("loss", fontsize=8)
        first.set_ylabel(f"rate {rate:g}")
    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(3))
        each.set_xlabel("step" if each in axes[-4:] else "")
    legend(figure)
    return figure


@paper.figure
def norms(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 5: normalization by the average of other norms. Left: accuracy on the training batches,
    learning rate {s.rate:g}. Right: loss of the deep linear network; means are geometric, and wide bands may
    leave the axes.
    """
    if not r.curves:
        return None
    figure, (left, right) = panels(2)
    draw_accuracies(left, r, "train", s.rate, *BOTH, *LP)
    left.set_title("VGG", fontsize=8)
    rate, end = next((rate, steps["l1norm"]) for rate, steps in s.deep_linear_runs if "l1norm" in steps)
    loss = r.measured("loss", part="deep_linear", rate=rate)
    draw_log(right, loss.at(x=range(end + 1)), *BOTH, "l1norm")
    right.set_title(f"deep linear network, rate {rate:g}", fontsize=8)
    right.set(xlabel="step", ylabel="loss")
    legend(figure, columns=5, of=left)
    return figure


# --- what figures draw with ---


def draw_accuracies(axes: Axes, r: Results, split: str, rate: float, *variants: str) -> None:
    """Accuracy in percent against steps."""
    found = 100 * r.curve(f"{split}_accuracy", part="curves", rate=rate)
    steps = found.levels("step")
    if len(steps) > 2 and steps[-1] - steps[-2] < steps[1] - steps[0]:
        steps.pop()  # the end: training accuracy over the few batches since the point before
    lines(axes, found.at(step=steps, variant=variants), "step", "variant", LOOKS, marks=False)
    axes.set(xlabel="step", ylabel=f"{'training' if split == 'train' else 'validation'} accuracy, %", ylim=(0, 100))


def draw_ridges(axes: Axes, r: Results, variant: str, layer: int) -> None:
    """Densities at several steps, from bottom to top."""
    prefix, color = f"density_{layer}_", LOOKS[variant].color
    names = {row["quantity"] for row in r.measurements if row["quantity"].startswith(prefix)}
    steps = sorted(int(name.removeprefix(prefix)) for name in names)
    curves = [r.measured(f"{prefix}{step}", part="distributions", variant=variant) for step in steps]
    top = max((value for curve in curves for value in curve), default=1.0) or 1.0
    for place, curve in reversed(list(enumerate(curves))):
        height = place + 1.8 * np.array(list(curve)) / top
        axes.fill_between(curve.levels("x"), place, height, color=color, alpha=0.25, linewidth=0, zorder=-place)
        axes.plot(curve.levels("x"), height, color=color, linewidth=0.8, zorder=-place)
    axes.set_yticks(range(len(steps)), [str(step) for step in steps])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False)


def draw_along(axes: list[Axes], r: Results, **of: Any) -> bool:
    """The three measures with BN and without, in three panels; returns whether there are any."""
    beta = r.measured("beta", **of)
    draw_spread(axes[0], r, "loss", **of)
    draw_spread(axes[1], r, "change", **of)
    draw_log(axes[2], beta, *BOTH)
    for each, title in zip(axes, ("loss along gradient", "gradient change", "effective beta"), strict=True):
        each.set_xlabel("step")
        each.set_title(title, fontsize=8)
    return bool(beta)


def draw_spread(axes: Axes, r: Results, name: str, **of: Any) -> None:
    """From the mean of the lowest values along the gradient to that of the highest, by step."""
    for variant in BOTH:
        look, found = LOOKS[variant], (r.measured(f"{name}_{end}", variant=variant, **of) for end in ("low", "high"))
        low, high = (values.log().where(math.isfinite).intervals("x") for values in found)
        steps = [x for x in low if x in high]
        bottom, top = (np.exp([end[x].mean for x in steps]) for end in (low, high))
        about: dict[str, Any] = {"color": look.color, "linestyle": look.dashes, "linewidth": 0.8}
        axes.fill_between(steps, bottom, top, color=look.color, alpha=0.25, linewidth=0)
        axes.plot(steps, bottom, label=look.label, **about)
        axes.plot(steps, top, **about)
    as_high_as_lines(axes)


def draw_log(axes: Axes, values: Values, *variants: str, marks: bool = False) -> None:
    """Means of logarithms by step; values without a logarithm are left out."""
    values = values.at(variant=variants).where(lambda value: 0 < value < math.inf)
    lines(axes, values, "x", "variant", LOOKS, log=True, marks=marks)
    as_high_as_lines(axes)


def as_high_as_lines(axes: Axes) -> None:
    """A logarithmic axis that leaves out bands: one of few seeds that differ by decades would flatten the lines."""
    values = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata()) if 0 < y < math.inf]
    axes.set_yscale("log")
    if values:
        room = max(1.2, (max(values) / min(values)) ** 0.15)
        axes.set_ylim(min(values) / room, max(values) * room)
        log_ticks(axes)
