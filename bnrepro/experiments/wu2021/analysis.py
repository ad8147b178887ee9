"""From the records of `wu2021` to findings, tables and figures."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from bnrepro.experiments.base import Analysis, Finding, Records, Table, drawn
from bnrepro.experiments.cells import equal_everywhere, greater_everywhere
from bnrepro.experiments.judge import numbers
from bnrepro.experiments.wu2021 import drawing
from bnrepro.experiments.wu2021.claims import BY_ID
from bnrepro.experiments.wu2021.measurements import BATCH, CUMULATIVE, FROZEN, GHOST, PATH, POPULATION
from bnrepro.stats import paired, t_interval

UNIT = "percentage points of test accuracy"
USUAL = 0.1  # torch's momentum, and 1 - 0.9 of the source
EARLY = 0.2  # share of a training that is its beginning
SMALL = (2, 4)  # images a ghost batch that the source calls small


def analyse(records: Records) -> Analysis:
    """All findings in the order of the claims, with tables and figures."""
    tables = [final_table(records), samples_table(records), ghost_table(records)]
    return Analysis(judged(records), tables, drawn(lambda: [drawing.along(records), drawing.against(records)]))


def judged(records: Records) -> list[Finding]:
    """A finding for each claim."""
    return [w1(records), w1_2(records), w1_3(records), w1_4(records), w1_5(records), w2(records)]


def cells(records: Records) -> dict[str, dict[str, Any]]:
    """The networks: a name, and the factors that pick their rows."""
    path = records.settings["path"]
    return {
        f"{variant}, {size} batch": {"part": PATH, "variant": variant, "batch": size}
        for variant in path["variants"]
        for size in path["batches"]
    }


def w1(records: Records) -> Finding:
    """Population less moving average at the end: above minus the margin everywhere."""
    differences = {
        name: paired(records.measured(f"final_{POPULATION}", **who), records.measured(f"final_ema {USUAL:g}", **who))
        for name, who in cells(records).items()
    }
    lead = f"Population less moving average (momentum {USUAL:g}) at the end, not below minus the margin"
    return greater_everywhere(BY_ID["W1"], differences, -records.settings["margin_points"], UNIT, lead)


def w1_2(records: Records) -> Finding:
    """Population less moving average over the first fifth, large batch."""
    margin = records.settings["margin_points"]
    chosen = {name: who for name, who in cells(records).items() if who["batch"] == "large"}
    lost, words = {}, []
    for name, who in chosen.items():
        by_kind = {kind: early(records, kind, who) for kind in (POPULATION, f"ema {USUAL:g}")}
        means = {kind: {seed: fmean(v) for seed, v in found.items()} for kind, found in by_kind.items()}
        lost[name] = paired(means[POPULATION], means[f"ema {USUAL:g}"])
        spreads = [
            f"{kind} {fmean(stdev(v) for v in found.values()):.2g}"
            for kind, found in by_kind.items()
            if found and all(len(v) > 1 for v in found.values())
        ]
        words.append(f"{name} {', '.join(spreads)}")
    lead = f"Population less moving average (momentum {USUAL:g}), mean over the first fifth of the training"
    finding = greater_everywhere(BY_ID["W1.2"], lost, margin, UNIT, lead)
    said = f"{finding.found} Deviation of the accuracies there, points: {'; '.join(words)}."
    return Finding(finding.claim, finding.verdict, said, finding.effect, finding.unit)


def early(records: Records, kind: str, who: dict[str, Any]) -> dict[int, list[float]]:
    """The accuracies at the points in the first fifth of a training, by seed."""
    rows = records.select(records.measurements, quantity=f"accuracy_{kind}", **who)
    last = max((row["x"] for row in rows), default=0)
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["x"] <= EARLY * last + 0.5:  # the places are whole steps
            found.setdefault(int(row["seed"]), []).append(row["value"])
    return found


def w1_3(records: Records) -> Finding:
    """Few samples against all of them."""
    enough = records.settings["enough"]
    differences = {
        name: paired(_samples(records, enough, who), records.measured(f"final_{POPULATION}", **who))
        for name, who in cells(records).items()
    }
    margin = records.settings["margin_points"]
    lead = f"Statistics of {enough:,} training images less those of all"
    return equal_everywhere(BY_ID["W1.3"], differences, margin, UNIT, lead)


def _samples(records: Records, count: int, who: dict[str, Any]) -> dict[int, float]:
    rows = records.select(records.measurements, quantity="samples", x=count, **who)
    return {int(row["seed"]): row["value"] for row in rows}


def w1_4(records: Records) -> Finding:
    """Batch statistics less the population's at test, small ghost batches."""
    lead = "Statistics of each ghost batch less the population's at test"
    finding = greater_everywhere(BY_ID["W1.4"], _ghosts(records, BATCH, POPULATION), 0.0, UNIT, lead)
    gaps = [
        f"{size} images, {kind} {numbers(t_interval(paired(trained, ghost(records, 'test', kind, size))))}"
        for size in SMALL
        for trained in [ghost(records, "train", BATCH, size)]
        for kind in (POPULATION, BATCH)
    ]
    said = f"{finding.found} Training accuracy with batch statistics less test accuracy, points: {'; '.join(gaps)}."
    return Finding(finding.claim, finding.verdict, said, finding.effect, finding.unit)


def w1_5(records: Records) -> Finding:
    """Frozen at the end less the population's without freezing, small ghost batches."""
    frozen, epochs = (records.settings["ghost"][key] for key in ("frozen_epochs", "epochs"))
    lead = f"Frozen statistics in the last {frozen} of {epochs} epochs, less the population's without freezing, at test"
    return greater_everywhere(BY_ID["W1.5"], _ghosts(records, FROZEN, POPULATION), 0.0, UNIT, lead)


def _ghosts(records: Records, first: str, second: str) -> dict[str, list[float]]:
    return {
        f"{size} images": paired(ghost(records, "test", first, size), ghost(records, "test", second, size))
        for size in SMALL
    }


def ghost(records: Records, split: str, kind: str, size: int) -> dict[int, float]:
    """Accuracy on a split by the kind of statistics, by seed."""
    rows = records.select(records.measurements, part=GHOST, quantity=split, x=kind, size=size)
    return {int(row["seed"]): row["value"] for row in rows}


def w2(records: Records) -> Finding:
    """The other momenta against the usual one."""
    momenta = records.settings["path"]["momenta"]
    differences = {
        f"{name}, momentum {m:g}": paired(
            records.measured(f"final_ema {m:g}", **who), records.measured(f"final_ema {USUAL:g}", **who)
        )
        for name, who in cells(records).items()
        for m in momenta
        if m != USUAL
    }
    lead = f"Moving average at the end, less that with momentum {USUAL:g}"
    return equal_everywhere(BY_ID["W2"], differences, records.settings["margin_points"], UNIT, lead)


# --- tables ---


def final_table(records: Records) -> Table:
    """Test error at the end by the kind of statistics, as the comparison of momenta has it."""
    kinds = [f"ema {m:g}" for m in records.settings["path"]["momenta"]] + [CUMULATIVE, POPULATION, BATCH]
    rows = [
        {"statistics": kind, "source's error, %": REPORTED.get(kind)}
        | {
            f"{name}, error, %": t_interval([100 - v for v in records.measured(f"final_{kind}", **who).values()])
            for name, who in cells(records).items()
        }
        for kind in kinds
    ]
    n = records.settings["seeds"]
    title = f"Test error at the end of training by the statistics at test; 95% intervals over n={n} seeds."
    return Table("final", title, rows)


REPORTED = {"ema 0.01": 8.35, "ema 0.1": 8.29, "ema 1": 8.63}
"""gcr's: ResNet-20 on CIFAR-10."""


def samples_table(records: Records) -> Table:
    """Test accuracy by the number of samples."""
    counts = records.settings["path"]["samples"]
    rows = [
        {"samples": count}
        | {f"{name}, %": t_interval(list(_samples(records, count, w).values())) for name, w in cells(records).items()}
        for count in counts
    ]
    rows.append(
        {"samples": "all"}
        | {
            f"{name}, %": t_interval(list(records.measured(f"final_{POPULATION}", **who).values()))
            for name, who in cells(records).items()
        }
    )
    n = records.settings["seeds"]
    title = f"Test accuracy by the number of training images in the population's statistics; 95% intervals, n={n}."
    return Table("samples", title, rows)


def ghost_table(records: Records) -> Table:
    """Accuracies by the size of the ghost batch and the kind of statistics."""
    rows = [
        {"images a ghost batch": size, "statistics at test": kind}
        | {f"{split}, %": t_interval(list(ghost(records, split, kind, size).values())) for split in ("test", "train")}
        for size in records.settings["ghost"]["sizes"]
        for kind in ("ema", POPULATION, BATCH, FROZEN)
    ]
    n = records.settings["seeds"]
    title = f"Accuracy after training on ghost batches, by the statistics at test; 95% intervals over n={n} seeds."
    return Table("ghost", title, rows)
