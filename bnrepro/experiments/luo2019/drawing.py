"""The figure: the penalty against the batch size, and test loss and gamma by the kind of normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.luo2019.networks import BN, NOISE, PN, TRAINING
from bnrepro.stats import t_interval

BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"


def figure(records: Records, c: float | None) -> Picture:
    """Three panels."""
    with figures.style():
        drawn = Figure(figsize=(2 * figures.COLUMN, 2.7), layout="constrained")
        left, middle, right = drawn.subplots(1, 3)
        _penalty(left, records)
        lines: list[tuple[str, str, float, str, Any, str]] = [
            ("BN", BN, 0.0, BLUE, "-", "o"),
            ("population", PN, 0.0, RED, (0, (4, 2)), "s"),
        ]
        if c is not None:
            lines.append((f"population, gamma decay {c:g} / M", PN, c, GREEN, (0, (1, 1)), "^"))
        for axes, quantity, name in ((middle, "test_loss", "test loss"), (right, "gamma_squared", "mean gamma²")):
            for line in lines:
                _line(axes, records, quantity, *line)
            axes.set_title(name, fontsize=8)
        sizes = [size for size, _ in records.settings["training"]["sizes"]]
        for axes, marks in (
            (left, records.settings["noise"]["sizes"]),
            (middle, sizes),
            (right, sizes),
        ):
            axes.set_xscale("log", base=2)
            axes.set_xticks(marks, [str(mark) for mark in marks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("batch size M")
        handles, labels = middle.get_legend_handles_labels()
        handles += left.get_legend_handles_labels()[0]
        labels += left.get_legend_handles_labels()[1]
        drawn.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=2.4, columnspacing=1.0)
    caption = (
        "Left: training loss with each batch's own statistics less that with the population's, of one trained network, "
        "and a line of slope -1. Middle and right: test loss and mean squared gamma after training with batch "
        "statistics, population statistics, and population statistics with gamma decay. Means and 95% intervals over "
        f"n={records.settings['seeds']} seeds, preset {records.preset}."
    )
    return Picture("regularization", caption, drawn)


def _penalty(axes: Axes, records: Records) -> None:
    """On logarithmic axes the mean is geometric; penalties that are none are left out."""
    found = {size: v for size, v in records.series("penalty", part=NOISE).items() if min(v) > 0}
    intervals = [t_interval(np.log(v).tolist()) for v in found.values()]
    mean, low, high = (np.exp([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
    sizes = np.array(list(found), dtype=float)
    axes.plot(sizes, mean, color="#000000", marker="o", markersize=3)
    axes.fill_between(sizes, low, high, color="#000000", alpha=0.15, linewidth=0)
    if len(sizes):
        axes.plot(sizes, mean[-1] * sizes[-1] / sizes, color="#999999", linestyle=(0, (4, 2)), label="1 / M")
        axes.set_yscale("log")
    axes.set_title("penalty", fontsize=8)


def _line(
    axes: Axes, records: Records, quantity: str, name: str, kind: str, decay: float, color: str, dashes: Any, mark: str
) -> None:
    sizes = [size for size, _ in records.settings["training"]["sizes"]]
    values = [records.measured(quantity, part=TRAINING, kind=kind, size=m, decay=decay).values() for m in sizes]
    intervals = [t_interval(list(v)) for v in values]
    half = np.nan_to_num([i.high - i.mean for i in intervals])
    style = {"color": color, "linestyle": dashes, "marker": mark, "markersize": 3.5, "capsize": 2}
    axes.errorbar(sizes, [i.mean for i in intervals], yerr=half, label=name, **style)
