"""The command line: parse, call, print. Everything heavy is imported inside the commands, so that help is quick."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from bnrepro import output, signals
from bnrepro.cli import data, results, run, tools


class Stopped(BaseException):
    """A KeyboardInterrupt, which Typer would end without a word."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """The command, whose interruption is told by `main`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            goes_on = ctx.invoked_subcommand in ("train", "compare", "sweep", "reproduce")
            raise Stopped(str(stop) or ("Stopped; the same command goes on." if goes_on else "Stopped.")) from stop


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
    """Entry point: what the user can mend is one sentence and exit code 2, never a traceback.

    Ended by a signal, it is 128 and the signal's number; 1 if standard output could not be written, for another reason
    than that nobody reads it: see `bnrepro.output`.
    """
    output.protect()
    signals.received = None
    try:
        with signals.terminate_as_interrupt():
            _run()
    except SystemExit as ended:
        if ended.code in (None, 0) and not output.finish():
            sys.exit(1)
        if ended.code in (None, 0) or not signals.received:
            raise
        _stop("Stopped.")
    except (KeyboardInterrupt, Stopped) as stop:
        _stop(str(stop) or "Stopped.")
    except Exception:
        if not signals.received:
            raise
        _stop("Stopped.")  # an import that is interrupted can end in any error


def _stop(message: str) -> NoReturn:
    signals.ignore()  # what is left is the interpreter's end
    output.tell(f"\n{message}")
    sys.exit(128 + (signals.received or signal.SIGINT))


def _run() -> None:
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

        if not isinstance(error, UserError) or signals.received:
            raise
        _fail(str(error))


def _fail(message: str) -> None:
    from bnrepro.stored import printable  # what is told may come from a file

    typer.echo(f"Error: {printable(message)}", err=True)
    sys.exit(2)
