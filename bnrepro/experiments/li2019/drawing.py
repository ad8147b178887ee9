"""The figure of this experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.li2019.effects import cell, cells, narrowest
from bnrepro.experiments.li2019.grid import DROPOUT, NOWHERE, POSITIONS
from bnrepro.stats import Interval, paired, t_interval

LOOKS: dict[str, tuple[str, Any, str, str]] = {
    "none": ("#000000", (0, (1, 1)), "x", "no dropout"),
    "before_norm": ("#D55E00", "-", "o", "directly before each BN"),
    "after_norm": ("#009E73", (0, (4, 2)), "^", "after each BN and activation"),
    "last": ("#0072B2", (0, (5, 1, 1, 1)), "s", "after the last BN only"),
}


def pictures(records: Records) -> list[Picture]:
    """The shift by layer, and accuracy; nothing where there are no records."""
    if not cells(records):
        return []
    n, much = records.settings["seeds"], records.settings["amounts"][-1]
    caption = (
        f"Left: the shift of the variance at each BN layer, with dropout {much:g}; 1 is none. Middle: test accuracy "
        "less that without dropout, by amount. Right: the same with statistics taken again without dropout. Mean and "
        f"95% interval over n = {n} seeds."
    )
    return [Picture("shift", caption, shift(records))]


def shift(records: Records) -> Figure:
    """Shift by layer; accuracy by amount, with the moving statistics and with those taken again."""
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _layers(left, records)
        for axes, quantity, title in (
            (middle, "accuracy", "moving statistics"),
            (right, "accuracy_mended", "statistics taken again"),
        ):
            _accuracy(axes, records, quantity)
            axes.set_title(title)
        low = min(axes.get_ylim()[0] for axes in (middle, right))
        high = max(axes.get_ylim()[1] for axes in (middle, right))
        for axes in (middle, right):
            axes.set_ylim(low, high)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=2.6, columnspacing=1.2)
        return figure


def _layers(axes: Axes, records: Records) -> None:
    much, width = records.settings["amounts"][-1], narrowest(records)
    for where, (color, dashes, marker, label) in LOOKS.items():
        amount = 0.0 if where == NOWHERE else much
        found = records.series("shift", part=DROPOUT, position=where, amount=amount, width=width)
        mean, low, high = _ends([t_interval(values) for values in found.values()])
        style = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 3.5}
        axes.plot(list(found), mean, label=label, **style)
        axes.fill_between(list(found), np.maximum(low, 1), high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="BN layer", ylabel="shift of the variance", title=f"dropout {much:g}", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figures.log_ticks(axes)


def _accuracy(axes: Axes, records: Records, quantity: str) -> None:
    width = narrowest(records)
    amounts = records.settings["amounts"]
    without = cell(records, "accuracy", NOWHERE, 0.0, width)
    axes.axhline(0, color="#999999", linewidth=0.8)
    for place, where in enumerate(POSITIONS):
        color, dashes, marker, _ = LOOKS[where]
        found = [t_interval(paired(cell(records, quantity, where, amount, width), without)) for amount in amounts]
        mean, low, high = _ends(found)
        x = [amount + 0.008 * (place - 1) for amount in amounts]  # side by side: bars would hide one another
        style = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 3.5, "capsize": 2}
        axes.errorbar(x, mean, yerr=np.stack([mean - low, high - mean]), **style)
    axes.set_xticks(amounts)
    axes.set(xlabel="dropout probability", ylabel="accuracy less no dropout, points")


def _ends(found: list[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, low, high = (np.array([getattr(i, end) for i in found], dtype=float) for end in ("mean", "low", "high"))
    return mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)
