"""From the records of S1 to S9 to findings and tables."""

from __future__ import annotations

import math
from typing import Any

from bnrepro.experiments import judge
from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.cells import greater_everywhere
from bnrepro.experiments.santurkar2018.claims import CLAIMS
from bnrepro.experiments.santurkar2018.drawing import pictures
from bnrepro.experiments.santurkar2018.grid import CURVES, DISTRIBUTIONS, LANDSCAPE, LINEAR, LP, VARIANTS
from bnrepro.experiments.santurkar2018.traces import (
    CHANCE,
    RANGE,
    Traces,
    accuracies,
    last_loss,
    log_ratios,
    means,
    traces,
)
from bnrepro.stats import Interval, paired, t_interval

BY_ID = {claim.id: claim for claim in CLAIMS}
POINTS = "percentage points of test accuracy"
DECADES = "decades"
MEASURES = {RANGE: "range of the loss", "change_high": "change of the gradient", "beta": "effective beta"}


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    found = traces(records)
    return Analysis(judged(records, found), tables(records, found), drawn(lambda: pictures(records, found)))


def judged(records: Records, found: Traces) -> list[Finding]:
    """A finding for each claim, in their order."""
    return [
        *curves(records),
        stability(records, found),
        *noise(records, found),
        *covariate_shift(records, found),
        linear_shift(records, found),
        *landscape(records, found),
        norms(records),
        linear_l1(records, found),
        linear_loss(records, found),
        linear_landscape(records, found),
    ]


def first_rate(records: Records) -> float:
    """The learning rate of everything but the curves at the second one."""
    return float(records.settings["rates"][0])


# --- S1 to S3: curves, distributions, noise ---


def curves(records: Records) -> list[Finding]:
    """S1, S1.2: test and training accuracy with BN less without, at each rate."""
    made = []
    for claim, column, unit, lead in (
        ("S1", "test_accuracy", POINTS, "BN less no BN at the end of training"),
        ("S1.2", "train_accuracy", "percentage points of training accuracy", "BN less no BN over the last batches"),
    ):
        cells, ends = {}, []
        for rate in records.settings["rates"]:
            with_bn, without = (accuracies(records, v, rate, column) for v in ("bn", "nobn"))
            if differences := paired(with_bn, without):
                cells[f"learning rate {rate:g}"] = differences
                ends.append(f"{rate:g}: {_mean(with_bn):.1f}% and {_mean(without):.1f}%")
        made.append(_more(greater_everywhere(BY_ID[claim], cells, 0.0, unit, lead), _ends(ends) + _diverged(records)))
    return made


def _ends(ends: list[str]) -> str:
    return f" With BN and without, at {'; at '.join(ends)}." if ends else ""


def _diverged(records: Records) -> str:
    runs = records.select(records.runs, part=CURVES, status="diverged")
    if not runs:
        return ""
    names = ", ".join(sorted({f"{run['variant']} at {run['rate']:g}" for run in runs}))
    return f" {len(runs)} runs diverged and count as chance, {CHANCE:g}% ({names})."


def stability(records: Records, found: Traces) -> Finding:
    """S2: the distributions move as far with BN as without, within a factor."""
    factor = float(records.settings["marginal_factor"])
    bn, nobn = (means(found.of(DISTRIBUTIONS, variant, "shift")) for variant in ("bn", "nobn"))
    ratios = [math.log10(bn[seed] / nobn[seed]) for seed in sorted(bn.keys() & nobn.keys())]
    finding = judge.equal(BY_ID["S2"], ratios, round(math.log10(factor), 3), DECADES)
    every = records.settings["distributions"]["every"]
    return _more(
        finding,
        f" That is log10 of how far the distribution of an activation moves in {every} steps with BN, in the mean "
        f"{_mean(bn):.3g} of its deviations, over {_mean(nobn):.3g} without; marginal would be a factor below "
        f"{factor:g}.",
    )


def noise(records: Records, found: Traces) -> list[Finding]:
    """S3: nearly BN; S3.2: better than none; S3.3: alone it prevents training; S3.4: it unsettles distributions."""
    rate, margin = first_rate(records), float(records.settings["negligible_points"])
    test = {variant: accuracies(records, variant, rate, "test_accuracy") for variant in VARIANTS}
    train = {variant: accuracies(records, variant, rate, "train_accuracy") for variant in VARIANTS}
    shifts = {v: means(found.of(DISTRIBUTIONS, v, "shift")) for v in ("noisybn", "nobn")}
    both = sorted(shifts["noisybn"].keys() & shifts["nobn"].keys())
    near = float(records.settings["chance_points"])
    like = judge.equal(BY_ID["S3"], paired(test["noisybn"], test["bn"]), margin, POINTS, "Noisy BN less BN: {effect}.")
    gain = paired(test["noisybn"], test["nobn"])
    better = judge.greater(BY_ID["S3.2"], gain, POINTS, margin=margin, found="Noisy BN less no BN: {effect}.")
    alone = _prevented(
        judge.equal(
            BY_ID["S3.3"],
            [value - CHANCE for value in train["noise"].values()],
            near,
            "percentage points of training accuracy",
            "With the noise and no BN, training accuracy over the last batches less that of chance: {effect}.",
        ),
        train["nobn"],
        near,
    )
    unsettled = judge.greater(
        BY_ID["S3.4"],
        [math.log10(shifts["noisybn"][seed] / shifts["nobn"][seed]) for seed in both],
        DECADES,
        found="log10 of how far a distribution moves with noisy BN over how far without BN: {effect}.",
    )
    ends, before = ({v: f"{_mean(values):.1f}%" for v, values in each.items()} for each in (test, train))
    more = f" Test accuracies: noisy BN {ends['noisybn']}, BN {ends['bn']}, no BN {ends['nobn']}."
    more += (
        f" In training, over the last batches and with the noise: {before['noisybn']}, {before['bn']}, "
        f"{before['nobn']}. At test the noise is off, and the running statistics behind it are still those with it."
    )
    return [
        _more(like, more),
        better,
        _more(alone, f" Its test accuracy, without the noise, is {ends['noise']}; that of no BN {ends['nobn']}."),
        unsettled,
    ]


def _prevented(finding: Finding, undisturbed: dict[int, float], near: float) -> Finding:
    """S3.3, which is open where the network without noise has hardly learned anything either."""
    learned = t_interval([value - CHANCE for value in undisturbed.values()])
    if finding.verdict is not Verdict.reproduced or learned.low > near:
        return finding
    more = f" Without the noise it is {judge.in_words(learned, 'points')}: there was hardly any training to prevent."
    return _more(Finding(finding.claim, Verdict.inconclusive, finding.found, finding.effect, finding.unit), more)


# --- S4: internal covariate shift ---


def covariate_shift(records: Records, found: Traces) -> list[Finding]:
    """S4, S4.2: BN's is not smaller than that without, by more than is similar."""
    rate, factor = first_rate(records), float(records.settings["similar_factor"])
    near = float(records.settings["similar_cosine"])
    worse, apart = {}, {}
    for layer in records.settings["landscape"]["layers"]:
        bn, nobn = (found.of(LANDSCAPE, v, f"difference_{layer}", rate) for v in ("bn", "nobn"))
        worse[f"layer {layer}"] = list(means(log_ratios(bn, nobn)).values())
        bn, nobn = (found.of(LANDSCAPE, v, f"cosine_{layer}", rate) for v in ("bn", "nobn"))
        apart[f"layer {layer}"] = paired(means(nobn), means(bn))
    return [
        greater_everywhere(
            BY_ID["S4"],
            _filled(worse),
            -round(math.log10(factor), 3),
            DECADES,
            "log10 of the norm with BN over that without",
        ),
        greater_everywhere(BY_ID["S4.2"], _filled(apart), -near, "of cosine", "Cosine without BN less that with BN"),
    ]


def linear_shift(records: Records, found: Traces) -> Finding:
    """S4.3: mean cosines near 1 without BN and near 0 with it, at all rates and layers.

    A cell holds where its 95% interval lies inside the range, and fails where it lies outside.
    """
    near = float(records.settings["cosine_near"])
    holds, fails, said, shown = [], [], [], None
    for rate in rates(found):
        for layer in records.settings["deep_linear"]["layers"]:
            words = []
            for variant, low, high in (("nobn", 1 - near, 1 + near), ("bn", -near, near)):
                effect = t_interval(list(means(found.of(LINEAR, variant, f"cosine_{layer}", rate)).values()))
                holds.append(low < effect.low and effect.high < high)
                fails.append(effect.high < low or effect.low > high)
                words.append(judge.numbers(effect))
                shown = effect
            said.append(f"rate {rate:g}, layer {layer}: {words[0]} without and {words[1]} with BN")
    if not holds:
        return _nothing("S4.3")
    some = Verdict.partly if any(holds) else Verdict.not_reproduced if all(fails) else Verdict.inconclusive
    return Finding(
        BY_ID["S4.3"],
        Verdict.reproduced if all(holds) else some,
        f"Mean cosine over the steps (mean over seeds, 95% interval; without BN it is to be above {1 - near:g}, with "
        f"BN within ±{near:g}; {sum(holds)} of {len(holds)} are): {'; '.join(said)}.",
        shown,
        "cosine with BN, last layer and rate",
    )


def rates(found: Traces) -> list[float]:
    """The learning rates of the deep linear networks, in their order."""
    return list(dict.fromkeys(key[2] for key in found.values if key[0] == LINEAR and key[2] is not None))


# --- S5 to S7: the landscape ---


def landscape(records: Records, found: Traces) -> list[Finding]:
    """S5, S6, S7: log10 of each measure without BN over that with it, in the mean over the steps; S6.2: its largest."""
    rate = first_rate(records)
    margin = math.log10(float(records.settings["negligible_factor"]))
    made = {}
    for claim, quantity in (("S5", RANGE), ("S6", "change_high"), ("S7", "beta")):
        nobn, bn = (found.of(LANDSCAPE, v, quantity, rate) for v in ("nobn", "bn"))
        ratios = log_ratios(nobn, bn)
        early = means(log_ratios(nobn, bn, records.settings["early"]))
        finding = judge.greater(
            BY_ID[claim],
            list(means(ratios).values()),
            DECADES,
            margin=margin,
            found=f"log10 of the {MEASURES[quantity]} without BN over that with BN, mean over the steps: {{effect}}.",
        )
        more = f" Over the first {records.settings['early']:.0%} of the steps: {judge.numbers(_interval(early))}."
        made[claim] = _more(finding, more + _left_out(nobn, bn, ratios))
    nobn, bn = (found.of(LANDSCAPE, v, "change_high", rate) for v in ("nobn", "bn"))
    early_ratios = log_ratios(nobn, bn, records.settings["early"])
    made["S6.2"] = judge.greater(
        BY_ID["S6.2"],
        [max(trace.values()) for trace in early_ratios.values()],
        DECADES,
        at_least=float(records.settings["close_to_two"]),
        found="The largest log10 of the change of the gradient without BN over that with BN, in the first "
        f"{records.settings['early']:.0%} of the steps: {{effect}}; close to two orders of magnitude would be above "
        f"{records.settings['close_to_two']:g}.",
    )
    return [made[claim] for claim in ("S5", "S6", "S6.2", "S7")]


def _left_out(nobn: dict[int, Any], bn: dict[int, Any], ratios: dict[int, Any]) -> str:
    both = sum(len(nobn[seed].keys() & bn[seed].keys()) for seed in nobn.keys() & bn.keys())
    lost = both - sum(map(len, ratios.values()))
    return f" At {lost} of {both} steps one of them was not finite or zero; they are left out." if lost else ""


# --- S8, S9: other norms, deep linear networks ---


def norms(records: Records) -> Finding:
    """S8: no norm is worse than BN by more than is negligible."""
    rate, margin = first_rate(records), float(records.settings["negligible_points"])
    bn = accuracies(records, "bn", rate, "test_accuracy")
    cells = {v: paired(accuracies(records, v, rate, "test_accuracy"), bn) for v in LP}
    finding = greater_everywhere(BY_ID["S8"], _filled(cells), -margin, POINTS, "Each norm less BN")
    nobn = accuracies(records, "nobn", rate, "test_accuracy")
    return _more(finding, f" Test accuracy of BN {_mean(bn):.1f}%, of no BN {_mean(nobn):.1f}%.")


def linear_l1(records: Records, found: Traces) -> Finding:
    """S8.2: log10 of BN's loss over that of the l1 norm, at the last step that both have."""
    rate = next((r for r in rates(found) if found.of(LINEAR, "l1norm", "loss", r)), None)
    if rate is None:
        return _nothing("S8.2")
    ratios, step, _ = _losses(found, "bn", "l1norm", rate)
    return judge.greater(
        BY_ID["S8.2"],
        ratios,
        DECADES,
        found=f"log10 of the loss with BN over that with the l1 norm, rate {rate:g}, after {step:,} steps: {{effect}}.",
    )


def linear_loss(records: Records, found: Traces) -> Finding:
    """S9: log10 of the loss without BN over that with it, at the end."""
    cells, ends = {}, []
    for rate in rates(found):
        ratios, step, (top, bottom) = _losses(found, "nobn", "bn", rate)
        cells[f"learning rate {rate:g}, {step:,} steps"] = ratios
        ends.append(f"{rate:g}: {bottom:.3g} and {top:.3g}")
    lead = "log10 of the loss without BN over that with BN"
    more = f" Mean losses with BN and without, at {'; at '.join(ends)}." if ends else ""
    return _more(greater_everywhere(BY_ID["S9"], _filled(cells), 0.0, DECADES, lead), more)


def _losses(found: Traces, top: str, bottom: str, rate: float) -> tuple[list[float], int, tuple[float, float]]:
    """log10 of the ratio of two losses over seeds at the last step that both variants have; step; mean losses."""
    steps = [max((x for t in found.of(LINEAR, v, "loss", rate).values() for x in t), default=0) for v in (top, bottom)]
    a, b = (last_loss(found, LINEAR, v, rate, min(steps)) for v in (top, bottom))
    ratios = [math.log10(a[seed] / b[seed]) for seed in sorted(a.keys() & b.keys())]
    return ratios, min(steps), (_mean(a), _mean(b))


def linear_landscape(records: Records, found: Traces) -> Finding:
    """S9.2: the three measures at each rate."""
    cells = {}
    for rate in rates(found):
        for quantity, name in MEASURES.items():
            nobn, bn = (found.of(LINEAR, v, quantity, rate) for v in ("nobn", "bn"))
            cells[f"{name}, rate {rate:g}"] = list(means(log_ratios(nobn, bn)).values())
    lead = "log10 of the measure without BN over that with BN, mean over the steps"
    return greater_everywhere(BY_ID["S9.2"], _filled(cells), 0.0, DECADES, lead)


# --- helpers ---


def _filled(cells: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in cells.items() if values}


def _more(finding: Finding, more: str) -> Finding:
    return Finding(finding.claim, finding.verdict, finding.found + more, finding.effect, finding.unit)


def _nothing(claim: str) -> Finding:
    return Finding(BY_ID[claim], Verdict.inconclusive, "Nothing was measured.")


def _interval(by_seed: dict[int, float]) -> Interval:
    return t_interval(list(by_seed.values()))


def _mean(by_seed: dict[int, float]) -> float:
    return _interval(by_seed).mean


# --- tables ---


def tables(records: Records, found: Traces) -> list[Table]:
    """Accuracies of all runs; all measures with BN and without, VGG and deep linear networks."""
    rows = []
    for variant, rate in dict.fromkeys((r["variant"], r["rate"]) for r in records.select(records.runs, part=CURVES)):
        row: dict[str, Any] = {"norm": variant, "learning rate": rate}
        for column in ("train_accuracy", "val_accuracy", "test_accuracy"):
            row[f"{column.replace('_', ' ')}, %"] = _interval(accuracies(records, variant, rate, column))
        runs = records.select(records.runs, part=CURVES, variant=variant, rate=rate)
        rows.append({**row, "diverged": sum(run["status"] == "diverged" for run in runs)})
    made = [Table("accuracies", "Accuracies at the end, mean over seeds and 95% interval", rows)]
    layers = {LANDSCAPE: records.settings["landscape"]["layers"], LINEAR: records.settings["deep_linear"]["layers"]}
    compared = []
    for part, rate in [(LANDSCAPE, first_rate(records)), *((LINEAR, rate) for rate in rates(found))]:
        quantities = {"loss": "loss", **MEASURES, "gradient": "norm of the gradient"}
        quantities |= {f"difference_{i}": f"gradient difference, layer {i}" for i in layers[part]}
        for quantity, name in quantities.items():
            nobn, bn = (found.of(part, v, quantity, rate) for v in ("nobn", "bn"))
            who = {"network": "VGG" if part == LANDSCAPE else "deep linear", "learning rate": rate, "measure": name}
            compared.append({**who, "log10 of no BN over BN": _interval(means(log_ratios(nobn, bn)))})
    title = "Measures without BN over those with BN: log10 in the mean over the steps; mean over seeds, 95% interval"
    return [*made, Table("measures", title, compared)]
