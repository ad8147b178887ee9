"""labml's page on batch normalization: statistics outside the gradient, what BN cancels, its networks."""

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.labml.analysis import analyse
from bnrepro.experiments.labml.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.labml.networks import arms, probes

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    name="labml",
    title="labml's page: why statistics belong inside the gradient, and what batch normalization cancels",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
