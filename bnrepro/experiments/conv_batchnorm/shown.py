"""What claims read from the records; tables and figures: the 2 x 2 table, the horizon, the window, eps, batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnrepro.claims import Results, Row, Values
from bnrepro.experiments.conv_batchnorm import checks
from bnrepro.plots import style as figures
from bnrepro.plots.panels import curve, dots, legend, lines, looks, panels, ticks, zero
from bnrepro.stats import holm, p_value

if TYPE_CHECKING:
    from bnrepro.experiments.conv_batchnorm import Settings

DATA = {"mnist": "MNIST", "mnist5k": "MNIST-5k", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
WHERE = {
    "bn": {"statistics": "channel", "gamma and beta": "channel"},
    "convbn": {"statistics": "location", "gamma and beta": "channel"},
    "adaptive": {"statistics": "window", "gamma and beta": "channel"},
    "ghostbn": {"statistics": "channel, of a part of the batch", "gamma and beta": "channel"},
    "groupnorm": {"statistics": "group of channels, of an image", "gamma and beta": "channel"},
    "peractivationbn": {"statistics": "location", "gamma and beta": "location"},
    "locationaffinebn": {"statistics": "channel", "gamma and beta": "location"},
}
"""Of each variant: what the numbers are kept by."""
NAMES = {
    "bn": "BN (channel)",
    "convbn": "local-gain BN (location)",
    "adaptive": "adaptive (window)",
    "ghostbn": "ghost batches",
    "groupnorm": "group norm",
    "peractivationbn": "per-activation BN",
    "locationaffinebn": "BN, affine per location",
}
LOOK = looks(NAMES)
CELLS = ["bn", "convbn", "peractivationbn", "locationaffinebn"]  # of the 2 x 2 table
UNITS = {
    "all": "all units",
    "light": "filters that light raises",
    "dark": "filters that light lowers",
    "pixels": "pixels",
}


# --- what is read ---


def named(values: Values) -> Values:
    """With datasets called as they are written: no other level has such a name."""
    data = {(tuple(DATA.get(of, of) for of in label), seed): value for (label, seed), value in values.data.items()}
    return Values(values.factors, data)


def accuracy(r: Results, part: str, **at: Any) -> Values:
    """Test accuracy in percent."""
    return named(r.test_accuracy(part=part, **at))


def measured(r: Results, part: str, quantity: str, **at: Any) -> Values:
    """What was measured of a part's networks."""
    return named(r.measured(quantity, part=part, **at))


def minus_bn(values: Values) -> Values:
    """Values of variants minus BN's of the same seed."""
    return values - values.at(variant="bn")


def checked(r: Results, claim: str, quantity: str) -> Values:
    """What the exact check of ``claim`` found."""
    return r.measured(quantity, part="exact", claim=claim)


def window_name(kernel: float) -> str:
    """The side of a window; "all" for one that is larger than any map here, and so has the whole map."""
    return "all" if kernel > 100 else f"{kernel:g}"


# --- tables ---


def arms(r: Results, part: str, factors: Sequence[str], columns: Mapping[str, Values]) -> list[Row]:
    """A row for each arm of a part, in the order of its runs: its factors, and the intervals of ``columns``."""
    rows = []
    for levels in named(r.diverged(part=part)).by(*factors):
        arm = dict(zip(factors, levels, strict=True))
        rows.append(arm | {name: values.at(**arm).interval() for name, values in columns.items()})
    return rows


def cells(r: Results, s: Settings) -> list[Row]:
    """The 2 x 2 table: test accuracy in percent; in points, its difference from BN, training minus test
    accuracy, and accuracy with each batch's own statistics minus that with the running ones; the relative error of the
    first norm's output when images move by a pixel. Differences are paired by seed; eps is the same in all.
    """
    found, error = accuracy(r, "table"), measured(r, "table", "shift error")
    shares = 100 * measured(r, "table", "accuracy")
    columns = {
        "test accuracy": found,
        "minus bn": minus_bn(found),
        "training minus test": shares.at(x="training images") - shares.at(x="running"),
        "batch minus running": shares.at(x="batch") - shares.at(x="running"),
        "shift error, eval": error.at(x="eval"),
        "shift error, training": error.at(x="training"),
    }
    diverged = named(r.diverged(part="table"))
    counts = {name: named(r.of_runs(name, part="table")) for name in ("parameters", "buffers")}
    rows = []
    for row in arms(r, "table", ("dataset", "variant"), columns):
        arm: Row = {"dataset": row["dataset"], "variant": row["variant"]}
        sizes = {name: next(map(int, values.at(**arm)), None) for name, values in counts.items()}
        rows.append(arm | WHERE[row["variant"]] | {"diverged": int(sum(diverged.at(**arm)))} | row | sizes)
    return rows


def effects(r: Results, s: Settings) -> list[Row]:
    """What each axis of the 2 x 2 table does to the test accuracy, in points: local minus channel statistics, gamma and
    beta per location minus per channel (each the mean over the other axis), and how the one depends on the other.
    Two-sided p values, with Holm's correction over the table.
    """
    found = accuracy(r, "table")
    a, b, c, d = (found.at(variant=v) for v in ("bn", "convbn", "locationaffinebn", "peractivationbn"))
    of = {
        "local statistics": (b + d - a - c) / 2,
        "gamma and beta per location": (c + d - a - b) / 2,
        "interaction": d - c - (b - a),
    }
    rows: list[Row] = []
    for dataset, effect in product(found.levels("dataset"), of):
        points = of[effect].at(dataset=dataset)
        row = {"dataset": dataset, "effect": effect, "points": points.interval()}
        rows.append(row | {"p": p_value(list(points.seeds.values()))})
    rejected = holm({str(place): row["p"] for place, row in enumerate(rows)})
    return [row | {"significant": "yes" if rejected[str(place)] else "no"} for place, row in enumerate(rows)]


def threshold(r: Results, s: Settings) -> list[Row]:
    """A first layer as it is initialised, below the horizon. In percent: values above 0, of all its units, of filters
    that light raises and lowers, and of the pixels where these are what is normalised; units that almost no image
    activates, and that almost every one does. And how far values are from those on plain images, relative to these. In
    the last light, running statistics of plain images meet dark ones.
    """
    columns = {f"active, {name}": 100 * measured(r, "start", f"active below {kind}") for kind, name in UNITS.items()}
    for name in ("silent", "always"):
        columns[f"{name}, all units"] = 100 * measured(r, "start", f"{name} below all")
    columns["change"] = measured(r, "start", "change below")
    return [
        {"dataset": dataset, "light": light, "variant": variant}
        | {name: values.at(dataset=dataset, x=light, variant=variant).interval() for name, values in columns.items()}
        for dataset, light, variant in columns["change"].by("dataset", "x", "variant")
    ]


def horizon(r: Results, s: Settings) -> list[Row]:
    """The horizon after training: lower half of each image at {s.horizon.shade:g} of its light in training and test
    (static), at a factor between {s.horizon.shade:g} and 1 that differs from batch to batch (frames), or as it is
    (plain). Test accuracy in percent as the norm is used (with running statistics, if it has them) and with each test
    batch's own, and in points their differences from BN, paired by seed; shares in percent of
    active ReLUs above and below the horizon, and below it of units that almost no image switches on, and that some
    images switch on and others off, in the first {s.horizon.layers} convolutions.
    """
    found = {"test accuracy": accuracy(r, "horizon")}
    found["by the batch"] = 100 * measured(r, "horizon", "accuracy", x="batch")
    columns = {name: v for of, each in found.items() for name, v in ((of, each), (f"{of}, minus bn", minus_bn(each)))}
    for what in ("active above", "active below", "silent below", "switching below"):
        columns[what] = 100 * measured(r, "horizon", what)
    return arms(r, "horizon", ("dataset", "light", "variant"), columns)


def other_light(r: Results, s: Settings) -> list[Row]:
    """Trained on plain images, tested with the lower half at another light: test accuracy in percent by the factor,
    with running statistics (of those that have them) and with each test batch's own.
    """
    found, by_batch = (
        100 * measured(r, "horizon", quantity, light="plain", x=s.horizon.test_shades)
        for quantity in ("accuracy", "accuracy by the batch")
    )
    columns = {f"{shade:g}": found.at(x=shade) for shade in s.horizon.test_shades}
    columns |= {f"{shade:g}, by the batch": by_batch.at(x=shade) for shade in s.horizon.test_shades}
    return arms(r, "horizon", ("dataset", "variant"), columns)


def window(r: Results, s: Settings) -> list[Row]:
    """The adaptive norm by the side of its window, between BN and local-gain BN with their running statistics: test
    accuracy in percent, and root mean square distance of its output after the first layer from that of local and of
    channel statistics of the same batch.
    """
    distances = {end: measured(r, "window", f"to {end}", variant="bn").intervals("x") for end in ("local", "channel")}
    return [
        {"variant": variant, "window": kernel and ("whole map" if kernel > 100 else f"{kernel} x {kernel}")}
        | {"test accuracy": accuracy(r, "window", variant=variant, kernel=kernel).interval()}
        | {f"distance to {end}": intervals.get(kernel) for end, intervals in distances.items()}
        for variant, kernel in [("convbn", None), *(("adaptive", each) for each in s.kernels), ("bn", None)]
        if distances["local"]
    ]


def eps(r: Results, s: Settings) -> list[Row]:
    """eps as a hyperparameter: test accuracy in percent, log10 of the largest normalised value on test images after the
    first layer, with running statistics, and share in percent of positions that do not vary over a batch there.
    """
    names = {size: f"constant, batch of {size}" for size in list(s.batches)}
    constant, pixels = 100 * measured(r, "eps", "constant"), measured(r, "eps", "constant pixels", variant="bn")
    columns = {"test accuracy": accuracy(r, "eps"), "log10 of largest value": measured(r, "eps", "largest").log10()}
    columns |= {name: constant.at(x=size) for size, name in names.items()}
    rows = sorted(arms(r, "eps", ("variant", "eps"), columns), key=lambda row: (row["variant"], row["eps"]))
    if rows:  # the images are the same in all runs: any will do
        shares = {names[size]: 100 * fmean(found) for size, found in pixels.by("x").items()}
        rows.append(dict.fromkeys(rows[0]) | {"variant": "(pixels)"} | shares)
    return rows


def batch_size(r: Results, s: Settings) -> list[Row]:
    """By batch size, with the same number of epochs: test accuracy in percent with running statistics and with the
    batch's own, and the root mean square of the normalised value in training minus that in eval after the first layer.
    """
    columns = {
        "test accuracy": accuracy(r, "batch"),
        "with the batch's own statistics": 100 * measured(r, "batch", "accuracy", x="batch"),
        "gap": measured(r, "batch", "gap").mean("x"),  # each is measured at its own size
    }
    rows = sorted(arms(r, "batch", ("batch_size", "variant"), columns), key=lambda row: row["batch_size"])
    return [{"batch size": row.pop("batch_size")} | row for row in rows]


def sizes(r: Results, s: Settings) -> list[Row]:
    """Numbers that a norm keeps for a map of 6 x 24 x 24, and whether it takes a map of another size."""
    takes, counts = checked(r, "L5", "takes"), {name: checked(r, "L1", name) for name in ("parameters", "buffers")}
    return [
        {"variant": variant, **WHERE[variant]}
        | {name: values.at(x=variant).only() for name, values in counts.items()}
        | {"takes other sizes": "yes" if takes.at(x=variant).only() else "no"}
        for variant in takes.levels("x")
    ]


def bessel(r: Results, s: Settings) -> list[Row]:
    """The factor from a batch's variance to the running one, for n values: the source's, the unbiased one, and ours."""
    found = {name: checked(r, "L9", name) for name in ("source", "unbiased", "ours")}
    rows = found["source"].levels("x")
    return [{"n": n} | {name: values.at(x=n).only() for name, values in found.items()} for n in rows]


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


def two_by_two(r: Results, s: Settings) -> Figure | None:
    """The 2 x 2 table. Left: test accuracy minus that of BN with the same seed. Then: root mean square of the
    normalised value in training minus that in eval after the first layer, by the batch size it is measured at; gamma
    and beta per location change nothing here, so their points lie on the line of the same statistics. Right: relative
    error of the first norm's output when images move by a pixel, with running statistics (eval) and with those of the
    moved batch (training). These two: {s.first[table]}.
    """
    found = accuracy(r, "table")
    gap, error = (measured(r, "table", what).at(dataset=s.first["table"]) for what in ("gap", "shift error"))
    if not found or not gap or not error:
        return None
    datasets = found.levels("dataset")
    figure, (*left, middle, right) = panels(len(datasets) + 2, height=2.9)
    for axes, dataset in zip(left, datasets, strict=True):  # each on its own scale
        zero(axes)
        dots(axes, found.at(dataset=[dataset]) - found.at(dataset=[dataset], variant="bn"), "dataset", "variant", LOOK)
        axes.set_xticks(axes.get_xticks(), [dataset.replace("-", "-\n") if len(dataset) > 9 else dataset])
    left[0].set_ylabel("test accuracy minus BN's, points")
    look = {variant: LOOK[variant] for variant in CELLS}
    look |= {variant: LOOK[variant]._replace(dashes="none") for variant in ("peractivationbn", "locationaffinebn")}
    lines(middle, gap, "x", "variant", look, bars=True, log=True)
    figures.log_scale(middle)
    _log(middle, list(s.batches))
    middle.set(xlabel="batch size", ylabel="training minus eval, rms")
    dots(right, error, "x", "variant", LOOK)
    right.set(ylim=(0, None), ylabel="relative error when shifted")
    legend(figure, 5, of=left[0])
    return figure


def scene(r: Results, s: Settings) -> Figure | None:
    """The source's idea, and where it holds ({s.first[scene]}). Above: a photograph as it is, and with its lower half
    at {s.horizon.shade:g} of its light; then the pixels of the dark one as each norm leaves them in training, where
    those below threshold are black. Of statistics over the whole map nothing is left below the horizon (dashed): BN's
    are of the batch, ghost batches' of a quarter of it, group norm's of one image. Of statistics per location the lower
    half stays; the adaptive norm's are of a window of 5 x 5, which at the horizon has both. A car of the test set,
    chosen by eye from ten; batches of 128, without gamma and beta, colours averaged. Below, the lower half of all
    images. Left, where the idea holds: pixels above threshold in daylight, in the dark with the batch's own statistics,
    and in the dark as the layer is used after training, with running statistics, here of daylight. Middle, where it
    does not, all filters together: outputs above threshold in the dark of a first layer as it is initialised, of the
    batch's own statistics. Right: test accuracy in the dark of networks trained in daylight, with each test batch's
    statistics and as used.
    """
    names: dict[str, str] = {"plain": "the scene", "dark": "at sunrise"}
    names |= {v: NAMES[v].replace(" (", "\n(") for v in s.horizon.variants}
    width = r.measured("width", part="scene").max().only()
    pictures = {what: r.measured(f"scene {what}", part="scene") for what in names}
    left = _left_in_the_dark(r, s)
    if not width or not all(pictures.values()) or not all(left.values()):
        return None
    figure = Figure(figsize=(2 * figures.COLUMN, 3.9), layout="constrained")
    halves: Any = figure.subfigures(2, height_ratios=[1, 1.9])
    above, below = halves
    brightest = max(max(pictures[variant]) for variant in s.horizon.variants)
    for each, (what, name) in zip(above.subplots(1, len(names)), names.items(), strict=True):
        pixels = np.reshape(list(pictures[what]), (-1, int(width)))
        each.imshow(pixels, cmap="gray", vmin=0, vmax=1 if what in ("plain", "dark") else brightest)
        each.axhline(len(pixels) / 2 - 0.5, color=figures.ORANGE, linewidth=0.8, linestyle=(0, (4, 3)))
        each.set(xticks=[], yticks=[])
        each.set_title(name, fontsize=7)
        each.grid(visible=False)
    look = {variant: LOOK[variant] for variant in s.horizon.variants}
    for each, (label, values) in zip(below.subplots(1, len(left)), left.items(), strict=True):
        dots(each, values, "x", "variant", look)
        each.tick_params(axis="x", labelsize=6.5)
        each.set(ylim=(-4, 104), ylabel=label)
    legend(below, 3)
    return figure


def _left_in_the_dark(r: Results, s: Settings) -> dict[str, Values]:
    """Percent of the scene's data by the norm (variant) and by what is looked at (x)."""
    at: dict[str, Any] = {"dataset": s.first["scene"], "variant": list(s.horizon.variants)}

    def stacked(found: Mapping[str, Values]) -> Values:
        return Values.stacked("x", found) if all(found.values()) else Values(("x",), {})

    def active(kind: str, light: str) -> Values:
        return 100 * measured(r, "start", f"active below {kind}").at(x=light, **at)

    lights = {"light": "plain", "dark": "static", "dark,\nas used": "changed"}
    kinds = {"raised\nby light": "light", "lowered\nby light": "dark", "all": "all"}
    accuracies = {"by the\ntest batch": "accuracy by the batch", "as used": "accuracy"}
    return {
        "active pixels, %": stacked({name: active("pixels", light) for name, light in lights.items()}),
        "active filters in the dark, %": stacked({name: active(kind, "static") for name, kind in kinds.items()}),
        "test accuracy in the dark, %": stacked(
            {
                name: 100 * measured(r, "horizon", quantity, light="plain", x=s.horizon.shade).at(**at)
                for name, quantity in accuracies.items()
            }
        ),
    }


def below_threshold(r: Results, s: Settings) -> Figure | None:
    """Before training: a first layer as it is initialised, the lower half of all images being dark. Left and middle:
    how often each filter (one dot; of all seeds) of BN and of local-gain BN is active below the horizon, by how light
    changes its answer: -1 for one that answers to darkness alone, 1 for one that adds up the light. Right, of all
    norms: by how many points the dark raises the share of units below the horizon that almost no image activates.
    """
    silent = 100 * measured(r, "start", "silent below all")
    silenced = silent.at(x="static") - silent.at(x="plain")
    if not silenced:
        return None
    datasets = silenced.levels("dataset")
    figure, (*left, right) = panels(len(datasets) + 1, height=2.5)
    for axes, dataset in zip(left, datasets, strict=True):
        for variant in ("convbn", "bn"):
            filters = 100 * measured(r, "start", "filter static").at(dataset=dataset, variant=variant)
            found = {answer: interval.mean for answer, interval in filters.intervals("x").items()}
            look = LOOK[variant]
            about: dict[str, Any] = {"color": look.color, "marker": look.marker, "label": look.label}
            axes.plot(list(found), list(found.values()), linestyle="none", markersize=2.5, alpha=0.6, **about)
        ticks(axes, (-1, -0.5, 0, 0.5, 1))
        axes.set(xlim=(-1, 1), ylim=(-3, 103), xlabel="answer of the filter to light", title=dataset)
    left[0].set_ylabel("active in the dark half, %")
    zero(right)
    dots(right, silenced, "dataset", "variant", {variant: LOOK[variant] for variant in s.horizon.variants})
    right.set_ylabel("units silenced, points")
    legend(figure, 3, of=right)
    return figure


def sunrise(r: Results, s: Settings) -> Figure | None:
    """The horizon after training, a row for each dataset. Left: test error on plain images, with the lower half always
    at {s.horizon.shade:g} of its light (static), and with a factor of its own for each batch (frames), in training and
    test alike; at the end, on frames with each test batch's own statistics (by batch). Ghost batches and group norm
    were not trained on static. Second: share of units of the first {s.horizon.layers} convolutions, below the horizon,
    that almost no image activates. Right: networks trained on plain images, by the light of the lower half at test: as
    they are used, with the running statistics of those that have them, and all with each test batch's own. Small points
    are seeds; of an interval that reaches below the axis, the lower end is not drawn.
    """
    measures = 100 * measured(r, "horizon", "accuracy")
    silent = 100 * measured(r, "horizon", "silent below")
    if not measures or not silent:
        return None
    error = 100 - measures
    own, batch = error.at(x="own"), error.at(x="batch", light="frames")
    by_light = {light: own.at(light=light) for light in own.levels("light")} | {"by batch": batch}
    lit, shades = Values.stacked("light", by_light), {"light": "plain", "x": s.horizon.test_shades}
    other = {"as used": error.at(**shades)}
    other["by the test batch"] = 100 - 100 * measured(r, "horizon", "accuracy by the batch").at(**shades)
    datasets, look = own.levels("dataset"), {variant: LOOK[variant] for variant in s.horizon.variants}
    figure, axes = panels(4, len(datasets), height=2.3)
    for row, dataset in enumerate(datasets):
        left, middle, *right = axes[4 * row : 4 * row + 4]
        dots(left, lit.at(dataset=dataset), "light", "variant", look)
        dots(middle, silent.at(dataset=dataset), "light", "variant", look)
        for each, (name, errors) in zip(right, other.items(), strict=True):
            lines(each, errors.at(dataset=dataset), "x", "variant", look, bars=True)
            each.margins(x=0.12)
            _log(each, s.horizon.test_shades)
            each.set(xlabel="light of the lower half", ylabel="test error, %")
            each.set_title(name, fontsize=7)
        _within_percent(middle)
        least = min(lit.at(dataset=dataset)) / 1.3
        for each in (left, *right):
            each.set_yscale("log", nonpositive="clip")
            each.set_ylim(least, 100 if each in right else min(each.get_ylim()[1], 100))
            figures.log_ticks(each)
        left.set_ylabel(f"{dataset}: test error, %")
        for each in (left, middle):
            each.tick_params(axis="x", labelsize=6, labelrotation=25)
        middle.set_ylabel("silent units below, %")
    legend(figure, 3, of=axes[0])
    return figure


def window_sweep(r: Results, s: Settings) -> Figure | None:
    """The adaptive norm's window ({s.first[swept]}). Left: test accuracy, beside BN with its running statistics (band);
    that of local-gain BN with them, far below in some seeds, is in the table. Right: distance of its output after the
    first layer from that of local and of channel statistics.
    """
    adaptive = accuracy(r, "window", variant="adaptive")
    if not adaptive:
        return None
    kernels = s.kernels
    last = max((kernel for kernel in kernels if kernel <= 100), default=1)
    place = {kernel: float(min(kernel, 2 * last)) for kernel in kernels}

    def draw(axes: Axes, values: Values, factor: str, variant: str, label: str) -> None:
        at = {place[kernel]: interval for kernel, interval in values.intervals(factor).items()}
        curve(axes, at, LOOK[variant]._replace(label=label), bars=True)

    figure, (left, right) = panels(2, height=2.6)
    look, interval = LOOK["bn"], accuracy(r, "window", variant="bn", kernel=None).interval()
    left.axhline(interval.mean, color=look.color, linestyle=look.dashes, label=f"{look.label}, running")
    left.axhspan(interval.low, interval.high, color=look.color, alpha=0.12, linewidth=0)
    draw(left, adaptive, "kernel", "adaptive", "adaptive, of the present batch")
    _within_percent(left)
    low, high = left.get_ylim()
    left.set(ylim=(low - 0.35 * (high - low), high), ylabel="test accuracy, %")  # room for the legend below the bars
    left.legend(loc="lower right", fontsize=7)
    for end, variant in (("local", "convbn"), ("channel", "bn")):
        draw(right, measured(r, "window", f"to {end}", variant="bn"), "x", variant, f"from {end} statistics")
    right.set(ylim=(None, 1.25 * right.get_ylim()[1]), ylabel="distance of the output, rms")
    right.legend(loc="upper center", ncols=2, fontsize=7)
    for axes in (left, right):
        _log(axes, list(place.values()), [window_name(kernel) for kernel in kernels])
        axes.set_xlabel("side of the window")
    return figure


def _sweep(panel: dict[str, Values], factor: str, levels: Sequence[float]) -> Figure | None:
    """BN and local-gain BN by ``factor``: accuracy first, a logarithmic axis last, a difference between."""
    if not all(panel.values()):
        return None
    figure, axes = panels(len(panel), height=2.6)
    for between in axes[1:-1]:
        zero(between)
    look = {variant: LOOK[variant] for variant in ("bn", "convbn")}
    for each, (label, values) in zip(axes, panel.items(), strict=True):
        lines(each, values, factor, "variant", look, bars=True, log=each is axes[-1])
        _log(each, levels)
        each.set(xlabel=factor.replace("_", " "), ylabel=label)
    axes[-1].set_yscale("log")
    _within_percent(axes[0])
    legend(figure, of=axes[0])
    return figure


def eps_sweep(r: Results, s: Settings) -> Figure | None:
    """eps with channel and with local statistics ({s.first[swept]}). Left: test accuracy of networks trained with it.
    Right: the largest normalised value on test images after the first layer of one network, trained with the source's
    eps, at others, with the statistics of training images. Small points are seeds.
    """
    largest = measured(r, "eps", "largest at", eps=checks.EPS)
    in_one = Values.stacked("eps", {eps: largest.at(x=eps) for eps in largest.levels("x")})
    return _sweep({"test accuracy, %": accuracy(r, "eps"), "largest normalised value": in_one}, "eps", s.eps)


def batch_sweep(r: Results, s: Settings) -> Figure | None:
    """Batch size with channel and with local statistics ({s.first[swept]}): test accuracy with running statistics; the
    same minus accuracy with the batch's own; and the root mean square of the normalised value in training minus that in
    eval after the first layer. Small points are seeds.
    """
    shares = 100 * measured(r, "batch", "accuracy")
    panel = {
        "test accuracy, %": accuracy(r, "batch"),
        "running minus batch, points": shares.at(x="running") - shares.at(x="batch"),
        "training minus eval, rms": measured(r, "batch", "gap").mean("x"),  # each is measured at its own size
    }
    return _sweep(panel, "batch_size", list(s.batches))
