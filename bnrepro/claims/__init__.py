"""What a paper, a design, a claim and its evidence are; and the one rule that turns evidence into a verdict."""

from bnrepro.claims.design import Design
from bnrepro.claims.evidence import Evidence, equal, exact, greater, less, not_lower, not_testable
from bnrepro.claims.gates import Gate, reaches, stays_below
from bnrepro.claims.measures import Measure, measure, row
from bnrepro.claims.paper import Paper, Preset
from bnrepro.claims.results import Results, Row
from bnrepro.stats import Values

__all__ = [
    "Design",
    "Evidence",
    "Gate",
    "Measure",
    "Paper",
    "Preset",
    "Results",
    "Row",
    "Values",
    "equal",
    "exact",
    "greater",
    "less",
    "measure",
    "not_lower",
    "not_testable",
    "reaches",
    "row",
    "stays_below",
]
