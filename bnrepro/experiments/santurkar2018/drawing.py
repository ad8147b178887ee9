"""The figures of this experiment, each like the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnrepro.experiments.base import Picture, Records
from bnrepro.experiments.santurkar2018.grid import CURVES, DISTRIBUTIONS, LANDSCAPE, LINEAR, LP
from bnrepro.experiments.santurkar2018.traces import Trace, Traces
from bnrepro.figures import COLUMN, log_ticks, style
from bnrepro.stats import t_interval

BLACK, BLUE, RED, GREEN, PURPLE, SKY, ORANGE = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00",
)  # fmt: skip
DOTTED, DASHED, DASHDOT = (0, (1, 1.2)), (0, (4, 2)), (0, (5, 1, 1, 1))
LOOK: dict[str, tuple[str, Any, str]] = {
    "nobn": (BLACK, DOTTED, "no BN"),
    "bn": (BLUE, "-", "BN"),
    "noisybn": (RED, DASHED, "noisy BN"),
    "noise": (GREEN, DASHDOT, "no BN, same noise"),
    "l1norm": (PURPLE, DASHED, "l1 norm"),
    "l2norm": (ORANGE, DASHDOT, "l2 norm"),
    "linfnorm": (SKY, (0, (3, 1, 1, 1, 1, 1)), "maximum norm"),
}
BOTH = ("nobn", "bn")
Series = dict[Any, list[float]]
Styled = tuple[str, Any, str]


def pictures(records: Records, found: Traces) -> list[Picture]:
    """All figures for which there are records."""
    parts = {key[0] for key in found.values}
    made = []
    if records.select(records.curves, part=CURVES):
        made += [training(records), noisy(records)]
    if DISTRIBUTIONS in parts:
        made.append(distributions(records, found))
    if {LANDSCAPE, LINEAR} <= parts:
        made.append(covariate_shift(records, found))
    if LANDSCAPE in parts:
        made.append(landscape(records, found))
    if LINEAR in parts:
        made.append(deep_linear(records, found))
    if records.select(records.curves, part=CURVES):
        made.append(norms(records, found))
    return made


def _n(records: Records) -> str:
    seeds = records.settings["seeds"]
    return f"mean and 95% interval over n = {seeds} seeds, preset {records.preset}; wide bands may leave the axes"


# --- curves: Figures 1, 2 and 5 ---


def training(records: Records) -> Picture:
    """Figure 1 (a, b): training and validation accuracy at both rates."""
    looks = []
    for place, rate in enumerate(records.settings["rates"]):
        for variant in BOTH:
            color, dashes, name = LOOK[variant]
            faint = {(1, "nobn"): "#999999", (1, "bn"): SKY}.get((place, variant), color)
            looks.append((variant, rate, (faint, dashes, f"{name}, learning rate {rate:g}")))
    caption = (
        "As the paper's Figure 1 (a, b): accuracy on the training batches since the point before, and on the "
        f"validation set, with BN and without ({_n(records)}; runs that diverged are left out)."
    )
    return Picture("training", caption, _accuracies(records, looks, 2))


def noisy(records: Records) -> Picture:
    """Figure 2: noise after BN, and without it."""
    rate = records.settings["rates"][0]
    looks = [(variant, rate, LOOK[variant]) for variant in (*BOTH, "noisybn", "noise")]
    caption = (
        "As the paper's Figure 2: BN followed by noise whose distribution changes at each step, and the same noise "
        f"without BN. There is no noise at validation. Learning rate {rate:g}; {_n(records)}."
    )
    return Picture("noisy", caption, _accuracies(records, looks, 4))


def _accuracies(records: Records, looks: Sequence[tuple[str, float, Styled]], columns: int) -> Figure:
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, split in zip(panels, ("train", "val"), strict=True):
            for variant, rate, look in looks:
                _line(axes, _curve(records, variant, rate, f"{split}_accuracy"), look)
            name = "training" if split == "train" else "validation"
            axes.set(xlabel="step", ylabel=f"{name} accuracy, %", ylim=(0, 100))
        _legend(figure, panels[0], columns)
        return figure


def norms(records: Records, found: Traces) -> Picture:
    """Figure 5: other norms, and the l1 norm in the deep linear network."""
    rate = records.settings["rates"][0]
    linear = [key for key in found.values if key[0] == LINEAR and key[1] == "l1norm" and key[3] == "loss"]
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for variant in (*BOTH, *LP):
            _line(panels[0], _curve(records, variant, rate, "train_accuracy"), LOOK[variant])
        panels[0].set(title="VGG", xlabel="step", ylabel="training accuracy, %", ylim=(0, 100))
        for _, _, linear_rate, _ in linear[:1]:
            end = max(_over_seeds(found.of(LINEAR, "l1norm", "loss", linear_rate)), default=0)
            for variant in (*BOTH, "l1norm"):
                losses = _over_seeds(found.of(LINEAR, variant, "loss", linear_rate))
                _line(panels[1], {x: v for x, v in losses.items() if x <= end}, LOOK[variant], logarithmic=True)
            panels[1].set(title=f"deep linear network, rate {linear_rate:g}", xlabel="step", ylabel="loss")
            _by_lines(panels[1])
        _legend(figure, panels[0], 5)
    caption = (
        "As the paper's Figure 5: normalization by the average of other norms. Left: accuracy on the training batches, "
        f"learning rate {rate:g}. Right: loss of the deep linear network ({_n(records)}; the right's logarithmic)."
    )
    return Picture("norms", caption, figure)


def _curve(records: Records, variant: str, rate: float, column: str) -> Series:
    series: Series = {}
    done = {
        r["seed"] for r in records.select(records.runs, part=CURVES, variant=variant, rate=rate, status="completed")
    }
    for row in records.select(records.curves, part=CURVES, variant=variant, rate=rate):
        if row[column] is not None and row["seed"] in done:
            series.setdefault(row["step"], []).append(100 * float(row[column]))
    return series


# --- distributions: Figures 1 (c) and 2 ---


def distributions(records: Records, found: Traces) -> Picture:
    """Ridges of single activations over time, and how far all sampled ones move."""
    layers, variants = records.settings["distributions"]["layers"], (*BOTH, "noisybn")
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.0 + 1.5 * len(layers)), layout="constrained")
        grid = figure.add_gridspec(len(layers) + 1, len(variants), height_ratios=[1.2] * len(layers) + [1])
        for row, layer in enumerate(layers):
            for column, variant in enumerate(variants):
                axes = figure.add_subplot(grid[row, column])
                _ridges(axes, found, variant, layer)
                axes.set_title(f"{LOOK[variant][2]}, layer {layer}", fontsize=8)
                if column == 0:
                    axes.set_ylabel("step")
                axes.set_xlabel("input of an activation")
        axes = figure.add_subplot(grid[len(layers), :])
        for variant in variants:
            shifts = _over_seeds(found.of(DISTRIBUTIONS, variant, "shift"))
            _line(axes, shifts, LOOK[variant], logarithmic=True, marker="o")
        axes.set(xlabel="step", ylabel="shift, deviations")
        _by_lines(axes)
        axes.legend(ncols=3, loc="upper right", handlelength=2.6)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top * (top / bottom) ** 0.3)  # room for the legend
    caption = (
        "As the paper's Figures 1 (c) and 2: densities of the input of one activation (channel and location) over the "
        f"first {records.settings['distributions']['images']} validation images in training mode, at several steps "
        "(one seed, from bottom to top). Below: how far a distribution moves from one measurement to the next, in its "
        f"own deviations, in the mean over sampled activations of all layers ({_n(records)}, of the logarithm)."
    )
    return Picture("distributions", caption, figure)


def _ridges(axes: Axes, found: Traces, variant: str, layer: int) -> None:
    prefix = f"density_{layer}_"
    steps = sorted(
        int(key[3].removeprefix(prefix))
        for key in found.values
        if key[0] == DISTRIBUTIONS and key[1] == variant and key[3].startswith(prefix)
    )
    color = LOOK[variant][0]
    curves = [next(iter(found.of(DISTRIBUTIONS, variant, f"{prefix}{step}").values())) for step in steps]
    top = max((max(curve.values()) for curve in curves), default=1.0) or 1.0
    for place, curve in reversed(list(enumerate(curves))):
        height = place + 1.8 * np.array(list(curve.values())) / top
        axes.fill_between(list(curve), place, height, color=color, alpha=0.25, linewidth=0, zorder=-place)
        axes.plot(list(curve), height, color=color, linewidth=0.8, zorder=-place)
    axes.set_yticks(range(len(steps)), [str(step) for step in steps])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False)


# --- internal covariate shift: Figure 3 ---


def covariate_shift(records: Records, found: Traces) -> Picture:
    """Cosines above, norms of the differences below; the VGG's layers, then the deep linear network's."""
    vgg, linear = records.settings["landscape"], records.settings["deep_linear"]
    rate = float(records.settings["rates"][0])
    slow = min(key[2] for key in found.values if key[0] == LINEAR and key[2] is not None)
    cells = [(LANDSCAPE, rate, layer, f"VGG, layer {layer}") for layer in vgg["layers"]]
    cells += [(LINEAR, slow, layer, f"deep linear, layer {layer}") for layer in linear["layers"]]
    with style():
        figure = Figure(figsize=(2 * COLUMN, 3.4), layout="constrained")
        grid = figure.subplots(2, len(cells), sharex="col", squeeze=False)
        for column, (part, at, layer, title) in enumerate(cells):
            for variant in BOTH:
                cosine, difference = (
                    _over_seeds(found.of(part, variant, f"{name}_{layer}", at)) for name in ("cosine", "difference")
                )
                _line(grid[0, column], cosine, LOOK[variant])
                _line(grid[1, column], difference, LOOK[variant], logarithmic=True)
            grid[0, column].set(ylim=(-1.05, 1.05))
            grid[0, column].set_title(title, fontsize=8)
            grid[1, column].set_xlabel("step")
            _by_lines(grid[1, column])
            grid[1, column].xaxis.set_major_locator(MaxNLocator(3))
        grid[0, 0].set_ylabel("cosine")
        grid[1, 0].set_ylabel("norm of difference")
        _legend(figure, grid[0, 0], 2)
    caption = (
        "As the paper's Figure 3: a layer's gradient before and after all earlier layers have made their step, on the "
        f"same batch. Learning rates {rate:g} and {slow:g}; {_n(records)}, below of the logarithm."
    )
    return Picture("covariate_shift", caption, figure)


# --- the landscape: Figures 4 and 10 ---


def landscape(records: Records, found: Traces) -> Picture:
    """Figure 4: loss along the gradient, gradient predictiveness, effective beta."""
    asked, rate = records.settings["landscape"], float(records.settings["rates"][0])
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.5), layout="constrained")
        panels = figure.subplots(1, 3)
        _along(panels, found, LANDSCAPE, rate)
        _legend(figure, panels[0], 2)
    low, high = min(asked["along"]), max(asked["along"])
    caption = (
        f"As the paper's Figure 4: along the gradient, with steps of {low:g} to {high:g} learning rates ({rate:g}), "
        "the range of the loss, the range of the change of the gradient, and the largest change over the distance. "
        "Bands of the first two: the lowest and the highest along the gradient, each a mean over n = "
        f"{records.settings['seeds']} seeds; of the third: 95% interval. Means of logarithms, preset {records.preset}."
    )
    return Picture("landscape", caption, figure)


def deep_linear(records: Records, found: Traces) -> Picture:
    """Figures 10 and 13: loss and landscape of the deep linear network, a row for each rate."""
    at = list(dict.fromkeys(key[2] for key in found.values if key[0] == LINEAR and key[2] is not None))
    asked = records.settings["deep_linear"]
    with style():
        figure = Figure(figsize=(2 * COLUMN, 0.6 + 1.9 * len(at)), layout="constrained")
        grid = figure.subplots(len(at), 4, squeeze=False)
        for row, rate in zip(grid, at, strict=True):
            for variant in (*BOTH, "l1norm"):
                losses = _over_seeds(found.of(LINEAR, variant, "loss", rate))
                if losses:
                    _line(row[0], losses, LOOK[variant], logarithmic=True)
            row[0].set_ylabel(f"rate {rate:g}")
            _by_lines(row[0])
            row[0].set_title("loss", fontsize=8)
            _along(row[1:], found, LINEAR, rate)
        for axes in grid[:-1].flat:
            axes.set_xlabel("")
        for axes in grid.flat:
            axes.xaxis.set_major_locator(MaxNLocator(3))
        grid[-1, 0].set_xlabel("step")
        most = max(grid[:, 0], key=lambda axes: len(axes.get_lines()))
        _legend(figure, most, 3)
    low, high = min(asked["along"]), max(asked["along"])
    caption = (
        f"As the paper's figures of deep linear networks ({asked['depth']} layers of {asked['width']} x "
        f"{asked['width']}, {asked['samples']:,} samples, full-batch gradient descent): the loss, and along the "
        f"gradient with steps of {low:g} to {high:g} learning rates the range of the loss, the range of the change of "
        "the gradient, and the largest change over the distance. Bands of the second and third: lowest and highest "
        f"along the gradient; else 95% intervals. Means of logarithms over n = {records.settings['seeds']} seeds, "
        f"preset {records.preset}."
    )
    return Picture("deep_linear", caption, figure)


def _along(panels: Sequence[Axes], found: Traces, part: str, rate: float) -> None:
    """The three measures with BN and without, into three panels."""
    for variant in BOTH:
        look = LOOK[variant]
        for axes, ends in zip(panels, (("loss_low", "loss_high"), ("change_low", "change_high")), strict=False):
            low, high = (_over_seeds(found.of(part, variant, end, rate)) for end in ends)
            _range(axes, low, high, look)
        _line(panels[2], _over_seeds(found.of(part, variant, "beta", rate)), look, logarithmic=True)
    for axes, name in zip(panels, ("loss along gradient", "gradient change", "effective beta"), strict=True):
        axes.set_xlabel("step")
        _by_lines(axes)
        axes.set_title(name, fontsize=8)


def _range(axes: Axes, low: Series, high: Series, look: Styled) -> None:
    """From the mean of the lowest to the mean of the highest."""
    color, dashes, name = look
    ends = [{x: t_interval(_logs(values)).mean for x, values in series.items()} for series in (low, high)]
    steps = [x for x in ends[0] if x in ends[1] and math.isfinite(ends[0][x]) and math.isfinite(ends[1][x])]
    bottom, top = (np.exp([end[x] for x in steps]) for end in ends)
    axes.fill_between(steps, bottom, top, color=color, alpha=0.25, linewidth=0)
    axes.plot(steps, bottom, color=color, linestyle=dashes, linewidth=0.8, label=name)
    axes.plot(steps, top, color=color, linestyle=dashes, linewidth=0.8)


# --- helpers ---


def _over_seeds(by_seed: dict[int, Trace]) -> Series:
    series: Series = {}
    for trace in by_seed.values():
        for x, value in trace.items():
            series.setdefault(x, []).append(value)
    return dict(sorted(series.items()))


def _logs(values: list[float]) -> list[float]:
    return [math.log(value) for value in values if 0 < value < math.inf]


def _line(
    axes: Axes, series: Series, look: Styled, *, logarithmic: bool = False, marker: str | None = None
) -> None:  # fmt: skip
    """Mean over seeds with its 95% interval as a band; of the logarithms, for a logarithmic axis."""
    color, dashes, name = look
    intervals = {
        x: t_interval(_logs(v) if logarithmic else [a for a in v if math.isfinite(a)]) for x, v in series.items()
    }
    points = {x: i for x, i in intervals.items() if i.n}
    values = np.array([[i.mean, i.low, i.high] for i in points.values()]).reshape(-1, 3)
    mean, low, high = (np.exp(values) if logarithmic else values).T
    axes.plot(list(points), mean, color=color, linestyle=dashes, label=name, marker=marker, markersize=2.5)
    axes.fill_between(list(points), low, high, color=color, alpha=0.15, linewidth=0)


def _by_lines(axes: Axes) -> None:
    """Logarithmic, and as high as the lines: a band of few seeds that differ by decades would flatten them."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    axes.set_yscale("log")
    if values.size:
        room = max(1.2, (values.max() / values.min()) ** 0.15)
        axes.set_ylim(values.min() / room, values.max() * room)
        log_ticks(axes)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.2)
