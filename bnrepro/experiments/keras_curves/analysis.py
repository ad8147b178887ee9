"""From the records of K1 to K8 to tables, figures and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from bnrepro.experiments import judge
from bnrepro.experiments.base import Analysis, Finding, Records, Table, Verdict, drawn
from bnrepro.experiments.keras_curves.claims import BY_ID, FIRST_EPOCHS
from bnrepro.experiments.keras_curves.drawing import LABELS, pictures
from bnrepro.experiments.keras_curves.exact import LOCKSTEP, OPERATIONS, PAIRS
from bnrepro.experiments.keras_curves.grid import ARMS, CURVES, FLIPS, SOURCES
from bnrepro.stats import Interval, holm, p_value, paired, t_interval

BySeed = dict[int, float]
POINTS = 100  # percentage points in 1
EXACT = 1e-10  # of losses and outputs of size 1 in float64
COLUMNS = {"train_accuracy": 1, "val_accuracy": 1, "train_loss": -1, "val_loss": -1}
"""The four figures, and which way is better."""


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    return Analysis(judged(records), tables(records), drawn(lambda: pictures(records)))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [k1(records), k2(records), k3(records), k4(), k5(records), k6(records), k7(), k8(records)]


def tables(records: Records) -> list[Table]:
    """The tables of the arms, that of the source's figures, that of the two networks in step."""
    return [summary(records), speed(records), first_epochs(records), probes_table(records)]


# --- numbers of the curves ---


def curve(records: Records, arm: str, flips: str, seed: int) -> list[dict[str, Any]]:
    """The evaluations of a completed run, in order."""
    rows = records.select(records.curves, part=CURVES, arm=arm, flips=flips, seed=seed)
    return sorted(rows, key=lambda row: row["step"])


def over_curves(records: Records, arm: str, flips: str, number: Any) -> BySeed:
    """``number`` of the curve of each completed run, by seed."""
    seeds = records.by_seed("seed", part=CURVES, arm=arm, flips=flips)
    values = {seed: number(curve(records, arm, flips, seed)) for seed in seeds}
    return {seed: value for seed, value in values.items() if value is not None}


def steps_to(rows: Sequence[dict[str, Any]], column: str, threshold: float) -> float | None:
    """Steps to the first evaluation at the threshold or better; those of the whole run if it never is there."""
    better = COLUMNS[column]
    reached = [row["step"] for row in rows if (row[column] - threshold) * better >= 0]
    return float(reached[0] if reached else rows[-1]["step"]) if rows else None


def reached(rows: Sequence[dict[str, Any]], column: str, threshold: float) -> float:
    """1 if the threshold is reached, 0 if not."""
    return float(any((row[column] - threshold) * COLUMNS[column] >= 0 for row in rows))


def at_epoch(rows: Sequence[dict[str, Any]], column: str, epoch: int) -> float | None:
    """``column`` after ``epoch`` epochs; of training, the mean over the epoch's evaluations, as Keras reports it."""
    within = [row for row in rows if epoch - 1 < row["epoch"] - 1e-9 and row["epoch"] <= epoch + 1e-9]
    if not within:
        return None
    return fmean(row[column] for row in within) if column.startswith("train") else float(within[-1][column])


def thresholds(records: Records) -> dict[str, float]:
    """Column -> the preset's threshold."""
    return {
        "val_accuracy": records.settings["val_accuracy_threshold"],
        "train_loss": records.settings["train_loss_threshold"],
    }


def saved_steps(records: Records, flips: str = "with") -> dict[tuple[str, str], list[float]]:
    """(arm, column) -> over seeds, how many steps earlier than no BN the arm reaches the threshold."""

    def steps(arm: str, column: str, threshold: float) -> BySeed:
        return over_curves(records, arm, flips, lambda rows: steps_to(rows, column, threshold))

    return {
        (arm, column): paired(steps("nobn", column, threshold), steps(arm, column, threshold))
        for arm in SOURCES
        for column, threshold in thresholds(records).items()
    }


def gain(records: Records, arm: str, column: str, flips: str = "with", base: str = "nobn") -> list[float]:
    """``column`` of ``arm`` less that of ``base`` at the end, over seeds, in percentage points."""
    ends = [records.by_seed(column, part=CURVES, arm=name, flips=flips) for name in (arm, base)]
    return [POINTS * difference for difference in paired(*ends)]


# --- verdicts ---


def family(tests: dict[Any, list[float]]) -> Verdict:
    """A claim that several differences are all above zero, with Holm's correction in either direction.

    All are: reproduced. Some are, and none is below: partly. Any is below: not reproduced. Else inconclusive.
    """
    keyed = {str(key): values for key, values in tests.items()}
    above = holm({key: p_value(values, "greater") for key, values in keyed.items()})
    below = holm({key: p_value(values, "less") for key, values in keyed.items()})
    if any(below.values()):
        return Verdict.not_reproduced
    if all(above.values()):
        return Verdict.reproduced
    return Verdict.partly if any(above.values()) else Verdict.inconclusive


def k1(records: Records) -> Finding:
    """Steps to the thresholds, no BN less BN, of the source's two arms."""
    tests = saved_steps(records)
    parts = []
    for (arm, column), differences in tests.items():
        level = thresholds(records)[column]
        ours, without = (
            sum(over_curves(records, name, "with", lambda rows, c=column, t=level: reached(rows, c, t)).values())
            for name in (arm, "nobn")
        )
        words = judge.in_words(t_interval(differences), "steps earlier")
        parts.append(
            f"{LABELS[arm]} reaches {_name(column)} {level:g} {words} "
            f"(reached by {ours:.0f} runs, and by {without:.0f} without BN)"
        )
    plain = t_interval(saved_steps(records, "without")["bn", "val_accuracy"])
    found = (
        "; ".join(parts)
        + ". A run that never reaches a threshold counts with all its steps, which makes differences smaller. Without "
        f"horizontal flips, to the same validation accuracy: {judge.in_words(plain, 'steps')}."
    )
    return Finding(BY_ID["K1"], family(tests), found, t_interval(tests["bn", "val_accuracy"]), "steps")


def k2(records: Records) -> Finding:
    """Test accuracy at the end, against the margin above which one run's test set can tell a difference."""
    margin = records.settings["significant_margin_points"]
    effects = {arm: t_interval(gain(records, arm, "test_accuracy")) for arm in SOURCES}
    verdicts = [_by_a_margin(effect, margin) for effect in effects.values()]
    plain = t_interval(gain(records, "bn", "test_accuracy", "without"))
    words = "; ".join(f"{LABELS[a]}: {judge.in_words(e, 'percentage points')}" for a, e in effects.items())
    found = (
        f"Test accuracy over that of no BN after {records.settings['epochs']} epochs: {words}. Called significant from "
        f"{margin:g} percentage points on, the sampling error of one run's test set. Without horizontal flips, "
        f"{LABELS['bn']}: {judge.in_words(plain, 'percentage points')}."
    )
    verdict = verdicts[0] if len(set(verdicts)) == 1 else _weaker(verdicts)
    return Finding(BY_ID["K2"], verdict, found, effects["bn"], "percentage points of test accuracy")


def _by_a_margin(effect: Interval, margin: float) -> Verdict:
    """Reproduced: above the margin. Partly: above zero, and below the margin. Not: below the margin, zero included."""
    if effect.low > margin:
        return Verdict.reproduced
    if effect.high < margin:
        return Verdict.partly if effect.low > 0 else Verdict.not_reproduced
    return Verdict.inconclusive


def _weaker(verdicts: Sequence[Verdict]) -> Verdict:
    """Of two that differ: what can be said of both."""
    if Verdict.inconclusive in verdicts:
        return Verdict.inconclusive
    return Verdict.partly


def k3(records: Records) -> Finding:
    """Exactly equal in float64 at every step, and equivalent in test accuracy in float32; both at equal settings."""
    worst = largest(records, "training", "same settings")
    momentum, eps = (largest(records, "training", pair) for pair in ("momentum 0.1", "eps 1e-6"))
    lag, lag_eps = (largest(records, "eval", pair) for pair in ("momentum 0.1", "eps 1e-6"))
    margin = records.settings["equivalence_margin_points"]
    steps = records.settings["lockstep_steps"]
    test = judge.equal(
        BY_ID["K3"], gain(records, "custombn", "test_accuracy", base="bn"), margin, "percentage points of test accuracy"
    )
    own = judge.equal(
        BY_ID["K3"], gain(records, "custombn_own", "test_accuracy", base="bn"), margin, "percentage points"
    )
    found = (
        f"At the framework's eps and momentum the two training losses differ by at most {worst:.1e} in float64 over "
        f"{steps} steps (tolerance {EXACT:g}), and test accuracy after float32 training by {test.found}. What the "
        f"source calls a small difference comes from its other settings: momentum alone changes no training loss (at "
        f"most {momentum:.1e}) and the loss in eval mode by up to {lag:.2g}; eps alone changes them by up to {eps:.1e} "
        f"and {lag_eps:.1e}. With the source's own settings, against the framework's: {own.found}."
    )
    verdict = test.verdict if worst <= EXACT else Verdict.not_reproduced
    return Finding(BY_ID["K3"], verdict, found, test.effect, test.unit)


def largest(records: Records, quantity: str, pair: str) -> float:
    """The largest value of a quantity of the lockstep over steps and seeds; infinite where nothing was measured."""
    rows = records.select(records.measurements, part=LOCKSTEP, quantity=quantity, pair=pair)
    return max((row["value"] for row in rows), default=float("inf"))


def k4() -> Finding:
    """An over-claim, by what the source did."""
    return judge.not_testable(
        BY_ID["K4"],
        "It is a claim about what the source did, and more than it did: network, data, augmentation and optimiser are "
        "not the paper's, and no figure or number of the paper is repeated; what can be tested of it is K1 and K2.",
    )


def k5(records: Records) -> Finding:
    """The mean over the ends of epochs, which the source's figures show, of its two arms less no BN."""
    tests = {}
    for column, better in COLUMNS.items():
        height = {a: over_curves(records, a, "with", lambda rows, c=column: _mean(rows, c)) for a in ("nobn", *SOURCES)}
        for arm in SOURCES:
            tests[arm, column] = [better * d for d in paired(height[arm], height["nobn"])]
    words = "; ".join(
        f"{LABELS[arm]}, {_name(column)}: {judge.numbers(t_interval(values))}"
        for (arm, column), values in tests.items()
    )
    effect = t_interval(tests["bn", "val_accuracy"])
    found = (
        f"By how much each is better than no BN, as a mean over the ends of epochs (n={effect.n}, 95% intervals; "
        f"accuracy as a fraction): {words}."
    )
    return Finding(BY_ID["K5"], family(tests), found, effect, "of validation accuracy (a fraction), mean over epochs")


def _mean(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    last = round(rows[-1]["epoch"]) if rows else 0
    ends = [value for epoch in range(1, last + 1) if (value := at_epoch(rows, column, epoch)) is not None]
    return fmean(ends) if ends else None


def k6(records: Records) -> Finding:
    """The layer against its operations."""
    rows = records.select(records.measurements, part=OPERATIONS)
    worst = max((row["value"] for row in rows if row["quantity"] == "error"), default=float("inf"))
    flags = {row["quantity"]: row["value"] for row in rows}
    holds = worst <= EXACT and flags.get("learned") == 1
    bias = max(
        (r["value"] for r in records.select(records.measurements, quantity="bias", pair="same settings, float32")),
        default=float("nan"),
    )
    return judge.exact(
        BY_ID["K6"],
        holds,
        f"The four operations, the moving averages and inference differ from NumPy's by at most {worst:.1e} (float64, "
        f"tolerance {EXACT:g}), and gamma and beta have gradients. The text's own formula, without eps, gives 0/0 on a "
        f"channel that is constant in the batch. The source keeps the biases that its BN cancels: rounding alone makes "
        f"Adam move them by up to {bias:.1e} in {records.settings['lockstep_steps']} steps in float32.",
    )


def k7() -> Finding:
    """The source against itself: read, not measured."""
    return judge.not_testable(
        BY_ID["K7"],
        "It is about the source's own images, which are no part of this project and cannot be measured again. As they "
        "were read, it is false: the lengths of the two runs change places between the figures of accuracy and those "
        "of the loss, so the names are swapped in one pair of them, and which curve is the custom layer's cannot be "
        'told from them. Its code names the models ("None", "Custom", "Default") in plots.py and makes them in the '
        "order custom, framework, none.",
    )


def k8(records: Records) -> Finding:
    """Who is who: the framework's momentum leaves its moving averages behind after one epoch, so it is worse."""

    def first(arm: str) -> BySeed:
        return over_curves(records, arm, "with", lambda rows: at_epoch(rows, "val_accuracy", 1))

    differences = [POINTS * d for d in paired(first("bn"), first("custombn_own"))]
    finding = judge.greater(
        BY_ID["K8"],
        differences,
        "percentage points of validation accuracy",
        found="The framework's BN at its own momentum (0.01 in torch's sense) less the custom one at 0.1, after the "
        "first epoch: {effect}.",
    )
    more = {
        Verdict.not_reproduced: " The order is the opposite of the labels' in the figures of accuracy, which is what "
        "one expects if these are the ones that are swapped (K7).",
        Verdict.reproduced: " The order is that of the labels in the figures of accuracy, so those of the loss would "
        "be the ones that are swapped (K7).",
    }
    return Finding(
        finding.claim, finding.verdict, finding.found + more.get(finding.verdict, ""), finding.effect, finding.unit
    )


def _name(column: str) -> str:
    return {"train": "training", "val": "validation"}[column.split("_")[0]] + " " + column.split("_")[1]


# --- tables ---


def summary(records: Records) -> Table:
    """Test accuracy of each arm with and without flips."""
    rows = []
    for flips in FLIPS:
        for arm in ARMS:
            accuracy = records.by_seed("test_accuracy", part=CURVES, arm=arm, flips=flips)
            effect = t_interval(gain(records, arm, "test_accuracy", flips)) if arm != "nobn" else None
            row = {"flips": flips, "norm": LABELS[arm], "test accuracy": t_interval(list(accuracy.values()))}
            rows.append({**row, "minus no BN, points": effect})
    return Table("summary", "Test accuracy at the end (mean over seeds, 95% interval)", rows)


def speed(records: Records) -> Table:
    """Steps and epochs to the thresholds."""
    rows = []
    for flips in FLIPS:
        for arm in ARMS:
            of_arm = records.select(records.runs, part=CURVES, arm=arm, flips=flips, status="completed")
            in_epoch = of_arm[0]["steps"] / records.settings["epochs"] if of_arm else float("nan")
            for column, level in thresholds(records).items():
                steps = over_curves(records, arm, flips, lambda rows, c=column, t=level: steps_to(rows, c, t))
                there = over_curves(records, arm, flips, lambda rows, c=column, t=level: reached(rows, c, t))
                row: dict[str, Any] = {"flips": flips, "norm": LABELS[arm], "threshold": f"{_name(column)} {level:g}"}
                row["reached"] = f"{sum(there.values()):.0f} of {len(there)}"
                row["steps"] = t_interval(list(steps.values()))
                rows.append({**row, "epochs": t_interval([step / in_epoch for step in steps.values()])})
    title = (
        "Steps and epochs to the thresholds of K1 (mean over seeds, 95% interval; a run that does not reach one counts "
        "with all its steps)"
    )
    return Table("speed", title, rows)


def first_epochs(records: Records) -> Table:
    """Beside the values of the source's figures."""
    rows = []
    for (arm, epoch, column), reported in FIRST_EPOCHS.items():
        values = over_curves(records, arm, "with", lambda rows, c=column, e=epoch: at_epoch(rows, c, e))
        interval = t_interval(list(values.values()))
        about = {"norm": LABELS[arm], "epoch": epoch, "quantity": _name(column)}
        rows.append({**about, "source, one seed": reported, "here": interval})
    title = "The first two epochs with flips, beside the source's figures (mean over seeds, 95% interval)"
    return Table("first_epochs", title, rows)


def probes_table(records: Records) -> Table:
    """Framework and custom BN in step."""
    rows = []
    for pair in PAIRS:
        drift = records.measured("bias", part=LOCKSTEP, pair=pair)
        rows.append(
            {
                "custom BN against the framework's": pair,
                "largest difference of training losses": largest(records, "training", pair),
                "largest difference of losses in eval mode": largest(records, "eval", pair),
                "largest cancelled bias": max(drift.values(), default=None),
                "n": len(drift),
            }
        )
    steps = records.settings["lockstep_steps"]
    title = f"Two networks in step over {steps} steps (float64 unless it says float32; largest over steps and n seeds)"
    return Table("lockstep", title, rows)
