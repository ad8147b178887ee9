"""Wu & He 2018, Ioffe 2017: how many images statistics come from, and batches of few classes (G1, G2, R1, ...)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.wu2018.analysis import analyse
from bnrepro.experiments.wu2018.claims import CLAIMS, GROUP, RENORM
from bnrepro.experiments.wu2018.grid import arms, probes

EXPERIMENT = Experiment(
    name="wu2018",
    title="How many images the statistics come from, and batches of few classes (Wu & He 2018, Ioffe 2017)",
    source=f"{GROUP}; {RENORM}",
    deviations=(
        "A small LeNet, where the sources train ResNet-50 and Inception-v3 on ImageNet; in the full preset, on 5,000 "
        "images of CIFAR-10.",
        "The batch of gradient descent and its rate are fixed, and statistics come from parts of it. Wu & He shrink "
        "the batch of a GPU and scale the rate with it; here nothing but the statistics differs.",
        "The parts' momentum is such that the parts of a batch weigh together what the batch weighs, so that running "
        "statistics average over as many images in all arms.",
        "Group normalization has groups of at least 8 channels, up to 32 groups; the network's first maps have fewer "
        "channels, and one group there.",
        "Renorm's schedule (r = 1 and d = 0 for 5,000 steps, r up to 3 at 40,000, d up to 5 at 25,000, of about "
        "130,000) is scaled to the number of our steps.",
        "Batches of few classes are made of runs of one class; their running statistics move by 0.01 a step, as the "
        "source's. The source's batches have 16 of 1,000 classes.",
        "Adam at one rate for all norms. Another rate for each could change their order.",
    ),
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
