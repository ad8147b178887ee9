"""Statistics over seeds: numbers labelled by factors and seed, intervals and tests."""

from bnrepro.stats.intervals import (
    Alternative,
    Equivalence,
    Interval,
    bootstrap_interval,
    equivalence,
    false_discovery_rates,
    holm,
    p_value,
    paired,
    share_interval,
    share_p_value,
    t_interval,
    t_quantile,
)
from bnrepro.stats.looks import Look, planned
from bnrepro.stats.values import Values, log

__all__ = [
    "Alternative",
    "Equivalence",
    "Interval",
    "Look",
    "Values",
    "bootstrap_interval",
    "equivalence",
    "false_discovery_rates",
    "holm",
    "log",
    "p_value",
    "paired",
    "planned",
    "share_interval",
    "share_p_value",
    "t_interval",
    "t_quantile",
]
