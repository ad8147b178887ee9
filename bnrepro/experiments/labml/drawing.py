"""The figures. Their docstrings are the captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from bnrepro.claims import Results, Values
from bnrepro.claims.plots import GREY, curve, legend, lines, looks, panels, zero
from bnrepro.experiments.labml.toys import gaussian_share
from bnrepro.plots import style as figures

if TYPE_CHECKING:
    from bnrepro.experiments.labml import Settings

ONE_PASS = "E[x²] - E[x]²"


def outside_the_gradient(r: Results, s: Settings) -> Figure | None:
    """Gradient descent (learning rate {s.toy.lr:g}) through a statistic that the gradient takes for a constant, or does
    not. Neither b nor w > 0 can change x̂ or the loss.
    """
    look = looks({False: "in the gradient (attached)", True: "outside the gradient (detached)"})
    titles = {"mean": "mean: x̂ = x - E[x], x = u + b", "variance": "variance: x̂ = x / std(x), x = w u"}
    figure, axes = panels(2, 2, height=1.7, sharex=True)
    for column, (statistic, title) in enumerate(titles.items()):
        parameter, loss = (r.measured(q, part="toy", statistic=statistic) for q in ("parameter", "loss"))
        if not parameter:
            return None
        top, bottom = axes[column], axes[2 + column]
        for panel, values in ((top, parameter), (bottom, loss / loss.at(x=0))):
            lines(panel, values, "x", "detached", look, marks=False)
            panel.lines[0].set_linewidth(2.6)  # attached, under the detached one's
        top.set(title=title, ylabel="bias b" if statistic == "mean" else "factor w")
        bottom.set(xlabel="step", ylabel="loss / loss at the start", ylim=(0, 1.2))
    legend(figure)
    return figure


def in_networks(r: Results, s: Settings) -> Figure | None:
    """The MNIST network with a bias before each norm, trained with Adam on 4,000 digits, of which some are held out for
    validation; validation accuracy is in eval mode, with the running statistics.
    """
    labels = {
        "bn": figures.label("bn"),
        "detachedmean": "mean outside the gradient",
        "detached": "mean and variance outside",
    }
    look = looks(labels)
    figure, axes = panels(2)
    for panel, (column, factor) in zip(axes, {"train_loss": 1, "val_accuracy": 100}.items(), strict=True):
        values = factor * r.curve(column, part="outside", keep_bias=True)
        if not values:
            return None
        lines(panel, values, "step", "variant", look)
    left, right = axes
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="validation accuracy, %", ylim=(max(0, right.get_ylim()[0]), 100))
    legend(figure)
    return figure


def sigmoids(r: Results, s: Settings) -> Figure | None:
    """Inputs of the sigmoids in a network of three hidden layers with BN before them, at the start and after training
    (validation images as one batch; 5,000 digits). Grey: the range [-1, 1], and a normal distribution's share of 68.3%.
    """
    look = looks({"start": "before training", "end": "after training"})
    figure, (left, right) = panels(2, width_ratios=(3, 2))
    left.axvspan(-1, 1, color="#eeeeee", linewidth=0)
    right.axhline(100 * gaussian_share(), color=GREY, linewidth=0.8)
    for shift, (when, each) in zip((-0.08, 0.08), look.items(), strict=True):
        density, share = (r.measured(f"{quantity}_{when}", part="sigmoid") for quantity in ("density", "input"))
        if not share:
            return None
        curve(left, density.intervals("x"), each, marks=False)
        layers = dict(enumerate(share.intervals("x").values(), 1))
        curve(right, layers, each._replace(dashes="none"), bars=True, shift=shift)
    right.set_xticks(list(layers), [f"layer {layer}" for layer in layers])
    left.set(xlabel="input of the sigmoid", ylabel="density", ylim=(0, None))
    right.set(ylabel="share in [-1, 1], %", ylim=(0, 100), xlim=(0.5, len(layers) + 0.5))
    legend(figure, of=left)
    return figure


def scales(r: Results, s: Settings) -> Figure | None:
    """BN(a W u) against BN(W u) for weights of standard deviation 0.01 and 20 inputs of variance 1, in float64: the
    output, and the gradients that are said to stay, or to stay but for 1 / a.
    """
    names = {"output": "output", "du": "gradient by the inputs", "dw_times_a": "gradient by weights, times a"}
    look = looks({eps: f"eps = {eps:g}" for eps in s.scale_eps})
    figure, axes = panels(3, height=2.4, sharey=True)
    for panel, (quantity, title) in zip(axes, names.items(), strict=True):
        values = 100 * r.measured(quantity, part="scale")
        if not values:
            return None
        lines(panel, values, "x", "eps", look)
        panel.set(xscale="log", title=title, xlabel="factor a on the weights")
    axes[0].set_ylabel("relative change, %")
    legend(figure)
    return figure


def float32(r: Results, s: Settings) -> Figure | None:
    """Error of the variance of 4,096 normal float32 values: the source's formula in one pass, torch, and ours in two.
    Medians over {s.cancellation_draws} draws, geometric means over seeds. Grey: an error of the variance's own size.
    Values below 1e-9 are drawn there.
    """
    look = looks({ONE_PASS: ONE_PASS, "torch": "torch", "ours": "ours"})
    figure, (axes,) = panels()
    logs = r.measured("error", part="cancellation").map(lambda error: max(error, 1e-9)).log()
    if not logs:
        return None
    for name, each in look.items():
        by_ratio: dict[float, Values] = {}
        for (mean, std), values in logs.at(x=name).by("mean", "std").items():
            same = by_ratio.get(mean / std)
            by_ratio[mean / std] = values if same is None else (same + values) / 2
        curve(axes, {at: by_ratio[at].interval() for at in sorted(by_ratio) if at > 0}, each, log=True)
    zero(axes, 1.0)
    axes.set(xscale="log", yscale="log", xlabel="mean / standard deviation", ylabel="relative error of the variance")
    legend(figure)
    return figure


def statistics_at_inference(r: Results, s: Settings) -> Figure | None:
    """Test accuracy of networks with BN by the statistics that normalize at inference, minus that with the moving
    average of the same network (line): those of so many training batches, of all of them, or of each test batch itself.
    """
    accuracy, parts = (r.measured(q, part="inference") for q in ("accuracy", "part_accuracy"))
    if not accuracy:
        return None
    look = looks(["accuracy"])["accuracy"]._replace(dashes="none")
    networks = list(s.networks)
    figure, axes = panels(len(networks), height=2.5)
    names = [*map(str, s.population_batches), "all", "test\nbatch"]
    for panel, network in zip(axes, networks, strict=True):
        kinds = [parts.at(network=network, x=count) for count in s.population_batches]
        kinds += [accuracy.at(network=network, x=kind) for kind in ("population", "batch")]
        average = accuracy.at(network=network, x="ema")
        zero(panel)
        curve(panel, {place: (kind - average).interval() for place, kind in enumerate(kinds)}, look, bars=True)
        panel.set_xticks(range(len(names)), names)
        panel.set(title=network, xlabel="training batches in the statistics, or none")
    axes[0].set_ylabel("test accuracy minus that with\nthe moving average, points")
    return figure


FIGURES = (outside_the_gradient, in_networks, sigmoids, scales, float32, statistics_at_inference)
