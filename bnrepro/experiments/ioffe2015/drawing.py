"""The figures, drawn as the paper's are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bnrepro.claims import Results
from bnrepro.claims.plots import curve, legend, lines, looks, panels, same_limits, zero
from bnrepro.experiments.ioffe2015 import effects
from bnrepro.experiments.ioffe2015.jacobian import NEAR
from bnrepro.experiments.ioffe2015.networks import ARMS, PERCENTILES, UNIT
from bnrepro.plots.style import COLUMN
from bnrepro.stats import Interval

if TYPE_CHECKING:
    from bnrepro.experiments.ioffe2015 import Settings

LOOKS = looks(effects.WITH)
DASHED = (0, (4, 2))


def figure1(r: Results, s: Settings) -> Figure | None:
    """As Figure 1 of Ioffe & Szegedy (2015), on binary images of digits, with three layers of sigmoids. (a) Test
    accuracy by training step. (b, c) The {{15, 50, 85}}th percentiles of the inputs to one sigmoid of the last hidden
    layer (unit 0, fixed beforehand), over the images of a fixed batch: seed 0 in full, the other seeds faint.
    """
    accuracy = r.measured("test_accuracy", part="figure1") / 100
    if not accuracy:
        return None
    steps = s.figure1.steps
    figure, (a, *inputs) = panels(3, height=2.5, width_ratios=(1.25, 1, 1))
    lines(a, accuracy, "x", "variant", LOOKS, marks=False)
    lowest = min(0.7, 0.95 * min(accuracy.at(x=steps), default=1.0))
    a.set(xlim=(steps / 50, steps), ylim=(lowest, 1), xlabel="training steps", ylabel="test accuracy", title="(a)")
    a.legend(loc="lower right", handlelength=2.4)
    for axes, (variant, look), panel in zip(inputs, LOOKS.items(), "bc", strict=True):
        for percentile in PERCENTILES:
            values = r.measured(f"p{percentile}", part="figure1", variant=variant)
            for seed in sorted({seed for _, seed in values.data}):
                path = {label[0]: value for (label, of), value in values.data.items() if of == seed}
                width, alpha = (1.3, 1.0) if seed == 0 else (0.6, 0.3)
                dashes = "-" if percentile == 50 else DASHED
                axes.plot(
                    list(path), list(path.values()), color=look.color, linestyle=dashes, linewidth=width, alpha=alpha
                )
        low, high = axes.get_ylim()
        axes.set(xlim=(0, steps), ylim=(min(low, -2), max(high, 2)))
        axes.set(xlabel="training steps", title=f"({panel}) {look.label}")
    same_limits(inputs)
    inputs[0].set_ylabel(f"input of sigmoid {UNIT}")
    inputs[1].tick_params(labelleft=False)
    for axes in (a, *inputs):
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}K" if v >= 1000 else f"{v:g}"))
    return figure


def singular_values(r: Results, s: Settings) -> Figure | None:
    """Singular values of the Jacobians between the inputs of one sigmoid layer and the next (two pairs of layers, over
    images) in Figure 1's networks: between vectors normalised over a batch, as in the paper's section 3.3, and as
    they are; geometric means. Grey: within a factor of two of 1.
    """
    if not r.measured("normalised_end", part="figure1"):
        return None
    figure, both = panels(2, sharey=True)
    titles = ("between normalised vectors", "from sigmoid to sigmoid")
    for axes, kind, title in zip(both, ("normalised", "plain"), titles, strict=True):
        axes.axhspan(1 / NEAR, NEAR, color="#eeeeee", linewidth=0)
        zero(axes, at=1)
        for variant, look in LOOKS.items():
            for when, dashes, moment in (("start", DASHED, "before training"), ("end", "-", "trained")):
                logs = (
                    r.measured(f"{kind}_{when}", part="figure1", variant=variant).map(lambda v: max(v, 2.0**-20)).log()
                )
                about = look._replace(dashes=dashes, label=f"{look.label}, {moment}")
                curve(axes, logs.intervals("x"), about, log=True, marks=False)
        axes.set_yscale("log", base=2)
        axes.set(xlabel="percentile of the singular values", title=title, xlim=(0, 100), ylim=(2**-9, 2**5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}"))
    both[0].set_ylabel("singular value")
    legend(figure, of=both[0])
    return figure


def figure2(r: Results, s: Settings) -> Figure | None:
    """As Figure 2 of Ioffe & Szegedy (2015), for one small network: validation accuracy by training step, for multiples
    of the learning rate that is best without BN. Over the seeds that have not diverged.
    """
    curves, lost = effects.race(r), r.measured("diverged", part="speed")
    if not curves:
        return None
    figure, (axes,) = panels(width=1.5 * COLUMN, height=3.2)
    without = [arm for arm, who in ARMS.items() if who.variant == "nobn"]
    first = ["BN-x5", "convbn-x5"]  # BN is blue and local-gain BN orange, as elsewhere
    look = looks([*first, *(arm for arm in ARMS if arm not in (*first, *without)), *without])
    for arm in ARMS:
        own = look[arm]
        if arm in without:
            own = own._replace(color=LOOKS["nobn"].color)
        count = len(lost.at(arm=arm))
        seeds = f"{count} diverged" if count else f"n={len(curves.at(arm=arm).max('x'))}"
        lines(axes, curves.at(arm=arm), "x", look=own._replace(label=f"{effects.named(arm)} ({seeds})"), marks=False)
    axes.set(xlabel="training steps", ylabel="validation accuracy, %", xlim=(0, s.speed.steps))
    axes.set_ylim(0, min(100, axes.get_ylim()[1]))
    figure.legend(loc="outside right upper", handlelength=2.6)
    return figure


def rates(r: Results, s: Settings) -> Figure | None:
    """Test accuracy on 5,000 digits by learning rate (SGD with momentum), over the seeds whose loss stayed finite.
    Below: how many became infinite.
    """
    accuracy, lost = r.test_accuracy(part="rates"), r.diverged(part="rates")
    if not lost:
        return None
    figure, (axes,) = panels(height=2.7)
    for place, (variant, look) in enumerate(looks(s.rates.variants).items()):
        apart = 1.06 ** (place - 1)  # side by side: bars would hide one another
        found = accuracy.at(variant=variant).intervals("rate")
        inside = {x * apart: Interval(i.mean, max(i.low, 0), min(i.high, 100), i.n) for x, i in sorted(found.items())}
        curve(axes, inside, look, bars=True)
        for rate, seeds in lost.at(variant=variant).by("rate").items():
            if count := int(sum(seeds)):
                axes.text(rate * apart, -6 - 7 * place, f"{count}x", color=look.color, ha="center", va="center", size=6)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="test accuracy, %", ylim=(-10 - 7 * (len(s.rates.variants) - 1), 104))
    axes.set_yticks(range(0, 101, 20))
    axes.xaxis.set_minor_locator(NullLocator())
    legend(figure)
    return figure


def regularisers(r: Results, s: Settings) -> Figure | None:
    """What test accuracy gains where dropout before the last layer is removed, and where batches are drawn anew in each
    epoch. Small: each seed.
    """
    if not r.runs or not effects.shuffle_effect(r, "bn"):
        return None
    amounts = [amount for amount in s.dropout_amounts if amount > 0]
    figure, (axes,) = panels(height=2.4)
    zero(axes)
    for shift, (variant, look) in zip((-0.12, 0.12), LOOKS.items(), strict=True):
        gains = [effects.dropout_effect(r, variant, amount) for amount in amounts]
        gains.append(effects.shuffle_effect(r, variant))
        for place, values in enumerate(gains):
            axes.plot(
                [place + shift + 0.08] * len(values), list(values), look.marker,
                color=look.color, alpha=0.35, markersize=2.5,
            )  # fmt: skip
        curve(axes, {k: v.interval() for k, v in enumerate(gains)}, look._replace(dashes=""), bars=True, shift=shift)
    axes.set_xticks(
        range(len(gains)), [*(f"no dropout\n- {amount:g}" for amount in amounts), "drawn anew\n- same batches"]
    )
    axes.set_ylabel("test accuracy, points")
    axes.grid(axis="x", visible=False)
    legend(figure)
    return figure
