"""The command line: parse, call, print. Everything heavy is imported inside the commands, so that help is quick."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from bnrepro import errors
from bnrepro.cli import completion, data, doctor, ending, mistakes, results, run, saying, stored, tools
from bnrepro.system import signals

app = typer.Typer(
    name="bnrepro",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": list(mistakes.HELP)},
)
LESS_MEMORY = {
    **dict.fromkeys(("train", "compare", "sweep", "bench"), errors.LESS_MEMORY),
    "reproduce": "Use a smaller preset, or fewer --jobs.",
}
"""What to do where memory ran out, for commands that can be asked for less."""


def _show_version(asked: bool) -> None:
    if asked:
        from bnrepro import __version__

        typer.echo(f"bnrepro {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Claims about batch normalization, run and judged."""


for command in (
    *(run.train, run.compare, run.sweep),
    *(results.register, results.reproduce, results.figures, results.report, results.export),
    *(stored.runs, stored.show, stored.diff, stored.watch, stored.prune),
    *(tools.config, tools.norms, run.evaluate, tools.tensorboard, tools.bench, doctor.doctor, completion.completion),
):
    app.command("eval" if command is run.evaluate else None)(command)
app.add_typer(data.app, name="data")


def main() -> None:
    """Entry point: what the user or the machine is at fault for is one sentence and exit code 2, never a traceback.

    A fault of ours (exit code 1) keeps its traceback, under a line that asks for a report.
    """
    ending.run(_run)


def _run() -> None:
    with saying.one_command():
        _command()


def _command() -> None:
    parser = typer.main.get_command(app)
    if completion.answer(parser):
        return
    if errors.folder_is_gone():  # told here, since libraries crash over it where they are imported
        _fail(errors.FOLDER_GONE)
    if message := errors.closed_umask():
        _fail(message)
    for old, new in mistakes.take_old_names(parser):
        saying.note(f"{old} is called {new} now.")
    try:
        if message := mistakes.said_twice(parser) or mistakes.misplaced(parser):
            _fail(message)
        with parser.make_context("bnrepro", sys.argv[1:]) as context:  # app() would tell of errors in its own words
            parser.invoke(context)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except mistakes.UsageError as error:
        if message := mistakes.sentence(error, parser):
            _fail(message)
        typer.echo(error.ctx.get_help())  # a group of commands alone
        sys.exit(2)
    except Exception as error:
        if signals.received:  # an import that is interrupted can end in any error
            raise
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        if message := errors.sentence(error, LESS_MEMORY.get(command, "Free some, or raise its limit (`ulimit -v`).")):
            kept = command in ending.GOES_ON and not isinstance(error, errors.UserError)
            _fail(f"{message}{' What has finished is kept.' * kept}")
        typer.echo(
            f"This is a bug in bnrepro ({type(error).__name__}). Please report it with the following lines:", err=True
        )
        raise


def _fail(message: str) -> NoReturn:
    from bnrepro.system.reading import printable  # what is told may come from a file

    message = message.replace("\n", " ")
    typer.echo(f"Error: {printable(message)}", err=True)
    sys.exit(2)
