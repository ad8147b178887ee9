"""The figures of `numpynet`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.numpynet.measurements import locations
from bnrepro.figures import COLUMN, style
from bnrepro.stats import t_interval

LOOK: dict[str, tuple[str, Any, float, str]] = {
    "exact": ("#0072B2", "-", 2.6, "exact"),
    "text": ("#000000", (0, (1, 1.5)), 1.3, "as its text has it"),
    "code": ("#D55E00", "-", 1.3, "as its code has it"),
    "detached": ("#009E73", (0, (4, 2)), 1.3, "detached"),
}
"""Colour, line style, width and label of the gradients that are drawn; text lies on exact, and must not hide it."""


def gradients(records: Records) -> Picture:
    """Distance of the code's gradient from the exact and from the detached one against M / N."""
    n, locations = records.settings["sweep_batch"], records.settings["sweep_locations"]
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        for axes, upstream, title in zip(
            figure.subplots(1, 2, sharey=True),
            ("uniform", "normal"),
            ("delta ~ U(0, 1)", "delta ~ N(0, 1)"),
            strict=True,
        ):
            for quantity, color, dashes, label in (
                ("relative_error", "#0072B2", "-", "from the exact gradient"),
                ("to_detached", "#009E73", (0, (4, 2)), "from the detached gradient"),
            ):
                values = [
                    list(
                        records.measured(quantity, part="sweep", upstream=upstream, shape=f"{n} x {m} x 1 x 1").values()
                    )
                    for m in locations
                ]
                _band(axes, [m / n for m in locations], values, color, dashes, 1.3, label, marker="o")
            axes.set(xscale="log", yscale="log", xlabel="locations / images, M / N", title=title)
            axes.axvline(1, color="#999999", linewidth=0.8)
        figure.axes[0].set_ylabel("relative distance of\nthe code's gradient")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
    seeds = records.settings["seeds"]
    caption = (
        "The gradient that NumPyNet's code returns, against the exact one and the one that takes mean and variance "
        f"for constants, for batches of {n} with more and more locations (grey: as many as images). "
        f"Geometric mean and 95% interval over n = {seeds} draws."
    )
    return Picture("gradients", caption, figure)


def curves(records: Records) -> Picture:
    """Training loss, and the norm of the biases before the layer, for each network at its largest learning rate."""
    networks, lr = records.settings["networks"], max(records.settings["learning_rates"])
    with style():
        figure = Figure(figsize=(2 * COLUMN, 3.9), layout="constrained")
        grid = figure.subplots(2, len(networks), sharex=True, squeeze=False)
        for column, network in enumerate(networks):
            for axes, quantity in zip(grid[:, column], ("train_loss", "bias_norm"), strict=True):
                for gradient, (color, dashes, width, label) in LOOK.items():
                    series = records.series(quantity, part="training", network=network, lr=lr, gradient=gradient)
                    if series:
                        _band(
                            axes,
                            list(series),
                            list(series.values()),
                            color,
                            dashes,
                            width,
                            label,
                            band=gradient != "text",
                        )
                axes.set_yscale("log")
            ratios = sorted({m / records.settings["batch_size"] for m in locations(network)}, reverse=True)
            grid[0, column].set_title(f"{network}: M / N = {', '.join(f'{ratio:g}' for ratio in ratios)}")
            grid[1, column].set_xlabel("step")
        grid[0, 0].set_ylabel("training loss")
        grid[1, 0].set_ylabel("|b| before the layers")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=2.6)
    seeds = records.settings["seeds"]
    caption = (
        f"Networks of {', '.join(networks)} hidden layers with NumPyNet's layer after each, at learning rate {lr:g} "
        f"(SGD, batches of {records.settings['batch_size']}): training loss, and the Euclidean norm of the biases that "
        f"the layer cancels. Geometric mean and 95% interval over n = {seeds} seeds (no band for the text's, which "
        "lies on the exact); M / N: locations over images of the layers. 5,000 embedded MNIST digits."
    )
    return Picture("training", caption, figure)


def _band(
    axes: Axes, x: list[float], values: list[list[float]], color: str, dashes: Any, width: float, label: str,
    marker: str | None = None, band: bool = True,
) -> None:  # fmt: skip
    """Mean and interval of the logarithms, since the axes are logarithmic."""
    intervals = [t_interval(np.log(np.maximum(v, 1e-12)).tolist()) for v in values]
    mean, low, high = (np.exp([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
    axes.plot(x, mean, color=color, linestyle=dashes, linewidth=width, label=label, marker=marker, markersize=3)
    if band:
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
