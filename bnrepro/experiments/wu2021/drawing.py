"""The figures: accuracy along a training by the kind of statistics, and against samples, momentum and ghost batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.wu2021.measurements import BATCH, FROZEN, GHOST, PATH, POPULATION
from bnrepro.stats import Interval, t_interval

KINDS: dict[str, tuple[str, tuple[str, Any, str]]] = {
    "ema 0.1": ("moving average (0.1)", ("#D55E00", (0, (4, 2)), "s")),
    "cumulative": ("cumulative average", ("#009E73", (0, (1, 1)), "^")),
    POPULATION: ("population", ("#0072B2", "-", "o")),
    BATCH: ("the test batch's own", ("#CC79A7", (0, (5, 1, 1, 1)), "v")),
    FROZEN: ("frozen at the end\nof training", ("#000000", (0, (4, 2)), "D")),
}
VARIANTS = {"bn": "BN", "convbn": "local-gain BN"}


def line(axes: Axes, series: dict[float, list[float]], look: tuple[str, Any, str], label: str, *, band: bool) -> None:
    """Means and 95% intervals against x: a band, or bars."""
    color, dashes, marker = look
    intervals = [t_interval(values) for values in series.values()]
    mean, low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
    shape: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 3}
    if band:
        axes.plot(list(series), mean, label=label, **shape)
        axes.fill_between(list(series), np.clip(low, 0, 100), np.clip(high, 0, 100), color=color, alpha=0.15, lw=0)
    else:
        axes.errorbar(list(series), mean, yerr=[_half(i) for i in intervals], capsize=2, label=label, **shape)


def _half(interval: Interval) -> float:
    return float(np.nan_to_num(interval.high - interval.mean))


def along(records: Records) -> Picture:
    """Test error along the training, a panel for each network: the source's validation error by epoch."""
    path = records.settings["path"]
    variants, sizes = path["variants"], list(path["batches"])
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 0.6 + 1.9 * len(variants)), layout="constrained")
        grid = figure.subplots(len(variants), len(sizes), squeeze=False, sharey=True)
        for row, variant in enumerate(variants):
            for column, size in enumerate(sizes):
                axes = grid[row, column]
                for kind in ("ema 0.1", "cumulative", POPULATION, BATCH):
                    name, look = KINDS[kind]
                    found = records.series(f"accuracy_{kind}", part=PATH, variant=variant, batch=size)
                    errors = {x: [100 - value for value in values] for x, values in found.items()}
                    line(axes, errors, look, name, band=True)
                axes.set_title(f"{VARIANTS.get(variant, variant)}, {size} batch", fontsize=8)
                axes.set_ylim(0, 100)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        for axes in grid[:, 0]:
            axes.set_ylabel("test error, %")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=3, columnspacing=1.2)
    caption = (
        "Test error of one network by what stands for mean and variance at test, along its training: mean and 95% "
        f"interval over n={records.settings['seeds']} seeds, {path['images']} test images. The population's statistics "
        f"are of {records.settings['enough']:,} training images. Preset {records.preset}."
    )
    return Picture("along", caption, figure)


def against(records: Records) -> Picture:
    """Accuracy against samples and momentum (less that of all samples), and against the ghost batch."""
    path = records.settings["path"]
    cells = [(variant, size) for variant in path["variants"] for size in path["batches"]]
    looks = dict(zip(cells, _cell_looks(), strict=False))
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 5.0), layout="constrained")
        (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False)
        left, right = top.subplots(1, 2)
        below = bottom.subplots()
        for index, (variant, size) in enumerate(cells):
            who = {"part": PATH, "variant": variant, "batch": size}
            whole = records.series(f"final_{POPULATION}", **who).get(None, [])
            name = f"{VARIANTS.get(variant, variant)}, {size} batch"
            shift = 1.04 ** (index - (len(cells) - 1) / 2)  # side by side: bars would hide one another
            samples = records.series("samples", **who)
            momenta = {m: records.series(f"final_ema {m:g}", **who).get(None, []) for m in path["momenta"]}
            for axes, found in ((left, samples), (right, momenta)):
                less = {x * shift: [a - b for a, b in zip(v, whole, strict=True)] for x, v in found.items()}
                line(axes, less, looks[variant, size], name, band=False)
        for axes, x, marks in (
            (left, "training images in the statistics", path["samples"]),
            (right, "momentum of the moving average", path["momenta"]),
        ):
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel(x)
        left.set_ylabel("test accuracy less that of\nall images' statistics, points")
        _ghosts(below, records)
        handles, labels = left.get_legend_handles_labels()
        top.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=2.6, columnspacing=1.2)
    caption = (
        "Above: test accuracy at the end by the number of training images in the population's statistics, and by the "
        "momentum of the moving average, less that with the statistics of all images. Below: test error after training "
        f"on ghost batches, by the statistics at test. Means and 95% intervals over n={records.settings['seeds']} "
        f"seeds, preset {records.preset}."
    )
    return Picture("against", caption, figure)


def _cell_looks() -> list[tuple[str, Any, str]]:
    return [
        ("#0072B2", "-", "o"),
        ("#56B4E9", (0, (4, 2)), "s"),
        ("#D55E00", "-", "^"),
        ("#E69F00", (0, (4, 2)), "v"),
    ]


def _ghosts(axes: Axes, records: Records) -> None:
    sizes = records.settings["ghost"]["sizes"]
    drawn = [("test", kind, *KINDS[kind]) for kind in (POPULATION, BATCH, FROZEN)]
    drawn.append(("train", BATCH, "the batch's own,\ntraining images", ("#999999", (0, (1, 1)), "^")))
    for index, (split, kind, name, look) in enumerate(drawn):
        found = {size: records.series(split, part=GHOST, size=size).get(kind, []) for size in sizes}
        shift = 1.03 ** (index - 1.5)
        line(axes, {s * shift: [100 - v for v in values] for s, values in found.items()}, look, name, band=False)
    axes.set_xscale("log", base=2)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, 0), min(top, 100))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("images a ghost batch in training")
    axes.set_ylabel("error, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.6)
