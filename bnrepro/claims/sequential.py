"""Seeds until decided: the looks of a design, each made for the claims that the look before left open.

What is nearest to a decision is extended first: its seconds per seed, times the seeds that it still needs. Only the
arms and measurements that an open claim reads are extended. Each extension ends with new conclusions, so that the whole
can be stopped at any moment: runs resume, and what the records decide is not run further.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bnrepro.claims.design import Design
from bnrepro.claims.engine import Plan, with_seeds
from bnrepro.claims.estimating import Costs, Estimate
from bnrepro.claims.judging import Judged, judged
from bnrepro.claims.paper import Claim, Paper
from bnrepro.claims.records import Records
from bnrepro.claims.tracing import asked_by, read_by

Make = Callable[[int, Design, bool], Plan]
"""Makes the plan for a subset of a design and a number of seeds, optionally merged with the stored results."""


@dataclass
class Target:
    """A paper of which claims are to be decided."""

    paper: Paper[Any]
    claims: list[Claim]
    """Those that are asked for."""
    make: Make
    records: Records | None = None
    """What is stored of its design."""
    timed: Records | None = None
    """What is stored, of whichever design: for how long it takes."""
    found: dict[str, Judged] = field(default_factory=dict)
    """By claim."""
    stuck: set[str] = field(default_factory=set)
    """Claims of which a look was made and not reached, since a run failed, or has no value."""
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = self.paper.settings("full")
        if self.records and self.settings.looks:  # a fixed design is asked for as a whole
            self.found = {each.claim.id: each for each in judged(self.paper, self.records, self.settings)}

    @property
    def looks(self) -> list[int]:
        """Numbers of seeds; of a fixed design, its own."""
        return self.settings.looks or [self.settings.seeds]

    def next(self, claim: Claim, most: int) -> int | None:
        """The seeds of the next look at ``claim``; None where there is none, or none that is worth it."""
        one = self.found.get(claim.id)
        if one is None:
            return self.looks[0] if self.looks[0] <= most else None
        if claim.id in self.stuck or one.decided or one.look is None:
            return None
        seen = one.look.seeds if one.look.number else 0
        return next((seeds for seeds in self.looks if seen < seeds <= most), None)

    def design(self, claims: list[Claim], seeds: int) -> Design:
        """What ``claims`` read, with so many seeds; for all of the paper's, what its tables and figures show too."""
        whole = self.paper.designed(with_seeds(self.settings, seeds))
        return (
            whole
            if len(claims) == len(self.paper.claims)
            else read_by(whole, asked_by(self.paper, claims, self.settings))
        )

    def take(self, step: Step, found: list[Judged], failed: list[str]) -> None:
        """What a step came to."""
        self.found = {each.claim.id: each for each in found}
        self.failed += failed
        # Where the same look would be made again: runs failed, or the design has other seeds than those asked for.
        self.stuck |= {claim.id for claim in step.claims if self.next(claim, step.seeds) is not None}


@dataclass(frozen=True)
class Step:
    """A look that is to be made."""

    target: Target
    claims: list[Claim]
    seeds: int
    design: Design
    plan: Plan
    """Of what it asks for."""
    estimate: Estimate

    def whole(self) -> Plan:
        """The plan, merged with the results that are already stored, so that they are recorded too."""
        return self.target.make(self.seeds, self.design, False)

    @property
    def expected(self) -> float:
        """Seconds until a decision, if effects are as they look."""
        found = [self.target.found.get(claim.id) for claim in self.claims]
        seen = max((one.look.seeds for one in found if one and one.look and one.look.number), default=0)
        needed = max((one.needed or self.target.looks[-1] for one in found if one), default=self.seeds)
        return self.estimate.seconds / (self.seeds - seen) * (max(needed, self.seeds) - seen)


def until_decided(
    targets: list[Target],
    execute: Callable[[Step], tuple[list[Judged], list[str]] | None],
    *,
    most: int,
    budget: float | None = None,
    jobs: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Make looks until every claim is decided, was looked at with ``most`` seeds, or none fits into the budget.

    Args:
        targets: which claims; what was found is left in them.
        execute: makes a step's plan; None where nothing could be made of it.
        most: seeds of the last look that is made.
        budget: seconds. A step is begun where it is expected to end in time, or nothing is known of its length.
        jobs: processes that share its work.
        clock: seconds.
    """
    end = None if budget is None else clock() + budget
    known: dict[str, list[Step]] = {}
    while True:
        for target in targets:
            if target.paper.name not in known:
                known[target.paper.name] = steps(target, most)
        left = None if end is None else end - clock()
        inside = [s for each in known.values() for s in each if left is None or s.estimate.seconds / jobs <= left]
        if not inside or (left is not None and left <= 0):
            return
        step = min(inside, key=lambda step: step.expected)
        del known[step.target.paper.name]
        if (made := execute(step)) is None:
            step.target.stuck |= {claim.id for claim in step.target.claims}
            known[step.target.paper.name] = []
        else:
            step.target.take(step, *made)


def steps(target: Target, most: int) -> list[Step]:
    """The looks that can be made next: the first at all claims together, later ones at each for itself."""
    looks: dict[str, tuple[int, list[Claim]]] = {}
    for claim in target.claims:
        if seeds := target.next(claim, most):
            name = "" if seeds == target.looks[0] else claim.id
            looks.setdefault(name, (seeds, []))[1].append(claim)
    found = []
    for seeds, claims in looks.values():
        design = target.design(claims, seeds)
        plan = target.make(seeds, design, True)
        found.append(Step(target, claims, seeds, design, plan, Costs.of(plan, target.timed).estimate_plan(plan)))
    return found
