"""The command line: parse, call, print. Everything heavy is imported inside the commands, so that help is quick."""

from __future__ import annotations

import errno
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from bnrepro.cli import data, ending, results, run, tools


class _Commands(TyperGroup):
    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As Typer's, which would end an interruption without a word."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            stop = ended.__context__ and ended.__context__.__cause__
            raise stop if isinstance(stop, KeyboardInterrupt) else ended from None


app = typer.Typer(
    cls=_Commands,
    name="bnrepro",
    help="Claims about batch normalization, run and judged.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    *(run.train, run.compare, run.sweep),
    *(results.reproduce, results.figures, results.report, results.runs, results.show),
    *(tools.config, run.evaluate, tools.tensorboard, tools.bench),
):
    app.command("eval" if command is run.evaluate else None)(command)
app.add_typer(data.app, name="data")


def main() -> None:
    """Entry point: what the user can mend is one sentence and exit code 2, never a traceback."""
    ending.run(_main)


def _main() -> None:
    # Named before the commands run, imported only when something went wrong: help must not pay for Hydra.
    try:
        app(prog_name="bnrepro")
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
    from bnrepro.stored import printable  # what is told may come from a file

    typer.echo(f"Error: {printable(message)}", err=True)
    sys.exit(2)
