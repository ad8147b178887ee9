"""Make an experiment's records, and draw the conclusions: run what is missing, measure what is missing, analyse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from bnrepro.claims import registering
from bnrepro.claims.conclusion import check_whose, conclude
from bnrepro.claims.design import Arm, Design, Factors, Probe
from bnrepro.claims.judging import Judged
from bnrepro.claims.measuring import Measurement, file_of, measure_all, missing, stored
from bnrepro.claims.paper import FULL, Paper, Preset
from bnrepro.claims.records import (
    COPY,
    PROVENANCE,
    Gathered,
    Records,
    cost,
    merged,
    provenance_of,
    read,
    save,
    there,
)
from bnrepro.claims.results import RUN_COLUMNS, Row
from bnrepro.claims.tracing import check_claims
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


Key = tuple[str, ...]
"""Tells an arm or a measurement of a design from the others."""


def key_of(each: Arm | Probe) -> Key:
    """See `Key`."""
    factors = str(sorted(_factors(each.factors).items()))
    if isinstance(each, Arm):
        return each.part, factors, str(each.config.seed)
    return each.part, factors, str(each.seed), each.measure.identity, str(each.arguments)


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
    asked: frozenset[Key] | None = None
    """What is to be made; None: all of it. The rest is there, and is recorded too."""
    design: dict[str, Any] = field(default_factory=dict)
    """What is recorded of its design and registration (`registering.standing`)."""

    @property
    def measurements(self) -> Path:
        """The folder of the probes' results."""
        return self.root / "measurements" / self.paper.name

    @cached_property
    def configs(self) -> list[Config]:
        """The runs that are asked for, each once, however many arms and probes share it."""
        wanted = [arm.config for arm in self.arms if self._is_asked(arm)]
        wanted += [probe.config for probe in self.measured if probe.config]
        return list({run_dir(cfg): cfg for cfg in wanted}.values())

    @cached_property
    def measured(self) -> list[Probe]:
        """The measurements that are asked for."""
        return [probe for probe in self.probes if self._is_asked(probe)]

    @property
    def datasets(self) -> list[Data]:
        """Those of the runs, and those that are measured on without one."""
        return [cfg.data for cfg in self.configs] + [probe.data for probe in self.measured if probe.data]

    def missing(self, force: bool = False) -> tuple[list[Config], list[Probe]]:
        """The runs and measurements that are still to make; with ``force``, all that are asked for."""
        if force:
            return self.configs, self.measured
        runs = [cfg for cfg in self.configs if not run_of(cfg).finished]
        return runs, missing(self.measured, self.measurements)

    def needed(self, force: bool = False, runs: bool = True) -> list[Data]:
        """The datasets that are read for what is still to be made, each once; without ``runs``, for measurements."""
        to_run, to_measure = self.missing(force)
        found = [cfg.data for cfg in to_run if runs]
        found += [data for probe in to_measure if (data := probe.data or (probe.config and probe.config.data))]
        found = [Data(name=data.name, source=data.source, root=data.root, path=data.path) for data in found]
        return [data for place, data in enumerate(found) if data not in found[:place]]

    def standing(self, out: Path, unregistered: bool = False) -> dict[str, Any]:
        """See `registering.standing`; nothing of presets other than full, which are never registered."""
        if self.preset != FULL:
            return {}
        folder, settings = self.folder(out), self.paper.validated(self.settings, "The settings")
        held = provenance_of(folder) if (folder / PROVENANCE).exists() else {}
        return registering.standing(self.paper, settings, held, folder, unregistered=unregistered)

    def kept(self, out: Path) -> Records | None:
        """What is stored of the same design, and stays where only a part of it is asked for."""
        held = there(self.folder(out)) if self.asked is not None else None
        if held is None or (held.provenance["experiment"], held.preset) != (self.paper.name, self.preset):
            return None
        same = not self.supersedes(held) and _are_alike(held.settings, self.settings)
        before = (held.provenance.get("design") or self.design).get("hash")
        return held if same and before == self.design.get("hash") else None

    def supersedes(self, held: Records) -> bool:
        """Whether the design is registered, and what is stored is of one before it, which may be replaced."""
        before = (held.provenance.get("design") or {}).get("hash")
        return bool(self.design.get("as_registered")) and before != self.design["hash"]

    def _is_asked(self, each: Arm | Probe) -> bool:
        return self.asked is None or key_of(each) in self.asked

    def folder(self, out: Path) -> Path:
        """Where under ``out`` its records and conclusions lie."""
        return self.paper.directory(out, self.preset)

    def check_room(self, out: Path) -> None:
        """Check that the plan's best possible results would not be worth less than those already stored.

        Raises:
            UserError: they would be (see `_compare_worth`).
        """
        check_whose(self.paper, self.folder(out))
        if self.kept(out):  # of that, nothing is lost
            return
        parts = {(probe.part, probe.seed, str(sorted(probe.factors.items()))) for probe in self.probes}
        _compare_worth(self, self.folder(out), {"runs": len(self.arms), "measurements": len(parts)})


def make_plan(
    paper: Paper[Any],
    preset: str,
    root: Path,
    places: DatasetLocations | None = None,
    resolve: Callable[[Config], Config] = train.resolve,
    *,
    seeds: int | None = None,
    asked: Design | None = None,
    alone: bool = False,
) -> Plan:
    """The runs and probes of ``paper``, with runs under ``root`` and datasets in their ``places``.

    Args:
        paper: the paper.
        preset: of its settings.
        root: folder of the runs.
        places: where datasets lie.
        resolve: says which device a run will have.
        seeds: how many, in place of the preset's.
        asked: the part of the design that is to be made; None: all of it. What is there of the rest is recorded too.
        alone: without that rest, for a plan that is only looked at.

    Raises:
        UserError: no such preset; a setting that no run can have.
    """
    places = places or DatasetLocations()
    found = paper.settings(preset) if seeds is None else with_seeds(paper.settings(preset), seeds)
    check_claims(paper, found)
    sequential = bool(found.looks) and preset == FULL
    design = paper.designed(with_seeds(found, max(found.seeds, found.looks[-1])) if sequential else found)
    keys = None
    if asked or sequential:
        asked = asked or paper.designed(found)
        keys = frozenset([*map(key_of, asked.arms), *map(key_of, asked.probes)])

    def put(cfg: Config) -> Config:
        # Curves of hundreds of runs are looked at in the report; `bnrepro train` writes events for one.
        return resolve(check(replace(places.apply(cfg), root=str(root), tensorboard=False)))

    there = set() if not asked or alone else _seeds_there(root) | {probe.seed for probe in asked.probes}
    arms = [each for each in design.arms if keys is None or each.config.seed in there or key_of(each) in keys]
    arms = [replace(arm, config=put(arm.config), factors=_factors(arm.factors)) for arm in arms]
    arms = list({(arm.part, str(arm.factors), run_dir(arm.config)): arm for arm in arms}.values())  # each once
    probes = [
        replace(
            probe,
            config=probe.config and put(probe.config),
            data=probe.data and places.apply(Config(data=probe.data)).data,
            factors=_factors(probe.factors),
        )
        for probe in design.probes
        if keys is None or key_of(probe) in keys or (not alone and (not probe.config or probe.config.seed in there))
    ]
    flags = [f"--archive {name}=FILE" for name in places.archives] + (["--data-root DIR"] if places.root else [])
    flags = ([f"--seeds {seeds}"] if seeds is not None and not sequential else []) + flags
    command = " ".join(["bnrepro reproduce", registering.called(paper), f"--preset {preset}", *flags])
    plan = Plan(paper, preset, found.model_dump(mode="json"), arms, probes, root, command, keys)
    if keys is None:
        return plan
    # A run that is made to be measured is recorded as one that was there before.
    made = {run_dir(probe.config) for probe in plan.measured if probe.config} if not alone else set()
    arms = [a for a in arms if key_of(a) in keys or run_dir(a.config) in made or run_of(a.config).finished]
    probes = [each for each in probes if key_of(each) in keys or stored(each, plan.measurements) is not None]
    return replace(plan, arms=arms, probes=probes)


def _are_alike(there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether two settings differ in nothing but the number of seeds, as far as both have a key."""
    return all(there[key] == here[key] for key in there.keys() & here.keys() - {"seeds", "looks"})


def with_seeds(settings: Preset, seeds: int) -> Preset:
    """``settings`` with so many seeds."""
    return settings.model_copy(update={"seeds": seeds})


def _seeds_there(root: Path) -> set[int]:
    """The seeds of which there is any run under ``root``: of the others, none needs to be looked for."""
    names = (re.match(r"seed(\d+)-", run.name) for run in root.glob("*/*/*/seed*"))
    return {int(name[1]) for name in names if name}


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
    plan = plan if plan.design else replace(plan, design=plan.standing(out))
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
                plan.measured, plan.measurements, jobs, force=force, report=bar.update, ended=bar.ended
            )
    lost = {o.path: o.error for o in outcomes if o.error}
    paths = [run_dir(cfg) for cfg in plan.configs]
    lost |= {path: why for path in paths if path not in lost and (why := sweep.gone(path))}
    failed = [f"{path.relative_to(plan.root)}: {why}" for path, why in lost.items()]
    failed += [f"{_title(m.probe)}: {m.error}" for m in measured if m.error]
    if failed and len(failed) == len(plan.configs) + len(plan.measured):
        raise UserError(f"Nothing could be run or measured. The first reason: {failed[0]}")
    folder = plan.folder(out)
    records = _collect(plan, set(lost), measured, failed)
    records.provenance.update(_dated(plan, out))
    with record.claim(plan.measurements):  # the same may be asked for twice at once
        if held := plan.kept(out):
            records = merged(records, held)
            records.provenance["failed"] += _failed_before(plan, held)
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
            a comparison or another experiment. Those of a design before a registered one are worth nothing to it.
    """
    held = there(folder)
    if held and held.provenance["experiment"] != plan.paper.name:
        raise UserError(f"{folder} holds results of `{held.provenance['command']}`, which are kept. Use another --out.")
    if held is None or held.preset not in plan.paper.presets or plan.supersedes(held):
        return
    rank = plan.paper.presets.index
    more = [f"{n} {what} for {worth[what]}" for what, n in _worth(held).items() if n > worth.get(what, n)]
    if rank(held.preset) > rank(plan.preset):
        more = [f"preset {held.preset} for {plan.preset}"]
    if more and rank(held.preset) >= rank(plan.preset):
        raise UserError(
            f"{folder} holds results worth more than the new ones ({', '.join(more)}), which are kept. Use another "
            "--out, or --force to make all of it again."
        )


def _worth(records: Records) -> dict[str, int]:
    """How many runs have ended, how many measurements were made, and how many datasets are the official ones."""
    values = ("quantity", "x", "value")
    made = {tuple((k, v) for k, v in row.items() if k not in values) for row in records.measurements}
    official = [data["data_official"] for data in records.provenance["data"] if data and "data_official" in data]
    ended = sum(row["status"] != "failed" for row in records.runs)
    return {"runs": ended, "measurements": len(made), "sets of official data": sum(map(bool, official))}


def _failed_before(plan: Plan, held: Records) -> list[str]:
    """What failed of the arms and measurements that are not asked for this time."""
    asked = [str(run_dir(cfg).relative_to(plan.root)) for cfg in plan.configs] + [_title(p) for p in plan.measured]
    return [text for text in held.provenance["failed"] if not any(text.startswith(f"{one}: ") for one in asked)]


def _dated(plan: Plan, out: Path) -> dict[str, Any]:
    """What provenance says of the design, and of the day on which its first run began."""
    if not plan.design:
        return {}
    files = [run_dir(cfg) / record.CONFIG for cfg in plan.configs]
    files += [file_of(probe, plan.measurements) for probe in plan.probes]
    days = [datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat() for file in files if file.is_file()]
    held = provenance_of(plan.folder(out))
    if (held.get("design") or {}).get("hash") == plan.design["hash"]:
        days += filter(None, [held.get("first_run")])
    return {"design": plan.design, "first_run": min(days, default=None)}


def _collect(plan: Plan, lost: set[Path], measured: list[Measurement], failed: list[str]) -> Records:
    """The records of what was run and measured, and of what was there before."""
    of = dict(zip(map(id, plan.measured), measured, strict=True))
    measured = [of.get(id(probe)) or Measurement(probe, stored(probe, plan.measurements)) for probe in plan.probes]
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
            probe, found = measurement.probe, measurement.stored or {}
            rows += [{"part": part, **probe.factors, "seed": probe.seed, **row} for row in found["rows"]]
            gathered.spend(part, "measurements", probe.factors, found.get("seconds"))
            gathered.note(found, found.get("data"))
    provenance: dict[str, Any] = {"experiment": plan.paper.name, "command": plan.command, **gathered.found}
    provenance |= {"seconds": cost(parts, gathered.spent), "failed": failed}
    return Records(plan.preset, gathered.runs, gathered.curves, rows, plan.settings, provenance)


def _factors(factors: Factors) -> Factors:
    return {key: plain(value) for key, value in factors.items()}


def _title(probe: Probe) -> str:
    factors = ", ".join(f"{key}={value}" for key, value in probe.factors.items())
    what = [f"{probe.part} ({factors})" if factors else probe.part, f"seed {probe.seed}", probe.measure.name]
    return ", ".join(dict.fromkeys(what))  # a part is often called as its function
