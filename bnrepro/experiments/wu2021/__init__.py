"""Wu & Johnson 2021: what stands for mean and variance at inference (claims W1 and W2)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.wu2021.analysis import analyse
from bnrepro.experiments.wu2021.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.wu2021.measurements import arms, probes

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="wu2021",
    title="One network under a moving average, population and batch statistics (Wu & Johnson 2021)",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
