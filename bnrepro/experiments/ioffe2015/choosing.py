"""What the paper does not state, chosen on validation data: which cell of a grid of short runs is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from bnrepro.config import UserError, run_dir
from bnrepro.record import Run, Status
from bnrepro.schema import Config

Cell = tuple[float, float]
"""Learning rate, and deviation of the initial weights (which only init=gaussian looks at)."""


def best(accuracies: Mapping[Cell, list[float]]) -> Cell:
    """The cell with the highest mean validation accuracy; of equals the first. A diverged run counts as 0."""
    return max(accuracies, key=lambda cell: fmean(accuracies[cell]))


def accuracy(status: str, val_accuracy: float | None) -> float:
    """What a run counts."""
    return val_accuracy or 0.0 if status == Status.completed else 0.0


def at(cfg: Config, cell: Cell, seed: int) -> Config:
    """``cfg`` with a cell's learning rate and deviation."""
    optimizer, model = replace(cfg.optimizer, lr=cell[0]), replace(cfg.model, init_std=cell[1])
    return replace(cfg, optimizer=optimizer, model=model, seed=seed)


def chosen(run: Run, cells: list[list[float]], seeds: int) -> Cell:
    """The best cell of the grid that ``run`` is one of: the others lie beside it.

    Raises:
        UserError: one of them is missing or did not finish.
    """
    found: dict[Cell, list[float]] = {}
    for lr, std in cells:
        for seed in range(seeds):
            other = Run(run.path.parent / run_dir(at(run.config, (lr, std), seed)).name)
            if not other.finished:
                raise UserError(f"the run with learning rate {lr:g} and deviation {std:g}, seed {seed}, did not finish")
            value = accuracy(str(other.status), other.summary.get("val_accuracy"))
            found.setdefault((lr, std), []).append(value)
    return best(found)
