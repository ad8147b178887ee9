"""Verdicts on section 4.2: steps and accuracies of the arms of the race, and what fails without BN."""

from __future__ import annotations

from bnrepro.experiments import judge
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.ioffe2015.claims import BY_ID
from bnrepro.experiments.ioffe2015.effects import (
    asked,
    by_rate,
    chance,
    chosen_cell,
    failed,
    highest,
    infinite,
    largest_rate,
    race_speed_ups,
)
from bnrepro.experiments.ioffe2015.grid import CHOICE2, RACE
from bnrepro.stats import paired, t_interval

VALIDATION = "percentage points of best validation accuracy"
TIMES = "times as fast"


def _never(ups: list[float]) -> str:
    never = sum(up == 0 for up in ups)
    return f" ({never} of {len(ups)} seeds never did, counted as 0)" if never else ""


def i8(records: Records) -> Finding:
    """More than twice as fast: reproduced; faster, but not shown to be twice as fast: partly."""
    ups = list(race_speed_ups(records, "BN-Baseline").values())
    effect = t_interval(ups)
    if effect.low > 2:
        verdict = Verdict.reproduced
    elif effect.low > 1:
        verdict = Verdict.partly
    else:
        verdict = Verdict.not_reproduced if effect.high < 1 else Verdict.inconclusive
    cell = chosen_cell(records, CHOICE2)
    rate = f" The baseline's rate, chosen on validation data, is {cell[0]:g}." if cell else ""
    found = (
        f"To the baseline's best validation accuracy BN at the same rate is {judge.in_words(effect, TIMES)}"
        f"{_never(ups)}; less than half is above 2.{rate}"
    )
    return Finding(BY_ID["I8"], verdict, found, effect, TIMES)


def i9(records: Records) -> Finding:
    """BN-x5's speed-up above BN-Baseline's."""
    plain, fast, local = (race_speed_ups(records, arm) for arm in ("BN-Baseline", "BN-x5", "convbn-x5"))
    ups = list(fast.values())
    found = (
        f"To the baseline's best BN-x5 is {judge.in_words(t_interval(ups), TIMES)}{_never(ups)}; less that of "
        f"BN-Baseline: {{effect}}. Local-gain BN at x5: {judge.numbers(t_interval(list(local.values())))}."
    )
    return judge.greater(BY_ID["I9"], paired(fast, plain), "times", found=found)


def i9_2(records: Records) -> Finding:
    """A higher best accuracy with x30 than with x5: reproduced if it is slower at first too, partly if not."""
    five, thirty = (highest(records, arm) for arm in ("BN-x5", "BN-x30"))
    effect = t_interval(paired(thirty, five))
    slower = t_interval(paired(race_speed_ups(records, "BN-x5"), race_speed_ups(records, "BN-x30")))
    higher, later = effect.low > 0, slower.low > 0
    if higher:
        verdict = Verdict.reproduced if later else Verdict.partly
    elif effect.high < 0:
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.inconclusive
    found = (
        f"Best accuracy of BN-x30 less that of BN-x5: {judge.in_words(effect, 'points')}. Speed-up to the baseline's "
        f"best, BN-x5 less BN-x30 (slower at first is above 0): {judge.numbers(slower)}."
    )
    return Finding(BY_ID["I9.2"], verdict, found, effect, VALIDATION)


def i9_3(records: Records) -> Finding:
    """The sigmoids' best accuracy below the baseline's."""
    base, sigmoid = (highest(records, arm) for arm in ("Baseline", "BN-x5-Sigmoid"))
    found = "Best accuracy of the baseline less that of BN-x5-Sigmoid: {effect}."
    return judge.greater(BY_ID["I9.3"], paired(base, sigmoid), VALIDATION, found=found)


def i10(records: Records) -> Finding:
    """What becomes of the network at five times the rate, without BN and with it.

    Reproduced: at x5 all seeds are infinite without BN, and none fails with it, nor at x30. Partly: without BN all fail
    in some way at x5, or at x30 only, where none does with BN. Not reproduced: no seed fails without BN, at x5 or x30,
    or all do with BN where they do without.
    """
    count = {factor: asked(records, f"no BN, {factor}") for factor in ("x5", "x30")}
    lost = {factor: infinite(records, f"no BN, {factor}") for factor in count}
    bad = {factor: failed(records, f"no BN, {factor}") for factor in count}
    with_bn = {factor: failed(records, f"BN-{factor}") for factor in count}
    trained = {factor: asked(records, f"BN-{factor}") > 0 and with_bn[factor] == 0 for factor in count}
    everywhere = {factor: count[factor] > 0 and bad[factor] == count[factor] for factor in count}
    no_help = any(everywhere[factor] and with_bn[factor] == asked(records, f"BN-{factor}") for factor in count)
    if count["x5"] and lost["x5"] == count["x5"] and all(trained.values()):
        verdict = Verdict.reproduced
    elif any(everywhere[factor] and trained[factor] for factor in count):
        verdict = Verdict.partly
    elif no_help or (count["x5"] and not any(bad.values())):
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.inconclusive
    said = "; ".join(
        f"{factor}: without BN {lost[factor]} of {count[factor]} seeds reached infinity and {bad[factor]} failed in "
        f"all (infinite, or no better than guessing), with BN {with_bn[factor]} of {asked(records, f'BN-{factor}')}"
        for factor in count
    )
    rates = "; ".join(
        f"{variant}: {f'{rate:g}' if (rate := largest_rate(records, variant)) else 'none'}"
        for variant in records.settings["rates"]["variants"]
        if by_rate(records, variant)
    )
    tried = max(map(float, records.settings["rates"]["rates"]))
    found = f"{said}. On 5,000 digits the largest rate (of those up to {tried:g}) at which all seeds train is {rates}."
    return Finding(BY_ID["I10"], verdict, found)


def i10_2(records: Records) -> Finding:
    """The sigmoids, without BN no better than guessing, and better with BN."""
    level, margin = chance(records), records.settings["chance_points"]
    without = records.measured("test_accuracy", part=RACE, arm="no BN, sigmoid")
    with_bn = records.measured("test_accuracy", part=RACE, arm="BN-x5-Sigmoid")
    alone, gain = t_interval(list(without.values())), t_interval(paired(with_bn, without))
    guessing = alone.high < level + margin
    if guessing and gain.low > margin:
        verdict = Verdict.reproduced
    elif gain.low > margin and alone.low > level + margin:
        verdict = Verdict.partly  # BN helps, and without it the network learns too
    elif gain.high < margin:
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.inconclusive
    found = (
        f"Test accuracy of the sigmoids without BN {judge.in_words(alone, '%')}, where guessing has {level:g}% (still "
        f"guessing: below {level + margin:g}%); with BN, at five times the rate, higher by "
        f"{judge.in_words(gain, 'points')}."
    )
    return Finding(BY_ID["I10.2"], verdict, found, gain, "percentage points of test accuracy, with less without BN")
