"""Test accuracy in float32 and in bf16, and the difference: ``python scripts/precision.py TABLE [RUNS]``.

Into ``TABLE`` (results/bench/cifar_fast.csv, mnist5k_precision.csv) go the finished runs below the folder ``RUNS``,
each in place of one of its precision and seed that is there. What is printed is of the table alone.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from bnrepro.runs.record import Run
from bnrepro.stats import t_interval

COLUMNS = (
    *("seed", "status", "epochs", "test_accuracy", "test_loss", "precision", "threads", "machine", "data"),
    *("data_fingerprint", "torch", "config_hash"),
)


def main(table: Path, runs: Path | None = None) -> None:
    """Fill the table, and print what it says."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    if table.exists():
        with table.open(newline="", encoding="utf-8") as stream:
            rows = {(row["precision"], int(row["seed"])): row for row in csv.DictReader(stream)}
    for file in sorted(runs.rglob("summary.json")) if runs else ():
        run = Run(file.parent)
        if run.status == "completed":
            found = {**run.summary, "torch": run.summary["versions"]["torch"]}
            rows[found["precision"], found["seed"]] = {name: str(found[name]) for name in COLUMNS}
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))
    accuracy = {key: 100 * float(row["test_accuracy"]) for key, row in rows.items()}
    for precision in ("fp32", "bf16"):
        found = t_interval([value for (each, _), value in accuracy.items() if each == precision])
        print(f"{precision}: {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}], n={found.n}")
    pairs = [value - accuracy["bf16", seed] for (each, seed), value in accuracy.items() if each == "fp32"]
    found = t_interval(pairs, 0.9)
    print(f"fp32 - bf16: {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}], 90%, n={found.n}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
