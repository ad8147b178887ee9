"""What stored runs can do without: the optimizer's state of those that have finished, or whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bnrepro.errors import UserError
from bnrepro.runs import record
from bnrepro.runs.index import Condition, Stored, select
from bnrepro.runs.record import RUNNING, UNKNOWN, Run
from bnrepro.system.output import tell
from bnrepro.system.reading import leads_out


def lighten(root: Path, conditions: Sequence[Condition], do_it: bool) -> dict[Path, int]:
    """The bytes that the optimizer's state takes in each finished run under ``root`` that keeps it; dropped if asked.

    Weights, metrics and everything else stay, bit for bit.
    """
    from bnrepro.runs import checkpoint

    found = {}
    for path in _idle(root, conditions):
        file = path / record.CHECKPOINT
        if not file.is_file() or not _finished(path):
            continue
        try:
            if size := checkpoint.drop_optimizer(file, do_it):
                found[path] = size
        except UserError as error:
            tell(f"{path} is left as it is: {error}")
    return found


def delete(root: Path, conditions: Sequence[Condition], do_it: bool) -> dict[Path, int]:
    """The sizes of the runs under ``root`` that fulfil ``conditions``; deleted if asked.

    Folders that are empty then go with them. What comparisons and experiments have recorded of the runs stays.
    """
    found = {}
    for path in _idle(root, conditions):
        found[path] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        if do_it:
            with record.claim(path):
                now = Stored(Run(path))  # it may have been run again since it was looked at
                if not all(each.holds(now.value(each.column)) for each in conditions):
                    tell(f"{path} is left as it is: it has changed.")
                    del found[path]
                    continue
                record.clear(path)
                shutil.rmtree(path)
            with suppress(OSError):  # others are in it
                for folder in path.parents[:3]:
                    folder.rmdir()
    return found


def _finished(path: Path) -> bool:
    with suppress(UserError):
        return Run(path).finished
    return False


def _idle(root: Path, conditions: Sequence[Condition]) -> Iterator[Path]:
    """The runs that nobody is at, and that lie where they are listed."""
    for run in select(root, conditions):
        path, status = run.run.path, run.first["status"]
        if status in (RUNNING, UNKNOWN):
            tell(f"{path} is left as it is: it is {status}.")
        elif leads_out(path, root):
            tell(f"{path} is left as it is: it is a link out of {root}.")
        else:
            yield path
