"""Commands about stored runs: `runs`, `show`, `diff`, `watch`, `prune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnrepro.cli.options import EXPERIMENTS, Out, Root, RunName, RunOrClaim, Variant, folder_of_runs, names_in, shown
from bnrepro.cli.saying import Json, answer, hint, note, say

if TYPE_CHECKING:
    from bnrepro.runs.index import Condition

RUNS = Path("runs")
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Only runs with this value, of any key of configuration or summary; or with !=, >, >=, <, <=. Repeatable.",
    ),
]


def conditions(where: list[str] | None, **flags: str | None) -> list[Condition]:
    """What ``--where`` and the flags that stand for columns ask for."""
    from dataclasses import replace

    from bnrepro.runs.index import condition

    asked = [replace(each, text=f"--where={each.text}") for each in map(condition, where or [])]
    for key, value in flags.items():
        if value is not None:
            asked.append(replace(condition(f"{key}={value}", f"--{key}"), text=f"--{key}={value}"))
    return asked


def runs(
    root: Root = RUNS,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this network.")] = None,
    variant: Variant = None,
    status: Annotated[
        str | None,
        typer.Option(
            help="Only completed, diverged, interrupted, failed, running, 'running or interrupted' or damaged."
        ),
    ] = None,
    where: Where = None,
    columns: Annotated[
        str | None, typer.Option(metavar="KEYS", help="Columns to show, any keys, separated by commas.")
    ] = None,
    sort: Annotated[
        str,
        typer.Option(metavar="KEY", help="Sort by any key, accuracies in descending order. -KEY reverses the order."),
    ] = "path",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with every column, for other programs.")] = False,
    as_json: Json = False,
) -> None:
    """List the stored runs.

    Example: bnrepro runs --where 'test_accuracy>0.9' --sort val_accuracy
    """
    from bnrepro.cli import listing
    from bnrepro.errors import UserError
    from bnrepro.runs import index

    asked = conditions(where, dataset=dataset, model=model, variant=variant, status=status)
    wanted = (
        [index.column(name, "--columns") for name in names_in("--columns", columns, "variant,test_accuracy")]
        if columns is not None
        else []
    )
    index.column(sort.removeprefix("-"), "--sort")
    found = index.select(root, asked, sort)
    folder_of_runs(root)
    if not found and (other := listing.root_near(root)):
        raise UserError(
            f"{root} lies inside a folder of runs. --root must name the folder that contains "
            f"<dataset>/<model>/<variant>/<run>: --root={shown(other)}."
        )
    for place in listing.misplaced(root):
        note(f"{shown(place)} is not listed: move it into {shown(root)}/<dataset>/<model>/<variant>.")
    extra = dict.fromkeys([*(each.column for each in asked if each.text.startswith("--where")), sort.removeprefix("-")])
    if as_json:
        answer([run.row(wanted or index.columns()) for run in found])
    elif csv:
        say(listing.as_csv(found, wanted or index.columns()), nl=False)
    elif found:
        say(listing.as_text(found, wanted, [name for name in extra if name not in index.FIRST]))
    else:
        which = " ".join(each.text for each in asked)
        say(f"There is no run under {root}{f' with {which}' if which else ''}.")


def show(run: RunOrClaim, root: Root = RUNS, out: Out = EXPERIMENTS, as_json: Json = False) -> None:
    """Show one run in full, or how a verdict was made.

    Example: bnrepro show ioffe2015/I1
    """
    from bnrepro.cli import listing
    from bnrepro.config import to_dict
    from bnrepro.errors import UserError
    from bnrepro.runs import index, record

    if claims := claims_named(run, out):
        answer(claims)
        say(listing.describe_claim(claims[0]) if len(claims) == 1 else listing.verdict_table(claims))
        return
    try:
        path = index.find_run(run, root)
        text = listing.describe(path)
    except UserError as error:
        if run.exists() or not (meant := no_results(run, out)):
            raise
        raise UserError(meant) from error
    say(text)
    if as_json:
        found = record.open_run(path)
        metrics = found.metrics if record.is_there(path / record.METRICS) else []
        answer({"path": path, "summary": found.summary, "config": to_dict(found.config), "metrics": metrics})


def claims_named(name: Path, out: Path) -> list[dict[str, Any]]:
    """The stored claims of an experiment (its name or folder), or that of ``experiment/claim``; none for others.

    Raises:
        UserError: the experiment has no such claim, or its results are damaged.
    """
    from bnrepro.claims.conclusion import CLAIMS, open_conclusion
    from bnrepro.errors import UserError, known_are

    if (name / CLAIMS).is_file():
        return open_conclusion(name).claims
    parts = name.parts or ("",)
    file = next((place for place, part in enumerate(parts) if part.endswith(".py")), 0)  # of a user's own
    experiment, rest = parts[file].removesuffix(".py"), parts[file + 1 :]
    is_path = not parts[file].endswith(".py") and (name.is_absolute() or name.exists())
    if len(rest) > 1 or is_path or not (out / experiment / CLAIMS).is_file():
        return []
    rows = open_conclusion(out / experiment).claims
    if not rest:
        return rows
    ids = [row["id"].rpartition("/")[2] for row in rows]
    if rest[0] not in ids:
        raise UserError(f"{experiment} has no claim {rest[0]!r}.{known_are(rest[0], ids)}")
    return [rows[ids.index(rest[0])]]


def no_results(name: Path, out: Path) -> str | None:
    """Why there is nothing under ``name``, where it is that of an experiment, or nearly; None where it is not."""
    from difflib import get_close_matches

    from bnrepro.experiments import NAMES

    experiment, *rest = name.parts or ("",)
    if len(rest) > 1 or (rest and rest[0].startswith("seed")):
        return None
    if experiment in NAMES:
        return (
            f"{shown(out / experiment)} holds no results of {experiment}. Those that come with a clone are found from "
            f"its folder, or by --out; `bnrepro reproduce {experiment} --preset=quick` makes some here."
        )
    near = get_close_matches(experiment, NAMES, 1, 0.8)
    if near or rest:
        every = f"The experiments are {', '.join(NAMES)}; `bnrepro runs` lists the runs."
        known = f"Did you mean {near[0]}?" if near else every
        return f"There is no run and no experiment {experiment!r}. {known}"
    return None


def diff(run: RunName, other: RunName, root: Root = RUNS, as_json: Json = False) -> None:
    """Show what differs between two runs.

    Of configuration, versions, machine and metrics, and nothing else.
    """
    from bnrepro.cli import listing
    from bnrepro.runs import index, record

    first, second = (record.open_run(index.find_run(each, root)) for each in (run, other))
    found = index.diff(first, second)
    answer({"runs": [first.path, second.path], "differences": found})
    say(listing.difference(first.path, second.path, found))


def watch(
    root: Root = RUNS,
    where: Where = None,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between updates.")] = 1.0,
) -> None:
    """Follow running runs from another terminal.

    Until none is running. It reads what they write and does not disturb them: a run's line says how far its last
    evaluation was.
    """
    from bnrepro.cli.progress import WatchBar
    from bnrepro.runs import index, record

    folder_of_runs(root)
    asked = conditions(where)
    followed: dict[Path, str] = {}
    with WatchBar() as bar:
        while True:
            rows = [run for run in index.select(root, asked) if run.first["status"] in (record.RUNNING, record.UNKNOWN)]
            live = {run.run.path: run for run in rows}
            for path in [path for path in followed if path not in live]:
                bar.ended(followed.pop(path), index.Stored(record.Run(path)).first)
            for path, run in live.items():
                followed.setdefault(path, str(path.relative_to(root)))
                bar.at(followed[path], run)
            if not followed:
                break
            time.sleep(every)
    if not bar.seen:
        hint(f"No run under {shown(root)} is running.")


def prune(
    root: Root = RUNS,
    where: Where = None,
    whole: Annotated[bool, typer.Option("--runs", help="Delete whole runs, not only their optimizer's state.")] = False,
    do_it: Annotated[bool, typer.Option("--yes", help="Delete; without it, only print what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Drop the optimizer's state of finished runs, or whole runs.

    Without --yes, only prints what would be deleted. Active runs are skipped; weights, metrics and summaries are kept
    unless --runs is given.

    Example: bnrepro prune --runs --where status=failed
    """
    from bnrepro.errors import UserError
    from bnrepro.runs import pruning
    from bnrepro.system.output import counted

    folder_of_runs(root)
    if whole and not where:
        raise UserError(
            "--runs deletes whole runs. Select them, as in --where=status=failed, or --where='seed>=0' for all."
        )
    found = pruning.delete(root, conditions(where), do_it) if whole else pruning.lighten(root, conditions(where), do_it)
    answer({"done": do_it, "runs": [{"path": path, "bytes": size} for path, size in found.items()]})
    for path, size in found.items():
        say(f"{size / 1e6:8.1f} MB  {shown(path)}")
    what = "" if whole else "the optimizer's state of "
    total = f"{what}{counted(len(found), 'run')}, {sum(found.values()) / 1e6:.1f} MB"
    say(f"Deleted: {total}." if do_it else f"Would delete {total}.")
    if found and not do_it:
        hint("Nothing was deleted. Add --yes to delete.")
