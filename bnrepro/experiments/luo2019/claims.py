"""What Luo et al. say of the regularization in batch normalization, as far as it can be tested here."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = (
    'Luo et al., "Towards Understanding Regularization in Batch Normalization" (2019), https://arxiv.org/abs/1809.00846'
)
NONE = "no number read in the text"

CLAIMS = (
    Claim(
        "U1",
        SOURCE,
        "The noise of a batch's statistics adds a penalty to the loss whose strength falls as one over the batch size.",
        NONE,
    ),
    Claim(
        "U1.2",
        SOURCE,
        "Batch normalization can be decomposed into population normalization and gamma decay: trained so, a network "
        "generalizes as with batch normalization.",
        NONE,
    ),
    Claim(
        "U1.3",
        SOURCE,
        "Statistical mechanics of a single layer with one teacher gives batch normalization's generalization.",
        NONE,
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

DEVIATIONS = (
    "An MLP on digits; the source has a single layer in theory and convolutional networks on CIFAR-10.",
    "Population statistics in training are those of a large pool: the batch and other training images, drawn anew in "
    "each step, whose loss does not count. The gradient goes through them, as it does through a batch's.",
    "The gamma decay is c / M times the sum of all squared gammas, with M the batch size and one c for all sizes. c is "
    "that of a grid whose validation loss is nearest to batch normalization's, in the mean of the absolute differences "
    "over sizes; the claim is judged on the test set. The source's coefficient depends on the data, and its formula "
    "was not read again.",
    "The penalty of U1 is measured at a trained network: the mean loss of training images with each batch's own "
    "statistics, less that with the statistics of all.",
    "At test all networks have the statistics of the whole training set.",
)
