"""van Laarhoven 2017, Hoffer et al. 2018: weight decay before a norm sets the effective rate (claims V1 and V2)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.vanlaarhoven2017.analysis import analyse
from bnrepro.experiments.vanlaarhoven2017.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.vanlaarhoven2017.grid import arms, probes

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="vanlaarhoven2017",
    title="Weight decay and the effective learning rate (van Laarhoven 2017; Hoffer et al. 2018)",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
