"""Arguments and options that several commands share, and what is made of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnrepro.errors import UserError, no_folder
from bnrepro.system.output import shown as shown

if TYPE_CHECKING:
    from bnrepro.config.schema import Config


def path(what: str, wanted: str = "") -> Callable[[str | Path], Path]:
    """The parser of the path that argument ``what`` takes; ``wanted`` says what to write where it is empty.

    The home folder is put in place of ``~``, which shells leave alone in ``--root=~/runs``.
    """

    def parse(text: str | Path) -> Path:
        from bnrepro.config.overrides import check_path, home

        check_path(what, str(text), wanted)
        return Path(home(what, str(text)))

    return parse


def folder(what: str) -> Callable[[str | Path], Path]:
    """`path` for an option that names a folder; what cannot be one is so refused before any work is done."""
    parse_path = path(what)

    def parse(text: str | Path) -> Path:
        from bnrepro.config.overrides import need_folder

        found = parse_path(text)
        need_folder(what, found)
        return found

    return parse


def make_room(out: Path) -> None:
    """Make the folder of the results and try whether files can be made in it, before any work is done for them."""
    from tempfile import TemporaryFile

    out.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=out):
        pass


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Any key of the configuration, as in epochs=5 data=cifar10."),
]
Variant = Annotated[str | None, typer.Option(help="The norm: nobn, bn, custombn, convbn, ..., or FILE.py:NAME.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, batches, augmentation and dropout.")]
Force = Annotated[bool, typer.Option("--force", help="Start over even if a finished run is stored.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only list the runs, stored and missing, and how long they would take.")
]


def _run(help: str) -> Any:
    """An argument that names a run."""
    parser = path("RUN", "Write a run's directory; `bnrepro runs` lists them.")
    return typer.Argument(metavar="RUN", parser=parser, help=help)


RunName = Annotated[Path, _run("A run's directory, or the start of its hash or name; `bnrepro runs` lists them.")]
RunOrClaim = Annotated[Path, _run("A run's directory, or the start of its hash or name; or EXPERIMENT[/CLAIM].")]
Root = Annotated[Path, typer.Option(metavar="FOLDER", parser=folder("--root"), help="Folder of the runs.")]
RunsRoot = Annotated[
    Path | None,
    typer.Option("--root", metavar="FOLDER", parser=folder("--root"), help="Folder of the runs (key root)."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="FOLDER", parser=folder("--data-root"), help="Folder of the datasets (key data.root)."
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="FOLDER", parser=folder("--out"), help="Folder of the experiments' results.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Worker processes (default: one per core); threads are divided among them.")
]
LauncherName = Annotated[
    str, typer.Option(help="local (processes on this machine) or slurm (jobs; see configs/launcher/slurm.yaml).")
]
EXPERIMENTS = Path("results/experiments")


def configure(overrides: list[str] | None, instead: Mapping[str, str] | None = None, **flags: Any) -> Config:
    """The configuration of the overrides and the flags that were given.

    Args:
        overrides: as the user wrote them.
        instead: keys that the command does not use, and the sentence that says what is used instead.
        flags: by key, with underscores for dots; None for those that were not given.

    Raises:
        UserError: a key is given twice with different values; one that the command does not use.
    """
    from bnrepro.config import load_config
    from bnrepro.errors import UserError

    flagged = {
        f"{key.replace('_', '.')}={value}": f"--{key.replace('_', '-')}={value}"
        for key, value in flags.items()
        if value is not None
    }
    given: dict[str, tuple[str, str]] = {}
    for text in [*(overrides or []), *flagged]:
        key, _, value = (part.strip() for part in text.partition("="))
        shown = flagged.get(text, text)
        if instead and key in instead:
            raise UserError(f"{shown} is not used here. {instead[key]}")
        # A network of one's own is a name, and no member of the group.
        for each in (key, "model.name") if key == "model" and ".py:" in value else (key,):
            if each in given and _meant(given[each][0]) != _meant(value):
                raise UserError(f"{each} is given twice: {given[each][1]} and {shown}. Leave one of them out.")
            given.setdefault(each, (value, shown))
    return load_config([*(overrides or []), *flagged])


def names_in(option: str, text: str, example: str = "bn,convbn") -> list[str]:
    """The names in ``text``, separated by commas, as in ``example``.

    Raises:
        UserError: there is none; one is empty, or there twice.
    """
    if not text.strip():
        raise UserError(f"{option} is empty. Write names, as in {option}={example}.")
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise UserError(
                f"{option}={text}: a name is missing next to a comma. Write names as in {option}={example}."
            )
        if names.count(name) > 1:
            raise UserError(f"{option} names {name} {_times(names.count(name))}. Leave one of them out.")
    return names


def check_separate(command: str, words: Sequence[str], things: str) -> None:
    """Raise UserError if ``words``, of which each is a name, were separated by commas."""
    if any("," in word for word in words):
        names = [name for word in words for name in _parts(word)]
        raise UserError(f"{' '.join(words)}: separate {things} by spaces: bnrepro {command} {' '.join(names)}")


def _parts(word: str) -> list[str]:
    """labml/A5 and labml/A6, of labml/A5,A6."""
    names = [name for name in word.split(",") if name]
    paper, slash, _ = "".join(names[:1]).rpartition("/")
    return [name if "/" in name else f"{paper}{slash}{name}" for name in names]


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def _meant(value: str) -> str | float:
    """The value as a number if it is one, so that different spellings compare equal."""
    try:
        return float(value)
    except ValueError:
        return value.strip("'\"")


def root_flag(root: str) -> str:
    """The folder of the runs as an argument of `bnrepro tensorboard`, where it is not the default."""
    return "" if root == "runs" else f" {shown(root)}"


def folder_of_runs(root: Path) -> None:
    """Raise UserError if there is no folder ``root``; OSError if it may not be looked into, as it is not empty then."""
    if root.is_dir():
        if not os.access(root, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))
        return
    from bnrepro.config.overrides import written

    there = next((place for place in (root, *root.parents) if os.path.lexists(place)), Path())
    if not there.is_dir():
        raise UserError(f"{there} {no_folder(there)}. Name a folder that holds runs.")
    plain = f"./{root}" if str(root).startswith("~") else str(root)
    how = quote(written("root", plain))
    raise UserError(f"There is no folder {root}. `bnrepro train {how}` creates it.")


def comparison_named(folder: Path, root: Path) -> Path | None:
    """The comparison that ``folder`` is or begins the name or hash of; None where it is a folder of runs.

    Raises:
        UserError: it begins several.
    """
    from bnrepro.errors import known_are

    if folder.is_dir():
        return folder if folder.name.startswith("compare-") else None
    if len(folder.parts) != 1:
        return None
    there = {place.name: place for place in sorted(root.glob("*/*/compare-*"))}
    found = [place for name, place in there.items() if f"compare-{folder.name.removeprefix('compare-')}" in name]
    if len(found) > 1:
        raise UserError(
            f"{folder} is ambiguous: {len(found)} comparisons match. Choose one of {', '.join(map(shown, found))}."
        )
    if not found and there and folder.name.startswith("compare-"):
        raise UserError(f"There is no comparison {folder} under {root}.{known_are(folder.name, there)}")
    return found[0] if found else None


def draw(folder: Path) -> None:
    """The table and the figures of the comparison in ``folder``."""
    from bnrepro.errors import UserError
    from bnrepro.report import figures
    from bnrepro.report.compare import open_comparison, write_table
    from bnrepro.system.reading import leads_out

    if leads_out(folder / "figures", folder):
        raise UserError(f"{folder / 'figures'} is a link that leads out of its folder. Replace it with a folder.")
    comparison = open_comparison(folder)
    write_table(comparison, folder)
    figures.draw(comparison, folder / "figures")
