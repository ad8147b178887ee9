"""Notes on batch normalization, with the benchmark that they show, ducha-aiki/caffenet-benchmark (batchnorm.md).

https://github.com/ducha-aiki/caffenet-benchmark/blob/master/batchnorm.md

Differences from the paper
- A narrow plain network on CIFAR-10, airbench's. The benchmark trains CaffeNet and GoogLeNet on ImageNet at 128 pixels;
  its numbers stand beside ours, and are not expected to be the same.
- The benchmark trains all its networks at one learning rate. Here BN before and after the activation each have the rate
  of a sweep at which they do best on validation data, whose best must lie inside the sweep; other comparisons with BN
  are at the sweep's middle rate, and networks without BN at a rate of their own, the same for all activations.
- He's initial weights for all activations; the benchmark has LSUV or orthogonal weights.
- BN has gamma and beta unless stated otherwise; the benchmark's main table is without them (P6 has both).
- The benchmark has dropout 0.5 in its two fully connected layers throughout. Here there is none except where dropout is
  the question, and there it stands at every layer, or before the last. The notes name no network for what they say of
  regularization: here it is judged where there is something to regularize, on a fifth of the images, without
  augmentation, until the network has learned them.
- Pilots were seen before (seed 1000): 78.8, 81.9 and 78.5% of test accuracy with BN before the activation at rates 0.1,
  0.4 and 1.6, and 65.7% without BN at 0.05. A residual network of eight layers was left out after its pilot: at 73% it
  would not have trained.
- Ghost batches have a momentum such that together they weigh what the batch weighs in the running statistics.
- Activations are ReLU, ELU and PReLU, those that P7 compares; orders are compared with ReLU, as in the benchmark.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial, reduce
from itertools import combinations, product
from operator import and_
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor, nn

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, exact, greater, less, not_lower
from bnrepro.claims.gates import reaches
from bnrepro.config import load_config
from bnrepro.experiments.wu2018 import momentum_of_part
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.plots.panels import Look, dots, legend, lines, looks, panels, ticks, zero
from bnrepro.plots.style import BLACK
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training.trainer import loss_and_accuracy

NOTES = "Notes on batch normalization"
BENCHMARK = "ducha-aiki/caffenet-benchmark, batchnorm.md"
POINTS = "percentage points"
AIRBENCH = "airbench's network at a quarter of its width, CIFAR-10"
REGULARIZED = f"{AIRBENCH}, a fifth of its images"
ORDERS = {"before": "BN before", "after": "BN after", "none": "no BN"}
POSITIONS = {
    "before_norm": "directly before each BN",
    "after_norm": "after each BN and activation",
    "last": "before the last layer only",
}
ACTIVATIONS = {"relu": "ReLU", "elu": "ELU", "prelu": "PReLU"}
ACCURACY = "test accuracy, %"
LOSSES = {"train_loss": "training loss", "test_loss": "test loss", "gap": "test - training loss"}
SHAPE: dict[str, Any] = {"batch": 16, "channels": 6, "height": 9, "width": 7}  # P4, P5: the notes' BatchNorm2d(6)
EPS = 1e-5
TOLERANCE = 1e-10  # P4, P5: of outputs of size 1 to 10 in float64
REPORTED = {
    "CaffeNet128, ImageNet (source)": {"before": 47.4, "after": 49.9, "none": 47.1},
    "CaffeNet128, gamma and beta (source)": {"before": 47.8, "after": 49.3, "none": 47.1},
    "GoogLeNet128, LSUV (source)": {"before": 60.3, "after": 59.6, "none": 61.9},
    "GoogLeNet128, orthogonal (source)": {"before": 60.7, "after": 58.4, "none": 61.9},
}
"""The benchmark's top-1 accuracies with ReLU in percent, one run each."""


class Network(BaseModel, extra="forbid", frozen=True):
    overrides: list[str]
    trained: float  # % test accuracy with BN before the activation at its best rate, from which on it has trained


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every run
        *("data=cifar10", "channels_last=true", "batch_size=256", "eval_every=1000000"),  # at the end only
        *("optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=5e-4"),
        *("schedule=linear", "schedule.warmup_epochs=1"),
    ]
    networks: dict[str, Network] = {  # P1, by name in tables; P6 and P7 have the first
        "airbench x 0.25": Network(overrides=["model=airbench", "model.width=0.25", "data.crop=2"], trained=80.0)
    }
    epochs: int = 5
    rates: list[float] = [0.1, 0.4, 1.6, 6.4]  # the sweep of each order; the second one elsewhere
    plain_rate: float = 0.05  # without BN
    trained_plain: float = 60.0  # P7: % test accuracy without BN, of each activation
    # P2, P3: few images and many epochs, so that there is something to regularize
    regularized: list[str] = [
        *("model=airbench", "model.width=0.25", "data.val_fraction=0.8", "data.flip=false", "data.crop=0", "epochs=16")
    ]
    learned: float = 90.0  # P2, P3: % training accuracy in eval mode without dropout, from which on it has learned them
    dropout_amounts: list[float] = [0.1, 0.5]  # P2: the source's "very low", and the usual amount
    # P3: of which validation data choose one; Hoffer et al.'s orders of magnitude
    ghost_sizes: list[int] = [16, 32, 64]
    momentum: float = 0.1  # P3: of running statistics, for a whole batch
    margin_points: float = 0.5  # P1, P2, P7: the benchmark calls .498 to .503 a negligible difference
    # P3, P6: half of what the benchmark reports for gamma and beta, .004 to .006; paired, on 10,000 test images
    small_points: float = 0.2

    @property
    def rate(self) -> float:
        """The middle of the sweep, or the lower of two."""
        return self.rates[(len(self.rates) - 1) // 2]

    @property
    def first(self) -> str:
        """The network of P6 and P7."""
        return next(iter(self.networks))

    @property
    def whole(self) -> int:
        """The batch that ghost batches are parts of."""
        return load_config([*self.common, *self.regularized]).batch_size


paper = Paper(__name__, Settings, scale="reduced", scale_note=AIRBENCH)
notes, benchmark = partial(paper.claim, source=NOTES), partial(paper.claim, source=BENCHMARK)


@paper.design
def runs(s: Settings) -> Design:
    """Orders in each network; activations, dropout and ghost batches in one; one layer for P4 and P5."""
    design = Design(s.seeds)

    def order(network: str, activation: str, order: str, rate: float, affine: str = "on") -> None:
        overrides = [*s.common, *s.networks[network].overrides, f"epochs={s.epochs}", f"optimizer.lr={rate}"]
        overrides += [f"model.activation={activation}", f"norm.affine={affine == 'on'}"]
        overrides += ["variant=nobn"] if order == "none" else ["variant=bn", f"model.placement={order}"]
        factors: Row = {"network": network, "activation": activation, "order": order, "affine": affine, "rate": rate}
        design.train("order", factors, overrides)

    for network, where, rate in product(s.networks, ("before", "after"), s.rates):
        order(network, "relu", where, rate)
    for where in ("before", "after"):
        order(s.first, "relu", where, s.rate, affine="off")
    for activation in ACTIVATIONS:
        order(s.first, activation, "none", s.plain_rate)
        if activation != "relu":
            order(s.first, activation, "after", s.rate)
    base = [*s.common, *s.regularized, f"optimizer.lr={s.rate}", f"norm.momentum={s.momentum}"]
    design.train("dropout", {"position": "none", "amount": 0.0}, [*base, "variant=bn"], fit)
    for position, amount in product(POSITIONS, s.dropout_amounts):
        own = ["variant=bn", f"model.dropout={amount}", f"model.dropout_position={position}"]
        design.train("dropout", {"position": position, "amount": amount}, [*base, *own], fit)
    design.train("ghost", {"size": s.whole}, [*base, "variant=bn"], fit)
    for size in s.ghost_sizes:
        momentum = momentum_of_part(s.momentum, size, s.whole)
        own = ["variant=ghostbn", f"norm.ghost_size={size}", f"norm.momentum={momentum}"]
        design.train("ghost", {"size": size}, [*base, *own], fit)
    design.measure("identity", {}, identity, seeds=[0], **SHAPE)
    design.measure("channels", {}, per_channel, seeds=[0], **SHAPE)
    return design


# --- measurements ---


@measure("placement/fit")
def fit(run: Run, seed: int) -> list[Row]:
    """Loss and accuracy on the training and the test set in eval mode, and the gap of the losses, test - training.

    The training loss in metrics.csv is no measure of fit here: it is taken with the batches' own noisy statistics.
    """
    cfg, data, network = inference.restore(run)
    (fitted, seen), (loss, accuracy) = (loss_and_accuracy(network, data, of, cfg) for of in (data.train, data.test))
    rows = [row("train_loss", fitted), row("train_accuracy", seen), row("test_loss", loss)]
    return [*rows, row("test_accuracy", accuracy), row("gap", loss - fitted)]


def example(seed: int, batch: int, channels: int, height: int, width: int) -> tuple[Tensor, nn.Module]:
    """Values in float64 whose channels have means and standard deviations of their own, and BatchNorm2d of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, channels, height, width), dtype=torch.float64, generator=generator)
    scale, shift = torch.rand((2, channels, 1, 1), dtype=torch.float64, generator=generator)
    layer = NORMS["bn"](channels, (height, width), options=NormOptions(eps=EPS)).double()
    return x * (0.5 + scale) + 4 * shift - 2, layer


@measure("placement/identity")
@torch.no_grad()
def identity(seed: int, **shape: int) -> list[Row]:
    """P4. BN with beta = mean and gamma = sqrt(variance + eps), or the source's gamma = deviation, against its input.

    Largest absolute differences in float64 (``error``, x which gamma), beside what the missing eps comes to,
    |x - mean| (1 - deviation / sqrt(variance + eps)) (``expected``). ``moved``: mean and standard deviation of the
    output with gamma 2 and beta 3, minus 3 and minus 2 as eps shrinks it.
    """
    x, layer = example(seed, **shape)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    shrunk = (var / (var + EPS)).sqrt()

    def output(gamma: Tensor, beta: Tensor) -> Tensor:
        layer.get_parameter("weight").copy_(gamma)
        layer.get_parameter("bias").copy_(beta)
        return layer(x)

    gammas = {"sqrt(variance + eps)": (var + EPS).sqrt(), "deviation": var.sqrt()}
    rows = [row("error", (output(gamma, mean) - x).abs().max(), name) for name, gamma in gammas.items()]
    expected = (x - mean[:, None, None]) * (1 - shrunk)[:, None, None]
    moved = output(torch.full_like(mean, 2.0), torch.full_like(mean, 3.0))
    off = torch.stack([moved.mean((0, 2, 3)) - 3, moved.std((0, 2, 3), correction=0) - 2 * shrunk])
    return [*rows, row("expected", expected.abs().max(), "deviation"), row("moved", off.abs().max())]


@measure("placement/channels")
@torch.no_grad()
def per_channel(seed: int, **shape: int) -> list[Row]:
    """P5. Numbers in each parameter and statistic of BatchNorm2d, and its output against NumPy's per channel.

    ``error``: against statistics over batch, height and width (x: per channel), and against those over the batch alone
    (x: per location). ``mixed``: change of the other channels' output when one channel is changed, which is 0.
    """
    x, layer = example(seed, **shape)
    changed = x.clone()
    changed[:, 0] = changed[:, 0] * 5 + 7 * changed[:, 0].square()
    rows = sizes_and_errors(x, layer, {"per channel": (0, 2, 3), "per location": (0,)})
    return [*rows, row("mixed", (layer(changed) - layer(x))[:, 1:].abs().max())]


def sizes_and_errors(x: Tensor, layer: nn.Module, over: dict[str, tuple[int, ...]]) -> list[Row]:
    """Numbers in each parameter and statistic, and the largest difference from NumPy's statistics ``over`` axes."""
    tensors = [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]
    rows = [row("size", tensor.numel(), f"tensor {place}") for place, tensor in enumerate(tensors)]
    for what, axes in over.items():
        want = torch.from_numpy(batch_norm_forward(x.numpy(), None, None, axes, EPS)[0])
        rows.append(row("error", (layer(x) - want).abs().max(), what))
    return rows


# --- claims ---


def accuracy(r: Results, column: str = "test_accuracy", **factors: Any) -> Values:
    """Test accuracy in percent, by network, activation, order, affine and rate; that of chance where a run diverged."""
    return r.accuracy(column, part="order", **factors).without("variant")


def best_rate(r: Results, s: Settings, network: str, order: str) -> Any:
    """The rate of the sweep with the best mean validation accuracy."""
    of = {"network": network, "order": order, "activation": "relu", "affine": "on"}
    return accuracy(r, "val_accuracy", **of).best("rate", s.rate)


def at_best(r: Results, s: Settings, network: str, order: str) -> Values:
    """Test accuracy with ReLU and BN at the best rate."""
    rate = best_rate(r, s, network, order)
    return accuracy(r, network=network, order=order, activation="relu", affine="on", rate=rate)


def of_activations(r: Results, s: Settings) -> Values:
    """Test accuracy of the first network by activation and order, with BN at the middle rate, and without."""
    found = accuracy(r, network=s.first, affine="on")
    each = {"after": found.at(order="after", rate=s.rate), "none": found.at(order="none", rate=s.plain_rate)}
    return Values.stacked("order", each)


def change(r: Results, position: str, amount: float | list[float]) -> Values:
    """Test accuracy with dropout minus that without."""
    values = r.accuracy(part="dropout").without("variant")
    return values.at(position=position, amount=amount) - values.at(position="none", amount=0.0)


def spread(values: Values) -> Values:
    """Best minus worst of ReLU, ELU and PReLU, over the seeds that have all three."""

    def of_seed(found: list[float]) -> float:
        return max(found) - min(found) if len(found) == len(ACTIVATIONS) else math.nan

    return values.at(activation=list(ACTIVATIONS)).reduce(of_seed, "activation").where(math.isfinite)


# --- gates ---


def trained(r: Results, s: Settings) -> Gate:
    """Each network with BN before the activation, at its best rate."""
    first, *others = [
        reaches(at_best(r, s, name, "before"), network.trained, f"test accuracy of {name}, BN before, %")
        for name, network in s.networks.items()
    ]
    return reduce(and_, others, first)


def first_has_trained(r: Results, s: Settings) -> Gate:
    """The first network with BN before the activation, at the middle rate."""
    found = accuracy(r, network=s.first, order="before", activation="relu", affine="on", rate=s.rate)
    return reaches(found, s.networks[s.first].trained, f"test accuracy of {s.first}, BN before, %")


def plain_has_trained(r: Results, s: Settings) -> Gate:
    """The first network, with BN and without."""
    plain = of_activations(r, s).at(order="none")
    return first_has_trained(r, s) & reaches(plain, s.trained_plain, "test accuracy without BN, %")


def learned(r: Results, s: Settings) -> Gate:
    """The network without dropout has learned its few images."""
    fitted = 100 * r.measured("train_accuracy", part="dropout", position="none")
    return reaches(fitted, s.learned, "training accuracy without dropout, %")


@notes(
    "P1",
    source=f"{NOTES}, which shows {BENCHMARK}",
    quote="it seems that putting BatchNorm after the activation function provides better performance (and makes more "
    "sense)",
    where="the benchmark's tables of BN before and after ReLU, and of GoogLeNet128",
    reported="CaffeNet128 on ImageNet, top-1: before .474, after .499 (with gamma and beta .478, .493), no BN .471; "
    "the same file's GoogLeNet128 says the opposite: before .603 and .607, after .596 and .584, no BN .619",
    gate=trained,
)
def after_is_better(r: Results, s: Settings) -> Evidence:
    """Putting batch normalization after the activation function provides better performance than before it."""
    gain = {name: at_best(r, s, name, "after") - at_best(r, s, name, "before") for name in s.networks}
    estimand = "test accuracy, BN after minus before ReLU, each at its best rate"
    arms = product(s.networks, ("before", "after"))
    best = {f"{name}, BN {order}": (best_rate(r, s, name, order), s.rates) for name, order in arms}
    evidence = greater(gain, estimand, POINTS, margin=s.margin_points)
    found = accuracy(r, activation="relu", affine="on", rate=s.rate)
    evidence = evidence.showing({f"both at rate {s.rate:g}": found.at(order="after") - found.at(order="before")})
    return evidence.unless_at_edge(best)


@notes(
    "P2",
    quote="Thus we generally don't put Dropout after BatchNorm, or we set a dropout probability very low ≈ 0.1",
    reported="no number of its own; the benchmark's CaffeNet128 with BN: dropout 0.5 .499, 0.2 .527, 0 .513",
    scale_note=REGULARIZED,
    gate=learned,
)
def dropout_after_bn_harms_unless_low(r: Results, s: Settings) -> Evidence:
    """Dropout after batch normalization lowers the test accuracy, except with a very low probability of about 0.1."""
    margin, estimand = s.margin_points, "test accuracy, dropout after each BN minus none"
    little, much = min(s.dropout_amounts), max(s.dropout_amounts)
    harm, least = (change(r, "after_norm", amount) for amount in (much, little))
    evidence = less(harm, estimand, POINTS, margin=-margin, condition=f"dropout {much:g}")
    evidence &= not_lower(least, estimand, POINTS, margin=margin, condition=f"dropout {little:g}")
    beside = {
        "directly before each BN": change(r, "before_norm", s.dropout_amounts),  # Li et al. (2019) warn of it
        "before the last layer only": change(r, "last", s.dropout_amounts),
    }
    remark = "Training accuracies are in the table: where they are low, too, dropout keeps the network from training."
    return replace(evidence.showing(beside), remark=remark)


@notes(
    "P3",
    quote="The computation of mean and std on batch adds some noise during the training and regularizes.",
    scale_note=REGULARIZED,
    gate=learned,
)
def noise_regularizes(r: Results, s: Settings) -> Evidence:
    """The computation of mean and standard deviation on the batch adds noise during training and regularizes: with more
    of it, from fewer images, the test accuracy is higher.
    """
    best = r.of_runs("val_accuracy", part="ghost", size=s.ghost_sizes).without("variant").best("size")
    found = {name: values.at(size=best) - values.at(size=s.whole) for name, values in by_size(r).items()}
    estimand = f"test accuracy, statistics of the images best on validation data minus those of {s.whole}"
    evidence = greater(found.pop(ACCURACY), estimand, POINTS, margin=s.small_points)
    # A gap that narrows because the training loss rises is no gain: the losses stand beside it, and decide nothing.
    return evidence.showing({f"{name}, {best} images": values for name, values in found.items()}, "nats")


@notes(
    "P4",
    kind="identity",
    quote="These coefficients allow the model to avoid having 0 mean and unit variance if it needs it",
    reported="no number; exactly: gamma = standard deviation and beta = mean give the identity. The formula has no eps",
)
def gamma_and_beta_can_undo_it(r: Results, s: Settings) -> Evidence:
    """Gamma and beta allow the model to avoid mean 0 and unit variance if it needs to."""
    error, expected, moved = (r.measured(q, part="identity") for q in ("error", "expected", "moved"))
    without_eps = error.at(x="deviation")
    errors = {
        "from the input, with gamma = sqrt(variance + eps) and beta = mean": error.at(x="sqrt(variance + eps)"),
        "from what eps comes to, with gamma = standard deviation": without_eps - expected.at(x="deviation"),
        "from standard deviation 2 and mean 3, with gamma = 2 and beta = 3": moved,
    }
    evidence = exact(errors, "largest difference of the output", tolerance=TOLERANCE)
    return evidence.showing({"from the input, with gamma = standard deviation, as the formula has it": without_eps})


@notes(
    "P5",
    kind="identity",
    quote="For convolutional layers, the normalization is applied per channel",
    reported="BatchNorm2d(6) after Conv2d(1, 6)",
)
def normalizes_per_channel(r: Results, s: Settings) -> Evidence:
    """For convolutional layers, the normalization is applied per channel."""
    sizes, error, mixed = (r.measured(q, part="channels") for q in ("size", "error", "mixed"))
    per_location, estimand = error.at(x="per location"), "largest difference of the output"
    errors = {"from statistics per channel": error.at(x="per channel"), "when another channel changes": mixed}
    evidence = exact(errors, estimand, tolerance=TOLERANCE)
    if sizes:
        one_each, told_apart = set(sizes) == {SHAPE["channels"]}, min(per_location) > TOLERANCE
        evidence &= exact(one_each, estimand, condition="each parameter and statistic has one number per channel")
        evidence &= exact(told_apart, estimand, condition="differs from statistics per location")
    return evidence.showing({"from statistics per location": per_location})


@benchmark(
    "P6",
    where="table of BN before and after ReLU",
    reported="CaffeNet128, top-1: before .474, with them .478; after .499, with them .493",
    gate=first_has_trained,
)
def affine_helps_before_and_not_after(r: Results, s: Settings) -> Evidence:
    """The learned scale and shift help where BN stands before the activation, and harm where it stands after it."""
    found = accuracy(r, network=s.first, activation="relu", rate=s.rate)
    gain = found.at(affine="on") - found.at(affine="off")
    gains = {"before": gain.at(order="before"), "after": -gain.at(order="after")}
    return greater(gains, "accuracy gained by gamma and beta (after: lost)", POINTS, margin=s.small_points)


@benchmark(
    "P7",
    where="table of BN and activations",
    quote="BN makes difference between ReLU, ELU and PReLU negligible",
    reported="CaffeNet128, top-1: ReLU .499, ELU .498, PReLU .503 with BN; .471, .488, .485 without",
    gate=plain_has_trained,
)
def activations_are_alike(r: Results, s: Settings) -> Evidence:
    """BN (after the activation) makes the difference between ReLU, ELU and PReLU negligible."""
    values, margin = of_activations(r, s), s.margin_points
    after, spreads = values.at(order="after"), spread(values)
    pairs = {
        f"{ACTIVATIONS[a]} minus {ACTIVATIONS[b]}": after.at(activation=a) - after.at(activation=b)
        for a, b in combinations(ACTIVATIONS, 2)
    }
    nearer = spreads.at(order="none") - spreads.at(order="after")
    evidence = equal(pairs, "test accuracy with BN after", POINTS, margin=margin)
    evidence &= greater(nearer, "", POINTS, margin=margin, condition="spread without BN minus with")
    remark = (
        "Without BN all activations have one rate and as few epochs: how much of their spread is how fast they learn "
        "was not asked."
    )
    beside = {f"spread, {ORDERS[order]}": spreads.at(order=order) for order in ("after", "none")}
    return replace(evidence.showing(beside), remark=remark)


# --- tables and figures ---


@paper.table
def orders(r: Results, s: Settings) -> list[Row]:
    """Test and validation accuracy by network, order, gamma and beta, activation and learning rate."""
    validation = accuracy(r, "val_accuracy")
    return [
        {"network": cell[0], "activation": ACTIVATIONS[cell[1]], "order": ORDERS[cell[2]], "gamma and beta": cell[3]}
        | {"rate": cell[4], "validation accuracy, %": validation.at(**dict(zip(FACTORS, cell, strict=True))).interval()}
        | {ACCURACY: values.interval()}
        for cell, values in accuracy(r).by(*FACTORS).items()
    ]


FACTORS = ("network", "activation", "order", "affine", "rate")


@paper.table
def beside_the_source(r: Results, s: Settings) -> list[Row]:
    """The benchmark's top-1 accuracies (one run each) and our test accuracies at the best rates, with ReLU."""
    found = {name: Values(("order",), {((o,), 0): v for o, v in of.items()}) for name, of in REPORTED.items()}
    for name in s.networks if accuracy(r) else ():
        each = {order: at_best(r, s, name, order) for order in ("before", "after")}
        if name == s.first:
            each["none"] = of_activations(r, s).at(activation="relu", order="none")
        found[f"{name} (here)"] = Values.stacked("order", each)
    rows = []
    for name, values in found.items():
        shown: Row = {f"{label}, %": values.at(order=order).interval() for order, label in ORDERS.items()}
        gain = (values.at(order="after") - values.at(order="before")).interval()
        rows.append({"network": name, **shown, "after - before, points": gain})
    return rows


@paper.table
def dropout_accuracies(r: Results, s: Settings) -> list[Row]:
    """Test accuracy by place and amount of dropout, and training accuracy afterwards, without it."""
    fitted = 100 * r.measured("train_accuracy", part="dropout")
    return [
        {"position": position, "dropout": amount, ACCURACY: values.interval()}
        | {"training accuracy, %": fitted.at(position=position, amount=amount).interval()}
        | {"minus no dropout, points": change(r, position, amount).interval() if amount else None}
        for (position, amount), values in r.accuracy(part="dropout").by("position", "amount").items()
    ]


@paper.table
def ghost_losses(r: Results, s: Settings) -> list[Row]:
    """Loss and accuracy in eval mode by the number of images that statistics are taken from."""
    found = by_size(r)
    return [
        {"images": size} | {name: values.at(size=size).interval() for name, values in found.items()}
        for size in sorted(found[ACCURACY].levels("size"))
    ]


def by_size(r: Results) -> dict[str, Values]:
    """Losses, and test accuracy in percent, by the number of images."""
    losses = {name: r.measured(quantity, part="ghost") for quantity, name in LOSSES.items()}
    return losses | {ACCURACY: 100 * r.measured("test_accuracy", part="ghost")}


@paper.figure
def order(r: Results, s: Settings) -> Figure | None:
    """Test accuracy with ReLU and BN before or after it, at each learning rate of the sweep; bars are the intervals."""
    values = accuracy(r, activation="relu", affine="on", order=["before", "after"])
    if not values:
        return None
    figure, axes = panels(len(s.networks), height=2.6)
    for panel, name in zip(axes, s.networks, strict=True):
        found = values.at(network=name)
        lines(panel, found, "rate", "order", looks({o: ORDERS[o] for o in ("before", "after")}), bars=True)
        panel.set(xscale="log", xlabel="learning rate", title=name)
        ticks(panel, s.rates)
    axes[0].set_ylabel(ACCURACY)
    legend(figure, of=axes[0])
    return figure


@paper.figure
def activations(r: Results, s: Settings) -> Figure | None:
    """Test accuracy by activation, with BN after it and without BN; bars are the intervals."""
    if not accuracy(r):
        return None
    figure, (axes,) = panels(height=2.6)
    values = of_activations(r, s)
    named = Values(values.factors, {((ACTIVATIONS[a], o), k): v for ((a, o), k), v in values.data.items()})
    dots(axes, named, "activation", "order", looks({o: ORDERS[o] for o in ("after", "none")}), width=0.3)
    axes.set_ylabel(ACCURACY)
    legend(figure)
    return figure


@paper.figure
def dropout(r: Results, s: Settings) -> Figure | None:
    """Test accuracy with dropout minus that without it, by probability and place, in networks with BN; bars are the
    intervals. The grey line is no change.
    """
    if not r.accuracy(part="dropout"):
        return None
    figure, (axes,) = panels(height=2.9)
    zero(axes)
    effect = Values.stacked("position", {each: change(r, each, s.dropout_amounts) for each in POSITIONS})
    lines(axes, effect, "amount", "position", looks(POSITIONS), bars=True, apart=0.006)
    ticks(axes, s.dropout_amounts)
    axes.set(xlabel="dropout probability", ylabel="change of test accuracy (points)")
    legend(figure, columns=1)
    return figure


@paper.figure
def ghost(r: Results, s: Settings) -> Figure | None:
    """Statistics over parts of the batch (the largest is the whole batch): losses in eval mode, and test accuracy; bars
    are the intervals.
    """
    found, look = by_size(r), looks(list(LOSSES.values()))
    if not found[ACCURACY]:
        return None
    figure, (left, right) = panels(2)
    for name in look:
        lines(left, found[name], "size", look=look[name], bars=True)
    lines(right, found[ACCURACY], "size", look=Look(BLACK, "-", "D", ""), bars=True)
    for axes, label in ((left, "loss in eval mode"), (right, ACCURACY)):
        axes.set_xscale("log", base=2)
        ticks(axes, sorted(found[ACCURACY].levels("size")))
        axes.set(xlabel="images per statistic", ylabel=label)
    legend(figure, of=left)
    return figure
