"""Bjorck et al. 2018: larger learning rates, and what happens inside a network without BN (claims B1 and B2)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.bjorck2018.analysis import analyse
from bnrepro.experiments.bjorck2018.claims import CLAIMS, PAPER
from bnrepro.experiments.bjorck2018.grid import arms, probes

EXPERIMENT = Experiment(
    name="bjorck2018",
    title="The largest learning rate that trains, and activations that grow with depth (Bjorck et al. 2018)",
    source=PAPER,
    deviations=(
        "Fully connected networks of several depths and a narrow ResNet-20 on digits for a few epochs, where the "
        "source trains ResNet-110 on CIFAR-10. Its numbers were not read in its text, and none stands here.",
        "A network counts as trained at a rate if its loss stays finite and its training accuracy in the last epoch "
        "reaches the preset's; the largest rate is the last of those that train before the first that does not, going "
        "up. Where none trains, the lowest of the grid is counted, and where the highest does, that one; both make "
        "BN's advantage look smaller.",
        "The same small rate is the one at which the network without BN does best on validation data. Rates fall to "
        "zero by a cosine, where the source lowers them in steps; weight decay is none.",
        "The diverging update is the last before a batch whose loss is above the preset's or no number, at a constant "
        "rate: the lowest of the grid at which that happens. BN is given the same rate and number of updates.",
        "Layers that died (variance 0) are left out of the growth with depth.",
    ),
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
