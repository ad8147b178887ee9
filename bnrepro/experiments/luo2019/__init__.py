"""Luo et al. 2019: batch normalization as population normalization with gamma decay (claim U1)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.luo2019.analysis import analyse
from bnrepro.experiments.luo2019.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.luo2019.networks import arms, probes

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="luo2019",
    title="Batch normalization as population normalization with gamma decay (Luo et al. 2019)",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
