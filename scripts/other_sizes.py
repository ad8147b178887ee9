"""Makes results/other_sizes: networks trained at 28 x 28, evaluated at other sizes, channel against local statistics.

python scripts/other_sizes.py [OUT]      (about a quarter of an hour on two cores; what has finished is not run again)

ResNet-20 (half width), which is fully convolutional up to its average pooling, on the embedded digits, three seeds.
The images are resized; what the norms keep per location is interpolated (ema), estimated again on the resized training
set (population), or replaced by each batch's own (batch).
"""

import csv
import sys
from pathlib import Path

from bnrepro.config import load_config
from bnrepro.launch import sweep
from bnrepro.report import compare
from bnrepro.runs.record import Run, write_csv
from bnrepro.stats import t_interval
from bnrepro.training.evaluation import Statistics, evaluate

SIZES = (16, 20, 24, 28, 32, 40, 56)
COLUMNS = ("variant", "statistics", "size", "n", "test_accuracy_mean", "test_accuracy_low", "test_accuracy_high")


def main(out: Path) -> None:
    """Train what is missing, evaluate, write table.csv and the records of the runs."""
    cfg = load_config(["model=resnet20", "model.width=0.5", "channels_last=true"])
    outcomes = sweep.run_all(compare.grid(cfg, ["bn", "convbn"], 3), sweep.default_jobs(cfg))
    runs = [Run(outcome.path) for outcome in outcomes]
    rows = []
    for variant in ("bn", "convbn"):
        for statistics in Statistics:
            for size in SIZES:
                mine = [run for run in runs if run.summary["variant"] == variant]
                interval = t_interval([evaluate(run, statistics, size)["test"][1] for run in mine])
                numbers = (interval.n, interval.mean, interval.low, interval.high)
                rows.append(dict(zip(COLUMNS, (variant, statistics.value, size, *numbers), strict=True)))
                csv.writer(sys.stdout).writerow(rows[-1].values())
    compare.save(compare.collect(runs), out / "runs")
    write_csv(out / "table.csv", COLUMNS, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/other_sizes"))
