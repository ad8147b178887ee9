"""Commands about results: `register`, `reproduce`, `figures`, `report`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnrepro.cli.options import (
    EXPERIMENTS,
    Jobs,
    LauncherName,
    Out,
    Root,
    check_separate,
    comparison_named,
    draw,
    folder,
    make_room,
    names_in,
    path,
    shown,
)
from bnrepro.cli.saying import Json, Quiet, answer, print_document, say
from bnrepro.experiments import NAMES
from bnrepro.system.output import counted, tell

if TYPE_CHECKING:
    from bnrepro.claims.paper import Paper
    from bnrepro.plots.style import Slide

EXPERIMENTS_HELP = f"{', '.join(NAMES)}; default: all of them. Or claims of theirs, as in placement/P1."


def register(
    names: Annotated[list[str], typer.Argument(metavar="EXPERIMENT", help=f"{', '.join(NAMES)}.")],
    out: Out = EXPERIMENTS,
    amend: Annotated[
        str | None, typer.Option("--amend", metavar="REASON", help="Reason for replacing a design that has results.")
    ] = None,
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
    from bnrepro.errors import UserError

    check_separate("register", names, "experiments")
    if amend is not None and not amend.strip():
        raise UserError('--amend needs a reason, as in --amend "one point is less than the spread of the pilot".')
    for paper in [experiments.experiment(name) for name in dict.fromkeys(names)]:
        held = provenance_of(paper.directory(out))
        file, written = registering.register(paper, held, amend or "")
        say(f"{registering.called(paper)}: {written.hash}, registered {written.registered}: {shown(file)}")
        design = held.get("design") or {}
        if design.get("hash") == written.hash and not design.get("as_registered"):
            say("It was run before it was registered, and the report shows both days.")


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(metavar="EXPERIMENT[/CLAIM]", help=EXPERIMENTS_HELP)] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="smoke (seconds), quick (minutes, the default), full (the evidence: hours), or paper (the source's "
            "own setting, where it has one; for a GPU)."
        ),
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
        int | None, typer.Option(min=1, help="Largest number of seeds for --until-decided (default: 40).")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time for --until-decided, as in 2h or 90m; nearest decisions first."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be run and measured, and how long it would take.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Repeat finished runs and measurements, too.")] = False,
    unregistered: Annotated[
        bool, typer.Option("--unregistered", help="Judge a design that is not the registered one; the report says so.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test claims: those of the sources, or your own.

    Runs and measures what is missing, then analyses, draws and judges. EXPERIMENT/CLAIM runs only what that claim
    reads. For claims of your own, name a file: bnrepro reproduce my_paper.py

    Example: bnrepro reproduce labml --preset=smoke
    """
    from bnrepro import experiments
    from bnrepro.claims.engine import DatasetLocations
    from bnrepro.cli import reproducing
    from bnrepro.cli.launch import take_launcher
    from bnrepro.errors import UserError
    from bnrepro.launch.parallel import kept_workers

    archives = [_archive(text) for text in archive or []]
    for name, _ in archives:
        if sum(name == other for other, _ in archives) > 1:
            raise UserError(f"--archive={name} is there more than once. Leave all but one out.")
    places = DatasetLocations(data_root, dict(archives))
    making, names = take_launcher(launcher, names, jobs)
    check_separate("reproduce", names, "experiments")
    for name in names:
        if "=" in name:
            raise UserError(f"{name}: reproduce takes no configuration keys; --preset selects what is trained.")
    chosen = reproducing.chosen(names or list(experiments.NAMES))
    seconds = None if budget is None else reproducing.budget(budget)
    work = reproducing.Work(root, out, jobs, places, making, force, dry_run, unregistered)
    with kept_workers():
        if until_decided:
            _check_until_decided(preset, seeds, force)
            work.decide(chosen, 40 if max_seeds is None else max_seeds, seconds)
        else:
            if max_seeds is not None or budget is not None:
                raise UserError("--max-seeds and --budget need --until-decided. Add it, or leave them out.")
            work.all_at_once(chosen, preset, seeds)
    answer(work.found)
    work.end(len(chosen))


def _check_until_decided(preset: str | None, seeds: int | None, force: bool) -> None:
    from bnrepro.errors import UserError

    if preset not in (None, "full"):
        raise UserError(f"--until-decided: preset {preset} is no evidence and decides nothing. Leave --preset out.")
    for option, given in (("--seeds", seeds is not None), ("--force", force)):
        if given:
            raise UserError(f"{option} cannot be combined with --until-decided. Leave it out.")


def figures(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER",
            parser=path("FOLDER"),
            help="What `compare` or `reproduce` wrote (default: all under --root and --out).",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", parser=folder("--root"), help="Folder of the runs (default: runs).")
    ] = None,
    out: Out = EXPERIMENTS,
    format: Annotated[
        str | None,
        typer.Option(
            help="For slides and papers: pdf (fonts embedded), svg (text as text, in DejaVu Sans) or png; several by "
            "commas, as in pdf,svg."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width and height of each file, exactly, in inches.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only the figures with these names, separated by commas.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Of a comparison, only these variants in this order, separated by commas.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT=TEXT", help="Of a comparison, a variant's label in the legend. Repeatable."),
    ] = None,
    xlim: Annotated[str | None, typer.Option(metavar="FROM,TO", help="Of a comparison, only these epochs.")] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", parser=folder("--to"), help="Folder for slides (default: slides, next to the figures)."
        ),
    ] = None,
) -> None:
    """Draw the figures again, from records alone.

    Tables and an experiment's verdicts are made again too. An experiment can be named instead of its folder.

    With --format, --size or --only, figures for slides and papers are written into another folder instead, and
    existing figures stay as they are. Those of a comparison also take --variants, --labels and --xlim, and their data
    are written next to them as CSV.

    Example: bnrepro figures results/mnist5k --size=3.3x2 --labels bn=BatchNorm

    Example: bnrepro figures ioffe2015 --only=figure1 --format=pdf --size=6.8x2.5
    """
    from bnrepro import experiments
    from bnrepro.claims import records
    from bnrepro.errors import UserError, did_you_mean, no_folder
    from bnrepro.report import compare as comparing

    slide = _slide(format, size, only, variants, labels, xlim)
    if to and slide is None:
        raise UserError(
            "--to is the folder of slides. Add --format, --size or another option for slides, or leave it out."
        )
    if folders and root:
        raise UserError(f"--root={root} is not used when folders are named. Leave one of the two out.")
    root = root or Path("runs")
    own = {out / each.stem: experiments.experiment(str(each)) for each in folders or [] if each.suffix == ".py"}

    def named(each: Path) -> Path:
        """The folder that is meant by ``each``: itself, or that of the experiment of this name under ``out``."""
        if str(each) in experiments.NAMES or each.suffix == ".py":
            return out / each.stem
        if os.path.lexists(each):
            return each
        return out / each if (out / each).is_dir() else comparison_named(each, root) or each

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
                raise UserError(f"{place} {no_folder(place)}. Name a folder that `compare` or `reproduce` wrote.")
            near = (
                did_you_mean(str(asked), experiments.NAMES) or " `bnrepro compare` and `bnrepro reproduce` make some."
            )
            raise UserError(f"There is no folder {place}, and no experiment of that name.{near}")
        comparing.open_comparison(place)  # says what is missing
    if slide is not None:
        for_experiments = not (slide.variants or slide.labels or slide.xlim)
        if concluded and folders and not for_experiments:
            raise UserError(
                f"{shown(concluded[0])} is an experiment: --variants, --labels and --xlim are for comparisons alone. "
                "Leave them out."
            )
        papers = {place: _paper_of(place, own) for place in concluded if for_experiments}
        _draw_slides(comparisons, papers, to, slide)
        return
    problems: list[UserError] = []
    for place in comparisons + concluded:
        try:
            if place in comparisons:
                draw(place)
                say(f"Table and figures: {shown(place)}")
            else:
                _conclude(place, own)
                say(f"Figures, tables and verdicts: {shown(place)}")
        except UserError as error:  # one that cannot be drawn does not cost the others
            problems.append(error)
    for problem in problems[:-1]:
        tell(str(problem))
    if problems:
        raise problems[-1]


def _slide(
    format: str | None,
    size: str | None,
    only: str | None,
    variants: str | None,
    labels: list[str] | None,
    xlim: str | None,
) -> Slide | None:
    """What the options say of slides; None where none is given.

    Raises:
        UserError: one of them is not understood.
    """
    import re

    from bnrepro.errors import UserError, known_are
    from bnrepro.plots.style import METADATA, Slide

    if all(each is None for each in (format, size, only, variants, labels, xlim)):
        return None
    formats = names_in("--format", format, "pdf,png") if format is not None else ["pdf"]
    for name in formats:
        if name not in METADATA:
            raise UserError(f"--format: there is no {name!r}.{known_are(name, METADATA)}")
    number = r"(\d+(?:\.\d+)?)"
    inches = re.fullmatch(rf"{number}x{number}", size or "")
    if size is not None and not (inches and all(0.5 <= float(each) <= 100 for each in inches.groups())):
        raise UserError(
            f"--size={size} is not a size. Give width and height in inches (0.5 to 100), as in --size=3.3x2."
        )
    ends = re.fullmatch(rf"{number},{number}", xlim or "")
    if xlim is not None and not (ends and float(ends[1]) < float(ends[2])):
        raise UserError(f"--xlim={xlim} is not a range. Give the first and the last epoch, as in --xlim=0,5.")
    said = {}
    for text in labels or []:
        name, equals, label = text.partition("=")
        if not (name and equals and label):
            raise UserError(f"--labels={text} is not of the form VARIANT=TEXT, as in --labels bn='Batch norm'.")
        said[name] = label
    return Slide(
        tuple(formats),
        (float(inches[1]), float(inches[2])) if inches else None,
        tuple(names_in("--only", only, "val_accuracy,test_accuracy")) if only is not None else None,
        tuple(names_in("--variants", variants)) if variants is not None else None,
        said,
        (float(ends[1]), float(ends[2])) if ends else None,
    )


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            parser=path("PATH"),
            help="Runs, comparisons or experiments, or folders of them (default: all results).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=folder("--out"),
            help="Folder of the results, where the report is written (default: results); with PATHs, the folder for "
            "report.html (default: the current folder).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one report over all stored results, or PATHs.

    claims.json, REPORT.md, and report.html as a single file; for PATHs, only report.html, to send to others. Unreadable
    results are named and left out. With --json, claims.json is printed, and nothing is written.

    Example: bnrepro report runs/mnist5k
    """
    from bnrepro.claims import conclusion
    from bnrepro.report import own
    from bnrepro.report import report as reporting

    def left_out(why: str) -> None:
        tell(f"Left out: {why}")

    results = out or Path("results")
    if as_json:
        with own.gathered(paths, left_out) if paths else nullcontext(reporting.gather(results, left_out)) as found:
            print_document(conclusion.as_json(found.claims))
        return
    for file in [own.write(paths, out or Path(), left_out)] if paths else reporting.write(results, left_out):
        say(f"Report: {shown(file)}")


def export(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            parser=path("PATH"),
            help="Runs, comparisons or experiments, or folders of them (default: results).",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", parser=folder("--out"), help="Folder to write into.")] = Path(
        "export"
    ),
) -> None:
    """Write results for other programs.

    evaluations.csv: all runs and their curves as one table, with factors and configuration; claims/: one page of
    Markdown per claim. Files that it did not write itself are never replaced.

    Example: bnrepro export runs/mnist5k
    """
    from bnrepro.report import export as exporting
    from bnrepro.report import own

    with own.gathered(paths or [Path("results")], lambda why: tell(f"Left out: {why}")) as found:
        files = exporting.write(found, out)
    say(f"Exported: {counted(len(files), 'file')} into {shown(out)}")


def _draw_slides(comparisons: list[Path], papers: dict[Path, Paper[Any]], to: Path | None, slide: Slide) -> None:
    """Slides of comparisons and of the experiments in the folders of ``papers``."""
    from bnrepro.claims import conclusion
    from bnrepro.errors import UserError, known_are
    from bnrepro.plots.style import save_slides
    from bnrepro.report import compare as comparing
    from bnrepro.report import figures as drawing

    have = {place: list(drawing.SLIDES) for place in comparisons}
    have |= {place: [each.name for each in paper.figures] for place, paper in papers.items()}
    if to and len(have) > 1:
        raise UserError(f"--to={to} takes the figures of one folder, and {len(have)} are drawn. Name one of them.")
    for name in slide.only or ():
        if not any(name in names for names in have.values()):
            every = dict.fromkeys(each for names in have.values() for each in names)
            raise UserError(f"--only: there is no figure {name!r}.{known_are(name, every)}")
    for place, names in have.items():
        asked = names if slide.only is None else [name for name in slide.only if name in names]
        if not asked:  # another folder has them
            continue
        home = to or place / "slides"
        if place in papers:
            drawn = conclusion.figures_of(papers[place], place, slide.only and asked)
            if not drawn:
                tell(f"The records in {place} leave nothing to draw.")
                continue
            make_room(home)
            save_slides(drawn, home, slide)
            say(f"Figures: {shown(home)}")
        else:
            make_room(home)
            drawing.draw_slides(comparing.open_comparison(place), home, slide)
            say(f"Figures and their data as CSV: {shown(home)}")


def _paper_of(folder: Path, own: Mapping[Path, Paper[Any]]) -> Paper[Any]:
    """The paper whose records are in ``folder``: one of ``own``, by folder, or of the package.

    Raises:
        UserError: the records are damaged; there is no such paper.
    """
    from bnrepro.claims.records import COPY, drawn_by, read
    from bnrepro.errors import UserError, known_are
    from bnrepro.experiments import experiment

    name = read(folder).provenance["experiment"]
    for home, paper in own.items():
        if folder.is_relative_to(home):
            return paper
    if (folder / COPY).is_file() and name not in NAMES:  # code is only run where it is named
        raise UserError(f"{folder} holds the results of a paper in a file of your own. {drawn_by(folder)} draws them.")
    if name.endswith(".py"):  # which would run it
        raise UserError(
            f"{folder} says that it holds the experiment {name!r}, which does not exist.{known_are('', NAMES)}"
        )
    return experiment(name)


def _conclude(folder: Path, own: Mapping[Path, Paper[Any]]) -> None:
    from bnrepro.claims.conclusion import EARLIER, conclude, settings_of
    from bnrepro.claims.records import COPY, read
    from bnrepro.claims.registering import called, check_as_judged, refused, registration
    from bnrepro.cli.reproducing import tell_unmeasured
    from bnrepro.config.user_files import content
    from bnrepro.errors import UserError

    found, records = _paper_of(folder, own), read(folder)
    settings = settings_of(found, records, folder)
    now = check_as_judged(found, settings, {**records.provenance, "preset": records.preset})
    if found.file:
        again, earlier = f"`bnrepro reproduce {shown(found.file)}`", ""
        if now and now != records.provenance["design"]["hash"]:  # it was never registered
            records.provenance["design"] |= {"hash": now}
            earlier = f" Verdicts under the earlier design are kept in {shown(folder / EARLIER)}."
        if (folder / COPY).is_file() and content(folder / COPY) != content(found.file):
            tell(
                f"{shown(found.file)} has changed since these records were made; they are judged and drawn by its "
                f"current version. {again} runs and measures with it, too.{earlier}"
            )
        there, here = settings.model_dump(), found.settings(records.preset).model_dump()
        for key in there.keys() & here.keys() - {"seeds", "looks"}:
            if there[key] != here[key]:
                if now and registration(found):
                    unlike = f"{key} is {there[key]} in the records and {here[key]} in the file"
                    raise UserError(f"{called(found)}: {unlike}. {refused(found)}")
                tell(
                    f"{key} is {here[key]} in {shown(found.file)} and {there[key]} in the records, which are judged by "
                    f"their own settings. {again} takes the file's."
                )
    try:
        tell_unmeasured(found, conclude(found, records, folder))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Files can hold any numbers, factors and settings, and only the analysis knows which it needs.
        raise UserError(
            f"{found.name} cannot judge the records in {folder} ({type(error).__name__}: {error}). "
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
