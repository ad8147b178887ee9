"""labml.ai, annotated batch normalization.

https://nn.labml.ai/normalization/batch_norm/

Differences from the paper
- The VGG is three pairs of convolutions at a quarter of the usual width (8, 16 and 32 channels), where the source has
  13 convolutions of 64 to 512 channels, and is trained for fewer epochs, to fit two cores; optimizer, batch size, crops
  and flips are the source's. The MNIST network is the source's, trained for fewer than its ten epochs.
- Images are normalized by the training set's mean and standard deviation per channel, not by the source's constants.
- Biases directly before a norm are left out, as the source says one should (its own VGG keeps them); the runs that need
  them have them.
- Accuracies are on the test set; the validation images are held out of the training set and train nothing.
- The toy losses of A1 and A1.2 are ours: the source gives the argument without an example.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

from bnrepro.claims import (
    Design,
    Evidence,
    Paper,
    Preset,
    Results,
    Values,
    equal,
    exact,
    greater,
    measure,
    not_testable,
)
from bnrepro.experiments.labml import drawing, toys
from bnrepro.experiments.labml.drawing import ONE_PASS
from bnrepro.experiments.labml.measurements import outside_network, sigmoid_inputs, statistics

CODE = "https://nn.labml.ai/normalization/batch_norm/, its code"
POINTS = "percentage points of test accuracy"
OUTSIDE = ("detachedmean", "detached")
GRADIENT_SECTION = "section Normalizing outside gradient computation doesn't work"
BN_SECTION, INFERENCE_SECTION = "section Batch Normalization", "section Inference"
IN_NETWORK = "5,000 of MNIST's 60,000 digits"
SIGMOIDS = "three layers of sigmoids, 5,000 digits"
GRADIENTS = {
    "du": "gradient by the inputs",
    "dw": "gradient by the weights",
    "dw_times_a": "a times that by the weights",
}
Row = dict[str, Any]

toy = measure("labml/outside")(toys.outside)
cancelled_bias = measure("labml/cancelled_bias")(toys.cancelled_bias)
scaled_weights = measure("labml/scaled_weights")(toys.scaled_weights)
float32_variance = measure("labml/cancellation")(toys.cancellation)


class Part(BaseModel):
    """Overrides of a run, and its epochs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    overrides: list[str]
    epochs: int

    def run(self, *more: str) -> list[str]:
        """The overrides of one run."""
        return [*self.overrides, f"epochs={self.epochs}", *more]


class Descent(BaseModel):
    """Gradient descent of the toys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: int
    lr: float
    every: int


class Settings(Preset):
    networks: dict[str, Part]
    outside: Part
    sigmoid: Part
    toy: Descent
    bias_steps: int
    scale_eps: list[float]
    scales: list[float]
    population_batches: list[int]
    cancellation: list[tuple[float, float]]
    cancellation_draws: int
    tolerance: float
    loss_tolerance: float
    variance_tolerance: float
    margin_points: float
    inference_margin_points: float
    margin_share: float = 2.0
    """A2.2, new with the port: percentage points of a sigmoid's inputs that count as none."""


paper = Paper(__name__, Settings, scale_note="MNIST for 4 of 10 epochs; a small VGG on CIFAR-10 for 2 epochs")


@paper.design
def design(s: Settings) -> Design:
    """Networks with and without BN, statistics in and outside the gradient, layers of sigmoids; and toys."""
    made = Design(s.seeds)
    for network, part in s.networks.items():
        for variant in ("nobn", "bn"):
            made.train("networks", {"network": network, "variant": variant}, part.run(f"variant={variant}"))
        factors = {"network": network, "variant": "bn"}
        at_inference = (statistics, {"parts": s.population_batches})
        made.train("inference", factors, part.run("variant=bn"), at_inference, record=False)
    for variant, kept in (("bn", True), *((each, True) for each in OUTSIDE), ("bn", False)):
        bias = ["model.keep_bias=true"] if kept else []
        run = s.outside.run(f"variant={variant}", *bias)
        made.train("outside", {"variant": variant, "keep_bias": kept}, run, outside_network)
    made.train("sigmoid", {"variant": "bn"}, s.sigmoid.run("variant=bn"), sigmoid_inputs)
    for statistic in ("mean", "variance"):
        for detached in (True, False):
            cell: Row = {"statistic": statistic, "detached": detached}
            made.measure("toy", cell, toy, **cell, **s.toy.model_dump())
    made.measure("bias", {}, cancelled_bias, steps=s.bias_steps)
    for eps in s.scale_eps:
        made.measure("scale", {"eps": eps}, scaled_weights, eps=eps, scales=s.scales)
    for mean, std in s.cancellation:
        inputs: Row = {"mean": mean, "std": std}
        made.measure("cancellation", inputs, float32_variance, **inputs, draws=s.cancellation_draws)
    return made


# --- claims: statistics outside the gradient ---


@paper.claim(
    "A1",
    kind="identity",
    where=GRADIENT_SECTION,
    quote="b will increase or decrease based ∂L/∂x, and keep on growing indefinitely in each training update.",
)
def a_detached_mean_lets_the_bias_grow(r: Results, s: Settings) -> Evidence:
    """With the mean outside the gradient computation, x̂ = x - E[x] and x = u + b, the bias b keeps on growing
    indefinitely in each training update, while x̂ and the loss do not change.
    """
    return explosion(r, s, "mean")


@paper.claim(
    "A1.2",
    kind="identity",
    where=GRADIENT_SECTION,
    quote="The paper notes that similar explosions happen with variances.",
)
def a_detached_variance_lets_the_scale_grow(r: Results, s: Settings) -> Evidence:
    """Similar explosions happen with variances: outside the gradient, the scale of the inputs grows."""
    return explosion(r, s, "variance")


def explosion(r: Results, s: Settings, statistic: str) -> Evidence:
    """Growth in every stretch while the loss stands still, detached; neither, attached."""
    parameter, loss = (r.measured(quantity, part="toy", statistic=statistic) for quantity in ("parameter", "loss"))
    changed = loss.max("x") / loss.min("x") - 1.0
    free, held = parameter.at(detached=True), parameter.at(detached=False)
    still = {
        "loss, detached": changed.at(detached=True),
        "loss, attached": changed.at(detached=False),
        "parameter, attached": abs(held - held.at(x=0)).max("x"),
    }
    evidence = exact(still, "changes where none should be", tolerance=s.loss_tolerance)
    stalls = free.reduce(lambda path: sum(abs(b) <= abs(a) for a, b in pairwise(path)), "x")
    evidence &= exact(stalls, "", "stretches without growth", tolerance=0, condition="parameter, detached")
    power = free.reduce(lambda path: exponent(path, 1 if statistic == "mean" else 2), "x")
    end = free.reduce(lambda path: path[-1], "x")
    evidence = evidence.showing({f"after {s.toy.steps:,} steps, detached": end}, "parameter at the end")
    return evidence.showing({"power of the steps with which it grows": power})


def exponent(path: list[float], power: int) -> float:
    """The exponent of the steps with which the distance of |path|^power from its start grows, over ``power``."""
    half = (len(path) - 1) // 2
    end, middle = (abs(path[at] ** power - path[0] ** power) for at in (-1, half))
    if not (end > 0 and middle > 0):
        return math.nan
    return math.log(end / middle) / math.log((len(path) - 1) / half) / power


@paper.claim(
    "A1.3",
    scale_note=IN_NETWORK,
    where=GRADIENT_SECTION,
    quote="Normalizing outside the gradient computation using pre-computed (detached) means and variances "
    "doesn't work.",
)
def detached_statistics_do_not_work(r: Results, s: Settings) -> Evidence:
    """Normalizing outside the gradient computation, by detached means and variances, does not work in a network."""
    with_bias = {"part": "outside", "keep_bias": True}
    accuracy = r.test_accuracy(**with_bias)
    lost = accuracy.at(variant="bn") - accuracy.at(variant=list(OUTSIDE))
    evidence = greater(lost, "test accuracy, BN minus statistics outside the gradient", POINTS, bar=s.margin_points)
    evidence = evidence.showing({"by each test batch's statistics": r.measured("batch_accuracy", **with_bias)}, "%")
    return evidence.showing({"cancelled biases": r.measured("bias_norm", **with_bias)}, "(norm)")


# --- claims: what batch normalization does ---


@paper.claim(
    "A2",
    scale="toy",
    scale_note=SIGMOIDS,
    where=BN_SECTION,
    quote="if the inputs to a sigmoid are normalized most of it will be within [-1, 1] range where the sigmoid is "
    "linear.",
)
def normalized_inputs_are_where_sigmoids_are_linear(r: Results, s: Settings) -> Evidence:
    """If the inputs to a sigmoid are normalized, most of them are within [-1, 1], where the sigmoid is linear."""
    share = over_layers(r, "input_start")
    evidence = greater(share, "share of sigmoids' inputs within [-1, 1], before training", "% of inputs", bar=50.0)
    evidence = evidence.showing({"of a normal distribution": constant(100 * toys.gaussian_share())}, "%")
    tangent = 100 * (1 - 4 * (1 / (1 + math.exp(-1)) - 0.5))  # the slope at 0 is 1/4
    return evidence.showing({"the sigmoid at 1 is below its tangent by": constant(tangent)}, "%")


@paper.claim(
    "A2.2",
    scale="toy",
    scale_note=SIGMOIDS,
    where=BN_SECTION,
    quote="To overcome this each feature is scaled and shifted by two trained parameters",
)
def gamma_and_beta_leave_the_linear_range(r: Results, s: Settings) -> Evidence:
    """Scaling and shifting by two trained parameters overcomes this: with trained gamma and beta, fewer of the inputs
    are within [-1, 1].
    """
    start, end = over_layers(r, "input_start"), over_layers(r, "input_end")
    evidence = greater(
        start - end,
        "share of sigmoids' inputs within [-1, 1], before training minus after",
        "percentage points of inputs",
        margin=s.margin_share,
    )
    after = {"after training": end, "the same before gamma and beta": over_layers(r, "normalised_end")}
    return evidence.showing(after, "% of inputs")


def over_layers(r: Results, quantity: str) -> Values:
    """The mean of a share over the layers of sigmoids."""
    return r.measured(quantity, part="sigmoid").mean("x")


def constant(value: float) -> Values:
    """A number that no seed changes."""
    return Values((), {((), 0): value})


@paper.claim(
    "A3",
    kind="identity",
    where=BN_SECTION,
    quote="when applying batch normalization after a linear transform like Wu + b the bias parameter b gets cancelled "
    "due to normalization. So you can and should omit bias parameter in linear transforms right before the batch "
    "normalization.",
)
def the_bias_is_cancelled(r: Results, s: Settings) -> Evidence:
    """After a linear transform like Wu + b the normalization cancels the bias b, so one can and should omit it."""
    names = {"output": "output", "gradient": "gradient by b", "trained": "weights after training"}
    changes = {name: r.measured(quantity, part="bias") for quantity, name in names.items()}
    evidence = exact(changes, "change with the bias", "relative", tolerance=s.tolerance)
    accuracy = r.test_accuracy(part="outside", variant="bn")
    useless = accuracy.at(keep_bias=True) - accuracy.at(keep_bias=False)
    evidence &= equal(useless, "", POINTS, margin=s.margin_points, condition="in a network")
    count = r.of_runs("parameters", part="outside", variant="bn", seed=[0])
    saved = {"biases left out": count.at(keep_bias=True) - count.at(keep_bias=False)}
    return evidence.showing(saved, "parameters")


@paper.claim(
    "A4",
    kind="identity",
    where=BN_SECTION,
    quote="Batch normalization also makes the back propagation invariant to the scale of the weights",
)
def back_propagation_is_invariant_to_scale(r: Results, s: Settings) -> Evidence:
    """Batch normalization makes the back-propagation invariant to the scale of the weights."""
    changes = {name: r.measured(q, part="scale", eps=0.0).max("x") for q, name in GRADIENTS.items()}
    times = changes.pop(GRADIENTS["dw_times_a"])
    evidence = exact(changes, "relative change from W to a W, eps 0", tolerance=s.tolerance)
    evidence = evidence.showing({GRADIENTS["dw_times_a"]: times})
    output = r.measured("output", part="scale", eps=[eps for eps in s.scale_eps if eps > 0], x=[10.0, 0.1])
    each = {f"output, eps {eps:g}, a = {a:g}": 100 * values for (eps, a), values in output.by("eps", "x").items()}
    return evidence.showing(each, "%")


# --- claims: networks ---


@paper.claim("A5", where=BN_SECTION, quote="empirically it improves generalization")
def it_improves_generalization(r: Results, s: Settings) -> Evidence:
    """Empirically, batch normalization improves generalization."""
    accuracy = r.test_accuracy(part="networks")
    better = accuracy.at(variant="bn") - accuracy.at(variant="nobn")
    return greater(better, "test accuracy, BN minus no BN", POINTS, margin=s.margin_points)


@paper.claim("A5.2", where=BN_SECTION, quote="so it has regularization effects too")
def it_regularizes(r: Results, s: Settings) -> Evidence:
    """It has regularization effects too: training and test accuracy are closer to each other."""
    distance = gap(r)
    nearer = distance.at(variant="nobn") - distance.at(variant="bn")
    estimand = "training minus test accuracy, no BN minus BN"
    return greater(nearer, estimand, "percentage points", margin=s.margin_points)


def gap(r: Results) -> Values:
    """Training accuracy (last epoch, in training mode) minus test accuracy, in percentage points."""
    return 100 * r.of_runs("train_accuracy", part="networks") - r.test_accuracy(part="networks")


@paper.claim(
    "A6",
    where=INFERENCE_SECTION,
    quote="you either need to go through the whole (or part of) dataset and find the mean and variance, or you can use "
    "an estimate calculated during training. The usual practice is to calculate an exponential moving average",
)
def a_moving_average_will_do(r: Results, s: Settings) -> Evidence:
    """For inference, statistics of the whole (or part of the) dataset and an exponential moving average that is taken
    during training serve equally well.
    """
    accuracy = r.measured("accuracy", part="inference")
    difference = accuracy.at(x="ema") - accuracy.at(x="population")
    estimand = "moving average minus statistics of the training set"
    return equal(difference, estimand, POINTS, margin=s.inference_margin_points)


@paper.claim(
    "A7", where=INFERENCE_SECTION, quote="Here's the training code and a notebook for training a CNN classifier"
)
def its_networks_reach_its_accuracies(r: Results, s: Settings) -> Evidence:
    """The page links training code for a CNN on MNIST, and its site another for a VGG on CIFAR-10."""
    accuracy = r.test_accuracy(part="networks", variant="bn").by("network")
    ours = {f"{name} after {part.epochs} epochs": accuracy.get(name, Values()) for name, part in s.networks.items()}
    return not_testable("The source reports no accuracy to compare ours with").showing(ours, "% of test images")


@paper.claim("A8", where="other pages of its site")
def its_variants(r: Results, s: Settings) -> Evidence:
    """Variants on its site: batch-channel normalization, estimated batch normalization, channel normalization."""
    return not_testable("They are on other pages than this one, which claims nothing of them; not implemented here")


@paper.claim("A9", source=CODE, kind="identity", where="forward: var")
def one_pass_is_the_variance(r: Results, s: Settings) -> Evidence:
    """Var[x] = E[x²] - E[x]², as the layer computes it in float32, is the variance."""
    error, nan, median = (cases(r, quantity, ONE_PASS) for quantity in ("error", "nan", "variance"))
    evidence = exact(error, "relative error of E[x²] - E[x]² in float32", tolerance=s.variance_tolerance)
    evidence &= exact(nan, "", "% of channels", tolerance=0, condition="NaN")
    evidence = evidence.showing({f"median variance, {case}": values for case, values in median.items()})
    two_passes = r.measured("error", part="cancellation", x="ours").max()
    return evidence.showing({"largest error in two passes": two_passes})


def cases(r: Results, quantity: str, computed_by: str) -> dict[str, Values]:
    """A quantity of one implementation by mean and standard deviation of the inputs."""
    found = r.measured(quantity, part="cancellation", x=computed_by).by("mean", "std")
    return {f"mean {mean:g}, std {std:g}": values for (mean, std), values in found.items()}


# --- tables and figures ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Accuracies that the source does not report."""
    columns = {
        "test accuracy, %": r.test_accuracy(part="networks"),
        "test loss": r.of_runs("test_loss", part="networks"),
        "training minus test accuracy, points": gap(r),
    }
    rows = []
    for (network, variant), diverged in r.diverged(part="networks").by("network", "variant").items():
        who = {"network": network, "variant": variant}
        parameters = r.of_runs("parameters", part="networks", **who)
        found = {name: values.at(**who).interval() for name, values in columns.items()}
        count = int(next(iter(parameters))) if parameters else None
        rows.append(
            {**who, "epochs": s.networks[network].epochs, **found, "parameters": count, "diverged": int(sum(diverged))}
        )
    return rows


@paper.table
def outside(r: Results, s: Settings) -> list[Row]:
    """The MNIST network with statistics in the gradient and outside it."""
    columns = {
        "test accuracy, %": r.test_accuracy(part="outside"),
        "the same, batch statistics, %": r.measured("batch_accuracy", part="outside"),
        "training loss": r.of_runs("train_loss", part="outside"),
        "norm of the biases": r.measured("bias_norm", part="outside"),
        "norm of the weights": r.measured("weight_norm", part="outside"),
    }
    rows = []
    for (variant, kept), diverged in r.diverged(part="outside").by("variant", "keep_bias").items():
        found = {name: values.at(variant=variant, keep_bias=kept).interval() for name, values in columns.items()}
        who = {"variant": variant, "biases before the norms": "yes" if kept else "no"}
        rows.append({**who, **found, "diverged": int(sum(diverged))})
    return rows


@paper.table
def at_inference(r: Results, s: Settings) -> list[Row]:
    """Test accuracy by the statistics that normalize."""
    loss = r.measured("loss", part="inference")
    rows: list[Row] = []
    for network, values in r.measured("accuracy", part="inference").by("network").items():
        for kind, accuracy in values.intervals("x").items():
            of_kind = loss.at(network=network, x=kind).interval()
            rows.append({"network": network, "statistics": kind, "accuracy, %": accuracy, "loss": of_kind})
        parts = r.measured("part_accuracy", part="inference", network=network)
        for count, accuracy in parts.intervals("x").items():
            name = f"population of {count:g} batch{'es' if count > 1 else ''}"
            rows.append({"network": network, "statistics": name, "accuracy, %": accuracy, "loss": None})
    return rows


@paper.table
def cancellation(r: Results, s: Settings) -> list[Row]:
    """Variance of 4,096 float32 values, {s.cancellation_draws} draws per seed."""
    columns = {"median variance": "variance", "median relative error": "error", "NaN, % of channels": "nan"}
    found = {name: r.measured(quantity, part="cancellation") for name, quantity in columns.items()}
    return [
        {"mean": mean, "standard deviation": std, "computed by": computed_by}
        | {name: values.at(mean=mean, std=std, x=computed_by).interval() for name, values in found.items()}
        for mean, std, computed_by in found["median variance"].by("mean", "std", "x")
    ]


for figure in drawing.FIGURES:
    paper.figure(figure)
