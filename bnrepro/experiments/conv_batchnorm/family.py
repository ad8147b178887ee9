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

    Holm's correction over the family takes back what only one of many would show. The claim is reproduced, or not, if
    it is so everywhere; partly, if somewhere it holds and elsewhere not; else inconclusive. The effect shown beside
    the verdict is the first one's; ``{effects}`` in ``found`` becomes all of them.
    """
    each = {name: judge.greater(claim, values, unit, at_least, margin) for name, values in differences.items()}
    p_values = {name: p_value([v - at_least for v in values]) for name, values in differences.items()}
    certain = holm(p_values)
    verdicts = []
    for name, finding in each.items():
        effect = finding.effect
        small = margin is not None and effect is not None and max(abs(effect.low), abs(effect.high)) < margin
        verdicts.append(finding.verdict if certain[name] or small else Verdict.inconclusive)
    effects = "; ".join(f"{name}: {finding.found}" for name, finding in each.items())
    first = next(iter(each.values()))
    return replace(first, verdict=combined(verdicts), found=found.replace("{effects}", effects))


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict over several datasets."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    holds = {Verdict.reproduced, Verdict.partly}
    return Verdict.partly if holds & set(verdicts) else Verdict.inconclusive


def name_of(dataset: str) -> str:
    """What texts call a dataset."""
    return NAMES.get(dataset, dataset)


def points(differences: Sequence[float]) -> list[float]:
    """Shares as percentage points."""
    return [100 * d for d in differences]


def datasets(records: Records, part: str) -> list[str]:
    return list(dict.fromkeys(row["dataset"] for row in records.select(records.runs, part=part)))
