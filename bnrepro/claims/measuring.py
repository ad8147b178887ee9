"""Probes, measured in processes of their own; each result is a file, so that nothing is measured twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bnrepro.claims.design import Probe
from bnrepro.claims.records import Data
from bnrepro.config import config_hash, digits_of, unreadable, user_files
from bnrepro.config.schema import Config
from bnrepro.data.dataset import load
from bnrepro.errors import UserError, reason
from bnrepro.launch.parallel import Report, map_all
from bnrepro.runs import provenance, record
from bnrepro.runs.record import Status, run_of
from bnrepro.runs.tables import plain
from bnrepro.system.reading import read_json


@dataclass(frozen=True)
class Measurement:
    """What became of a probe."""

    probe: Probe
    stored: dict[str, Any] | None = None
    """What its file says: rows, seconds, machine, versions, ...; None if it failed."""
    error: str | None = None

    @property
    def state(self) -> str:
        """measured or failed."""
        return "failed" if self.error else "measured"


@dataclass
class _Value:
    quantity: str
    x: str | bool | int | float | None
    value: float


@dataclass
class _Stored:
    rows: list[_Value]
    seconds: float | None = None
    data: Data | None = None
    machine: str | None = None
    versions: dict[str, str] | None = None
    git_revision: str | None = None


def file_of(probe: Probe, folder: Path) -> Path:
    """Where the result of ``probe`` lies: ``<folder>/<hash>.json``, the hash over all that the result depends on."""
    return folder / f"{digits_of(_identity(probe))}.json"


def stored(probe: Probe, folder: Path) -> dict[str, Any] | None:
    """The stored result; None if it is missing or damaged, in which case it is measured again.

    Raises:
        UserError: it cannot be read just now.
    """
    file = file_of(probe, folder)
    try:
        found: dict[str, Any] = read_json(file, _Stored)
        return found
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except (OSError, MemoryError) as error:
        raise unreadable(file, error) from error


def measure_all(
    probes: list[Probe],
    folder: Path,
    jobs: int,
    *,
    force: bool = False,
    report: Report | None = None,
    ended: Callable[[int, Measurement], None] | None = None,
) -> list[Measurement]:
    """Measure ``probes``, ``jobs`` at a time; the results in their order.

    What is there is not measured again, unless with ``force``. A probe that fails leaves the others alone. ``report``
    and ``ended`` are told of those that are measured, which `missing` counts.
    """
    there = {} if force else {i: result for i, probe in enumerate(probes) if (result := stored(probe, folder))}
    rest = [i for i in range(len(probes)) if i not in there]
    work = partial(_attempt, folder=folder, revision=provenance.git_revision() if rest else None)
    made = map_all(work, [probes[i] for i in rest], jobs, _lost, report, ended, threads=1)
    found = dict(zip(rest, made, strict=True)) | {i: Measurement(probes[i], result) for i, result in there.items()}
    return [found[i] for i in range(len(probes))]


def missing(probes: list[Probe], folder: Path) -> list[Probe]:
    """Those of ``probes`` that are still to measure."""
    return [probe for probe in probes if stored(probe, folder) is None]


def _identity(probe: Probe) -> dict[str, Any]:
    return {
        "measure": probe.measure.identity,
        "arguments": probe.arguments,
        "seed": probe.seed,
        "config": probe.config and config_hash(probe.config),
        "data": probe.data and config_hash(Config(data=probe.data)),
    }


def _lost(probe: Probe) -> Measurement:
    return Measurement(probe, error="its process was killed (out of memory?)")


def _attempt(probe: Probe, _share: Callable[[float], None], *, folder: Path, revision: str | None) -> Measurement:
    try:
        result = _identity(probe) | _measure(probe) | {"git_revision": revision}
        record.write_whole(file_of(probe, folder), json.dumps(result, indent=1) + "\n")
        return Measurement(probe, result)
    except UserError as error:
        return Measurement(probe, error=str(error))
    except user_files.FAILS as error:  # whatever it is, the others go on, and it is reported at the end
        file = user_files.file_of(probe.measure.function.__module__)
        return Measurement(probe, error=f"{file}: {user_files.where(error, file)}" if file else reason(error))


def _measure(probe: Probe) -> dict[str, Any]:
    started = time.perf_counter()
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]]
    function = probe.measure.function
    if probe.data is not None:
        dataset = load(probe.data, torch.device("cpu"))
        about = {"data": dataset.description, "data_official": dataset.official}
        about["data_fingerprint"] = dataset.fingerprint
        rows = function(data=dataset, seed=probe.seed, **probe.arguments)
    elif probe.config is None:
        rows = function(seed=probe.seed, **probe.arguments)
    else:
        run = run_of(probe.config)
        if not run.finished:
            raise UserError("its run did not finish")
        # The data lies where this plan says: the run may have been made elsewhere, or before its data was moved.
        for key in ("source", "root", "path"):
            setattr(run.config.data, key, getattr(probe.config.data, key))
        about = {key: run.summary.get(key) for key in ("data", "data_official", "data_fingerprint")}
        if run.status == Status.diverged:  # there is no network to measure, which is a result
            rows = [{"quantity": "diverged", "x": None, "value": run.summary["diverged_at_step"]}]
        else:
            rows = function(run=run, seed=probe.seed, **probe.arguments)
    return {
        "rows": _rows(rows),
        "seconds": round(time.perf_counter() - started, 3),
        "data": about or None,
        "machine": provenance.machine(),
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
    }


def _rows(rows: Any) -> list[dict[str, Any]]:
    if not (isinstance(rows, list | tuple) and all(isinstance(row, dict) for row in rows)):
        raise TypeError(f"a measure must return a list of rows, as row(...) makes them; got {rows!r}"[:300])
    return [_row(row) for row in rows]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with Python's own numbers; what is no row is an error here, not later in the analysis."""
    if set(row) != {"quantity", "x", "value"}:
        raise ValueError(f"a row must have quantity, x and value; got {', '.join(map(str, row))}")
    x, quantity = plain(row["x"]), str(row["quantity"])
    if not quantity.strip():
        raise ValueError(f'a quantity needs a name, as in row("loss", 0.5); got {quantity!r}')
    if not isinstance(x, str | bool | int | float | None) or x != x:
        raise TypeError(f"x must be a text or a number, or None; got {x!r}"[:300])
    return {"quantity": quantity, "x": x, "value": float(row["value"])}
