"""What a sweep came to: its table, the best of it, and its figure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bnrepro.cli import listing
from bnrepro.report import sweeping
from bnrepro.report.sweeping import Cell
from bnrepro.runs.tables import read_rows
from bnrepro.stats import t_interval


def cell(values: dict[str, object], val: list[float], test: list[float] | None = None) -> Cell:
    accuracies = {"val_accuracy": t_interval(val), "test_accuracy": t_interval(val if test is None else test)}
    return Cell(values, accuracies, len(val), 0, 0)


GRID = [
    cell({"variant": "bn", "optimizer.lr": 0.1}, [0.7, 0.72], [0.99, 0.99]),
    cell({"variant": "bn", "optimizer.lr": 0.01}, [0.8, 0.9], [0.5, 0.5]),
    cell({"variant": "nobn", "optimizer.lr": 0.1}, []),
    cell({"variant": "nobn", "optimizer.lr": 0.01}, [0.85]),
]


def test_best_is_by_mean_validation_accuracy_and_the_first_of_equals() -> None:
    assert sweeping.best(GRID) is GRID[1]
    assert sweeping.best([GRID[2]]) is None
    assert [row["best"] for row in sweeping.table(GRID)] == [False, True, False, False]
    text = listing.sweep_table(GRID).splitlines()
    assert [line.split()[0] for line in text[1:5]] == ["variant=bn", "*", "variant=nobn", "variant=nobn"]
    assert text[-1].startswith("* variant=bn optimizer.lr=0.01 has the best validation accuracy")
    assert "*" not in listing.sweep_table(GRID[:1])


def test_table_reads_back_and_has_no_numbers_where_nothing_finished(tmp_path: Path) -> None:
    sweeping.save(GRID, tmp_path)
    rows = read_rows(tmp_path / sweeping.TABLE)
    assert [row["optimizer.lr"] for row in rows] == [0.1, 0.01, 0.1, 0.01]
    assert rows[2]["val_accuracy_mean"] is None
    assert rows[1]["val_accuracy_mean"] == pytest.approx(0.85)
    assert {file.name for file in tmp_path.iterdir()} == {"table.csv", "accuracy.svg", "accuracy.png"}


AXES = [
    (GRID, "optimizer.lr", "linear"),
    ([cell({"optimizer.lr": 10.0**-i}, [0.5]) for i in range(3)], "optimizer.lr", "log"),
    (
        [cell({"batch_size": n, "optimizer.lr": lr}, [0.5]) for n in (16, 32, 64) for lr in (0.1, 0.2)],
        "batch_size",
        None,
    ),
    ([cell({"schedule.milestones": [0.5, i / 10]}, [0.5]) for i in (6, 7)], "", "linear"),
    ([cell({}, [0.5])], "", "linear"),
    ([cell({"norm.eps": None}, [0.5]), cell({"norm.eps": 0.1}, [0.5])], "", "linear"),
]


@pytest.mark.parametrize(("cells", "label", "scale"), AXES, ids=range(len(AXES)))
def test_figure_draws_every_cell_against_the_key_with_most_numbers(
    cells: list[Cell], label: str, scale: str | None
) -> None:
    (axes, *_) = sweeping.figure(cells).axes
    assert axes.get_xlabel() == label
    assert scale is None or axes.get_xscale() == scale
    drawn = sum(len(each[0].get_xdata()) for each in axes.containers)
    assert drawn == sum(not math.isnan(each.accuracies["val_accuracy"].mean) for each in cells)
