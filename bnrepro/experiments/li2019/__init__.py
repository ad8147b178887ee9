"""Li et al. 2019: dropout before batch normalization shifts the variance between training and test (claim D1)."""

from __future__ import annotations

from bnrepro.experiments.base import Experiment
from bnrepro.experiments.li2019.analysis import analyse
from bnrepro.experiments.li2019.claims import CLAIMS, PAPER
from bnrepro.experiments.li2019.grid import arms, probes

EXPERIMENT = Experiment(
    name="li2019",
    title="Dropout before and after batch normalization, and the shift of the variance (Li et al. 2019)",
    source=PAPER,
    deviations=(
        "A small VGG for few epochs, where the source trains DenseNet, ResNet, ResNeXt and Wide ResNet on CIFAR-10 and "
        "CIFAR-100 to the end.",
        "Dropout stands directly before each BN, or after each BN and its activation, which is again before the next "
        "layer's BN; the source has it before the last convolution of each block. Or it stands after the last BN only.",
        "The shift of a channel is max(real / moving, moving / real), its variance over the training images in eval "
        "mode against the moving variance; a layer's is the mean over its channels, and a network's that over its "
        "layers. So one layer of one seed can outweigh all others where ratios are in the thousands, and the intervals "
        "of D1.1 and D1.6 are as wide as that; it was set so before the runs, and is left so.",
        "Adam at one rate with a cosine, the same for all.",
    ),
    claims=CLAIMS,
    arms=arms,
    probes=probes,
    analyse=analyse,
)
