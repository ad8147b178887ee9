"""Commands that train and evaluate: `train`, `compare`, `sweep`, `eval`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnrepro.cli import ending
from bnrepro.cli.options import (
    DataRoot,
    DryRun,
    Force,
    Jobs,
    LauncherName,
    Overrides,
    Root,
    RunName,
    RunsRoot,
    Seed,
    Variant,
    configure,
    draw,
    folder,
    make_room,
    names_in,
    root_flag,
    shown,
)
from bnrepro.cli.saying import Json, Quiet, answer, hint, note, say

if TYPE_CHECKING:
    from bnrepro.config.schema import Config
    from bnrepro.launch.sweep import Outcome


def train(
    overrides: Overrides = None,
    variant: Variant = None,
    seed: Seed = None,
    force: Force = False,
    root: RunsRoot = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train one network.

    Example: bnrepro train --variant=convbn --seed=1 epochs=5 optimizer.lr=0.01

    On several GPUs: torchrun --nproc-per-node=2 -m bnrepro train batch_size=128
    """
    with _one_of_several() as first:
        cfg = configure(overrides, variant=variant, seed=seed, root=root, data_root=data_root)
        from bnrepro.cli.progress import TrainBar
        from bnrepro.runs.record import Run, run_of
        from bnrepro.system.memory import raise_malloc_thresholds
        from bnrepro.system.output import counted
        from bnrepro.training import train as training
        from bnrepro.training.options import check_options

        raise_malloc_thresholds()
        check_options([cfg])
        cfg = training.resolve(cfg)
        if not first:
            training.run(cfg, force=force)
            return
        if not force and run_of(cfg).finished:
            hint("This run is already stored; --force repeats it.")
        with TrainBar(cfg) as bar:
            path = training.run(cfg, force=force, report=bar.update)
        summary = Run(path).summary
        what = f"{cfg.variant}, seed {cfg.seed}, on {summary['data']}"
        if summary["status"] == "diverged":
            where = f"diverged at step {summary['diverged_at_step']}"
            say(f"{what}: {where} (a loss, a weight or a statistic was not finite).")
        else:
            took = f"{counted(summary['epochs'], 'epoch')}, {summary['seconds']:.1f} s on {summary['device']}"
            say(f"{what}: test accuracy {summary['test_accuracy']:.4f} ({took})")
        say(f"Run: {shown(path)}")
        hint(f"Curves: bnrepro tensorboard{root_flag(cfg.root)}")
        answer({"path": path, **summary})


@contextmanager
def _one_of_several() -> Iterator[bool]:
    """Whether this process is the one that speaks: of those that torchrun started, the first."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # looked at here, where torch is not imported yet
        yield True
        return
    from bnrepro.training.distributed import joined, started_by_torchrun

    if not started_by_torchrun(os.environ):
        yield True
        return
    ending.at_once = True
    with joined() as processes:
        yield processes.first


VARIANTS = "nobn,bn,custombn,convbn"
"""That `compare` trains by default."""


def compare(
    overrides: Overrides = None,
    variants: Annotated[str, typer.Option(help="Names separated by commas.")] = VARIANTS,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; 3 means seeds 0, 1, 2.")] = 5,
    jobs: Jobs = None,
    launcher: LauncherName = "local",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Target validation accuracy (default: the first variant's best with the same seed)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", parser=folder("--out"), help="Folder for table and figures (default: next to the runs)."
        ),
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    root: RunsRoot = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train variants side by side over seeds.

    Prints and writes a table with 95% intervals, and draws the curves.

    Example: bnrepro compare --variants=bn,convbn --seeds=3 epochs=5
    """
    from bnrepro.cli.launch import take_launcher
    from bnrepro.errors import UserError

    if words := [word for word in overrides or [] if re.fullmatch(r"\w+", word)]:
        given = [] if variants == VARIANTS else variants.split(",")
        raise UserError(
            f"compare does not understand {' '.join(words)!r}. To choose variants, separate them by commas: "
            f"--variants={','.join(dict.fromkeys([*given, *words]))}."
        )
    names = names_in("--variants", variants)
    chosen, overrides = take_launcher(launcher, overrides, jobs)
    instead = {
        "seed": "Use --seeds=N to compare seeds 0 to N - 1.",
        "variant": "Use --variants=bn,convbn to choose the variants.",
    }
    cfg = configure(overrides, instead, root=root, data_root=data_root)
    for name in names:
        configure(overrides, variant=name)
    if threshold is not None and cfg.data.val_fraction == 0:
        raise UserError(
            "--threshold is not used without a validation set. Leave it out, or set data.val_fraction above 0."
        )
    from bnrepro.cli import listing
    from bnrepro.report import compare as comparing
    from bnrepro.runs.board import SHOWN
    from bnrepro.runs.record import Run, claim
    from bnrepro.system.memory import raise_malloc_thresholds
    from bnrepro.system.output import counted, only_shown
    from bnrepro.training.model import norm_of
    from bnrepro.training.options import check_options

    raise_malloc_thresholds()
    grid = comparing.grid(chosen.resolve(cfg), names, seeds)
    for each in grid[: len(names)]:
        norm_of(each)
    check_options(grid)
    beside = comparing.directory(grid, threshold)
    place = out or beside
    comparing.check_room(place, grid, threshold)
    if dry_run:
        from bnrepro.cli.planning import show_runs

        show_runs(grid, chosen, force)
        return
    if out:
        make_room(out)
    outcomes = chosen.show_all(grid, force)
    failed = [outcome for outcome in outcomes if outcome.error]
    finished = [Run(outcome.path) for outcome in outcomes if not outcome.error]
    if not finished:
        raise UserError(f"None of {counted(len(grid), 'run')} finished; the reasons are above.")
    comparison = comparing.collect(finished, threshold, [f"{o.path.relative_to(cfg.root)}: {o.error}" for o in failed])
    with claim(beside):  # the same comparison may be asked for twice at once
        comparing.save(comparison, place)
        with only_shown(SHOWN):
            comparing.write_board(comparison, beside)
        with only_shown("Figures"):
            draw(place)
    say(listing.comparison_table(comparison))
    say(f"Table, records and figures: {shown(place)}")
    hint(f"Curves: bnrepro tensorboard {shown(beside)}")
    answer({"path": place, "table": comparing.table(comparison), "goal": comparison.goal, **_failed(outcomes)})
    if failed:
        raise UserError(
            f"{len(failed)} of {counted(len(grid), 'run')} failed, left out of the table; the reasons are above."
        )


def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUES", help="As for `train`, with lists, range(...) and glob(...) as values."),
    ] = None,
    jobs: Jobs = None,
    launcher: LauncherName = "local",
    dry_run: DryRun = False,
    force: Force = False,
    root: RunsRoot = None,
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train every combination of some values.

    Values are lists, range(...) or glob(...), as in Hydra's sweeps.

    Example: bnrepro sweep variant=bn,convbn 'seed=range(3)' optimizer.lr=0.1,0.01
    """
    from bnrepro.cli import listing
    from bnrepro.cli.launch import take_launcher
    from bnrepro.config import run_dir
    from bnrepro.errors import UserError
    from bnrepro.launch.sweep import expand
    from bnrepro.report import sweeping
    from bnrepro.system.memory import raise_malloc_thresholds
    from bnrepro.system.output import counted
    from bnrepro.training.model import norm_of
    from bnrepro.training.options import check_options

    raise_malloc_thresholds()
    chosen, overrides = take_launcher(launcher, overrides, jobs)
    if not overrides:
        raise UserError("Nothing to sweep. Say what, as in: bnrepro sweep variant=bn,convbn seed=0,1,2")
    combinations: list[list[str]] = []
    runs: dict[Path, Config] = {}
    for each in expand(overrides):
        cfg = chosen.resolve(configure(each, root=root, data_root=data_root))
        norm_of(cfg)  # a name that is no norm's is reported before anything runs
        if run_dir(cfg) in runs:
            note(f"{' '.join(each)}: this run is given more than once and counted once.")
            continue
        combinations.append(each)
        runs[run_dir(cfg)] = cfg
    grid = list(runs.values())
    check_options(grid)
    if dry_run:
        from bnrepro.cli.planning import show_runs

        show_runs(grid, chosen, force)
        return
    outcomes = chosen.show_all(grid, force)
    swept = sweeping.collect(list(zip(combinations, outcomes, strict=True)))
    place = sweeping.directory(grid)
    sweeping.save(swept, place)
    say(listing.sweep_table(swept))
    say(f"Table and figure: {shown(place)}")
    hint(f"Runs: bnrepro runs --root={shown(grid[0].root)}")
    answer({"path": place, "table": sweeping.table(swept), **_failed(outcomes)})
    if failed := sum(outcome.error is not None for outcome in outcomes):
        raise UserError(
            f"{failed} of {counted(len(grid), 'run')} failed; the reasons are above, and in `bnrepro show RUN`."
        )


def _failed(outcomes: list[Outcome]) -> dict[str, list[dict[str, str]]]:
    """What failed, for ``--json``."""
    return {"failed": [{"path": str(o.path), "error": o.error} for o in outcomes if o.error]}


def evaluate(
    run: RunName,
    statistics: Annotated[
        str,
        typer.Option(help="ema (the running average), population (of the training set) or batch (the batch's own)."),
    ] = "ema",
    size: Annotated[int | None, typer.Option(min=1, max=65535, help="Resize the images to SIZE x SIZE first.")] = None,
    root: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Evaluate a run under other statistics.

    Example: bnrepro eval convbn/seed0 --statistics=batch
    """
    from bnrepro.runs.index import find_run
    from bnrepro.runs.record import open_run
    from bnrepro.system.output import tell
    from bnrepro.training.evaluation import differs
    from bnrepro.training.evaluation import evaluate as measure

    stored = open_run(find_run(run, root))
    found = measure(stored, statistics, size)
    measured = {split: {"accuracy": accuracy, "loss": loss} for split, (loss, accuracy) in found.items()}
    answer({"path": stored.path, "statistics": statistics, "size": size, **measured})
    for split, (loss, accuracy) in found.items():
        say(f"{split:<10} accuracy {accuracy:.4f}   loss {loss:.4f}   ({statistics} statistics)")
    if statistics == "ema" and size is None and (said := differs(stored, found["test"][1])):
        tell(said)
