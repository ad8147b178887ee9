"""Li, Chen, Hu & Yang, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift
(CVPR 2019).

https://arxiv.org/abs/1801.05134

Differences from the paper
- A small VGG for few epochs, where the source trains DenseNet, ResNet, ResNeXt and Wide ResNet on CIFAR-10 and
  CIFAR-100 to the end.
- Dropout stands directly before each BN, or after each BN and its activation, which is again before the next layer's
  BN; the source has it before the last convolution of each block. Or it stands after the last BN only.
- The shift of a channel is max(real / moving, moving / real), its variance over the training images in eval mode
  against the moving variance; a layer's is the mean over its channels, and a network's that over its layers. So one
  layer of one seed can outweigh all others where ratios are in the thousands, and the intervals of D1.1 and D1.6 are as
  wide as that; it was set so before the runs, and is left so.
- Adam at one rate with a cosine, the same for all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bnrepro.claims import Design, Evidence, Paper, Preset, Results, Row, Values, greater, measure, not_lower, row
from bnrepro.config import load_config
from bnrepro.data.dataset import eval_batches
from bnrepro.norm import reestimate_statistics
from bnrepro.plots.panels import legend, lines, looks, panels, same_limits, ticks, zero
from bnrepro.plots.style import log_ticks
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train

POINTS, RATIO = "percentage points of test accuracy", "ratio of variances"
SHORT = "the networks reach 37% after 8 epochs, and ratios need geometric means"
UNREAD = "no number read in the text"
PLACES = {
    "none": "no dropout",
    "before_norm": "directly before each BN",
    "after_norm": "after each BN and activation",
    "last": "after the last BN only",
}


class Settings(Preset):
    common: list[str] = [  # of every run; the norm is BN; 5,000 images to train on
        *("data=cifar10", "data.val_fraction=0.9", "model=vgg_small", "model.width=0.125", "schedule=cosine"),
        *("channels_last=true", "batch_size=64", "epochs=8", "eval_every=1000000"),  # evaluated at the end only
    ]
    amounts: list[float] = [0.1, 0.3, 0.5]  # of dropout: the first is D1.5's "small", the last decides the others
    widths: list[float] = [2.0]  # D1.6: factors on the width
    margin_points: float = 1.0  # D1.2 to D1.5: accuracies that count as alike
    margin_shift: float = (
        0.05  # D1.1, D1.6: a mean ratio of variances that counts as none: 2.5% of a standard deviation
    )

    @property
    def width(self) -> float:
        """Of the narrow network, in which all places and amounts are trained."""
        return load_config(self.common).model.width

    @property
    def much(self) -> float:
        """The amount of dropout that decides."""
        return self.amounts[-1]


paper = Paper(__name__, Settings, scale="reduced", scale_note="8 epochs on 5,000 images, an eighth of the width")


@paper.design
def runs(s: Settings) -> Design:
    """Every place and amount; and wider networks with the largest amount before BN, and with none."""
    design = Design(s.seeds)
    cells = [("none", 0.0, s.width), *((where, p, s.width) for where in list(PLACES)[1:] for p in s.amounts)]
    for factor in s.widths:
        cells += [("none", 0.0, factor * s.width), ("before_norm", s.much, factor * s.width)]
    for where, amount, width in cells:
        dropout = [f"model.dropout={amount}", f"model.dropout_position={where}"] if amount else []
        common = [each for each in s.common if not each.startswith("model.width=")]
        factors = {"position": where, "amount": amount, "width": width}
        design.train("dropout", factors, [*common, f"model.width={width}", *dropout], variance_shift)
    return design


# --- measurement ---


@measure("li2019/variance_shift")
@torch.no_grad()
def variance_shift(run: Run, seed: int) -> list[Row]:
    """How far the variances that enter the norms at test are from the moving ones.

    Rows: ``shift`` (x = layer from 1), the mean over channels of `ratio`, with the network in eval mode on all training
    images; ``shift_mended``, the same after statistics were re-estimated from these images without dropout; and
    ``accuracy`` and ``accuracy_mended``, test accuracy in % with either.
    """
    cfg, data, network = inference.restore(run)
    images = [x for x, _ in eval_batches(data, data.train, train.EVAL_IMAGES)]
    rows: list[Row] = []
    for suffix in ("", "_mended"):
        if suffix:
            reestimate_statistics(network, images)
        for layer, value in enumerate(by_layer(network, images), 1):
            rows.append(row(f"shift{suffix}", value, layer))
        _, accuracy = train.measure(network, data, data.test, cfg)
        rows.append(row(f"accuracy{suffix}", 100 * accuracy))
    return rows


@torch.no_grad()
def by_layer(network: Any, images: list[Tensor]) -> list[float]:
    """The mean `ratio` of each norm of ``network``, in order, with what enters it in eval mode over all ``images``."""
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
        found.append(float(ratio(real + norm.eps, norm.running_var.double() + norm.eps).mean()))
    return found


def ratio(real: Tensor, moving: Tensor) -> Tensor:
    """max(real / moving, moving / real), 1 where they are the same. Both have eps added, as BN has: dead channels."""
    return torch.maximum(real / moving, moving / real)


# --- claims ---


def change(r: Results, s: Settings, where: str, amount: float, quantity: str = "accuracy") -> Values:
    """With dropout minus without, in the narrow network."""
    values = r.measured(quantity, part="dropout", width=s.width)
    return values.at(position=where, amount=amount) - values.at(position="none", amount=0.0)


def shift(r: Results, where: str, amount: float, width: float, quantity: str = "shift") -> Values:
    """The mean shift over the layers of a network."""
    return r.measured(quantity, part="dropout", position=where, amount=amount, width=width).mean("x")


@paper.claim("D1.1", reported=UNREAD, withdrawn=SHORT)
def dropout_shifts_the_variance(r: Results, s: Settings) -> Evidence:
    """Dropout before BN shifts the variance of BN's inputs between training and test."""
    without = shift(r, "none", 0.0, s.width)
    more = shift(r, "before_norm", s.much, s.width) - without
    others = {PLACES[where]: shift(r, where, s.much, s.width) - without for where in ("after_norm", "last")}
    estimand = "mean shift over layers, dropout before each BN minus none"
    return greater(more, estimand, RATIO, margin=s.margin_shift).showing(others)


@paper.claim("D1.2", reported="DenseNet on CIFAR-100: 77.42% without dropout, 68.55% with 0.5 in every bottleneck")
def dropout_harms(r: Results, s: Settings) -> Evidence:
    """Dropout of 0.5 in every block makes a network with BN less accurate."""
    harm, of_after = (-change(r, s, where, s.much) for where in ("before_norm", "after_norm"))
    estimand = "test accuracy, no dropout minus dropout before each BN"
    return greater(harm, estimand, POINTS, margin=s.margin_points).showing({PLACES["after_norm"]: of_after})


@paper.claim("D1.3", reported=UNREAD)
def after_the_last_norm_is_harmless(r: Results, s: Settings) -> Evidence:
    """Dropout after the last BN alone does no harm."""
    estimand = "test accuracy, dropout after the last BN minus none"
    return not_lower(change(r, s, "last", s.much), estimand, POINTS, margin=s.margin_points)


@paper.claim("D1.4", reported=UNREAD)
def reestimation_repairs(r: Results, s: Settings) -> Evidence:
    """The shift is what harms: statistics taken again without dropout bring accuracy back."""
    at = {"part": "dropout", "position": "before_norm", "amount": s.much, "width": s.width}
    gain = r.measured("accuracy_mended", **at) - r.measured("accuracy", **at)
    left, margin = change(r, s, "before_norm", s.much, "accuracy_mended"), s.margin_points
    estimand = "test accuracy with statistics re-estimated without dropout"
    evidence = greater(gain, estimand, POINTS, margin=margin, condition="minus moving ones")
    evidence &= not_lower(left, "", POINTS, margin=margin, condition="minus no dropout")
    evidence = evidence.showing({"the harm": -change(r, s, "before_norm", s.much)})
    return evidence.showing({"shift that is left": shift(r, "before_norm", s.much, s.width, "shift_mended")}, "(ratio)")


@paper.claim("D1.5", reported=UNREAD)
def a_little_is_safe(r: Results, s: Settings) -> Evidence:
    """A small amount, 0.1, is safe before BN."""
    estimand = "test accuracy, little dropout before each BN minus none"
    return not_lower(change(r, s, "before_norm", s.amounts[0]), estimand, POINTS, margin=s.margin_points)


@paper.claim("D1.6", reported=UNREAD, withdrawn=SHORT)
def wide_networks_shift_less(r: Results, s: Settings) -> Evidence:
    """A wide network shifts less."""
    wide = max(s.widths) * s.width
    less = shift(r, "before_norm", s.much, s.width) - shift(r, "before_norm", s.much, wide)
    evidence = greater(less, "mean shift over layers, narrow network minus wide", RATIO, margin=s.margin_shift)
    accuracy = r.measured("accuracy", part="dropout", width=[s.width, wide])
    harm = accuracy.at(position="none", amount=0.0) - accuracy.at(position="before_norm", amount=s.much)
    return evidence.showing({"harm at": harm}, "points")


# --- tables and figures ---


@paper.table
def dropout(r: Results, s: Settings) -> list[Row]:
    """Shift of the variance (1: none) and test accuracy by place and amount of dropout."""
    rows = []
    quantities = {"test accuracy, %": "accuracy", "statistics re-estimated, %": "accuracy_mended"}
    shifts = r.measured("shift", part="dropout").mean("x").by("position", "amount", "width")
    for (where, amount, width), values in shifts.items():
        row: Row = {"dropout": where, "amount": amount, "width": width, "mean shift": values.interval()}
        for name, quantity in quantities.items():
            found = r.measured(quantity, part="dropout", width=width)
            here, without = found.at(position=where, amount=amount), found.at(position="none", amount=0.0)
            row |= {name: here.interval(), f"{name}: minus no dropout": (here - without).interval()}
        rows.append(row)
    return rows


@paper.figure
def shift_of_the_variance(r: Results, s: Settings) -> Figure | None:
    """Left: the shift of the variance at each BN layer, with dropout {s.much:g}; 1 is none. Middle: test accuracy minus
    that without dropout, by amount. Right: the same with re-estimated statistics.
    """
    layers = r.measured("shift", part="dropout", width=s.width)
    if not layers:
        return None
    look = looks(PLACES)
    figure, (left, *others) = panels(3, height=2.9)
    lines(left, layers.at(amount=[0.0, s.much]).max("amount"), "x", "position", look, log=False)
    left.set(xlabel="BN layer", ylabel="shift of the variance", title=f"dropout {s.much:g}", yscale="log")
    log_ticks(left)
    titles = {"accuracy": "moving statistics", "accuracy_mended": "statistics re-estimated"}
    for axes, (quantity, title) in zip(others, titles.items(), strict=True):
        values = r.measured(quantity, part="dropout", width=s.width)
        difference = values.at(amount=s.amounts) - values.at(position="none", amount=0.0)
        zero(axes)
        lines(axes, difference, "amount", "position", look, bars=True, apart=0.008)
        ticks(axes, s.amounts)
        axes.set(xlabel="dropout probability", ylabel="accuracy minus no dropout, points", title=title)
    same_limits(others)
    legend(figure, of=left)
    return figure
