"""What the verdicts, tables and figures of this experiment share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bnrepro.experiments import judge
from bnrepro.experiments.base import Claim, Finding, Records, Verdict
from bnrepro.stats import holm, p_value

POINTS = "percentage points of test accuracy"
NAMES = {"mnist": "MNIST", "mnist5k": "MNIST-5k", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def across(
    claim: Claim,
    differences: Mapping[str, Sequence[float]],
    unit: str,
    found: str,
    at_least: float = 0.0,
    margin: float | None = None,
) -> Finding:
    """A claim that something is larger, put to the test on several datasets (or sizes): `judge.greater` for each.

    What all of them say is the verdict, and needs no correction, since each had to say it. Where they differ, Holm's
    correction takes back what only one of many would show; the claim is then partly reproduced if any still says so,
    else inconclusive. The effect shown beside the verdict is the first one's; ``{effects}`` in ``found`` becomes all.
    """
    each = {name: judge.greater(claim, values, unit, at_least, margin) for name, values in differences.items()}
    certain = holm({name: p_value([v - at_least for v in values]) for name, values in differences.items()})
    effects = {name: finding.effect for name, finding in each.items() if finding.effect}
    small = {name for name, e in effects.items() if margin is not None and max(abs(e.low), abs(e.high)) < margin}
    corrected = [
        finding.verdict if certain[name] or name in small else Verdict.inconclusive for name, finding in each.items()
    ]
    listed = "; ".join(f"{name}: {judge.numbers(effect)}" for name, effect in effects.items())
    n = min(effect.n for effect in effects.values())
    return replace(
        next(iter(each.values())),
        verdict=combined([finding.verdict for finding in each.values()], corrected),
        found=found.replace("{effects}", f"{listed} {unit} (95% interval{'s' * (len(each) > 1)}, n={n})"),
    )


def combined(verdicts: Sequence[Verdict], corrected: Sequence[Verdict]) -> Verdict:
    """The verdict over several datasets, from each one's, and those that a correction for their number leaves."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return Verdict.partly if {Verdict.reproduced, Verdict.partly} & set(corrected) else Verdict.inconclusive


def name_of(dataset: str) -> str:
    """What texts call a dataset."""
    return NAMES.get(dataset, dataset)


def points(differences: Sequence[float]) -> list[float]:
    """Shares as percentage points."""
    return [100 * d for d in differences]


def datasets(records: Records, part: str) -> list[str]:
    return list(dict.fromkeys(row["dataset"] for row in records.select(records.runs, part=part)))
