"""Accuracy against depth and width by what is trained, and the gammas that it ends with."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.frankle2021.networks import BINS, DEPTH, WIDTH
from bnrepro.stats import t_interval

LOOKS: dict[str, tuple[str, str, Any, str]] = {
    "all": ("everything", "#000000", (0, (1, 1)), "D"),
    "norm": ("gamma and beta", "#0072B2", "-", "o"),
    "last": ("the logits' layer", "#E69F00", (0, (5, 1, 1, 1)), "^"),
    "random": ("as many other weights", "#D55E00", (0, (4, 2)), "s"),
}


def sizes(records: Records) -> Picture:
    """Test accuracy against depth and against width."""
    settings = records.settings
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, part, values in ((left, DEPTH, settings["depths"]), (right, WIDTH, settings["widths"])):
            for trained, (name, color, dashes, marker) in LOOKS.items():
                found = [records.by_seed("test_accuracy", part=part, size=v, trained=trained) for v in values]
                intervals = [t_interval([100 * value for value in f.values()]) for f in found]
                half = np.nan_to_num([i.high - i.mean for i in intervals])
                axes.errorbar(
                    values, [i.mean for i in intervals], yerr=half, color=color, linestyle=dashes, marker=marker,
                    markersize=3.5, capsize=2, label=name,
                )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(NullLocator())
        left.set_xticks(settings["depths"], [str(6 * depth + 2) for depth in settings["depths"]])
        right.set_xticks(settings["widths"], [f"{width:g}" for width in settings["widths"]])
        left.set_xlabel("layers")
        right.set_xlabel("width, as a share of the usual")
        left.set_ylabel("test accuracy, %")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=3, columnspacing=1.2)
    base = settings["network"]
    caption = (
        "Test accuracy of residual networks by what is trained, the rest being as it was drawn: by depth at "
        f"{base[WIDTH]:g} of the usual width, and by width at {6 * base[DEPTH] + 2} layers. Mean and 95% interval over "
        f"n={settings['seeds']} seeds, preset {records.preset}."
    )
    return Picture("sizes", caption, figure)


def gammas(records: Records) -> Picture:
    """Histogram of the deepest network's gammas at the end."""
    depth = max(records.settings["depths"])
    with figures.style():
        figure = Figure(figsize=(figures.COLUMN, 2.6), layout="constrained")
        axes = figure.add_subplot()
        highest = 0.1
        for trained in ("norm", "all"):
            name, color, dashes, _ = LOOKS[trained]
            found = records.series("density", part=DEPTH, size=depth, trained=trained)
            intervals = [t_interval(values) for values in found.values()]
            mean, low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
            highest = max([highest, *mean])
            axes.step(list(found), mean, where="mid", color=color, linestyle=dashes, label=f"trained: {name}")
            axes.fill_between(list(found), np.maximum(low, 0), high, step="mid", color=color, alpha=0.15, linewidth=0)
        axes.axvline(0, color="#999999", linewidth=0.8)
        axes.set_xlabel("gamma")
        axes.set_ylabel("density")
        axes.set_ylim(0, min(axes.get_ylim()[1], 3 * highest))  # of two seeds, the band is all there would be
        figure.legend(loc="outside upper center", ncols=1, handlelength=3)
    caption = (
        f"Gammas of the network of {6 * depth + 2} layers at the end of training, in {BINS} bins (drawn between 0 and "
        f"1 before): mean and 95% interval over n={records.settings['seeds']} seeds. Preset {records.preset}."
    )
    return Picture("gammas", caption, figure)
