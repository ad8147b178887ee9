"""One style, and pure functions from records to matplotlib figures. Nothing here trains or reads a trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from bnrepro.plots.style import COLUMN, CURVES, WIDE, label, legend, log_scale, look, save, style
from bnrepro.report.compare import Comparison
from bnrepro.stats import t_interval


def curve(comparison: Comparison, column: str) -> Figure:
    """``column`` of the curves against epochs: for each variant the mean over seeds and its 95% interval as a band.

    Losses are drawn on a logarithmic axis, where mean and interval are those of the logarithm.
    """
    with style():
        figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        axes = figure.add_subplot()
        draw_curve(axes, comparison, column)
        legend(figure, 2)
        return figure


def _label_loss(axes: Axes) -> None:
    """The ticks of `log_scale`, but for an axis of less than one decade or of many."""
    bottom, top = axes.get_ylim()
    if top < 10 * bottom:  # 1, 2 and 5 alone would leave such an axis almost bare
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_minor_locator(NullLocator())
    elif top > WIDE * bottom:  # ... and would overlap here
        axes.yaxis.set_major_locator(LogLocator(10 if top < 1e8 * bottom else 100))
        axes.yaxis.set_major_formatter(LogFormatterMathtext())


def draw_curve(axes: Axes, comparison: Comparison, column: str) -> None:
    """`curve` into ``axes``, without a legend."""
    logarithmic = column.endswith("loss")
    if logarithmic:
        log_scale(axes)
    for variant, (color, dashes) in look(comparison.variants).items():
        points = comparison.over_seeds(variant, column)
        if not points:
            axes.plot([], [], color=color, linestyle=dashes, label=_with_count(comparison, variant))
            continue
        epochs = [epoch for epoch, _ in points]
        values = [np.log(v) if logarithmic else np.asarray(v) for _, v in points]
        intervals = [t_interval(v.tolist()) for v in values]
        mean, low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
        if logarithmic:
            mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
        marker = "o" if len(points) == 1 else None
        axes.plot(epochs, mean, color=color, linestyle=dashes, marker=marker, label=_with_count(comparison, variant))
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    if logarithmic:
        _label_loss(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(CURVES.get(column, column.replace("_", " ")))
    if not any(point[column] is not None for point in comparison.curves):  # as without a validation set
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        axes.minorticks_off()


def _with_count(comparison: Comparison, variant: str) -> str:
    """The variant's label with its number of seeds, and how many of them diverged."""
    done, asked = len(comparison.completed(variant)), len(comparison.of(variant))
    return f"{label(variant)} (n={done})" if done == asked else f"{label(variant)} ({done} of {asked} finished)"


def test_accuracy(comparison: Comparison) -> Figure:
    """Test accuracy of each run as a dot, and each variant's mean with its 95% interval."""
    with style():
        variants = comparison.variants
        longer = max(0, max(len(_with_count(comparison, variant)) for variant in variants) - 24)
        figure = Figure(figsize=(COLUMN + 0.07 * longer, 0.7 + 0.32 * len(variants)), layout="constrained")
        axes = figure.add_subplot()
        for place, (variant, (color, _)) in enumerate(look(variants).items()):
            values = [run["test_accuracy"] for run in comparison.completed(variant)]
            axes.plot(values, [place + 0.18] * len(values), "o", color=color, alpha=0.5, markersize=3, linewidth=0)
            interval = t_interval(values)
            if interval.n > 1:
                half = interval.high - interval.mean
                axes.errorbar(interval.mean, place - 0.12, xerr=half, fmt="D", color=color, markersize=4, capsize=3)
        axes.set_yticks(range(len(variants)), [_with_count(comparison, v) for v in variants])
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("test accuracy (mean, 95% interval)")
        return figure


def overview(comparison: Comparison) -> Figure:
    """The four curves side by side, for a page's width."""
    with style():
        figure = Figure(figsize=(2 * COLUMN, 4.6), layout="constrained")
        for axes, column in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
            draw_curve(axes, comparison, column)
        labels = figure.axes[0].get_legend_handles_labels()[1]
        legend(figure, 4 if sum(map(len, labels)) < 80 else 3)  # as many as fit the page
        return figure


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """All figures of a comparison into ``folder``, each as SVG and PNG; the PNG files are returned."""
    figures = {column: curve(comparison, column) for column in CURVES}
    figures |= {"overview": overview(comparison), "test_accuracy": test_accuracy(comparison)}
    return [save(figure, folder / name) for name, figure in figures.items()]
