"""Frankle, Schwab & Morcos 2021: training only gamma and beta (claim F1)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.frankle2021.analysis import analyse
from bnrepro.experiments.frankle2021.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.frankle2021.networks import arms, probes

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="frankle2021",
    title="Training only gamma and beta (Frankle, Schwab & Morcos 2021)",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
