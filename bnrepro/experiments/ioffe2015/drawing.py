"""The figures, drawn as the paper's are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.ioffe2015.effects import (
    Curve,
    by_rate,
    dropout_effect,
    figure1_curves,
    race_curves,
    shuffle_effect,
)
from bnrepro.experiments.ioffe2015.figure1 import PERCENTILES, UNIT
from bnrepro.experiments.ioffe2015.grid import FIGURE1
from bnrepro.experiments.ioffe2015.jacobian import NEAR
from bnrepro.figures import COLUMN, label, look, style
from bnrepro.stats import t_interval

BLACK, BLUE, ORANGE, RED, GREEN, PINK, SKY, GREY = (
    "#000000", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999",
)  # fmt: skip
DOTTED, DASHED, DASHDOT = (0, (1, 1)), (0, (4, 2)), (0, (5, 1, 1, 1))
RACE_LOOKS: dict[str, tuple[str, Any]] = {
    "Baseline": (BLACK, DASHED),
    "BN-Baseline": (BLUE, DOTTED),
    "BN-x5": (BLUE, "-"),
    "BN-x30": (SKY, DASHDOT),
    "BN-x5-Sigmoid": (GREEN, DASHED),
    "convbn-x5": (RED, DASHDOT),
    "no BN, x5": (GREY, "-"),
    "no BN, x30": (GREY, DASHED),
    "no BN, sigmoid": (PINK, DOTTED),
}


def pictures(records: Records) -> list[Picture]:
    """All of them; what has no records is not drawn."""
    drawn = []
    if figure1_curves(records, "test_accuracy", "bn"):
        drawn += [figure1(records), spectra(records)]
    if race_curves(records, "Baseline"):
        drawn.append(figure2(records))
    if records.select(records.runs, part="rates"):
        drawn.append(rates(records))
    if shuffle_effect(records, "bn"):
        drawn.append(regularisers(records))
    return drawn


def figure1(records: Records) -> Picture:
    """Figure 1 a, b and c."""
    seeds = records.settings["seeds"]
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.5), layout="constrained")
        a, b, c = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        lowest = 0.7
        for variant, name in (("nobn", "without BN"), ("bn", "with BN")):
            color, dashes = (BLACK, DASHED) if variant == "nobn" else (BLUE, "-")
            own = {
                s: {x: v / 100 for x, v in y.items()}
                for s, y in figure1_curves(records, "test_accuracy", variant).items()
            }
            band(a, own, color, dashes, f"{name} (n={len(own)})")
            ends = [list(curve.values())[-1] for curve in own.values()]
            lowest = min([lowest, *(0.95 * end for end in ends)])
        steps = records.settings["figure1"]["steps"]
        a.set(xlim=(steps / 50, steps), ylim=(lowest, 1), xlabel="training steps", ylabel="test accuracy", title="(a)")
        a.legend(loc="lower right", handlelength=2.4)
        low, high = -2.0, 2.0
        for axes, variant, name in ((b, "nobn", "(b) without BN"), (c, "bn", "(c) with BN")):
            for percentile, dashes in zip(PERCENTILES, ("--", "-", "--"), strict=True):
                for seed, curve in figure1_curves(records, f"p{percentile}", variant).items():
                    color = BLACK if variant == "nobn" else BLUE
                    width, alpha = (1.3, 1.0) if seed == 0 else (0.6, 0.3)
                    values = list(curve.values())
                    axes.plot(list(curve), values, color=color, linestyle=dashes, linewidth=width, alpha=alpha)
                    low, high = min(low, *(1.05 * v for v in values)), max(high, *(1.05 * v for v in values))
            axes.set(xlim=(0, steps), xlabel="training steps", title=name)
        for axes in (b, c):
            axes.set_ylim(low, high)
        b.set_ylabel(f"input of sigmoid {UNIT}")
        c.tick_params(labelleft=False)
        for axes in (a, b, c):
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    caption = (
        "As Figure 1 of Ioffe & Szegedy (2015), on binary images of digits, with three layers of sigmoids. (a) Test "
        f"accuracy by training steps, mean and 95% interval over n = {seeds} seeds. (b, c) The {{15, 50, 85}}th "
        f"percentiles of the inputs to one sigmoid of the last hidden layer (unit {UNIT}, fixed beforehand), over the "
        "images of a fixed batch: seed 0 in full, the other seeds faint."
    )
    return Picture("figure1", caption, figure)


def _thousands(value: float, _place: int) -> str:
    return f"{value / 1000:g}K" if value >= 1000 else f"{value:g}"


def spectra(records: Records) -> Picture:
    """Sorted singular values, between normalised vectors and as they are."""
    names = {"normalised": "between normalised vectors", "plain": "from sigmoid to sigmoid"}
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), names.items(), strict=True):
            axes.axhspan(1 / NEAR, NEAR, color="#eeeeee", linewidth=0)
            axes.axhline(1, color=GREY, linewidth=0.8)
            for variant, color, name in (("nobn", BLACK, "without BN"), ("bn", BLUE, "with BN")):
                for when, dashes, moment in (("start", DASHED, "before training"), ("end", "-", "trained")):
                    series = records.series(f"{kind}_{when}", part=FIGURE1, variant=variant)
                    logs = {x: [float(np.log2(max(v, 2.0**-20))) for v in values] for x, values in series.items()}
                    intervals = [t_interval(values) for values in logs.values()]
                    mean, low, high = ([2 ** getattr(i, end) for i in intervals] for end in ("mean", "low", "high"))
                    axes.plot(list(series), mean, color=color, linestyle=dashes, label=f"{name}, {moment}")
                    axes.fill_between(list(series), low, high, color=color, alpha=0.15, linewidth=0)
            axes.set_yscale("log", base=2)
            axes.set(xlabel="percentile of the singular values", title=title, xlim=(0, 100), ylim=(2**-9, 2**5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}"))
        figure.axes[0].set_ylabel("singular value")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=2.4, columnspacing=1.2)
    caption = (
        "Singular values of the Jacobians between the inputs of one sigmoid layer and the next (two pairs of layers, "
        "over images) in Figure 1's networks: between vectors normalised over a batch, as the paper's section 3.3 has "
        "them, and as they are. Grey: within a factor of two of 1. Geometric mean and 95% interval over "
        f"n = {records.settings['seeds']} seeds."
    )
    return Picture("singular_values", caption, figure)


def figure2(records: Records) -> Picture:
    """Validation accuracy by steps."""
    with style():
        figure = Figure(figsize=(1.5 * COLUMN, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for arm, (color, dashes) in RACE_LOOKS.items():
            own = race_curves(records, arm)
            lost = len(records.measured("diverged", part="speed", arm=arm))
            note = f"{lost} diverged" if lost else f"n={len(own)}"
            band(axes, own, color, dashes, f"{'local-gain BN-x5' if arm == 'convbn-x5' else arm} ({note})")
        axes.set(xlabel="training steps", ylabel="validation accuracy, %", xlim=(0, records.settings["speed"]["steps"]))
        axes.set_ylim(0, min(100, axes.get_ylim()[1]))
        figure.legend(loc="outside right upper", handlelength=2.6)
    caption = (
        "As Figure 2 of Ioffe & Szegedy (2015), for one small network: validation accuracy by training steps, for "
        "multiples of the learning rate that is best without BN. Mean and 95% interval over the seeds that had not "
        f"diverged, of {records.settings['seeds']}."
    )
    return Picture("figure2", caption, figure)


def rates(records: Records) -> Picture:
    """Accuracy by learning rate, and where it diverges."""
    variants = records.settings["rates"]["variants"]
    with style():
        figure = Figure(figsize=(COLUMN, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for place, (variant, (color, dashes)) in enumerate(look(variants).items()):
            found = sorted(by_rate(records, variant).items())
            where = [rate * 1.06 ** (place - 1) for rate, _ in found]  # side by side: bars would hide one another
            alive = [[v for v in values if v is not None] for _, values in found]
            intervals = [t_interval(values) for values in alive]
            means, lows, highs = (np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
            bars = np.nan_to_num([means - np.maximum(lows, 0), np.minimum(highs, 100) - means])  # an accuracy's bounds
            marks = {"color": color, "linestyle": dashes, "marker": "os^"[place % 3], "markersize": 3.5, "capsize": 2}
            axes.errorbar(where, means, yerr=bars, label=label(variant), **marks)
            for x, (_, values) in zip(where, found, strict=True):
                if lost := sum(value is None for value in values):
                    axes.text(x, -6 - 7 * place, f"{lost}x", color=color, ha="center", va="center", size=6)
        axes.set_xscale("log")
        axes.set(xlabel="learning rate", ylabel="test accuracy, %", ylim=(-10 - 7 * (len(variants) - 1), 104))
        axes.set_yticks(range(0, 101, 20))
        axes.xaxis.set_minor_locator(NullLocator())
        figure.legend(loc="outside upper center", ncols=len(variants), handlelength=2.6, columnspacing=1.2)
    caption = (
        "Test accuracy on 5,000 digits by learning rate (SGD with momentum), mean and 95% interval over the seeds "
        f"whose loss stayed finite, of n = {records.settings['seeds']}. Below: how many became infinite."
    )
    return Picture("rates", caption, figure)


def regularisers(records: Records) -> Picture:
    """What dropout and shuffling are worth, with and without BN."""
    names = {"nobn": "without BN", "bn": "with BN"}
    amounts = [amount for amount in records.settings["dropout_amounts"] if amount > 0]
    titles = [*(f"no dropout\n- {amount:g}" for amount in amounts), "drawn anew\n- same batches"]
    with style():
        figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=GREY, linewidth=0.8)
        for shift, (variant, color, marker) in ((-0.12, ("nobn", BLACK, "o")), (0.12, ("bn", BLUE, "s"))):
            effects = [dropout_effect(records, variant, amount) for amount in amounts]
            for place, values in enumerate([*effects, list(shuffle_effect(records, variant).values())]):
                interval = t_interval(values)
                axes.plot([place + shift + 0.08] * len(values), values, marker, color=color, alpha=0.35, markersize=2.5)
                half = np.nan_to_num(interval.high - interval.mean)
                axes.errorbar(
                    place + shift, interval.mean, yerr=half, fmt=marker, color=color, markersize=4, capsize=3,
                    label=names[variant] if place == 0 else None,
                )  # fmt: skip
        axes.set_xticks(range(len(titles)), titles)
        axes.set_ylabel("test accuracy, points")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper center", ncols=2)
    caption = (
        "What test accuracy gains where dropout before the last layer is taken away, and where batches are drawn anew "
        f"in each epoch. Each seed, mean and 95% interval over n = {records.settings['seeds']} seeds."
    )
    return Picture("regularisers", caption, figure)


def band(axes: Axes, curves: dict[int, Curve], color: str, dashes: Any, name: str) -> None:
    """Mean and 95% interval over the seeds that got so far."""
    steps = sorted({step for curve in curves.values() for step in curve})
    intervals = [t_interval([curve[step] for curve in curves.values() if step in curve]) for step in steps]
    mean, low, high = ([getattr(i, end) for i in intervals] for end in ("mean", "low", "high"))
    axes.plot(steps, mean, color=color, linestyle=dashes, label=name)
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
