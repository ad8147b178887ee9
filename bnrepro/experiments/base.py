"""What an experiment is: runs and measurements to make, a pure analysis of their records, and claims judged by it.

Making records is one thing and reading them another: `Experiment.analyse` sees `Records`, which are read from files,
and neither trains nor opens a checkpoint. So figures and verdicts are drawn again from what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnrepro.claims.evidence import Verdict as Verdict
from bnrepro.output import only_shown
from bnrepro.schema import Config
from bnrepro.stats import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = dict[str, Any]
"""A preset: what configs/experiment/<experiment>/<preset>.yaml says (seeds, sizes, margins, parts, overrides)."""

Factors = dict[str, Any]
"""What tells an arm from the others of its part: {"variant": "convbn", "batch_size": 8}. Texts and numbers."""


@dataclass(frozen=True)
class Claim:
    """A sentence that can be wrong."""

    id: str
    """As in the list of claims: L1, K3, A1, ..."""
    source: str
    """Who says so, with a link where there is one."""
    sentence: str
    """What is claimed, as near to the source's words as one sentence allows."""
    reported: str
    """What the source reports for it; "no number" where it reports none."""


@dataclass(frozen=True)
class Finding:
    """A claim with what was found."""

    claim: Claim
    verdict: Verdict
    found: str
    """One sentence, with the effect in it; or the reason why the claim cannot be tested here."""
    effect: Interval | None = None
    """The effect that decided, with its interval and n; None where nothing is random."""
    unit: str = ""
    """Of the effect: "percentage points of test accuracy", "epochs", ..."""


@dataclass(frozen=True)
class Arm:
    """A training run of an experiment."""

    part: str
    """The part of the experiment that it belongs to: "table", "horizon", ..."""
    factors: Factors
    config: Config
    """Its seed is the arm's. The same configuration may serve several parts, and is run once."""


@dataclass(frozen=True)
class Probe:
    """A measurement that is no training run: of an exact identity, of a toy, or of the network that a run left.

    ``function(seed=..., **arguments)``, or ``function(run=Run, seed=..., **arguments)`` where ``config`` is given,
    returns rows ``{"quantity": str, "x": float | str | None, "value": float}``. It is a function of a module, the same
    for the same arguments (it makes its own generators from the seed), and its result is kept, so that it is not
    measured twice.
    """

    part: str
    factors: Factors
    seed: int
    function: Callable[..., list[dict[str, Any]]]
    arguments: dict[str, Any] = field(default_factory=dict)
    """Texts, numbers, and lists of them."""
    config: Config | None = None
    """The run whose network it measures."""


@dataclass(frozen=True)
class Records:
    """All that an experiment left. Rows are dictionaries; ``factors`` are columns of their own beside the others."""

    preset: str
    settings: Settings
    runs: list[dict[str, Any]]
    """One row a run: part, the factors, and the columns of `compare.RUN_COLUMNS`."""
    curves: list[dict[str, Any]]
    """One row an evaluation: part, the factors, seed, and the columns of metrics.csv."""
    measurements: list[dict[str, Any]]
    """One row a value: part, the factors, seed, quantity, x, value."""
    provenance: dict[str, Any]
    """Data with fingerprints, machines, versions, git revisions."""

    def select(self, rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
        """Those of ``rows`` whose columns are as ``wanted``: ``records.select(records.runs, part="table")``."""
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    def by_seed(self, column: str, **wanted: Any) -> dict[int, float]:
        """``column`` of the completed runs that are as ``wanted``, by seed."""
        rows = self.select(self.runs, status="completed", **wanted)
        return {int(row["seed"]): float(row[column]) for row in rows if row.get(column) is not None}

    def measured(self, quantity: str, **wanted: Any) -> dict[int, float]:
        """A quantity that has one value a seed, by seed."""
        rows = self.select(self.measurements, quantity=quantity, **wanted)
        return {int(row["seed"]): float(row["value"]) for row in rows}

    def series(self, quantity: str, **wanted: Any) -> dict[Any, list[float]]:
        """A quantity's values over all seeds, for each ``x`` in the order of the measurement."""
        found: dict[Any, list[float]] = {}
        for row in self.select(self.measurements, quantity=quantity, **wanted):
            found.setdefault(row["x"], []).append(float(row["value"]))
        return found


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    name: str
    """Its file's."""
    title: str
    """One sentence that says what is shown, with n and what the intervals are."""
    rows: list[dict[str, Any]]
    """All with the same keys, which are the columns. An `Interval` as a value is shown as mean [low, high]."""


@dataclass(frozen=True)
class Picture:
    """A figure of the report."""

    name: str
    """Its file's."""
    caption: str
    """What is shown, the preset's n, what bands and bars are, and the data."""
    figure: Figure


def drawn(draw: Callable[[], list[Picture]]) -> list[Picture]:
    """The pictures returned by ``draw``, or none if it fails, which is reported and does not affect the verdicts."""
    with only_shown("Figures"):
        return draw()
    return []


@dataclass(frozen=True)
class Analysis:
    """What an experiment comes to."""

    findings: list[Finding]
    """One for each of the experiment's claims, in their order."""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """One source's claims, and how they are put to the test."""

    name: str
    """Of the module, the command line and the folders."""
    title: str
    source: str
    """The source, with its address."""
    deviations: tuple[str, ...]
    """What is done otherwise than in the source, and why. Sentences."""
    claims: tuple[Claim, ...]
    arms: Callable[[Settings], list[Arm]]
    probes: Callable[[Settings], list[Probe]]
    analyse: Callable[[Records], Analysis]
    presets: tuple[str, ...] = ("smoke", "quick", "full")

    def directory(self, out: Path, preset: str | None = None) -> Path:
        """Folder of the results: ``<name>`` for the last preset, ``<name>/<preset>`` for the others.

        So a smaller preset never takes the place of a larger one.
        """
        return out / self.name / (preset if preset and preset != self.presets[-1] else "")
