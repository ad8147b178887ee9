"""Make an experiment's records, and draw the conclusions: run what is missing, measure what is missing, analyse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from bnrepro.claims.conclusion import conclude
from bnrepro.claims.judging import Judged
from bnrepro.claims.measuring import Measurement, measure_all, missing
from bnrepro.claims.paper import Arm, Factors, Paper, Probe
from bnrepro.claims.records import COPY, Gathered, Records, cost, read, save, there
from bnrepro.claims.results import RUN_COLUMNS, Row
from bnrepro.config import check, load_config, run_dir, user_files
from bnrepro.config.schema import Config, Data, Source
from bnrepro.errors import UserError
from bnrepro.launch import sweep
from bnrepro.launch.parallel import kept_workers
from bnrepro.runs import record
from bnrepro.runs.record import Run, run_of
from bnrepro.runs.tables import plain
from bnrepro.training import train


class Bar(Protocol):
    """Told of progress: a number of an item, and the share of it that is done."""

    def update(self, index: int, share: float, /) -> None:
        """Show it."""

    def ended(self, index: int, outcome: Any, /) -> None:
        """Show what came of it."""


Bars = Callable[[str, list[str]], AbstractContextManager[Bar]]
"""Makes a bar for "runs" or "measurements", and their names."""


@dataclass(frozen=True)
class DatasetLocations:
    """Where datasets lie on this machine."""

    root: Path | None = None
    """`data.root` for all of them; None: as the experiment says."""
    archives: dict[str, Path] = field(default_factory=dict)
    """A dataset's name -> the .npz archive to read it from instead."""

    def apply(self, cfg: Config) -> Config:
        """``cfg`` with its dataset in its place."""
        data = cfg.data
        if archive := self.archives.get(data.name):
            data = replace(data, source=Source.npz, path=str(archive))
        elif self.root is not None:
            data = replace(data, root=str(self.root))
        return replace(cfg, data=data)


@dataclass(frozen=True)
class Plan:
    """What an experiment needs, under one preset and on this machine."""

    paper: Paper[Any]
    preset: str
    settings: dict[str, Any]
    arms: list[Arm]
    probes: list[Probe]
    root: Path
    """Folder of the runs and measurements."""
    command: str
    """What makes it again, with placeholders for this machine's paths."""

    @property
    def measurements(self) -> Path:
        """The folder of the probes' results."""
        return self.root / "measurements" / self.paper.name

    @cached_property
    def configs(self) -> list[Config]:
        """The runs, each once, however many arms and probes share it."""
        wanted = [arm.config for arm in self.arms] + [probe.config for probe in self.probes if probe.config]
        return list({run_dir(cfg): cfg for cfg in wanted}.values())

    @property
    def datasets(self) -> list[Data]:
        """Those of the runs, and those that are measured on without one."""
        return [cfg.data for cfg in self.configs] + [probe.data for probe in self.probes if probe.data]

    def missing(self, force: bool = False) -> tuple[list[Config], list[Probe]]:
        """The runs and measurements that are still to make; with ``force``, all of them."""
        if force:
            return self.configs, self.probes
        runs = [cfg for cfg in self.configs if not run_of(cfg).finished]
        return runs, missing(self.probes, self.measurements)

    def folder(self, out: Path) -> Path:
        """Where under ``out`` its records and conclusions lie."""
        return self.paper.directory(out, self.preset)

    def check_room(self, out: Path) -> None:
        """Check that the plan's best possible results would not be worth less than those already stored.

        Raises:
            UserError: they would be (see `_compare_worth`).
        """
        parts = {(probe.part, probe.seed, str(sorted(probe.factors.items()))) for probe in self.probes}
        _compare_worth(self, self.folder(out), {"runs": len(self.arms), "measurements": len(parts)})


def make_plan(
    paper: Paper[Any],
    preset: str,
    root: Path,
    places: DatasetLocations | None = None,
    resolve: Callable[[Config], Config] = train.resolve,
) -> Plan:
    """The runs and probes of ``paper``, with runs under ``root`` and datasets in their ``places``.

    ``resolve`` says which device a run will have.

    Raises:
        UserError: no such preset; a setting that no run can have.
    """
    places = places or DatasetLocations()
    found = paper.settings(preset)
    design = paper.designed(found)

    def put(cfg: Config) -> Config:
        # Curves of hundreds of runs are looked at in the report; `bnrepro train` writes events for one.
        return resolve(check(replace(places.apply(cfg), root=str(root), tensorboard=False)))

    arms = [replace(arm, config=put(arm.config), factors=_factors(arm.factors)) for arm in design.arms]
    arms = list({(arm.part, str(arm.factors), run_dir(arm.config)): arm for arm in arms}.values())  # each once
    probes = [
        replace(
            probe,
            config=probe.config and put(probe.config),
            data=probe.data and places.apply(Config(data=probe.data)).data,
            factors=_factors(probe.factors),
        )
        for probe in design.probes
    ]
    flags = [f"--archive {name}=FILE" for name in places.archives] + (["--data-root DIR"] if places.root else [])
    name = f"{paper.name}.py" if paper.file else paper.name
    command = " ".join(["bnrepro reproduce", name, f"--preset {preset}", *flags])
    return Plan(paper, preset, found.model_dump(mode="json"), arms, probes, root, command)


def execute(
    plan: Plan,
    out: Path,
    jobs: int | None = None,
    bars: Bars | None = None,
    *,
    force: bool = False,
    run_all: Callable[..., list[sweep.Outcome]] | None = None,
) -> tuple[list[Judged], list[str]]:
    """Run and measure what is missing, write the records into ``out``, and conclude from them.

    What is finished is neither run nor measured again. What fails is left out, told, and stops nothing else.

    Args:
        plan: what is needed.
        out: the experiment's folder is made in it.
        jobs: processes; None: one a core, or one on a GPU.
        bars: makes progress bars.
        force: run and measure again what is finished.
        run_all: makes the runs, as `sweep.run_all` does but for ``jobs``; None: that. Measurements are made here.

    Returns:
        The claims with their verdicts, and a sentence for everything that failed.

    Raises:
        UserError: nothing could be run or measured.
    """
    bars = bars or (lambda _what, _names: nullcontext(_Silent()))
    jobs = jobs or sweep.default_jobs(plan.configs[0] if plan.configs else load_config())
    if not force:
        plan.check_room(out)
    runs, probes = plan.missing(force)
    # One thread as in processes of their own, so that the numbers do not depend on how many there are.
    with _one_thread(), kept_workers():
        with bars("run", [str(run_dir(cfg).relative_to(plan.root)) for cfg in runs]) as bar:
            run_all = run_all or partial(sweep.run_all, jobs=jobs)
            outcomes = run_all(runs, force=force, report=bar.update, ended=bar.ended, threads=1)
        with bars("measurement", [_title(probe) for probe in probes]) as bar:
            measured = measure_all(
                plan.probes, plan.measurements, jobs, force=force, report=bar.update, ended=bar.ended
            )
    lost = {o.path: o.error for o in outcomes if o.error}
    paths = [run_dir(cfg) for cfg in plan.configs]
    lost |= {path: why for path in paths if path not in lost and (why := sweep.gone(path))}
    failed = [f"{path.relative_to(plan.root)}: {why}" for path, why in lost.items()]
    failed += [f"{_title(m.probe)}: {m.error}" for m in measured if m.error]
    if failed and len(failed) == len(plan.configs) + len(plan.probes):
        raise UserError(f"{plan.paper.name}: nothing could be run or measured. The first reason: {failed[0]}")
    folder = plan.folder(out)
    records = _collect(plan, set(lost), measured, failed)
    with record.claim(plan.measurements):  # the same may be asked for twice at once
        if not force:
            _compare_worth(plan, folder, _worth(records))
        save(records, folder)
        if plan.paper.file:
            record.write_whole(folder / COPY, user_files.content(plan.paper.file))
        return conclude(plan.paper, read(folder), folder), failed  # what is drawn is what was stored


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Silent:
    def update(self, index: int, share: float, /) -> None:
        pass

    def ended(self, index: int, outcome: Any, /) -> None:
        pass


def _compare_worth(plan: Plan, folder: Path, worth: dict[str, int]) -> None:
    """Refuse to replace stored records by less valuable ones.

    Raises:
        UserError: the records in ``folder`` are of a larger preset, or of as large a one and in something more; or of
            a comparison or another experiment.
    """
    held = there(folder)
    if held and held.provenance["experiment"] != plan.paper.name:
        raise UserError(f"{folder} holds results of `{held.provenance['command']}`, which stay. Give another --out.")
    if held is None or held.preset not in plan.paper.presets:
        return
    rank = plan.paper.presets.index
    more = [f"{n} {what} for {worth[what]}" for what, n in _worth(held).items() if n > worth.get(what, n)]
    if rank(held.preset) > rank(plan.preset):
        more = [f"preset {held.preset} for {plan.preset}"]
    if more and rank(held.preset) >= rank(plan.preset):
        raise UserError(
            f"{folder} holds more than would replace it ({', '.join(more)}), and stays as it is. Give another --out, "
            "or --force to make all of it again."
        )


def _worth(records: Records) -> dict[str, int]:
    """How many runs have ended, how many measurements were made, and how many datasets are the official ones."""
    values = ("quantity", "x", "value")
    made = {tuple((k, v) for k, v in row.items() if k not in values) for row in records.measurements}
    official = [data["data_official"] for data in records.provenance["data"] if data and "data_official" in data]
    ended = sum(row["status"] != "failed" for row in records.runs)
    return {"runs": ended, "measurements": len(made), "sets of official data": sum(map(bool, official))}


def _collect(plan: Plan, lost: set[Path], measured: list[Measurement], failed: list[str]) -> Records:
    """The records of what was run and measured."""
    gathered = Gathered()
    rows: list[Row] = []
    parts = dict.fromkeys([arm.part for arm in plan.arms] + [probe.part for probe in plan.probes])
    for part in parts:
        for arm in (arm for arm in plan.arms if arm.part == part):
            run = Run(run_dir(arm.config))
            if run.path not in lost:
                gathered.add(run, part, arm.factors)
                continue
            who = {"part": part, **arm.factors, "seed": arm.config.seed}
            none = dict.fromkeys(RUN_COLUMNS)
            gathered.runs.append({**none, "variant": arm.config.variant, "status": "failed", **who})
        for measurement in (m for m in measured if m.probe.part == part and m.stored):
            probe, stored = measurement.probe, measurement.stored or {}
            rows += [{"part": part, **probe.factors, "seed": probe.seed, **row} for row in stored["rows"]]
            gathered.spend(part, "measurements", probe.factors, stored.get("seconds"))
            gathered.note(stored, stored.get("data"))
    provenance: dict[str, Any] = {"experiment": plan.paper.name, "command": plan.command, **gathered.found}
    provenance |= {"seconds": cost(parts, gathered.spent), "failed": failed}
    return Records(plan.preset, gathered.runs, gathered.curves, rows, plan.settings, provenance)


def _factors(factors: Factors) -> Factors:
    return {key: plain(value) for key, value in factors.items()}


def _title(probe: Probe) -> str:
    factors = ", ".join(f"{key}={value}" for key, value in probe.factors.items())
    what = [f"{probe.part} ({factors})" if factors else probe.part, f"seed {probe.seed}", probe.measure.name]
    return ", ".join(dict.fromkeys(what))  # a part is often called as its function
