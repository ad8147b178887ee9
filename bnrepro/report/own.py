"""A user's own runs, comparisons and papers as one page that can be sent: what `bnrepro report PATH...` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bnrepro.claims.records import Gathered
from bnrepro.config import leaves
from bnrepro.errors import UserError, no_folder
from bnrepro.plots import style
from bnrepro.report import figures
from bnrepro.report.compare import PART, WITHOUT, Comparison
from bnrepro.report.gathering import LeftOut, origin, sections_in, side_by_side
from bnrepro.report.model import Report, Section
from bnrepro.report.page import page
from bnrepro.report.wording import Rows, counts_of
from bnrepro.runs import record
from bnrepro.runs.record import CONFIG, Run, Status
from bnrepro.system import reading as stored

NAME, TITLE = "report.html", "Runs and comparisons"
MARK = b'name="generator" content="bnrepro'
"""What a page of ours has in its head."""


def write(paths: Sequence[Path], out: Path, left_out: LeftOut | None = None) -> Path:
    """Write report.html on ``paths`` into ``out``, and return its path.

    Args:
        paths: directories of runs, comparisons or experiments, and folders that hold some.
        out: a folder.
        left_out: told what is wrong with what cannot be read, which is left out; None: that is raised.

    Raises:
        UserError: there is nothing; the file that would be replaced is another one.
    """
    file = out / NAME
    if stored.is_file(file) and MARK not in stored.read_bytes(file)[:4096]:
        raise UserError(f"{file} was not written by bnrepro and would be replaced. Use another --out.")
    with gathered(paths, left_out) as report:
        record.write_whole(file, page(report, None, _title(report)))
    return file


@contextmanager
def gathered(paths: Sequence[Path], left_out: LeftOut | None = None) -> Iterator[Report]:
    """What is in ``paths``, as a report, while its figures are there; the arguments are those of `write`."""
    sections: list[Section] = []
    runs: dict[Path, Run] = {}
    for path in paths:
        if record.is_there(path / CONFIG):
            runs[path.resolve()] = record.open_run(path)
            continue
        if not path.is_dir():
            raise UserError(f"{path} {no_folder(path)}. Name runs, a comparison, or a folder of them.")
        sections += sections_in(path, left_out)
        runs |= {run.path.resolve(): run for run in _below(path, left_out)}
    with TemporaryDirectory() as folder:
        sections += [_section(list(runs.values()), Path(folder))] if runs else []
        if not sections:
            raise UserError(
                f"There are no runs, comparisons or experiments in {' or '.join(map(str, paths))}. "
                "`bnrepro train` and `bnrepro compare` make some."
            )
        yield Report(sections)


def _below(folder: Path, left_out: LeftOut | None) -> Iterator[Run]:
    """The runs in ``folder`` and below."""
    for file in sorted(folder.rglob(CONFIG)):
        try:
            yield record.open_run(file.parent)
        except UserError as error:
            if left_out is None:
                raise
            left_out(str(error))


def _title(report: Report) -> str:
    return report.sections[0].title if len(report.sections) == 1 else TITLE


# --- runs ---------------------------------------------------------------------------------------------------------


def _section(runs: list[Run], folder: Path) -> Section:
    """Runs side by side: those that differ in their seed alone are one variant."""
    told = _told(runs)
    gathered, every = Gathered(), []
    for run in runs:
        label = _label(run, told)
        every.append(_row(run, label))
        if run.status in (Status.completed, Status.diverged):
            gathered.add(run, PART, {"variant": label})
    statuses = counts_of([str(row["status"]) for row in every])
    facts = [("Runs", f"{len(runs)}: {statuses}"), *origin(gathered.found)]
    shared = {key: value for key, value in _keys(runs[0]).items() if key not in told}
    tables: list[tuple[str, Rows]] = [("All runs.", every)]
    if not gathered.runs:  # none has ended
        return Section("runs", _named(runs), "", facts, [], [], [], tables, dict(shared), runs=every)
    comparison = Comparison(gathered.runs, gathered.curves, {}, {**shared, "threshold": None})
    overview = folder / "overview"
    style.save(figures.overview(comparison), overview)
    section = side_by_side(comparison, name="runs", title=_named(runs), facts=facts, overview=overview)
    section.tables.extend(tables)
    ended = [run for run in runs if run.status in (Status.completed, Status.diverged)]
    known = [{f"config.{key}": value for key, value in _keys(run).items()} for run in ended]
    return replace(section, runs=[row | more for row, more in zip(section.runs, known, strict=True)])


def _told(runs: list[Run]) -> list[str]:
    """The keys in which the runs differ, but for variant and seed."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in _keys(run).items():
            values.setdefault(key, set()).add(str(value))
    return [key for key, there in values.items() if len(there) > 1]


def _keys(run: Run) -> dict[str, Any]:
    """A run's configuration but for variant, seed and this machine's folders; of files their names."""
    left_out = {"root", "tensorboard", "data.root", *WITHOUT}
    known = {key: value for key, value in leaves(asdict(run.config)) if key not in left_out}
    files = ("data.path", "norm.file", "model.file")
    return {key: Path(value).name if key in files and value else value for key, value in known.items()}


def _label(run: Run, told: list[str]) -> str:
    """What tells a run's variant from the others: "bn, optimizer.lr=0.1"."""
    known = _keys(run)
    return ", ".join([run.config.variant, *(f"{key}={known.get(key)}" for key in told)])


def _row(run: Run, label: str) -> dict[str, Any]:
    summary = run.summary
    row = {"run": run.path.name, "variant": label, "seed": run.config.seed, "status": str(summary["status"])}
    return row | {key: summary.get(key) for key in ("steps", "test_accuracy", "val_accuracy", "test_loss", "seconds")}


def _named(runs: list[Run]) -> str:
    networks, data = ({getattr(run.config, part).name for run in runs} for part in ("model", "data"))
    return f"Runs of {', '.join(sorted(networks))} on {', '.join(sorted(data))}"
