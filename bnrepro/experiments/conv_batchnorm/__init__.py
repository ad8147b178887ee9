"""conv-batchnorm, local gain. Where statistics are pooled, where gamma and beta live, and a car at sunrise."""

from __future__ import annotations

from bnrepro.experiments.base import Analysis, Experiment, Records, drawn
from bnrepro.experiments.conv_batchnorm.arms import arms, probes
from bnrepro.experiments.conv_batchnorm.claims import CLAIMS
from bnrepro.experiments.conv_batchnorm.findings import findings
from bnrepro.experiments.conv_batchnorm.pictures import pictures
from bnrepro.experiments.conv_batchnorm.tables import tables


def analyse(records: Records) -> Analysis:
    """Verdicts, tables and figures from the records."""
    return Analysis(findings(records), tables(records), drawn(lambda: pictures(records)))


EXPERIMENT = Experiment(
    name="conv_batchnorm",
    title="Local gain: statistics per location, parameters per channel",
    source="README of lmcintosh/conv-batchnorm, https://github.com/lmcintosh/conv-batchnorm (Keras, 2018)",
    deviations=(
        "The source has no experiment: network (LeNet), data, optimiser (Adam) and training length are ours.",
        "PyTorch instead of Keras; the layers follow the source's formulas, without its defects: the running variance "
        "is corrected by n / (n - 1), and a training batch of 1 is refused.",
        "eps is the source's 1e-3 for every variant, so that the cells of the table differ in their axes alone.",
        "momentum is torch's 0.1 (Keras's 0.9) and not the source's 0.99 (Keras's sense): runs here are too short for "
        "an average over hundreds of batches.",
        "The car at sunrise is made from still images: the pixels of the lower half times a factor, rounded. Frames of "
        "a drive are batches that share a factor, between the preset's and 1; their images are not of one scene.",
        "After a linear layer there is one location: there all variants are BN, and the adaptive norm takes the "
        "batch's own statistics, in eval in batches of at most 500.",
    ),
    claims=tuple(CLAIMS.values()),
    arms=arms,
    probes=probes,
    analyse=analyse,
)
