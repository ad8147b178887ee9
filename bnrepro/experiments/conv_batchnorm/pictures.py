"""The figures of this experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.conv_batchnorm.arms import CELLS, LIGHTS
from bnrepro.experiments.conv_batchnorm.family import datasets, name_of, points
from bnrepro.stats import Interval, paired, t_interval

VARIANTS = ["nobn", "bn", "convbn", "adaptive", "peractivationbn", "locationaffinebn"]
LOOK = figures.look(VARIANTS)
MARKERS = dict(zip(VARIANTS, "Pos^Dv", strict=True))
WIDTH = 2 * figures.COLUMN


def pictures(records: Records) -> list[Picture]:
    """All that there are records for."""
    n = records.settings["seeds"]
    shade = records.settings["horizon"]["shade"]
    bars = f"Means over n={n} seeds with 95% intervals (of the logarithm on logarithmic axes), preset {records.preset}"
    sets = ", ".join(map(name_of, datasets(records, "table")))
    lit = ", ".join(map(name_of, datasets(records, "horizon")))
    window, eps, batch = (name_of(records.settings[part]["data"]) for part in ("window", "eps", "batch"))
    found = [
        Picture(
            "cells",
            f"The 2 x 2 table ({sets}): test accuracy less that of BN with the same seed; the root mean square of the "
            "normalised value in training less that in eval after the first layer, by the batch size it is measured "
            "at (channel statistics solid, local ones hollow); and the relative error of the first norm's output when "
            "images move by a pixel, with running statistics (eval) and with those of the moved batch (training). "
            f"The latter two on {name_of(datasets(records, 'table')[0])}. {bars}.",
            cells(records),
        ),
        Picture(
            "horizon",
            f"The horizon ({lit}). Left: test accuracy on plain images, with the lower half always at {shade:g} of "
            "its light, and with a factor of its own for each batch, in training and test alike. Middle: share of "
            "active ReLUs in the first layer above and below the horizon, lower half always dark; pale: the same on "
            "plain images. Right: networks trained on plain images, by the light of the lower half at test. "
            f"{bars}.",
            horizon(records),
        ),
        Picture(
            "window",
            f"The adaptive norm's window ({window}): test accuracy between BN and local-gain BN with their running "
            "statistics (bands), and distance of its output after the first layer from that of local and of channel "
            f"statistics. {bars}.",
            window_sweep(records),
        ),
        Picture(
            "eps",
            f"eps with channel and with local statistics ({eps}): test accuracy, and the largest normalised value on "
            f"test images after the first layer. {bars}.",
            eps_sweep(records),
        ),
        Picture(
            "batch_size",
            f"Batch size with channel and with local statistics ({batch}): test accuracy with running statistics, the "
            "same less accuracy with the batch's own, and the root mean square of the normalised value in training "
            f"less that in eval after the first layer. {bars}.",
            batch_sweep(records),
        ),
    ]
    if _map(records, "deviation map", "plain") is not None:
        maps = Picture(
            "maps",
            f"What the first local-gain norm of seed 0 keeps ({name_of(datasets(records, 'horizon')[0])}): running "
            "deviation at each location, mean over channels, and root mean square over channels of the running mean "
            "less the channel's average. Trained on plain images, with the lower half always dark, and with another "
            "light in each batch. Channel-wise BN keeps one number for each channel.",
            statistics_maps(records),
        )
        found.insert(2, maps)
    return found


# --- pieces ---


def _line(
    axes: Axes, x: Sequence[float], intervals: Sequence[Interval], variant: str, label: str | None = None, **look: Any
) -> None:
    """Means with their intervals as bars, and a line through them."""
    color, dashes = LOOK[variant]
    mean, low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
    reach = np.nan_to_num(np.array([mean - low, high - mean]))
    style: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": MARKERS[variant], "markersize": 3.5}
    axes.errorbar(x, mean, yerr=reach, capsize=2, elinewidth=0.9, label=label, **(style | look))


def _percent(values: Mapping[int, float]) -> Interval:
    return t_interval(points(list(values.values())))


def _plain(values: Mapping[int, float]) -> Interval:
    return t_interval(list(values.values()))


def _geometric(values: Mapping[int, float]) -> Interval:
    """For logarithmic axes: mean and interval of the logarithm."""
    interval = t_interval([math.log(value) for value in values.values() if value > 0])
    return Interval(math.exp(interval.mean), math.exp(interval.low), math.exp(interval.high), interval.n)


def _within_percent(axes: Axes) -> None:
    """No accuracy lies outside of 0 and 100, wherever its interval ends."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, 0), min(top, 100.5))


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    """One legend above all panels, without the bars."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.2)


def _spread(count: int, index: int, width: float = 0.7) -> float:
    """Where the ``index``-th of ``count`` stands within a category."""
    return 0.0 if count == 1 else width * (index / (count - 1) - 0.5)


def _categories(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), [n.replace("-", "-\n", 1) if len(n) > 9 else n for n in names])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)


def _log(axes: Axes, values: Sequence[float], names: Sequence[str] | None = None) -> None:
    """A logarithmic axis with a tick at each value."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(names or [f"{value:g}".replace("e-0", "e-") for value in values])


# --- figures ---


def cells(records: Records) -> Figure:
    """The 2 x 2 table."""
    sets = datasets(records, "table")
    variants = ["nobn", *CELLS]
    with figures.style():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.35, 1, 1.1))
        for index, variant in enumerate(variants):
            place = [i + _spread(len(variants), index) for i in range(len(sets))]
            gains = []
            for dataset in sets:
                own, base = (
                    records.by_seed("test_accuracy", part="table", dataset=dataset, variant=v) for v in (variant, "bn")
                )
                gains.append(t_interval(points(paired(own, base))))
            _line(left, place, gains, variant, figures.label(variant), linestyle="")
        left.axhline(0, color="#666666", linewidth=0.8)
        _categories(left, [name_of(d) for d in sets])
        left.set_ylabel("test accuracy less BN's (points)")
        sizes = records.settings["gap"]["batches"]
        for variant in CELLS:
            about = {"part": "table", "dataset": sets[0], "variant": variant}
            gaps = [_geometric(records.measured("gap", x=size, **about)) for size in sizes]
            face = LOOK[variant][0] if variant in ("bn", "locationaffinebn") else "white"
            _line(middle, sizes, gaps, variant, markerfacecolor=face)
        figures.log_scale(middle)
        _log(middle, sizes)
        middle.set_xlabel("batch size")
        middle.set_ylabel("training less eval (rms)")
        for index, variant in enumerate(variants):
            for mode, name in enumerate(("eval", "training")):
                about = {"part": "table", "dataset": sets[0], "variant": variant}
                error = _plain(records.measured("shift error", x=name, **about))
                _line(right, [mode + _spread(len(variants), index)], [error], variant, linestyle="")
        _categories(right, ["eval", "training"])
        right.set_ylim(bottom=0)
        right.set_ylabel("error when shifted (relative)")
        _legend(figure, left, 5)
        return figure


def horizon(records: Records) -> Figure:
    """Accuracy by light, active ReLUs, and another light at test: a row for each dataset."""
    sets = datasets(records, "horizon")
    variants = [v for v in VARIANTS if v in records.settings["horizon"]["variants"]]
    with figures.style():
        figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * len(sets)), layout="constrained")
        rows = figure.subplots(len(sets), 3, squeeze=False)
        for (left, middle, right), dataset in zip(rows, sets, strict=True):
            for index, variant in enumerate(variants):
                offset = _spread(len(variants), index, 0.6)
                about = {"part": "horizon", "dataset": dataset, "variant": variant}
                accuracy = [_percent(records.by_seed("test_accuracy", light=light, **about)) for light in LIGHTS]
                place = [i + offset for i in range(len(LIGHTS))]
                _line(left, place, accuracy, variant, figures.label(variant), linestyle="")
                for light, strength in (("plain", 0.35), ("static", 1.0)):
                    active = [
                        _percent(records.measured(f"active {side} 1", light=light, x="own", **about))
                        for side in ("above", "below")
                    ]
                    thin = 0.06 if light == "plain" else 0.0
                    _line(middle, [offset - thin, 1 + offset - thin], active, variant, linestyle="", alpha=strength)
                shades = sorted(records.settings["horizon"]["test_shades"])
                bent = [_percent(records.measured("accuracy", light="plain", x=s, **about)) for s in shades]
                _line(right, shades, bent, variant)
            for axes in (left, middle, right):
                _within_percent(axes)
            _categories(left, LIGHTS)
            left.set_ylabel(f"{name_of(dataset)}: test accuracy (%)")
            _categories(middle, ["above", "below"])
            middle.set_xlabel("side of the horizon")
            middle.set_ylabel("active ReLUs (%)")
            right.set_xlabel("light of the lower half at test")
            right.set_ylabel("test accuracy (%)")
        _legend(figure, rows[0][0], len(variants))
        return figure


def _map(records: Records, quantity: str, light: str) -> np.ndarray | None:
    """A map of the first dataset's convbn, seed 0."""
    about = {"part": "horizon", "dataset": datasets(records, "horizon")[0], "variant": "convbn", "light": light}
    values = [
        (row["x"], row["value"]) for row in records.select(records.measurements, quantity=quantity, seed=0, **about)
    ]
    width = records.measured("width", **about).get(0)
    if not values or not width:
        return None
    return np.array([value for _, value in sorted(values)]).reshape(-1, int(width))


def statistics_maps(records: Records) -> Figure:
    """Running deviation and mean by location, for each light."""
    with figures.style():
        figure = Figure(figsize=(WIDTH, 4.3), layout="compressed")
        rows = figure.subplots(2, len(LIGHTS), squeeze=False)
        named = (("deviation map", "running deviation"), ("mean map", "running mean, spread"))
        for row, (quantity, name) in zip(rows, named, strict=True):
            maps = [_map(records, quantity, light) for light in LIGHTS]
            top = max(float(values.max()) for values in maps if values is not None)
            for axes, light, values in zip(row, LIGHTS, maps, strict=True):
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
                if values is None:
                    continue
                image = axes.imshow(values, cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
                axes.axhline(values.shape[0] / 2 - 0.5, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
                if quantity == "deviation map":
                    axes.set_title(light, fontsize=8)
            row[0].set_ylabel(name)
            figure.colorbar(image, ax=list(row), shrink=0.85)
        return figure


def window_sweep(records: Records) -> Figure:
    """Accuracy and distances by the window's side."""
    kernels = records.settings["window"]["kernels"]
    last = max((k for k in kernels if k <= 100), default=1)
    place = [float(k) if k <= 100 else 2.0 * last for k in kernels]
    names = [f"{k:g}" if k <= 100 else "all" for k in kernels]
    with figures.style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for variant in ("convbn", "bn"):
            interval = _percent(records.by_seed("test_accuracy", part="window", variant=variant, kernel=None))
            color, dashes = LOOK[variant]
            left.axhline(interval.mean, color=color, linestyle=dashes, label=f"{figures.label(variant)}, running")
            if not math.isnan(interval.low):
                left.axhspan(interval.low, interval.high, color=color, alpha=0.12, linewidth=0)
        accuracy = [
            _percent(records.by_seed("test_accuracy", part="window", variant="adaptive", kernel=k)) for k in kernels
        ]
        _line(left, place, accuracy, "adaptive", "adaptive, of the present batch")
        left.set_ylabel("test accuracy (%)")
        _within_percent(left)
        low, high = left.get_ylim()
        left.set_ylim(low - 0.35 * (high - low), high)  # room for the legend below the bars
        left.legend(loc="lower right", fontsize=7)
        for end, variant in (("local", "convbn"), ("channel", "bn")):
            distance = records.series(f"to {end}", part="window", variant="bn")
            known = [(x, t_interval(distance[k])) for x, k in zip(place, kernels, strict=True) if k in distance]
            _line(right, [x for x, _ in known], [i for _, i in known], variant, f"from {end} statistics")
        right.set_ylabel("distance of the output (rms)")
        right.set_ylim(top=1.25 * right.get_ylim()[1])
        right.legend(loc="upper center", ncols=2, fontsize=7)
        for axes in (left, right):
            _log(axes, place, names)
            axes.set_xlabel("side of the window")
        return figure


def eps_sweep(records: Records) -> Figure:
    """Accuracy and largest normalised value by eps."""
    values = sorted(map(float, records.settings["eps"]["values"]))
    with figures.style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for variant in ("bn", "convbn"):
            about = {"part": "eps", "variant": variant}
            accuracy = [_percent(records.by_seed("test_accuracy", eps=eps, **about)) for eps in values]
            _line(left, values, accuracy, variant, figures.label(variant))
            largest = [_geometric(records.measured("largest", eps=eps, **about)) for eps in values]
            _line(right, values, largest, variant)
        right.set_yscale("log")
        _within_percent(left)
        left.set_ylabel("test accuracy (%)")
        right.set_ylabel("largest normalised value")
        for axes in (left, right):
            _log(axes, values)
            axes.set_xlabel("eps")
        _legend(figure, left, 2)
        return figure


def batch_sweep(records: Records) -> Figure:
    """Accuracy and train/eval gap by batch size."""
    sizes = sorted(records.settings["batch"]["sizes"])
    with figures.style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for variant in ("bn", "convbn"):
            accuracy, lost, gap = [], [], []
            for size in sizes:
                about = {"part": "batch", "variant": variant, "batch_size": size}
                accuracy.append(_percent(records.by_seed("test_accuracy", **about)))
                running, own = (records.measured("accuracy", x=x, **about) for x in ("running", "batch"))
                lost.append(t_interval(points(paired(running, own))))
                gap.append(_geometric(records.measured("gap", x=size, **about)))
            _line(left, sizes, accuracy, variant, figures.label(variant))
            _line(middle, sizes, lost, variant)
            _line(right, sizes, gap, variant)
        right.set_yscale("log")
        _within_percent(left)
        left.set_ylabel("test accuracy (%)")
        middle.axhline(0, color="#666666", linewidth=0.8)
        middle.set_ylabel("running less batch (points)")
        right.set_ylabel("training less eval (rms)")
        for axes in (left, middle, right):
            _log(axes, sizes)
            axes.set_xlabel("batch size")
        _legend(figure, left, 2)
        return figure
