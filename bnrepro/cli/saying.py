"""What commands say: sentences for people, or with ``--json`` one document for programs; with ``--quiet`` less.

Standard output has the results alone. Notes and progress go to standard error, as log records of ``bnrepro`` at the
level INFO; warnings keep their level, and are shown even with ``--quiet``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

_document: TextIO | None = None
"""Standard output, where ``--json`` has it for one document alone."""


@contextmanager
def one_command() -> Iterator[None]:
    """Within it, a command is said to be quiet or to print JSON; each starts with sentences, and all of them."""
    global _document
    logging.getLogger("bnrepro").setLevel(logging.INFO)
    try:
        yield
    finally:
        if _document:
            sys.stdout, _document = _document, None


def _json(asked: bool) -> bool:
    """What others print meanwhile, as code of a user's own does, goes to standard error."""
    global _document
    if asked and not _document:
        _document, sys.stdout = sys.stdout, sys.stderr
    return asked


def _quiet(asked: bool) -> bool:
    if asked:
        logging.getLogger("bnrepro").setLevel(logging.WARNING)
    return asked


Json = Annotated[bool, typer.Option("--json", callback=_json, help="Print one JSON document, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_quiet, help="No progress and no hints.")]


def quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return not logging.getLogger("bnrepro").isEnabledFor(logging.INFO)


def say(text: str, nl: bool = True) -> None:
    """A result, on standard output; nothing with ``--json``."""
    if not _document:
        typer.echo(text, nl=nl)


def hint(text: str) -> None:
    """What to do next, on standard output; nothing with ``--json`` or ``--quiet``."""
    if not (_document or quiet()):
        typer.echo(text)


def note(text: str) -> None:
    """What happened on the way, on standard error; nothing with ``--quiet``."""
    from bnrepro.system.output import tell

    tell(text, logging.INFO)


def answer(value: Any) -> None:
    """The document of ``--json``; nothing without. Numbers that are not finite are null, paths are texts."""
    if _document:
        import json

        print_document(json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n")


def print_document(text: str) -> None:
    """``text`` as the document of ``--json``."""
    typer.echo(text, nl=False, file=_document)


def _plain(value: Any) -> Any:
    import math
    from pathlib import Path

    from bnrepro.system.reading import printable

    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str | Path):
        return printable(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
