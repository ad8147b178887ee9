"""The tables: Figure 3 beside the paper's, Figure 1's numbers, units, rates, what regularises."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from bnrepro.experiments.base import Records, Table
from bnrepro.experiments.ioffe2015.claims import REPORTED
from bnrepro.experiments.ioffe2015.effects import (
    POINTS,
    by_rate,
    choices,
    figure1_curves,
    first_at,
    highest,
    infinite,
    race_curves,
    race_speed_ups,
    unit_ratios,
)
from bnrepro.experiments.ioffe2015.figure1 import UNIT
from bnrepro.experiments.ioffe2015.grid import CHOICE1, CHOICE2, DROPOUT, RACE, SHUFFLE
from bnrepro.experiments.ioffe2015.race import ARMS
from bnrepro.stats import t_interval


def tables(records: Records) -> list[Table]:
    """All of them."""
    return [figure3(records), figure1(records), units(records), grids(records), rates(records), regularisers(records)]


def figure3(records: Records) -> Table:
    """The paper's columns, and the paper's numbers."""
    base, rows = race_curves(records, "Baseline"), []
    for arm in ARMS:
        own = race_curves(records, arm)
        reached = [
            step
            for seed, curve in own.items()
            if seed in base and (step := first_at(curve, max(base[seed].values()))) is not None
        ]
        steps, best = REPORTED.get(arm, (None, None))
        rate = list(records.measured("rate", part=RACE, arm=arm).values())
        rows.append(
            {
                "model": arm,
                "rate": rate[0] if rate else None,
                "steps to the baseline's best": t_interval([float(s) for s in reached]),
                "seeds that reached it": len(reached),
                "seeds": len(rate),
                "diverged": infinite(records, arm),
                "times as fast (0: never)": t_interval(list(race_speed_ups(records, arm).values())),
                "best validation accuracy, %": t_interval(list(highest(records, arm).values())),
                "test accuracy, %": t_interval(list(records.measured("test_accuracy", part=RACE, arm=arm).values())),
                "paper: steps to 72.2%": steps,
                "paper: times as fast": round(REPORTED["Baseline"][0] / steps, 2) if steps else None,  # type: ignore[operator]
                "paper: max accuracy, %": best,
            }
        )
    return Table(
        "figure3",
        "As the paper's Figure 3: steps to the baseline's best validation accuracy (of each seed), over the seeds that "
        f"reached it, and the best accuracy; mean and 95% interval over n = {records.settings['seeds']} seeds. Beside "
        "it the paper's own (ImageNet).",
        rows,
    )


def figure1(records: Records) -> Table:
    """Accuracy along Figure 1a."""
    rows = []
    ends = {variant: figure1_curves(records, "test_accuracy", variant) for variant in ("nobn", "bn")}
    steps = sorted({step for curve in ends["bn"].values() for step in curve})
    wanted = [steps[round(share * (len(steps) - 1))] for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1)] if steps else []
    for variant, own in ends.items():
        row: dict[str, Any] = {"variant": variant}
        row |= {f"step {s:g}": t_interval([curve[s] for curve in own.values() if s in curve]) for s in wanted}
        rows.append(row)
    return Table(
        "figure1",
        f"Test accuracy (%) of Figure 1a's networks; mean and 95% interval over n = {records.settings['seeds']} seeds.",
        rows,
    )


def units(records: Records) -> Table:
    """How typical unit 0 is."""
    rows = []
    for kind, relative in (("absolute", False), ("relative to the width", True)):
        ratios = unit_ratios(records, relative=relative)
        rows.append(
            {
                "drift": kind,
                f"unit {UNIT}": t_interval([own[UNIT] for own in ratios.values()]),
                "mean of all units": t_interval([fmean(own.values()) for own in ratios.values()]),
                "median unit": t_interval([median(own.values()) for own in ratios.values()]),
                "units with less drift with BN, %": t_interval(
                    [100 * fmean(r > 0 for r in own.values()) for own in ratios.values()]
                ),
            }
        )
    count = max((len(own) for own in unit_ratios(records).values()), default=0)
    return Table(
        "units",
        "Deviation of the {15, 50, 85}th percentiles of a sigmoid's inputs over training, log2 of without over with "
        f"BN (above 0: steadier with BN), for the {count} units of the last hidden layer; mean and 95% interval over "
        f"n = {records.settings['seeds']} seeds.",
        rows,
    )


def grids(records: Records) -> Table:
    """What the choices were made by."""
    rows = []
    for part, name, variants in ((CHOICE1, "Figure 1", ("nobn", "bn")), (CHOICE2, "Figures 2 and 3", (None,))):
        for variant in variants:
            who = {"variant": variant} if variant else {}
            found = choices(records, part, **who)
            top = max((fmean(v) for v in found.values()), default=0.0)
            for (rate, deviation), values in found.items():
                rows.append(
                    {
                        "for": name,
                        "variant": variant or "nobn",
                        "rate": rate,
                        "deviation": deviation or None,
                        "validation accuracy, %": POINTS * fmean(values),
                        "runs": len(values),
                        "chosen": fmean(values) == top,
                    }
                )
    return Table("choices", "Learning rates and deviations that were tried, each in short runs; 0: diverged.", rows)


def rates(records: Records) -> Table:
    """Accuracy and divergence by rate."""
    rows = []
    for variant in records.settings["rates"]["variants"]:
        for rate, values in sorted(by_rate(records, variant).items()):
            rows.append(
                {
                    "variant": variant,
                    "rate": rate,
                    "seeds": len(values),
                    "diverged": sum(value is None for value in values),
                    "test accuracy of the others, %": t_interval([v for v in values if v is not None]),
                }
            )
    return Table(
        "rates", "Training on 5,000 digits by learning rate: seeds whose loss became infinite, and accuracy.", rows
    )


def regularisers(records: Records) -> Table:
    """Dropout and shuffling."""
    rows = []
    for variant in ("nobn", "bn"):
        for amount in records.settings["dropout_amounts"]:
            who = {"part": DROPOUT, "variant": variant, "amount": amount}
            rows.append({"variant": variant, "dropout": amount, "batches": "drawn anew"} | _fit(records, who))
        fixed = records.by_seed("test_accuracy", part=SHUFFLE, variant=variant, fixed=True)
        same = {"test accuracy, %": t_interval([POINTS * v for v in fixed.values()])}
        rows.append({"variant": variant, "dropout": 0.0, "batches": "the same images"} | {**_fit(records, {}), **same})
    return Table(
        "regularisers",
        "Dropout before the last layer, and batches that are drawn anew or always hold the same images; losses in "
        f"eval mode; mean and 95% interval over n = {records.settings['seeds']} seeds.",
        rows,
    )


def _fit(records: Records, who: dict[str, Any]) -> dict[str, Any]:
    def of(quantity: str, factor: float = 1.0) -> Any:
        values = records.measured(quantity, **who).values() if who else []
        return t_interval([factor * v for v in values])

    return {
        "training loss": of("train_loss"),
        "test loss": of("test_loss"),
        "test accuracy, %": of("test_accuracy", POINTS),
    }
