"""The tables: Figure 3 beside the paper's, Figure 1's numbers, units, what was chosen, rates, what regularises."""

from __future__ import annotations

from itertools import product
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from bnrepro.claims import Results, Values
from bnrepro.experiments.ioffe2015 import effects
from bnrepro.experiments.ioffe2015.networks import ARMS, UNIT

if TYPE_CHECKING:
    from bnrepro.experiments.ioffe2015 import Settings

Row = dict[str, Any]
BASELINE_STEPS = 31.0e6
REPORTED: dict[str, tuple[float | None, float]] = {
    "Baseline": (BASELINE_STEPS, 72.2),
    "BN-Baseline": (13.3e6, 72.7),
    "BN-x5": (2.1e6, 73.0),
    "BN-x30": (2.7e6, 74.8),
    "BN-x5-Sigmoid": (None, 69.8),
}
"""Figure 3: steps to 72.2% validation accuracy on ImageNet (None: never), and the best accuracy, in percent."""
LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}
GRIDS = {"figure1_choice": "Figure 1", "speed_choice": "Figures 2 and 3"}


def figure3(r: Results, s: Settings) -> list[Row]:
    """As the paper's Figure 3: steps to the baseline's best validation accuracy (of each seed), over the seeds that
    reached it, and the best accuracy. Beside it the paper's own (ImageNet).
    """
    taken, reached, rates = effects.race_steps(r, s), effects.reached(r), r.measured("rate", part="speed")
    rows = []
    for arm in ARMS:
        there = reached.at(arm=arm)
        own = Values((), {key: v for key, v in taken.at(arm=arm).data.items() if there.data.get(key)})
        steps, best = REPORTED.get(arm, (None, None))
        rows.append(
            {
                "model": arm,
                "rate": next(iter(rates.at(arm=arm)), None),
                "steps to the baseline's best": own.interval(),
                "seeds that reached it": int(sum(there)),
                "seeds": len(there),
                "diverged": len(r.measured("diverged", part="speed", arm=arm)),
                "times as fast": (taken.at(arm="Baseline") / own).interval(),
                "best validation accuracy, %": effects.race(r).at(arm=arm).max("x").interval(),
                "test accuracy, %": r.measured("test_accuracy", part="speed", arm=arm).interval(),
                "paper: steps to 72.2%": steps,
                "paper: times as fast": round(BASELINE_STEPS / steps, 2) if steps else None,
                "paper: max accuracy, %": best,
            }
        )
    return rows


def figure1a(r: Results, s: Settings) -> list[Row]:
    """Test accuracy (%) of Figure 1a's networks."""
    curves = r.measured("test_accuracy", part="figure1")
    steps = sorted(curves.levels("x"))
    wanted = [steps[round(share * (len(steps) - 1))] for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1)] if steps else []
    return [
        {"variant": variant} | {f"step {x:g}": curves.at(variant=variant, x=x).interval() for x in wanted}
        for variant in effects.NORMS
    ]


def units(r: Results, s: Settings) -> list[Row]:
    """Standard deviation of the {{15, 50, 85}}th percentiles of a sigmoid's inputs over training, log2 of without over
    with BN (above 0: steadier with BN), for all units of the last hidden layer.
    """
    return [
        {
            "drift": kind,
            f"unit {UNIT}": ratios.at(x=UNIT).interval(),
            "mean of all units": ratios.mean().interval(),
            "median unit": ratios.reduce(median).interval(),
            "units with less drift with BN, %": effects.share_positive(ratios).interval(),
        }
        for kind, ratios in effects.drift_ratios(r).items()
    ]


def choices(r: Results, s: Settings) -> list[Row]:
    """Learning rates and initial standard deviations that were tried, each in short runs; 0: diverged."""
    rows = []
    for (part, name), variant in product(GRIDS.items(), effects.NORMS):
        found = {cell: fmean(v) for cell, v in effects.choices(r, part, variant=variant).items()}
        for (rate, deviation), accuracy in found.items():
            row: Row = {"for": name, "variant": variant, "rate": rate, "standard deviation": deviation or None}
            row |= {"validation accuracy, %": 100 * accuracy, "runs": s.choosing_seeds}
            rows.append(row | {"chosen": accuracy == max(found.values())})
    return rows


def rate_sweep(r: Results, s: Settings) -> list[Row]:
    """Training on 5,000 digits by learning rate: seeds whose loss became infinite, and accuracy."""
    lost, accuracy = r.diverged(part="rates"), r.test_accuracy(part="rates")
    return [
        {
            "variant": variant,
            "rate": rate,
            "seeds": len(seeds),
            "diverged": int(sum(seeds)),
            "test accuracy of the others, %": accuracy.at(variant=variant, rate=rate).interval(),
        }
        for (variant, rate), seeds in lost.by("variant", "rate").items()
    ]


def regularisation(r: Results, s: Settings) -> list[Row]:
    """Dropout before the last layer, and batches that are drawn anew or always hold the same images; losses in eval
    mode.
    """
    accuracy = "test accuracy, %"
    rows: list[Row] = []
    for variant in effects.NORMS:
        about = {"variant": variant, "dropout": 0.0, "batches": "drawn anew"}
        losses: Row = {}
        for amount in s.dropout_amounts:
            who: Row = {"part": "dropout", "variant": variant, "amount": amount}
            losses = {name: r.measured(column, **who).interval() for column, name in LOSSES.items()}
            rows.append({**about, "dropout": amount, **losses, accuracy: r.test_accuracy(**who).interval()})
        fixed = r.test_accuracy(part="shuffle", variant=variant, fixed=True)
        rows.append({**about, "batches": "the same images", **dict.fromkeys(losses), accuracy: fixed.interval()})
    return rows
