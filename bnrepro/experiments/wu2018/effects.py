"""Accuracies in %, by seed, that verdicts, tables and figures share."""

from __future__ import annotations

from bnrepro.experiments.base import Records
from bnrepro.experiments.wu2018.grid import PARTS, SORTED

NAMES = {
    "bn": "BN",
    "renorm": "renorm",
    "local": "local statistics",
    "group": "group norm",
    "none": "no norm",
    "lrn": "LRN",
}
POINTS = 100  # percentage points in 1


def accuracies(records: Records, norm: str, images: int, column: str = "test_accuracy") -> dict[int, float]:
    """Accuracy of a norm whose statistics come from ``images`` images, of a run or of a loop of this experiment."""
    who = {"part": PARTS, "norm": norm, "images": images}
    runs = records.by_seed(column, **who)
    return {seed: POINTS * value for seed, value in runs.items()} or records.measured(column, **who)


def sizes_of(records: Records, norm: str) -> list[int]:
    """The numbers of images that there are records of."""
    rows = [*records.runs, *records.measurements]
    return sorted({int(row["images"]) for row in records.select(rows, part=PARTS, norm=norm)})


def sorted_accuracies(records: Records, norm: str, classes: int, quantity: str = "test_accuracy") -> dict[int, float]:
    """Accuracy after training on batches of ``classes`` runs of one class; 0: on shuffled ones."""
    return records.measured(quantity, part=SORTED, norm=norm, classes=classes)


def whole_batch(records: Records) -> int:
    """The batch size, which is the largest number of images."""
    return max(sizes_of(records, "bn"), default=0)
