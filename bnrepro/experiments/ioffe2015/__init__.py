"""Ioffe & Szegedy 2015, the paper: Figure 1, its algebra, and small analogues of Figures 2 and 3 (claims I1 to I12)."""

from __future__ import annotations

from bnrepro.experiments.base import Analysis, Experiment, Records, drawn
from bnrepro.experiments.ioffe2015.claims import CLAIMS, DEVIATIONS, SOURCE
from bnrepro.experiments.ioffe2015.drawing import pictures
from bnrepro.experiments.ioffe2015.findings import judged
from bnrepro.experiments.ioffe2015.grid import arms, probes
from bnrepro.experiments.ioffe2015.tables import tables

__all__ = ["EXPERIMENT"]


def analyse(records: Records) -> Analysis:
    """The whole of it."""
    return Analysis(judged(records), tables(records), drawn(lambda: pictures(records)))


EXPERIMENT = Experiment(
    name="ioffe2015",
    title="Batch normalization as its authors have it: Figure 1, the algebra, higher rates (Ioffe & Szegedy 2015)",
    source=SOURCE,
    deviations=DEVIATIONS,
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
