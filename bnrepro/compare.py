"""Variants side by side over seeds: the grid, the record of all its runs in three files, and the table.

A comparison's directory stands by itself: ``runs.csv`` (one row a run), ``curves.csv`` (one row an evaluation),
``provenance.json`` are enough to make the table and the figures again.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from bnrepro import record, stored
from bnrepro.config import (
    MOST_RUNS,
    UserError,
    config_hash,
    digits_of,
    group_dir,
    leaves,
    unreadable,
    what,
    with_variant,
)
from bnrepro.record import Run, Status
from bnrepro.schema import Config
from bnrepro.stats import Interval, t_interval

VARIANTS = ("nobn", "bn", "custombn", "convbn")
RUNS, CURVES, TABLE, PROVENANCE = "runs.csv", "curves.csv", "table.csv", "provenance.json"
MEASUREMENTS, CAPTIONS = "measurements.csv", "captions.json"  # either makes a folder an experiment's

_TEXT = ("variant", "status", "precision", "device", "config_hash")
_NUMBERS = ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_accuracy", "train_loss")
_COUNTS = ("steps", "diverged_at_step", "parameters", "buffers", "threads")
RUN_COLUMNS = ("variant", "seed", "status", *_NUMBERS, *_COUNTS, "seconds", "precision", "device", "config_hash")
CURVE_COLUMNS = ("variant", "seed", *record.COLUMNS)
WITHOUT = ("variant", "seed")  # what differs between the runs of a comparison

Point = dict[str, Any]


def grid(cfg: Config, variants: Sequence[str], seeds: int) -> list[Config]:
    """``cfg`` for each variant and for the seeds 0 to ``seeds`` - 1; a seed's variants follow one another.

    Raises:
        UserError: these are too many.
    """
    names = list(dict.fromkeys(variants))
    labels = [with_variant(cfg, name).variant for name in names]
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(f"Two of the variants are called {twice[0]}. Give one of them another name.")
    if len(names) * seeds > MOST_RUNS:
        raise UserError(f"These are more than {MOST_RUNS:,} runs. Compare fewer variants or seeds.")
    return [replace(with_variant(cfg, name), seed=seed) for seed in range(seeds) for name in names]


def directory(configs: Sequence[Config], threshold: float | None = None) -> Path:
    """``<root>/<dataset>/<model>/compare-<hash>``, the hash over the runs in their order, and the threshold."""
    asked = [[config_hash(cfg) for cfg in configs], threshold]
    return group_dir(configs[0]) / f"compare-{digits_of(asked)}"


def check_room(folder: Path, configs: Sequence[Config], threshold: float | None = None) -> None:
    """Check that writing the comparison of ``configs`` into ``folder`` would lose none of the runs recorded there.

    Raises:
        UserError: ``folder`` is not a folder, or holds a different comparison or the results of an experiment.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the path of a folder.")
    if any(stored.is_file(folder / name) for name in (MEASUREMENTS, CAPTIONS)):
        raise UserError(f"--out={folder} holds an experiment's results. Give another folder.")
    if not (folder / RUNS).exists():
        return
    held = open_comparison(folder)
    kept = {(run["variant"], run["seed"]) for run in held.runs} <= {(cfg.variant, cfg.seed) for cfg in configs}
    there = {**dict(leaves(what(Config(), WITHOUT))), **dict(leaves(held.provenance.get("config", {})))}
    same = all(there.get(key) == value for key, value in leaves(what(configs[0], WITHOUT)))
    if not (kept and same and held.variants[0] == configs[0].variant and _threshold(folder) == threshold):
        raise UserError(
            f"--out={folder} holds another comparison ({', '.join(held.variants)}; {len(held.runs)} runs), which this "
            "one would replace. Give another folder, or delete that one."
        )


def _threshold(folder: Path) -> float | None:
    """The threshold used by the table in ``folder``."""
    with (folder / TABLE).open(newline="", encoding="utf-8") as stream:
        row = next(csv.DictReader(stream), {})
    return float(row["threshold"]) if row.get("threshold") else None


@dataclass(frozen=True)
class Comparison:
    """The records of a comparison."""

    runs: list[Point]
    """`RUN_COLUMNS`, one row a run."""
    curves: list[Point]
    """`CURVE_COLUMNS`, one row an evaluation."""
    provenance: dict[str, Any]
    """The data and its fingerprint, machines, versions, git revisions, configuration."""

    @cached_property
    def variants(self) -> list[str]:
        """The variants, in the order in which they were asked for."""
        return list(dict.fromkeys(str(run["variant"]) for run in self.runs))

    def of(self, variant: str) -> list[Point]:
        """The variant's runs, by seed."""
        return sorted((run for run in self.runs if run["variant"] == variant), key=lambda run: int(run["seed"]))

    def completed(self, variant: str) -> list[Point]:
        """Those of the variant's runs that trained to the end."""
        return [run for run in self.of(variant) if run["status"] == Status.completed]

    def over_seeds(self, variant: str, column: str, by: str = "epoch") -> list[tuple[float, list[float]]]:
        """(epoch or step, one value a seed) of a column of the curves, completed runs only."""
        seeds = {run["seed"] for run in self.completed(variant)}
        points: dict[float, list[float]] = {}
        for point in self.curves:
            if point["variant"] == variant and point["seed"] in seeds and point[column] is not None:
                points.setdefault(point[by], []).append(point[column])
        return sorted(points.items())


def collect(runs: Iterable[Run]) -> Comparison:
    """The records of finished runs, as one comparison."""
    rows: list[Point] = []
    curves: list[Point] = []
    found: dict[str, list[Any]] = {"data": [], "machines": [], "versions": [], "git_revisions": []}
    config: dict[str, Any] = {}
    for run in {run.path: run for run in runs}.values():  # a run is one, however often it is named
        summary = run.summary
        rows.append({column: summary.get(column) for column in RUN_COLUMNS})
        if os.path.lexists(run.path / record.METRICS):
            who = {"variant": summary["variant"], "seed": summary["seed"]}
            curves += [{**who, **row} for row in run.metrics]
        data = {key: summary.get(key) for key in ("data", "data_official", "data_fingerprint")}
        for key, value in (
            ("data", data),
            ("machines", summary.get("machine")),
            ("versions", summary.get("versions")),
            ("git_revisions", summary.get("git_revision")),
        ):
            if value not in found[key]:
                found[key].append(value)
        config = config or what(run.config, WITHOUT)
    return Comparison(rows, curves, {**found, "config": config})


def save(comparison: Comparison, folder: Path, threshold: float | None = None) -> None:
    """Write the comparison's records and its table into ``folder``."""
    record.write_csv(folder / RUNS, RUN_COLUMNS, comparison.runs)
    record.write_csv(folder / CURVES, CURVE_COLUMNS, comparison.curves)
    rows = table(comparison, threshold)
    record.write_csv(folder / TABLE, list(rows[0]), rows)
    record.write_whole(folder / PROVENANCE, json.dumps(comparison.provenance, indent=2) + "\n")


def find(root: Path) -> Iterator[Path]:
    """The comparisons in ``root`` and below."""
    for file in sorted({root / RUNS, *root.glob(f"**/{RUNS}")}):
        if stored.is_file(file) and not any(stored.is_file(file.parent / name) for name in (MEASUREMENTS, CAPTIONS)):
            yield file.parent


def open_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote into ``folder``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        provenance = stored.read_json(folder / PROVENANCE, Provenance)
        runs = [_typed(row) for row in record.read_csv(folder / RUNS, RUN_COLUMNS)]
        curves = [_typed(row) for row in record.read_csv(folder / CURVES, CURVE_COLUMNS)]
        if not runs:
            raise ValueError(f"{RUNS} has no rows")
        stored.hold(runs, list[_Run], RUNS)
        stored.hold([run for run in runs if run["status"] == Status.completed], list[record.Result], RUNS)
        stored.hold(curves, list[_Point], CURVES)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not a comparison ({error.filename} is missing). `bnrepro compare` makes one."
        ) from error
    except (OSError, MemoryError) as error:
        raise unreadable(Path(getattr(error, "filename", None) or folder), error) from error
    except ValueError as error:
        raise UserError(
            f"The comparison in {folder} is damaged ({error}). Make it again with `bnrepro compare`."
        ) from error
    return Comparison(runs, curves, provenance)


@dataclass
class Data:
    """What is recorded of a run's data."""

    data: str | None = None
    data_official: bool | None = None
    data_fingerprint: str | None = None


@dataclass
class Origin:
    """What is recorded of where numbers come from."""

    data: list[Data] = field(default_factory=list)
    machines: list[str | None] = field(default_factory=list)
    versions: list[dict[str, str]] = field(default_factory=list)
    git_revisions: list[str | None] = field(default_factory=list)


@dataclass
class _Named:
    name: str = ""


@dataclass
class _Shared:
    data: _Named = field(default_factory=_Named)
    model: _Named = field(default_factory=_Named)


@dataclass
class Provenance(Origin):
    """What provenance.json says, as far as it is read."""

    config: _Shared = field(default_factory=_Shared)


@dataclass
class _Run:
    variant: stored.Name
    seed: stored.Count
    status: Status
    parameters: stored.Count
    buffers: stored.Count
    test_accuracy: stored.Finite | None
    test_loss: stored.Number | None
    val_accuracy: stored.Number | None
    val_loss: stored.Number | None
    train_accuracy: stored.Number | None
    train_loss: stored.Number | None
    steps: stored.Count | None
    diverged_at_step: stored.Count | None
    threads: stored.Count | None
    seconds: stored.Finite | None


@dataclass
class _Point(record.Evaluation):
    variant: stored.Name
    seed: stored.Count
    val_accuracy: stored.Number | None


def _typed(row: dict[str, str]) -> Point:
    return {key: value if key in _TEXT else float(value) if value else None for key, value in row.items()}


# --- the table ----------------------------------------------------------------------------------------------------


def table(comparison: Comparison, threshold: float | None = None) -> list[dict[str, Any]]:
    """One row a variant: test accuracy, its difference to the first variant, epochs to a threshold, time, size.

    Args:
        comparison: the records.
        threshold: a validation accuracy. None: for each seed, the best that the first variant reached with it, which
            is how Ioffe & Szegedy (2015, Figure 3) count the steps to the accuracy of the network without BN.
    """
    first = comparison.variants[0]
    rows: list[dict[str, Any]] = []
    for variant in comparison.variants:
        completed = comparison.completed(variant)
        accuracy = {run["seed"]: run["test_accuracy"] for run in completed}
        base = {run["seed"]: run["test_accuracy"] for run in comparison.completed(first)}
        pairs = [accuracy[seed] - base[seed] for seed in accuracy if seed in base] if variant != first else []
        reached = [e for run in completed if (e := _epochs_to(comparison, run, first, threshold)) is not None]
        rows.append(
            {
                "variant": variant,
                "n": len(completed),
                "diverged": sum(run["status"] == Status.diverged for run in comparison.of(variant)),
                **_named("test_accuracy", t_interval(list(accuracy.values()))),
                **_named(f"minus_{first}", t_interval(pairs)),
                **_named("epochs_to_threshold", t_interval(reached)),
                "reached": len(reached),
                "threshold": threshold,
                "seconds_median": median(run["seconds"] for run in completed) if completed else None,
                "parameters": _only(comparison.of(variant), "parameters"),
                "buffers": _only(comparison.of(variant), "buffers"),
            }
        )
    return rows


def _epochs_to(comparison: Comparison, run: Point, first: str, threshold: float | None) -> float | None:
    """Epochs until the validation accuracy of ``run`` first stood at the threshold; None if it never did."""
    curves = [row for row in comparison.curves if row["val_accuracy"] is not None]  # none without a validation set
    if threshold is None:
        best = [row["val_accuracy"] for row in curves if (row["variant"], row["seed"]) == (first, run["seed"])]
        if not best or run["seed"] not in {r["seed"] for r in comparison.completed(first)}:
            return None
        threshold = max(best)
    for row in curves:
        if (row["variant"], row["seed"]) == (run["variant"], run["seed"]) and row["val_accuracy"] >= threshold:
            return float(row["epoch"])
    return None


def _named(name: str, interval: Interval) -> dict[str, float | None]:
    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {f"{name}_{end}": None if math.isnan(value) else value for end, value in ends.items()}


def _only(runs: list[Point], column: str) -> int:
    return int(runs[0][column])


# --- TensorBoard --------------------------------------------------------------------------------------------------


def write_board(comparison: Comparison, folder: Path) -> None:
    """For each variant a TensorBoard run in ``folder`` with the mean over seeds and its 95% interval.

    TensorBoard cannot average runs. The means have the tags of single runs, so that they share their charts; mean
    and interval stand together on the CUSTOM SCALARS page.
    """
    from torch.utils.tensorboard.summary import custom_scalars

    from bnrepro.board import EventFile
    from bnrepro.record import SPLITS

    tags = {f"{split}_{metric}": f"{metric}/{split}" for metric in ("accuracy", "loss") for split in SPLITS}
    margins = {tag: ["Margin", [tag, f"interval/{tag}/low", f"interval/{tag}/high"]] for tag in tags.values()}
    for variant in comparison.variants:
        own = folder / variant
        shutil.rmtree(own, ignore_errors=True)
        with EventFile(own) as events:
            events.summary(custom_scalars({"mean over seeds, 95% interval": margins}))
            for column, tag in tags.items():
                for step, values in comparison.over_seeds(variant, column, by="step"):
                    interval = t_interval(values)
                    events.scalar(tag, interval.mean, int(step))
                    if interval.n > 1:
                        events.scalar(f"interval/{tag}/low", interval.low, int(step))
                        events.scalar(f"interval/{tag}/high", interval.high, int(step))
