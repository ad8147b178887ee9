"""Tables and figures: accuracies, noise, distributions, the landscape, norms."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnrepro.claims import Results, Row, Values
from bnrepro.plots.panels import as_high_as_lines, legend, lines, looks, panels
from bnrepro.plots.style import COLUMN, label

if TYPE_CHECKING:
    from bnrepro.experiments.santurkar2018 import Settings

BOTH = ("nobn", "bn")
LP = ("l1norm", "l2norm", "linfnorm")
NAMES = {variant: label(variant) for variant in BOTH} | {
    "noisybn": "noisy BN", "noise": "no BN, same noise", "l1norm": "l1 norm", "l2norm": "l2 norm",
    "linfnorm": "maximum norm",
}  # fmt: skip
LOOKS = looks(NAMES)
MEASURES = {"loss_range": "range of the loss", "change_high": "change of the gradient", "beta": "effective beta"}


def over(values: Values, one: str, other: str) -> Values:
    """log10 of one variant's over another's."""
    return (values.at(variant=one) / values.at(variant=other)).log10()


def ratios(r: Results, quantity: str, one: str = "nobn", other: str = "bn", **of: str | float) -> Values:
    """`over`, of a measure of the landscape, at each step at which both are positive and finite."""
    if quantity == "loss_range":
        values = r.measured("loss_high", **of) - r.measured("loss_low", **of)
    else:
        values = r.measured(quantity, **of)
    return over(values, one, other).where(math.isfinite)


# --- tables and figures ---


def accuracies(r: Results, s: Settings) -> list[Row]:
    """Accuracies at the end of training."""
    found = {
        f"{split} accuracy, %": r.accuracy(f"{split}_accuracy", part="curves") for split in ("train", "val", "test")
    }
    return [
        {"norm": variant, "learning rate": rate}
        | {name: values.at(variant=variant, rate=rate).interval() for name, values in found.items()}
        | {"diverged": int(sum(diverged))}
        for (variant, rate), diverged in r.diverged(part="curves").by("variant", "rate").items()
    ]


def measures(r: Results, s: Settings) -> list[Row]:
    """Measures without BN over those with BN: log10, averaged over the steps."""
    rows = []
    networks = [("landscape", "VGG", s.rate, s.landscape.layers)]
    networks += [("deep_linear", "deep linear", rate, s.deep_linear.layers) for rate, _ in s.deep_linear_runs]
    for part, network, rate, layers in networks:
        quantities = {"loss": "loss", **MEASURES, "gradient": "norm of the gradient"}
        quantities |= {f"difference_{layer}": f"gradient difference, layer {layer}" for layer in layers}
        for quantity, name in quantities.items():
            found = ratios(r, quantity, part=part, rate=rate).mean("x").interval()
            rows.append({"network": network, "learning rate": rate, "measure": name, "log10 of no BN over BN": found})
    return rows


def training(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 1 (a, b): accuracy on the training batches since the point before, and on the validation
    set, at each learning rate. A last point after few batches is left out; runs that diverged are drawn up to there.
    """
    if not r.curves:
        return None
    figure, axes = panels(len(s.rates), 2, height=1.8, sharex=True, sharey=True)
    places = [(split, rate) for split in ("train", "val") for rate in s.rates]
    for each, (split, rate) in zip(axes, places, strict=True):
        draw_accuracies(each, r, split, rate, *BOTH)
        each.label_outer()
        if split == "train":
            each.set_title(f"learning rate {rate:g}", fontsize=8)
    legend(figure, of=axes[0])
    return figure


def noisy(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 2: BN followed by noise whose distribution changes at each step, and the same noise without
    BN, at learning rate {s.rate:g}; thin lines are seeds. There is no noise at validation.
    """
    if not r.curves:
        return None
    figure, axes = panels(2, sharey=True)
    for each, split in zip(axes, ("train", "val"), strict=True):
        draw_accuracies(each, r, split, s.rate, *BOTH, "noisybn", "noise", until=s.few_steps)
    legend(figure, of=axes[0])
    return figure


def distributions(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figures 1 (c) and 2: densities of the input of one activation (channel and location) over the
    first {s.distributions.images} validation images in training mode, at several steps (one seed). Below: how far a
    distribution moves from one measurement to the next, in its own standard deviations, averaged over sampled
    activations of all layers; means are geometric.
    """
    shifts = r.measured("shift", part="distributions")
    if not shifts:
        return None
    variants, layers = (*BOTH, "noisybn"), s.distributions.layers
    figure = Figure(figsize=(2 * COLUMN, 2.0 + 1.5 * len(layers)), layout="constrained")
    grid = figure.add_gridspec(len(layers) + 1, len(variants), height_ratios=[1.2] * len(layers) + [1])
    for row, layer in enumerate(layers):
        for column, variant in enumerate(variants):
            axes = figure.add_subplot(grid[row, column])
            draw_ridges(axes, r, variant, layer)
            axes.set_title(f"{NAMES[variant]}, layer {layer}", fontsize=8)
            axes.set(xlabel="input of an activation", ylabel="step" if column == 0 else "")
    axes = figure.add_subplot(grid[len(layers), :])
    draw_log(axes, shifts, *variants, marks=True)
    axes.set(xlabel="step", ylabel="shift, std. dev.")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.3)  # room for the legend
    axes.legend(ncols=3, loc="upper right", handlelength=2.6)
    return figure


def covariate_shift(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 3: a layer's gradient before and after all earlier layers have made their step, on the same
    batch, in the VGG at learning rate {s.rate:g} and in deep linear networks at the rates named. Above: the cosine of
    the two. Below: the norm of their difference; means are geometric. Wide bands may leave the axes.
    """
    cells = [("landscape", s.rate, layer, f"VGG, layer {layer}") for layer in s.landscape.layers]
    for (rate, _), layer in product(s.deep_linear_runs, s.deep_linear.layers):
        cells.append(("deep_linear", rate, layer, f"deep linear,\n{rate:g}, layer {layer}"))
    figure, axes = panels(len(cells), 2, height=1.7, sharex="col")
    for (part, rate, layer, title), top, bottom in zip(cells, axes, axes[len(cells) :], strict=False):
        of = {"part": part, "rate": rate, "variant": BOTH}
        cosine = r.measured(f"cosine_{layer}", **of).where(math.isfinite)
        if not cosine:
            return None
        lines(top, cosine, "x", "variant", LOOKS, marks=False)
        top.set(ylim=(-1.05, 1.05), ylabel="cosine" if top is axes[0] else "")
        top.set_title(title, fontsize=7)
        draw_log(bottom, r.measured(f"difference_{layer}", **of), *BOTH)
        bottom.set(xlabel="step", ylabel="norm of difference" if top is axes[0] else "")
        bottom.xaxis.set_major_locator(MaxNLocator(2))
    legend(figure, of=axes[0])
    return figure


def landscape(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 4: along the gradient, with steps of {s.landscape.reach} learning rates ({s.rate:g}), the
    loss, the change of the gradient, and its largest change over the distance. Bands of the first two reach from the
    lowest value along the gradient to the highest, each averaged over seeds; that of the third is an interval, and may
    leave the axes. Means are geometric.
    """
    figure, axes = panels(3, height=2.5)
    if not draw_along(axes, r, part="landscape"):
        return None
    legend(figure, of=axes[0])
    return figure


def deep_linear(r: Results, s: Settings) -> Figure | None:
    """As the paper's figures of deep linear networks ({s.deep_linear.depth} layers of {s.deep_linear.width} x
    {s.deep_linear.width}, {s.deep_linear.samples:,} samples, full-batch gradient descent): the loss, and along the
    gradient, with steps of {s.deep_linear.reach} learning rates, the loss, the change of the gradient, and its largest
    change over the distance. Bands of the second and third reach from the lowest value along the gradient to the
    highest, each averaged over seeds; the others are intervals, and may leave the axes. Means are geometric.
    """
    figure, axes = panels(4, len(s.deep_linear_runs), height=1.9)
    for row, (rate, _) in enumerate(s.deep_linear_runs):
        first, *others = axes[4 * row : 4 * row + 4]
        draw_log(first, r.measured("loss", part="deep_linear", rate=rate), *BOTH, "l1norm")
        if not draw_along(others, r, part="deep_linear", rate=rate):
            return None
        first.set_title("loss", fontsize=8)
        first.set_ylabel(f"rate {rate:g}")
    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(3))
        each.set_xlabel("step" if each in axes[-4:] else "")
    legend(figure)
    return figure


def norms(r: Results, s: Settings) -> Figure | None:
    """As the paper's Figure 5: normalization by the average of other norms. Left: accuracy on the training batches,
    learning rate {s.rate:g}. Right: loss of the deep linear network; means are geometric, and wide bands may
    leave the axes.
    """
    if not r.curves:
        return None
    figure, (left, right) = panels(2)
    draw_accuracies(left, r, "train", s.rate, *BOTH, *LP, until=s.few_steps)
    left.set_title("VGG", fontsize=8)
    rate, end = next((rate, steps["l1norm"]) for rate, steps in s.deep_linear_runs if "l1norm" in steps)
    loss = r.measured("loss", part="deep_linear", rate=rate)
    draw_log(right, loss.at(x=range(end + 1)), *BOTH, "l1norm")
    right.set_title(f"deep linear network, rate {rate:g}", fontsize=8)
    right.set(xlabel="step", ylabel="loss")
    legend(figure, columns=5, of=left)
    return figure


# --- what figures draw with ---


def draw_accuracies(axes: Axes, r: Results, split: str, rate: float, *variants: str, until: float = math.inf) -> None:
    """Accuracy in percent against steps, as far as ``until``."""
    found = 100 * r.curve(f"{split}_accuracy", part="curves", rate=rate)
    steps = [step for step in found.levels("step") if step <= until]
    if len(steps) > 2 and steps[-1] - steps[-2] < steps[1] - steps[0]:
        steps.pop()  # the end: training accuracy over the few batches since the point before
    lines(axes, found.at(step=steps, variant=variants), "step", "variant", LOOKS, marks=False, seeds=True)
    axes.set(xlabel="step", ylabel=f"{'training' if split == 'train' else 'validation'} accuracy, %", ylim=(0, 102))


def draw_ridges(axes: Axes, r: Results, variant: str, layer: int) -> None:
    """Densities at several steps, from bottom to top."""
    prefix, color = f"density_{layer}_", LOOKS[variant].color
    names = {row["quantity"] for row in r.measurements if row["quantity"].startswith(prefix)}
    steps = sorted(int(name.removeprefix(prefix)) for name in names)
    curves = [r.measured(f"{prefix}{step}", part="distributions", variant=variant) for step in steps]
    top = max((value for curve in curves for value in curve), default=1.0) or 1.0
    for place, curve in reversed(list(enumerate(curves))):
        height = place + 1.8 * np.array(list(curve)) / top
        axes.fill_between(curve.levels("x"), place, height, color=color, alpha=0.25, linewidth=0, zorder=-place)
        axes.plot(curve.levels("x"), height, color=color, linewidth=0.8, zorder=-place)
    axes.set_yticks(range(len(steps)), [str(step) for step in steps])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False)


def draw_along(axes: list[Axes], r: Results, **of: Any) -> bool:
    """The three measures with BN and without, in three panels; returns whether there are any."""
    beta = r.measured("beta", **of)
    draw_spread(axes[0], r, "loss", **of)
    draw_spread(axes[1], r, "change", **of)
    draw_log(axes[2], beta, *BOTH)
    for each, title in zip(axes, ("loss along gradient", "gradient change", "effective beta"), strict=True):
        each.set_xlabel("step")
        each.set_title(title, fontsize=8)
    return bool(beta)


def draw_spread(axes: Axes, r: Results, name: str, **of: Any) -> None:
    """From the mean of the lowest values along the gradient to that of the highest, by step."""
    for variant in BOTH:
        look, found = LOOKS[variant], (r.measured(f"{name}_{end}", variant=variant, **of) for end in ("low", "high"))
        low, high = (values.log().where(math.isfinite).intervals("x") for values in found)
        steps = [x for x in low if x in high]
        bottom, top = (np.exp([end[x].mean for x in steps]) for end in (low, high))
        about: dict[str, Any] = {"color": look.color, "linestyle": look.dashes, "linewidth": 0.8}
        axes.fill_between(steps, bottom, top, color=look.color, alpha=0.25, linewidth=0)
        axes.plot(steps, bottom, label=look.label, **about)
        axes.plot(steps, top, **about)
    as_high_as_lines(axes)


def draw_log(axes: Axes, values: Values, *variants: str, marks: bool = False) -> None:
    """Means of logarithms by step; values without a logarithm are left out."""
    values = values.at(variant=variants).where(lambda value: 0 < value < math.inf)
    lines(axes, values, "x", "variant", LOOKS, log=True, marks=marks)
    as_high_as_lines(axes)
