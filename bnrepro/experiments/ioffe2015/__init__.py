"""Ioffe & Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift
(ICML 2015).

https://arxiv.org/abs/1502.03167

Differences from the paper
- Figure 1: the paper states neither the learning rate nor the optimiser nor the standard deviation of the initial
  weights. Here it is plain SGD, and rate and standard deviation are those with the best mean validation accuracy after
  short runs of a small grid, the same grid and length for both networks. A choice by short runs favours fast starters,
  in both.
- Figure 1: a tenth of the training images is held out for that choice. The inputs to the sigmoids are those of a fixed
  batch of these validation images, normalised by its own statistics, as in training. The typical sigmoid is unit 0,
  fixed beforehand; the table has all of them.
- Section 4.2: a small VGG (or, in the small presets, a LeNet) on CIFAR-10 or digits for a few thousand steps of 32
  images, where the paper trains Inception on ImageNet for tens of millions. The baseline's best is thus what it reaches
  in the budget, not where it levels off. The learning rate of the baseline is chosen on validation data; it stays
  constant (SGD, momentum 0.9), and nothing but rate, norm and activation differs between the arms. The paper also
  removes dropout, reduces weight decay and photometric distortions, and lowers the rate faster.
- Accuracy in the table is single-crop, top-1, on validation images, as in the paper; curves are sampled every few
  steps, which is the resolution of all counts of steps. A network that never reaches an accuracy counts as reaching it
  at the last step.
- Section 3.3: the Jacobian is that of one layer at one image, with the statistics of a fixed batch as constants.
- Sections 3.4 and 4.2.1 (dropout, shuffling): a LeNet on 5,000 digits, where there is something to regularise.
"""

from __future__ import annotations

import math
from itertools import product
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from bnrepro.claims import Design, Evidence, Measure, Paper, Preset, Results, Values
from bnrepro.claims.evidence import exact, greater, less, not_lower, not_testable
from bnrepro.claims.paper import Factors, Probe
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.experiments.ioffe2015 import drawing, effects, identities, networks, tables
from bnrepro.experiments.ioffe2015.effects import CHANCE, NORMS, WITH, shared, single, total
from bnrepro.experiments.ioffe2015.jacobian import random_share
from bnrepro.experiments.ioffe2015.networks import UNIT
from bnrepro.plots.style import label

FIGURE_1: Any = {
    "reported": "curves, no number in the text",
    "scale": "paper",
    "scale_note": "learning rate and initial weights chosen here",
    "withdrawn": "rates were chosen at the grid's edge; both arms belong at the rate that meets the published curve "
    "without BN",
}
DIGITS = "a LeNet on 5,000 digits, for Inception on ImageNet"
TEST = "points of test accuracy"
VALIDATION = "points of best validation accuracy"
ABOVE = "points above chance"
SEEDS = "% of seeds"
MOST = 50.0  # % of seeds
RATE = "as learning rate"
SHAPE = {"batch": 16, "channels": 6, "height": 9, "width": 7}


class Networks(BaseModel):
    """Networks that are trained at several learning rates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overrides: list[str]
    rates: list[float]


class Grid(Networks):
    """Short runs that choose learning rate and initial weights, and how far the networks with their choice go."""

    deviations: list[float] = [0.01]
    choosing_epochs: int
    steps: int
    every: int

    @property
    def cells(self) -> list[list[float]]:
        """Learning rate and initial standard deviation, from the smallest rate."""
        return [[lr, std] for lr, std in product(sorted(self.rates), self.deviations)]


class Figure1(Grid):
    images: int
    jacobians: int


class Rates(Networks):
    variants: list[str]


class Settings(Preset):
    """What the comments in configs/experiment/ioffe2015.yaml say."""

    choosing_seeds: int
    figure1: Figure1
    speed: Grid
    rates: Rates
    regularized: list[str]
    dropout_amounts: list[float]
    scale_eps: list[float]
    scales: list[float]
    tolerance: float
    near_percent: float
    chance_points: float
    negligible_points: float
    negligible_loss: float = 0.01
    negligible_ratio: float = 1.1


paper = Paper(
    __name__,
    Settings,
    scale="toy",
    scale_note="2,000 steps of a quarter-width VGG on CIFAR-10, for Inception on ImageNet",
)


@paper.design
def runs(s: Settings) -> Design:
    """The grids that choose, what is trained with their choices, learning rates, dropout, batches, identities."""
    design = Design(s.seeds)
    for variant in NORMS:
        first = choose(design, s, "figure1_choice", s.figure1, {"variant": variant})
        extra = {"images": s.figure1.images, "jacobians": s.figure1.jacobians}
        watched = grid_arguments(s, s.figure1) | extra
        factors: Factors = {"variant": variant}
        design.probes += [Probe("figure1", factors, k, networks.train_and_watch, watched, first) for k in design.seeds]
    first = choose(design, s, "speed_choice", s.speed, {})
    for arm in networks.ARMS:
        arguments = {"arm": arm, **grid_arguments(s, s.speed)}
        design.probes += [Probe("speed", {"arm": arm}, k, networks.race, arguments, first) for k in design.seeds]
    for variant, rate in product(s.rates.variants, s.rates.rates):
        overrides = [*s.rates.overrides, f"variant={variant}", f"optimizer.lr={rate}"]
        design.train("rates", {"variant": variant, "rate": rate}, overrides)
    for variant in NORMS:
        common = [*s.regularized, f"variant={variant}"]
        for amount in s.dropout_amounts:
            factors = {"variant": variant, "amount": amount}
            design.train("dropout", factors, [*common, f"model.dropout={amount}"], networks.fit)
        size = load_config(common).batch_size
        for fixed in (False, True):
            factors = {"variant": variant, "fixed": fixed}
            design.train("shuffle", factors, [*common, f"data.together={size if fixed else 0}"])
    exactly(design, s)
    return design


def choose(design: Design, s: Settings, part: str, grid: Grid, who: dict[str, str]) -> Config:
    """Add the short runs of a grid; the run with the smallest rate, which does not diverge, says where they all are."""
    common = [*grid.overrides, f"epochs={grid.choosing_epochs}", f"variant={who.get('variant', 'nobn')}"]
    start = len(design.arms)
    for lr, std in grid.cells:
        factors = {**who, "rate": lr} | ({"deviation": std} if grid is s.figure1 else {})
        overrides = [*common, f"optimizer.lr={lr}", f"model.init_std={std}"]
        design.train(part, factors, overrides, seeds=range(s.choosing_seeds))
    return design.arms[start].config


def grid_arguments(s: Settings, grid: Grid) -> dict[str, Any]:
    """What a measurement needs to know to choose, and how far it goes."""
    return {"cells": grid.cells, "choosing_seeds": s.choosing_seeds, "steps": grid.steps, "every": grid.every}


def exactly(design: Design, s: Settings) -> None:
    """Add the identities."""

    def add(what: str, of: Measure, **arguments: Any) -> None:
        design.measure("exact", {"what": what}, of, seeds=[0], **arguments)

    add("bias", identities.cancelled_bias, steps=50)
    add("channels", identities.channels, **SHAPE)
    add("effective batch", identities.effective_batch, **SHAPE)
    add("algorithm 2", identities.algorithm_2, values=5, batch=3, features=4)
    for eps in s.scale_eps:
        add(f"scale, eps {eps:g}", identities.scaled_weights, eps=eps, scales=s.scales)


# --- Figure 1 ---


@paper.claim("I1", where="section 4.1, Figure 1a", **FIGURE_1)
def more_accurate_on_mnist(r: Results, s: Settings) -> Evidence:
    """On MNIST the network with batch normalization has the higher test accuracy (after 50,000 steps of 60 images)."""
    end = r.measured("test_accuracy", part="figure1", x=s.figure1.steps)  # of networks that did not diverge
    difference = end.at(variant="bn") - end.at(variant="nobn")
    evidence = greater(difference, "test accuracy, BN minus none", TEST, margin=s.negligible_points)
    evidence = evidence.showing({name: end.at(variant=v) for v, name in WITH.items()}, "% test accuracy")
    for quantity, unit in (("rate", RATE), ("deviation", "as initial standard deviation")):
        cell = r.measured(quantity, part="figure1")
        evidence = evidence.showing({f"chosen {name}": shared(cell.at(variant=v)) for v, name in WITH.items()}, unit)
    return evidence


@paper.claim("I1.2", where="Figure 1a", **FIGURE_1)
def faster_on_mnist(r: Results, s: Settings) -> Evidence:
    """Batch normalization helps the network train faster."""
    steps, best = effects.figure1_steps(r, s), r.measured("test_accuracy", part="figure1").max("x")
    evidence = greater(
        steps.at(variant="nobn") / steps.at(variant="bn"),
        "steps to the best accuracy without BN, none over BN",
        "times as fast",
        margin=s.negligible_ratio,
        ratio=True,
    )
    never = (best.at(variant="nobn") - best.at(variant="bn")).map(lambda d: 100.0 * (d > 0))
    evidence = evidence.showing({"networks with BN that never reach it": total(never)}, "% of seeds")
    short = [effects.choices(r, "figure1_choice", variant=variant) for variant in NORMS]
    if both := short[0].keys() & short[1].keys():
        ahead = 100 * fmean(fmean(short[1][cell]) > fmean(short[0][cell]) for cell in both)
        evidence = evidence.showing({"cells of the grid in which BN is ahead after the short runs": single(ahead)}, "%")
    return evidence


@paper.claim("I2", where="section 4.1, Figure 1b and c", **FIGURE_1)
def steadier_inputs_of_sigmoids(r: Results, s: Settings) -> Evidence:
    """Over training, the distribution of the inputs to a typical sigmoid of the last hidden layer is much more stable
    with batch normalization than without.
    """
    ratios = effects.drift_ratios(r)
    evidence = greater(
        {name: units.mean() for name, units in ratios.items()},
        "drift of percentiles over training, mean of the units, log2 of none over BN",
        "doublings",
        margin=math.log2(s.negligible_ratio),
    )
    evidence = evidence.showing({f"unit {UNIT}, {name}": units.at(x=UNIT) for name, units in ratios.items()})
    shares = {f"units steadier with BN, {name}": effects.share_positive(units) for name, units in ratios.items()}
    return evidence.showing(shares, "%")


# --- sections 3.1 to 3.3 ---


@paper.claim("I3", where="section 3.2", kind="identity")
def biases_cancel_and_locations_count(r: Results, s: Settings) -> Evidence:
    """The bias before batch normalization can be ignored; in a convolution a mini-batch of m maps of p x q is one of
    effective size m' = m p q, with one gamma and beta a map.
    """
    bias = {name: r.measured(name, part="exact", what="bias") for name in ("output", "gradient", "trained")}
    counted = {name: r.measured(name, part="exact", what="effective batch") for name in ("effective", "expected")}
    shape = {name: r.measured(name, part="exact", what="channels") for name in ("size", "error")}
    errors = {
        "output, with a bias or without": bias["output"],
        "gradient of the bias": bias["gradient"],
        "weights trained with a bias or without": bias["trained"],
        "m' over m p q, minus 1": counted["effective"] / counted["expected"] - 1,
        "numbers in each parameter and statistic, over maps, minus 1": abs(shape["size"] / SHAPE["channels"] - 1).max(),
        "output against NumPy's per map": shape["error"].at(x="per channel"),
    }
    return exact(errors, "largest error in float64", tolerance=s.tolerance)


@paper.claim("I4", where="section 3.3", kind="identity")
def the_scale_of_weights_cancels(r: Results, s: Settings) -> Evidence:
    """BN((aW)u) = BN(Wu): the scale of the weights affects neither the layer's Jacobian, dBN((aW)u)/du = dBN(Wu)/du,
    nor the gradient propagation, while dBN((aW)u)/d(aW) = 1/a dBN(Wu)/dW.
    """
    names = {"output": "BN((aW)u)", "du": "gradient by u", "dw_times_a": "a times the gradient by aW"}

    def worst(quantity: str, eps: float) -> Values:
        return r.measured(quantity, part="exact", what=f"scale, eps {eps:g}").max()

    errors = {name: worst(quantity, 0) for quantity, name in names.items()}
    evidence = exact(errors, "largest relative change over a, eps 0, float64", tolerance=s.tolerance)
    broken = {f"change of the output with eps {eps:g}": 100 * worst("output", eps) for eps in s.scale_eps if eps > 0}
    return evidence.showing(broken, "%")


@paper.claim(
    "I5", where="section 3.3", scale="reduced", scale_note="Figure 1's networks of three layers of 100 sigmoids"
)
def singular_values_are_close_to_one(r: Results, s: Settings) -> Evidence:
    """Conjecture: batch normalization may lead the layer Jacobians to have singular values close to 1."""

    def of(quantity: str, variant: str) -> Values:
        return r.measured(quantity, part="figure1", variant=variant)

    share, far = "% within a factor of two of 1", "normalised_far_end"
    evidence = greater(
        of("normalised_near_end", "bn"), "singular values", share, bar=s.near_percent, condition="trained with BN"
    ) & greater(
        of(far, "nobn") - of(far, "bn"),
        "singular values",
        "doublings",
        margin=math.log2(s.negligible_ratio),
        condition="mean distance from 1, no BN minus BN",
    )
    others = {
        "BN, before training": of("normalised_near_start", "bn"),
        "no BN, trained": of("normalised_near_end", "nobn"),
        "no BN, before training": of("normalised_near_start", "nobn"),
        "random matrix with rows of unit length": single(random_share()),
        "BN, vectors not normalised": of("plain_near_end", "bn"),
        "no BN, vectors not normalised": of("plain_near_end", "nobn"),
    }
    return evidence.showing(others, share)


@paper.claim("I6", where="section 3.4", scale_note=DIGITS)
def it_regularises(r: Results, s: Settings) -> Evidence:
    """Batch normalization regularises the model: an example is seen together with others of its mini-batch, and this
    helps generalisation.
    """
    gap, fit = (r.measured(quantity, part="dropout", amount=0.0) for quantity in ("gap", "train_loss"))
    evidence = greater(
        gap.at(variant="nobn") - gap.at(variant="bn"),
        "test minus training loss in eval mode, no BN minus BN",
        "of loss",
        margin=s.negligible_loss,
    )
    evidence = evidence.showing({f"training loss {name}": fit.at(variant=v) for v, name in WITH.items()}, "of loss")
    accuracy = r.test_accuracy(part="dropout", amount=0.0)
    return evidence.showing(
        {"test accuracy, BN minus none": accuracy.at(variant="bn") - accuracy.at(variant="nobn")}, "points"
    )


@paper.claim("I6.2", where="section 3.4", scale_note=DIGITS)
def dropout_can_be_removed(r: Results, s: Settings) -> Evidence:
    """Dropout can be removed or reduced in strength in a network with batch normalization."""
    estimand, margin = "test accuracy, no dropout minus dropout", s.negligible_points
    with_bn, without = (effects.dropout_effect(r, variant, s.dropout_amounts[-1]) for variant in ("bn", "nobn"))
    # It replaces dropout only where dropout is worth having without it.
    evidence = not_lower(with_bn, estimand, TEST, margin=margin, condition="with BN") & less(
        without, estimand, TEST, margin=-margin, condition="without BN"
    )
    little = {f"with BN, dropout {a:g}": effects.dropout_effect(r, "bn", a) for a in s.dropout_amounts[1:-1]}
    return evidence.showing(little, "points")


@paper.claim("I7", where="section 3.1, Algorithm 2", kind="identity")
def inference_is_one_affine_map(r: Results, s: Settings) -> Evidence:
    """For inference Var[x] = m/(m-1) E_B[sigma_B^2] over training mini-batches of size m is the unbiased estimate, and
    batch normalization becomes one affine map.
    """
    names = {
        "mean": "mean over all mini-batches",
        "variance": "variance over all mini-batches",
        "precise": "re-estimated variance",
        "affine": "affine map",
        "linear": "folded into a linear layer",
        "convolution": "folded into a convolution",
    }
    found = {name: r.measured(name, part="exact", what="algorithm 2") for name in (*names, "biased", "expected")}
    errors = {name: found[quantity] for quantity, name in names.items()}
    errors["E_B[sigma_B^2] over Var[x], minus (m-1)/m"] = found["biased"] - found["expected"]
    return exact(errors, "largest error in float64", tolerance=s.tolerance)


# --- section 4.2.2: higher learning rates ---


def fewer_steps(r: Results, s: Settings, slow: str, fast: str, **rule: Any) -> Evidence:
    """That one arm of the race needs more steps than another to the baseline's best accuracy."""
    steps, estimand = effects.race_steps(r, s), f"steps to the baseline's best accuracy, {slow} over {fast}"
    return greater(steps.at(arm=slow) / steps.at(arm=fast), estimand, "times", ratio=True, **rule)


def higher(r: Results, s: Settings, high: str, low: str) -> Evidence:
    """That the best accuracy of one arm of the race is higher than that of another."""
    best = effects.race(r).max("x")
    difference = best.at(arm=high) - best.at(arm=low)
    return greater(difference, f"best accuracy, {high} minus {low}", VALIDATION, margin=s.negligible_points)


@paper.claim(
    "I8",
    where="section 4.2.2, Figure 2",
    reported="13.3 against 31.0 million steps, 2.33 times fewer (Inception, ImageNet)",
)
def less_than_half_the_steps(r: Results, s: Settings) -> Evidence:
    """Batch normalization alone, at the baseline's learning rate, matches the baseline's accuracy in less than half the
    training steps.
    """
    evidence = fewer_steps(r, s, "Baseline", "BN-Baseline", bar=2.0)
    rate = shared(r.measured("rate", part="speed", arm="Baseline"))
    return evidence.showing({"chosen for the baseline": rate}, RATE)


@paper.claim(
    "I9",
    where="section 4.2.2, Figure 3",
    reported="2.1 million steps, 14.8 times fewer than the baseline and 6.3 times fewer than BN-Baseline (ImageNet)",
)
def five_times_the_rate_is_faster(r: Results, s: Settings) -> Evidence:
    """With five times the learning rate (BN-x5) far fewer steps are needed than with batch normalization alone."""
    steps = effects.race_steps(r, s)
    evidence = fewer_steps(r, s, "BN-Baseline", "BN-x5", margin=s.negligible_ratio)
    fast = ("BN-x5", "convbn-x5")
    others = {f"Baseline over {effects.named(arm)}": steps.at(arm="Baseline") / steps.at(arm=arm) for arm in fast}
    return evidence.showing(others, "times", ratio=True)


@paper.claim(
    "I9.2",
    where="section 4.2.2, Figure 3",
    reported="74.8% against 73.0% with BN-x5 (ImageNet); 2.7 against 2.1 million steps to 72.2%",
)
def thirty_times_the_rate_ends_higher(r: Results, s: Settings) -> Evidence:
    """Thirty times the learning rate (BN-x30) trains somewhat more slowly at first and reaches a higher accuracy."""
    return higher(r, s, "BN-x30", "BN-x5") & fewer_steps(
        r, s, "BN-x30", "BN-x5", margin=s.negligible_ratio, condition="steps to the baseline's best, BN-x30 over BN-x5"
    )


@paper.claim("I9.3", where="section 4.2.2, Figure 3", reported="69.8% against 72.2% (ImageNet)")
def sigmoids_stay_below(r: Results, s: Settings) -> Evidence:
    """The network of sigmoids with batch normalization (BN-x5-Sigmoid) stays below the baseline's best accuracy."""
    return higher(r, s, "Baseline", "BN-x5-Sigmoid")


@paper.claim(
    "I10",
    where="section 4.2.2",
    reported="divergence without batch normalization at x5, none with it at x5 and x30 (ImageNet)",
)
def high_rates_need_it(r: Results, s: Settings) -> Evidence:
    """Without batch normalization the small increase of the learning rate (five times) makes the parameters reach
    machine infinity; with it the network trains.
    """
    infinite, accuracy, estimand = effects.diverged(r), effects.ends(r) - CHANCE, "networks at higher rates"
    evidence = greater(infinite.at(arm="no BN, x5"), estimand, SEEDS, bar=MOST, condition="infinite at x5 without BN")
    for factor in ("x5", "x30"):
        learned = accuracy.at(arm=f"BN-{factor}")
        evidence &= greater(learned, estimand, ABOVE, bar=s.chance_points, condition=f"accuracy at {factor} with BN")
    failed = accuracy.map(lambda points: 100.0 * (points < s.chance_points))
    others = {
        f"infinite or at chance at {factor} without BN": total(failed.at(arm=f"no BN, {factor}"))
        for factor in ("x5", "x30")
    }
    largest = {
        f"largest at which all train on digits, {label(v)}": effects.largest_rate(r, s, v) for v in s.rates.variants
    }
    return evidence.showing(others, SEEDS).showing(largest, RATE)


@paper.claim(
    "I10.2", where="section 4.2.2", reported="at most 1/1000 without, 69.8% with batch normalization (ImageNet)"
)
def sigmoids_need_it(r: Results, s: Settings) -> Evidence:
    """Without batch normalization the network of sigmoids never does better than chance; with it, it trains."""
    without, with_bn = (effects.ends(r).at(arm=arm) for arm in ("no BN, sigmoid", "BN-x5-Sigmoid"))
    estimand = "test accuracy of sigmoids"
    return less(without - CHANCE, estimand, ABOVE, bar=s.chance_points, condition="without BN") & greater(
        with_bn - without, estimand, TEST, bar=s.chance_points, condition="with BN at x5 minus without"
    )


@paper.claim("I11", where="section 4.2.1", reported="about 1% of validation accuracy (ImageNet)", scale_note=DIGITS)
def shuffling_helps(r: Results, s: Settings) -> Evidence:
    """Shuffling the training examples more thoroughly, so that the same ones do not always share a mini-batch, improves
    accuracy.
    """
    with_bn, without = (effects.shuffle_effect(r, variant) for variant in ("bn", "nobn"))
    evidence = greater(with_bn, "test accuracy with BN, new batches minus fixed ones", TEST, margin=s.negligible_points)
    return evidence.showing({"without BN": without, "with BN minus without": with_bn - without}, "points")


@paper.claim(
    "I12",
    where="section 4.2.3, Figure 4",
    reported="4.9% top-5 validation error, 4.82% on the test server",
    scale="paper",
    scale_note="six Inception networks on ImageNet",
)
def ensembles_beat_the_best(r: Results, s: Settings) -> Evidence:
    """An ensemble of batch-normalized networks beats the best published result on ImageNet."""
    return not_testable("An ensemble of six Inception networks on ImageNet: nothing smaller is an analogue")


for table in (tables.figure3, tables.figure1a, tables.units, tables.choices, tables.rate_sweep, tables.regularisation):
    paper.table(table)
for figure in (drawing.figure1, drawing.singular_values, drawing.figure2, drawing.rates, drawing.regularisers):
    paper.figure(figure)
