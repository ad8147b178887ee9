"""From the records of `labml` to findings, tables and figures."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean
from typing import Any

from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.cells import equal_everywhere, greater_everywhere
from bnrepro.experiments.judge import equal, exact, greater, in_words, not_testable, numbers
from bnrepro.experiments.labml import pictures
from bnrepro.experiments.labml.claims import CLAIMS
from bnrepro.experiments.labml.toys import gaussian_share
from bnrepro.stats import Interval, paired, t_interval

BY_ID = {claim.id: claim for claim in CLAIMS}
POINTS = "percentage points of test accuracy"
SHARE = "percentage points of inputs"


def analyse(records: Records) -> Analysis:
    """All findings in the order of the claims, with their tables and figures."""
    return Analysis(
        findings=findings(records),
        tables=[accuracies(records), outside_table(records), inference_table(records), cancellation_table(records)],
        pictures=drawn(
            lambda: [
                pictures.outside(records),
                pictures.in_networks(records),
                pictures.sigmoids(records),
                pictures.scales(records),
                pictures.cancellation(records),
                pictures.inference(records),
            ]
        ),
    )


def findings(records: Records) -> list[Finding]:
    """One for each claim, in their order."""
    no_number = f"The source reports no accuracy to hold ours to. Ours, on test data: {supplied(records)}."
    elsewhere = "They are on other pages than this one, which claims nothing of them; not built here."
    return [
        toy(records, "A1", "mean"),
        toy(records, "A1.2", "variance"),
        in_networks(records),
        *sigmoids(records),
        bias(records),
        scale(records),
        *generalisation(records),
        inference(records),
        not_testable(BY_ID["A7"], no_number),
        not_testable(BY_ID["A8"], elsewhere),
        cancellation(records),
    ]


# --- A1: statistics outside the gradient --------------------------------------------------------------------------


def toy(records: Records, claim: str, statistic: str) -> Finding:
    """Growth without end while the loss stands still, detached; neither, attached."""
    tolerance = records.settings["loss_tolerance"]

    def path(quantity: str, seed: int, *, detached: bool) -> list[float]:
        rows = records.select(
            records.measurements, part="toy", statistic=statistic, detached=detached, quantity=quantity, seed=seed
        )
        return [float(row["value"]) for row in rows]

    grows, exponents, ends, changed, moved = True, [], [], 0.0, 0.0
    for seed in range(records.settings["seeds"]):
        free, held = (path("parameter", seed, detached=detached) for detached in (True, False))
        steps = [abs(b) - abs(a) for a, b in pairwise(free)]
        grows = grows and min(steps) > 0
        distance = [abs(value - free[0]) if statistic == "mean" else value**2 - free[0] ** 2 for value in free]
        half = (len(free) - 1) // 2
        power = math.log(distance[-1] / distance[half]) / math.log((len(free) - 1) / half) if grows else math.nan
        exponents.append(power if statistic == "mean" else power / 2)
        ends.append(free[-1])
        moved = max(moved, *(abs(value - held[0]) for value in held))
        for detached in (True, False):
            loss = path("loss", seed, detached=detached)
            changed = max(changed, max(loss) / min(loss) - 1)
    end, exponent = t_interval(ends), t_interval(exponents)
    still = changed <= tolerance and moved <= tolerance
    name = "b" if statistic == "mean" else "the factor on the inputs, from 1,"
    total = records.settings["toy"]["steps"]
    return Finding(
        BY_ID[claim],
        Verdict.reproduced if grows and still else Verdict.not_reproduced,
        f"Detached, {name} {'grows in every stretch' if grows else 'does not grow in every stretch'} and is at "
        f"{in_words(end, '')} after {total:,} steps, with the power {numbers(exponent)} of the steps; attached, it "
        f"moves by at most {moved:.1e}. The loss changes by a relative {changed:.1e} (tolerance {tolerance:g}).",
        end,
        "parameter at the end",
    )


def in_networks(records: Records) -> Finding:
    """Test accuracy of BN above that with detached statistics, by more than is negligible."""
    attached = _points(records, variant="bn", part="outside", keep_bias=True)
    lost = {
        variant: paired(attached, _points(records, variant=variant, part="outside", keep_bias=True))
        for variant in ("detachedmean", "detached")
    }
    margin = records.settings["margin_points"]
    lead = "BN minus BN with mean, and with mean and variance, outside the gradient"
    finding = greater_everywhere(BY_ID["A1.3"], lost, margin, POINTS, lead)
    biases = ", ".join(
        f"{v} {fmean(records.measured('bias_norm', part='outside', variant=v, keep_bias=True).values()):.2g}"
        for v in ("bn", "detachedmean", "detached")
    )
    diverged = [r["variant"] for r in records.runs if r["part"] == "outside" and r["status"] == "diverged"]
    own = ", ".join(
        f"{v} {fmean(records.measured('batch_accuracy', part='outside', variant=v, keep_bias=True).values()):.1f}%"
        for v in ("bn", "detachedmean", "detached")
    )
    more = f" By each test batch's own statistics the accuracies are {own}. Norm of the cancelled biases: {biases}." + (
        f" Diverged: {diverged}." if diverged else ""
    )
    return Finding(finding.claim, finding.verdict, finding.found + more, finding.effect, finding.unit)


# --- A2 to A4 -----------------------------------------------------------------------------------------------------


def sigmoids(records: Records) -> list[Finding]:
    """The share of inputs in [-1, 1] before training, and how much smaller it is after."""
    start, end = (_over_layers(records, f"input_{when}") for when in ("start", "end"))
    normalised = _over_layers(records, "normalised_end")
    most = [share - 50 for share in start.values()]
    linear = "at ±1 the sigmoid is 8% nearer to 1/2 than its tangent"
    finding = greater(BY_ID["A2"], most, SHARE, found="Above one half by {effect}, at the start.")
    share = t_interval(list(start.values()))
    found = (
        f"{finding.found} The share is {in_words(share, '%')}; of a normal distribution, "
        f"{100 * gaussian_share():.1f}%; {linear}."
    )
    ends = t_interval(list(end.values()))
    other = t_interval(list(normalised.values()))
    less = greater(
        BY_ID["A2.2"],
        paired(start, end),
        SHARE,
        found="Training lowers the share of the sigmoids' inputs in [-1, 1] by {effect}, "
        f"to {numbers(ends)}% ({numbers(other)}% before gamma and beta).",
    )
    return [Finding(finding.claim, finding.verdict, found, share, "% of inputs"), less]


def _over_layers(records: Records, quantity: str) -> dict[int, float]:
    """The mean over the layers, by seed."""
    by_seed: dict[int, list[float]] = {}
    for row in records.select(records.measurements, part="sigmoid", quantity=quantity):
        by_seed.setdefault(int(row["seed"]), []).append(float(row["value"]))
    return {seed: fmean(values) for seed, values in by_seed.items()}


def bias(records: Records) -> Finding:
    """Cancelled exactly in float64, and of no use to a network."""
    tolerance, margin = records.settings["tolerance"], records.settings["margin_points"]
    worst = {q: max(records.measured(q, part="bias").values()) for q in ("output", "gradient", "trained")}
    with_it, without = (_points(records, part="outside", variant="bn", keep_bias=kept) for kept in (True, False))
    same = equal(BY_ID["A3"], paired(with_it, without), margin, POINTS)
    cancelled = max(worst.values()) <= tolerance
    verdict = same.verdict
    if not cancelled:
        verdict = Verdict.not_reproduced
    elif verdict is Verdict.not_reproduced:
        verdict = Verdict.partly
    sizes = [
        next(iter(records.select(records.runs, part="outside", variant="bn", keep_bias=kept)), {}).get("parameters")
        for kept in (True, False)
    ]
    return Finding(
        same.claim,
        verdict,
        f"In float64 the bias changes the output by a relative {worst['output']:.1e} and the weights after training "
        f"by {worst['trained']:.1e}, and its gradient is {worst['gradient']:.1e} (tolerance {tolerance:g}). In the "
        f"network ({sizes[0]} parameters with biases, {sizes[1]} without) it makes {same.found}.",
        same.effect,
        same.unit,
    )


def scale(records: Records) -> Finding:
    """What of the back-propagation is invariant, and where eps breaks it."""
    tolerance = records.settings["tolerance"]

    def change(quantity: str, eps: float, a: float | None = None) -> float:
        series = records.series(quantity, part="scale", eps=eps)
        return max(max(values) for x, values in series.items() if a is None or x == a)

    by_u, by_w, times_a = (change(quantity, 0.0) for quantity in ("du", "dw", "dw_times_a"))
    changes = {eps: [100 * change("output", eps, a) for a in (10.0, 0.1)] for eps in records.settings["scale_eps"]}
    broken = "; ".join(
        f"eps {eps:g}: {up:.2g}% at a = 10 and {down:.2g}% at a = 0.1" for eps, (up, down) in changes.items() if eps > 0
    )
    if by_u > tolerance:
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.reproduced if by_w <= tolerance else Verdict.partly
    inverse = "1 / a times that by W" if times_a <= tolerance else "not 1 / a times that by W either"
    return Finding(
        BY_ID["A4"],
        verdict,
        f"With eps = 0 the gradient by the inputs is the same for W and a W (largest relative change {by_u:.1e}); that "
        f"by the weights is not (up to {by_w:.3g}), but {inverse} ({times_a:.1e}). With eps, weights of deviation 0.01 "
        f"and 20 inputs, already the output changes: {broken}.",
    )


# --- A5 to A7: networks -------------------------------------------------------------------------------------------


def _points(records: Records, **wanted: Any) -> dict[int, float]:
    """Test accuracy in percent of the completed runs, by seed."""
    return {seed: 100 * value for seed, value in records.by_seed("test_accuracy", **wanted).items()}


def _gap(records: Records, **wanted: Any) -> dict[int, float]:
    """Training minus test accuracy in percentage points, by seed."""
    train, test = (records.by_seed(f"{split}_accuracy", part="networks", **wanted) for split in ("train", "test"))
    return {seed: 100 * (train[seed] - test[seed]) for seed in train.keys() & test.keys()}


def generalisation(records: Records) -> list[Finding]:
    """BN against no norm: test accuracy, and how far training accuracy is above it."""
    networks = list(records.settings["networks"])
    better = {
        n: paired(*(_points(records, part="networks", network=n, variant=v) for v in ("bn", "nobn"))) for n in networks
    }
    nearer = {n: paired(*(_gap(records, network=n, variant=v) for v in ("nobn", "bn"))) for n in networks}
    return [
        greater_everywhere(BY_ID["A5"], better, 0.0, POINTS, "BN minus no BN"),
        greater_everywhere(
            BY_ID["A5.2"],
            nearer,
            0.0,
            "percentage points",
            "Training (last epoch, training mode) minus test accuracy, no BN's less BN's",
        ),
    ]


def inference(records: Records) -> Finding:
    """Moving average against the whole training set's statistics; parts of it are in the table."""

    def by(kind: str, network: str) -> dict[int, float]:
        rows = records.select(records.measurements, part="inference", network=network, quantity="accuracy", x=kind)
        return {int(row["seed"]): float(row["value"]) for row in rows}

    cells = {n: paired(by("ema", n), by("population", n)) for n in records.settings["networks"]}
    margin = records.settings["inference_margin_points"]
    return equal_everywhere(BY_ID["A6"], cells, margin, POINTS, "Moving average minus statistics of the training set")


def supplied(records: Records) -> str:
    """The accuracies that the source does not have."""
    said = []
    for network, asked in records.settings["networks"].items():
        values = list(_points(records, part="networks", network=network, variant="bn").values())
        said.append(f"{network} after {asked['epochs']} epochs with BN {in_words(t_interval(values), '%')}")
    return "; ".join(said)


# --- A9 -----------------------------------------------------------------------------------------------------------

ONE_PASS = "E[x²] - E[x]²"


def cancellation(records: Records) -> Finding:
    """Whether the one-pass variance in float32 is the variance wherever the two-pass one is."""
    tolerance = records.settings["variance_tolerance"]
    cases = {}
    for mean, std in records.settings["cancellation"]:
        cases[f"mean {mean:g}, deviation {std:g}"] = {
            (quantity, name): fmean(records.series(quantity, part="cancellation", mean=mean, std=std)[name])
            for quantity in ("error", "variance", "nan")
            for name in (ONE_PASS, "ours")
        }
    wrong = {
        case: values
        for case, values in cases.items()
        if values["error", ONE_PASS] > tolerance or values["nan", ONE_PASS] > 0
    }
    said = "; ".join(
        f"{case}: median {values['variance', ONE_PASS]:.3g}, {values['nan', ONE_PASS]:.2g}% NaN"
        for case, values in wrong.items()
    )
    ours = max(values["error", "ours"] for values in cases.values())
    found = f"It is off by more than {tolerance:.0%}, or gives NaN, in {len(wrong)} of {len(cases)} cases"
    return exact(
        BY_ID["A9"],
        not wrong,
        f"{found}{' (' + said + ')' if wrong else ''}. In two passes the largest relative error is {ours:.1e}.",
    )


# --- tables -------------------------------------------------------------------------------------------------------


def accuracies(records: Records) -> Table:
    """Networks with and without BN."""
    rows = []
    for network, asked in records.settings["networks"].items():
        for variant in ("nobn", "bn"):
            who = {"network": network, "variant": variant}
            runs = records.select(records.runs, part="networks", **who)
            rows.append(
                {
                    **who,
                    "epochs": asked["epochs"],
                    "test accuracy, %": _interval(_points(records, part="networks", **who)),
                    "test loss": _interval(records.by_seed("test_loss", part="networks", **who)),
                    "training minus test accuracy, points": _interval(_gap(records, **who)),
                    "parameters": runs[0]["parameters"] if runs else None,
                    "diverged": sum(run["status"] == "diverged" for run in runs),
                }
            )
    n = records.settings["seeds"]
    return Table("accuracies", f"Accuracies that the source does not report; 95% intervals over n = {n} seeds.", rows)


def outside_table(records: Records) -> Table:
    """Statistics in and outside the gradient."""
    rows = []
    for variant, kept in (("bn", False), ("bn", True), ("detachedmean", True), ("detached", True)):
        who: dict[str, Any] = {"part": "outside", "variant": variant, "keep_bias": kept}
        rows.append(
            {
                "variant": variant,
                "biases before the norms": "yes" if kept else "no",
                "test accuracy, %": _interval(_points(records, **who)),
                "the same, batch statistics, %": _interval(records.measured("batch_accuracy", **who)),
                "training loss": _interval(records.by_seed("train_loss", **who)),
                "norm of the biases": _interval(records.measured("bias_norm", **who)),
                "norm of the weights": _interval(records.measured("weight_norm", **who)),
                "diverged": sum(run["status"] == "diverged" for run in records.select(records.runs, **who)),
            }
        )
    n = records.settings["seeds"]
    title = f"The MNIST network with statistics in the gradient and outside it; 95% intervals over n = {n} seeds."
    return Table("outside", title, rows)


def inference_table(records: Records) -> Table:
    """Test accuracy by what normalises at inference."""
    rows = []
    for network in records.settings["networks"]:
        who = {"part": "inference", "network": network}
        for kind, values in records.series("accuracy", **who).items():
            loss = t_interval(records.series("loss", **who)[kind])
            rows.append({"network": network, "statistics": kind, "accuracy, %": t_interval(values), "loss": loss})
        for count, values in records.series("part_accuracy", **who).items():
            name = f"population of {count:g} batch{'es' if count > 1 else ''}"
            rows.append({"network": network, "statistics": name, "accuracy, %": t_interval(values), "loss": None})
    n = records.settings["seeds"]
    title = f"Test accuracy by the statistics that normalise; 95% intervals over n = {n} seeds."
    return Table("inference", title, rows)


def cancellation_table(records: Records) -> Table:
    """The variance in float32, by implementation."""
    rows = []
    for mean, std in records.settings["cancellation"]:
        who = {"part": "cancellation", "mean": mean, "std": std}
        for name, errors in records.series("error", **who).items():
            rows.append(
                {
                    "mean": mean,
                    "deviation": std,
                    "computed by": name,
                    "median variance": t_interval(records.series("variance", **who)[name]),
                    "median relative error": t_interval(errors),
                    "NaN, % of channels": t_interval(records.series("nan", **who)[name]),
                }
            )
    n, draws = records.settings["seeds"], records.settings["cancellation_draws"]
    title = f"Variance of 4,096 float32 values; 95% intervals over n = {n} times {draws} draws."
    return Table("cancellation", title, rows)


def _interval(values: dict[int, float]) -> Interval:
    return t_interval(list(values.values()))
