"""One style, and pure functions from records to matplotlib figures. Nothing here trains or reads a trainer.

In a notebook::

    from bnrepro.report import figures
    from bnrepro.report.compare import open_comparison

    comparison = figures.only(open_comparison(Path("results/mnist5k")), ["bn", "convbn"])
    figures.curve(comparison, "val_accuracy")      # a matplotlib figure
    figures.data(comparison, "val_accuracy")       # what it shows, as rows: pandas.DataFrame(...)
    figures.draw_curve(axes, comparison, "val_loss")  # into axes of your own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from bnrepro.errors import UserError, known_are
from bnrepro.plots.style import (
    COLUMN,
    CURVES,
    WIDE,
    Slide,
    label,
    labelled,
    legend,
    log_scale,
    look,
    save,
    save_slides,
    style,
)
from bnrepro.report.compare import Comparison
from bnrepro.runs.tables import write_rows
from bnrepro.stats import Interval, t_interval


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
        points = intervals(comparison, variant, column)
        if not points:
            axes.plot([], [], color=color, linestyle=dashes, label=_with_count(comparison, variant))
            continue
        epochs = [epoch for epoch, _ in points]
        mean, low, high = (np.array([getattr(i, end) for _, i in points]) for end in ("mean", "low", "high"))
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


def intervals(comparison: Comparison, variant: str, column: str) -> list[tuple[float, Interval]]:
    """(epoch, mean over the seeds with its 95% interval) of a variant; of losses, those of the logarithm, as losses."""
    found = []
    for epoch, values in comparison.over_seeds(variant, column):
        if column.endswith("loss"):
            of = t_interval(np.log(values).tolist())
            mean, low, high = np.exp([of.mean, of.low, of.high]).tolist()
            found.append((epoch, Interval(mean, low, high, of.n)))
        else:
            found.append((epoch, t_interval(values)))
    return found


def data(comparison: Comparison, column: str) -> list[dict[str, Any]]:
    """What `curve` shows, as a table: a row for each variant and epoch, with n, mean and ends of the interval."""
    return [
        {"variant": variant, "epoch": epoch, "n": of.n, "mean": of.mean}
        | {end: None if np.isnan(value := getattr(of, end)) else value for end in ("low", "high")}
        for variant in comparison.variants
        for epoch, of in intervals(comparison, variant, column)
    ]


def only(comparison: Comparison, variants: Sequence[str]) -> Comparison:
    """``comparison`` with some of its variants, in this order.

    Raises:
        UserError: it has no such variant.
    """
    for name in variants:
        if name not in comparison.variants:
            raise UserError(f"--variants: this comparison has no {name!r}.{known_are(name, comparison.variants)}")
    runs = [run for name in variants for run in comparison.of(name)]
    return replace(comparison, runs=runs, curves=[row for row in comparison.curves if row["variant"] in variants])


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


SLIDES = (*CURVES, "test_accuracy", "overview")
"""The figures of a comparison that `draw_slides` draws; the last one only where it is asked for."""


def draw_slides(comparison: Comparison, folder: Path, slide: Slide) -> list[Path]:
    """The figures of a comparison (`SLIDES`) into ``folder`` as ``slide`` says, and what the curves show as CSV.

    Raises:
        UserError: no such variant; no epoch is shown; a figure does not fit its size, or would replace a file of the
            user's.
    """
    shown = only(comparison, slide.variants) if slide.variants else comparison
    epochs = [point["epoch"] for point in shown.curves]
    if slide.xlim and not any(slide.xlim[0] <= epoch <= slide.xlim[1] for epoch in epochs):
        raise UserError(
            f"--xlim={slide.xlim[0]:g},{slide.xlim[1]:g} shows no epoch of {', '.join(shown.variants)}, which have "
            f"epochs {min(epochs, default=0):g} to {max(epochs, default=0):g}."
        )
    for name in slide.labels:
        if name not in shown.variants:
            raise UserError(f"--labels: no variant {name!r} is shown.{known_are(name, shown.variants)}")
    names = SLIDES[:-1] if slide.only is None else [name for name in SLIDES if name in slide.only]
    others = {"test_accuracy": test_accuracy, "overview": overview}
    with labelled(slide.labels):
        drawn = {name: curve(shown, name) if name in CURVES else others[name](shown) for name in names}
        for axes in [axes for name, figure in drawn.items() if name != "test_accuracy" for axes in figure.axes]:
            if slide.xlim:
                zoom(axes, *slide.xlim)
        with_data = CURVES if "overview" in names else [name for name in names if name in CURVES]
        made = save_slides(drawn, folder, slide, beside=[f"{name}.csv" for name in with_data])
    for name in with_data:
        write_rows(folder / f"{name}.csv", data(shown, name), ["variant", "epoch", "n", "mean", "low", "high"])
    return made


def zoom(axes: Axes, left: float, right: float) -> None:
    """Show the epochs from ``left`` to ``right`` alone, and of y what is drawn there."""
    seen = [
        y
        for line in axes.get_lines()
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
        if left <= x <= right and np.isfinite(y)
    ]
    axes.set_xlim(left, right)
    if seen and min(seen) < max(seen):
        room = 0.08 * (max(seen) - min(seen))
        low = min(seen) - room
        axes.set_ylim(low if low > 0 else 0.9 * min(seen), max(seen) + room)  # losses have a logarithmic axis
