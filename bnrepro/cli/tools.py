"""Commands beside the runs: `config`, `norms`, `tensorboard`, `bench`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bnrepro.cli.options import (
    DataRoot,
    Overrides,
    Root,
    RunsRoot,
    Seed,
    Variant,
    check_separate,
    comparison_named,
    configure,
    folder,
    folder_of_runs,
    make_room,
    names_in,
    path,
    shown,
)
from bnrepro.cli.saying import Json, answer, say

RUNS = Path("runs")


def config(
    overrides: Overrides = None,
    variant: Variant = None,
    seed: Seed = None,
    root: RunsRoot = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Print the resolved configuration; run nothing.

    Example: bnrepro config recipe=cifar_fast variant=convbn
    """
    cfg = configure(overrides, variant=variant, seed=seed, root=root, data_root=data_root)
    from bnrepro.config import to_dict, to_yaml
    from bnrepro.config.schema import Source
    from bnrepro.data.sources import lookup
    from bnrepro.training.model import check_names
    from bnrepro.training.options import check_options

    check_names(cfg)
    check_options([cfg])
    if cfg.data.source is not Source.npz:
        lookup(cfg.data.name)
    say(to_yaml(cfg), nl=False)
    answer(to_dict(cfg))


def norms(as_json: Json = False) -> None:
    """List the norms, one per line.

    Formula, axes of the statistics, parameters, whether train and eval differ, source.
    """
    from bnrepro.cli.norms import NORMS
    from bnrepro.system.text import fitted

    answer([{"variant": name, **norm._asdict()} for name, norm in NORMS.items()])
    head = ["variant", "formula", "statistics over", "gamma, beta per", "train is eval", "source"]
    lines = [
        [name, norm.formula, norm.statistics, norm.parameters, "no" if norm.differs else "yes", norm.source]
        for name, norm in NORMS.items()
    ]
    say(fitted([head, *lines], left=range(6)))


def tensorboard(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            parser=path("FOLDER"),
            help="A comparison (its folder or the start of its hash), or a folder of runs (default: all runs).",
        ),
    ] = RUNS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on localhost; 0 picks a free one.")] = 6006,
    root: Root = RUNS,
) -> None:
    """Start TensorBoard on the stored runs.

    Example: bnrepro tensorboard runs/mnist5k
    """
    from bnrepro.runs import hparams
    from bnrepro.system.output import only_shown

    comparison = comparison_named(folder, root)
    logs = root if folder == RUNS else folder
    if comparison:  # <root>/<dataset>/<model>/<comparison>
        logs = root if comparison.is_relative_to(root) else comparison.absolute().parents[2]
    folder_of_runs(logs)
    port = _free(port)
    with only_shown("What varies, for HPARAMS,"):
        hparams.write(logs)
    which, means = "The comparison's means", comparison.name if comparison else ""
    if not comparison and any(logs.glob("**/compare-*/")):
        which, means = "The means that `compare` made", "compare-[^/]*"
    about = [
        "TensorBoard is starting. 95% intervals are under CUSTOM SCALARS; HPARAMS has one row per configuration, "
        "with the mean of its seeds.",
        *([f"{which}, alone:", _address(port, f"{means}/")] if means else []),
        *(["Their 95% intervals:", _intervals(port, f"{means}/")] if means else []),
        "All runs, one colour per variant:",
        _address(port, "[^.]"),  # all but the one that has the columns of HPARAMS
    ]
    # -P: else Python would look for modules in the folder that it is called from
    command = [sys.executable, "-P", "-c", _SERVE, "\n".join(about)]
    command += ["--logdir", str(logs), "--host", "localhost", "--port", str(port)]
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it waits until there is something that takes it
    try:
        os.execv(sys.executable, command)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


VARIANT = "([^/]+)(?:/seed[0-9]+-[^/]*)?$"
"""In the name of a run or of a mean, the variant: runs of one have one colour."""


def _address(port: int, runs: str) -> str:
    """TensorBoard's page of the ``runs`` whose names match, without the scalars that are for CUSTOM SCALARS alone."""
    from urllib.parse import urlencode

    asked = {"runFilter": runs, "tagFilter": "^[^~]", "runColorGroup": f"regex:{VARIANT}", "smoothing": "0"}
    return f"http://localhost:{port}/?{urlencode(asked)}#timeseries"


def _intervals(port: int, runs: str) -> str:
    """CUSTOM SCALARS of the ``runs`` whose names match, without smoothing.

    Its settings stand behind the # in TensorBoard's addresses, unlike those of TIME SERIES. It has no colours by group.
    """
    from urllib.parse import quote

    return f"http://localhost:{port}/#custom_scalars&regexInput={quote(runs, safe='/')}&_smoothingWeight=0"


_SERVE = """
import signal, sys

def stop(*_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\\nInterrupted.", file=sys.stderr)
    sys.exit(130)

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
try:
    from tensorboard.main import run_main
except Exception as error:
    lines = str(error).splitlines() or [""]
    print(f"Error: TensorBoard cannot be imported ({type(error).__name__}: {lines[0]}). "
        "Reinstall it: pip install --force-reinstall tensorboard", file=sys.stderr)
    sys.exit(2)
print(sys.argv.pop(1), flush=True)
run_main()
"""


def _free(port: int) -> int:
    """``port`` if it is free; for 0, a free port."""
    import errno
    import socket

    from bnrepro.errors import UserError

    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as TensorBoard does
                server.bind((host, port))
                port = server.getsockname()[1]
        except PermissionError as error:
            raise UserError(
                f"--port={port}: ports below 1024 are reserved for the system. Use a larger one, or --port=0."
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"--port={port}: this port is in use, perhaps by another TensorBoard. "
                    "`bnrepro tensorboard --port=0` picks a free one."
                ) from error
            if family == socket.AF_INET:  # a machine may well have no IPv6
                raise
    return port


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PART|KEY=VALUE",
            help="layers, grid, memory, epoch, compare, recipe, throughput, startup, growth, seeds "
            "(default: layers and memory).",
        ),
    ] = None,
    variants: Annotated[str, typer.Option(help="Names separated by commas.")] = "bn,custombn,convbn",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; slow parts are repeated a tenth as often.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads (default: one per core).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", parser=folder("--out"), help="Folder for CSV and figures (default: none are written)."
        ),
    ] = None,
) -> None:
    """Measure speed and memory on this machine.

    Example: bnrepro bench layers epoch data.root=data --out bench
    """
    import torch

    from bnrepro.bench import output
    from bnrepro.system.cores import cores, use_threads
    from bnrepro.system.memory import raise_malloc_thresholds

    raise_malloc_thresholds()
    use_threads(threads or cores())
    overrides = [part for part in parts or [] if "=" in part]
    wanted = [part for part in parts or [] if "=" not in part] or ["layers", "memory"]
    check_separate("bench", wanted, "parts")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tables = output.run(wanted, names_in("--variants", variants), overrides, repeats, device)
    if out:
        make_room(out)
    for table in tables:
        say(output.text(table) + "\n")
        if out:
            output.write(table, out)
    if out:
        say(f"Tables and figures: {shown(out)}")
