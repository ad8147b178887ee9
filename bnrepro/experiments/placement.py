"""Notes on batch normalization, with the benchmark that they show, ducha-aiki/caffenet-benchmark (batchnorm.md).

https://github.com/ducha-aiki/caffenet-benchmark/blob/master/batchnorm.md

Differences from the paper
- Small networks on digits and CIFAR-10 for one or two epochs, where the benchmark trains CaffeNet and GoogLeNet on
  ImageNet at 128 pixels. The benchmark's numbers stand beside ours, and are not expected to be the same.
- He's initial weights for all activations, Adam, and one learning rate with a cosine schedule; the benchmark has LSUV
  or orthogonal weights and SGD. A learning rate of its own for each arm could change their order.
- BN has gamma and beta unless stated otherwise; the benchmark's main table is without them (P6 has both).
- The benchmark has dropout 0.5 in its two fully connected layers throughout. Here there is none except where dropout is
  the question, and there it stands at every layer, or before the last.
- Activations are ReLU, ELU, PReLU, tanh and sigmoid; RReLU and Maxout are left out.
- In the residual network, "after" means that each norm follows an activation: the second of a block follows the sum.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations
from typing import Any

import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import equal, exact, greater, less, not_lower
from bnrepro.config import load_config
from bnrepro.norm import NORMS, NormOptions
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.plots.panels import Look, heat_map, legend, lines, looks, panels, ticks, zero
from bnrepro.plots.style import BLACK, COLUMN
from bnrepro.runs.record import Run
from bnrepro.stats import holm, p_value
from bnrepro.training import evaluation as inference
from bnrepro.training import train

NOTES = "Notes on batch normalization"
BENCHMARK = "ducha-aiki/caffenet-benchmark, batchnorm.md"
POINTS = "percentage points"
SMALL = "small networks, 1 or 2 epochs on digits and CIFAR-10, for ImageNet"
REGULARIZED = "a LeNet for 12 epochs on 5,000 digits; the notes name no network"
ORDERS = {"before": "BN before", "after": "BN after", "none": "no BN"}
POSITIONS = {
    "before_norm": "directly before each BN",
    "after_norm": "after each BN and activation",
    "last": "before the last layer only",
}
ACTIVATIONS = {"relu": "ReLU", "elu": "ELU", "prelu": "PReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
ALIKE = ["relu", "elu", "prelu"]  # P7
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


class Settings(Preset):
    networks: dict[str, list[str]] = {  # name in tables: overrides. Few epochs, so that 75 runs of each can be paid for
        "LeNet, MNIST": ["model=lenet", "data=mnist", "epochs=1"],
        "VGG-small x 0.25, CIFAR-10": [
            *("model=vgg_small", "model.width=0.25", "data=cifar10", "epochs=1", "channels_last=true")
        ],
        "ResNet-20 x 0.25, MNIST-5k": ["model=resnet20", "model.width=0.25", "data=mnist5k", "epochs=2"],
    }
    activations: list[str] = list(ACTIVATIONS)
    common: list[str] = ["batch_size=128", "schedule=cosine"]  # of every run
    # P2, P3: few images and many epochs, so that there is something to regularize
    regularized: list[str] = ["model=lenet", "data=mnist5k", "epochs=12"]
    dropout_amounts: list[float] = [0.1, 0.2, 0.3, 0.5]  # P2: the source's "very low" first, the usual amount last
    ghost_sizes: list[int] = [4, 8, 16, 32, 64]  # P3
    ghost_decides: int = 16  # P3: held against the whole batch; Hoffer et al.'s order of magnitude
    negligible_points: float = 0.5  # P1, P2, P3, P6, P7: the benchmark calls .498 to .503 a negligible difference
    negligible_loss: float = 0.01  # P3, new with the port: 1% of the probability of the correct class

    @property
    def whole(self) -> int:
        """The batch that ghost batches are parts of."""
        return load_config([*self.common, *self.regularized]).batch_size


paper = Paper(__name__, Settings, scale="toy", scale_note=SMALL)
notes, benchmark = partial(paper.claim, source=NOTES), partial(paper.claim, source=BENCHMARK)


@paper.design
def runs(s: Settings) -> Design:
    """Orders in each network; dropout and ghost batches in one network; one layer for P4 and P5."""
    design = Design(s.seeds)
    cells = [(activation, order, "on") for activation in s.activations for order in ORDERS]
    for network, own in s.networks.items():
        for activation, order, affine in [*cells, ("relu", "before", "off"), ("relu", "after", "off")]:
            overrides = [*s.common, *own, f"model.activation={activation}", f"norm.affine={affine}"]
            overrides += ["variant=nobn"] if order == "none" else ["variant=bn", f"model.placement={order}"]
            factors: Row = {"network": network, "activation": activation, "order": order, "affine": affine}
            design.train("order", factors, overrides)
    base = [*s.common, *s.regularized]
    dropouts = [("bn", position, amount) for position in POSITIONS for amount in s.dropout_amounts]
    # Without BN there is one question: whether dropout does there what it does beside BN.
    dropouts += [("bn", "none", 0.0), ("nobn", "none", 0.0), ("nobn", "after_norm", s.dropout_amounts[-1])]
    for norm, position, amount in dropouts:
        where = [f"model.dropout={amount}", f"model.dropout_position={position}"] if amount else []
        factors = {"norm": norm, "position": position, "amount": amount}
        design.train("dropout", factors, [*base, f"variant={norm}", *where])
    design.train("ghost", {"size": s.whole}, [*base, "variant=bn"], fit)
    for size in s.ghost_sizes:
        design.train("ghost", {"size": size}, [*base, "variant=ghostbn", f"norm.ghost_size={size}"], fit)
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
    (fitted, seen), (loss, accuracy) = (train.measure(network, data, of, cfg) for of in (data.train, data.test))
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


def accuracy(r: Results) -> Values:
    """Test accuracy by network, activation and order; BN has gamma and beta."""
    return r.test_accuracy(part="order", affine="on")


def difference(r: Results, first: str, second: str) -> Values:
    """Test accuracy with one order minus that with another, by network and activation."""
    return accuracy(r).at(order=first) - accuracy(r).at(order=second)


def change(r: Results, norm: str, position: str, amount: float | list[float]) -> Values:
    """Test accuracy with dropout minus that without."""
    values = r.test_accuracy(part="dropout", norm=norm)
    return values.at(position=position, amount=amount) - values.at(position="none", amount=0.0)


def spread(values: Values) -> Values:
    """Best minus worst of ReLU, ELU and PReLU, over the seeds that have all three."""

    def of_seed(found: list[float]) -> float:
        return max(found) - min(found) if len(found) == len(ALIKE) else math.nan

    return values.at(activation=ALIKE).reduce(of_seed, "activation").where(math.isfinite)


@notes(
    "P1",
    source=f"{NOTES}, which shows {BENCHMARK}",
    quote="it seems that putting BatchNorm after the activation function provides better performance (and makes more "
    "sense)",
    where="the benchmark's tables of BN before and after ReLU, and of GoogLeNet128",
    reported="CaffeNet128 on ImageNet, top-1: before .474, after .499 (with gamma and beta .478, .493), no BN .471; "
    "the same file's GoogLeNet128 says the opposite: before .603 and .607, after .596 and .584, no BN .619",
)
def after_is_better(r: Results, s: Settings) -> Evidence:
    """Putting batch normalization after the activation function provides better performance than before it."""
    gain = difference(r, "after", "before")
    evidence = greater(gain, "test accuracy, BN after minus before", POINTS, margin=s.negligible_points)
    return evidence.showing({"no BN minus BN before, ReLU": difference(r, "none", "before").at(activation="relu")})


@notes(
    "P2",
    quote="Thus we generally don't put Dropout after BatchNorm, or we set a dropout probability very low ≈ 0.1",
    reported="no number of its own; the benchmark's CaffeNet128 with BN: dropout 0.5 .499, 0.2 .527, 0 .513",
    scale_note=REGULARIZED,
)
def dropout_after_bn_harms_unless_low(r: Results, s: Settings) -> Evidence:
    """Dropout is generally not put after batch normalization, or with a very low probability of about 0.1."""
    margin, estimand = s.negligible_points, "test accuracy, dropout after each BN minus none"
    little, much = s.dropout_amounts[0], s.dropout_amounts[-1]
    harm, least = (change(r, "bn", "after_norm", amount) for amount in (much, little))
    evidence = less(harm, estimand, POINTS, margin=-margin, condition=f"dropout {much:g}")
    evidence &= not_lower(least, estimand, POINTS, margin=margin, condition=f"dropout {little:g}")
    beside = {
        f"{much:g} directly before each BN": change(r, "bn", "before_norm", much),  # Li et al. (2019) warn of it
        f"{much:g} without BN": change(r, "nobn", "after_norm", much),
        "before the last layer only": change(r, "bn", "last", [little, much]),
    }
    return evidence.showing(beside)


@notes(
    "P3",
    quote="The computation of mean and std on batch adds some noise during the training and regularizes.",
    scale_note=REGULARIZED,
)
def noise_regularizes(r: Results, s: Settings) -> Evidence:
    """The computation of mean and standard deviation on the batch adds noise during training and regularizes."""
    fitted, loss, gap, accuracy = (
        values.at(size=s.ghost_decides) - values.at(size=s.whole)
        for values in (r.measured(quantity, part="ghost") for quantity in (*LOSSES, "test_accuracy"))
    )
    estimand = f"statistics of {s.ghost_decides} images minus those of {s.whole}"
    evidence = less(gap, estimand, "nats", margin=-s.negligible_loss, condition="test minus training loss")
    evidence &= not_lower(100 * accuracy, estimand, POINTS, margin=s.negligible_points, condition="test accuracy")
    # A gap that narrows because the training loss rises is no gain: both losses stand beside it.
    return evidence.showing({"training loss": fitted, "test loss": loss})


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
)
def affine_helps_before_and_not_after(r: Results, s: Settings) -> Evidence:
    """The learned scale and shift help where BN stands before the activation, and not where it stands after it."""
    found = r.test_accuracy(part="order", activation="relu")
    gain = found.at(affine="on") - found.at(affine="off")
    gains = {"before": gain.at(order="before"), "after": -gain.at(order="after")}
    return greater(gains, "accuracy gained by gamma and beta (after: lost)", POINTS, margin=s.negligible_points)


@benchmark(
    "P7",
    where="table of BN and activations",
    quote="BN makes difference between ReLU, ELU and PReLU negligible",
    reported="CaffeNet128, top-1: ReLU .499, ELU .498, PReLU .503 with BN; .471, .488, .485 without",
)
def activations_are_alike(r: Results, s: Settings) -> Evidence:
    """BN (after the activation) makes the difference between ReLU, ELU and PReLU negligible."""
    after, margin = accuracy(r).at(order="after"), s.negligible_points
    pairs = {
        f"{ACTIVATIONS[a]} minus {ACTIVATIONS[b]}": after.at(activation=a) - after.at(activation=b)
        for a, b in combinations(ALIKE, 2)
    }
    spreads = spread(accuracy(r))
    nearer = spreads.at(order="none") - spreads.at(order="after")
    evidence = equal(pairs, "test accuracy with BN after", POINTS, margin=margin)
    evidence &= greater(nearer, "", POINTS, margin=margin, condition="spread without BN minus with")
    return evidence.showing({f"spread, {name}": spreads.at(order=order) for order, name in ORDERS.items()})


# --- tables and figures ---


def by_order(values: Values) -> Row:
    """Test accuracy of each order, and after minus before."""
    found: Row = {f"{name}, %": values.at(order=order).interval() for order, name in ORDERS.items()}
    return found | {"after - before, points": (values.at(order="after") - values.at(order="before")).interval()}


@paper.table
def accuracies(r: Results, s: Settings) -> list[Row]:
    """Test accuracy by order, activation and network."""
    return [
        {"network": network, "activation": activation, **by_order(values)}
        | {"after - no BN, points": (values.at(order="after") - values.at(order="none")).interval()}
        for (network, activation), values in accuracy(r).by("network", "activation").items()
    ]


@paper.table
def beside_the_source(r: Results, s: Settings) -> list[Row]:
    """The benchmark's top-1 accuracies (one run each) and our test accuracies, with ReLU."""
    each = {name: Values(("order",), {((o,), 0): v for o, v in of.items()}) for name, of in REPORTED.items()}
    each |= {f"{network} (here)": found for network, found in accuracy(r).at(activation="relu").by("network").items()}
    return [{"network": network, **by_order(values)} for network, values in each.items()]


@paper.table
def dropout_accuracies(r: Results, s: Settings) -> list[Row]:
    """Test accuracy by place and amount of dropout."""
    return [
        {"norm": norm, "position": position, "dropout": amount, ACCURACY: values.interval()}
        | {"minus no dropout, points": change(r, norm, position, amount).interval() if amount else None}
        for (norm, position, amount), values in r.test_accuracy(part="dropout").by("norm", "position", "amount").items()
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
    """Test accuracy with BN after the activation minus that with BN before it (top) and minus that without BN (bottom),
    in percentage points. Bold with a star: different from zero after Holm's correction over the panel. Colours are
    linear up to 1 point and logarithmic beyond.
    """
    shown = {
        "BN after - BN before the activation": difference(r, "after", "before"),
        "BN after the activation - no BN": difference(r, "after", "none"),
    }
    if not all(shown.values()):
        return None
    largest = max(1.0, *(abs(found.interval().mean) for values in shown.values() for found in values.cells().values()))
    colors = SymLogNorm(1.0, vmin=-largest, vmax=largest, base=10)
    figure, axes = panels(1, 2, height=0.4 + 0.43 * len(s.networks), width=2 * COLUMN, sharex=True)
    for panel, (title, values) in zip(axes, shown.items(), strict=True):
        cells = {(network, ACTIVATIONS[a]): v for (network, a), v in values.by("network", "activation").items()}
        rejected = holm({str(cell): p_value([*found]) for cell, found in cells.items()})
        starred = [cell for cell in cells if rejected[str(cell)]]
        image = heat_map(panel, {cell: v.interval() for cell, v in cells.items()}, norm=colors, starred=starred)
        panel.set_title(title, fontsize=8)
    marks = [mark for mark in (-30, -10, -3, -1, 0, 1, 3, 10, 30) if abs(mark) <= largest]
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, label="percentage points", ticks=marks)
    bar.ax.set_yticklabels([f"{mark:+}" if mark else "0" for mark in marks])
    bar.minorticks_off()
    return figure


@paper.figure
def dropout(r: Results, s: Settings) -> Figure | None:
    """Test accuracy with dropout minus that without it, by probability and place, in networks with BN; bars are the
    intervals. The grey line is no change.
    """
    values = r.test_accuracy(part="dropout", norm="bn")
    if not values:
        return None
    figure, (axes,) = panels(height=2.9)
    zero(axes)
    effect = values.at(position=list(POSITIONS)) - values.at(position="none", amount=0.0)
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
