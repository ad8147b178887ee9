"""`bnrepro data`: list, download and check datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnrepro.cli.options import folder
from bnrepro.cli.saying import say

app = typer.Typer(help="List, download and check datasets.")

DataName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A dataset (default: all).")]
ROOT = Path("data")
DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root", metavar="FOLDER", parser=folder("--data-root"), help="Folder of the datasets (data.root)."
    ),
]


@app.command("list")
def list_data(root: DataRoot = ROOT) -> None:
    """List the datasets and whether their files are there."""
    from bnrepro.data import sources
    from bnrepro.data.published import need_folder

    need_folder(root)
    for name, known in sources.DATASETS.items():
        say(f"{name:<15}{known.title:<42}{'there' if known.there(root) else f'not in {root}'}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist, fashion_mnist, cifar10 or cifar100.")],
    root: DataRoot = ROOT,
) -> None:
    """Download missing files of a dataset and check them."""
    from bnrepro.data import sources
    from bnrepro.data.published import need_folder

    need_folder(root)
    known = sources.lookup(name, "NAME")
    if known.fetch:
        known.fetch(root)
    known.read(root)
    say(f"{name}: {known.title}, complete and checked.")


@app.command()
def verify(name: DataName = None, root: DataRoot = ROOT) -> None:
    """Check the files against their checksums. Without a name: every dataset that is there."""
    from bnrepro.data import sources
    from bnrepro.data.published import need_folder
    from bnrepro.errors import UserError
    from bnrepro.system import reading as stored

    need_folder(root)
    if root != ROOT and not stored.is_folder(root):  # a dataset that needs no files is there even so
        raise UserError(f"There is no folder {root}. Name the folder that holds the datasets.")
    bad = []
    for each in [name] if name else [n for n, known in sources.DATASETS.items() if known.there(root)]:
        state = sources.state(each, root)
        say(f"{each}: {state}")
        bad += [each] if state != sources.PRESENT else []
    if bad:
        raise UserError(f"{', '.join(bad)}: incomplete in {root}; see above.")
