"""What claims read from the results; tables and figures: the paper's own, what was chosen, rates, what regularises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import product, takewhile
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bnrepro.claims import Results, Row, Values
from bnrepro.experiments.ioffe2015.measurements import ARMS, NEAR, PERCENTILES, UNIT
from bnrepro.plots.panels import curve, dots, legend, lines, looks, panels, same_limits, zero
from bnrepro.plots.style import label
from bnrepro.stats import Interval

if TYPE_CHECKING:
    from bnrepro.experiments.ioffe2015 import Settings

WITH = {"nobn": "without BN", "bn": "with BN"}
CHANCE = 10.0  # %: all datasets of the presets have ten classes
BASELINE_STEPS = 31.0e6
REPORTED: dict[str, tuple[float | None, float]] = {
    "Baseline": (BASELINE_STEPS, 72.2),
    "BN-Baseline": (13.3e6, 72.7),
    "BN-x5": (2.1e6, 73.0),
    "BN-x30": (2.7e6, 74.8),
    "BN-x5-Sigmoid": (None, 69.8),
}
"""Figure 3: steps to 72.2% validation accuracy on ImageNet (None: never), and the best accuracy, in percent."""
LOOKS = looks(WITH)
DASHED = (0, (4, 2))


def named(arm: str) -> str:
    """An arm of the race as it is shown."""
    return arm.replace("convbn", label("convbn"))


# --- what is read ---


def gain(values: Values) -> Values:
    """With BN minus without."""
    return values.at(variant="bn") - values.at(variant="nobn")


def either(values: Values, what: str = "") -> dict[str, Values]:
    """Without and with BN, by name."""
    return {what + name: values.at(variant=variant) for variant, name in WITH.items()}


def total(values: Iterable[float]) -> Values:
    """The mean as one number, of what is the same for every seed, or 0 or 100 for each."""
    found = list(values)
    return Values((), {((), 0): fmean(found)} if found else {})


def share_above_0(units: Values) -> Values:
    """Of the units, in percent."""
    return units.map(lambda value: 100.0 * (value > 0)).mean()


def filled(values: Values, others: Values, by: float) -> Values:
    """``values``, and ``by`` where only ``others`` has one: for networks that diverged."""
    return others.map(lambda _: by) | values


def steps_to(level: Values, curves: Values, lost: Values, limit: int) -> Values:
    """Steps after which each curve is first at its seed's level, counted up to ``limit``.

    A curve that never gets there, or whose network diverged before, counts as ``limit``, so that ratios of steps are
    nearer to 1 than they are, on either side.
    """

    def first(steps: list[Any], gaps: list[float]) -> float:
        return min((float(step or 1) for step, gap in zip(steps, gaps, strict=True) if gap >= 0), default=float(limit))

    return filled((curves - level).along("x", first), lost, limit)


def race_steps(r: Results, s: Settings) -> Values:
    """Steps to the baseline's best validation accuracy, by arm."""
    curves, lost = (r.measured(quantity, part="speed") for quantity in ("val_accuracy", "diverged"))
    return steps_to(curves.at(arm="Baseline").max("x"), curves, lost, s.speed.steps)


def race(r: Results, quantity: str, otherwise: float) -> Values:
    """A quantity of each network of the race, by arm; ``otherwise`` where it has none."""
    return filled(r.measured(quantity, part="speed"), r.measured("rate", part="speed"), otherwise)


def figure1_steps(r: Results, s: Settings, level: float) -> Values:
    """Steps after which Figure 1's networks first have a test accuracy of ``level`` percent, by rate."""
    curves, lost = (r.measured(quantity, part="figure1") for quantity in ("test_accuracy", "diverged"))
    return steps_to(curves.map(lambda _: level), curves, lost, s.figure1.steps)


def at_best_rates(r: Results, s: Settings) -> Values:
    """Steps to the middle level without BN over those with BN, each at the rate with the fewest in the mean."""
    steps = figure1_steps(r, s, s.figure1.levels[len(s.figure1.levels) // 2])
    fewest = {}
    for variant in WITH:
        fewest[variant] = min(steps.at(variant=variant).by("rate").values(), key=fmean, default=Values())
    return fewest["nobn"] / fewest["bn"]


def drift_ratios(r: Results, s: Settings) -> dict[str, Values]:
    """log2 of the drift without BN over that with BN, by unit (x): as it is, and each divided by its width."""
    of = {"part": "figure1", "rate": s.figure1.rate}
    drift, width = (r.measured(name, **of).map(lambda v: max(v, 1e-12)) for name in ("drift", "width"))
    kinds = {"absolute": drift, "relative to the width": drift / width}
    return {name: (of.at(variant="nobn") / of.at(variant="bn")).log() / math.log(2) for name, of in kinds.items()}


def largest_rate(r: Results, s: Settings, variant: str) -> Values:
    """The largest learning rate at which all networks on digits train, as at all smaller ones; 0: there is none."""
    who = {"part": "rates", "variant": variant}
    worst = filled(r.test_accuracy(**who), r.diverged(**who), 0.0).by("rate")
    train = takewhile(lambda rate: min(worst[rate]) >= CHANCE + s.chance_points, sorted(worst))
    return total([max(train, default=0.0)] if worst else [])


# --- tables ---


def figure3(r: Results, s: Settings) -> list[Row]:
    """As the paper's Figure 3: steps to the baseline's best validation accuracy (of each seed), over the seeds that
    reached it, and the best accuracy. Beside it the paper's own (ImageNet).
    """
    curves, rates, lost, ends = (
        r.measured(quantity, part="speed") for quantity in ("val_accuracy", "rate", "diverged", "test_accuracy")
    )
    best, taken = curves.max("x"), race_steps(r, s)
    reached = (best - best.at(arm="Baseline")).where(lambda gap: gap >= 0)
    own = Values(taken.factors, {key: steps for key, steps in taken.data.items() if key in reached.data})
    return [
        {
            "model": arm,
            "rate": next(iter(rates.at(arm=arm)), None),
            "steps to the baseline's best": own.at(arm=arm).interval(),
            "seeds that reached it": len(own.at(arm=arm)),
            "seeds": len(rates.at(arm=arm)),
            "diverged": len(lost.at(arm=arm)),
            "times as fast": (taken.at(arm="Baseline") / own.at(arm=arm)).interval(),
            "best validation accuracy, %": best.at(arm=arm).interval(),
            "test accuracy, %": ends.at(arm=arm).interval(),
            "paper: steps to 72.2%": reported,
            "paper: times as fast": round(BASELINE_STEPS / reported, 2) if reported else None,
            "paper: max accuracy, %": highest,
        }
        for arm in ARMS
        for reported, highest in [REPORTED.get(arm, (None, None))]
    ]


def figure1a(r: Results, s: Settings) -> list[Row]:
    """Test accuracy (%) of Figure 1a's networks."""
    curves = r.measured("test_accuracy", part="figure1", rate=s.figure1.rate)
    steps = sorted(curves.levels("x"))
    shares = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
    wanted = [min(steps, key=lambda step: abs(step - share * s.figure1.steps)) for share in shares] if steps else []
    return [
        {"variant": variant} | {f"step {x:g}": curves.at(variant=variant, x=x).interval() for x in wanted}
        for variant in WITH
    ]


def units(r: Results, s: Settings) -> list[Row]:
    """Standard deviation of the {{15, 50, 85}}th percentiles of a sigmoid's inputs over training, log2 of without over
    with BN (above 0: steadier with BN), for all units of the last hidden layer.
    """
    return [
        {
            "drift": kind,
            f"unit {UNIT}": ratios.at(x=UNIT).interval(),
            "mean of all units": ratios.mean().interval(),
            "median unit": ratios.reduce(median).interval(),
            "units with less drift with BN, %": share_above_0(ratios).interval(),
        }
        for kind, ratios in drift_ratios(r, s).items()
    ]


def choices(r: Results, s: Settings) -> list[Row]:
    """Learning rates that were tried for Figures 2 and 3's baseline, each in short runs; 0: diverged."""
    part = "speed_choice"
    grid = filled(r.of_runs("val_accuracy", part=part), r.diverged(part=part), 0.0)
    found = {rate: fmean(values) for rate, values in grid.without("variant").by("rate").items()}
    return [
        {"rate": rate, "validation accuracy, %": 100 * accuracy, "runs": s.choosing_seeds, "chosen": accuracy == best}
        for best in [max(found.values(), default=0.0)]
        for rate, accuracy in found.items()
    ]


def figure1_sweep(r: Results, s: Settings) -> list[Row]:
    """Figure 1's networks at other learning rates: test accuracy at the end, and steps to accuracies."""
    end, lost = (r.measured("test_accuracy", part="figure1", x=s.figure1.steps), r.measured("diverged", part="figure1"))
    steps = {level: figure1_steps(r, s, level) for level in s.figure1.levels}
    return [
        {"variant": variant, "rate": rate, "diverged": len(lost.at(**of)), "test accuracy, %": end.at(**of).interval()}
        | {f"steps to {level:g}%": each.at(**of).interval() for level, each in steps.items()}
        for variant, rate in product(WITH, s.figure1.rates)
        for of in [{"variant": variant, "rate": rate}]
    ]


def rate_sweep(r: Results, s: Settings) -> list[Row]:
    """Training on 5,000 digits by learning rate: seeds whose loss became infinite, and accuracy."""
    accuracy = r.test_accuracy(part="rates")
    return [
        {
            "variant": variant,
            "rate": rate,
            "seeds": len(lost),
            "diverged": int(sum(lost)),
            "test accuracy of the others, %": accuracy.at(variant=variant, rate=rate).interval(),
        }
        for (variant, rate), lost in r.diverged(part="rates").by("variant", "rate").items()
    ]


def regularisation(r: Results, s: Settings) -> list[Row]:
    """Dropout before the last layer, and batches that are drawn anew or always hold the same images; losses in eval
    mode.
    """
    names = {"train_loss": "training loss", "test_loss": "test loss"}
    drawn = {name: r.measured(quantity, part="dropout") for quantity, name in names.items()}
    drawn["test accuracy, %"] = r.test_accuracy(part="dropout")
    fixed = r.test_accuracy(part="shuffle", fixed=True).intervals("variant")
    rows: list[Row] = []
    for variant in WITH:
        for amount in s.dropout_amounts:
            found = {name: values.at(variant=variant, amount=amount).interval() for name, values in drawn.items()}
            rows.append({"variant": variant, "dropout": amount, "batches": "drawn anew", **found})
        same = {"dropout": 0.0, "batches": "the same images", "test accuracy, %": fixed.get(variant)}
        rows.append({**dict.fromkeys(rows[-1]), "variant": variant, **same})
    return rows


# --- figures ---


def figure1(r: Results, s: Settings) -> Figure | None:
    """As Figure 1 of Ioffe & Szegedy (2015), on binary images of digits, with three layers of sigmoids, both at the
    learning rate {s.figure1.rate}. (a) Test accuracy by training step. (b, c) The {{15, 50, 85}}th percentiles of the
    inputs to one sigmoid of the last hidden layer (unit 0, fixed beforehand), over the images of a fixed batch: seed 0
    in full, the other seeds faint.
    """
    at_rate = {"part": "figure1", "rate": s.figure1.rate}
    accuracy = r.measured("test_accuracy", **at_rate) / 100
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
            values = r.measured(f"p{percentile}", **at_rate, variant=variant)
            dashes = "-" if percentile == 50 else DASHED
            for seed in sorted({seed for _, seed in values.data}):
                path = {x: value for ((x,), of), value in values.data.items() if of == seed}
                how: Row = {"linewidth": 1.3} if seed == 0 else {"linewidth": 0.6, "alpha": 0.3}
                axes.plot(list(path), list(path.values()), color=look.color, linestyle=dashes, **how)
        low, high = axes.get_ylim()
        axes.set(xlim=(0, steps), ylim=(min(low, -2), max(high, 2)), xlabel="training steps")
        axes.set_title(f"({panel}) {look.label}")
    same_limits(inputs)
    inputs[0].set_ylabel(f"input of sigmoid {UNIT}")
    inputs[1].tick_params(labelleft=False)
    for axes in (a, *inputs):
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}K" if v >= 1000 else f"{v:g}"))
    return figure


def figure1_rates(r: Results, s: Settings) -> Figure | None:
    """Figure 1's networks at other learning rates: a thin line for each seed, and geometric means. Left: test error
    after {s.figure1.steps} steps; a network that diverged counts as chance (grey). Then the steps to test accuracies,
    {s.figure1.steps} at most. Dotted: the rate of Figure 1.
    """
    end, lost = (r.measured(quantity, part="figure1") for quantity in ("test_accuracy", "diverged"))
    if not end:
        return None
    accuracy = filled(end.at(x=s.figure1.steps), lost, CHANCE)
    least, most = s.figure1.levels[0], s.figure1.levels[-1]
    shown = {"test error, %": 100 - accuracy} | {
        f"steps to {level:g}% test accuracy": figure1_steps(r, s, level) for level in dict.fromkeys((least, most))
    }
    figure, axes = panels(len(shown), height=2.6)
    for panel, (what, values) in zip(axes, shown.items(), strict=True):
        lines(panel, values, "rate", "variant", LOOKS, log=True, seeds=True)
        panel.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=what)
        panel.axvline(s.figure1.rate, color="#999999", linewidth=0.7, linestyle=(0, (1, 1)), zorder=0)
    zero(axes[0], at=100 - CHANCE)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0].yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v in (2, 3, 5, 20, 50) else ""))
    same_limits(axes[1:])
    legend(figure)
    return figure


def singular_values(r: Results, s: Settings) -> Figure | None:
    """Singular values of the Jacobians between the inputs of one sigmoid layer and the next (two pairs of layers, over
    images) in Figure 1's networks: between vectors normalised over a batch, as in the paper's section 3.3, and as
    they are; geometric means. Grey: within a factor of two of 1.
    """
    at_rate = {"part": "figure1", "rate": s.figure1.rate}
    if not r.measured("normalised_end", **at_rate):
        return None
    figure, both = panels(2, sharey=True)
    kinds = {"normalised": "between normalised vectors", "plain": "from sigmoid to sigmoid"}
    for axes, (kind, title) in zip(both, kinds.items(), strict=True):
        axes.axhspan(1 / NEAR, NEAR, color="#eeeeee", linewidth=0)
        zero(axes, at=1)
        times = (("start", DASHED, "before training"), ("end", "-", "trained"))
        for (variant, look), (when, dashes, moment) in product(LOOKS.items(), times):
            values = r.measured(f"{kind}_{when}", **at_rate, variant=variant).map(lambda v: max(v, 2.0**-20))
            look = look._replace(dashes=dashes, label=f"{look.label}, {moment}")
            lines(axes, values, "x", look=look, log=True, marks=False)
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
    curves, diverged = (r.measured(quantity, part="speed") for quantity in ("val_accuracy", "diverged"))
    if not curves:
        return None
    sigmoid = {arm for arm, (_, _, activation) in ARMS.items() if activation == "sigmoid"}
    without = [arm for arm, (variant, _, _) in ARMS.items() if variant == "nobn"]  # ordered: looks go by place
    by_rate = [arm for arm in ARMS if arm not in sigmoid and not arm.startswith("convbn")]
    shown = {
        "with BN": [arm for arm in by_rate if arm == "Baseline" or arm not in without],
        "without BN": [arm for arm in by_rate if arm in without],
        "local gain, sigmoids": ["BN-x5", *(arm for arm in ARMS if arm not in by_rate)],
    }
    look = looks(
        ["BN-x5", "convbn-x5", *(arm for arm in ARMS if arm not in (*without, "BN-x5", "convbn-x5")), *without]
    )
    figure, every = panels(3, height=3.0, sharey=True)
    for axes, (title, arms) in zip(every, shown.items(), strict=True):
        for arm in arms:
            color = LOOKS["nobn"].color if arm in without else look[arm].color
            lost, values = len(diverged.at(arm=arm)), curves.at(arm=arm)
            seeds = f"{lost} diverged" if lost else f"n={len(values.max('x'))}"
            own = look[arm]._replace(color=color, label=f"{named(arm)} ({seeds})")
            lines(axes, values, "x", look=own, marks=False)
        axes.set(xlabel="training steps", title=title, xlim=(0, s.speed.steps))
        axes.legend(loc="center right", bbox_to_anchor=(1.02, 0.34), handlelength=2.4, fontsize=6.5)
    every[0].set_ylabel("validation accuracy, %")
    every[0].set_ylim(0, min(100, every[0].get_ylim()[1]))
    return figure


def rates(r: Results, s: Settings) -> Figure | None:
    """Test accuracy on 5,000 digits by learning rate (SGD with momentum), over the seeds whose loss stayed finite.
    Below: how many became infinite.
    """
    accuracy, lost = r.test_accuracy(part="rates"), r.diverged(part="rates")
    if not lost:
        return None
    figure, (axes,) = panels(height=2.7)
    written: Counter[float] = Counter()
    for place, (variant, look) in enumerate(looks(s.rates.variants).items()):
        apart = 1.06 ** (place - 1)  # side by side: bars would hide one another
        found = accuracy.at(variant=variant).intervals("rate")
        inside = {x * apart: Interval(i.mean, max(i.low, 0), min(i.high, 100), i.n) for x, i in sorted(found.items())}
        curve(axes, inside, look, bars=True)
        for rate, seeds in lost.at(variant=variant).by("rate").items():
            if count := int(sum(seeds)):
                axes.text(rate, -7 - 7 * written[rate], f"{count}x", color=look.color, ha="center", va="center", size=6)
                written[rate] += 1
    axes.set_xscale("log")
    room = 4 + 7 * max(written.values(), default=0)
    axes.set(xlabel="learning rate", ylabel="test accuracy, %", ylim=(-room, 104))
    axes.set_yticks(range(0, 101, 20))
    axes.xaxis.set_minor_locator(NullLocator())
    legend(figure)
    return figure


def regularisers(r: Results, s: Settings) -> Figure | None:
    """What test accuracy gains where dropout before the last layer is removed, and where batches are drawn anew in each
    epoch. Small: each seed.
    """
    dropout, shuffle = r.test_accuracy(part="dropout"), r.test_accuracy(part="shuffle")
    if not shuffle:
        return None
    gains = {f"no dropout\n- {a:g}": dropout.at(amount=0.0) - dropout.at(amount=a) for a in s.dropout_amounts if a > 0}
    gains["drawn anew\n- same batches"] = shuffle.at(fixed=False) - shuffle.at(fixed=True)
    values = Values.stacked("gain", gains)
    figure, (axes,) = panels(height=2.4)
    zero(axes)
    dots(axes, values, "gain", "variant", LOOKS, width=0.24)
    axes.set_ylabel("test accuracy, points")
    legend(figure)
    return figure
