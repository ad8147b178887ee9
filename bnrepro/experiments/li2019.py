"""Li, Chen, Hu & Yang, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift
(CVPR 2019).

https://arxiv.org/abs/1801.05134

Differences from the paper
- The network of airbench at a quarter of its width, trained for 8 epochs of CIFAR-10; the source trains DenseNet,
  ResNet, ResNeXt and Wide ResNet on CIFAR-10 and CIFAR-100 to the end. The narrow network of D1.6 has half of that
  width.
- Dropout stands before the last convolution of each block, as in the source, or after the last BN. A block is one of
  three pairs of convolutions, without the shortcuts that all of the source's networks have.
- The shift of a channel is max(real / moving, moving / real), its variance over the training images in eval mode
  against the moving variance. Channels, layers and seeds are averaged geometrically: a layer whose ratio is in the
  thousands would otherwise outweigh all others. eps, as BN has it, is added to both variances.
- Statistics are re-estimated in one pass over the training images, without dropout and augmentation.
- SGD at one rate, that of the recipe for this network without dropout, for all. All networks have BN: what dropout
  costs without it is not measured.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values, measure, row
from bnrepro.claims.evidence import greater, not_lower
from bnrepro.claims.gates import reaches
from bnrepro.config import load_config
from bnrepro.data.dataset import eval_batches
from bnrepro.norm import reestimate_statistics
from bnrepro.plots.panels import dots, legend, lines, looks, panels
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training.trainer import EVAL_IMAGES, loss_and_accuracy

POINTS = "percentage points of test accuracy"
UNREAD = "no number read in the text"
AIRBENCH = "airbench's network at a quarter of its width, 8 epochs of CIFAR-10"
DENSENET = "DenseNet on CIFAR-100: 77.42% without dropout, 68.55% with 0.5 in every bottleneck"
REESTIMATED = "with re-estimated statistics"
NO_OTHER = (
    "No network without BN stands beside it; what is lost with re-estimated statistics is not due to a shift of the "
    "variance."
)
PLACES = {
    "none": "no dropout",
    "in_blocks": "in each block",
    "last": "after the last BN only",
}


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every run; the norm is BN
        *("data=cifar10", "data.crop=2", "model=airbench", "model.width=0.25", "epochs=8", "batch_size=256"),
        *("optimizer=sgd", "optimizer.lr=0.4", "optimizer.nesterov=true", "optimizer.weight_decay=5e-4"),
        *("schedule=linear", "schedule.warmup_epochs=1", "channels_last=true", "eval_every=1000000"),  # at the end only
    ]
    little: float = 0.1  # of dropout: D1.5
    much: float = 0.5  # the source's, of the other claims
    narrow: float = 0.125  # D1.6: width of the narrow network, beside that of all others
    trained: float = 80.0  # % test accuracy without dropout: wu2018's gate for this network and recipe
    learned: float = 40.0  # D1.4: % test accuracy with dropout and re-estimated statistics, far from chance
    margin_points: float = 0.5  # accuracies that count as alike; the harm in the source is 8.9
    margin_shift: float = 1.1  # ratio of variances that counts as none: 5% of a standard deviation

    @property
    def width(self) -> float:
        """Of the network in which all places are compared."""
        return load_config(self.common).model.width


paper = Paper(__name__, Settings, scale="reduced", scale_note=AIRBENCH)


@paper.design
def runs(s: Settings) -> Design:
    """Every place with much dropout, a little in each block, and a narrow network with much in each block."""
    design = Design(s.seeds)
    cells = [("none", 0.0, s.width), ("in_blocks", s.little, s.width)]
    cells += [(where, s.much, s.width) for where in list(PLACES)[1:]]
    cells += [("none", 0.0, s.narrow), ("in_blocks", s.much, s.narrow)]
    for where, amount, width in cells:
        dropout = [f"model.dropout={amount}", f"model.dropout_position={where}"] if amount else []
        factors = {"position": where, "amount": amount, "width": width}
        design.train("dropout", factors, [*s.common, f"model.width={width}", *dropout], variance_shift)
    return design


# --- measurement ---


@measure("li2019/variance_shift", version=2)
@torch.no_grad()
def variance_shift(run: Run, seed: int) -> list[Row]:
    """How far the variances that enter the norms at test are from the moving ones.

    Rows: ``shift`` (x = layer from 1), the geometric mean over channels of `ratio`, with the network in eval mode on
    all training images; ``shift_mended``, the same after statistics were re-estimated from these images without
    dropout; and ``accuracy`` and ``accuracy_mended``, test accuracy in % with either.
    """
    cfg, data, network = inference.restore(run)
    images = [x for x, _ in eval_batches(data, data.train, EVAL_IMAGES)]
    rows: list[Row] = []
    for suffix in ("", "_mended"):
        if suffix:
            reestimate_statistics(network, images)
        for layer, value in enumerate(by_layer(network, images), 1):
            rows.append(row(f"shift{suffix}", value, layer))
        _, accuracy = loss_and_accuracy(network, data, data.test, cfg)
        rows.append(row(f"accuracy{suffix}", 100 * accuracy))
    return rows


@torch.no_grad()
def by_layer(network: Any, images: list[Tensor]) -> list[float]:
    """The geometric mean of `ratio` over the channels of each norm of ``network``, in order.

    The variances are those of what enters it in eval mode over all ``images``.
    """
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in network.norms}

    def collect(of: list[Any], _norm: Any, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].double().transpose(0, 1).flatten(1)  # (C, values)
        of[0], of[1], of[2] = of[0] + x.shape[1], of[1] + x.sum(1), of[2] + x.square().sum(1)

    handles = [norm.register_forward_pre_hook(partial(collect, sums[name])) for name, norm in network.norms.items()]
    network.eval()
    for x in images:
        network(x)
    for handle in handles:
        handle.remove()
    found = []
    for name, norm in network.norms.items():
        count, total, square = sums[name]
        real = square / count - (total / count).square()  # in float64, where this cancels nothing that counts
        found.append(float(ratio(real + norm.eps, norm.running_var.double() + norm.eps).log().mean().exp()))
    return found


def ratio(real: Tensor, moving: Tensor) -> Tensor:
    """max(real / moving, moving / real), 1 where they are the same. Both have eps added, as BN has: dead channels."""
    return torch.maximum(real / moving, moving / real)


# --- claims ---


def accuracy(r: Results, where: str, amount: float, width: float, quantity: str = "accuracy") -> Values:
    """Test accuracy with dropout at a place."""
    return r.measured(quantity, part="dropout", position=where, amount=amount, width=width)


def change(r: Results, s: Settings, where: str, amount: float, quantity: str = "accuracy") -> Values:
    """Test accuracy with dropout minus that without."""
    return accuracy(r, where, amount, s.width, quantity) - accuracy(r, "none", 0.0, s.width, quantity)


def shift(r: Results, where: str, amount: float, width: float, quantity: str = "shift") -> Values:
    """The geometric mean of the shift over the layers of a network."""
    return accuracy(r, where, amount, width, quantity).reduce(geometric_mean, "x")


def added_shift(r: Results, where: str, amount: float, width: float) -> Values:
    """The shift of a network with dropout over that of the network without."""
    return shift(r, where, amount, width) / shift(r, "none", 0.0, width)


def trained(r: Results, s: Settings) -> Gate:
    """The network without dropout."""
    return reaches(accuracy(r, "none", 0.0, s.width), s.trained, "test accuracy without dropout, %")


def learned(r: Results, s: Settings) -> Gate:
    """That one, and the one with dropout in each block, whose accuracy is not chance."""
    found = accuracy(r, "in_blocks", s.much, s.width, "accuracy_mended")
    name = "test accuracy with dropout in each block and re-estimated statistics, %"
    return trained(r, s) & reaches(found, s.learned, name)


@paper.claim(
    "D1.1",
    quote="Dropout shifts the variance of a specific neural unit when we transfer the state of that network from "
    "training to test.",
    where="abstract",
    reported="Figure 1 (DenseNet on CIFAR-100), no number read in the text",
    gate=trained,
)
def dropout_shifts_the_variance(r: Results, s: Settings) -> Evidence:
    """Dropout before BN shifts the variance of BN's inputs between training and test."""
    more = added_shift(r, "in_blocks", s.much, s.width)
    others = {PLACES["last"]: added_shift(r, "last", s.much, s.width)}
    others[f"in each block, {s.little:g}"] = added_shift(r, "in_blocks", s.little, s.width)
    estimand = "shift, mean over layers, dropout in each block over none"
    evidence = greater(more, estimand, "times", margin=s.margin_shift, ratio=True)
    return evidence.showing(others, ratio=True)


@paper.claim("D1.2", where="Figure 1", reported=DENSENET, gate=trained)
def dropout_harms(r: Results, s: Settings) -> Evidence:
    """Dropout of 0.5 in every block makes a network with BN less accurate."""
    harm, left = (-change(r, s, "in_blocks", s.much, quantity) for quantity in ("accuracy", "accuracy_mended"))
    estimand = "test accuracy, no dropout minus dropout in each block"
    evidence = greater(harm, estimand, POINTS, margin=s.margin_points)
    return replace(evidence.showing({REESTIMATED: left}), remark=NO_OTHER)


@paper.claim("D1.3", reported=UNREAD, gate=trained)
def after_the_last_norm_is_harmless(r: Results, s: Settings) -> Evidence:
    """Dropout after the last BN alone does no harm."""
    estimand = "test accuracy, dropout after the last BN minus none"
    evidence = not_lower(change(r, s, "last", s.much), estimand, POINTS, margin=s.margin_points)
    left = change(r, s, "last", s.much, "accuracy_mended")
    return replace(evidence.showing({REESTIMATED: left}), remark=NO_OTHER)


@paper.claim("D1.4", reported=UNREAD, gate=learned)
def reestimation_repairs(r: Results, s: Settings) -> Evidence:
    """The shift is what harms: statistics taken again without dropout bring accuracy back."""
    moving, mended = (accuracy(r, "in_blocks", s.much, s.width, name) for name in ("accuracy", "accuracy_mended"))
    left, harm = change(r, s, "in_blocks", s.much, "accuracy_mended"), -change(r, s, "in_blocks", s.much)
    estimand = "test accuracy with statistics re-estimated without dropout"
    evidence = greater(mended - moving, estimand, POINTS, margin=s.margin_points, condition="minus moving ones")
    evidence &= not_lower(left, "", POINTS, margin=s.margin_points, condition="minus no dropout")
    evidence = evidence.showing({"the harm": harm}).showing(
        {"of the harm given back": 100 * (mended - moving) / harm}, "%"
    )
    shifts = {"shift that is left": shift(r, "in_blocks", s.much, s.width, "shift_mended")}
    return evidence.showing(shifts, "times", ratio=True)


@paper.claim("D1.5", reported=UNREAD, gate=trained)
def a_little_is_safe(r: Results, s: Settings) -> Evidence:
    """A small amount, 0.1, is safe before BN."""
    estimand = "test accuracy, little dropout in each block minus none"
    evidence = not_lower(change(r, s, "in_blocks", s.little), estimand, POINTS, margin=s.margin_points)
    left = change(r, s, "in_blocks", s.little, "accuracy_mended")
    return replace(evidence.showing({REESTIMATED: left}), remark=NO_OTHER)


@paper.claim(
    "D1.6",
    quote="Meanwhile, the large feature dimension in WRN further reduces the “variance shift” to bring benefits to the "
    "overall performance.",
    where="abstract",
    reported=UNREAD,
    scale_note=f"{AIRBENCH}, and at an eighth",
    gate=trained,
)
def wide_networks_shift_less(r: Results, s: Settings) -> Evidence:
    """A wide network shifts less."""
    narrow, wide = (added_shift(r, "in_blocks", s.much, width) for width in (s.narrow, s.width))
    estimand = "shift that dropout adds, mean over layers, narrow network over wide"
    evidence = greater(narrow / wide, estimand, "times", margin=s.margin_shift, ratio=True)
    evidence = evidence.showing({f"width {s.narrow:g}": narrow, f"width {s.width:g}": wide}, ratio=True)
    harm = accuracy(r, "none", 0.0, s.narrow) - accuracy(r, "in_blocks", s.much, s.narrow)
    evidence = evidence.showing({"harm in the narrow network": harm}, "points")
    small = evidence.effects[0].interval.mean < s.margin_shift
    remark = f"On average it is below {s.margin_shift:g}, a ratio that the design counts as none." if small else ""
    return replace(evidence, remark=remark)


# --- tables and figures ---


@paper.table
def dropout(r: Results, s: Settings) -> list[Row]:
    """Shift of the variance (1: none; log10 of its geometric mean over channels and layers) and test accuracy by place
    and amount of dropout.
    """
    rows = []
    quantities = {"test accuracy, %": "accuracy", "statistics re-estimated, %": "accuracy_mended"}
    shifts = r.measured("shift", part="dropout").reduce(geometric_mean, "x").by("position", "amount", "width")
    for (where, amount, width), values in shifts.items():
        row: Row = {"dropout": PLACES[where], "amount": amount, "width": width}
        row["log10 of the shift"] = values.log10().interval()
        for name, quantity in quantities.items():
            here, without = accuracy(r, where, amount, width, quantity), accuracy(r, "none", 0.0, width, quantity)
            row |= {name: here.interval(), f"{name}: minus no dropout": (here - without).interval()}
        rows.append(row)
    return rows


@paper.figure
def shift_of_the_variance(r: Results, s: Settings) -> Figure | None:
    """Left: the shift of the variance at each BN layer, with dropout {s.much:g}; 1 is none; means are geometric. Right:
    test accuracy by place and amount of dropout, with moving and with re-estimated statistics.
    """
    layers = r.measured("shift", part="dropout", width=s.width)
    if not layers:
        return None
    figure, (left, right) = panels(2, height=2.9)
    lines(left, layers.at(amount=[0.0, s.much]).max("amount"), "x", "position", looks(PLACES), log=True)
    left.set(xlabel="BN layer", ylabel="shift of the variance", title=f"dropout {s.much:g}", yscale="log")
    cells = {"none": ("none", 0.0), f"blocks {s.little:g}": ("in_blocks", s.little)}
    cells |= {f"blocks {s.much:g}": ("in_blocks", s.much), f"last {s.much:g}": ("last", s.much)}
    names = {"accuracy": "moving statistics", "accuracy_mended": "re-estimated"}
    found = {
        quantity: Values.stacked("dropout", {text: accuracy(r, *at, s.width, quantity) for text, at in cells.items()})
        for quantity in names
    }
    dots(right, Values.stacked("statistics", found), "dropout", "statistics", looks(names), width=0.3)
    right.set(ylabel="test accuracy, %", title="test accuracy")
    right.legend(loc="lower left")
    legend(figure, of=left)
    return figure
