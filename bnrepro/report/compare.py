"""Variants side by side over seeds: the grid, the records of its runs, and the table.

A comparison is kept as an experiment without claims (`bnrepro.claims.records`): one part, whose factor is the variant.
Its directory stands by itself: the table and the figures are made from its records.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median

from bnrepro.claims import records
from bnrepro.claims.records import CURVES, RUNS, DamagedError, Gathered, Records
from bnrepro.claims.results import Row
from bnrepro.config import MOST_RUNS, config_hash, differing, digits_of, group_dir, leaves, what, with_variant
from bnrepro.config.overrides import written
from bnrepro.config.schema import Config
from bnrepro.errors import UserError, no_folder
from bnrepro.experiments import COMPARISON
from bnrepro.runs import record
from bnrepro.runs.record import Run, Status
from bnrepro.stats import Interval, t_interval
from bnrepro.system import reading as stored
from bnrepro.system.output import counted

VARIANTS = ("nobn", "bn", "custombn", "convbn")
PART, TABLE = "comparison", "table.csv"
INTERVAL, ENDS = "~interval", ("mean", "low", "high")
"""What TensorBoard's scalars begin with that are for CUSTOM SCALARS alone: they come last in the ordinary list."""
WITHOUT = ("variant", "seed")  # what differs between the runs of a comparison
REMEDY = "Move it away, and `bnrepro compare` with the same arguments makes it again from the stored runs in seconds."


def grid(cfg: Config, variants: Sequence[str], seeds: int) -> list[Config]:
    """``cfg`` for each variant and for the seeds 0 to ``seeds`` - 1; a seed's variants follow one another.

    Raises:
        UserError: these are too many.
    """
    names = list(dict.fromkeys(variants))
    labels = [with_variant(cfg, name).variant for name in names]
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(f"Two of the variants are called {twice[0]}. Rename one of them.")
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
        raise UserError(f"{folder} {no_folder(folder)}. Give the path of a folder.")
    if not records.held(folder):
        return
    if not holds_one(folder):
        raise UserError(f"--out={folder} holds an experiment's results. Give another folder.")
    held = open_comparison(folder)
    kept = {(run["variant"], run["seed"]) for run in held.runs} <= {(cfg.variant, cfg.seed) for cfg in configs}
    there = {**dict(leaves(what(Config(), WITHOUT))), **dict(leaves(held.settings))}
    same = all(there.get(key) == value for key, value in leaves(what(configs[0], WITHOUT)))
    if not (kept and same and held.variants[0] == configs[0].variant and held.threshold == threshold):
        raise UserError(
            f"--out={folder} holds another comparison ({', '.join(held.variants)}; {counted(len(held.runs), 'run')}), "
            "which this one would replace. Give another folder, or delete that one."
        )


@dataclass(frozen=True)
class Comparison:
    """The records of a comparison."""

    runs: list[Row]
    """`RUN_COLUMNS`, one row a run."""
    curves: list[Row]
    """One row an evaluation, with variant and seed."""
    provenance: Row = field(default_factory=dict)
    """What made it, the data and its fingerprint, machines, versions, git revisions."""
    settings: Row = field(default_factory=dict)
    """The configuration, as far as the runs share it, and the threshold of the table."""

    @property
    def threshold(self) -> float | None:
        """The validation accuracy that epochs are counted to. None: that which the first variant reached.

        It is the best of the same seed, which is how Ioffe & Szegedy (2015, Figure 3) count the steps to the accuracy
        of the network without BN.
        """
        return self.settings.get("threshold")

    @property
    def goal(self) -> str:
        """The threshold in words."""
        if all(point["val_accuracy"] is None for point in self.curves):
            return "none (there is no validation set)"
        if self.threshold is not None:
            return f"a validation accuracy of {self.threshold:g}"
        return f"the best validation accuracy of {self.variants[0]}, same seed"

    @cached_property
    def variants(self) -> list[str]:
        """The variants, in the order in which they were asked for."""
        return list(dict.fromkeys(str(run["variant"]) for run in self.runs))

    def of(self, variant: str) -> list[Row]:
        """The variant's runs, by seed."""
        return sorted((run for run in self.runs if run["variant"] == variant), key=lambda run: int(run["seed"]))

    def completed(self, variant: str) -> list[Row]:
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


def collect(runs: Iterable[Run], threshold: float | None = None, failed: Sequence[str] = ()) -> Comparison:
    """The records of finished runs, as one comparison; ``failed`` says what became of the others."""
    gathered = Gathered()
    each = list({run.path: run for run in runs}.values())  # a run is one, however often it is named
    for run in each:
        gathered.add(run, PART, {"variant": run.summary["variant"]})
    provenance: Row = {"experiment": COMPARISON, "command": _command(each, threshold), **gathered.found}
    provenance |= {"seconds": records.cost([PART], gathered.spent), "failed": list(failed)}
    settings = {**what(each[0].config, WITHOUT), "threshold": threshold}
    return Comparison(gathered.runs, gathered.curves, provenance, settings)


def _command(runs: list[Run], threshold: float | None) -> str:
    """What makes it again, with placeholders for this machine's folders."""
    firsts: dict[str, Run] = {}
    for run in runs:
        firsts.setdefault(run.summary["variant"], run)
    files = {variant: run.config.norm.file for variant, run in firsts.items()}
    names = [f"{Path(file).name}:{variant}" if file else variant for variant, file in files.items()]
    seeds = 1 + max(run.summary["seed"] for run in runs)
    left_out = {*WITHOUT, "norm.file", "root", "tensorboard", "angles"}
    values = {key: value for key, value in differing(runs[0].config).items() if key not in left_out}
    values |= {key: Path(values[key]).name for key in ("data.path", "model.file") if key in values}
    values |= {"data.root": "DIR"} if "data.root" in values else {}
    flags = [f"--variants={','.join(names)}", f"--seeds={seeds}"]
    flags += [] if threshold is None else [f"--threshold={threshold}"]
    return shlex.join(["bnrepro", "compare", *flags, *(written(*pair) for pair in values.items())])


def save(comparison: Comparison, folder: Path) -> None:
    """Write the comparison's records and its table into ``folder``, each file whole."""
    kept = Records("full", comparison.runs, comparison.curves, [], comparison.settings, comparison.provenance)
    records.save(kept, folder)
    write_table(comparison, folder)


def write_table(comparison: Comparison, folder: Path) -> None:
    """Write the comparison's `table` into ``folder``."""
    rows = table(comparison)
    record.write_csv(folder / TABLE, list(rows[0]), rows)


def holds_one(folder: Path) -> bool:
    """Whether the records in ``folder`` are a comparison's; the table tells where their provenance does not."""
    about = records.provenance_of(folder)
    return about["experiment"] == COMPARISON if "experiment" in about else stored.is_file(folder / TABLE)


def find(root: Path) -> Iterator[Path]:
    """The comparisons in ``root`` and below; one whose provenance cannot be read is reported where it is opened."""
    for folder in records.find(root):
        with suppress(UserError):
            if holds_one(folder):
                yield folder


def open_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote into ``folder``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not (records.held(folder) and holds_one(folder)):
        raise UserError(f"{folder} is not a comparison. `bnrepro compare` makes one.")
    about = records.provenance_of(folder)
    if "config" in about and "experiment" not in about:
        raise DamagedError(f"{folder} holds a comparison in the format of an earlier version. {REMEDY}")
    found = records.read(folder, REMEDY)
    try:
        if not found.runs:
            raise ValueError(f"{RUNS} has no rows")
        stored.hold(found.runs, list[record.Summary], RUNS)
        stored.hold(found.runs, list[record.Ended], RUNS)
        stored.hold([run for run in found.runs if run["status"] == Status.completed], list[record.Result], RUNS)
        stored.hold(found.curves, list[_Point], CURVES)
        of = {status: {_who(run) for run in found.runs if run["status"] == status} for status in Status}
        record.hold_finite([point for point in found.curves if _who(point) in of[Status.completed]], CURVES)
        if twice := [who for who, count in Counter(map(_who, found.runs)).items() if count > 1]:
            raise ValueError(f"{RUNS} has variant {twice[0][0]}, seed {twice[0][1]} twice")
        curves = set(map(_who, found.curves))
        if apart := sorted(curves - set().union(*of.values()) | of[Status.completed] - curves):
            raise ValueError(f"{RUNS} and {CURVES} do not both have variant {apart[0][0]}, seed {apart[0][1]}")
        stored.hold(found.settings.get("threshold"), stored.Finite | None, "threshold")
    except ValueError as error:
        raise DamagedError(f"The comparison in {folder} is damaged ({error}). {REMEDY}") from error
    return Comparison(found.runs, found.curves, found.provenance, found.settings)


def _who(row: Row) -> tuple[str, int]:
    return row["variant"], row["seed"]


@dataclass
class _Point(record.Evaluation):
    variant: stored.Name
    seed: stored.Count


# --- the table ----------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> list[Row]:
    """One row a variant: test accuracy, its difference to the first variant, epochs to a threshold, time, size."""
    first = comparison.variants[0]
    rows: list[Row] = []
    for variant in comparison.variants:
        completed = comparison.completed(variant)
        accuracy = {run["seed"]: run["test_accuracy"] for run in completed}
        base = {run["seed"]: run["test_accuracy"] for run in comparison.completed(first)}
        pairs = [accuracy[seed] - base[seed] for seed in accuracy if seed in base] if variant != first else []
        reached = [e for run in completed if (e := _epochs_to(comparison, run, first)) is not None]
        rows.append(
            {
                "variant": variant,
                "n": len(completed),
                "diverged": sum(run["status"] == Status.diverged for run in comparison.of(variant)),
                **_named("test_accuracy", t_interval(list(accuracy.values()))),
                **_named(f"minus_{first}", t_interval(pairs)),
                "pairs": len(pairs),
                **_named("epochs_to_threshold", t_interval(reached)),
                "reached": len(reached),
                "threshold": comparison.threshold,
                "seconds_median": median(run["seconds"] for run in completed) if completed else None,
                "parameters": _only(comparison.of(variant), "parameters"),
                "buffers": _only(comparison.of(variant), "buffers"),
            }
        )
    return rows


def _epochs_to(comparison: Comparison, run: Row, first: str) -> float | None:
    """Epochs until the validation accuracy of ``run`` first stood at the threshold; None if it never did."""
    curves = [row for row in comparison.curves if row["val_accuracy"] is not None]  # none without a validation set
    if (threshold := comparison.threshold) is None:
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


def _only(runs: list[Row], column: str) -> int:
    return int(runs[0][column])


# --- TensorBoard --------------------------------------------------------------------------------------------------


def write_board(comparison: Comparison, folder: Path) -> None:
    """For each variant a TensorBoard run in ``folder`` with the mean over seeds and its 95% interval.

    TensorBoard cannot average runs. The means have the tags of single runs, so that they share their charts; mean
    and interval stand together on the CUSTOM SCALARS page.
    """
    from torch.utils.tensorboard.summary import custom_scalars

    from bnrepro.runs.board import EventFile
    from bnrepro.runs.record import SPLITS

    tags = {f"{split}_{metric}": f"{metric}/{split}" for metric in ("accuracy", "loss") for split in SPLITS}
    # A mean of its own: a run that has one of a margin's three tags, and not the others, is told of as incomplete.
    margins = {tag: ["Margin", [f"{INTERVAL}/{tag}/{end}" for end in ENDS]] for tag in tags.values()}
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
                        for end in ENDS:
                            events.scalar(f"{INTERVAL}/{tag}/{end}", getattr(interval, end), int(step))
