"""Commands about results: `reproduce`, `figures`, `report`, `runs`, `show`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from bnrepro.cli.options import (
    EXPERIMENTS,
    Jobs,
    LauncherName,
    Out,
    Root,
    RunPath,
    Variant,
    check_separate,
    draw,
    folder,
    folder_of_runs,
    make_room,
    path,
    shown,
)
from bnrepro.experiments import NAMES

EXPERIMENTS_HELP = f"{', '.join(NAMES)}; default: all of them."


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT]...", help=EXPERIMENTS_HELP)] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="smoke (seconds), quick (minutes, the default) or full (up to an hour each)."),
    ] = None,
    root: Root = Path("runs"),
    out: Out = EXPERIMENTS,
    jobs: Jobs = None,
    launcher: LauncherName = "local",
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", parser=folder("--data-root"), help="Folder of the datasets (data.root), for all runs."
        ),
    ] = None,
    archive: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Read dataset NAME from an .npz archive with Keras's keys instead."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run and measured.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run and measure again what is finished, too.")] = False,
) -> None:
    """Put claims to the test: the sources', or your own.

    Runs and measures what is missing, then analyses, draws and judges. A file of your own is named in place of an
    experiment: bnrepro reproduce my_paper.py. Example: bnrepro reproduce labml --preset=smoke
    """
    from bnrepro import experiments
    from bnrepro.claims.engine import DatasetLocations, execute, make_plan
    from bnrepro.cli import listing
    from bnrepro.cli.launch import take_launcher
    from bnrepro.cli.progress import SweepBar
    from bnrepro.errors import UserError, reason, sentence
    from bnrepro.launch.parallel import kept_workers
    from bnrepro.system.output import counted

    places = DatasetLocations(data_root, dict(map(_archive, archive or [])))
    making, names = take_launcher(launcher, names, jobs)
    check_separate("reproduce", names, "experiments")
    for name in names:
        if "=" in name:
            raise UserError(f"{name}: reproduce takes no keys; what an experiment trains is said by its --preset.")
    chosen = [experiments.experiment(name) for name in dict.fromkeys(names or experiments.NAMES)]
    plans = []
    for each in chosen:
        default = "quick" if "quick" in each.presets else "full"
        plans.append(make_plan(each, default if preset is None else preset, root, places, making.resolve))
    for name in places.archives:
        if not any(data.name == name for plan in plans for data in plan.datasets):
            raise UserError(f"--archive={name}=...: none of these experiments uses the dataset {name}. Leave it out.")
    if not force:
        for plan in plans:
            plan.check_room(out)
    if not dry_run:
        make_room(root)
        make_room(out)
    problems: list[Exception] = []
    failures = 0
    with kept_workers():
        for plan in plans:
            runs, measurements = plan.missing(force)
            typer.echo(
                f"{plan.paper.name} (preset {plan.preset}): "
                f"{counted(len(plan.configs), 'run')}, {len(runs)} still to run; "
                f"{counted(len(plan.probes), 'measurement')}, {len(measurements)} still to make."
            )
            if dry_run:
                continue
            try:
                judged, failed = execute(
                    plan, out, jobs, lambda what, names: SweepBar(names, what), force=force, run_all=making.run_all
                )
            except Exception as error:  # an experiment that cannot be concluded does not cost the others
                typer.echo(f"{plan.paper.name}: {reason(error)}", err=True)
                problems.append(error)
                continue
            failures += len(failed)
            for text in failed:
                typer.echo(f"{plan.paper.name}: {text}", err=True)
            _tell_unmeasured(judged)
            if plan.preset == "smoke":
                larger = "quick" if "quick" in plan.paper.presets else "full"
                through = "" if failed else "Everything ran through. "
                typer.echo(f"{through}This preset is too small for verdicts; use --preset={larger}.")
            else:
                typer.echo(listing.verdict_table(judged))
            typer.echo(f"Records, tables and figures: {shown(plan.folder(out))}\n")
    for problem in problems:
        if not sentence(problem):
            raise problem
    if problems:
        raise UserError(f"{len(problems)} of {len(plans)} experiments could not be concluded; the reasons are above.")
    if failures:
        raise UserError(f"{failures} of the runs and measurements failed and were left out; the reasons are above.")


def figures(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...",
            parser=path("FOLDER"),
            help="What `compare` or `reproduce` wrote; default: all under --root and --out.",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", parser=folder("--root"), help="Folder of the runs (default: runs).")
    ] = None,
    out: Out = EXPERIMENTS,
) -> None:
    """Draw the figures again, from records alone.

    Tables and an experiment's verdicts are made again too. Its name will do for its folder.
    """
    from bnrepro import experiments
    from bnrepro.claims import records
    from bnrepro.errors import UserError, did_you_mean, no_folder
    from bnrepro.report import compare as comparing

    if folders and root:
        raise UserError(f"--root={root} is not used where folders are named. Leave one of the two out.")
    root = root or Path("runs")
    own = {out / each.stem: experiments.experiment(str(each)) for each in folders or [] if each.suffix == ".py"}

    def named(each: Path) -> Path:
        """The folder that is meant by ``each``: itself, or that of the experiment of this name under ``out``."""
        if str(each) in experiments.NAMES or each.suffix == ".py":
            return out / each.stem
        return out / each if not os.path.lexists(each) and (out / each).is_dir() else each

    given = list(map(named, folders or [root, out]))
    comparisons = [place for each in given for place in comparing.find(each)]
    concluded = [place for each in given for place in records.find(each) if place not in comparisons]
    if folders is None and not comparisons and not concluded:
        raise UserError(
            f"There is no comparison under {root} and no experiment under {out}. `bnrepro compare` and "
            "`bnrepro reproduce` make them there."
        )
    for asked, place in zip(folders or [], given, strict=False):
        if any(found.is_relative_to(place) for found in comparisons + concluded):
            continue
        if str(asked) in experiments.NAMES or asked.suffix == ".py":
            raise UserError(f"There are no results of {asked} under {out}. `bnrepro reproduce {asked}` makes them.")
        if not place.exists():
            if place.is_symlink():
                raise UserError(f"{place} {no_folder(place)}. Name what `compare` or `reproduce` wrote.")
            near = (
                did_you_mean(str(asked), experiments.NAMES) or " `bnrepro compare` and `bnrepro reproduce` make some."
            )
            raise UserError(f"There is no folder {place}, and no experiment of that name.{near}")
        comparing.open_comparison(place)  # says what is missing
    problems: list[UserError] = []
    for place in comparisons + concluded:
        try:
            if place in comparisons:
                draw(place)
                typer.echo(f"Table and figures: {shown(place)}")
            else:
                _conclude(place, next((paper for home, paper in own.items() if place.is_relative_to(home)), None))
                typer.echo(f"Figures, tables and verdicts: {shown(place)}")
        except UserError as error:  # one that cannot be drawn does not cost the others
            problems.append(error)
    for problem in problems[:-1]:
        typer.echo(str(problem), err=True)
    if problems:
        raise problems[-1]


def report(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", parser=folder("--out"), help="Folder of the results; the report is written into it."
        ),
    ] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print claims.json; write nothing.")] = False,
) -> None:
    """Write one report over all stored results.

    claims.json, REPORT.md, and report.html as a single file. What cannot be read is told and left out.
    """
    from bnrepro.report import report as reporting

    def left_out(why: str) -> None:
        typer.echo(f"Left out: {why}", err=True)

    if as_json:
        from bnrepro.claims import conclusion

        typer.echo(conclusion.as_json(reporting.gather(out, left_out).claims), nl=False)
        return
    for file in reporting.write(out, left_out):
        typer.echo(f"Report: {shown(file)}")


def runs(
    root: Root = Path("runs"),
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this network.")] = None,
    variant: Variant = None,
    status: Annotated[
        str | None,
        typer.Option(
            help="Only completed, diverged, interrupted, failed, running, 'running or interrupted' or damaged."
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="path, seed, status, test_accuracy, val_accuracy or seconds.")] = "path",
    csv: Annotated[bool, typer.Option("--csv", help="As CSV, for other programs.")] = False,
) -> None:
    """List the stored runs."""
    from bnrepro.cli import listing
    from bnrepro.errors import UserError

    wanted = {"dataset": dataset, "model": model, "variant": variant, "status": status}
    rows = listing.rows(root, {key: value for key, value in wanted.items() if value is not None}, sort)
    folder_of_runs(root)
    if not rows and (other := listing.root_near(root)):
        raise UserError(
            f"{root} is not the root of its runs. --root is the folder that holds <dataset>/<model>/<variant>/<run>: "
            f"--root={shown(other)}."
        )
    for place in listing.misplaced(root):
        typer.echo(f"{shown(place)} is not listed: move it into {shown(root)}/<dataset>/<model>/<variant>.", err=True)
    if csv:
        typer.echo(listing.as_csv(rows), nl=False)
    elif rows:
        typer.echo(listing.as_text(rows))
    else:
        which = " ".join(f"--{key}={value}" for key, value in wanted.items() if value is not None)
        typer.echo(f"There is no run under {root}{f' with {which}' if which else ''}.")


def show(run: RunPath) -> None:
    """Show one run in full."""
    from bnrepro.cli import listing

    typer.echo(listing.describe(run))


def _conclude(folder: Path, own: Any = None) -> None:
    from bnrepro.claims.conclusion import conclude
    from bnrepro.claims.records import COPY, drawn_by, read
    from bnrepro.config.user_files import content
    from bnrepro.errors import UserError, known_are
    from bnrepro.experiments import experiment

    records = read(folder)
    name = records.provenance["experiment"]
    if own is None and (folder / COPY).is_file() and name not in NAMES:  # code is only run where it is named
        raise UserError(f"{folder} holds the results of a paper in a file of your own. {drawn_by(folder)} draws them.")
    if own is None and name.endswith(".py"):  # which would run it
        raise UserError(f"{folder} says that it holds the experiment {name!r}, and that is none.{known_are('', NAMES)}")
    found = own or experiment(name)
    if own and (folder / COPY).is_file() and content(folder / COPY) != content(own.file):
        typer.echo(
            f"{shown(own.file)} was changed after these records were made: they are judged and drawn as it says now. "
            f"`bnrepro reproduce {shown(own.file)}` runs and measures as it says now, too.",
            err=True,
        )
    try:
        _tell_unmeasured(conclude(found, records, folder))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Files can hold any numbers, factors and settings, and only the analysis knows which it needs.
        raise UserError(
            f"{found.name} can conclude nothing from the records in {folder} ({type(error).__name__}: {error}). "
            "`bnrepro reproduce` makes them again."
        ) from error


def _tell_unmeasured(judged: list[Any]) -> None:
    for one in judged:
        if one.unmeasured:
            which = f" for {', '.join(filter(None, one.unmeasured))}" if any(one.unmeasured) else ""
            typer.echo(
                f"Claim {one.claim.id} found nothing that was measured{which}. Is a part, a level of a factor or a "
                "quantity misspelt?",
                err=True,
            )


def _archive(text: str) -> tuple[str, Path]:
    """NAME=FILE."""
    from bnrepro.config import no_archive
    from bnrepro.data import sources
    from bnrepro.errors import UserError
    from bnrepro.system.reading import plain_size

    name, equals, file = text.partition("=")
    if not equals:
        raise UserError(f"--archive={text} is not of the form NAME=FILE, as in cifar10=cifar10.npz.")
    sources.lookup(name, "--archive")
    found = path(f"--archive={name}", "Write the path of an .npz archive, as in cifar10=cifar10.npz.")(file)
    try:
        plain_size(found)
    except OSError as error:
        raise no_archive(found, error, f"--archive={name}") from error
    return name, found
