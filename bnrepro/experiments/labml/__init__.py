"""labml.ai, annotated batch normalization.

https://nn.labml.ai/normalization/batch_norm/

Differences from the paper
- In place of the VGG of 13 convolutions of 64 to 512 channels stands airbench's network of seven, at a quarter of its
  width, for fewer epochs with a rate that falls to zero. Batch size, optimizer, crops and flips are the source's. Its
  learning rate, for a wider network, is the lowest of a sweep, in which each arm has the rate that does best on
  validation data; where that lies on the edge nothing is judged.
- The MNIST network, its rate and its ten epochs are the source's; and it is trained on 6,000 of the digits too, where
  there is more to generalize.
- Images are normalized by the training set's mean and standard deviation per channel, not by the source's constants.
- Biases directly before a norm are left out, as the source says one should (its own VGG keeps them); the runs that need
  them have them.
- Accuracies are on the test set; the validation images are held out of the training set and train nothing. Those on the
  training set are taken after training, in eval mode, without augmentation.
- The toy losses of A1 and A1.2 are ours: the source gives the argument without an example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from itertools import pairwise, product
from operator import and_
from typing import Any

from matplotlib.figure import Figure
from pydantic import BaseModel

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values
from bnrepro.claims.evidence import equal, exact, greater, not_lower, not_testable
from bnrepro.claims.gates import reaches
from bnrepro.experiments.labml import measurements
from bnrepro.experiments.labml.measurements import ONE_PASS
from bnrepro.plots.panels import curve, legend, lines, looks, panels, zero
from bnrepro.plots.style import label

POINTS = "percentage points of test accuracy"
CNN = ("model=labml_cnn", "model.width=1.0", "batch_size=64")
FEW = ("data=mnist", "data.val_fraction=0.9", *CNN, "channels_last=true", "eval_every=186")  # every other epoch
VGG = ("model=airbench", "model.width=0.25", "batch_size=64", "schedule=linear", "channels_last=true")
MLP = ("model=paper_mlp", "batch_size=64")
VARIANTS = ("nobn", "bn")
OUTSIDE = {"detachedmean": "mean outside the gradient", "detached": "mean and variance outside"}
GAUSSIAN_SHARE = 100 * math.erf(0.5**0.5)
"""P(|z| < 1) of a standard normal, in %: 68.3."""


class Part(BaseModel, extra="forbid", frozen=True):
    """Overrides of a run, its epochs, and the learning rates that it is trained at: one, or a sweep."""

    overrides: list[str]
    epochs: int
    rates: list[float] = [1e-3]
    margin: float = 0.2  # A5, A5.2: percentage points that count as none; paired, on 10,000 test images
    trained: float = 0.0  # % test accuracy of each arm at its best rate, from which on it has trained

    def run(self, *more: str, rate: float | None = None) -> list[str]:
        """The overrides of one run."""
        return [*self.overrides, f"epochs={self.epochs}", f"optimizer.lr={rate or self.rates[0]}", *more]


class Descent(BaseModel, extra="forbid", frozen=True):
    """A1: gradient descent of the toys."""

    steps: int = 2000
    lr: float = 0.1
    every: int = 50  # steps between points


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    networks: dict[str, Part] = {  # A5 to A7: each with no norm and with BN
        "MNIST": Part(overrides=["data=mnist", *CNN, "channels_last=true"], epochs=10, trained=98.5),
        "6,000 digits": Part(overrides=[*FEW], epochs=10, trained=96.0),
        "CIFAR-10": Part(
            overrides=["data=cifar10", *VGG],
            epochs=6,
            rates=[2.5e-4, 1.25e-3, 6e-3, 3e-2],
            margin=0.5,
            trained=65.0,
        ),
    }
    regularized: list[str] = ["MNIST", "6,000 digits"]  # A5, A5.2: those that learn their training images
    learned: float = 99.0  # A5.2: % of them, from which on they have
    outside: Part = Part(overrides=[*FEW], epochs=10, trained=96.0)  # A1.3, A3: the MNIST network
    sigmoid: Part = Part(overrides=["data=mnist5k", *MLP], epochs=40, trained=90.0)  # A2: three layers of sigmoids
    toy: Descent = Descent()
    bias_steps: int = 200  # A3: of training with and without the bias, in float64
    scale_eps: list[float] = [0.0, 1e-5, 1e-3]  # A4: for the exact statement, torch's default, Keras's default
    scales: list[float] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]  # A4: factors on the weights
    population_batches: list[int] = [1, 2, 5, 10, 20]  # A6: how many training batches a part of the dataset is
    cancellation: list[tuple[float, float]] = [  # A9: mean and standard deviation of the inputs
        *((0.0, 1.0), (10.0, 1.0), (100.0, 1.0), (300.0, 1.0), (1000.0, 1.0), (3000.0, 1.0), (10000.0, 1.0)),
        (300.0, 0.1),
    ]
    cancellation_draws: int = 200  # A9: channels drawn for each
    tolerance: float = 1e-9  # relative error that float64 leaves in an identity
    loss_tolerance: float = 1e-9  # A1: relative growth of a loss that "does not change", in float64
    variance_tolerance: float = 0.01  # A9: of a variance still: 1% of it moves an output by half a percent
    fails_points: float = 5.0  # A1.3: percentage points of test accuracy less that are "doesn't work"
    # A3, A6: percentage points of test accuracy that count as none; paired, on 10,000 test images
    inference_margin_points: float = 0.2
    margin_share: float = 2.0  # A2.2, new with the port: percentage points of a sigmoid's inputs that count as none

    @property
    def others(self) -> list[str]:
        """A5.1; smaller presets have none."""
        return [name for name in self.networks if name not in self.regularized]


paper = Paper(
    __name__,
    Settings,
    scale="reduced",
    scale_note="the source's MNIST network; a narrow one of 7 convolutions on CIFAR-10",
)
gradient = partial(paper.claim, where="section Normalizing outside gradient computation doesn't work")
normalization = partial(paper.claim, where="section Batch Normalization")
sigmoid = partial(normalization, scale="toy", scale_note="three layers of sigmoids, 5,000 digits")
inference = partial(paper.claim, where="section Inference")


@paper.design
def design(s: Settings) -> Design:
    """Networks with and without BN, statistics in and outside the gradient, layers of sigmoids; and toys."""
    made = Design(s.seeds)
    at_inference = (measurements.statistics, {"parts": s.population_batches})
    for network, part in s.networks.items():
        for variant, rate in product(VARIANTS, part.rates):
            factors: Row = {"network": network, "variant": variant, "rate": rate}
            measures = (measurements.fit, at_inference) if variant == "bn" else (measurements.fit,)
            made.train("networks", factors, part.run(f"variant={variant}", rate=rate), *measures)
    for variant, kept in (("bn", True), *((each, True) for each in OUTSIDE), ("bn", False)):
        run = s.outside.run(f"variant={variant}", f"model.keep_bias={kept}")
        made.train("outside", {"variant": variant, "keep_bias": kept}, run, measurements.outside_network)
    made.train("sigmoid", {"variant": "bn"}, s.sigmoid.run("variant=bn"), measurements.sigmoid_inputs)
    for statistic, detached in product(("mean", "variance"), (True, False)):
        cell: Row = {"statistic": statistic, "detached": detached}
        made.measure("toy", cell, measurements.outside, **cell, **s.toy.model_dump())
    made.measure("bias", {}, measurements.cancelled_bias, steps=s.bias_steps)
    for eps in s.scale_eps:
        made.measure("scale", {"eps": eps}, measurements.scaled_weights, eps=eps, scales=s.scales)
    for mean, std in s.cancellation:
        inputs: Row = {"mean": mean, "std": std}
        made.measure("cancellation", inputs, measurements.cancellation, **inputs, draws=s.cancellation_draws)
    return made


# --- what claims read, and gates ---


def best_rate(r: Results, s: Settings, network: str, variant: str) -> Any:
    """The learning rate with the best mean validation accuracy."""
    rates = s.networks[network].rates
    if len(rates) == 1:
        return rates[0]
    return r.accuracy("val_accuracy", part="networks", network=network, variant=variant).best("rate")


def at_best(values: Values, r: Results, s: Settings, variant: str, names: list[str] | None = None) -> dict[str, Values]:
    """Values by network, variant and rate at the variant's best rate, by network (None: all)."""
    rates = {network: best_rate(r, s, network, variant) for network in names or s.networks}
    return {name: values.at(network=name, variant=variant, rate=rate) for name, rate in rates.items()}


def best_rates(r: Results, s: Settings, names: list[str]) -> dict[str, tuple[Any, list[float]]]:
    """By network and variant, the best rate and all of the sweep, where there is one."""
    swept = [(name, s.networks[name].rates, variant) for name in names for variant in VARIANTS]
    return {f"{n}, {label(v)}": (best_rate(r, s, n, v), rates) for n, rates, v in swept if len(rates) > 1}


def have_trained(*variants: str, of: str = "networks") -> Callable[[Results, Settings], Gate]:
    """A gate: each network that setting ``of`` names has, with each of ``variants``, at its best rate."""

    def gate(r: Results, s: Settings) -> Gate:
        names = list(getattr(s, of)) or list(s.networks)  # where there are none, nothing is judged either
        accuracy = r.accuracy(part="networks", network=names)
        found = {(name, v): values for v in variants for name, values in at_best(accuracy, r, s, v, names).items()}
        gates = [
            reaches(values, s.networks[name].trained, f"test accuracy, {name}, {label(v)}, %")
            for (name, v), values in found.items()
        ]
        return reduce(and_, gates)

    return gate


def have_learned(r: Results, s: Settings) -> Gate:
    """The networks of A5.2 have learned their training images."""
    fitted = 100 * r.measured("train_accuracy", part="networks", network=s.regularized)
    return reaches(fitted, s.learned, "training accuracy, with BN and without, %")


def outside_has_trained(r: Results, s: Settings) -> Gate:
    """The network of A1.3 and A3 with BN."""
    accuracy = r.test_accuracy(part="outside", variant="bn")
    return reaches(accuracy, s.outside.trained, "test accuracy with BN, %")


def sigmoids_have_trained(r: Results, s: Settings) -> Gate:
    """The network of A2.2."""
    return reaches(100 * r.of_runs("train_accuracy", part="sigmoid"), s.sigmoid.trained, "training accuracy, %")


# --- claims: statistics outside the gradient ---


@gradient(
    "A1",
    kind="identity",
    quote="b will increase or decrease based ∂L/∂x, and keep on growing indefinitely in each training update.",
)
def a_detached_mean_lets_the_bias_grow(r: Results, s: Settings) -> Evidence:
    """With the mean outside the gradient computation, x̂ = x - E[x] and x = u + b, the bias b keeps on growing
    indefinitely in each training update, while x̂ and the loss do not change.
    """
    return explosion(r, s, "mean", power=1)


@gradient("A1.2", kind="identity", quote="The paper notes that similar explosions happen with variances.")
def a_detached_variance_lets_the_scale_grow(r: Results, s: Settings) -> Evidence:
    """Similar explosions happen with variances: outside the gradient, the scale of the inputs grows."""
    remark = "Whether it grows depends on the loss: this one asks for larger values than normalized ones can be."
    return replace(explosion(r, s, "variance", power=2), remark=remark)


def explosion(r: Results, s: Settings, statistic: str, power: int) -> Evidence:
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
    end = {f"after {s.toy.steps:,} steps, detached": free.at(x=s.toy.steps)}
    growth = {"power of the steps with which it grows": free.reduce(lambda path: exponent(path, power), "x")}
    return evidence.showing(end, "parameter at the end").showing(growth)


def exponent(path: list[float], power: int) -> float:
    """The exponent of the steps with which the distance of |path|^power from its start grows, over ``power``."""
    half = (len(path) - 1) // 2
    end, middle = (abs(path[at] ** power - path[0] ** power) for at in (-1, half))
    if not (end > 0 and middle > 0):
        return math.nan
    return math.log(end / middle) / math.log((len(path) - 1) / half) / power


@gradient(
    "A1.3",
    scale_note="the source's MNIST network, 6,000 of its 60,000 digits",
    gate=outside_has_trained,
    quote="Normalizing outside the gradient computation using pre-computed (detached) means and variances "
    "doesn't work.",
)
def detached_statistics_do_not_work(r: Results, s: Settings) -> Evidence:
    """Normalizing outside the gradient computation, by detached means and variances, does not work in a network."""
    with_bias: Row = {"part": "outside", "keep_bias": True}
    accuracy = r.accuracy(**with_bias)
    lost = accuracy.at(variant="bn") - accuracy.at(variant=list(OUTSIDE))
    evidence = greater(lost, "test accuracy, BN minus statistics outside the gradient", POINTS, bar=s.fails_points)
    evidence = evidence.showing({"by each test batch's statistics": r.measured("batch_accuracy", **with_bias)}, "%")
    return evidence.showing({"cancelled biases": r.measured("bias_norm", **with_bias)}, "(norm)")


# --- claims: what batch normalization does ---


@sigmoid(
    "A2",
    quote="if the inputs to a sigmoid are normalized most of it will be within [-1, 1] range where the sigmoid is "
    "linear.",
)
def normalized_inputs_are_where_sigmoids_are_linear(r: Results, s: Settings) -> Evidence:
    """If the inputs to a sigmoid are normalized, most of them are within [-1, 1], where the sigmoid is linear."""
    share = r.measured("input_start", part="sigmoid").mean("x")
    evidence = greater(share, "share of sigmoids' inputs within [-1, 1], before training", "% of inputs", bar=50.0)
    tangent = 100 * (1 - 4 * (1 / (1 + math.exp(-1)) - 0.5))  # the slope at 0 is 1/4
    constants = {"of a normal distribution": GAUSSIAN_SHARE, "the sigmoid at 1 is below its tangent by": tangent}
    evidence = evidence.showing({name: Values((), {((), 0): value}) for name, value in constants.items()}, "%")
    remark = "It is what comes out of any inputs of mean 0 and variance 1 that are not far from normal."
    return replace(evidence, remark=remark)


@sigmoid(
    "A2.2",
    quote="To overcome this each feature is scaled and shifted by two trained parameters",
    gate=sigmoids_have_trained,
)
def gamma_and_beta_leave_the_linear_range(r: Results, s: Settings) -> Evidence:
    """Scaling and shifting by two trained parameters overcomes this: with trained gamma and beta, fewer of the inputs
    are within [-1, 1].
    """
    quantities, unit = ("input_start", "input_end", "normalised_end"), "percentage points of inputs"
    start, end, before_gamma = (r.measured(quantity, part="sigmoid").mean("x") for quantity in quantities)
    estimand = "share of sigmoids' inputs within [-1, 1], before training minus after"
    evidence = greater(start - end, estimand, unit, margin=s.margin_share)
    return evidence.showing({"after training": end, "the same before gamma and beta": before_gamma}, "% of inputs")


@normalization(
    "A3",
    kind="identity",
    gate=outside_has_trained,
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
    evidence &= equal(useless, "", POINTS, margin=s.inference_margin_points, condition="in a network")
    count = r.of_runs("parameters", part="outside", variant="bn", seed=[0])
    saved = {"biases left out": count.at(keep_bias=True) - count.at(keep_bias=False)}
    return evidence.showing(saved, "parameters")


@normalization(
    "A4",
    kind="identity",
    quote="Batch normalization also makes the back propagation invariant to the scale of the weights",
)
def back_propagation_is_invariant_to_scale(r: Results, s: Settings) -> Evidence:
    """Batch normalization makes the back-propagation invariant to the scale of the weights."""
    du, dw, times_a = (r.measured(q, part="scale", eps=0.0).max("x") for q in ("du", "dw", "dw_times_a"))
    gradients = {"gradient by the inputs": du, "gradient by the weights": dw}
    evidence = exact(gradients, "relative change from W to a W, eps 0", tolerance=s.tolerance)
    evidence = evidence.showing({"a times that by the weights": times_a})
    output = r.measured("output", part="scale", eps=[eps for eps in s.scale_eps if eps > 0], x=[10.0, 0.1])
    each = {f"output, eps {eps:g}, a = {a:g}": 100 * values for (eps, a), values in output.by("eps", "x").items()}
    return evidence.showing(each, "%")


# --- claims: networks ---


def generalizes_better(r: Results, s: Settings, names: list[str]) -> Evidence:
    """Whether the test accuracy of these networks is higher with BN, each arm at its best rate."""
    tuned = any(len(s.networks[name].rates) > 1 for name in names)
    estimand = "test accuracy, BN minus no BN" + ", each at its best rate" * tuned
    accuracy = r.accuracy(part="networks", network=names)
    fitted = 100 * r.measured("train_accuracy", part="networks", network=names)
    evidence, beside = [], {}
    for name in names:
        test, train = (
            [values.at(network=name, variant=v, rate=best_rate(r, s, name, v)) for v in VARIANTS]
            for values in (accuracy, fitted)
        )
        margin = s.networks[name].margin
        evidence.append(greater(test[1] - test[0], estimand, POINTS, margin=margin, condition=name))
        beside[f"training accuracy, {name}"] = train[1] - train[0]
    return reduce(and_, evidence).showing(beside, "points")


@normalization(
    "A5",
    quote="empirically it improves generalization",
    scale_note="the source's MNIST network, on all digits and on 6,000",
    gate=have_trained(*VARIANTS, of="regularized"),
)
def it_improves_generalization(r: Results, s: Settings) -> Evidence:
    """Empirically, batch normalization improves generalization: that of the source's MNIST network."""
    return generalizes_better(r, s, s.regularized)


@normalization("A5.1", quote="empirically it improves generalization", gate=have_trained(*VARIANTS, of="others"))
def it_improves_generalization_on_photographs(r: Results, s: Settings) -> Evidence:
    """On CIFAR-10, after equally many epochs, batch normalization improves the test accuracy."""
    if not s.others:
        return not_testable("This preset has no photographs")
    evidence = generalizes_better(r, s, s.others).unless_at_edge(best_rates(r, s, s.others))
    remark = "Where the training accuracy is higher by as much, BN trains faster, which is another claim."
    return replace(evidence, remark=remark)


@normalization(
    "A5.2",
    quote="so it has regularization effects too",
    scale_note="the source's MNIST network, on all digits and on 6,000",
    gate=have_learned,
)
def it_regularizes(r: Results, s: Settings) -> Evidence:
    """It has regularization effects too: where the training images are learned, with BN and without, training and test
    accuracy are closer to each other with BN, and the test accuracy is not lower.
    """
    at: Row = {"part": "networks", "network": s.regularized}
    fitted, test = 100 * r.measured("train_accuracy", **at), r.accuracy(**at)
    evidence, estimand = [], "training minus test accuracy, no BN minus BN"
    for name in s.regularized:
        (plain, normed), (gap, nearer) = (
            [values.at(network=name, variant=variant, rate=s.networks[name].rates[0]) for variant in VARIANTS]
            for values in (test, fitted - test)
        )
        margin = s.networks[name].margin
        evidence.append(greater(gap - nearer, estimand, "percentage points", margin=margin, condition=name))
        evidence.append(not_lower(normed - plain, "", POINTS, margin=margin, condition=f"{name}, test accuracy"))
    remark = "Both have learned their training images, so that the first condition is A5's number once more."
    return replace(reduce(and_, evidence), remark=remark)


@inference(
    "A6",
    quote="you either need to go through the whole (or part of) dataset and find the mean and variance, or you can use "
    "an estimate calculated during training. The usual practice is to calculate an exponential moving average",
    gate=have_trained("bn"),
)
def a_moving_average_will_do(r: Results, s: Settings) -> Evidence:
    """For inference, statistics of the whole (or part of the) dataset and an exponential moving average that is taken
    during training serve equally well.
    """
    accuracy = at_best(r.measured("accuracy", part="networks"), r, s, "bn")
    difference = {name: values.at(x="ema") - values.at(x="population") for name, values in accuracy.items()}
    estimand = "moving average minus statistics of the training set"
    return equal(difference, estimand, POINTS, margin=s.inference_margin_points)


@inference("A7", quote="Here's the training code and a notebook for training a CNN classifier")
def its_networks_reach_its_accuracies(r: Results, s: Settings) -> Evidence:
    """The page links training code for a CNN on MNIST, and its site another for a VGG on CIFAR-10."""
    accuracy = at_best(r.accuracy(part="networks"), r, s, "bn")
    ours = {f"{name} after {s.networks[name].epochs} epochs": values for name, values in accuracy.items()}
    return not_testable("The source reports no accuracy to compare ours with").showing(ours, "% of test images")


@paper.claim("A8", where="other pages of its site")
def its_variants(r: Results, s: Settings) -> Evidence:
    """Variants on its site: batch-channel normalization, estimated batch normalization, channel normalization."""
    return not_testable("They are on other pages than this one, which claims nothing of them; not implemented here")


@paper.claim(
    "A9", source="https://nn.labml.ai/normalization/batch_norm/, its code", kind="identity", where="forward: var"
)
def one_pass_is_the_variance(r: Results, s: Settings) -> Evidence:
    """Var[x] = E[x²] - E[x]², as the layer computes it in float32, is the variance."""
    error, nan, median = (r.measured(q, part="cancellation", x=ONE_PASS) for q in ("error", "nan", "variance"))
    evidence = exact(error, "relative error of E[x²] - E[x]² in float32", tolerance=s.variance_tolerance)
    evidence &= exact(nan, "", "% of channels", tolerance=0, condition="NaN")
    two_passes = r.measured("error", part="cancellation", x="ours").max()
    return evidence.showing({"median variance": median, "largest error in two passes": two_passes})


# --- tables ---


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Accuracies that the source does not report, at each learning rate; on the training images after training."""
    test, validation = (r.accuracy(column, part="networks") for column in ("test_accuracy", "val_accuracy"))
    fitted = 100 * r.measured("train_accuracy", part="networks")
    columns = {"test accuracy, %": test, "validation accuracy, %": validation, "training accuracy, %": fitted}
    columns["training minus test accuracy, points"] = fitted - test
    rows = []
    for (network, variant, rate), diverged in r.diverged(part="networks").by("network", "variant", "rate").items():
        who = {"network": network, "variant": variant, "rate": rate}
        parameters = r.of_runs("parameters", part="networks", **who)
        found = {name: values.at(**who).interval() for name, values in columns.items()}
        counts = {"parameters": max(map(int, parameters), default=None), "diverged": int(sum(diverged))}
        rows.append({**who, "epochs": s.networks[network].epochs, **found, **counts})
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
    """Test accuracy by the statistics that normalize, of networks with BN at their best rate."""
    accuracy, loss, parts = (
        at_best(r.measured(q, part="networks"), r, s, "bn") for q in ("accuracy", "loss", "part_accuracy")
    )
    rows: list[Row] = []
    for network, by_kind in accuracy.items():
        losses, of_parts = loss[network].intervals("x"), parts[network].intervals("x")
        named = {f"population of {n:g} batch{'es' if n > 1 else ''}": each for n, each in of_parts.items()}
        for kind, percent in (by_kind.intervals("x") | named).items():
            rows.append({"network": network, "statistics": kind, "accuracy, %": percent, "loss": losses.get(kind)})
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


# --- figures ---


@paper.figure
def outside_the_gradient(r: Results, s: Settings) -> Figure | None:
    """Gradient descent (learning rate {s.toy.lr:g}) through a statistic that the gradient takes for a constant, or does
    not. Neither b nor w > 0 can change x̂ or the loss.
    """
    look = looks({False: "in the gradient (attached)", True: "outside the gradient (detached)"})
    titles = {"mean": "mean: x̂ = x - E[x], x = u + b", "variance": "variance: x̂ = x / std(x), x = w u"}
    figure, axes = panels(2, 2, height=1.7, sharex=True)
    for column, (statistic, title) in enumerate(titles.items()):
        parameter, loss = (r.measured(q, part="toy", statistic=statistic) for q in ("parameter", "loss"))
        if not parameter:
            return None
        top, bottom = axes[column], axes[2 + column]
        for panel, values in ((top, parameter), (bottom, loss / loss.at(x=0))):
            lines(panel, values, "x", "detached", look, marks=False)
            panel.lines[0].set_linewidth(2.6)  # attached, under the detached one's
        top.set(title=title, ylabel="bias b" if statistic == "mean" else "factor w")
        bottom.set(xlabel="step", ylabel="loss / loss at the start", ylim=(0, 1.2))
    legend(figure)
    return figure


@paper.figure
def in_networks(r: Results, s: Settings) -> Figure | None:
    """The MNIST network with a bias before each norm, trained with Adam on 6,000 digits; validation accuracy is that
    of the others, in eval mode, with the running statistics.
    """
    loss, accuracy = (r.curve(column, part="outside", keep_bias=True) for column in ("train_loss", "val_accuracy"))
    if not loss:
        return None
    figure, (left, right) = panels(2)
    for panel, values in ((left, loss), (right, 100 * accuracy)):
        lines(panel, values, "step", "variant", looks({"bn": label("bn"), **OUTSIDE}))
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="validation accuracy, %", ylim=(max(0, right.get_ylim()[0]), 100))
    legend(figure)
    return figure


@paper.figure
def sigmoids(r: Results, s: Settings) -> Figure | None:
    """Inputs of the sigmoids in a network of three hidden layers with BN before them, at the start and after training
    (validation images as one batch; 5,000 digits). Grey: the range [-1, 1], and a normal distribution's share of 68.3%.
    """
    look = looks({"start": "before training", "end": "after training"})
    figure, (left, right) = panels(2, width_ratios=(3, 2))
    left.axvspan(-1, 1, color="#eeeeee", linewidth=0)
    zero(right, GAUSSIAN_SHARE)
    for shift, (when, each) in zip((-0.08, 0.08), look.items(), strict=True):
        density, share = (r.measured(f"{quantity}_{when}", part="sigmoid") for quantity in ("density", "input"))
        if not share:
            return None
        curve(left, density.intervals("x"), each, marks=False)
        layers = dict(enumerate(share.intervals("x").values(), 1))
        curve(right, layers, each._replace(dashes="none"), bars=True, shift=shift)
    right.set_xticks(list(layers), [f"layer {layer}" for layer in layers])
    left.set(xlabel="input of the sigmoid", ylabel="density", ylim=(0, None))
    right.set(ylabel="share in [-1, 1], %", ylim=(0, 100), xlim=(0.5, len(layers) + 0.5))
    legend(figure, of=left)
    return figure


@paper.figure
def scales(r: Results, s: Settings) -> Figure | None:
    """BN(a W u) against BN(W u) for weights of standard deviation 0.01 and 20 inputs of variance 1, in float64: the
    output, and the gradients that are said to stay, or to stay but for 1 / a.
    """
    names = {"output": "output", "du": "gradient by the inputs", "dw_times_a": "gradient by weights, times a"}
    look = looks({eps: f"eps = {eps:g}" for eps in s.scale_eps})
    figure, axes = panels(3, height=2.4, sharey=True)
    for panel, (quantity, title) in zip(axes, names.items(), strict=True):
        values = 100 * r.measured(quantity, part="scale")
        if not values:
            return None
        lines(panel, values, "x", "eps", look)
        panel.set(xscale="log", title=title, xlabel="factor a on the weights")
    axes[0].set_ylabel("relative change, %")
    legend(figure)
    return figure


@paper.figure
def float32(r: Results, s: Settings) -> Figure | None:
    """Error of the variance of 4,096 normal float32 values: the source's formula in one pass, torch, and ours in two.
    Medians over {s.cancellation_draws} draws, geometric means over seeds. Grey: an error of the variance's own size.
    Values below 1e-9 are drawn there.
    """
    logs = r.measured("error", part="cancellation").map(lambda error: max(error, 1e-9)).log()
    if not logs:
        return None
    figure, (axes,) = panels()
    for name, look in looks({each: each for each in (ONE_PASS, "torch", "ours")}).items():
        by_ratio: dict[float, Values] = {}
        for (mean, std), values in logs.at(x=name).by("mean", "std").items():
            by_ratio[mean / std] = (by_ratio.get(mean / std, values) + values) / 2
        curve(axes, {at: by_ratio[at].interval() for at in sorted(by_ratio) if at > 0}, look, log=True)
    zero(axes, 1.0)
    axes.set(xscale="log", yscale="log", xlabel="mean / standard deviation", ylabel="relative error of the variance")
    legend(figure)
    return figure


@paper.figure
def statistics_at_inference(r: Results, s: Settings) -> Figure | None:
    """Test accuracy of networks with BN by the statistics that normalize at inference, minus that with the moving
    average of the same network (line): those of so many training batches, of all of them, or of each test batch itself.
    """
    accuracy, parts = (at_best(r.measured(q, part="networks"), r, s, "bn") for q in ("accuracy", "part_accuracy"))
    if not all(accuracy.values()):
        return None
    look = looks(["accuracy"])["accuracy"]._replace(dashes="none")
    figure, axes = panels(len(accuracy), height=2.5)
    for panel, (network, values) in zip(axes, accuracy.items(), strict=True):
        kinds = {f"{count:g}": part for count, part in parts[network].by("x").items()}
        kinds |= {"all": values.at(x="population"), "test\nbatch": values.at(x="batch")}
        differences = [(kind - values.at(x="ema")).interval() for kind in kinds.values()]
        zero(panel)
        curve(panel, dict(enumerate(differences)), look, bars=True)
        panel.set_xticks(range(len(kinds)), list(kinds))
        panel.set(title=network, xlabel="training batches")
    axes[0].set_ylabel("test accuracy minus that with\nthe moving average, points")
    return figure
