"""What the sources claim, and the numbers that were read in them."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

GROUP = "Wu & He, Group Normalization (2018), https://arxiv.org/abs/1803.08494"
RENORM = "Ioffe, Batch Renormalization (2017), https://arxiv.org/abs/1702.03275"
CIFAR = "ppwwyyxx/GroupNorm-reproduce, https://github.com/ppwwyyxx/GroupNorm-reproduce"
LRN = (
    "Ioffe & Szegedy (2015), section 4.2.1; ducha-aiki/caffenet-benchmark, "
    "https://github.com/ducha-aiki/caffenet-benchmark"
)
GHOST = "Summers & Dinneen, Four Things Everyone Should Know to Improve Batch Normalization (2020)"
EVAL = "Singh & Shrivastava, EvalNorm: Estimating Batch Normalization Statistics for Evaluation (2019)"
DIVISIVE = "Ren et al., Normalizing the Normalizers: Comparing and Extending Network Normalization Schemes (2017)"
CONTEXT = "Ortiz et al., Local Context Normalization (2020); Li et al., Positional Normalization (2019)"
STOCHASTIC = "Atanov et al., Uncertainty Estimation via Stochastic Batch Normalization (2018)"

REPORTED = {
    "BN": {32: 76.4, 16: 76.3, 8: 75.2, 4: 72.7, 2: 65.3},
    "GN": {32: 75.9, 16: 75.8, 8: 76.0, 4: 75.8, 2: 75.9},
}
"""Top-1 accuracy of ResNet-50 on ImageNet by images a GPU, as Switchable-Normalization's README lists it."""
REPORTED_SORTED = {
    "BN, shuffled": 78.3,
    "BN, few classes": 67.0,
    "BN, few classes, by the batch": 76.5,
    "renorm, few classes": 78.5,
}
"""Top-1 accuracy of Inception-v3 on ImageNet with batches of 16 classes, 2 images each (Ioffe 2017)."""
_TABLE = "ResNet-50 on ImageNet, top-1 % at 32, 16, 8, 4, 2 images a GPU: "

CLAIMS = (
    Claim(
        "G1.1",
        GROUP,
        "Batch normalization's accuracy falls where its statistics come from few images.",
        _TABLE + "BN 76.4 76.3 75.2 72.7 65.3",
    ),
    Claim(
        "G1.2",
        GROUP,
        "With statistics from 2 images, group normalization is better than BN.",
        _TABLE + "BN 65.3 and GN 75.9 at 2",
    ),
    Claim(
        "G1.3",
        GROUP,
        "At the usual batch, group normalization is about as accurate as BN.",
        _TABLE + "BN 76.4 and GN 75.9 at 32",
    ),
    Claim(
        "G2",
        CIFAR,
        "On CIFAR-10 and at a usual batch, group normalization is less accurate than BN.",
        "GN 7.3% error, about 1.3 points more than BN",
    ),
    Claim(
        "R1.1",
        RENORM,
        "With statistics from 4 images, batch renormalization is better than BN.",
        "Inception-v3 on ImageNet, microbatches of 4: BN 74.2, renorm 76.5",
    ),
    Claim("R1.2", RENORM, "At a large batch, batch renormalization is as accurate as BN.", "BN 78.3, renorm 78.5"),
    Claim(
        "R1.3",
        RENORM,
        "BN fails where batches are of few classes.",
        "16 classes x 2 images: 67, against 78.3 with shuffled batches",
    ),
    Claim("R1.4", RENORM, "Batch renormalization does not: it is better than BN there.", "BN 67, renorm 78.5"),
    Claim(
        "R1.5",
        RENORM,
        "What fails is the moving average: by the statistics of test batches so composed, the same BN is accurate.",
        "67 by the moving average, 76.5 by the batch",
    ),
    Claim(
        "T1",
        GHOST,
        "Statistics from parts of the batch (ghost batches) regularise: accuracy is higher than with the whole batch.",
        "no number read in the text",
    ),
    Claim(
        "N2",
        LRN,
        "Local response normalization does not improve accuracy.",
        "CaffeNet128 on ImageNet: with LRN .470, without .471; Inception with BN leaves it out",
    ),
    Claim("E1", EVAL, "Statistics corrected for evaluation mend BN at batches of 2.", "+6.18 points on ImageNet"),
    Claim(
        "Z1",
        STOCHASTIC,
        "Averaging predictions over the statistics of random training batches improves accuracy.",
        "ResNet-18, CIFAR-10: .9407 to .9415 and .9422",
    ),
    Claim(
        "N1",
        DIVISIVE,
        "Batch and layer normalization are cases of a divisive norm, and smoothing its denominator improves them.",
        "numbers not read again",
    ),
    Claim(
        "N3",
        CONTEXT,
        "Other things called local: statistics of a window of one image, or over the channels at one location.",
        "numbers not read again",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}
