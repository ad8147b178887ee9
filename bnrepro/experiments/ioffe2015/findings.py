"""Verdicts on Figure 1, the algebra, and what regularises."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from bnrepro.experiments import judge
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.ioffe2015.claims import BY_ID
from bnrepro.experiments.ioffe2015.effects import (
    POINTS,
    choices,
    chosen_cell,
    dropout_effect,
    figure1_curves,
    final,
    shuffle_effect,
    speed_ups,
    unit_ratios,
)
from bnrepro.experiments.ioffe2015.figure1 import UNIT
from bnrepro.experiments.ioffe2015.grid import CHOICE1, DROPOUT, EXACT, FIGURE1
from bnrepro.experiments.ioffe2015.jacobian import random_share
from bnrepro.experiments.ioffe2015.race_findings import i8, i9, i9_2, i9_3, i10, i10_2
from bnrepro.stats import paired, t_interval

TEST = "percentage points of test accuracy"
NAMES = {"nobn": "without", "bn": "with"}


def judged(records: Records) -> list[Finding]:
    """A finding for each claim, in their order."""
    made = [i1, i1_2, i2, i3, i4, i5, i6, i6_2, i7, i8, i9, i9_2, i9_3, i10, i10_2, i11]
    ensemble = "An ensemble of six Inception networks on ImageNet, of which nothing smaller is an analogue."
    return [*(one(records) for one in made), judge.not_testable(BY_ID["I12"], ensemble)]


# --- Figure 1 ---


def i1(records: Records) -> Finding:
    """Test accuracy at the end."""
    ends = {variant: final(figure1_curves(records, "test_accuracy", variant)) for variant in ("nobn", "bn")}
    means = {variant: judge.numbers(t_interval(list(values.values()))) for variant, values in ends.items()}
    cells = {variant: chosen_cell(records, CHOICE1, variant=variant) for variant in ("nobn", "bn")}
    asked = records.settings["figure1"]
    said = ", ".join(
        f"{NAMES[variant]} BN rate {cell[0]:g}{_edge(cell[0], asked['rates'])} and deviation {cell[1]:g}"
        f"{_edge(cell[1], asked['deviations'])}"
        for variant, cell in cells.items()
        if cell
    )
    lost = {variant: len(records.measured("diverged", part=FIGURE1, variant=variant)) for variant in NAMES}
    diverged = "".join(f" Diverged {NAMES[variant]} BN: {count} seeds." for variant, count in lost.items() if count)
    steps = asked["steps"]
    found = (
        f"After {steps:,} steps {means['bn']}% with BN and {means['nobn']}% without, a difference of {{effect}}. "
        f"Chosen on validation data: {said}.{diverged}"
    )
    return judge.greater(BY_ID["I1"], paired(ends["bn"], ends["nobn"]), TEST, found=found)


def _edge(value: float, tried: list[float]) -> str:
    """A choice at the edge of what was tried might lie beyond it."""
    return " (edge of the grid)" if len(tried) > 1 and value in (min(tried), max(tried)) else ""


def i1_2(records: Records) -> Finding:
    """How many times fewer steps with BN to the best accuracy without."""
    base, other = (figure1_curves(records, "test_accuracy", variant) for variant in ("nobn", "bn"))
    ups = list(speed_ups(base, other).values())
    short = [choices(records, CHOICE1, variant=variant) for variant in ("nobn", "bn")]
    both = short[0].keys() & short[1].keys()
    ahead = sum(fmean(short[1][cell]) > fmean(short[0][cell]) for cell in both)
    found = (
        f"To the best accuracy without BN the network with BN is {{effect}}; {_reached(ups)}. Both have the rate that "
        f"is best for them: in the short runs, at the same rate and deviation, BN is ahead in {ahead} of {len(both)} "
        "cells of the grid."
    )
    return judge.greater(BY_ID["I1.2"], ups, "times as fast", at_least=1.0, found=found)


def _reached(ups: list[float]) -> str:
    never = sum(up == 0 for up in ups)
    return f"{never} of {len(ups)} seeds never reached it (counted as 0)" if never else "all seeds reached it"


def i2(records: Records) -> Finding:
    """Drift of the percentiles, without over with BN, over all units of the last hidden layer and of unit 0."""
    kinds = {name: unit_ratios(records, relative=name == "relative") for name in ("absolute", "relative")}
    effects = {name: t_interval([fmean(units.values()) for units in ratios.values()]) for name, ratios in kinds.items()}
    first = {name: t_interval([units[UNIT] for units in ratios.values()]) for name, ratios in kinds.items()}
    shares = {
        name: t_interval([100 * fmean(r > 0 for r in units.values()) for units in ratios.values()])
        for name, ratios in kinds.items()
    }
    holds = [effect.low > 0 for effect in effects.values()]
    fails = [effect.high < 0 for effect in effects.values()]
    if all(holds):
        verdict = Verdict.reproduced
    elif any(holds):
        verdict = Verdict.partly
    else:
        verdict = Verdict.not_reproduced if all(fails) else Verdict.inconclusive
    found = (
        "Deviation over training of the 15th, 50th and 85th percentiles, log2 of without over with BN, mean over all "
        f"units of the last hidden layer: {judge.in_words(effects['absolute'], '')}, smaller with BN in "
        f"{judge.numbers(shares['absolute'])}% of the units; of unit {UNIT}, {judge.numbers(first['absolute'])}. As a "
        f"share of the distribution's own width: {judge.numbers(effects['relative'])}, smaller in "
        f"{judge.numbers(shares['relative'])}% of the units; of unit {UNIT}, {judge.numbers(first['relative'])}."
    )
    return Finding(BY_ID["I2"], verdict, found, effects["absolute"], "log2 of the drift without over with BN")


# --- sections 3.1 to 3.3 ---


def _exact(records: Records, what: str) -> dict[tuple[str, Any], float]:
    return {(r["quantity"], r["x"]): r["value"] for r in records.select(records.measurements, part=EXACT, what=what)}


def _missing(claim: str) -> Finding:
    return Finding(BY_ID[claim], Verdict.inconclusive, "Nothing was measured.")


def i3(records: Records) -> Finding:
    """The bias, the effective batch, and one pair of parameters a map."""
    tolerance = records.settings["tolerance"]
    bias, shape, batch = (_exact(records, what) for what in ("bias", "channels", "effective batch"))
    if not (bias and shape and batch):
        return _missing("I3")
    cancelled = max(value for value in bias.values())
    effective, expected = batch["effective", None], batch["expected", None]
    sizes = {value for (quantity, _), value in shape.items() if quantity == "size"}
    counted = abs(effective / expected - 1)
    holds = max(cancelled, counted, shape["error", "per channel"]) <= tolerance and len(sizes) == 1
    return judge.exact(
        BY_ID["I3"],
        holds,
        f"In float64 a bias changes output, gradient and trained weights by at most {cancelled:.1e}; the ratio of "
        f"unbiased to biased variance gives m' = {effective:.9g}, where m p q is {expected:g}; gamma, beta and the "
        f"statistics have {sizes.pop():g} numbers each for as many maps, and the output is NumPy's per map to "
        f"{shape['error', 'per channel']:.1e} (tolerance {tolerance:g}).",
    )


def i4(records: Records) -> Finding:
    """The two equations, with eps = 0; and what eps makes of them."""
    tolerance = records.settings["tolerance"]
    ideal = _exact(records, "scale, eps 0")
    if not ideal:
        return _missing("I4")

    def worst(rows: dict[tuple[str, Any], float], quantity: str) -> float:
        return max(value for (name, _), value in rows.items() if name == quantity)

    errors = {name: worst(ideal, name) for name in ("output", "du", "dw_times_a")}
    parts = []
    for eps in records.settings["scale_eps"]:
        if eps > 0 and (rows := _exact(records, f"scale, eps {eps:g}")):
            at = max((x for _, x in rows), key=lambda a: rows["output", a])
            parts.append(f"eps {eps:g} changes the output by {100 * rows['output', at]:.2g}% at a = {at:g}")
    broken = f" With weights of deviation 0.01 and 20 inputs, {'; '.join(parts)}." if parts else ""
    return judge.exact(
        BY_ID["I4"],
        max(errors.values()) <= tolerance,
        f"With eps = 0, in float64, for a from {min(records.settings['scales']):g} to "
        f"{max(records.settings['scales']):g}: relative change of BN((aW)u) {errors['output']:.1e}, of its gradient by "
        f"u {errors['du']:.1e}, of a times that by aW {errors['dw_times_a']:.1e} (tolerance {tolerance:g}).{broken}",
    )


def i5(records: Records) -> Finding:
    """The share of singular values within a factor of two of 1, and whether they are nearer to 1 than without BN."""
    wanted = records.settings["near_percent"]

    def of(quantity: str, variant: str) -> dict[int, float]:
        return records.measured(quantity, part=FIGURE1, variant=variant)

    near = {
        (variant, when): t_interval(list(of(f"normalised_near_{when}", variant).values()))
        for variant in ("bn", "nobn")
        for when in ("start", "end")
    }
    end = near["bn", "end"]
    nearer = t_interval(paired(of("normalised_far_end", "nobn"), of("normalised_far_end", "bn")))
    close, far = end.low >= wanted, end.high < wanted
    if close and nearer.low > 0:
        verdict = Verdict.reproduced
    elif far and nearer.low > 0:
        verdict = Verdict.partly
    elif far and nearer.high < 0:
        verdict = Verdict.not_reproduced
    elif close:
        verdict = Verdict.partly
    else:
        verdict = Verdict.inconclusive
    shares = {key: judge.numbers(value) for key, value in near.items()}
    plain = {v: judge.numbers(t_interval(list(of("plain_near_end", v).values()))) for v in ("bn", "nobn")}
    found = (
        f"Within a factor of two of 1, in the trained network with BN, are {judge.in_words(end, '% of the values')}, "
        f"and {shares['bn', 'start']}% before training (most: {wanted:g}%; of a random matrix with rows of unit length "
        f"{random_share():.1f}%); without BN, its vectors normalised all the same, {shares['nobn', 'end']}% and "
        f"{shares['nobn', 'start']}%. Mean distance abs(log2 s), without less with BN: {judge.numbers(nearer)}. Not "
        f"normalised, from input to input of the sigmoids, {plain['bn']}% with BN and {plain['nobn']}% without."
    )
    return Finding(BY_ID["I5"], verdict, found, end, "% of singular values within a factor of two of 1")


def i7(records: Records) -> Finding:
    """Algorithm 2."""
    tolerance = records.settings["tolerance"]
    values = {quantity: value for (quantity, _), value in _exact(records, "algorithm 2").items()}
    if not values:
        return _missing("I7")
    off = max(values[q] for q in ("mean", "variance", "precise", "affine", "linear", "convolution"))
    return judge.exact(
        BY_ID["I7"],
        max(off, abs(values["biased"] - values["expected"])) <= tolerance,
        f"Over all equally likely mini-batches of 3 from 5 values the cumulative average of m/(m-1) sigma_B^2 is the "
        f"population's variance to {values['variance']:.1e}, and E_B[sigma_B^2] alone is {values['biased']:.6f} of it, "
        f"(m-1)/m. In eval mode the layer is gamma x / sqrt(Var + eps) + (beta - gamma E / sqrt(Var + eps)) to "
        f"{values['affine']:.1e}, and folded into a linear layer or a convolution it is one layer to "
        f"{max(values['linear'], values['convolution']):.1e} (float64, tolerance {tolerance:g}).",
    )


# --- sections 3.4 and 4.2.1 ---


def i6(records: Records) -> Finding:
    """The gap of test and training loss, both in eval mode, without BN less with it."""
    gaps = {v: records.measured("gap", part=DROPOUT, variant=v, amount=0.0) for v in ("nobn", "bn")}
    fits = {v: records.measured("train_loss", part=DROPOUT, variant=v, amount=0.0) for v in ("nobn", "bn")}
    accuracy = {v: records.by_seed("test_accuracy", part=DROPOUT, variant=v, amount=0.0) for v in ("nobn", "bn")}
    fit = {v: judge.numbers(t_interval(list(values.values()))) for v, values in fits.items()}
    gain = t_interval([POINTS * d for d in paired(accuracy["bn"], accuracy["nobn"])])
    found = (
        "Test less training loss (eval mode), without BN less with it: {effect}. The training losses are "
        f"{fit['nobn']} and {fit['bn']}. Test accuracy with BN less without: {judge.in_words(gain, 'points')}."
    )
    return judge.greater(BY_ID["I6"], paired(gaps["nobn"], gaps["bn"]), "of loss", found=found)


def i6_2(records: Records) -> Finding:
    """No dropout is as good as the paper's with BN, where without BN dropout is worth having."""
    margin, amounts = records.settings["negligible_points"], records.settings["dropout_amounts"]
    most = amounts[-1]
    bn, nobn = (t_interval(dropout_effect(records, variant, most)) for variant in ("bn", "nobn"))
    needed = nobn.high < 0  # without BN, accuracy falls where dropout is taken away
    if bn.low > -margin:
        verdict = Verdict.reproduced if needed else Verdict.partly
    else:
        verdict = Verdict.not_reproduced if bn.high < -margin else Verdict.inconclusive
    others = "; ".join(
        f"dropout {amount:g}: {judge.numbers(t_interval(dropout_effect(records, 'bn', amount)))}"
        for amount in amounts[1:-1]
    )
    premise = "" if needed else " Dropout is not shown to help this network without BN, so there is little to replace."
    found = (
        f"No dropout less dropout {most:g} before the last layer: with BN {judge.in_words(bn, 'points')} (nothing is "
        f"lost if above -{margin:g}), without BN {judge.in_words(nobn, 'points')}."
        f"{premise}{f' With BN, no dropout less {others}.' if others else ''}"
    )
    return Finding(BY_ID["I6.2"], verdict, found, bn, f"{TEST}, with BN, no dropout less dropout {most:g}")


def i11(records: Records) -> Finding:
    """Batches drawn anew in each epoch, less batches that stay."""
    bn, nobn = (shuffle_effect(records, variant) for variant in ("bn", "nobn"))
    more = t_interval(paired(bn, nobn))
    found = (
        "Batches drawn anew in each epoch less batches that always hold the same images (in an order that is new): "
        f"with BN {{effect}}, without BN {judge.in_words(t_interval(list(nobn.values())), 'points')}; the difference, "
        f"which is BN's own, is {judge.numbers(more)}."
    )
    margin = records.settings["negligible_points"]
    return judge.greater(BY_ID["I11"], list(bn.values()), TEST, margin=margin, found=found)
