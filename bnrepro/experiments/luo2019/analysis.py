"""From the records of `luo2019` to findings and tables."""

from __future__ import annotations

import math
from statistics import fmean, linear_regression

from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.cells import equal_everywhere
from bnrepro.experiments.judge import equal, in_words, not_testable, numbers
from bnrepro.experiments.luo2019 import drawing
from bnrepro.experiments.luo2019.claims import BY_ID
from bnrepro.experiments.luo2019.networks import BN, NOISE, PN, TRAINING
from bnrepro.stats import paired, t_interval

UNIT = "percentage points of test accuracy"
THEORY = "A limit of theory (one layer, Gaussian inputs, infinitely many of them), which no trained network decides."


def analyse(records: Records) -> Analysis:
    """All findings in the order of the claims, with tables and the figure."""
    c = chosen(records)
    return Analysis(
        judged(records), [penalty_table(records), table(records)], drawn(lambda: [drawing.figure(records, c)])
    )


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [u1(records), u1_2(records), not_testable(BY_ID["U1.3"], THEORY)]


# --- U1 ---


def penalties(records: Records) -> dict[int, dict[int, float]]:
    """seed -> batch size -> penalty."""
    found: dict[int, dict[int, float]] = {}
    for row in records.select(records.measurements, part=NOISE, quantity="penalty"):
        found.setdefault(int(row["seed"]), {})[int(row["x"])] = row["value"]
    return found


def slope(by_size: dict[int, float]) -> float:
    """Of log penalty against log batch size; nan where a penalty is none."""
    if len(by_size) < 2 or min(by_size.values()) <= 0:
        return math.nan
    return linear_regression([math.log(m) for m in by_size], [math.log(v) for v in by_size.values()]).slope


def u1(records: Records) -> Finding:
    """The power of the batch size is -1."""
    slopes = [slope(by_size) for _, by_size in sorted(penalties(records).items())]
    sizes = records.settings["noise"]["sizes"]
    power = numbers(t_interval(slopes))
    lead = f"The penalty goes with the batch size (from {min(sizes)} to {max(sizes)}) to the power {power}"
    return equal(
        BY_ID["U1"],
        [value + 1 for value in slopes],
        records.settings["power_margin"],
        "in the power",
        lead + "; from -1 it is {effect}.",
    )


# --- U1.2 ---


def measured(records: Records, quantity: str, kind: str, size: int, decay: float) -> dict[int, float]:
    """A number of the trainings, by seed."""
    return records.measured(quantity, part=TRAINING, kind=kind, size=size, decay=decay)


def chosen(records: Records) -> float | None:
    """The strength c whose validation loss is nearest to batch normalization's over the batch sizes."""
    training = records.settings["training"]

    def distance(c: float) -> float:
        found = [
            abs(fmean(differences))
            for size, _ in training["sizes"]
            if (differences := paired(*(measured(records, "val_loss", *who) for who in _pair(size, c))))
        ]
        return fmean(found) if found else math.inf

    distances = {c: distance(c) for c in training["decays"] if c > 0}
    best = min(distances, key=lambda c: distances[c], default=None)
    return best if best is not None and math.isfinite(distances[best]) else None


def _pair(size: int, c: float) -> tuple[tuple[str, int, float], tuple[str, int, float]]:
    return (PN, size, c), (BN, size, 0.0)


def u1_2(records: Records) -> Finding:
    """Population normalization with the chosen decay less batch normalization, at each batch size."""
    c, margin = chosen(records), records.settings["margin_points"]
    if c is None:
        return Finding(BY_ID["U1.2"], Verdict.inconclusive, "Nothing was measured.")
    sizes = [size for size, _ in records.settings["training"]["sizes"]]

    def differences(decay: float, quantity: str = "test_accuracy") -> dict[str, list[float]]:
        return {f"M = {m}": paired(*(measured(records, quantity, *who) for who in _pair(m, decay))) for m in sizes}

    lead = f"Population normalization with gamma decay {c:g} / M less batch normalization"
    finding = equal_everywhere(BY_ID["U1.2"], differences(c), margin, UNIT, lead)
    without = "; ".join(f"{name} {in_words(t_interval(v), '')}" for name, v in differences(0.0).items())
    losses = "; ".join(
        f"{name} {numbers(t_interval(with_it))} with, {numbers(t_interval(none))} without"
        for (name, with_it), none in zip(
            differences(c, "test_loss").items(), differences(0.0, "test_loss").values(), strict=True
        )
    )
    said = f"{finding.found} Without gamma decay, points: {without}. Of the test loss, less BN's: {losses}."
    return Finding(finding.claim, finding.verdict, said, finding.effect, finding.unit)


# --- tables ---


def penalty_table(records: Records) -> Table:
    """The penalty by batch size."""
    found = records.series("penalty", part=NOISE)
    rows = [
        {"batch size": size, "penalty": t_interval(v), "times the batch size": t_interval([size * p for p in v])}
        for size, v in found.items()
    ] or [{"batch size": None, "penalty": None, "times the batch size": None}]
    n = records.settings["seeds"]
    title = f"Training loss with a batch's statistics less that with the population's; 95% intervals over n={n} seeds."
    return Table("penalty", title, rows)


def table(records: Records) -> Table:
    """Each training by batch size and strength."""
    training = records.settings["training"]
    rows = []
    for size, _ in training["sizes"]:
        for kind, decay in ((BN, 0.0), *((PN, c) for c in training["decays"])):
            row = {"batch size": size, "normalization": "batch" if kind == BN else "population", "c": decay}
            for quantity, name in (
                ("test_accuracy", "test accuracy, %"),
                ("test_loss", "test loss"),
                ("val_loss", "validation loss"),
                ("train_loss", "training loss"),
                ("gamma_squared", "mean squared gamma"),
            ):
                row[name] = t_interval(list(measured(records, quantity, kind, size, decay).values()))
            rows.append(row)
    n = records.settings["seeds"]
    title = f"Gamma decay of strength c / M, in population statistics at test; 95% intervals over n={n} seeds."
    return Table("training", title, rows)
