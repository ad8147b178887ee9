"""What Frankle, Schwab & Morcos say of networks of which only gamma and beta are trained."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = (
    'Frankle, Schwab & Morcos, "Training BatchNorm and Only BatchNorm" (2021), https://arxiv.org/abs/2003.00152, '
    "abstract"
)
NONE = "no number in the abstract"

CLAIMS = (
    Claim(
        "F1",
        SOURCE,
        "Training only gamma and beta is far better than training an equal number of randomly chosen parameters "
        "elsewhere in the network.",
        NONE,
    ),
    Claim(
        "F1.2",
        SOURCE,
        "Sufficiently deep networks reach a high accuracy with only gamma and beta trained: the deeper, the better.",
        "82% on CIFAR-10 (ResNet-866)",
    ),
    Claim(
        "F1.3",
        SOURCE,
        "It does so in part by learning to disable a third of the random features.",
        "around a third",
    ),
    Claim(
        "F1.4",
        SOURCE,
        "ResNet-866 reaches 82% on CIFAR-10, and ResNet-200 32% (top 5) on ImageNet, with only gamma and beta trained.",
        "82% and 32%",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

DEVIATIONS = (
    "Residual networks of 8 to 26 layers at a fraction of the width, on digits for a few epochs; the source trains up "
    "to 866 layers on CIFAR-10 for 160 epochs.",
    "As in the authors' code (facebookresearch/open_lth, models/cifar_resnet.py): gamma is drawn between 0 and 1, He's "
    "initial weights, SGD at rate 0.1 with momentum 0.9 that falls twice by ten, batches of 128. All arms have one "
    "rate. There is no weight decay (1e-4 there).",
    "The equal number of other parameters is two weights of each channel, drawn at random, for its gamma and beta; the "
    "layer of the logits is not among them.",
    "A feature counts as disabled where the size of its gamma is below the preset's threshold, which is ours.",
    "The layer of the logits alone is trained too, as a baseline beside the claims.",
)
