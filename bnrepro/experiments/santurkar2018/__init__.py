"""Santurkar et al. 2018: whether batch normalization helps by stable distributions or by a smooth landscape."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.santurkar2018.analysis import analyse
from bnrepro.experiments.santurkar2018.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.santurkar2018.grid import arms, probes

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="santurkar2018",
    title="Santurkar et al. 2018: distributions, internal covariate shift, and the landscape of the loss",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
