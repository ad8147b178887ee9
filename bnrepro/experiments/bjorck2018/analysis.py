"""From the records of B1 and B2 to verdicts and tables."""

from __future__ import annotations

import math
from collections.abc import Callable

from bnrepro.experiments.base import Analysis, Finding, Records, Table, drawn
from bnrepro.experiments.bjorck2018.claims import BY_ID
from bnrepro.experiments.bjorck2018.drawing import pictures
from bnrepro.experiments.bjorck2018.effects import (
    at_rate,
    best_rate,
    growths,
    inside_of,
    largest_rates,
    networks_of,
)
from bnrepro.experiments.bjorck2018.grid import DIVERGING, NORMS, START
from bnrepro.experiments.cells import combined, equal_everywhere, greater_everywhere
from bnrepro.experiments.judge import greater, numbers
from bnrepro.stats import Interval, paired, t_interval

POINTS = 100  # percentage points in 1
UNIT = "percentage points of test accuracy"
NAMES = {"nobn": "no BN", "bn": "BN"}


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    return Analysis(judged(records), tables(records), drawn(lambda: pictures(records)))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [larger_rates(records), alike(records), from_the_rate(records), *_inside(records)]


def larger_rates(records: Records) -> Finding:
    """B1.1: log10 of the largest rate with BN less that without, by network."""
    differences, ends = {}, []
    for network in networks_of(records):
        (plain, none, _), (normed, no_bn, top) = (largest_rates(records, network, v) for v in NORMS)
        differences[network] = paired(normed, plain)
        rates = [f"{10 ** t_interval(list(found.values())).mean:.2g}" for found in (plain, normed)]
        ends.append(f"{network} {rates[0]} without and {rates[1]} with")
        for count, what in (
            (none, "without BN trains at no rate"),
            (no_bn, "with BN trains at no rate"),
            (top, "with BN trains at the highest too"),
        ):
            ends[-1] += f" ({what} for {count} of {len(plain)} seeds)" if count else ""
    lead = f"Largest rate that trains (geometric mean): {'; '.join(ends)}. BN less no BN"
    return greater_everywhere(BY_ID["B1.1"], differences, 0.0, "decades of learning rate", lead)


def alike(records: Records) -> Finding:
    """B1.2: test accuracy with BN less without, at the rate that is best without."""
    margin = records.settings["margin_points"]
    differences, rates = {}, []
    for network in networks_of(records):
        if (rate := best_rate(records, network, "nobn")) is None:
            rates.append(f"{network}: none at which all seeds train")
            continue
        with_bn, without = (at_rate(records, "test_accuracy", network, v, rate) for v in ("bn", "nobn"))
        differences[network] = [POINTS * d for d in paired(with_bn, without)]
        rates.append(f"{network}: {rate:g}")
    lead = f"At the rate that is best without BN on validation data ({'; '.join(rates)}), BN less no BN"
    return equal_everywhere(BY_ID["B1.2"], differences, margin, UNIT, lead)


def from_the_rate(records: Records) -> Finding:
    """B1.3: test accuracy with BN at its own best rate, less with BN at the rate that is best without."""
    margin = records.settings["margin_points"]
    found: list[Finding] = []
    each = []
    for network in networks_of(records):
        own, small = best_rate(records, network, "bn"), best_rate(records, network, "nobn")
        if own is None or small is None:
            each.append(f"{network}: no rate at which all seeds train")
            continue
        values = [at_rate(records, "test_accuracy", network, "bn", rate) for rate in (own, small)]
        found.append(greater(BY_ID["B1.3"], [POINTS * d for d in paired(*values)], "points", margin=margin))
        each.append(f"{network}, {own:g} less {small:g}: {found[-1].found}")
    words = (
        "With BN, test accuracy at its own best rate on validation data less that at the rate that is best without BN "
        f"(negligible below {margin:g}): {'; '.join(each)}."
    )
    verdict = combined([finding.verdict for finding in found])
    return Finding(BY_ID["B1.3"], verdict, words, found[-1].effect if found else None, UNIT)


def _inside(records: Records) -> list[Finding]:
    """B2.1 to B2.4."""
    asked = records.settings["growth_decades"]
    found = []
    for claim, when, what in (
        ("B2.1", START, "At the start"),
        ("B2.2", DIVERGING, "After the update in which the network without BN diverges"),
    ):
        differences, each = {}, []
        for network in inside_of(records):
            plain, normed = (growths(records, when, network, v) for v in NORMS)
            if not plain:
                each.append(f"{network}: diverges at no rate of the grid")
                continue
            differences[network] = paired(plain, normed)
            ends = [numbers(t_interval(list(growth.values()))) for growth in (plain, normed)]
            each.append(f"{network}: {ends[0]} without and {ends[1]} with BN")
        lead = (
            f"{what}, the variance of what enters a norm, or its place, grows over the depth by decades: "
            f"{'; '.join(each)}. No BN less BN"
        )
        found.append(greater_everywhere(BY_ID[claim], differences, asked, "decades", lead))
    share = _of_start(records, "majority", lambda value: value)
    lead = "Images put into the most frequent class at the start, no BN less BN"
    found.append(greater_everywhere(BY_ID["B2.3"], share, 0.0, "percentage points", lead))
    kurtosis = _of_start(records, "kurtosis", math.log10)
    lead = f"Kurtosis of the middle layer's gradient ({_kurtosis(records)}; a normal distribution has 3), no BN less BN"
    found.append(greater_everywhere(BY_ID["B2.4"], kurtosis, 0.0, "decades", lead))
    return found


def _of_start(records: Records, quantity: str, scale: Callable[[float], float]) -> dict[str, list[float]]:
    """A quantity without BN less with it, over seeds, by network."""
    found = {}
    for network in inside_of(records):
        plain, normed = (
            {s: scale(v) for s, v in records.measured(quantity, part=START, network=network, variant=variant).items()}
            for variant in NORMS
        )
        found[network] = paired(plain, normed)
    return found


def _kurtosis(records: Records) -> str:
    parts = []
    for network in inside_of(records):
        means = [t_interval([math.log10(v) for v in _start(records, "kurtosis", network, n)]).mean for n in NORMS]
        parts.append(f"{network}: {10 ** means[0]:.1f} without and {10 ** means[1]:.1f} with BN")
    return "; ".join(parts)


def _start(records: Records, quantity: str, network: str, variant: str) -> list[float]:
    return list(records.measured(quantity, part=START, network=network, variant=variant).values())


# --- tables ---


def tables(records: Records) -> list[Table]:
    """Largest rates, accuracy by rate, and what is inside."""
    return [_largest(records), _accuracies(records), _inner(records)]


def _largest(records: Records) -> Table:
    rows = []
    for network in networks_of(records):
        found = {variant: largest_rates(records, network, variant) for variant in NORMS}
        row: dict[str, object] = {"network": network, "layers": records.settings["networks"][network]["layers"]}
        for variant, (rates, none, top) in found.items():
            row[f"log10 of the largest rate, {NAMES[variant]}"] = t_interval(list(rates.values()))
            row[f"seeds that train at no rate, {NAMES[variant]}"] = none
            row[f"seeds that train at the highest, {NAMES[variant]}"] = top
        row["BN - no BN, decades"] = t_interval(paired(found["bn"][0], found["nobn"][0]))
        rows.append(row)
    title = f"Largest learning rate that trains; mean and 95% interval over n = {records.settings['seeds']} seeds"
    return Table("largest_rates", title, rows)


def _accuracies(records: Records) -> Table:
    rows = []
    for network in networks_of(records):
        for rate in records.settings["rates"]:
            row: dict[str, object] = {"network": network, "rate": rate}
            values = {v: at_rate(records, "test_accuracy", network, v, rate) for v in NORMS}
            for variant, found in values.items():
                row[f"test accuracy, {NAMES[variant]}"] = t_interval(list(found.values()))
                row[f"seeds that train, {NAMES[variant]}"] = len(found)
            row["BN - no BN, points"] = t_interval([POINTS * d for d in paired(values["bn"], values["nobn"])])
            rows.append(row)
    title = (
        "Test accuracy of the runs that train, by learning rate; mean and 95% interval over them, of "
        f"{records.settings['seeds']} seeds"
    )
    return Table("accuracy_by_rate", title, rows)


def _inner(records: Records) -> Table:
    rows = []
    for network in inside_of(records):
        for variant in NORMS:
            row: dict[str, object] = {"network": network, "norm": NAMES[variant]}
            for name, when in (("start", START), ("diverging update", DIVERGING)):
                values = list(growths(records, when, network, variant).values())
                row[f"growth of the variance, decades, {name}"] = t_interval(values)
            for quantity, name in (
                ("majority", "images in the most frequent class, %"),
                ("kurtosis", "kurtosis of the middle layer's gradient"),
                ("deviation", "its deviation"),
            ):
                row[name] = t_interval(_start(records, quantity, network, variant))
            row["diverging rate"] = _rate(records, network)
            rows.append(row)
    title = f"Inside the networks; mean and 95% interval over n = {records.settings['seeds']} seeds"
    return Table("inside", title, rows)


def _rate(records: Records, network: str) -> Interval:
    return t_interval(list(records.measured("rate", part=DIVERGING, network=network).values()))
