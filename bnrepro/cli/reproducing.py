"""What `reproduce` does: which claims, how many seeds, how long, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnrepro.cli.options import make_room, shown
from bnrepro.cli.saying import say
from bnrepro.system.output import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnrepro.claims import Design
    from bnrepro.claims.engine import DatasetLocations, Plan
    from bnrepro.claims.judging import Judged
    from bnrepro.claims.paper import Claim, Paper
    from bnrepro.claims.sequential import Step, Target
    from bnrepro.cli.launch import Launcher

SECONDS = {"h": 3600, "m": 60, "min": 60, "s": 1}


def budget(text: str) -> float:
    """Seconds, of ``2h``, ``90m`` or ``1h30m``."""
    from bnrepro.errors import UserError

    parts = re.findall(r"(\d+(?:\.\d+)?)(h|min|m|s)", text.replace(" ", ""))
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.replace(" ", "") or not seconds > 0:
        raise UserError(f"--budget={text} is not a duration. Write it like --budget=2h, 90m or 1h30m.")
    return seconds


def chosen(names: list[str]) -> list[tuple[Paper[Any], list[Claim] | None]]:
    """The papers that are named, each with the claims of it that are; None for all of them.

    Raises:
        UserError: there is no such paper, or no such claim.
    """
    from bnrepro import experiments
    from bnrepro.errors import UserError, known_are

    known = experiments.NAMES
    found: dict[str, tuple[Paper[Any], list[Claim] | None]] = {}
    for name in names:
        head, slash, id = name.rpartition("/")
        if not (head in known or head.endswith(".py")):
            head, slash, id = name, "", ""
        paper, claims = found.setdefault(head, (experiments.experiment(head), []))
        if not slash or claims is None:
            found[head] = (paper, None)
            continue
        ids = {claim.id: claim for claim in paper.claims}
        if id not in ids:
            raise UserError(f"{name}: {head} has no claim {id!r}.{known_are(id, tuple(ids))}")
        if ids[id] not in claims:
            claims.append(ids[id])
    return list(found.values())


def said(plan: Plan, force: bool = False) -> str:
    """How much there is to do."""
    from bnrepro.system.output import counted

    runs, measurements = plan.missing(force)
    return (
        f"{counted(len(plan.configs), 'run')}, {len(runs)} still to run; "
        f"{counted(len(plan.measured), 'measurement')}, {len(measurements)} still to make."
    )


def announced(step: Step, jobs: int) -> str:
    """A step, before it is made."""
    from bnrepro.cli.planning import time_of
    from bnrepro.system.output import counted

    runs, measurements = step.plan.missing()
    which = ", ".join(claim.id for claim in step.claims)
    work = f"{counted(len(runs), 'run')}, {counted(len(measurements), 'measurement')}"
    seeds = counted(step.seeds, "seed")
    return f"{step.target.paper.name}: {seeds} for {which}: {work}; {time_of(step.estimate, jobs)}."


def left_open(target: Target, most: int, jobs: int) -> list[str]:
    """A sentence for each claim that is not decided."""
    from bnrepro.claims.sequential import steps

    ahead = {claim.id: step for step in steps(target, most) for claim in step.claims}
    return [_open(target, claim, ahead.get(claim.id), most, jobs) for claim in target.claims if _is_open(target, claim)]


def _is_open(target: Target, claim: Claim) -> bool:
    one: Judged | None = target.found.get(claim.id)
    return one is None or not one.decided


def _open(target: Target, claim: Claim, step: Step | None, most: int, jobs: int) -> str:
    from bnrepro.cli.planning import time_of

    one = target.found.get(claim.id)
    name = f"{target.paper.name}/{claim.id}"
    later = target.next(claim, target.looks[-1]) if step is None else None
    beyond = f"; its look at {later} seeds is beyond --max-seeds={most}" if later else ""
    if one is None:
        return f"{name} was not looked at{beyond}."
    seeds = one.look.seeds if one.look else target.settings.seeds
    text = f"{name} is open after {seeds} of {target.looks[-1]} seeds"
    text += f"; about {one.needed:,} would decide it" if one.needed else ""
    if claim.id in target.stuck:
        return f"{text}; its next look cannot be reached, since a run failed or gave no value."
    return f"{text}; the look at {step.seeds} takes {time_of(step.estimate, jobs)}." if step else f"{text}{beyond}."


@dataclass
class Work:
    """What a call of `reproduce` does its work with."""

    root: Path
    out: Path
    jobs: int | None
    places: DatasetLocations
    making: Launcher
    force: bool = False
    dry: bool = False
    unregistered: bool = False
    problems: list[Exception] = field(default_factory=list)
    """Of papers of which nothing could be made."""
    found: list[dict[str, Any]] = field(default_factory=list)
    """What `--json` prints: the claims that were judged, as in claims.json, or of a dry run what there is to do."""
    failures: int = 0

    def plan(self, paper: Paper[Any], preset: str, **more: Any) -> Plan:
        """See `make_plan`; without what is recorded of its registration."""
        from bnrepro.claims.engine import make_plan

        return make_plan(paper, preset, self.root, self.places, self.making.resolve, **more)

    def check(self, plans: list[Plan]) -> list[Plan]:
        """``plans`` with their registrations, where they can be made and their results kept.

        Raises:
            UserError: an archive is for none of them, a design is not the registered one, what is stored is worth more.
        """
        from bnrepro.claims.records import there
        from bnrepro.errors import UserError

        for name in self.places.archives:
            if not any(data.name == name for plan in plans for data in plan.datasets):
                raise UserError(
                    f"--archive={name}=...: none of these experiments uses the dataset {name}. Leave it out."
                )
        plans = [replace(plan, design=plan.standing(self.out, self.unregistered)) for plan in plans]
        if not self.force:
            for plan in plans:
                plan.check_room(self.out)
        for plan in plans:
            if (held := there(plan.folder(self.out))) and plan.supersedes(held):
                tell(f"{plan.paper.name}: stored results belong to an earlier design and are not used.")
        if not self.dry:
            make_room(self.root)
            make_room(self.out)
        return plans

    def read_data(self, plans: list[Plan]) -> None:
        """Read each dataset that something still to be made needs: one that is missing is told at once, and not by each
        run. A cluster's login node need not have those of its jobs.

        Raises:
            UserError: one cannot be had, or is not what its name says.
        """
        from bnrepro.data.sources import lookup, read
        from bnrepro.errors import UserError

        here = not self.making.options
        needed = [(plan.paper.name, data) for plan in plans for data in plan.needed(self.force, runs=here)]
        each = [data for _, data in needed]
        for name, data in (one for place, one in enumerate(needed) if one[1] not in each[:place]):
            archive = self.places.archives.get(data.name)
            try:
                (images, _), _ = read(data)
            except UserError as error:
                if archive:
                    raise UserError(f"--archive={data.name}: {str(error).removeprefix('data.path: ')}") from error
                elsewhere = f"If it is elsewhere: --data-root=FOLDER, or --archive={data.name}=FILE."
                raise UserError(f"{name} needs {data.name}: {error} {elsewhere}") from error
            if archive and images.shape[1:] != (right := lookup(data.name).shape):
                raise UserError(
                    f"--archive={data.name}: images of {data.name} are {_by(right)}, and those in {shown(archive)} are "
                    f"{_by(images.shape[1:])}. Name the dataset that these are of."
                )

    def make(self, plan: Plan) -> tuple[list[Judged], list[str]] | None:
        """Run, measure and conclude; None where that failed, which does not cost the other papers."""
        from bnrepro.claims.engine import execute
        from bnrepro.cli.progress import SweepBar
        from bnrepro.errors import reason

        def bar(what: str, names: list[str]) -> SweepBar:
            return SweepBar(names, what)

        try:
            judged, failed = execute(plan, self.out, self.jobs, bar, force=self.force, run_all=self.making.run_all)
        except Exception as error:
            tell(f"{plan.paper.name}: {reason(error)}")
            self.problems.append(error)
            return None
        for text in failed:
            tell(f"{plan.paper.name}: {text}")
        return judged, failed

    def all_at_once(
        self, chosen: list[tuple[Paper[Any], list[Claim] | None]], preset: str | None, seeds: int | None
    ) -> None:
        """Each paper's preset, with as many seeds as it says, or ``seeds``."""
        from bnrepro.claims.engine import with_seeds
        from bnrepro.claims.paper import FULL
        from bnrepro.claims.tracing import asked_by, read_by
        from bnrepro.errors import UserError, either

        plans = []
        for paper, claims in chosen:
            default = "quick" if "quick" in paper.presets else "full"
            name = default if preset is None else preset
            asked = None
            if claims is not None or seeds is not None:
                settings = paper.settings(name) if seeds is None else with_seeds(paper.settings(name), seeds)
                design = paper.designed(settings)
                if seeds not in (None, len(design.seeds)):
                    raise UserError(
                        f"--seeds={seeds}: the design of {paper.name} has {len(design.seeds)}, whatever is asked for. "
                        "Leave it out; or write Design(s.seeds) in the paper, with s its settings."
                    )
                if seeds is not None and name == FULL and settings.looks and seeds not in settings.looks:
                    reached = max((look for look in settings.looks if look <= seeds), default=0)
                    used = f"the first {reached} count" if reached else "there is no verdict"
                    tell(
                        f"--seeds={seeds}: {paper.name} is judged after {either([*map(str, settings.looks)])} seeds; "
                        f"of {seeds}, {used}."
                    )
                if claims is not None:
                    asked = read_by(design, asked_by(paper, claims, settings))
            plans.append(self.plan(paper, name, seeds=seeds, asked=asked))
        plans = self.check(plans)
        if not self.dry:
            self.read_data(plans)
        for plan, (_, claims) in zip(plans, chosen, strict=True):
            self.fixed(plan, claims)

    def fixed(self, plan: Plan, claims: list[Claim] | None) -> None:
        """A plan as it is; the verdicts of ``claims`` are shown."""
        say(f"{plan.paper.name} (preset {plan.preset}): {said(plan, self.force)}")
        if self.dry:
            from bnrepro.claims.estimating import Costs
            from bnrepro.claims.records import there
            from bnrepro.cli.launch import data_there
            from bnrepro.cli.planning import time_of

            runs, measurements = plan.missing(self.force)
            data = {each.name: data_there(each) for each in plan.needed(self.force)}
            if data:
                named = (name if found else f"{name} (missing: it would be downloaded)" for name, found in data.items())
                say(f"{plan.paper.name} reads {', '.join(named)}.")
            left = {"runs": len(plan.configs), "to_run": len(runs), "to_measure": len(measurements), "datasets": data}
            self.found.append({"paper": plan.paper.name, "preset": plan.preset, **left})
            estimate = Costs.of(plan, there(plan.folder(self.out))).estimate_plan(plan, self.force)
            if estimate.seconds or estimate.unknown or estimate.operations:
                say(f"{plan.paper.name}: {time_of(estimate, self.making.processes(plan.configs))}.")
            return
        if made := self.make(plan):
            self.failures += len(made[1])
            self.show(plan.paper, plan.preset, made[0], claims, through=not made[1])

    def decide(self, chosen: list[tuple[Paper[Any], list[Claim] | None]], most: int, seconds: float | None) -> None:
        """Looks at growing numbers of seeds, until all is decided."""
        from bnrepro.claims.sequential import steps, until_decided

        plans = [self.plan(paper, "full", asked=paper.designed(paper.settings("full"))) for paper, _ in chosen]
        plans = self.check(plans)
        targets = [self.target(plan, claims) for plan, (_, claims) in zip(plans, chosen, strict=True)]
        jobs = max(self.making.processes(plan.configs) for plan in plans)
        if self.dry:
            for target in targets:
                for step in sorted(steps(target, most), key=lambda step: step.expected):
                    say(announced(step, jobs))
                    claims = [claim.id for claim in step.claims]
                    self.found.append({"paper": target.paper.name, "claims": claims, "seeds": step.seeds})
                if not steps(target, most):
                    for text in left_open(target, most, jobs):
                        say(text)
        else:
            self.read_data([step.plan for target in targets for step in steps(target, most)])

            def make(step: Step) -> tuple[list[Judged], list[str]] | None:
                say(announced(step, jobs))
                return self.make(step.whole())

            until_decided(targets, make, most=most, budget=seconds, jobs=jobs)
        for target in targets:
            if target.found and not self.dry:
                self.failures += len(target.failed)
                self.show(target.paper, "full", list(target.found.values()), target.claims)
            for text in left_open(target, most, jobs) if not self.dry else []:
                say(text)

    def target(self, checked: Plan, claims: list[Claim] | None) -> Target:
        """The claims of a paper that are to be decided."""
        from bnrepro.claims.records import there
        from bnrepro.claims.sequential import Target

        paper = checked.paper

        def make(seeds: int, design: Design, alone: bool) -> Plan:
            plan = self.plan(paper, "full", seeds=seeds, asked=design, alone=alone)
            return replace(plan, design=checked.design)

        held = there(checked.folder(self.out))
        return Target(paper, claims or paper.claims, make, checked.kept(self.out), held)

    def show(
        self,
        paper: Paper[Any],
        preset: str,
        judged: list[Judged],
        claims: list[Claim] | None = None,
        through: bool = True,
    ) -> None:
        """The verdicts of ``claims``, and where the results are."""
        from bnrepro.cli import listing

        ids = {claim.id for claim in claims or paper.claims}
        judged = [each for each in judged if each.claim.id in ids]
        tell_unmeasured(paper, judged)
        rows = [{"preset": preset, **each.as_row(paper.name)} for each in judged]
        self.found += rows
        if preset == "smoke":
            larger = "quick" if "quick" in paper.presets else "full"
            begin = "Everything ran. " if through else ""
            say(f"{begin}This preset is too small for verdicts; use --preset={larger}.")
        else:
            say(listing.verdict_table(rows))
        say(f"Records, tables and figures: {shown(paper.directory(self.out, preset))}\n")

    def end(self, papers: int) -> None:
        """Raise what went wrong.

        Raises:
            UserError: something did.
        """
        from bnrepro.errors import UserError, sentence

        for problem in self.problems:
            if not sentence(problem):
                raise problem
        if self.problems:
            raise UserError(f"{len(self.problems)} of {papers} experiments could not be judged; the reasons are above.")
        if self.failures:
            raise UserError(
                f"{self.failures} of the runs and measurements failed and were left out; the reasons are above."
            )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def tell_unmeasured(paper: Paper[Any], judged: list[Judged]) -> None:
    """Name the claims that found nothing: what they read was not run, or is not called so."""
    from bnrepro.claims.registering import called

    for one in judged:
        run = f"bnrepro reproduce {called(paper)}/{one.claim.id}"
        if one.is_gate_unknown:
            tell(
                f"Claim {one.claim.id}: its gate found no measured values. If `{run}` has run, check the spelling of "
                "what it reads."
            )
        if one.unmeasured:
            which = f" for {', '.join(filter(None, one.unmeasured))}" if any(one.unmeasured) else ""
            tell(
                f"Claim {one.claim.id} found no measured values{which}. If `{run}` has run, check the spelling of its "
                "parts, factor levels and quantities."
            )
