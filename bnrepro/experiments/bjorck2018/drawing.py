"""The figures of this experiment."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.bjorck2018.effects import at_rate, inside_of, largest_rates, layers, networks_of
from bnrepro.experiments.bjorck2018.grid import DIVERGING, NORMS, START
from bnrepro.stats import Interval, t_interval

MARKERS = {"nobn": "s", "bn": "o"}
NAMES = {"nobn": "no BN", "bn": "BN"}


def pictures(records: Records) -> list[Picture]:
    """Rates, growth with depth, the diverging update, gradients; what has no records is not drawn."""
    n = records.settings["seeds"]
    bands = f"Mean and 95% interval over n = {n} seeds"
    drawn = []
    if networks_of(records):
        caption = (
            "Left: the largest learning rate that trains, by number of layers (line: fully connected networks; "
            "marked: others); where none trains, the lowest. Then test accuracy of the runs that train, by rate. "
            f"{bands}, of the rate's logarithm on the left."
        )
        drawn.append(Picture("rates", caption, rates(records)))
    if inside_of(records):
        caption = (
            "Absolute mean and variance of a channel, averaged over channels, of what enters each norm (without BN: "
            "its place): at the start, and after the update in which the network without BN diverges. "
            f"{bands}, of the logarithm."
        )
        drawn.append(Picture("depth", caption, depth(records)))
        caption = (
            "No BN: means and variances of the channels while the diverging update is applied, from 0 to 100%. "
            f"Mean of the logarithm over n = {n} seeds. White: variance 0 in all of them."
        )
        drawn.append(Picture("diverging", caption, update(records)))
        caption = (
            "Gradients at the start. Left: the loss's derivative by each logit, a row for each of 50 images sorted by "
            "class (seed 0). Right: density of the gradient by the weights of the middle layer, in units of its "
            f"deviation, on a logarithmic axis, with a normal distribution in grey; mean over n = {n} seeds."
        )
        drawn.append(Picture("gradients", caption, gradients(records)))
    return drawn


def rates(records: Records) -> Figure:
    """The largest rate by depth, and accuracy by rate, a panel a network."""
    networks = networks_of(records)
    columns = 3
    rows = math.ceil((1 + len(networks)) / columns)
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 0.4 + 1.9 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for empty in panels[1 + len(networks) :]:
            empty.set_visible(False)
        _largest(panels[0], records, networks)
        for axes, network in zip(panels[1:], networks, strict=False):
            _accuracy(axes, records, network)
        shared = panels[1 : 1 + len(networks)]
        low = max(0.0, min(axes.get_ylim()[0] for axes in shared))
        for axes in shared:
            axes.set_ylim(low, 1.0)
            axes.set_xlim(0.7 * min(records.settings["rates"]), 1.4 * max(records.settings["rates"]))
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=3)
        return figure


def _largest(axes: Axes, records: Records, networks: list[str]) -> None:
    for variant, (color, dashes) in figures.look(list(NORMS)).items():
        chain: list[tuple[int, Interval]] = []
        for network in networks:
            about = records.settings["networks"][network]
            found = t_interval(list(largest_rates(records, network, variant)[0].values()))
            if "model=paper_mlp" in about["overrides"]:
                chain.append((about["layers"], found))
            else:
                _points(axes, [about["layers"]], [found], color, "none", "D", None)
        chain.sort(key=lambda point: point[0])
        _points(axes, [x for x, _ in chain], [i for _, i in chain], color, dashes, MARKERS[variant], None)
    axes.set(xscale="log", yscale="log", xlabel="layers", ylabel="learning rate", title="largest rate that trains")
    known = sorted({records.settings["networks"][network]["layers"] for network in networks})
    shown = [x for i, x in enumerate(known) if i == 0 or x / known[i - 1] > 1.2]
    axes.set_xticks(shown, [str(x) for x in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    bottom, top = min(records.settings["rates"]), max(records.settings["rates"])
    axes.set_ylim(0.7 * bottom, 1.4 * top)


def _points(
    axes: Axes, x: list[Any], found: list[Interval], color: str, dashes: Any, marker: str, label: str | None
) -> None:
    """Powers of ten of intervals."""
    mean, low, high = (10 ** np.array([getattr(i, end) for i in found], dtype=float) for end in ("mean", "low", "high"))
    bars = np.nan_to_num(np.stack([mean - low, high - mean]))
    axes.errorbar(
        x, mean, yerr=bars, color=color, linestyle=dashes, marker=marker, markersize=3.5, capsize=2, label=label
    )


def _accuracy(axes: Axes, records: Records, network: str) -> None:
    for variant, (color, dashes) in figures.look(list(NORMS)).items():
        found = {r: at_rate(records, "test_accuracy", network, variant, r) for r in records.settings["rates"]}
        intervals = {rate: t_interval(list(values.values())) for rate, values in found.items() if values}
        mean, low, high = _ends(intervals.values())
        style = {"color": color, "linestyle": dashes, "marker": MARKERS[variant], "markersize": 3}
        axes.plot(list(intervals), mean, label=NAMES[variant], **style)
        axes.fill_between(list(intervals), low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", title=network)
    axes.xaxis.set_major_locator(LogLocator(numticks=5))


def _ends(intervals: Iterable[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = list(intervals)
    mean, low, high = (np.array([getattr(i, end) for i in found], dtype=float) for end in ("mean", "low", "high"))
    return mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)


def depth(records: Records) -> Figure:
    """Means and variances by layer, at the start and after the diverging update."""
    networks = inside_of(records)
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 0.4 + 2.0 * len(networks)), layout="constrained")
        grid = figure.subplots(len(networks), 3, squeeze=False, sharex="row")
        for row, network in zip(grid, networks, strict=True):
            for variant, (color, dashes) in figures.look(list(NORMS)).items():
                who = {"network": network, "variant": variant}
                series = [layers(records, quantity, part=START, **who) for quantity in ("mean", "variance")]
                series.append(layers(records, f"{variant}/1/variance", part=DIVERGING, network=network))
                for axes, found in zip(row, series, strict=True):
                    axes.set_yscale("log")
                    _line(axes, found, color, dashes, variant)
            for axes in row:  # the means fit: with few seeds, bands of logarithms run over hundreds of decades
                shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
                if len(shown):
                    axes.set_ylim(shown.min() / 5, shown.max() * 5)
            for axes, title in zip(row, ("|mean|, start", "variance, start", "variance, diverged"), strict=True):
                axes.set_title(f"{network}: {title}", fontsize=7)
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                axes.yaxis.set_major_locator(LogLocator(numticks=6))
                axes.yaxis.set_minor_locator(NullLocator())
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=3)
        return figure


def _line(axes: Axes, found: dict[int, dict[int, float]], color: str, dashes: Any, variant: str) -> None:
    by_layer: dict[int, list[float]] = {}
    for values in found.values():
        for layer, value in values.items():
            by_layer.setdefault(layer, []).append(value)
    intervals = {layer: t_interval(values) for layer, values in sorted(by_layer.items())}
    mean, low, high = (10**end for end in _ends(intervals.values()))
    style = {"color": color, "linestyle": dashes, "marker": MARKERS[variant], "markersize": 2.5}
    axes.plot(list(intervals), mean, label=NAMES[variant], **style)
    axes.fill_between(list(intervals), low, high, color=color, alpha=0.15, linewidth=0)


def update(records: Records) -> Figure:
    """Layers by share of the diverging update, without BN: logarithms of means and variances."""
    networks = inside_of(records)
    shares = records.settings["shares"]
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 0.3 + 2.1 * len(networks)), layout="constrained")
        grid = figure.subplots(len(networks), 2, squeeze=False)
        for row, network in zip(grid, networks, strict=True):
            for axes, quantity in zip(row, ("mean", "variance"), strict=True):
                values = [
                    _means(layers(records, f"nobn/{share:g}/{quantity}", part=DIVERGING, network=network))
                    for share in shares
                ]
                axes.set_title(f"{network}: {'|mean|' if quantity == 'mean' else quantity}", fontsize=8)
                axes.grid(visible=False)
                axes.set(xlabel="layer", ylabel="update applied, %")
                if not any(values):
                    axes.text(0.5, 0.5, "diverges at no rate", ha="center", transform=axes.transAxes)
                    continue
                last = max(layer for v in values for layer in v)
                image = axes.imshow(
                    [[v.get(layer, math.nan) for layer in range(1, last + 1)] for v in values],
                    aspect="auto",
                    origin="lower",
                    extent=(0.5, last + 0.5, *_edges(shares)),
                    cmap="viridis",
                )
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                figure.colorbar(image, ax=axes, pad=0.02).set_label("log10")
        return figure


def _edges(shares: list[float]) -> tuple[float, float]:
    half = 50 * (shares[-1] - shares[0]) / max(1, len(shares) - 1)
    return 100 * shares[0] - half, 100 * shares[-1] + half


def _means(found: dict[int, dict[int, float]]) -> dict[int, float]:
    by_layer: dict[int, list[float]] = {}
    for values in found.values():
        for layer, value in values.items():
            by_layer.setdefault(layer, []).append(value)
    return {layer: float(np.mean(values)) for layer, values in sorted(by_layer.items())}


def gradients(records: Records) -> Figure:
    """The gradient at the logits, and the density of a layer's gradient."""
    networks = inside_of(records)
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 0.4 + 2.3 * len(networks)), layout="constrained")
        grid = figure.subplots(len(networks), 3, squeeze=False, width_ratios=(1, 1, 1.6))
        for row, network in zip(grid, networks, strict=True):
            for axes, variant in zip(row, NORMS, strict=False):
                _logits(figure, axes, records, network, variant)
            _density(row[2], records, network)
        handles, labels = grid[0, 2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, handlelength=3)
        return figure


def _logits(figure: Figure, axes: Axes, records: Records, network: str, variant: str) -> None:
    who = {"part": START, "network": network, "variant": variant, "quantity": "logit_gradient"}
    values = [row["value"] for row in records.select(records.measurements, **who)]
    axes.set_title(f"{network}, {NAMES[variant]}", fontsize=7)
    axes.grid(visible=False)
    axes.set(xlabel="class", ylabel="image")
    if values:
        image = axes.imshow(np.array(values).reshape(-1, 10), aspect="auto", cmap="PuOr", vmin=-1, vmax=1)
        axes.set_xticks([0, 3, 6, 9])
        figure.colorbar(image, ax=axes, pad=0.02, shrink=0.8)


def _density(axes: Axes, records: Records, network: str) -> None:
    x = np.linspace(-4, 4, 81)
    axes.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color="#999999", linewidth=0.8, label="normal")
    for variant, (color, dashes) in figures.look(list(NORMS)).items():
        found = records.series("density", part=START, network=network, variant=variant)
        mean = np.array([np.mean(values) for values in found.values()])
        axes.plot(list(found), np.where(mean > 0, mean, np.nan), color=color, linestyle=dashes, label=NAMES[variant])
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 10)
    axes.set(xlabel="gradient / its deviation", ylabel="density", xlim=(-8, 8))
