"""What a report holds, in whichever form it is written: sections with claims, figures, tables and curves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bnrepro.claims.conclusion import KINDS, SCALES
from bnrepro.claims.evidence import Verdict
from bnrepro.report.wording import Rows, counted, has_margin, p_of, up
from bnrepro.stats import false_discovery_rates


@dataclass(frozen=True)
class Image:
    """A figure: its file without the suffix, and what it shows."""

    stem: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """An experiment, a comparison, or runs."""

    name: str
    """Also its anchor."""
    title: str
    source: str
    facts: list[tuple[str, str]]
    """How it was made: (what, text)."""
    deviations: list[str]
    claims: Rows
    images: list[Image]
    tables: list[tuple[str, Rows]]
    """(title, rows)."""
    settings: dict[str, Any]
    preset: str = ""
    curves: Rows = field(default_factory=list)
    """One row an evaluation, with part, factors and seed."""
    runs: Rows = field(default_factory=list)
    """One row a run, with the same."""


@dataclass(frozen=True)
class Report:
    """All that is there."""

    sections: list[Section]

    def summary(self) -> str:
        """One sentence."""
        judged = [section for section in self.sections if section.claims]
        if not judged:
            return "No claim was judged."
        where = "1 experiment" if len(judged) == 1 else f"{len(judged)} experiments"
        revised = sum(row["withdrawn"] is not None for row in self.claims)
        note = f" ({revised} under revision)" if revised else ""
        return f"{len(self.claims)} claims in {where}{note}. {up(counted(self.claims))}."

    @property
    def claims(self) -> Rows:
        """Those of all experiments, as claims.json has them."""
        return [row for section in self.sections for row in section.claims]

    def by_kind(self) -> Rows:
        """How many claims have which verdict, by kind and scale; a row for each that there is."""
        counts = Counter((row["kind"], row["scale"], row["verdict"]) for row in self.claims)
        pairs = [
            (kind, scale) for kind in KINDS for scale in SCALES if any((kind, scale, v) in counts for v in Verdict)
        ]
        return [
            {"kind": kind, "scale": scale, **{v.value: counts[kind, scale, v.value] for v in Verdict}}
            for kind, scale in pairs
        ]

    @cached_property
    def q(self) -> dict[str, float]:
        """The false discovery rate of each empirical claim (see `bnrepro.report.wording.Q`)."""
        found = {row["id"]: p_of(row) for row in self.claims if row["kind"] == "empirical"}
        return false_discovery_rates({id: p for id, p in found.items() if p is not None})

    def sensitive(self) -> str:
        """How many verdicts hang on the margin."""
        return sensitive(self.claims)


def sensitive(claims: Rows) -> str:
    """How many verdicts hang on the margin."""
    tested = [row for row in claims if row["kind"] != "identity" and any(map(has_margin, row["effects"]))]
    half, double = (sum(factor in row["flips_at"] for row in tested) for factor in (0.5, 2.0))
    either = sum(bool(row["flips_at"]) for row in tested)
    rest = f"{half} would change at half of it and {double} at double it: {either} in all."
    return f"Of the {len(tested)} verdicts that rest on a margin, {rest}"
