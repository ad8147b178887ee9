"""van Laarhoven, L2 Regularization versus Batch and Weight Normalization (2017), and Hoffer et al., Norm Matters
(2018).

https://arxiv.org/abs/1706.05350

Differences from the paper
- The network of airbench at an eighth of its width, trained for 8 epochs of CIFAR-10; Hoffer et al. train a VGG11 on
  CIFAR-10 for 80 epochs, with learning rate 0.1, momentum 0.9 and weight decay 5e-4. V2 and V2.2 have ten times their
  decay in a tenth of their epochs: what decay does to a norm is exponential in the product of rate, decay and steps.
- The rate falls linearly to 0 after a warm-up, in all trainings, so that they do not end in the noise of a large rate.
- Weight decay applies to the weights that a norm follows and to no others, so that nothing but their scale is at stake.
- The correction is per layer and step: a layer's rate is multiplied by its squared norm over that of the same layer in
  the run with weight decay, trained beside it on the same batches. The reverse (weight decay, at the effective rates of
  the run without) is a control of ours.
- Rates and decays are chosen by the mean validation accuracy over the seeds; the claim is judged on the test set, and
  only where the chosen rates lie inside the sweep. The largest decay may be the best, as its product with the rate
  counts, which the rates span.
- At the largest rate no network learns, and with decay its weights vanish; a training whose weights are 0 in float32
  ended in an error of the measurement at first, and those five were made again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from statistics import fmean

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel

from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, Values
from bnrepro.claims.evidence import equal, exact, greater
from bnrepro.claims.gates import reaches
from bnrepro.claims.results import CHANCE
from bnrepro.experiments.vanlaarhoven2017 import measurements
from bnrepro.experiments.vanlaarhoven2017.measurements import CORRECTED, OFF, ON, REVERSE
from bnrepro.plots.panels import heat_map, legend, lines, looks, panels
from bnrepro.stats import Interval

LAARHOVEN = (
    "van Laarhoven, L2 Regularization versus Batch and Weight Normalization (2017), https://arxiv.org/abs/1706.05350"
)
HOFFER = "Hoffer et al., Norm Matters (2018), https://arxiv.org/abs/1803.01814"
POINTS = "percentage points of test accuracy"
AIRBENCH = "airbench's network at an eighth of its width, 8 epochs of CIFAR-10"
DECAYED = "Weight decay is ten times the source's, in a tenth of its epochs: what it does to a norm goes with both."
EXACT_SEEDS = 5  # of identities: nothing about them is random but the numbers that they are checked with
SGD = ["optimizer=sgd", "schedule=linear", "schedule.warmup_epochs=1", "eval_every=1000000", "epochs=1"]
ARMS = {
    ON: "weight decay",
    OFF: "no weight decay",
    CORRECTED: "no weight decay, corrected rate",
    REVERSE: "weight decay, rate as without",
}


class Grid(BaseModel, extra="forbid", frozen=True):
    """V1.5: rate by decay."""

    rates: list[float] = [0.03, 0.1, 0.3, 1.0, 3.0]
    decays: list[float] = [0.0, 0.0005, 0.002]  # 0 and at least one more: the source's, and four times as much


class Arms(BaseModel, extra="forbid", frozen=True):
    """V2: Hoffer et al.'s, side by side; their rate, and ten times their decay."""

    rate: float = 0.1
    decay: float = 0.005


class Scaling(BaseModel, extra="forbid", frozen=True):
    """V1 to V1.4."""

    scale: float = 3.0  # factor on the weights
    steps: int = 50  # of training
    lr: float = 0.1
    decay: float = 0.01


class Settings(Preset):
    looks: list[int] = [5, 10, 20, 40]
    common: list[str] = [  # of every training
        *("data=cifar10", "data.crop=2", "model=airbench", "model.width=0.125", "batch_size=128", "channels_last=true"),
    ]
    epochs: int = 8
    grid: Grid = Grid()
    arms: Arms = Arms()
    exact: Scaling = Scaling()
    tolerance: float = 1e-9  # of an identity in float64
    trained: float = 70.0  # V1.5 to V2.2: % test accuracy with weight decay
    # V2, V2.2: |w|² without weight decay over that with it, at the end, from which on decay has acted: half the length
    acted: float = 4.0
    margin_points: float = 0.5  # V1.5 to V2.2: test accuracies that count as alike


paper = Paper(__name__, Settings, source=LAARHOVEN, scale_note=AIRBENCH)


@paper.design
def runs(s: Settings) -> Design:
    """Weight decay by learning rate, the four arms side by side in one measurement, and the identities.

    Measurements train by themselves, from the configuration of a run of one epoch, which says where its data are.
    """
    design = Design(s.seeds)
    for rate, decay in product(s.grid.rates, s.grid.decays):
        tuned = measurements.tuned, {"epochs": s.epochs, "decay": decay}
        overrides = [*SGD, *s.common, f"optimizer.lr={rate}"]
        design.train("grid", {"rate": rate, "decay": decay}, overrides, tuned, record=False)
    four_arms = measurements.four_arms, {"epochs": s.epochs, "decay": s.arms.decay}
    design.train("arms", {}, [*SGD, *s.common, f"optimizer.lr={s.arms.rate}"], four_arms, record=False)
    design.measure("exact", {}, measurements.invariance, seeds=design.seeds[:EXACT_SEEDS], **s.exact.model_dump())
    return design


# --- claims: identities ---


def trainings(r: Results, s: Settings, optimizer: str, same: str, others: dict[str, str]) -> Evidence:
    """That trainings from w and from a w have the same losses in the setting ``same``, and not in ``others``."""
    what = f"relative difference of losses, {optimizer} from w and from a w"
    evidence = exact({same: r.measured(optimizer.lower(), part="exact")}, what, tolerance=s.tolerance)
    different = {name: r.measured(quantity, part="exact") for name, quantity in others.items()}
    alike = {name: values.map(lambda v: float(v <= s.tolerance)) for name, values in different.items()}
    evidence &= exact(alike, "", "1 where they are the same", tolerance=0)
    return evidence.showing({f"difference, {name}": values for name, values in different.items()}, "")


@paper.claim("V1", kind="identity")
def the_loss_ignores_the_scale(r: Results, s: Settings) -> Evidence:
    """The loss of a network does not change with the scale of weights that a norm follows, so that an L2 penalty on
    them can be met by their scale alone.
    """
    names = {"loss": "loss", "gradient": "a times the gradient", "orthogonal": "cosine of w and its gradient"}
    changes = {name: r.measured(quantity, part="exact") for quantity, name in names.items()}
    return exact(changes, f"relative change from w to a w, a = {s.exact.scale:g}", tolerance=s.tolerance)


@paper.claim("V1.2", kind="identity")
def the_effective_rate_is_over_the_squared_norm(r: Results, s: Settings) -> Evidence:
    """The effective learning rate is the rate over the squared norm of the weights: weights a times as large train
    alike at a² times the rate and 1 / a² times the weight decay.
    """
    return trainings(r, s, "SGD", "a² lr, decay / a²", {"the same lr and decay": "sgd_same"})


@paper.claim("V1.3", kind="identity")
def norms_only_grow(r: Results, s: Settings) -> Evidence:
    """Without weight decay the norm of the weights only grows under SGD."""
    growth, least = (r.measured(quantity, part="exact") for quantity in ("growth", "least_growth"))
    evidence = exact({"|w|² + lr² |g|²": growth}, "relative error of the next |w|²", tolerance=s.tolerance)
    shrinks = {"steps": least.map(lambda v: float(v <= 0))}
    evidence &= exact(shrinks, "", "1 where |w|² does not grow in one of them", tolerance=0)
    evidence = evidence.showing({"smallest relative growth in a step": least}, "")
    grown = r.measured(f"{OFF}: square", part="arms").reduce(lambda path: path[-1] / path[0], "x")
    name = "mean |w|² of the network with momentum, last over first epoch's end"
    return evidence.showing({name: grown}, "times", ratio=True)


@paper.claim(
    "V1.4",
    kind="identity",
    quote="popular optimization methods such as ADAM only partially eliminate the influence of normalization on the "
    "learning rate.",
    where="abstract",
)
def adam_sees_the_norm(r: Results, s: Settings) -> Evidence:
    """Adam removes the influence of the weights' norm on the effective rate only in part."""
    evidence = trainings(r, s, "Adam", "a lr", {"the same lr": "adam_same", "a² lr": "adam_squared"})
    remark = "An effective rate of lr / |w| is the same at a times the rate; that of SGD is lr / |w|²."
    return replace(evidence, remark=remark)


# --- claims: networks ---


def accuracy(r: Results, split: str) -> Values:
    """Accuracy at the end by rate and decay, in percent; that of chance for what diverged."""
    found, lost = r.measured(split, part="grid"), r.measured("diverged", part="grid")
    return lost.map(lambda _: CHANCE) | found


def best(r: Results, decays: list[float]) -> tuple[float, float] | None:
    """The rate and decay, of these, with the best mean validation accuracy."""
    cells = accuracy(r, "val").at(decay=decays).by("rate", "decay")
    means = {cell: fmean(values) for cell, values in cells.items()}
    return max(means, key=lambda cell: means[cell], default=None)


def tuned_has_trained(r: Results, s: Settings) -> Gate:
    """The best of the networks that V1.5 chooses from."""
    chosen = best(r, s.grid.decays)
    found = accuracy(r, "val").at(rate=chosen[0], decay=chosen[1]) if chosen else Values()
    return reaches(found, s.trained, "validation accuracy at the best rate and decay, %")


def decay_has_acted(r: Results, s: Settings) -> Gate:
    """The network with weight decay, and what decay has done to the norms."""
    squares = {arm: r.measured(f"{arm}: square", part="arms").reduce(lambda path: path[-1], "x") for arm in (ON, OFF)}
    gate = reaches(r.measured(f"{ON}: test", part="arms"), s.trained, "test accuracy with weight decay, %")
    return gate & reaches(
        squares[OFF] / squares[ON], s.acted, "mean |w|² at the end, no weight decay over weight decay"
    )


@paper.claim(
    "V1.5",
    quote="L2 regularization has no regularizing effect when combined with normalization.",
    where="abstract",
    gate=tuned_has_trained,
)
def decay_adds_nothing(r: Results, s: Settings) -> Evidence:
    """L2 regularization of the weights that a norm follows has no regularizing effect: once the learning rate is tuned,
    weight decay adds nothing.
    """
    what = "test accuracy, weight decay minus none, each tuned"
    tuned, without = best(r, [decay for decay in s.grid.decays if decay > 0]), best(r, [0.0])
    if not (tuned and without):
        return equal(Values(), what, POINTS, margin=s.margin_points)
    with_it, none = (accuracy(r, "test").at(rate=rate, decay=decay) for rate, decay in (tuned, without))
    cells = f"rate {tuned[0]:g} and decay {tuned[1]:g} against rate {without[0]:g} and none"
    evidence = equal(with_it - none, what, POINTS, margin=s.margin_points, condition=cells)
    chosen = {"weight decay": (tuned[0], s.grid.rates), "no weight decay": (without[0], s.grid.rates)}
    return evidence.unless_at_edge(chosen)


def by_arm(r: Results, quantity: str) -> Values:
    """What was measured of the four arms, by arm."""
    return Values.stacked("arm", {arm: r.measured(f"{arm}: {quantity}", part="arms") for arm in ARMS})


def gain(r: Results, arm: str, over: str) -> Values:
    """Test accuracy of one arm minus that of another."""
    return r.measured(f"{arm}: test", part="arms") - r.measured(f"{over}: test", part="arms")


@paper.claim("V2", source=HOFFER, gate=decay_has_acted)
def decay_helps(r: Results, s: Settings) -> Evidence:
    """At one learning rate, accuracy is better with weight decay than without."""
    estimand = "test accuracy, weight decay minus none at the same rate"
    return replace(greater(gain(r, ON, OFF), estimand, POINTS, margin=s.margin_points), remark=DECAYED)


@paper.claim("V2.2", source=HOFFER, reported="no number read in the text", gate=decay_has_acted)
def corrected_rates_recover_it(r: Results, s: Settings) -> Evidence:
    """Without weight decay, the learning rate corrected by the norms of the run with weight decay recovers its
    accuracy.
    """
    recovered = {"corrected rate minus decay": gain(r, CORRECTED, ON)}
    evidence = equal(recovered, "test accuracy", POINTS, margin=s.margin_points)
    # Where decay brings nothing there is nothing to recover.
    evidence &= greater({"decay minus none": gain(r, ON, OFF)}, "", POINTS, margin=s.margin_points)
    beside = {
        "corrected rate minus uncorrected": gain(r, CORRECTED, OFF),
        "the reverse, decay at the rates of none, minus none": gain(r, REVERSE, OFF),
    }
    return replace(evidence.showing(beside, "points"), remark=DECAYED)


# --- tables and figures ---


@paper.table
def grid(r: Results, s: Settings) -> list[Row]:
    """Weight decay by learning rate; |w|² is the geometric mean over layers."""
    columns = {
        "validation accuracy, %": accuracy(r, "val"),
        "test accuracy, %": accuracy(r, "test"),
        "growth of |w|²": r.measured("growth", part="grid"),
        "mean effective rate": r.measured("effective_rate", part="grid"),
    }
    diverged = r.measured("diverged", part="grid")
    return [
        {"weight decay": decay, "rate": rate}
        | {name: values.at(rate=rate, decay=decay).interval() for name, values in columns.items()}
        | {"diverged": len(diverged.at(rate=rate, decay=decay))}
        for decay, rate in product(s.grid.decays, s.grid.rates)
        if diverged.at(rate=rate, decay=decay) or accuracy(r, "val").at(rate=rate, decay=decay)
    ]


@paper.table
def arms(r: Results, s: Settings) -> list[Row]:
    """Weight decay on and off, and at each other's effective rates. |w|² is the geometric mean over layers at the end,
    lr / |w|² that halfway: it falls to 0 with the rate.
    """
    steps = sorted(by_arm(r, "rate").levels("x"))
    last, halfway = (steps[-1], steps[len(steps) // 2]) if steps else (None, None)
    columns = {
        "test accuracy, %": by_arm(r, "test"),
        "training loss": by_arm(r, "train"),
        "log10 of |w|²": by_arm(r, "square").at(x=last).log10(),
        "log10 of lr / |w|²": by_arm(r, "rate").at(x=halfway).log10(),
    }
    return [{"arm": arm} | {name: values.at(arm=arm).interval() for name, values in columns.items()} for arm in ARMS]


@paper.table(over_seeds=False)
def identities(r: Results, s: Settings) -> list[Row]:
    """Identities in float64, a = {s.exact.scale:g}: the largest error over all seeds, of growth the smallest."""
    names = {
        "loss": "loss at a w",
        "orthogonal": "cosine of w and its gradient",
        "gradient": "a times the gradient at a w",
        "growth": "|w|² + lr² |g|² against the next |w|²",
        "least_growth": "smallest relative growth of |w|²",
        "sgd": "SGD from a w: a² lr, decay / a²",
        "sgd_same": "SGD from a w: same rate and decay",
        "adam": "Adam from a w: a lr",
        "adam_same": "Adam from a w: same rate",
        "adam_squared": "Adam from a w: a² lr",
    }
    worst = {name: min if name == "least_growth" else max for name in names}
    errors = {text: worst[name](r.measured(name, part="exact"), default=None) for name, text in names.items()}
    return [{"of": text, "largest relative error": error} for text, error in errors.items()]


@paper.figure(over_seeds=False)
def heat_maps(r: Results, s: Settings) -> Figure | None:
    """Weight decay by learning rate: means over {s.seeds} seeds; blank where all diverged, or weights decayed to 0. lr
    / |w|² is the geometric mean over the layers that a norm follows and over the steps after the warm-up; its colours
    span the cells whose networks learn. Along the white lines the product of rate and decay is constant, and with it
    the effective rate in equilibrium.
    """
    effective = r.measured("effective_rate", part="grid").log10().where(math.isfinite)
    learned = (r.measured("test", part="grid") - 2 * CHANCE).where(lambda more: more > 0)
    spanned = list(learned * 0 + effective)  # of networks that learn alone: those of others are decades away
    span = Normalize(min(spanned, default=0), max(spanned, default=1), clip=True)
    shown = {
        "test accuracy, %": (r.measured("test", part="grid"), "viridis", None, "{:.1f}"),
        "log10 of lr / |w|²": (effective, "magma", span, "{:.2f}"),
    }
    if not all(values for values, *_ in shown.values()):
        return None
    rates, decays = s.grid.rates, [decay for decay in s.grid.decays if decay > 0]
    places = range(len(s.grid.decays) - len(decays), len(s.grid.decays))
    products = np.log(np.outer(decays, rates))
    figure, axes = panels(2, height=0.9 + 0.36 * len(s.grid.decays))
    for each, (title, (values, colors, norm, form)) in zip(axes, shown.items(), strict=True):
        means = {cell: found.interval().mean for cell, found in sorted(values.by("decay", "rate").items())}
        cells = {cell: Interval(mean, math.nan, math.nan, s.seeds) for cell, mean in means.items()}
        image = heat_map(each, cells, cmap=colors, norm=norm, form=form)
        each.invert_yaxis()
        for text, mean in zip(each.texts, means.values(), strict=True):
            box = {"facecolor": image.cmap(image.norm(mean)), "edgecolor": "none", "pad": 0.6}
            text.set(y=text.get_position()[1] + 0.28, zorder=4, bbox=box)  # the lines end before the numbers
        if min(products.shape) > 1:
            about: Row = {"levels": sorted(products[:, len(rates) // 2]), "linestyles": "solid", "zorder": 3}
            for color, width in (("#00000080", 1.8), ("white", 1.0)):  # seen on bright cells too
                each.contour(range(len(rates)), places, products, colors=[color], linewidths=width, **about)
        each.set(xlabel="learning rate", title=title)
    axes[0].set_ylabel("weight decay")
    return figure


@paper.figure
def along_training(r: Results, s: Settings) -> Figure | None:
    """Weight decay on ({s.arms.decay:g}) and off, and at each other's effective rates. |w|² and rates are averaged as
    logarithms.
    """
    if not by_arm(r, "error"):
        return None
    figure, axes = panels(3, height=2.7)
    shown = {"error": "validation error, %", "square": "mean |w|²", "rate": "effective rate lr / |w|²"}
    for each, (quantity, title) in zip(axes, shown.items(), strict=True):
        log = quantity != "error"
        lines(each, by_arm(r, quantity), "x", "arm", looks(ARMS), log=log)
        if log:
            each.set_yscale("log")
        else:
            each.set_ylim(bottom=0)  # the t interval may reach below it, an error cannot
        each.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        each.set(xlabel="step", title=title)
    legend(figure, 2, of=axes[0])
    return figure
