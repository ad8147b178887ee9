"""How long runs and measurements take, from those that were made: of the same arm, or of a similar one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from bnrepro.claims.design import Arm, Probe
from bnrepro.claims.engine import Plan
from bnrepro.claims.measuring import stored
from bnrepro.claims.records import Records
from bnrepro.config import leaves, run_dir, what
from bnrepro.config.schema import Config, Model
from bnrepro.data.sources import DATASETS
from bnrepro.runs.record import Run, run_of
from bnrepro.training.model import build, norm_of

Kind = tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """Of what is still to be made."""

    seconds: float
    """Of one process, as far as they are known."""
    unknown: int
    """Runs and measurements of which nothing is known."""
    operations: float = 0.0
    """Floating-point operations of runs like which nothing was made (`operations`)."""


@dataclass
class Costs:
    """Seconds of one process, by kind of run or measurement, the nearest first: see `_kinds`."""

    known: dict[Kind, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, records: Records | None = None) -> Costs:
        """What the finished runs and measurements of ``plan`` took, and those in ``records``."""
        costs = cls()
        for arm in _arms(plan):
            if (run := run_of(arm.config)).finished:
                costs._add(arm, run.summary.get("seconds"))
        for probe in plan.probes:
            if found := stored(probe, plan.measurements):
                costs._add(probe, found.get("seconds"))
        if records:
            costs._add_records(plan, records)
        return costs

    def add_run(self, run: Run) -> None:
        """What ``run`` took, if it is finished."""
        if run.finished:
            self._add(arm_of(run.config), run.summary.get("seconds"))

    def estimate_plan(self, plan: Plan, force: bool = False) -> Estimate:
        """What is missing of ``plan``, or with ``force`` all of it; a run that several arms share counts once."""
        runs, probes = plan.missing(force)
        wanted = {run_dir(cfg) for cfg in runs}
        once = {run_dir(arm.config): arm for arm in _arms(plan)}
        return self.estimate([arm for place, arm in once.items() if place in wanted], probes)

    def estimate(self, arms: Iterable[Arm], probes: Iterable[Probe] = ()) -> Estimate:
        """How long ``arms`` and ``probes`` take."""
        each = [(self._seconds(arm), operations(arm.config)) for arm in arms]
        each += [(self._seconds(probe), None) for probe in probes]
        new = [count for seconds, count in each if seconds is None]
        counts = [count for count in new if count is not None]
        return Estimate(sum(seconds or 0.0 for seconds, _ in each), len(new) - len(counts), sum(counts))

    def _add(self, each: Arm | Probe, seconds: float | None) -> None:
        if seconds is not None:
            for kind, units in _kinds(each):
                self.known.setdefault(kind, []).append(seconds / units)

    def _add_records(self, plan: Plan, records: Records) -> None:
        """Of runs by their rows; of measurements, whose seconds are not kept one by one, the mean of their part."""
        of = {(arm.part, str(arm.factors)): arm for arm in _arms(plan)}
        for row in records.runs:
            for arm in of.values():
                if arm.part == row["part"] and all(row.get(key) == level for key, level in arm.factors.items()):
                    self._add(arm, row.get("seconds"))
                    break
        counts: dict[str, set[str]] = {}
        for row in records.measurements:
            who = {key: value for key, value in row.items() if key not in ("quantity", "x", "value")}
            counts.setdefault(row["part"], set()).add(str(who))
        for part, kinds in records.provenance["seconds"].items():
            if part in counts:
                self.known.setdefault(("measurement", part), []).append(kinds["measurements"] / len(counts[part]))

    def _seconds(self, each: Arm | Probe) -> float | None:
        found = ((self.known.get(kind), units) for kind, units in _kinds(each))
        return next((median(seconds) * units for seconds, units in found if seconds), None)


def arm_of(cfg: Config) -> Arm:
    """A run of no design: like those that differ in their seed alone."""
    return Arm("", dict(leaves(what(cfg, ("seed",)))), cfg)


def _arms(plan: Plan) -> list[Arm]:
    """The runs of ``plan``: those that are recorded, and those that are only measured."""
    return [Arm(probe.part, probe.factors, probe.config) for probe in plan.probes if probe.config] + plan.arms


def _kinds(each: Arm | Probe) -> Iterable[tuple[Kind, float]]:
    """What ``each`` is like, the nearest first, with the units that its seconds are counted in."""
    if isinstance(each, Probe):
        yield ("measurement", each.part, str(each.factors), each.measure.name), 1.0
        yield ("measurement", each.part, each.measure.name), 1.0
        yield ("measurement", each.part), 1.0
        return
    cfg: Config = each.config
    epochs, data = float(cfg.epochs) or 1.0, f"{cfg.data.name} {cfg.data.train_images}"
    yield ("run", each.part, str(each.factors)), 1.0
    yield ("run", each.part, data, cfg.model.name, cfg.variant), epochs
    yield ("run", each.part, data, cfg.model.name), epochs
    yield ("run", data, cfg.model.name, str(cfg.model.width)), epochs


def operations(cfg: Config) -> float | None:
    """Floating-point operations of a run: three times those of the forward, a multiplication and an addition as two.

    None where the shape of its data is not known by their name, or its network is of a user's own.
    """
    known = DATASETS.get(cfg.data.name)
    if known is None or cfg.model.file:
        return None
    count = _of_an_image(json.dumps(asdict(cfg.model)), cfg.data.name)
    return 3 * count * cfg.epochs * (cfg.data.train_images or known.images * (1 - cfg.data.val_fraction))


@cache
def _of_an_image(model: str, data: str) -> float:
    """Of one image's forward. No norm counts: convolutions and matrix products are what takes long."""
    known, cfg = DATASETS[data], replace(Config(), model=Model(**json.loads(model)), variant="nobn")
    network = build(cfg.model, norm_of(cfg), known.shape[0], known.shape[1:], known.classes, torch.Generator())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *known.shape))
    return float(counter.get_total_flops())
