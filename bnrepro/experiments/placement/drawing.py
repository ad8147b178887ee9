"""The figures of this experiment."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.placement.effects import dropout_effect, networks_of, order_effects
from bnrepro.experiments.placement.grid import DROPOUT, GHOST, POSITIONS
from bnrepro.stats import holm, p_value, t_interval

LOOKS = (("#0072B2", "-", "o"), ("#D55E00", (0, (4, 2)), "s"), ("#009E73", (0, (1, 1)), "^"))
POSITION_NAMES = {
    "before_norm": "directly before each BN",
    "after_norm": "after each BN and activation",
    "last": "before the last layer only",
}
ACTIVATION_NAMES = {"relu": "ReLU", "elu": "ELU", "prelu": "PReLU"}
LINEAR = 1.0  # percentage points up to which the colours are linear


def pictures(records: Records) -> list[Picture]:
    """The heat map, dropout and ghost batches; what has no records is not drawn."""
    drawn = []
    if networks_of(records):
        caption = (
            "Test accuracy with BN after the activation less that with BN before it (top) and less that without BN "
            f"(bottom), in percentage points: mean over n={_n(records)} seeds and its 95% interval. Bold with a star: "
            "different from zero after Holm's correction over the panel. Colours are linear up to "
            f"{LINEAR:g} point and logarithmic beyond. Preset {records.preset}."
        )
        drawn.append(Picture("order", caption, heat_map(records)))
    if records.select(records.runs, part=DROPOUT):
        caption = (
            "Test accuracy with dropout less that without it, by probability and place: mean over "
            f"n={_n(records)} seeds, bars are 95% intervals, preset {records.preset}. The broken line is no change."
        )
        drawn.append(Picture("dropout", caption, dropout(records)))
    if records.select(records.measurements, part=GHOST):
        caption = (
            "Statistics over parts of the batch (the largest is the whole batch): losses in eval mode and test "
            f"accuracy, mean over n={_n(records)} seeds, bars are 95% intervals, preset {records.preset}."
        )
        drawn.append(Picture("ghost", caption, ghost(records)))
    return drawn


def _n(records: Records) -> int:
    return int(records.settings["seeds"])


def heat_map(records: Records) -> Figure:
    """Networks by activations: after less before, and after less no BN."""
    panels = {
        "BN after - BN before the activation": order_effects(records, "after", "before"),
        "BN after the activation - no BN": order_effects(records, "after", "none"),
    }
    networks, activations = networks_of(records), records.settings["activations"]
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 1.2 + 0.8 * len(networks)), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        means = [abs(t_interval(values).mean) for tests in panels.values() for values in tests.values() if values]
        largest = max([LINEAR, *means])
        norm = SymLogNorm(LINEAR, vmin=-largest, vmax=largest, base=10)
        for panel, (title, tests) in zip(axes, panels.items(), strict=True):
            grid = np.array([[t_interval(tests[n, a]).mean for a in activations] for n in networks])
            image = panel.imshow(grid, cmap="RdBu", norm=norm, aspect="auto")
            _cells(panel, tests, networks, activations, norm)
            panel.set_title(title, fontsize=8)
            panel.set_xticks(range(len(activations)), [ACTIVATION_NAMES.get(a, a) for a in activations])
            panel.set_yticks(range(len(networks)), networks)
            panel.grid(visible=False)
            panel.tick_params(length=0)
            panel.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01)
        bar.set_label("percentage points")
        steps = [s for s in (1, 3, 10, 30) if s <= largest]
        bar.ax.yaxis.set_major_locator(FixedLocator([*(-s for s in reversed(steps)), 0, *steps]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        return figure


def _cells(
    axes: Axes, tests: dict[tuple[str, str], list[float]], rows: list[str], columns: list[str], norm: SymLogNorm
) -> None:
    """The mean with its interval in each cell."""
    significant = holm({f"{n}/{a}": p_value(values) for (n, a), values in tests.items()})
    for y, network in enumerate(rows):
        for x, activation in enumerate(columns):
            effect = t_interval(tests[network, activation])
            if math.isnan(effect.mean):
                continue
            star = significant[f"{network}/{activation}"]
            dark = abs(float(norm(effect.mean)) - 0.5) > 0.3
            text = f"{effect.mean:+.2f}{'*' if star else ''}"
            if not math.isnan(effect.low):
                text += f"\n[{effect.low:+.2f}, {effect.high:+.2f}]"
            weight = "bold" if star else "normal"
            axes.text(x, y, text, ha="center", va="center", size=6, weight=weight, color="white" if dark else "black")


def dropout(records: Records) -> Figure:
    """Change of accuracy against the probability, a line for each place."""
    amounts = records.settings["dropout_amounts"]
    with figures.style():
        figure = Figure(figsize=(figures.COLUMN, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="#999999", linewidth=0.8, linestyle=(0, (4, 2)))
        for shift, (position, (color, dashes, marker)) in enumerate(zip(POSITIONS, LOOKS, strict=True)):
            effects = [t_interval(dropout_effect(records, "bn", position, amount)) for amount in amounts]
            places = [amount + 0.006 * (shift - 1) for amount in amounts]  # side by side: bars would hide one another
            bars = np.array([[e.mean - e.low for e in effects], [e.high - e.mean for e in effects]])
            axes.errorbar(
                places,
                [e.mean for e in effects],
                yerr=bars,
                color=color,
                linestyle=dashes,
                marker=marker,
                markersize=3.5,
                capsize=2,
                label=POSITION_NAMES[position],
            )
        axes.set_xticks(amounts)
        axes.set_xlabel("dropout probability")
        axes.set_ylabel("change of test accuracy (points)")
        figure.legend(loc="outside upper center", ncols=1, handlelength=3)
        return figure


def ghost(records: Records) -> Figure:
    """Losses, and test accuracy, against the number of images that statistics are taken from."""
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        sizes = sorted({int(r["size"]) for r in records.select(records.measurements, part=GHOST)})
        losses = {"train_loss": "training loss", "test_loss": "test loss", "gap": "test - training"}
        for (quantity, name), look in zip(losses.items(), LOOKS, strict=True):
            _ghost_line(left, records, quantity, sizes, look, name)
        _ghost_line(right, records, "test_accuracy", sizes, ("#000000", "-", "D"), "test accuracy")
        for axes, title in ((left, "loss in eval mode"), (right, "test accuracy")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("images a statistic is taken from")
            axes.set_ylabel(title)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=3)
        return figure


def _ghost_line(axes: Axes, records: Records, quantity: str, sizes: list[int], look: tuple, name: str) -> None:
    color, dashes, marker = look
    effects = [t_interval(list(records.measured(quantity, part=GHOST, size=size).values())) for size in sizes]
    bars = np.array([[e.mean - e.low for e in effects], [e.high - e.mean for e in effects]])
    means = [e.mean for e in effects]
    style = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 3.5, "capsize": 2}
    axes.errorbar(sizes, means, yerr=bars, label=name, **style)
