"""`bnrepro data`: list, download and check datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnrepro.cli.options import folder

app = typer.Typer(help="List, download and check datasets.")

DataName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A dataset; default: all.")]
DataRoot = Annotated[
    Path, typer.Option(metavar="FOLDER", parser=folder("--root"), help="Folder of the datasets (data.root).")
]


@app.command("list")
def list_data(root: DataRoot = Path("data")) -> None:
    """List the datasets and whether their files are there."""
    from bnrepro import sources

    for name, known in sources.DATASETS.items():
        typer.echo(f"{name:<15}{known.title:<42}{'there' if known.there(root) else f'not in {root}'}")


@app.command()
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


@app.command()
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
