"""What the two papers say of weight decay beside normalization."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

LAARHOVEN = (
    'van Laarhoven, "L2 Regularization versus Batch and Weight Normalization" (2017), https://arxiv.org/abs/1706.05350'
)
HOFFER = 'Hoffer et al., "Norm matters" (2018), https://arxiv.org/abs/1803.01814'
SOURCE = f"{LAARHOVEN}; {HOFFER}"
NONE = "no number"

CLAIMS = (
    Claim(
        "V1",
        LAARHOVEN,
        "The loss of a network does not change with the scale of weights that a norm follows, so that an L2 penalty on "
        "them can be met by their scale alone.",
        NONE,
    ),
    Claim(
        "V1.2",
        LAARHOVEN,
        "The effective learning rate is the rate over the squared norm of the weights: weights a times as large train "
        "alike at a² times the rate and 1 / a² times the weight decay.",
        NONE,
    ),
    Claim("V1.3", LAARHOVEN, "Without weight decay the norm of the weights only grows under SGD.", NONE),
    Claim(
        "V1.4",
        LAARHOVEN,
        "Adam removes the influence of the weights' norm on the effective rate only in part.",
        NONE,
    ),
    Claim(
        "V1.5",
        LAARHOVEN,
        '"L2 regularization has no regularizing effect when combined with normalization": once the learning rate is '
        "tuned, weight decay adds nothing.",
        NONE,
    ),
    Claim("V2", HOFFER, "At the usual constant rate, accuracy is better with weight decay than without.", NONE),
    Claim(
        "V2.2",
        HOFFER,
        "Without weight decay, the learning rate corrected by the norms of the run with weight decay recovers its "
        "accuracy.",
        "no number read in the text",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

DEVIATIONS = (
    "LeNet on digits and on a part of CIFAR-10 for a few epochs, at constant rates; Hoffer et al. train VGG11 on "
    "CIFAR-10 for 80 epochs, with rate 0.1, momentum 0.9 and weight decay 5e-4.",
    "In the grid, weight decay applies to all weights but not to gamma and beta. In Hoffer et al.'s arms it applies to "
    "the weights that a norm follows only, so that nothing but their scale is at stake.",
    "The correction is per layer and step: each layer's rate is multiplied by its squared norm over that of the same "
    "layer in the run with weight decay, which is trained beside it on the same batches. The reverse (weight decay, "
    "at the effective rates of the run without) is a control of ours.",
    "The learning rate, and the rate and decay, are chosen by the mean validation accuracy over the seeds; the claim "
    "is judged on the test set.",
)
