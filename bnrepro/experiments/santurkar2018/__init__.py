"""Santurkar, Tsipras, Ilyas & Madry, How Does Batch Normalization Help Optimization? (NeurIPS 2018).

https://arxiv.org/abs/1805.11604

Differences from the paper
- The VGG is small, at half its width (six convolutions of 3 x 3, one hidden linear layer); the paper has a standard
  VGG. It trains for the paper's 15,000 steps with BN and without, at both rates; noise and other norms for a quarter
  of them, and are compared with the two after as many steps. A run that diverges counts as chance.
- What is measured along a trajectory is told apart: early, until the loss of both networks is below 2, and after that,
  on which the verdict rests.
- Learning rates, batch size, Glorot's initial weights, plain SGD and no augmentation are the paper's. Layers that no
  norm follows have biases.
- The paper's text says which range the steps along the gradient span, not how many there are; beta is the largest of
  their ratios. All are measured along one trajectory, on its own batches, in training mode, without touching the
  running statistics. Steps at which a measure is zero or not finite have no ratio and are left out.
- A layer's internal covariate shift is measured by the gradient of its weight; the earlier layers move with all their
  parameters, gamma and beta among them.
- A distribution is that of one activation (channel and location) over validation images in training mode; its
  stability, how far it moves between measurements, in its own standard deviations. The paper shows pictures.
- The noise is drawn for each activation, a channel and location, and follows gamma and beta.
- The average of an lp norm is taken over the values of a channel that BN has its statistics from: the mean of |x|, the
  root of the mean of x squared, or the largest |x|; each before the mean is subtracted.
- The loss of deep linear networks is summed over samples and outputs: with the mean, a rate of 1e-6 would leave the
  one without BN where it is. A norm follows each layer but the last. One that diverges counts with its first loss.
- Preset full ran on two machines, each part of it on one: curves and landscapes on a GPU in float32 (not TF32),
  distributions and deep linear networks on a CPU.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Values
from bnrepro.claims.evidence import equal, greater, not_lower
from bnrepro.claims.gates import Gate, reaches, stays_below
from bnrepro.claims.results import CHANCE
from bnrepro.experiments.santurkar2018 import measurements, shown
from bnrepro.experiments.santurkar2018.shown import BOTH, LP, MEASURES, NAMES, over, ratios

POINTS = "percentage points"
DECADES = "decades"
UNREAD = "no number read in the text"
FIGURE_1 = "83% with BN and 80% without after 15,000 steps; 92% and 88% with augmentation"
TWO_ORDERS = "close to two orders of magnitude"
HALF = "a small VGG at half width"
QUARTER = f"3,820 of 15,000 steps, {HALF}"
WAY = f"2,400 of 15,000 steps, {HALF}"
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
    """S4 to S7."""

    every: int = 40
    layers: list[int] = [3, 6]
    along: list[float] = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]  # 4 of 0.1 are the paper's cap of 0.4 gradients
    steps: int = 2400


class DeepLinear(Along):
    """S4.3, S8.2, S9: the paper's network, and its range of steps along the gradient."""

    every: int = 250
    layers: list[int] = [9, 17]
    along: list[float] = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0, 30.0]
    depth: int = 25
    width: int = 10
    samples: int = 1000


class Distributions(BaseModel, extra="forbid"):
    """S2, S3.4."""

    every: int = 80  # steps between measurements
    layers: list[int] = [2, 5]  # whose densities are drawn, from 1
    steps: int = 2400
    images: int = 256
    units: int = 32  # activations per layer
    ridges: int = 8  # times at which densities are drawn


class Settings(Preset):
    looks: list[int] = [5, 10, 20]
    rates: list[float] = [0.1, 0.5]  # the paper's learning rates; all but S1 is at the first
    network: list[str] = [  # of every run: epochs of 382 steps, no augmentation, as in the paper
        *("model=vgg_small", "model.width=0.5", "model.init=glorot", "data=cifar10", "data.crop=0", "data.flip=false"),
        "data.val_fraction=0.02",  # 49,000 images to train on; validation draws curves and chooses nothing
        *("batch_size=128", "eval_every=382", "eval_test=true", "optimizer.name=sgd", "optimizer.momentum=0"),
        "channels_last=true",
    ]
    epochs: int = 39  # with BN and without: 14,898 steps
    few_epochs: int = 10  # of noise and other norms
    few_steps: int = 3820  # after them
    early_steps: int = 764  # S2, S4 to S7: from here on both losses are below that of the gate
    landscape: Landscape = Landscape()
    distributions: Distributions = Distributions()
    deep_linear: DeepLinear = DeepLinear()
    deep_linear_runs: list[tuple[float, dict[str, int]]] = [  # rate and steps: the paper's, and a part of them for l1
        (1e-6, {"nobn": 10000, "bn": 10000, "l1norm": 2000}),
        (1e-7, {"nobn": 10000, "bn": 10000}),
    ]
    trained: float = 75.0  # S1: % test accuracy with BN, nine tenths of the paper's 83
    begun: float = 2.0  # S2, S4 to S7: training loss of both networks, before the steps that are judged
    trained_plain: float = 50.0  # S3, S8: % training accuracy without BN after the shorter runs' steps
    close_to_two: float = 1.5  # S6.2: decades that are close to two orders of magnitude, half a decade less
    # S3, S8, since the port S1 too: of accuracy; below the 3 that the paper reports for BN over none
    negligible_points: float = 2.0
    chance_points: float = 5.0  # S3.3: points above chance at which a network has hardly learned anything
    # S5 to S7, since the port S8.2 and S9 too: between two measures that are drawn on log axes
    negligible_factor: float = 1.2
    # S2, since the port S3.4 too: between two distances that a picture calls marginally different
    marginal_factor: float = 2.0
    similar_factor: float = 2.0  # S4: between two norms that are similar
    similar_cosine: float = 0.1  # S4.2: between two cosines that are similar
    cosine_near: float = 0.2  # S4.3: a cosine that is nearly 0, or nearly 1

    @property
    def rate(self) -> float:
        """Of everything but S1."""
        return self.rates[0]


paper = Paper(__name__, Settings, scale="reduced", scale_note=HALF)


@paper.design
def runs(s: Settings) -> Design:
    """Curves without and with BN at all rates, and of noise and other norms at the first; what is measured there; and
    deep linear networks.
    """
    design = Design(s.seeds)

    def network(variant: str, rate: float = s.rate) -> list[str]:
        epochs = s.epochs if variant in BOTH else s.few_epochs
        return [*s.network, f"variant={variant}", f"optimizer.lr={rate}", f"epochs={epochs}"]

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


# --- what claims read ---


def over_steps(r: Results, quantity: str, part: str) -> Values:
    """The mean of a measurement over the steps at which it is finite."""
    return r.measured(quantity, part=part).where(math.isfinite).mean("x")


def after_few_steps(r: Results, s: Settings, split: str) -> Values:
    """Accuracies in percent when the shorter runs end; that of chance for what has diverged."""
    found = 100 * r.curve(f"{split}_accuracy", part="curves", rate=s.rate, step=s.few_steps)
    lost = r.diverged(part="curves", rate=s.rate).where(bool)
    return CHANCE * lost | found


def last_losses(r: Results, rate: float, *variants: str) -> Values:
    """Of deep linear networks, at the last step that all ``variants`` have; the first loss where one diverged."""
    of = {"part": "deep_linear", "rate": rate, "variant": list(variants)}
    loss, diverged = r.measured("loss", **of), r.measured("diverged", **of)
    step = min((max(each.levels("x")) for each in loss.by("variant").values()), default=0)
    at_first = {key: value for key, value in loss.at(x=0).data.items() if key in diverged.data}
    return loss.at(x=step) | Values(("variant",), at_first)


def minus(values: Values, one: str, other: str) -> Values:
    """Of one variant minus another."""
    return values.at(variant=one) - values.at(variant=other)


def early(values: Values, s: Settings) -> Values:
    """What was measured before both networks had begun to train."""
    return values.at(x=[x for x in values.levels("x") if x < s.early_steps])


def late(values: Values, s: Settings) -> Values:
    """The rest."""
    return values.at(x=[x for x in values.levels("x") if x >= s.early_steps])


def arms(values: Values, *variants: str, of: str = "") -> dict[str, Values]:
    """The values of each of ``variants``, to be shown beside."""
    return {of + ("BN" if variant == "bn" else NAMES[variant]): values.at(variant=variant) for variant in variants}


def decades(factor: float) -> float:
    """A factor as a margin."""
    return round(math.log10(factor), 3)


# --- gates ---


def trained(r: Results, s: Settings) -> Gate:
    """Networks with BN at the end."""
    return reaches(r.accuracy(part="curves", variant="bn"), s.trained, "test accuracy with BN, %")


def begun(r: Results, s: Settings) -> Gate:
    """Both networks, in the epoch before the steps that are judged."""
    loss = r.curve("train_loss", part="curves", rate=s.rate, step=s.early_steps, variant=list(BOTH))
    return stays_below(loss, s.begun, "training loss before the steps that are judged")


def plain_has_trained(r: Results, s: Settings) -> Gate:
    """The network without BN, when the shorter runs end."""
    accuracy = after_few_steps(r, s, "train").at(variant="nobn")
    return reaches(accuracy, s.trained_plain, f"training accuracy without BN after {s.few_steps} steps, %")


# --- claims ---


def gain(r: Results, s: Settings, column: str, name: str) -> Evidence:
    """Accuracy with BN minus without, at each rate."""
    found = r.accuracy(column, part="curves")
    evidence = greater(minus(found, "bn", "nobn"), f"{name}, BN minus no BN", POINTS, margin=s.negligible_points)
    return evidence.showing(arms(found, "bn", "nobn"), "%")


@paper.claim("S1", where="Figure 1 (a, b)", reported=FIGURE_1, gate=trained)
def bn_is_more_accurate(r: Results, s: Settings) -> Evidence:
    """A VGG on CIFAR-10, trained by plain SGD, has a higher test accuracy with BN, at either learning rate."""
    return gain(r, s, "test_accuracy", "test accuracy")


@paper.claim("S1.2", where="Figure 1", reported=UNREAD, gate=trained)
def bn_trains_faster(r: Results, s: Settings) -> Evidence:
    """The VGG also trains faster with BN."""
    curves, lost = 100 * r.curve("train_accuracy", part="curves"), r.diverged(part="curves").where(bool)
    whole = (curves.mean("step") | CHANCE * lost).at(variant=list(BOTH))
    what = "training accuracy, mean over the steps, BN minus no BN"
    evidence = greater(minus(whole, "bn", "nobn"), what, POINTS, margin=s.negligible_points)
    return evidence.showing(arms(whole, "bn", "nobn"), "%")


@paper.claim("S2", where="Figure 1 (c)", reported=UNREAD, scale_note=WAY, gate=begun)
def stability_differs_marginally(r: Results, s: Settings) -> Evidence:
    """The difference in distributional stability of the activations, with BN and without, seems marginal."""
    at_all, what = r.measured("shift", part="distributions"), "log10 of how far distributions move, BN over no BN"
    shift, before = (part(at_all.where(math.isfinite), s).mean("x") for part in (late, early))
    evidence = equal(over(shift, "bn", "nobn"), what, DECADES, margin=decades(s.marginal_factor))
    evidence = evidence.showing({"early in training": over(before, "bn", "nobn")})
    return evidence.showing(arms(shift, "bn", "nobn"), "standard deviations")


@paper.claim("S3", where="section 2.2, Figure 2", reported=UNREAD, scale_note=QUARTER, gate=plain_has_trained)
def noisy_bn_is_like_bn(r: Results, s: Settings) -> Evidence:
    """BN followed by noise whose distribution changes at each step performs nearly as well as BN."""
    test, training = (after_few_steps(r, s, split) for split in ("test", "train"))
    difference, shown = minus(training, "noisybn", "bn"), ("noisybn", "bn", "nobn")
    evidence = equal(difference, "training accuracy, noisy BN minus BN", POINTS, margin=s.negligible_points)
    return evidence.showing(arms(training, *shown, of="training, ") | arms(test, *shown, of="test, "), "%")


@paper.claim("S3.2", where="Figure 2", reported=UNREAD, scale_note=QUARTER, gate=plain_has_trained)
def noisy_bn_is_better_than_none(r: Results, s: Settings) -> Evidence:
    """BN followed by such noise performs better than no BN."""
    training, test = (minus(after_few_steps(r, s, split), "noisybn", "nobn") for split in ("train", "test"))
    evidence = greater(training, "training accuracy, noisy BN minus no BN", POINTS, margin=s.negligible_points)
    return evidence.showing({"test accuracy, noisy BN minus no BN": test})


@paper.claim("S3.3", where="section 2.2", reported=UNREAD, scale_note=QUARTER, gate=plain_has_trained)
def noise_alone_prevents_training(r: Results, s: Settings) -> Evidence:
    """The same amount of noise on the activations of the network without BN prevents it from training entirely."""
    training = after_few_steps(r, s, "train")
    above, what = training.at(variant="noise") - CHANCE, "training accuracy with noise and no BN, minus chance"
    return equal(above, what, POINTS, margin=s.chance_points).showing(arms(training, "noise", "nobn"), "%")


@paper.claim("S3.4", where="section 2.2, Figure 2", reported=UNREAD, scale_note=WAY, gate=begun)
def noise_unsettles_distributions(r: Results, s: Settings) -> Evidence:
    """With this noise after BN the distributions are less stable than in the network without BN."""
    at_all, what = r.measured("shift", part="distributions"), "log10 of how far distributions move, noisy BN over no BN"
    shift = late(at_all.where(math.isfinite), s).mean("x")
    evidence = greater(over(shift, "noisybn", "nobn"), what, DECADES, margin=decades(s.marginal_factor))
    return evidence.showing(arms(shift, "noisybn", "nobn"), "standard deviations")


@paper.claim("S4", where="section 2.3, Figure 3", reported=UNREAD, scale_note=WAY, gate=begun)
def covariate_shift_is_no_smaller(r: Results, s: Settings) -> Evidence:
    """With BN, the VGG's internal covariate shift (norm of the difference between a layer's gradients before and after
    the earlier layers are updated) is similar or worse.
    """
    norms = {
        f"layer {layer}": late(ratios(r, f"difference_{layer}", "bn", "nobn", part="landscape"), s).mean("x")
        for layer in s.landscape.layers
    }
    margin = decades(s.similar_factor)
    return not_lower(norms, "log10 of the norm of the difference, BN over no BN", DECADES, margin=margin)


@paper.claim("S4.2", where="Figure 3", reported=UNREAD, scale_note=WAY, gate=begun)
def gradients_are_no_closer(r: Results, s: Settings) -> Evidence:
    """The cosine between these gradients is similar or worse with BN, too."""
    found = {layer: r.measured(f"cosine_{layer}", part="landscape") for layer in s.landscape.layers}
    cosines = {layer: late(each.where(math.isfinite), s).mean("x") for layer, each in found.items()}
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
    """A measure of the landscape without BN over that with it, averaged over the steps after both have begun."""
    found, estimand = ratios(r, quantity, part="landscape"), f"log10 of the {MEASURES[quantity]}, no BN over BN"
    evidence = greater(late(found, s).mean("x"), estimand, DECADES, margin=decades(s.negligible_factor))
    return evidence.showing({"early in training": early(found, s).mean("x")})


@paper.claim("S5", where="section 3.2, Figure 4 (a)", reported=UNREAD, scale_note=WAY, gate=begun)
def loss_varies_less(r: Results, s: Settings) -> Evidence:
    """The loss varies less along the gradient with BN."""
    return smoother(r, s, "loss_range")


@paper.claim("S6", where="Figure 4 (b)", reported=UNREAD, scale_note=WAY, gate=begun)
def gradient_is_more_predictive(r: Results, s: Settings) -> Evidence:
    """The gradient is more predictive with BN: it changes less along its own direction."""
    return smoother(r, s, "change_high")


@paper.claim("S6.2", where="Figure 4 (b)", quote=TWO_ORDERS, reported=TWO_ORDERS, scale_note=WAY, gate=begun)
def early_by_two_orders(r: Results, s: Settings) -> Evidence:
    """Early in training the change of the gradient differs by close to two orders of magnitude."""
    largest = early(ratios(r, "change_high", part="landscape"), s).max("x")
    return greater(largest, "largest early log10 of the gradient's change, no BN over BN", DECADES, bar=s.close_to_two)


@paper.claim("S7", where="Figure 4 (c)", reported=UNREAD, scale_note=WAY, gate=begun)
def beta_is_smaller(r: Results, s: Settings) -> Evidence:
    """The effective beta-smoothness (largest change of the gradient over the distance moved) is better with BN."""
    return smoother(r, s, "beta")


@paper.claim("S8", where="section 3.3, Figure 5", reported=UNREAD, scale_note=QUARTER, gate=plain_has_trained)
def lp_norms_are_as_good(r: Results, s: Settings) -> Evidence:
    """Normalization by the average l1, l2 or maximum norm, which does not fix the second moment, performs comparably
    to BN.
    """
    test = after_few_steps(r, s, "test")
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


for table in (shown.accuracies, shown.measures):
    paper.table(table)
for name in ("training", "noisy", "distributions", "covariate_shift", "landscape", "deep_linear", "norms"):
    paper.figure(getattr(shown, name))
