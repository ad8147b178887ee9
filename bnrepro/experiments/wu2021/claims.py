"""What Wu & Johnson say of the statistics at inference, and what a comparison of momenta says."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = "Wu & Johnson, \"Rethinking 'Batch' in BatchNorm\" (2021), https://arxiv.org/abs/2105.07576"
NONE = "no number read in the text"

CLAIMS = (
    Claim(
        "W1",
        f"{SOURCE}, section 3",
        "Statistics of the population computed after training (PreciseBN) are as good as the moving average or better.",
        NONE,
    ),
    Claim(
        "W1.2",
        f"{SOURCE}, section 3",
        "With a large batch the moving average is unstable early in training, where the population's statistics are "
        "not.",
        NONE,
    ),
    Claim(
        "W1.3",
        f"{SOURCE}, section 3",
        "1,000 to 10,000 samples are enough for the population's statistics.",
        "10^3 to 10^4 samples (ResNet-50, ImageNet)",
    ),
    Claim(
        "W1.4",
        f"{SOURCE}, section 3",
        "Where training normalises over 2 to 4 images, the batch's own statistics at test are better than the "
        "population's.",
        NONE,
    ),
    Claim(
        "W1.5",
        f"{SOURCE}, section 3",
        "Where training normalises over 2 to 4 images, frozen statistics (FrozenBN) in the last epochs help.",
        NONE,
    ),
    Claim(
        "W2",
        "gcr, a public comparison of momenta: ResNet-20 on CIFAR-10",
        "The momentum of the moving average has no significant effect on the error.",
        "error 8.35% with momentum 0.01, 8.29% with 0.1, 8.63% with 1, 8.22% with one that changes",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

DEVIATIONS = (
    "Small networks on digits and CIFAR-10 for a few epochs, where the source trains ResNet-50 on ImageNet for 100; "
    "the large batch is hundreds of images, not 8,192.",
    "The momentum does not change what is trained, so one training gives the moving averages of all momenta, the "
    "cumulative average and the population's statistics at once; differences between them are of one network.",
    "Small batches of normalization are ghost batches: parts of one SGD batch, so that steps and rates stay.",
    "The population's variance is that of the pooled values; the source averages over batches.",
    "All accuracies are of test images, and nothing is chosen. Points before the last are of the first of them.",
)
