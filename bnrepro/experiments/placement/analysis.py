"""From the records of P1 to P7 to tables, figures and verdicts."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from bnrepro.experiments import judge
from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.cells import combined
from bnrepro.experiments.placement.claims import BY_ID, REPORTED
from bnrepro.experiments.placement.drawing import pictures
from bnrepro.experiments.placement.effects import (
    ORDER_NAMES,
    POINTS,
    by_seed,
    dropout_effect,
    networks_of,
    order_effects,
)
from bnrepro.experiments.placement.exact import CHANNELS, IDENTITY
from bnrepro.experiments.placement.grid import DROPOUT, GHOST, ORDERS
from bnrepro.stats import Interval, equivalence, holm, p_value, paired, t_interval

EXACT = 1e-10  # of outputs of size 1 to 10 in float64
UNIT = "percentage points of test accuracy"
ALIKE = ("relu", "elu", "prelu")  # P7


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    return Analysis(judged(records), tables(records), drawn(lambda: pictures(records)))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [p1(records), p2(records), p3(records), p4(records), p5(records), p6(records), p7(records)]


def tables(records: Records) -> list[Table]:
    """Accuracies of all orders, those of the source beside, dropout, ghost batches."""
    return [accuracies(records), beside(records), dropouts(records), ghosts(records)]


# --- verdicts ---


def family(tests: dict[Any, list[float]], margin: float) -> tuple[Verdict, dict[Any, int]]:
    """A claim that every one of several differences is above zero, and the sign of each after Holm's correction.

    All are: reproduced. Some are: partly, whatever the others do. None is, and one is below zero or all lie inside
    ±``margin`` (95% intervals): not reproduced. Else inconclusive.
    """
    keys = {str(key): key for key in tests}
    # One family of two-sided tests; the sign is that of the mean.
    rejected = holm({name: p_value(tests[key]) for name, key in keys.items()})
    intervals = {key: t_interval(values) for key, values in tests.items()}
    signs = {key: int(rejected[name]) * (1 if intervals[key].mean > 0 else -1) for name, key in keys.items()}
    if not tests:
        return Verdict.inconclusive, signs
    if 1 in signs.values():
        return (Verdict.reproduced if set(signs.values()) == {1} else Verdict.partly), signs
    negligible = all(-margin < i.low and i.high < margin for i in intervals.values())
    return (Verdict.not_reproduced if -1 in signs.values() or negligible else Verdict.inconclusive), signs


def p1(records: Records) -> Finding:
    """After less before, for each network and activation."""
    tests = order_effects(records, "after", "before")
    verdict, signs = family(tests, records.settings["negligible_points"])
    relu = {network: values for (network, activation), values in tests.items() if activation == "relu"}
    words = "; ".join(f"{network}: {judge.in_words(t_interval(v), 'points')}" for network, v in relu.items())
    best = [
        f"{network} {judge.numbers(t_interval(values))}"
        for (network, activation), values in order_effects(records, "none", "before").items()
        if activation == "relu"
    ]
    found = (
        f"Of {len(tests)} pairs of network and activation, after is better than before in {_count(signs, 1)} and worse "
        f"in {_count(signs, -1)} (Holm's correction at 5%). With ReLU, after less before: {words}. The benchmark that "
        f"the source shows is one network; its own GoogLeNet says the opposite. No BN less BN before, ReLU, points: "
        f"{'; '.join(best)}."
    )
    first = next(iter(relu.values()), [])
    return Finding(BY_ID["P1"], verdict, found, t_interval(first), f"{UNIT}, {_first(records)}, ReLU")


def _first(records: Records) -> str:
    """The network whose effect stands in the list of verdicts."""
    return next(iter(networks_of(records)), "no network")


def _count(signs: dict[Any, int], sign: int) -> int:
    return sum(value == sign for value in signs.values())


def p2(records: Records) -> Finding:
    """Much dropout after BN harms, and a little does not."""
    amounts = records.settings["dropout_amounts"]
    margin = records.settings["negligible_points"]
    low, high = amounts[0], amounts[-1]
    much, little = (t_interval(dropout_effect(records, "bn", "after_norm", amount)) for amount in (high, low))
    harms, helps = much.high < 0, much.low > 0
    harmless = little.low > -margin
    if harms and harmless:
        verdict = Verdict.reproduced
    elif harms and little.high < 0:
        verdict = Verdict.partly  # even the amount that it allows harms
    elif helps or (-margin < much.low and much.high < margin):
        verdict = Verdict.not_reproduced
    else:
        verdict = Verdict.inconclusive
    means = {
        (position, amount): t_interval(dropout_effect(records, "bn", position, amount)).mean
        for position in ("before_norm", "after_norm", "last")
        for amount in amounts
    }
    where, best = max(means, key=lambda key: means[key] if means[key] == means[key] else float("-inf"))
    before = t_interval(dropout_effect(records, "bn", "before_norm", high))
    without = t_interval(dropout_effect(records, "nobn", "after_norm", high))
    found = (
        f"After each BN and its activation, dropout {high:g} changes test accuracy by {judge.in_words(much, 'points')} "
        f"and {low:g} by {judge.in_words(little, 'points')} (harmless if above -{margin:g}). Directly before each BN, "
        f"the order that Li et al. (2019) warn of, {high:g}: {judge.in_words(before, 'points')}; "
        f"without BN, {high:g}: {judge.in_words(without, 'points')}. The best mean of the grid is {where} {best:g} "
        f"({means[where, best]:+.2f})."
    )
    return Finding(BY_ID["P2"], verdict, found, much, f"{UNIT}, dropout {high:g} after BN")


def p3(records: Records) -> Finding:
    """Smaller ghost batches, which are noisier, narrow the gap between test and training loss."""
    size, margin = records.settings["ghost_decides"], records.settings["negligible_points"]

    def effect(quantity: str, factor: float = 1.0) -> list[float]:
        noisy, whole = (records.measured(quantity, part=GHOST, size=s) for s in (size, whole_batch(records)))
        return [factor * d for d in paired(noisy, whole)]

    gap, fit = t_interval(effect("gap")), t_interval(effect("train_loss"))
    accuracy = t_interval(effect("test_accuracy", POINTS))
    if gap.high < 0 and accuracy.low > -margin:
        verdict = Verdict.reproduced
    elif gap.high < 0:
        verdict = Verdict.partly if accuracy.high < 0 else Verdict.inconclusive
    else:
        verdict = Verdict.not_reproduced if gap.low > 0 else Verdict.inconclusive
    found = (
        f"Statistics over {size} images of each batch in place of all {whole_batch(records)}: the gap between test and "
        f"training loss (eval mode) changes by {judge.in_words(gap, '')}, the training loss by {judge.numbers(fit)}, "
        f"and test accuracy by {judge.in_words(accuracy, 'points')} (no loss if above -{margin:g})."
    )
    return Finding(BY_ID["P3"], verdict, found, gap, "test loss less training loss")


def whole_batch(records: Records) -> int:
    """The size of the whole batch, which is the largest there is."""
    return max((int(r["size"]) for r in records.select(records.measurements, part=GHOST)), default=0)


def p4(records: Records) -> Finding:
    """The identity."""
    values = _exact(records, IDENTITY)
    error, rough = values.get(("error", "sqrt(variance + eps)")), values.get(("error", "deviation"))
    expected, moved = values.get(("expected", "deviation")), values.get(("moved", None))
    if error is None or rough is None or expected is None or moved is None:
        return _missing("P4")
    holds = max(error, moved, abs(rough - expected)) <= EXACT
    return judge.exact(
        BY_ID["P4"],
        holds,
        f"beta = mean and gamma = sqrt(variance + eps) give the input back to {error:.1e} (float64, tolerance "
        f"{EXACT:g}), and gamma 2 and beta 3 give deviation 2 and mean 3. gamma = deviation, as the source's formula "
        f"without eps has it, is off by {rough:.1e}, which is what eps 1e-5 comes to.",
    )


def p5(records: Records) -> Finding:
    """Per channel."""
    values = _exact(records, CHANNELS)
    sizes = [value for (quantity, _), value in values.items() if quantity == "size"]
    if not sizes:
        return _missing("P5")
    per_channel, per_location = values["error", "per channel"], values["error", "per location"]
    holds = len(set(sizes)) == 1 and max(per_channel, values["mixed", None]) <= EXACT < per_location
    return judge.exact(
        BY_ID["P5"],
        holds,
        f"BatchNorm2d has {len(sizes)} parameters and statistics of {sizes[0]:.0f} numbers each, one a channel. Its "
        f"output differs by {per_channel:.1e} from NumPy's with statistics over batch, height and width, and by "
        f"{per_location:.2g} from one with statistics per location; changing one channel moves the others by "
        f"{values['mixed', None]:.1e} (float64, tolerance {EXACT:g}).",
    )


def _exact(records: Records, part: str) -> dict[tuple[str, Any], float]:
    return {(r["quantity"], r["x"]): r["value"] for r in records.select(records.measurements, part=part)}


def _missing(claim: str) -> Finding:
    return Finding(BY_ID[claim], Verdict.inconclusive, "Nothing was measured.")


def p6(records: Records) -> Finding:
    """gamma and beta on less off before the activation, and off less on after it."""
    tests = {}
    for network in networks_of(records):
        for order, sign in (("before", 1), ("after", -1)):
            on, off = (by_seed(records, network, "relu", order, affine=affine) for affine in ("on", "off"))
            tests[network, order] = [sign * POINTS * d for d in paired(on, off)]
    verdict, _ = family(tests, records.settings["negligible_points"])
    words = "; ".join(
        f"{network}, {order} ({'on less off' if order == 'before' else 'off less on'}): "
        f"{judge.in_words(t_interval(values), 'points')}"
        for (network, order), values in tests.items()
    )
    found = f"With ReLU, positive as the benchmark has it: {words}."
    effect = t_interval(next(iter(tests.values()), []))
    return Finding(BY_ID["P6"], verdict, found, effect, f"{UNIT}, {_first(records)}, before")


def p7(records: Records) -> Finding:
    """With BN after the activation, ReLU, ELU and PReLU are equivalent two by two, and nearer than without BN."""
    margin = records.settings["negligible_points"]
    verdicts, parts, shown = [], [], Interval(float("nan"), float("nan"), float("nan"), 0)
    for network in networks_of(records):
        tests = [
            equivalence([POINTS * d for d in paired(*(by_seed(records, network, a, "after") for a in pair))], margin)
            for pair in combinations(ALIKE, 2)
        ]
        spreads = {order: spread(records, network, order) for order in ORDERS}
        nearer = t_interval(paired(spreads["none"], spreads["after"]))
        if all(test.equivalent for test in tests):
            verdicts.append(Verdict.reproduced if nearer.low > 0 else Verdict.partly)
        elif any(test.interval.low > margin or test.interval.high < -margin for test in tests):
            verdicts.append(Verdict.not_reproduced)
        else:
            verdicts.append(Verdict.inconclusive)
        means = {order: t_interval(list(values.values())).mean for order, values in spreads.items()}
        parts.append(
            f"{network}: best less worst of the three {means['after']:.2f} points with BN after, {means['before']:.2f} "
            f"before, {means['none']:.2f} without (without less after: {judge.in_words(nearer, 'points')}; "
            f"{sum(test.equivalent for test in tests)} of {len(tests)} pairs equivalent)"
        )
        shown = shown if shown.n else nearer
    found = f"Equivalent within ±{margin:g} points (TOST, the three pairs of a network all must be). " + "; ".join(
        parts
    )
    verdict = combined(verdicts)
    return Finding(BY_ID["P7"], verdict, f"{found}.", shown, f"{UNIT}, {_first(records)}, spread without BN less with")


def spread(records: Records, network: str, order: str) -> dict[int, float]:
    """Best less worst of ReLU, ELU and PReLU, in percentage points, by seed."""
    three = [by_seed(records, network, activation, order) for activation in ALIKE]
    seeds = set.intersection(*(set(values) for values in three))
    return {s: POINTS * (max(v[s] for v in three) - min(v[s] for v in three)) for s in sorted(seeds)}


# --- tables ---


def accuracies(records: Records) -> Table:
    """Every cell of the grid."""
    rows = []
    for network in networks_of(records):
        for activation in records.settings["activations"]:
            row: dict[str, Any] = {"network": network, "activation": activation}
            for order in ORDERS:
                row[ORDER_NAMES[order]] = t_interval(list(by_seed(records, network, activation, order).values()))
            for name, first, second in (("after - before", "after", "before"), ("after - no BN", "after", "none")):
                a, b = (by_seed(records, network, activation, order) for order in (first, second))
                row[f"{name}, points"] = t_interval([POINTS * d for d in paired(a, b)])
            rows.append(row)
    return Table("accuracies", "Test accuracy by order, activation and network (mean over seeds, 95% interval)", rows)


def beside(records: Records) -> Table:
    """The benchmark's numbers and ours, with ReLU."""
    rows = []
    for network, numbers in REPORTED.items():
        row: dict[str, Any] = {"network": network}
        row |= {ORDER_NAMES[order]: _alone(value) for order, value in numbers.items()}
        rows.append(
            {**row, "after - before, points": _alone(round(POINTS * (numbers["after"] - numbers["before"]), 1))}
        )
    for network in networks_of(records):
        values = {order: by_seed(records, network, "relu", order) for order in REPORTED[next(iter(REPORTED))]}
        row = {"network": f"{network} (here)"}
        row |= {ORDER_NAMES[order]: t_interval(list(found.values())) for order, found in values.items()}
        difference = t_interval([POINTS * d for d in paired(values["after"], values["before"])])
        rows.append({**row, "after - before, points": difference})
    title = "The benchmark's top-1 accuracies (one run each) and ours (mean over seeds, 95% interval), ReLU"
    return Table("beside_the_source", title, rows)


def _alone(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"), 1)


def dropouts(records: Records) -> Table:
    """By position and amount."""
    cells = list(
        dict.fromkeys((r["norm"], r["position"], r["amount"]) for r in records.select(records.runs, part=DROPOUT))
    )
    rows = []
    for norm, position, amount in cells:
        values = records.by_seed("test_accuracy", part=DROPOUT, norm=norm, position=position, amount=amount)
        effect = t_interval(dropout_effect(records, norm, position, amount)) if amount else None
        rows.append(
            {
                "norm": norm,
                "position": position,
                "dropout": amount,
                "test accuracy": t_interval(list(values.values())),
                "minus no dropout, points": effect,
            }
        )
    return Table("dropout", "Test accuracy by place and amount of dropout (mean over seeds, 95% interval)", rows)


def ghosts(records: Records) -> Table:
    """By size of the ghost batch."""
    rows = []
    for size in sorted({int(r["size"]) for r in records.select(records.measurements, part=GHOST)}):
        values = {
            q: records.measured(q, part=GHOST, size=size) for q in ("train_loss", "test_loss", "gap", "test_accuracy")
        }
        names = {
            "train_loss": "training loss",
            "test_loss": "test loss",
            "gap": "gap",
            "test_accuracy": "test accuracy",
        }
        rows.append({"images": size} | {names[q]: t_interval(list(v.values())) for q, v in values.items()})
    title = "Loss and accuracy in eval mode by the number of images that statistics are taken from (95% intervals)"
    return Table("ghost", title, rows)
