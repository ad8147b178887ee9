"""From records to verdicts: one function for each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from bnrepro.experiments import judge
from bnrepro.experiments.base import Claim, Finding, Records, Verdict
from bnrepro.experiments.conv_batchnorm import horizon
from bnrepro.experiments.conv_batchnorm.arms import CELLS
from bnrepro.experiments.conv_batchnorm.claims import CLAIMS
from bnrepro.experiments.conv_batchnorm.family import POINTS, across, datasets, name_of, points
from bnrepro.stats import paired, t_interval

TOLERANCE = 1e-10  # of identities in float64
EXACT = {name: name for name in ("L1", "L2", "L3", "L5", "L9", "L-one")} | {"L8a": "L8", "L8b": "L8"}
"""Claims that stand on an exact check, and its name."""
SAME = 1e-5  # relative error in float32 that is rounding


def findings(records: Records) -> list[Finding]:
    """One for each claim, in their order."""
    judged = {
        "L1": _parameters,
        "L1b": _constrained,
        "L2": _statistics,
        "L3": _gradients,
        "L4a": _collapsed,
        "L4b": _convolutional,
        "L5": _any_size,
        "L6a": horizon.below_threshold,
        "L6b": horizon.keeps_active,
        "L6c": lambda r, c: horizon.light(r, c, "static"),
        "L6d": lambda r, c: horizon.light(r, c, "frames"),
        "L6e": lambda r, c: horizon.other_light(r, c, "convbn"),
        "L6f": lambda r, c: horizon.other_light(r, c, "adaptive"),
        "L7": horizon.adapts,
        "L8a": _same_in_test,
        "L8b": _window,
        "L9": _unbiased,
        "L-gap": _gap,
        "L-eps": _eps,
        "L-batch": _small_batches,
        "L-one": _one_image,
    }
    missing = {name for name, check in EXACT.items() if not records.select(records.measurements, claim=check)}
    return [
        Finding(claim, Verdict.inconclusive, "Not measured.") if name in missing else judged[name](records, claim)
        for name, claim in CLAIMS.items()
    ]


def _exact(records: Records, claim: str, quantity: str, x: object = None) -> float:
    rows = records.select(records.measurements, part="exact", claim=claim, quantity=quantity, x=x)
    return float(rows[0]["value"]) if rows else math.nan  # nan holds for nothing


# --- the layer ---


def _parameters(records: Records, claim: Claim) -> Finding:
    number = {
        (quantity, variant): _exact(records, "L1", quantity, variant)
        for quantity in ("parameters", "buffers")
        for variant in CELLS
    }
    same = number["parameters", "convbn"] == number["parameters", "bn"]
    by = "; ".join(f"{v} {number['parameters', v]:,.0f} and {number['buffers', v]:,.0f}" for v in CELLS)
    return judge.exact(
        claim,
        same,
        f"Parameters and numbers in running statistics of a 6 x 24 x 24 map: {by}. What local statistics save in "
        "parameters they take in buffers, which pin the size of the map.",
    )


def _constrained(records: Records, claim: Claim) -> Finding:
    def accuracy(dataset: str, variant: str) -> dict[int, float]:
        return records.by_seed("test_accuracy", part="table", dataset=dataset, variant=variant)

    def overfit(dataset: str, variant: str) -> dict[int, float]:
        about = {"part": "table", "dataset": dataset, "variant": variant}
        seen = records.measured("accuracy", x="training images", **about)
        test = records.measured("accuracy", x="running", **about)
        return {seed: seen[seed] - test[seed] for seed in seen.keys() & test.keys()}

    sets = datasets(records, "table")
    gains = {name_of(d): points(paired(accuracy(d, "convbn"), accuracy(d, "peractivationbn"))) for d in sets}
    more = {d: t_interval(points(paired(overfit(d, "peractivationbn"), overfit(d, "convbn")))) for d in sets}
    gap = "; ".join(f"{name_of(d)}: {judge.numbers(interval)}" for d, interval in more.items())
    text = (
        "Test accuracy with gamma and beta per channel less that with gamma and beta per location, statistics local in "
        f"both: {{effects}}. With them per location, training less test accuracy is larger by {gap} points."
    )
    return across(claim, gains, POINTS, text, margin=100 * records.settings["margins"]["accuracy"])


def _statistics(records: Records, claim: Claim) -> Finding:
    where = ("training", "eval", "running mean", "running variance", "one location")
    errors = {x: _exact(records, "L2", "error", x) for x in where}
    return judge.exact(
        claim,
        all(error < TOLERANCE for error in errors.values()),
        f"Largest difference to torch's BatchNorm1d over all C x H x W features, then gamma and beta per channel: "
        f"{max(errors.values()):.1g} in float64 (outputs in training and eval, running statistics; with one location "
        f"it is BatchNorm2d). Tolerance {TOLERANCE:g}.",
    )


def _gradients(records: Records, claim: Claim) -> Finding:
    formula = _exact(records, "L3", "error", "closed formula")
    tied = _exact(records, "L3", "error", "per-activation BN, summed over locations")
    passes = all(_exact(records, "L3", "passes", check) == 1 for check in ("gradcheck", "gradgradcheck"))
    return judge.exact(
        claim,
        formula < TOLERANCE and tied < TOLERANCE and passes,
        f"Gradients differ from the closed formulas by {formula:.1g}, and from per-activation BN's summed over "
        f"locations by {tied:.1g}, in float64 (tolerance {TOLERANCE:g}); finite differences of first and second "
        f"order {'agree' if passes else 'do not agree'}.",
    )


# --- the table ---


def _shift(records: Records, variant: str, mode: str) -> dict[str, list[float]]:
    return {
        name_of(d): list(records.measured("shift error", part="table", dataset=d, variant=variant, x=mode).values())
        for d in datasets(records, "table")
    }


def _means(errors: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{fmean(values):.2g} ({name})" for name, values in errors.items() if values)


def _collapsed(records: Records, claim: Claim) -> Finding:
    channel = _means(_shift(records, "bn", "eval"))
    training = _means(_shift(records, "peractivationbn", "training"))
    text = (
        "Relative error of the first norm's output when images move by a pixel, per-activation BN at inference: "
        f"{{effects}}. Means: channel-wise BN {channel}; per-activation BN with the statistics of the moved batch, "
        f"where only its parameters differ by location: {training}."
    )
    least = records.settings["margins"]["shift"]
    return across(claim, _shift(records, "peractivationbn", "eval"), "relative error", text, at_least=least)


def _convolutional(records: Records, claim: Claim) -> Finding:
    least = records.settings["margins"]["shift"]
    text = (
        "Relative error of the local-gain layer's output when images move by a pixel, at inference, where its running "
        f"statistics are per location: {{effects}}. Means for per-activation BN: "
        f"{_means(_shift(records, 'peractivationbn', 'eval'))}; in training, where the local-gain layer's statistics "
        f"move with the batch: {_means(_shift(records, 'convbn', 'training'))}."
    )
    errors = across(claim, _shift(records, "convbn", "eval"), "relative error", text, at_least=least)
    training = [error for values in _shift(records, "convbn", "training").values() for error in values]
    moves = bool(training) and max(training) < SAME
    if errors.verdict is Verdict.reproduced:  # that it is not equivariant at inference
        return replace(errors, verdict=Verdict.partly if moves else Verdict.not_reproduced)
    if errors.verdict is Verdict.not_reproduced:
        return replace(errors, verdict=Verdict.reproduced if moves else Verdict.partly)
    return errors


def _any_size(records: Records, claim: Claim) -> Finding:
    takes = {v: _exact(records, "L5", "takes", v) == 1 for v in (*CELLS, "adaptive")}
    yes, no = ([v for v, taken in takes.items() if taken is wanted] for wanted in (True, False))
    return judge.exact(
        claim,
        takes["convbn"],
        f"Made for maps of 12 x 12 and given 10 x 10 in eval: {', '.join(yes) or 'none'} take them; "
        f"{', '.join(no) or 'none'} refuse them in words, since what is kept per location has no meaning there.",
    )


# --- the adaptive norm ---


def _same_in_test(records: Records, claim: Claim) -> Finding:
    apart = _exact(records, "L8", "train minus eval")
    company = _exact(records, "L8", "depends on its batch")
    return judge.exact(
        claim,
        apart == 0,
        f"Outputs in training and in eval differ by {apart:g}, there are no running statistics; the price is that one "
        f"image's output changes with the other images of its batch (by up to {company:.2g} here), in eval too.",
    )


def _window(records: Records, claim: Claim) -> Finding:
    errors = {end: _exact(records, "L8", "error", end) for end in ("convbn", "bn")}
    about = {"part": "window", "variant": "bn"}
    local, channel = ({k: fmean(v) for k, v in records.series(f"to {end}", **about).items()} for end in END)
    kernels = sorted(local)
    towards = all(local[a] <= local[b] + SAME and channel[a] + SAME >= channel[b] for a, b in pairwise(kernels))
    ends = all(error < TOLERANCE for error in errors.values())
    accuracy = {k: records.by_seed("test_accuracy", part="window", variant="adaptive", kernel=k) for k in kernels}
    shown = ", ".join(f"{_window_name(k)} {fmean(v.values()):.2%}" for k, v in accuracy.items() if v)
    if len(kernels) < 2:
        return Finding(claim, Verdict.inconclusive, "Fewer than two windows were measured.")
    verdict = Verdict.reproduced if ends and towards else Verdict.partly if ends else Verdict.not_reproduced
    return Finding(
        claim,
        verdict,
        f"A window of 1 is the local layer in training to {errors['convbn']:.1g}, one over the whole map is BN to "
        f"{errors['bn']:.1g} (float64); between them the output moves "
        f"{'steadily' if towards else 'not steadily'} from one to the other. Test accuracy by window: {shown}.",
    )


END = ("local", "channel")


def _window_name(kernel: float) -> str:
    return "whole map" if kernel > 100 else f"{kernel:g}"


def _unbiased(records: Records, claim: Claim) -> Finding:
    factors = records.series("source", part="exact", claim="L9")
    right = records.series("unbiased", part="exact", claim="L9")
    errors = {n: abs(factors[n][0] / right[n][0] - 1) for n in right}
    ours = max(
        abs(values[0] / right[n][0] - 1) for n, values in records.series("ours", part="exact", claim="L9").items()
    )
    verdict = Verdict.not_reproduced
    if max(errors.values()) < 0.01:
        verdict = Verdict.reproduced if factors[1][0] > 0 and max(errors.values()) < TOLERANCE else Verdict.partly
    worst = max(errors, key=lambda n: errors[n])
    return Finding(
        claim,
        verdict,
        f"Against n / (n - 1), which is unbiased, the source's factor is too large by {errors[worst]:.2%} at n = "
        f"{worst:g} and less beyond; at n = 1 it is {factors[1][0]:.0f}, a negative variance. Ours is n / (n - 1) to "
        f"{ours:.1g}.",
    )


# --- predictions ---


def _gap(records: Records, claim: Claim) -> Finding:
    dataset = datasets(records, "table")[0]
    ratios: dict[str, list[float]] = {}
    for size in records.settings["gap"]["batches"]:
        local, channel = (
            records.measured("gap", part="table", dataset=dataset, variant=v, x=size) for v in ("convbn", "bn")
        )
        ratios[f"batches of {size}"] = [local[s] / channel[s] for s in sorted(local.keys() & channel.keys())]
    text = (
        "Root mean square of the normalised value in training minus that in eval after the first layer of trained "
        f"networks ({name_of(dataset)}), local over channel statistics: {{effects}}."
    )
    return across(claim, ratios, "times", text, at_least=records.settings["margins"]["gap_ratio"])


def _eps(records: Records, claim: Claim) -> Finding:
    values = sorted(map(float, records.settings["eps"]["values"]))
    smallest, usual = values[0], 1e-3

    def largest(variant: str, eps: float) -> dict[int, float]:
        return records.measured("largest", part="eps", variant=variant, eps=eps)

    def growth(variant: str) -> dict[int, float]:
        small, large = largest(variant, smallest), largest(variant, usual)
        return {s: math.log10(small[s] / large[s]) for s in small.keys() & large.keys()}

    def shown(variant: str) -> str:
        return ", ".join(f"{fmean(v.values()):.3g} at {e:g}" for e in values if (v := largest(variant, e)))

    def accuracies(variant: str) -> str:
        found = {e: records.by_seed("test_accuracy", part="eps", variant=variant, eps=e) for e in values}
        return ", ".join(f"{fmean(v.values()):.2%}" for v in found.values() if v)

    return judge.greater(
        claim,
        paired(growth("convbn"), growth("bn")),
        "powers of ten",
        found=f"From eps {usual:g} to {smallest:g} the largest normalised value on test images grows more with local "
        f"statistics than with channel statistics, by {{effect}}. Local: {shown('convbn')}; channel: {shown('bn')}. "
        f"Test accuracies in that order: local {accuracies('convbn')}; channel {accuracies('bn')}.",
    )


def _small_batches(records: Records, claim: Claim) -> Finding:
    sizes = sorted(records.settings["batch"]["sizes"])

    def loss(size: int) -> dict[int, float]:
        local, channel = (
            records.by_seed("test_accuracy", part="batch", variant=v, batch_size=size) for v in ("convbn", "bn")
        )
        return {s: channel[s] - local[s] for s in local.keys() & channel.keys()}

    by_size = "; ".join(f"{size}: {judge.numbers(t_interval(points(list(loss(size).values()))))}" for size in sizes)
    return judge.greater(
        claim,
        points(paired(loss(sizes[0]), loss(sizes[-1]))),
        POINTS,
        margin=100 * records.settings["margins"]["accuracy"],
        found=f"What local statistics lose to channel statistics at a batch size of {sizes[0]}, less what they lose at "
        f"{sizes[-1]}: {{effect}}. Loss by batch size, in points: {by_size}.",
    )


def _one_image(records: Records, claim: Claim) -> Finding:
    largest, refused = _exact(records, "L-one", "largest output"), _exact(records, "L-one", "refused")
    return judge.exact(
        claim,
        largest == 0 and refused == 1,
        f"By the formula the largest normalised value of a batch of 1 is {largest:g}; our layer "
        f"{'refuses such a batch in training' if refused == 1 else 'lets it through'}.",
    )
