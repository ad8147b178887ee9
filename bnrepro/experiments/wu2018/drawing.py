"""The figures of this experiment."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bnrepro import figures
from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.wu2018.claims import REPORTED, REPORTED_SORTED
from bnrepro.experiments.wu2018.effects import NAMES, accuracies, sizes_of, sorted_accuracies, whole_batch
from bnrepro.stats import Interval, t_interval

LOOKS = {
    "bn": ("#0072B2", "-", "o"),
    "renorm": ("#009E73", (0, (4, 2)), "^"),
    "local": ("#D55E00", (0, (5, 1, 1, 1)), "s"),
    "group": ("#CC79A7", (0, (3, 1)), ""),
    "none": ("#000000", (0, (1, 1)), ""),
    "lrn": ("#E69F00", (0, (6, 2, 1, 2)), ""),
}


def pictures(records: Records) -> list[Picture]:
    """Accuracy by images, and by composition; what has no records is not drawn."""
    n = records.settings["seeds"]
    drawn = []
    if whole_batch(records):
        caption = (
            "Left: test accuracy by the number of images of a batch that the statistics come from; norms that know no "
            f"batch are level. Mean and 95% interval over n = {n} seeds. Right: the source's, ResNet-50 on ImageNet, "
            "by images a GPU, one run each."
        )
        drawn.append(Picture("images", caption, images(records)))
    if sorted_accuracies(records, "bn", 0):
        caption = (
            "Left: test accuracy after training on shuffled batches, and on batches of "
            f"{records.settings['classes']} runs of one class; mean and 95% interval over n = {n} seeds. Right: the "
            "source's, Inception-v3 on ImageNet, 16 classes with 2 images each, one run each."
        )
        drawn.append(Picture("composition", caption, composition(records)))
    return drawn


def images(records: Records) -> Figure:
    """Ours beside the source's."""
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        batch = whole_batch(records)
        smallest = min(sizes_of(records, "bn"))
        for norm, (color, dashes, marker) in LOOKS.items():
            sizes = sizes_of(records, norm)
            found = [t_interval(list(accuracies(records, norm, size).values())) for size in sizes]
            if not found:
                continue
            mean, low, high = _ends(found)
            style = {"color": color, "linestyle": dashes, "label": NAMES[norm]}
            if marker:
                bars = np.stack([mean - low, high - mean])
                left.errorbar(sizes, mean, yerr=bars, marker=marker, markersize=3.5, capsize=2, **style)
            else:
                left.plot([smallest, batch], [mean[0], mean[0]], **style)
                left.fill_between([smallest, batch], low[0], high[0], color=color, alpha=0.12, linewidth=0)
        _logarithmic(left, sizes_of(records, "bn"))
        bottom, top = left.get_ylim()
        left.set_ylim(max(0, bottom), min(100, top))
        left.set(xlabel="images that statistics come from", ylabel="test accuracy, %", title="here")
        for name, norm in (("BN", "bn"), ("GN", "group")):
            color, dashes, marker = LOOKS[norm]
            numbers = REPORTED[name]
            right.plot(
                list(numbers),
                list(numbers.values()),
                color=color,
                linestyle=dashes,
                marker=marker or "D",
                markersize=3.5,
            )
        _logarithmic(right, sorted(REPORTED["BN"]))
        right.set(xlabel="images a GPU", ylabel="top-1 accuracy, %", title="source (ImageNet)")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=6, handlelength=2.6, columnspacing=1.2)
        return figure


def _logarithmic(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())


def _ends(found: list[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, low, high = (np.array([getattr(i, end) for i in found], dtype=float) for end in ("mean", "low", "high"))
    return mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)


def composition(records: Records) -> Figure:
    """Bars, ours beside the source's."""
    classes = records.settings["classes"]
    values = {
        "BN, shuffled": sorted_accuracies(records, "bn", 0),
        "renorm, shuffled": sorted_accuracies(records, "renorm", 0),
        "group norm, shuffled": sorted_accuracies(records, "group", 0),
        "BN, few classes": sorted_accuracies(records, "bn", classes),
        "BN, few classes, by the batch": sorted_accuracies(records, "bn", classes, "batch_accuracy"),
        "renorm, few classes": sorted_accuracies(records, "renorm", classes),
        "group norm, few classes": sorted_accuracies(records, "group", classes),
    }
    with figures.style():
        figure = Figure(figsize=(2 * figures.COLUMN, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        ours = {name: t_interval(list(found.values())) for name, found in values.items()}
        theirs = {name: Interval(value, value, value, 1) for name, value in REPORTED_SORTED.items()}
        names = list(values)
        for axes, numbers, title in ((left, ours, "here"), (right, theirs, "source (ImageNet)")):
            for place, name in enumerate(names):
                if name not in numbers:
                    continue
                mean, low, high = (float(end[0]) for end in _ends([numbers[name]]))
                color = LOOKS["bn" if name.startswith("BN") else "renorm" if name.startswith("renorm") else "group"][0]
                pale = 0.45 if "shuffled" in name else 1.0
                axes.barh(place, mean, color=color, alpha=pale, height=0.7)
                if axes is left:
                    axes.errorbar(
                        mean, place, xerr=[[mean - low], [high - mean]], color="black", capsize=2, linewidth=1
                    )
            axes.set_xlim(0, 100)
            axes.set_axisbelow(True)
            axes.set(xlabel="accuracy, %", title=title)
            axes.grid(axis="y", visible=False)
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        return figure
