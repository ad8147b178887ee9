"""Tables and figures of conv_batchnorm."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnrepro.claims import Results, Values
from bnrepro.claims.plots import curve, dots, legend, lines, looks, panels, ticks, zero
from bnrepro.experiments.conv_batchnorm import (
    AXES,
    CELLS,
    LAYER,
    LIGHTS,
    Settings,
    accuracy,
    checked,
    name_of,
    named,
    paper,
    percent,
    window_name,
)
from bnrepro.plots import style as figures
from bnrepro.stats import Interval, holm, p_value

Row = dict[str, Any]
LOOK = looks(["nobn", "bn", "convbn", "adaptive", "peractivationbn", "locationaffinebn"])
WHERE = {"nobn": ("none", "none"), **AXES, "adaptive": ("window", "channel")}
"""Of each variant: where the statistics are, and where gamma and beta."""


def arms(r: Results, part: str, *factors: str) -> list[tuple[Any, ...]]:
    """The levels of ``factors`` in a part, in the order of its runs."""
    return list(dict.fromkeys(tuple(row[key] for key in factors) for row in r.runs if row["part"] == part))


# --- tables ---


@paper.table
def cells(r: Results, s: Settings) -> list[Row]:
    """The 2 x 2 table and no BN: test accuracy in percent; in points, its difference from BN, training minus test
    accuracy, and accuracy with each batch's own statistics minus that with the running ones; the relative error of the
    first norm's output when images move by a pixel. Differences are paired by seed; eps is the same in all.
    """
    found, measured = r.test_accuracy(part="table"), percent(r, "table", "accuracy")
    rows = []
    for dataset, variant in arms(r, "table", "dataset", "variant"):
        about = {"dataset": dataset, "variant": variant}
        own = found.at(**about)
        running, batch, seen = (
            measured.at(x=x, dataset=name_of(dataset), variant=variant) for x in ("running", "batch", "training images")
        )
        row: Row = {"dataset": name_of(dataset), "variant": variant}
        row |= {"statistics": WHERE[variant][0], "gamma and beta": WHERE[variant][1]}
        row |= {"diverged": int(sum(r.diverged(part="table", **about))), "test accuracy": own.interval()}
        row |= {"minus bn": (own - found.at(dataset=dataset, variant="bn")).interval()}
        row |= {"training minus test": (seen - running).interval(), "batch minus running": (batch - running).interval()}
        for mode in ("eval", "training"):
            row[f"shift error, {mode}"] = r.measured("shift error", part="table", x=mode, **about).interval()
        for count in ("parameters", "buffers"):
            row[count] = next(map(int, r.of_runs(count, part="table", **about)), None)
        rows.append(row)
    return rows


@paper.table
def effects(r: Results, s: Settings) -> list[Row]:
    """What each axis of the 2 x 2 table does to the test accuracy, in points: local minus channel statistics, gamma and
    beta per location minus per channel (each the mean over the other axis), and how the one depends on the other.
    Two-sided p values, with Holm's correction over the table.
    """
    found = accuracy(r, "table")
    a, b, c, d = (found.at(variant=v) for v in ("bn", "convbn", "locationaffinebn", "peractivationbn"))
    each = {
        "local statistics": (b + d - a - c) / 2,
        "gamma and beta per location": (c + d - a - b) / 2,
        "interaction": d - c - (b - a),
    }
    values = {
        (dataset, effect): list(of.at(dataset=dataset).seeds.values())
        for dataset in found.levels("dataset")
        for effect, of in each.items()
    }
    p = {key: p_value(points) for key, points in values.items()}
    rejected = holm({str(key): value for key, value in p.items()})
    return [
        {
            "dataset": key[0],
            "effect": key[1],
            "points": each[key[1]].at(dataset=key[0]).interval(),
            "p": p[key],
            "significant": "yes" if rejected[str(key)] else "no",
        }
        for key in values
    ]


@paper.table
def horizon(r: Results, s: Settings) -> list[Row]:
    """The horizon: lower half of each image at {s.horizon.shade:g} of its light in training and test (static), at a
    factor between {s.horizon.shade:g} and 1 that differs from batch to batch (frames), or as it is (plain). Test
    accuracy in percent; shares in percent of active ReLUs, and of units that some images switch on and others off,
    above and below the horizon, in the first and second convolutional layer.
    """
    rows = []
    for dataset, light, variant in arms(r, "horizon", "dataset", "light", "variant"):
        about = {"dataset": dataset, "light": light, "variant": variant}
        row: Row = about | {"dataset": name_of(dataset)}
        row["test accuracy"] = r.test_accuracy(part="horizon", **about).interval()
        for what in ("active", "switching"):
            for layer in ("1", "2"):
                for side in ("above", "below"):
                    share = percent(r, "horizon", f"{what} {side} {layer}", x="own", **about)
                    row[f"{what} {side}, layer {layer}"] = share.mean().interval()
        rows.append(row)
    return rows


@paper.table
def other_light(r: Results, s: Settings) -> list[Row]:
    """Trained on plain images, tested with the lower half at another light: test accuracy in percent by the factor."""
    found = percent(r, "horizon", "accuracy", light="plain", x=s.horizon.test_shades)
    return [
        {"dataset": dataset, "variant": variant}
        | {f"{shade:g}": values.at(x=shade).interval() for shade in s.horizon.test_shades}
        for (dataset, variant), values in found.by("dataset", "variant").items()
    ]


@paper.table
def window(r: Results, s: Settings) -> list[Row]:
    """The adaptive norm by the side of its window, between BN and local-gain BN with their running statistics: test
    accuracy in percent, and root mean square distance of its output after the first layer from that of local and of
    channel statistics of the same batch.
    """
    kernels = [("adaptive", kernel) for kernel in s.window.kernels]
    local, channel = (r.measured(f"to {end}", part="window", variant="bn").by("x") for end in ("local", "channel"))
    return [
        {
            "variant": variant,
            "window": kernel and ("whole map" if kernel > 100 else f"{kernel} x {kernel}"),
            "test accuracy": r.test_accuracy(part="window", variant=variant, kernel=kernel).interval(),
            "distance to local": local[kernel].interval() if kernel in local else None,
            "distance to channel": channel[kernel].interval() if kernel in channel else None,
        }
        for variant, kernel in [("convbn", None), *kernels, ("bn", None)]
        if local
    ]


@paper.table
def eps(r: Results, s: Settings) -> list[Row]:
    """eps as a hyperparameter: test accuracy in percent, largest normalised value on test images after the first layer,
    and share in percent of positions that do not vary over a batch there.
    """
    rows: list[Row] = []
    for variant, value in sorted(arms(r, "eps", "variant", "eps")):
        about = {"part": "eps", "variant": variant, "eps": value}
        row: Row = {"variant": variant, "eps": value, "test accuracy": r.test_accuracy(**about).interval()}
        row["largest value"] = r.measured("largest", **about).interval()
        for size in s.gap.batches:
            row[f"constant, batch of {size}"] = (100 * r.measured("constant", x=size, **about)).interval()
        rows.append(row)
    if rows:  # the images are the same in all runs: any will do
        pixels = {size: r.measured("constant pixels", part="eps", variant="bn", x=size) for size in s.gap.batches}
        shares = {f"constant, batch of {size}": 100 * fmean(found) for size, found in pixels.items() if found}
        rows.append(dict.fromkeys(rows[0]) | {"variant": "(pixels)"} | shares)
    return rows


@paper.table
def batch_size(r: Results, s: Settings) -> list[Row]:
    """By batch size, with the same number of epochs: test accuracy in percent with running statistics and with the
    batch's own, and the root mean square of the normalised value in training minus that in eval after the first layer.
    """
    rows = []
    for size, variant in sorted(arms(r, "batch", "batch_size", "variant")):
        about = {"part": "batch", "variant": variant, "batch_size": size}
        row: Row = {"batch size": size, "variant": variant, "test accuracy": r.test_accuracy(**about).interval()}
        own = 100 * r.measured("accuracy", x="batch", **about)
        row |= {"with the batch's own statistics": own.interval()}
        rows.append(row | {"gap": r.measured("gap", x=size, **about).interval()})
    return rows


@paper.table(over_seeds=False)
def sizes(r: Results, s: Settings) -> list[Row]:
    """Numbers that a norm keeps for a map of 6 x 24 x 24, and whether it takes a map of another size."""
    parameters, buffers, takes = (
        checked(r, claim, quantity).by("x")
        for claim, quantity in (("L1", "parameters"), ("L1", "buffers"), ("L5", "takes"))
    )
    return [
        {
            "variant": variant,
            "statistics": WHERE[variant][0],
            "gamma and beta": WHERE[variant][1],
            "parameters": parameters[variant].only(),
            "buffers": buffers[variant].only(),
            "takes other sizes": "yes" if takes[variant].only() else "no",
        }
        for variant in parameters
    ]


@paper.table(over_seeds=False)
def bessel(r: Results, s: Settings) -> list[Row]:
    """The factor from a batch's variance to the running one, for n values: the source's, the unbiased one, and ours."""
    found = {name: checked(r, "L9", name).by("x") for name in ("source", "unbiased", "ours")}
    return [
        {"n": n} | {name: values[n].only() if n in values else None for name, values in found.items()}
        for n in found["source"]
    ]


# --- figures ---


def _log(axes: Axes, values: Sequence[float], labels: list[str] | None = None) -> None:
    """A logarithmic x axis with a tick at each value."""
    axes.set_xscale("log")
    ticks(axes, values)
    axes.set_xticks(values, labels or [f"{value:g}".replace("e-0", "e-") for value in values])


def _within_percent(axes: Axes) -> None:
    """No accuracy lies outside of 0 and 100, wherever its interval ends."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, 0), min(top, 100.5))


@paper.figure
def two_by_two(r: Results, s: Settings) -> Figure | None:
    """The 2 x 2 table. Left: test accuracy minus that of BN with the same seed. Middle: root mean square of the
    normalised value in training minus that in eval after the first layer, by the batch size it is measured at; gamma
    and beta per location change nothing here, so their points lie on the line of the same statistics. Right: relative
    error of the first norm's output when images move by a pixel, with running statistics (eval) and with those of the
    moved batch (training). Middle and right: {s.first}.
    """
    found = accuracy(r, "table")
    gap, error = (named(r.measured(what, part="table")).at(dataset=s.first) for what in ("gap", "shift error"))
    if not found or not gap or not error:
        return None
    figure, (left, middle, right) = panels(3, height=2.9)
    zero(left)
    dots(left, found - found.at(variant="bn"), "dataset", "variant", LOOK)
    left.set_xticks(left.get_xticks(), [n.replace("-", "-\n") if len(n) > 9 else n for n in found.levels("dataset")])
    left.set_ylabel("test accuracy minus BN's, points")
    as_points = {variant: LOOK[variant]._replace(dashes="none") for variant in ("peractivationbn", "locationaffinebn")}
    drawn = {variant: as_points.get(variant, LOOK[variant]) for variant in CELLS}
    lines(middle, gap, "x", "variant", drawn, bars=True, log=True)
    figures.log_scale(middle)
    _log(middle, s.gap.batches)
    middle.set(xlabel="batch size", ylabel="training minus eval, rms")
    dots(right, error, "x", "variant", LOOK)
    right.set(ylim=(0, None), ylabel="relative error when shifted")
    legend(figure, 5, of=left)
    return figure


@paper.figure
def sunrise(r: Results, s: Settings) -> Figure | None:
    """The horizon. Left: test accuracy on plain images, with the lower half always at {s.horizon.shade:g} of its light
    (static), and with a factor of its own for each batch (frames), in training and test alike. Middle: share of active
    ReLUs in the first layer above and below the horizon with the lower half always dark; pale: the same on plain
    images. Right: networks trained on plain images, by the light of the lower half at test.
    """
    own, other = accuracy(r, "horizon"), percent(r, "horizon", "accuracy", light="plain", x=s.horizon.test_shades)
    above, below = (percent(r, "horizon", f"active {side} {LAYER}", x="own") for side in ("above", "below"))
    active = above.join("side", "above", below=below)
    if not own or not other or not active:
        return None
    datasets = own.levels("dataset")
    look = {variant: each for variant, each in LOOK.items() if variant in own.levels("variant")}
    pale = {variant: each._replace(color=f"{each.color}59", label="") for variant, each in look.items()}
    figure, axes = panels(3, len(datasets), height=2.3)
    for row, dataset in enumerate(datasets):
        left, middle, right = axes[3 * row : 3 * row + 3]
        dots(left, own.at(dataset=dataset), "light", "variant", look)
        here = active.at(dataset=dataset)
        dots(middle, here.at(light="plain"), "side", "variant", pale, shift=-0.04)
        dots(middle, here.at(light="static"), "side", "variant", look, shift=0.04)
        lines(right, other.at(dataset=dataset), "x", "variant", look, bars=True, apart=0.012)
        ticks(right, s.horizon.test_shades)
        for each in (left, middle, right):
            _within_percent(each)
        left.set_ylabel(f"{dataset}: test accuracy, %")
        middle.set(xlabel="side of the horizon", ylabel="active ReLUs, %")
        right.set(xlabel="light of the lower half at test", ylabel="test accuracy, %")
    legend(figure, len(look), of=axes[0])
    return figure


def _map(r: Results, s: Settings, quantity: str, light: str) -> np.ndarray | None:
    """A map of the first dataset's convbn; it is measured of seed 0 alone."""
    about = {"part": "horizon", "dataset": s.horizon.data[0], "variant": "convbn", "light": light}
    values = r.measured(quantity, **about).by("x")
    width = r.measured("width", **about).only()
    if not values or not width:
        return None
    return np.array([values[place].only() for place in sorted(values)]).reshape(-1, int(width))


@paper.figure(over_seeds=False)
def maps(r: Results, s: Settings) -> Figure | None:
    """What the first local-gain norm of seed 0 keeps on {s.horizon.name}. Above: running standard deviation at each
    location, mean over channels. Below: root mean square over channels of the running mean minus the channel's average.
    Trained on plain images, with the lower half always dark (static), and with another light in each batch (frames).
    Channel-wise BN keeps one number per channel.
    """
    rows = {"deviation map": "running standard deviation", "mean map": "spread of the running mean"}
    each = {(quantity, light): _map(r, s, quantity, light) for quantity in rows for light in LIGHTS}
    found = {key: values for key, values in each.items() if values is not None}
    if len(found) < len(each):
        return None
    figure = Figure(figsize=(2 * figures.COLUMN, 4.3), layout="compressed")
    for row, (quantity, name) in zip(figure.subplots(2, len(LIGHTS), squeeze=False), rows.items(), strict=True):
        top = max(float(found[quantity, light].max()) for light in LIGHTS)
        for axes, light in zip(row, LIGHTS, strict=True):
            values = found[quantity, light]
            image = axes.imshow(values, cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
            axes.axhline(len(values) / 2 - 0.5, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set(xticks=[], yticks=[], title=light if quantity == "deviation map" else "")
            axes.grid(visible=False)
        row[0].set_ylabel(name)
        figure.colorbar(image, ax=list(row), shrink=0.85)
    return figure


@paper.figure
def window_sweep(r: Results, s: Settings) -> Figure | None:
    """The adaptive norm's window ({s.window.name}). Left: test accuracy, beside BN and local-gain BN with their running
    statistics (bands). Right: distance of its output after the first layer from that of local and of channel
    statistics.
    """
    kernels = s.window.kernels
    last = max((kernel for kernel in kernels if kernel <= 100), default=1)
    place = {kernel: float(min(kernel, 2 * last)) for kernel in kernels}

    def at(values: Values, factor: str) -> dict[float, Interval]:
        return {place[kernel]: interval for kernel, interval in values.intervals(factor).items()}

    adaptive = accuracy(r, "window", variant="adaptive")
    if not adaptive:
        return None
    figure, (left, right) = panels(2, height=2.6)
    for variant in ("convbn", "bn"):
        look, interval = LOOK[variant], accuracy(r, "window", variant=variant, kernel=None).interval()
        left.axhline(interval.mean, color=look.color, linestyle=look.dashes, label=f"{look.label}, running")
        left.axhspan(interval.low, interval.high, color=look.color, alpha=0.12, linewidth=0)
    look = LOOK["adaptive"]._replace(label="adaptive, of the present batch")
    curve(left, at(adaptive, "kernel"), look, bars=True)
    _within_percent(left)
    low, high = left.get_ylim()
    left.set(ylim=(low - 0.35 * (high - low), high), ylabel="test accuracy, %")  # room for the legend below the bars
    left.legend(loc="lower right", fontsize=7)
    for end, variant in (("local", "convbn"), ("channel", "bn")):
        distance = r.measured(f"to {end}", part="window", variant="bn")
        curve(right, at(distance, "x"), LOOK[variant]._replace(label=f"from {end} statistics"), bars=True)
    right.set(ylim=(None, 1.25 * right.get_ylim()[1]), ylabel="distance of the output, rms")
    right.legend(loc="upper center", ncols=2, fontsize=7)
    for axes in (left, right):
        _log(axes, list(place.values()), [window_name(kernel) for kernel in kernels])
        axes.set_xlabel("side of the window")
    return figure


@paper.figure
def eps_sweep(r: Results, s: Settings) -> Figure | None:
    """eps with channel and with local statistics ({s.eps.name}): test accuracy, and the largest normalised value on
    test images after the first layer.
    """
    found, largest = accuracy(r, "eps"), r.measured("largest", part="eps")
    if not found or not largest:
        return None
    figure, (left, right) = panels(2, height=2.6)
    look = {variant: LOOK[variant] for variant in ("bn", "convbn")}
    lines(left, found, "eps", "variant", look, bars=True)
    lines(right, largest, "eps", "variant", look, bars=True, log=True)
    right.set_yscale("log")
    _within_percent(left)
    left.set_ylabel("test accuracy, %")
    right.set_ylabel("largest normalised value")
    for axes in (left, right):
        _log(axes, s.eps.values)
        axes.set_xlabel("eps")
    legend(figure, of=left)
    return figure


@paper.figure
def batch_sweep(r: Results, s: Settings) -> Figure | None:
    """Batch size with channel and with local statistics ({s.batch.name}): test accuracy with running statistics; the
    same minus accuracy with the batch's own; and the root mean square of the normalised value in training minus that in
    eval after the first layer.
    """
    found, measured = accuracy(r, "batch"), percent(r, "batch", "accuracy")
    gap = r.measured("gap", part="batch").mean("x")  # each is measured at its own size
    if not found or not measured or not gap:
        return None
    figure, axes = panels(3, height=2.6)
    left, middle, right = axes
    look = {variant: LOOK[variant] for variant in ("bn", "convbn")}
    lines(left, found, "batch_size", "variant", look, bars=True)
    zero(middle)
    lines(middle, measured.at(x="running") - measured.at(x="batch"), "batch_size", "variant", look, bars=True)
    lines(right, gap, "batch_size", "variant", look, bars=True, log=True)
    right.set_yscale("log")
    _within_percent(left)
    labels = ("test accuracy, %", "running minus batch, points", "training minus eval, rms")
    for each, label in zip(axes, labels, strict=True):
        _log(each, s.batch.sizes)
        each.set(xlabel="batch size", ylabel=label)
    legend(figure, of=left)
    return figure
