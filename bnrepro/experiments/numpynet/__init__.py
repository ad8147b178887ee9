"""NumPyNet's batch normalization: its forward, its backward, what its gradient trains to, and its tests."""

from __future__ import annotations

from bnrepro.experiments.base import Arm, Experiment, Settings
from bnrepro.experiments.numpynet.analysis import analyse
from bnrepro.experiments.numpynet.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.numpynet.measurements import probes

__all__ = ["EXPERIMENT"]


def _no_arms(settings: Settings) -> list[Arm]:
    """Its networks are trained in probes: the wrong gradients are no variants to offer."""
    return []


EXPERIMENT = Experiment(
    name="numpynet",
    title="NumPyNet's layer: a backward that is wrong, and what comes of it",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=_no_arms,
    probes=probes,
    analyse=analyse,
)
