"""The heat maps of weight decay by learning rate, and the four arms along their training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.vanlaarhoven2017.grid import ARMS, GRID
from bnrepro.experiments.vanlaarhoven2017.training import CORRECTED, OFF, ON, REVERSE
from bnrepro.stats import t_interval

LOOKS: dict[str, tuple[str, str, Any]] = {
    ON: ("weight decay", "#0072B2", "-"),
    OFF: ("no weight decay", "#D55E00", (0, (4, 2))),
    CORRECTED: ("no weight decay, corrected rate", "#009E73", (0, (1, 1))),
    REVERSE: ("weight decay, rate as without", "#CC79A7", (0, (5, 1, 1, 1))),
}


def heat_maps(records: Records) -> Picture:
    """Test accuracy and effective rate, with lines of equal rate times decay."""
    grid = records.settings["grid"]
    rates, decays = grid["rates"], grid["decays"]

    def mean(value: dict[int, float]) -> float:
        return t_interval(list(value.values())).mean

    def accuracy(rate: float, decay: float) -> float:
        return 100 * mean(records.by_seed("test_accuracy", part=GRID, rate=rate, decay=decay))

    def effective(rate: float, decay: float) -> float:
        found = mean(records.measured("effective_rate", part=GRID, rate=rate, decay=decay))
        return math.log10(found) if found > 0 else math.nan

    panels = {
        "test accuracy, %": (accuracy, "viridis", "{:.1f}"),
        "log10 of the effective rate lr / |w|² at the end": (effective, "magma", "{:.2f}"),
    }
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 0.9 + 0.36 * len(decays)), layout="constrained")
        for axes, (title, (number, colors, form)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            cells = np.array([[number(rate, decay) for rate in rates] for decay in decays])
            image = axes.imshow(cells, cmap=colors, aspect="auto", origin="lower")
            known = cells[np.isfinite(cells)]
            low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
            for (y, x), value in np.ndenumerate(cells):
                dark = (value - low) / max(high - low, 1e-12) < 0.6
                text = form.format(value) if math.isfinite(value) else "diverged"
                color, behind = "white" if dark else "black", image.cmap(image.norm(value))
                axes.text(
                    x,
                    y + 0.28,
                    text,
                    ha="center",
                    va="center",
                    size=6,
                    color=color,
                    zorder=4,
                    bbox={"facecolor": behind, "edgecolor": "none", "pad": 0.6},  # the lines end before the numbers
                )
            iso_lines(axes, rates, decays)
            axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
            axes.set_xlabel("learning rate")
            axes.set_title(title, fontsize=8)
            axes.grid(visible=False)
            axes.tick_params(length=0)
        figure.axes[0].set_ylabel("weight decay")
    caption = (
        "Weight decay by learning rate: means over "
        f"n={records.settings['seeds']} seeds, preset {records.preset}. |w|² is the geometric mean over the layers "
        "that a norm follows. Along the white lines the product of rate and decay is constant, and with it the "
        "effective rate in equilibrium."
    )
    return Picture("heat_maps", caption, figure)


def iso_lines(axes: Axes, rates: list[float], decays: list[float]) -> None:
    """Lines of equal rate times decay, between the places of the cells (decay 0 has none)."""
    places = {math.log(decay): float(y) for y, decay in enumerate(decays) if decay > 0}
    if len(places) < 2:
        return
    ticks = np.log(rates)
    for decay in (d for d in decays if d > 0):
        product = math.log(rates[len(rates) // 2]) + math.log(decay)
        fine = np.linspace(ticks[0], ticks[-1], 50)
        wanted = product - fine
        inside = (wanted >= min(places)) & (wanted <= max(places))
        x = np.interp(fine[inside], ticks, np.arange(len(rates)))
        y = np.interp(wanted[inside], list(places), list(places.values()))
        axes.plot(x, y, color="black", linewidth=1.8, alpha=0.5, zorder=2)  # seen on bright cells too
        axes.plot(x, y, color="white", linewidth=1.0, zorder=3)


def arms(records: Records) -> Picture:
    """Validation error, |w|² and effective rate of the four arms."""
    panels = {"error": "validation error, %", "square": "mean |w|²", "rate": "effective rate lr / |w|²"}
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.7), layout="constrained")
        for axes, (quantity, name) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            if quantity != "error":
                axes.set_yscale("log")
            for arm, (label, color, dashes) in LOOKS.items():
                found = records.series(f"{arm}: {quantity}", part=ARMS)
                values = [np.log(v).tolist() if quantity != "error" else v for v in found.values()]
                intervals = [t_interval(v) for v in values]
                mean, low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
                if quantity != "error":
                    mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
                axes.plot(list(found), mean, color=color, linestyle=dashes, label=label, marker="o", markersize=2)
                axes.fill_between(list(found), low, high, color=color, alpha=0.15, linewidth=0)
            if quantity == "error":
                axes.set_ylim(bottom=0)  # an interval of t can reach below it, an error cannot
            else:
                figures.log_ticks(axes)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_xlabel("step")
            axes.set_title(name, fontsize=8)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=3)
    caption = (
        f"Weight decay on ({records.settings['arms']['decay']:g}) and off, and at each other's effective rates: mean "
        f"and 95% interval over n={records.settings['seeds']} seeds (of |w|² and rates, of their logarithms). "
        f"Preset {records.preset}."
    )
    return Picture("arms", caption, figure)
