"""The command line: parse, call, print. Everything heavy is imported inside the commands, so that help is quick."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnrepro.experiments import NAMES

if TYPE_CHECKING:
    from bnrepro.schema import Config

app = typer.Typer(
    name="bnrepro",
    help="Claims about batch normalization, run and judged.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="List, download and check datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Any key of the configuration, as in epochs=5 data=cifar10."),
]
Variant = Annotated[str | None, typer.Option(help="The norm: nobn, bn, custombn, convbn, ...")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, batches, augmentation and dropout.")]
Force = Annotated[bool, typer.Option("--force", help="Start over, even where a finished run is there.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory; `bnrepro runs` lists them.")]
Root = Annotated[Path, typer.Option(help="Folder of the runs.")]
Out = Annotated[Path, typer.Option(help="Folder of the experiments' results.")]
EXPERIMENTS = Path("results/experiments")
EXPERIMENTS_HELP = f"{', '.join(NAMES)}; as a rule all."


@app.command()
def train(overrides: Overrides = None, variant: Variant = None, seed: Seed = None, force: Force = False) -> None:
    """Train one network.

    Example: bnrepro train --variant=convbn --seed=1 epochs=5 optimizer.lr=0.01
    """
    cfg = _configure(overrides, variant=variant, seed=seed)
    from bnrepro import train as training
    from bnrepro.allocator import keep_memory
    from bnrepro.config import run_dir
    from bnrepro.progress import TrainBar
    from bnrepro.record import Run

    keep_memory()
    cfg = training.resolve(cfg)
    if not force and Run(run_dir(cfg)).finished:
        typer.echo("This run is there already; --force runs it again.")
    with TrainBar(cfg) as bar:
        path = training.run(cfg, force=force, report=bar.update)
    summary = Run(path).summary
    what = f"{cfg.variant}, seed {cfg.seed}, on {summary['data']}"
    if summary["status"] == "diverged":
        typer.echo(f"{what}: diverged at step {summary['diverged_at_step']} (the loss was not finite).")
    else:
        took = f"{summary['epochs']:g} epochs, {summary['seconds']:.1f} s on {summary['device']}"
        typer.echo(f"{what}: test accuracy {summary['test_accuracy']:.4f} ({took})")
    typer.echo(f"Run: {path}")
    typer.echo(f"Curves: bnrepro tensorboard{_root_flag(cfg.root)}")


@app.command()
def compare(
    overrides: Overrides = None,
    variants: Annotated[str, typer.Option(help="Names separated by commas.")] = "nobn,bn,custombn,convbn",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N - 1.")] = 5,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; as a rule one a core.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Validation accuracy to count epochs to; as a rule the first variant's best of the seed."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table and figures; as a rule beside the runs.")] = None,
    force: Force = False,
) -> None:
    """Train variants side by side over seeds.

    Prints and writes a table with 95% intervals, and draws the curves.
    """
    from bnrepro.config import UserError

    names = list(dict.fromkeys(name.strip() for name in variants.split(",")))
    cfg = _configure(overrides)
    grid_of = [_configure(overrides, variant=name) for name in names]
    from bnrepro import compare as comparing
    from bnrepro import sweep
    from bnrepro.allocator import keep_memory
    from bnrepro.model import norm_of
    from bnrepro.progress import SweepBar
    from bnrepro.record import Run
    from bnrepro.train import resolve

    keep_memory()
    for each in grid_of:
        norm_of(each)
    cfg = resolve(cfg)
    grid = comparing.grid(cfg, names, seeds)
    with SweepBar(len(grid)) as bar:
        outcomes = sweep.run_all(grid, jobs or sweep.default_jobs(cfg), force=force, report=bar.update)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        typer.echo(f"{outcome.path}: {outcome.error}", err=True)
    finished = [Run(outcome.path) for outcome in outcomes if not outcome.error]
    if not finished:
        raise UserError(f"None of the {len(grid)} runs finished; the reasons are above.")
    folder = out or comparing.directory(cfg)
    comparison = comparing.collect(finished)
    comparing.save(comparison, folder, threshold)
    comparing.write_board(comparison, comparing.directory(cfg))
    _draw(folder)
    _print_table(comparison, threshold)
    typer.echo(f"Table, records and figures: {folder}")
    typer.echo(f"Curves: bnrepro tensorboard{_root_flag(cfg.root)}")
    if failed:
        raise UserError(f"{len(failed)} of {len(grid)} runs failed and are not in the table; the reasons are above.")


@app.command()
def reproduce(
    names: Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT]...", help=EXPERIMENTS_HELP)] = None,
    preset: Annotated[
        str, typer.Option(help="smoke (seconds), quick (minutes) or full (up to an hour each).")
    ] = "quick",
    root: Root = Path("runs"),
    out: Out = EXPERIMENTS,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; as a rule one a core.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the datasets (data.root), for all runs.")] = None,
    archive: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Read dataset NAME from an .npz archive with Keras's keys instead."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run and measured.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run and measure again what is finished, too.")] = False,
) -> None:
    """Put the sources' claims to the test.

    Runs and measures what is missing, then analyses, draws and judges. Example:
    bnrepro reproduce labml --preset=smoke
    """
    from bnrepro import experiments, listing
    from bnrepro.config import UserError
    from bnrepro.experiments.records import preset_of
    from bnrepro.experiments.reproduce import Places, execute, make_plan
    from bnrepro.progress import SweepBar

    places = Places(data_root, dict(map(_archive, archive or [])))
    chosen = [experiments.experiment(name) for name in dict.fromkeys(names or experiments.NAMES)]
    plans = [make_plan(experiment, preset, root, places) for experiment in chosen]
    problems: list[Exception] = []
    failures = 0
    for plan in plans:
        runs, measurements = plan.missing()
        folder = plan.experiment.directory(out)
        typer.echo(
            f"{plan.experiment.name} (preset {preset}): {len(plan.configs)} runs, {len(runs)} of them to make; "
            f"{len(plan.probes)} measurements, {len(measurements)} to make."
        )
        if (held := preset_of(folder)) not in (None, preset):
            typer.echo(f"{folder} holds the results of preset {held}, which these replace.")
        if dry_run:
            continue
        try:
            analysis, failed = execute(plan, out, jobs, lambda what, count: SweepBar(count, what), force=force)
        except Exception as error:  # an experiment that cannot be concluded does not cost the others
            typer.echo(f"{plan.experiment.name}: {type(error).__name__}: {error}", err=True)
            problems.append(error)
            continue
        failures += len(failed)
        for text in failed:
            typer.echo(f"{plan.experiment.name}: {text}", err=True)
        typer.echo(listing.verdict_table(analysis.findings))
        typer.echo(f"Records, tables and figures: {folder}\n")
    for problem in problems:
        if not isinstance(problem, UserError):
            raise problem
    if problems:
        raise UserError(f"{len(problems)} of {len(plans)} experiments could not be concluded; the reasons are above.")
    if failures:
        raise UserError(f"{failures} runs or measurements failed and are left out; the reasons are above.")


@app.command()
def figures(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="What `compare` or `reproduce` wrote; as a rule all under --root and --out."
        ),
    ] = None,
    root: Root = Path("runs"),
    out: Out = EXPERIMENTS,
) -> None:
    """Draw the figures again, from records alone.

    An experiment's tables and verdicts are made again too. Its name will do for its folder.
    """
    from bnrepro import compare as comparing
    from bnrepro import experiments
    from bnrepro.config import UserError
    from bnrepro.experiments import records

    given = [out / folder if str(folder) in experiments.NAMES else folder for folder in folders or [root, out]]
    comparisons = [folder for each in given for folder in comparing.find(each)]
    concluded = [folder for each in given for folder in records.find(each)]
    if folders is None and not comparisons and not concluded:
        raise UserError(
            f"There is no comparison under {root} and no experiment under {out}. `bnrepro compare` and "
            "`bnrepro reproduce` make them."
        )
    for folder in given if folders else []:
        if not any(found.is_relative_to(folder) for found in comparisons + concluded):
            comparing.open_comparison(folder)  # says what is missing
    for folder in comparisons:
        _draw(folder)
        typer.echo(f"Figures: {folder / 'figures'}")
    for folder in concluded:
        _conclude(folder)
        typer.echo(f"Figures, tables and verdicts: {folder}")


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Folder of the results; the report is written into it.")] = Path("results"),
) -> None:
    """Write one report over all stored results.

    REPORT.md, and report.html as a single file.
    """
    from bnrepro import report as reporting

    for file in reporting.write(out):
        typer.echo(f"Report: {file}")


@app.command()
def runs(
    root: Root = Path("runs"),
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this network.")] = None,
    variant: Variant = None,
    status: Annotated[
        str | None, typer.Option(help="Only completed, diverged, interrupted, failed or running.")
    ] = None,
    sort: Annotated[str, typer.Option(help="path, seed, status, test_accuracy, val_accuracy or seconds.")] = "path",
    csv: Annotated[bool, typer.Option("--csv", help="As CSV, for other programs.")] = False,
) -> None:
    """List the stored runs."""
    from bnrepro import listing

    wanted = {"dataset": dataset, "model": model, "variant": variant, "status": status}
    rows = listing.rows(root, {key: value for key, value in wanted.items() if value is not None}, sort)
    if csv:
        typer.echo(listing.as_csv(rows), nl=False)
    elif rows:
        typer.echo(listing.as_text(rows))
    else:
        typer.echo(f"No such run under {root}. `bnrepro train` makes one.")


@app.command()
def show(run: RunPath) -> None:
    """Show one run in full."""
    from bnrepro import listing

    typer.echo(listing.describe(run))


@app.command()
def config(overrides: Overrides = None, variant: Variant = None, seed: Seed = None) -> None:
    """Print the resolved configuration; run nothing."""
    from bnrepro.config import to_yaml

    typer.echo(to_yaml(_configure(overrides, variant=variant, seed=seed)), nl=False)


@app.command("eval")
def evaluate(
    run: RunPath,
    statistics: Annotated[
        str,
        typer.Option(help="ema (the running average), population (of the training set) or batch (the batch's own)."),
    ] = "ema",
    size: Annotated[int | None, typer.Option(min=1, help="Resize the images to SIZE x SIZE first.")] = None,
) -> None:
    """Evaluate a run under other statistics."""
    from bnrepro.inference import evaluate as measure
    from bnrepro.record import open_run

    for split, (loss, accuracy) in measure(open_run(run), statistics, size).items():
        typer.echo(f"{split:<10} accuracy {accuracy:.4f}   loss {loss:.4f}   ({statistics} statistics)")


@app.command()
def tensorboard(
    root: Annotated[Path, typer.Argument(help="Folder of the runs, or a part of it.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on localhost; 0 for any that is free.")] = 6006,
) -> None:
    """Start TensorBoard on the stored runs."""
    from bnrepro.config import UserError

    if not root.is_dir():
        raise UserError(f"There is no folder {root}. `bnrepro train` makes runs.")
    typer.echo(
        "Every run is listed; intervals over seeds are under CUSTOM SCALARS. The means that `compare` made, alone:"
    )
    typer.echo(f"http://localhost:{port}/?runFilter=compare&smoothing=0#timeseries")
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(root),
        "--host",
        "localhost",
        "--port",
        str(port),
    ]
    sys.stdout.flush()
    os.execv(sys.executable, command)


@app.command()
def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]... [KEY=VALUE]...",
            help="layers, memory, epoch, compare, startup, growth, seeds; as a rule layers and memory.",
        ),
    ] = None,
    norms: Annotated[str, typer.Option(help="Names separated by commas.")] = "bn,custombn,convbn",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; what takes long is repeated a tenth as often.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; as a rule one a core.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV and figures; as a rule none are written.")] = None,
) -> None:
    """Measure speed and memory on this machine.

    Example: bnrepro bench layers epoch data.root=data --out bench
    """
    import torch

    from bnrepro.allocator import keep_memory
    from bnrepro.bench import output

    keep_memory()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    overrides = [part for part in parts or [] if "=" in part]
    wanted = [part for part in parts or [] if "=" not in part] or ["layers", "memory"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for table in output.run(wanted, [name.strip() for name in norms.split(",")], overrides, repeats, device):
        typer.echo(output.text(table) + "\n")
        if out:
            output.write(table, out)
    if out:
        typer.echo(f"Tables and figures: {out}")


DataName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A dataset; as a rule all.")]
DataRoot = Annotated[Path, typer.Option(help="Folder of the datasets (data.root).")]


@data_app.command("list")
def list_data(root: DataRoot = Path("data")) -> None:
    """List the datasets and whether their files are there."""
    from bnrepro import sources

    for name, known in sources.DATASETS.items():
        typer.echo(f"{name:<15}{known.title:<42}{'there' if known.there(root) else f'not in {root}'}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist, fashion_mnist, cifar10 or cifar100.")],
    root: DataRoot = Path("data"),
) -> None:
    """Download what is missing of a dataset, held to its checksums."""
    from bnrepro import sources

    known = sources.lookup(name)
    if known.fetch:
        known.fetch(root)
    known.read(root)
    typer.echo(f"{name}: {known.title}, complete and checked.")


@data_app.command()
def verify(name: DataName = None, root: DataRoot = Path("data")) -> None:
    """Hold the files to their checksums. Without a name: every dataset that is there."""
    from bnrepro import sources
    from bnrepro.config import UserError

    bad = []
    for each in [name] if name else [n for n, known in sources.DATASETS.items() if known.there(root)]:
        state = sources.state(each, root)
        typer.echo(f"{each}: {state}")
        bad += [each] if state != sources.PRESENT else []
    if bad:
        raise UserError(f"{', '.join(bad)}: not complete in {root}, see above.")


# --- what the commands share --------------------------------------------------------------------------------------


def _configure(overrides: list[str] | None, **flags: Any) -> Config:
    """The configuration of the overrides; a flag that was given comes last and so beats them."""
    from bnrepro.config import load_config

    return load_config([*(overrides or []), *(f"{k}={v}" for k, v in flags.items() if v is not None)])


def _root_flag(root: str) -> str:
    return "" if root == "runs" else f" {root}"


def _draw(folder: Path) -> None:
    from bnrepro import figures as drawing
    from bnrepro.compare import open_comparison

    drawing.draw(open_comparison(folder), folder / "figures")


def _conclude(folder: Path) -> None:
    from bnrepro.config import UserError
    from bnrepro.experiments import experiment
    from bnrepro.experiments.reproduce import conclude, read

    records = read(folder)
    if "experiment" not in records.provenance:
        raise UserError(f"{folder} does not say which experiment it holds. `bnrepro reproduce` makes it again.")
    conclude(experiment(records.provenance["experiment"]), records, folder)


def _archive(text: str) -> tuple[str, Path]:
    """NAME=FILE."""
    from bnrepro import sources
    from bnrepro.config import UserError

    name, equals, file = text.partition("=")
    if not equals:
        raise UserError(f"--archive={text} is not of the form NAME=FILE, as in cifar10=cifar10.npz.")
    sources.lookup(name)
    if not Path(file).is_file():
        raise UserError(f"--archive: there is no file {file}.")
    return name, Path(file)


def _print_table(comparison: Any, threshold: float | None) -> None:
    from bnrepro import listing

    typer.echo(listing.comparison_table(comparison, threshold))


def main() -> None:
    """Entry point: what the user can mend is one sentence and exit code 2, never a traceback."""
    # Named before the commands run, imported only when something went wrong: help must not pay for Hydra.
    try:
        app(prog_name="bnrepro")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `bnrepro runs | head`
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        where = f" {error.filename}" if error.filename else ""
        _fail(f"Cannot write{where}: {error.strerror}. What had finished is intact; make room and run it again.")
    except Exception as error:
        from bnrepro.config import UserError

        if not isinstance(error, UserError):
            raise
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"Error: {message}", err=True)
    sys.exit(2)
