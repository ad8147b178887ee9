"""Commands about results: `register`, `reproduce`, `figures`, `report`, `runs`, `show`."""

from __future__ import annotations

import os
from contextlib import nullcontext
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
    path,
    shown,
)
from bnrepro.experiments import NAMES

EXPERIMENTS_HELP = f"{', '.join(NAMES)}; default: all of them. Or claims of theirs, as in placement/P1."


def register(
    names: Annotated[list[str], typer.Argument(metavar="EXPERIMENT...", help=f"{', '.join(NAMES)}.")],
    out: Out = EXPERIMENTS,
    amend: Annotated[
        str, typer.Option("--amend", metavar="REASON", help="Why a design under which there are results is replaced.")
    ] = "",
) -> None:
    """Write down designs before they are run.

    Seeds or looks, arms, gates, rules and margins, into configs/registered, to be committed; of a paper in a file of
    your own, beside it. `reproduce` then refuses to judge another design. Only preset full is registered: smoke and
    quick are no evidence.
    Example: bnrepro register placement
    """
    from bnrepro import experiments
    from bnrepro.claims import registering
    from bnrepro.claims.records import provenance_of

    check_separate("register", names, "experiments")
    for paper in [experiments.experiment(name) for name in dict.fromkeys(names)]:
        file, written = registering.register(paper, provenance_of(paper.directory(out)), amend)
        typer.echo(f"{registering.called(paper)}: {written.hash}, registered {written.registered}: {shown(file)}")


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT[/CLAIM]]...", help=EXPERIMENTS_HELP)] = None,
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
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds (default: the preset's).")] = None,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided", help="Add seeds to claims that are open, look by look of their designs (preset full)."
        ),
    ] = False,
    max_seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of the last look that --until-decided makes (default: 40).")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time for --until-decided, as in 2h or 90m; nearest decisions first."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be run and measured, and how long that takes.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run and measure again what is finished, too.")] = False,
    unregistered: Annotated[
        bool, typer.Option("--unregistered", help="Judge a design that is not the registered one; the report says so.")
    ] = False,
) -> None:
    """Put claims to the test: the sources', or your own.

    Runs and measures what is missing, then analyses, draws and judges. PAPER/CLAIM runs what that claim reads. A file
    of your own is named in place of an experiment: bnrepro reproduce my_paper.py.
    Example: bnrepro reproduce labml --preset=smoke
    """
    from bnrepro import experiments
    from bnrepro.claims.engine import DatasetLocations
    from bnrepro.cli import reproducing
    from bnrepro.cli.launch import take_launcher
    from bnrepro.errors import UserError
    from bnrepro.launch.parallel import kept_workers

    places = DatasetLocations(data_root, dict(map(_archive, archive or [])))
    making, names = take_launcher(launcher, names, jobs)
    check_separate("reproduce", names, "experiments")
    for name in names:
        if "=" in name:
            raise UserError(f"{name}: reproduce takes no keys; what an experiment trains is said by its --preset.")
    chosen = reproducing.chosen(names or list(experiments.NAMES))
    seconds = None if budget is None else reproducing.budget(budget)
    work = reproducing.Work(root, out, jobs, places, making, force, dry_run, unregistered)
    with kept_workers():
        if until_decided:
            _check_until_decided(preset, seeds, force)
            work.decide(chosen, 40 if max_seeds is None else max_seeds, seconds)
        else:
            if max_seeds is not None or budget is not None:
                raise UserError("--max-seeds and --budget belong to --until-decided. Add it, or leave them out.")
            work.all_at_once(chosen, preset, seeds)
    work.end(len(chosen))


def _check_until_decided(preset: str | None, seeds: int | None, force: bool) -> None:
    from bnrepro.errors import UserError

    if preset not in (None, "full"):
        raise UserError(f"--until-decided: preset {preset} is no evidence, and decides nothing. Leave --preset out.")
    for option, given in (("--seeds", seeds is not None), ("--force", force)):
        if given:
            raise UserError(f"--until-decided: {option} is not used with it. Leave it out.")


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
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            parser=path("PATH"),
            help="Runs, comparisons or experiments of your own, or folders of them; default: all results.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=folder("--out"),
            help="Folder of the results, into which the report is written (default: results); with PATHs, the folder "
            "that the page is written into (default: the current one).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print claims.json; write nothing.")] = False,
) -> None:
    """Write one report over all stored results, or PATHs.

    claims.json, REPORT.md, and report.html as a single file; of PATHs, report.html alone, to be sent to somebody. What
    cannot be read is told and left out.
    Example: bnrepro report runs/mnist5k
    """
    from bnrepro.claims import conclusion
    from bnrepro.report import own
    from bnrepro.report import report as reporting

    def left_out(why: str) -> None:
        typer.echo(f"Left out: {why}", err=True)

    results = out or Path("results")
    if as_json:
        with own.gathered(paths, left_out) if paths else nullcontext(reporting.gather(results, left_out)) as found:
            typer.echo(conclusion.as_json(found.claims), nl=False)
        return
    for file in [own.write(paths, out or Path(), left_out)] if paths else reporting.write(results, left_out):
        typer.echo(f"Report: {shown(file)}")


def export(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            parser=path("PATH"),
            help="Runs, comparisons or experiments, or folders of them (default: results).",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", parser=folder("--out"), help="Folder that it is written into.")
    ] = Path("export"),
) -> None:
    """Write results for other programs.

    runs.csv: all runs and their curves as one table, with factors and configuration; claims/: a page of Markdown each.
    Example: bnrepro export runs/mnist5k
    """
    from bnrepro.report import export as exporting
    from bnrepro.report import own

    with own.gathered(paths or [Path("results")], lambda why: typer.echo(f"Left out: {why}", err=True)) as found:
        files = exporting.write(found, out)
    typer.echo(f"Exported: {len(files):,} files into {shown(out)}")


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
    from bnrepro.claims.registering import check_as_judged
    from bnrepro.cli.reproducing import tell_unmeasured
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
    known = {key: value for key, value in records.settings.items() if key in found.settings_type.model_fields}
    settings = found.validated(known, f"The settings in {folder}")
    check_as_judged(found, settings, {**records.provenance, "preset": records.preset})
    if own and (folder / COPY).is_file() and content(folder / COPY) != content(own.file):
        typer.echo(
            f"{shown(own.file)} was changed after these records were made: they are judged and drawn as it says now. "
            f"`bnrepro reproduce {shown(own.file)}` runs and measures as it says now, too.",
            err=True,
        )
    try:
        tell_unmeasured(conclude(found, records, folder))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Files can hold any numbers, factors and settings, and only the analysis knows which it needs.
        raise UserError(
            f"{found.name} can conclude nothing from the records in {folder} ({type(error).__name__}: {error}). "
            "`bnrepro reproduce` makes them again."
        ) from error


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
