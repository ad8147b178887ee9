"""One style, and pure functions from records to matplotlib figures. Nothing here trains or reads a trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from bnrepro.compare import Comparison
from bnrepro.record import write_whole
from bnrepro.stats import t_interval
from bnrepro.stored import printable

COLUMN = 3.4  # inches: a paper's column
DPI = 200
WIDE = 300  # times from the bottom to the top of a logarithmic axis, from which on only powers of ten are labelled
LONGEST = 40  # characters of a name

# Okabe & Ito's palette, which colour-blind readers can tell apart; line styles say it again for print.
STYLES: dict[str, tuple[str, Any]] = {
    "nobn": ("#000000", (0, (1, 1))),
    "bn": ("#0072B2", "-"),
    "custombn": ("#E69F00", (0, (4, 2))),
    "convbn": ("#D55E00", (0, (5, 1, 1, 1))),
}
SPARE = ("#009E73", "#CC79A7", "#56B4E9", "#999999")
LABELS = {
    "nobn": "no BN",
    "bn": "framework BN",
    "custombn": "custom BN",
    "convbn": "local-gain BN",
    "peractivationbn": "per-activation BN",
    "locationaffinebn": "BN, affine per location",
    "adaptive": "adaptive (pooled)",
}

CURVES = {
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures."""
    settings: Any = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        "lines.linewidth": 1.3,
        "svg.fonttype": "none",
        "svg.hashsalt": "bnrepro",  # the same figure gives the same file
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # not a user's matplotlibrc, which may ask for LaTeX, or fonts that are not there
        mpl.rcParams.update(settings)
        yield


def look(variants: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """A colour and a line style for each variant, no two alike; those of the four main ones are always the same."""
    spare = ((color, dashes) for dashes in _dashes() for color in SPARE)
    return {v: STYLES.get(v) or next(spare) for v in variants}


def _dashes() -> Iterator[Any]:
    """A solid line, and then dashes with one dot between them, two dots, ..."""
    yield "-"
    for dots in count(1):
        yield (0, (6, 1.5, *(1, 1.5) * dots))


def label(variant: str) -> str:
    """Legend label of a variant, on one line."""
    return LABELS.get(variant) or plain(variant)


def plain(name: str) -> str:
    """A name escaped for matplotlib, which reads text between $ as a formula and omits _names from legends."""
    text = printable(name).replace("\n", " ").replace("\t", " ")
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}\N{HORIZONTAL ELLIPSIS}{text[-LONGEST // 2 + 1 :]}"
    return f" {text}".replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


def legend(figure: Figure, columns: int) -> None:
    """A legend above the axes, of the first of them; the figure becomes higher where it has more than two rows."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if max(map(len, labels), default=0) > 34:
        columns = 1
    more = -(-len(labels) // columns) - 2
    if more > 0:
        figure.set_figheight(figure.get_figheight() + 0.16 * more)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.2)


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


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis of few decades: plain numbers at 1, 2 and 5 of each."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ticks(axes: Axes) -> None:
    """Ticks of a logarithmic y axis that has its limits: powers of ten over many decades, else plain numbers."""
    bottom, top = axes.get_ylim()
    if top > WIDE * bottom:
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if top > 10 * bottom else MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


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


def save(figure: Figure, stem: Path) -> Path:
    """``stem``.svg and ``stem``.png, whole; the same figure gives the same files."""
    FigureCanvasAgg(figure)
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # a name in letters that the font lacks is drawn as boxes
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = BytesIO()
            figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
            write_whole(stem.with_suffix(f".{kind}"), content.getvalue())
    return stem.with_suffix(".png")
