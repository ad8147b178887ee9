"""The figures of `labml`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnrepro.experiments.base import Picture, Records
from bnrepro.figures import COLUMN, style
from bnrepro.stats import t_interval

BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.2))
LOOK: dict[str, tuple[str, Any, str]] = {
    "bn": (BLUE, "-", "BN"),
    "detachedmean": (GREEN, DASHED, "mean outside the gradient"),
    "detached": (RED, DOTTED, "mean and variance outside"),
}


def outside(records: Records) -> Picture:
    """The parameter and the loss of the two toys."""
    with style():
        figure = Figure(figsize=(2 * COLUMN, 3.6), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True)
        names = {"mean": "mean: x̂ = x - E[x], x = u + b", "variance": "variance: x̂ = x / std(x), x = w u"}
        for column, (statistic, title) in enumerate(names.items()):
            for axes, quantity in zip(grid[:, column], ("parameter", "loss"), strict=True):
                for detached, color, dashes, width, label in (
                    (False, BLUE, "-", 2.6, "in the gradient (attached)"),
                    (True, RED, DASHED, 1.3, "outside the gradient (detached)"),
                ):
                    series = records.series(quantity, part="toy", statistic=statistic, detached=detached)
                    if quantity == "loss":  # by seed, as a multiple of its own start
                        start = next(iter(series.values()), [])
                        series = {x: (np.array(v) / start).tolist() for x, v in series.items()}
                    _band(axes, series, color, dashes, label, width)
            grid[0, column].set(title=title, ylabel="bias b" if statistic == "mean" else "factor w")
            grid[1, column].set(xlabel="step", ylabel="loss / loss at the start", ylim=(0, 1.2))
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
    n, lr = records.settings["seeds"], records.settings["toy"]["lr"]
    caption = (
        f"Gradient descent (learning rate {lr:g}) through a statistic that the gradient takes for a constant, or does "
        f"not. Neither b nor w > 0 can change x̂ or the loss. Mean and 95% interval over n = {n} draws of the data."
    )
    return Picture("outside", caption, figure)


def in_networks(records: Records) -> Picture:
    """Training loss and validation accuracy of the MNIST network, by what the gradient knows."""
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for variant, (color, dashes, label) in LOOK.items():
            rows = records.select(records.curves, part="outside", variant=variant, keep_bias=True)
            for axes, column, factor in ((left, "train_loss", 1.0), (right, "val_accuracy", 100.0)):
                series: dict[Any, list[float]] = {}
                for row in rows:
                    if row[column] is not None:
                        series.setdefault(row["epoch"], []).append(factor * float(row[column]))
                _band(axes, series, color, dashes, label, marker="o")
        left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        right.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(max(0, right.get_ylim()[0]), 100))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=2.6)
    n = records.settings["seeds"]
    caption = (
        "The MNIST network with a bias before each norm, trained with Adam on 4,000 embedded digits less those for "
        f"validation; validation in eval mode, by the running statistics. Mean and 95% interval over n = {n} seeds."
    )
    return Picture("in_networks", caption, figure)


def sigmoids(records: Records) -> Picture:
    """The sigmoids' inputs before and after training: histogram, and share in [-1, 1] by layer."""
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        left.axvspan(-1, 1, color="#eeeeee", linewidth=0)
        looks = (("start", BLUE, "-", "o", "before training"), ("end", RED, DASHED, "s", "after training"))
        for place, (when, color, dashes, marker, label) in enumerate(looks):
            _band(left, records.series(f"density_{when}", part="sigmoid"), color, dashes, label)
            shares = records.series(f"input_{when}", part="sigmoid")
            intervals = [t_interval(values) for values in shares.values()]
            at = np.arange(len(intervals)) + 0.16 * (place - 0.5)
            halves = [np.nan_to_num(i.high - i.mean) for i in intervals]
            right.errorbar(
                at, [i.mean for i in intervals], yerr=halves, fmt=marker, color=color, markersize=4, capsize=3
            )
            right.set_xticks(range(len(shares)), [f"layer {i}" for i in range(1, len(shares) + 1)])
        left.set(xlabel="input of the sigmoid", ylabel="density", ylim=(0, None))
        right.set(ylabel="share in [-1, 1], %", ylim=(0, 100), xlim=(-0.5, 2.5))
        right.axhline(68.3, color="#999999", linewidth=0.8)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
    n = records.settings["seeds"]
    caption = (
        "Inputs of the sigmoids in a network of three hidden layers with BN before them, at the start and after "
        "training (validation images as one batch; 5,000 embedded digits). Grey: the range [-1, 1], and a normal "
        f"distribution's share of 68.3%. Mean and 95% interval over n = {n} seeds."
    )
    return Picture("sigmoids", caption, figure)


def scales(records: Records) -> Picture:
    """How the output and the gradients change with the scale of the weights, by eps."""
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.4), layout="constrained")
        names = {"output": "output", "du": "gradient by the inputs", "dw_times_a": "gradient by weights, times a"}
        looks = ((BLUE, "-", "o"), (ORANGE, DASHED, "s"), (RED, DOTTED, "^"))
        for axes, (quantity, title) in zip(figure.subplots(1, 3, sharey=True), names.items(), strict=True):
            for eps, (color, dashes, marker) in zip(records.settings["scale_eps"], looks, strict=False):
                series = records.series(quantity, part="scale", eps=eps)
                series = {x: [100 * value for value in values] for x, values in series.items()}
                _band(axes, series, color, dashes, f"eps = {eps:g}", marker=marker)
            axes.set(xscale="log", title=title, xlabel="factor a on the weights")
        figure.axes[0].set_ylabel("relative change, %")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=2.6)
    n = records.settings["seeds"]
    caption = (
        "BN(a W u) against BN(W u) for weights of deviation 0.01 and 20 inputs of variance 1, in float64: the output, "
        f"and the gradients that are said to stay, or to stay but for 1 / a. Mean and 95% interval over n = {n} draws."
    )
    return Picture("scales", caption, figure)


def cancellation(records: Records) -> Picture:
    """Relative error of the float32 variance against mean / deviation."""
    ratios = {(mean, std): mean / std for mean, std in records.settings["cancellation"] if mean > 0}
    with style():
        figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        axes = figure.add_subplot()
        looks = {"E[x²] - E[x]²": (RED, DOTTED, "o"), "torch": (BLUE, "-", "s"), "ours": (ORANGE, DASHED, "^")}
        for name, (color, dashes, marker) in looks.items():
            series: dict[float, list[float]] = {}
            for (mean, std), ratio in sorted(ratios.items(), key=lambda item: item[1]):
                values = records.series("error", part="cancellation", mean=mean, std=std).get(name, [])
                series.setdefault(ratio, []).extend(np.log(np.maximum(values, 1e-9)).tolist())
            intervals = [t_interval(values) for values in series.values()]
            mean_, low, high = (np.exp([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
            axes.plot(list(series), mean_, color=color, linestyle=dashes, marker=marker, markersize=3, label=name)
            axes.fill_between(list(series), low, high, color=color, alpha=0.15, linewidth=0)
        axes.axhline(1, color="#999999", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="mean / deviation", ylabel="relative error of the variance")
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.2, columnspacing=1.0)
    n, draws = records.settings["seeds"], records.settings["cancellation_draws"]
    caption = (
        "Error of the variance of 4,096 normal float32 values: the source's formula in one pass, torch, and ours in "
        f"two. Median over {draws} draws; geometric mean and 95% interval over n = {n} of them. Grey: an error of the "
        "variance's own size. Values below 1e-9 are drawn there."
    )
    return Picture("cancellation", caption, figure)


def inference(records: Records) -> Picture:
    """Test accuracy with statistics of the training set or its parts, and the test batches' own, less the average's."""
    networks, counts = list(records.settings["networks"]), records.settings["population_batches"]
    names = [*map(str, counts), "all", "test\nbatch"]
    with style():
        figure = Figure(figsize=(COLUMN * max(1.2, len(networks)), 2.5), layout="constrained")
        for axes, network in zip(figure.subplots(1, len(networks), squeeze=False).flat, networks, strict=True):
            who = {"part": "inference", "network": network}
            accuracy, parts = records.series("accuracy", **who), records.series("part_accuracy", **who)
            average = accuracy.get("ema", [])
            kinds = [parts.get(count, []) for count in counts] + [accuracy.get(k, []) for k in ("population", "batch")]
            intervals = [t_interval([a - b for a, b in zip(values, average, strict=True)]) for values in kinds]
            halves = [np.nan_to_num(i.high - i.mean) for i in intervals]
            axes.axhline(0, color=RED, linestyle=DASHED)
            axes.errorbar(range(len(names)), [i.mean for i in intervals], yerr=halves, fmt="o", color=BLUE, capsize=3)
            axes.set_xticks(range(len(names)), names)
            axes.set(title=network, xlabel="training batches in the statistics, or none")
        figure.axes[0].set_ylabel("test accuracy less that with\nthe moving average, points")
    n = records.settings["seeds"]
    caption = (
        "Test accuracy of networks with BN by the statistics that normalise at inference, less that with the moving "
        "average (dashed) of the same network: those of so many training batches, of all of them, or of each test "
        f"batch itself. Mean and 95% interval over n = {n} seeds."
    )
    return Picture("inference", caption, figure)


def _band(
    axes: Axes, series: dict[Any, list[float]], color: str, dashes: Any, label: str, width: float = 1.3,
    marker: str | None = None,
) -> None:  # fmt: skip
    """Mean and 95% interval."""
    intervals = [t_interval(values) for values in series.values()]
    mean, low, high = ([getattr(i, end) for i in intervals] for end in ("mean", "low", "high"))
    axes.plot(
        list(series), mean, color=color, linestyle=dashes, linewidth=width, label=label, marker=marker, markersize=3
    )
    axes.fill_between(list(series), low, high, color=color, alpha=0.15, linewidth=0)
