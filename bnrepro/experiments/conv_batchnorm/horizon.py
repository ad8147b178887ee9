"""Verdicts on the sunrise: half of each image dark, always, from batch to batch, or at test alone."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

from bnrepro.experiments import judge
from bnrepro.experiments.base import Claim, Finding, Records, Verdict
from bnrepro.experiments.conv_batchnorm.family import POINTS, across, datasets, name_of, points
from bnrepro.stats import paired, t_interval

LAYER = "1"  # the convolutional layer whose ReLUs are judged: the one that sees the image


def measured(records: Records, quantity: str, dataset: str, variant: str, light: str, x: object) -> dict[int, float]:
    return records.measured(quantity, part="horizon", dataset=dataset, variant=variant, light=light, x=x)


def _fall(records: Records, dataset: str, variant: str) -> dict[int, float]:
    """By how much the share of active ReLUs below the horizon falls when the lower half is always dark."""
    plain, dark = (measured(records, f"active below {LAYER}", dataset, variant, s, "own") for s in ("plain", "static"))
    return {seed: plain[seed] - dark[seed] for seed in plain.keys() & dark.keys()}


def _share(records: Records, what: str, dataset: str, variant: str, light: str) -> float:
    values = measured(records, f"{what} {LAYER}", dataset, variant, light, "own").values()
    return fmean(values) if values else math.nan


def below_threshold(records: Records, claim: Claim) -> Finding:
    sets = datasets(records, "horizon")
    falls = {name_of(d): points(list(_fall(records, d, "bn").values())) for d in sets}
    left = {d: _share(records, "active below", d, "bn", "static") for d in sets}
    before = {d: _share(records, "active below", d, "bn", "plain") for d in sets}
    silent = {d: _share(records, "silent below", d, "bn", "static") for d in sets}
    shares = "; ".join(
        f"{name_of(d)}: {before[d]:.1%} on plain images, {left[d]:.1%} with the lower half dark, {silent[d]:.1%} of "
        "its units silent"
        for d in sets
    )
    text = (
        "Fall of the share of active ReLUs below the horizon, first layer, BN, networks trained and tested with the "
        f"lower half dark against plain ones: {{effects}}. Active below the horizon: {shares}."
    )
    margin = 100 * records.settings["margins"]["active"]
    finding = across(claim, falls, "percentage points of active ReLUs", text, margin=margin)
    if finding.verdict is Verdict.reproduced and not all(left[d] <= 0.1 * before[d] for d in sets):
        return replace(finding, verdict=Verdict.partly)  # some fall below threshold, and the claim says all
    return finding


def keeps_active(records: Records, claim: Claim) -> Finding:
    sets = datasets(records, "horizon")
    kept = {name_of(d): points(paired(_fall(records, d, "bn"), _fall(records, d, "convbn"))) for d in sets}
    switching = "; ".join(
        f"{name_of(d)}: {_share(records, 'switching below', d, 'bn', 'static'):.1%} with BN, "
        f"{_share(records, 'switching below', d, 'convbn', 'static'):.1%} with local statistics"
        for d in sets
    )
    text = (
        "Fall of the share of active ReLUs below the horizon when it is dark there, BN's less the local layer's: "
        f"{{effects}}. Units below it that some images switch on and some off: {switching}."
    )
    margin = 100 * records.settings["margins"]["active"]
    return across(claim, kept, "percentage points of active ReLUs", text, margin=margin)


def _gain(records: Records, dataset: str, variant: str, light: str, x: object = "own") -> dict[int, float]:
    """Test accuracy with ``variant`` less that with BN."""
    own, channel = (measured(records, "accuracy", dataset, v, light, x) for v in (variant, "bn"))
    return {seed: own[seed] - channel[seed] for seed in own.keys() & channel.keys()}


def light(records: Records, claim: Claim, light: str) -> Finding:
    sets = datasets(records, "horizon")
    margin = 100 * records.settings["margins"]["accuracy"]
    gains = {name_of(d): points(list(_gain(records, d, "convbn", light).values())) for d in sets}
    more = {
        name_of(d): points(paired(_gain(records, d, "convbn", light), _gain(records, d, "convbn", "plain")))
        for d in sets
    }
    further = across(claim, more, "points", "{effects}", margin=margin)
    adaptive = "; ".join(
        f"{name_of(d)}: {judge.numbers(t_interval(points(list(_gain(records, d, 'adaptive', light).values()))))}"
        for d in sets
    )
    text = (
        f"Test accuracy with local statistics less that with BN: {{effects}}. Less the same difference on plain "
        f"images: {further.found}. The adaptive norm less BN: {adaptive} points."
    )
    finding = across(claim, gains, POINTS, text, margin=margin)
    if finding.verdict is not Verdict.reproduced and further.verdict is Verdict.reproduced:
        return replace(finding, verdict=Verdict.partly)  # darkness costs it less, and yet it is not better
    return finding


def other_light(records: Records, claim: Claim, variant: str) -> Finding:
    sets = datasets(records, "horizon")
    shade = float(records.settings["horizon"]["shade"])
    gains = {name_of(d): points(list(_gain(records, d, variant, "plain", shade).values())) for d in sets}

    def at(dataset: str, variant: str, x: float) -> str:
        values = measured(records, "accuracy", dataset, variant, "plain", x).values()
        return f"{fmean(values):.1%}" if values else "not measured"

    kept = "; ".join(
        f"{name_of(d)}: {variant} from {at(d, variant, 1.0)} to {at(d, variant, shade)}, bn from {at(d, 'bn', 1.0)} to "
        f"{at(d, 'bn', shade)}"
        for d in sets
    )
    text = (
        f"Trained on plain images and tested with the lower half at {shade:g} of its light, accuracy with {variant} "
        f"less that with BN: {{effects}}. Accuracies: {kept}."
    )
    return across(claim, gains, POINTS, text, margin=100 * records.settings["margins"]["accuracy"])


def adapts(records: Records, claim: Claim) -> Finding:
    shade = float(records.settings["horizon"]["shade"])

    def contrast(dataset: str, light: str) -> dict[int, float]:
        about = {"part": "horizon", "dataset": dataset, "variant": "convbn", "light": light}
        below, above = (records.measured("deviation", x=side, **about) for side in ("below", "above"))
        return {s: math.log(below[s] / above[s]) for s in below.keys() & above.keys()}

    sets = datasets(records, "horizon")
    logs = {name_of(d): paired(contrast(d, "plain"), contrast(d, "static")) for d in sets}
    ratios = "; ".join(f"{name}: {math.exp(-fmean(values)):.2f} times" for name, values in logs.items() if values)
    text = (
        "Running deviation of the first local norm below the horizon over that above it, in networks trained with the "
        f"lower half at {shade:g} of its light, as a multiple of the same on plain images: {ratios} (a statistic per "
        "channel is one number for both halves). As the logarithm of its inverse: {effects}."
    )
    return across(claim, logs, "(natural logarithm of a ratio)", text)
