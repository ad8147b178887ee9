"""What Ioffe & Szegedy say, section by section, and the numbers of their Figure 3."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = 'Ioffe & Szegedy, "Batch Normalization" (2015), https://arxiv.org/abs/1502.03167'
NONE = "no number"

REPORTED: dict[str, tuple[float | None, float]] = {
    "Baseline": (31.0e6, 72.2),
    "BN-Baseline": (13.3e6, 72.7),
    "BN-x5": (2.1e6, 73.0),
    "BN-x30": (2.7e6, 74.8),
    "BN-x5-Sigmoid": (None, 69.8),
}
"""Figure 3: steps to 72.2% validation accuracy on ImageNet (None: never), and the best accuracy, in percent."""

CLAIMS = (
    Claim(
        "I1",
        f"{SOURCE}, section 4.1 and Figure 1a",
        "On MNIST the network with batch normalization has the higher test accuracy (after 50,000 steps of 60 images).",
        "a curve, no number in the text",
    ),
    Claim(
        "I1.2",
        f"{SOURCE}, Figure 1a",
        "Batch normalization helps the network train faster.",
        "a curve, no number in the text",
    ),
    Claim(
        "I2",
        f"{SOURCE}, section 4.1 and Figure 1b, c",
        "Over training, the distribution of the inputs to a typical sigmoid of the last hidden layer is much more "
        "stable with batch normalization than without.",
        "curves, no number in the text",
    ),
    Claim(
        "I3",
        f"{SOURCE}, section 3.2",
        "The bias before batch normalization can be ignored; in a convolution a mini-batch of m maps of p x q is one "
        "of effective size m' = m p q, with one gamma and beta a map.",
        NONE,
    ),
    Claim(
        "I4",
        f"{SOURCE}, section 3.3",
        "BN((aW)u) = BN(Wu): the scale of the weights affects neither the layer's Jacobian, dBN((aW)u)/du = "
        "dBN(Wu)/du, nor the gradient propagation, while dBN((aW)u)/d(aW) = 1/a dBN(Wu)/dW.",
        NONE,
    ),
    Claim(
        "I5",
        f"{SOURCE}, section 3.3",
        "Conjecture: batch normalization may lead the layer Jacobians to have singular values close to 1.",
        NONE,
    ),
    Claim(
        "I6",
        f"{SOURCE}, section 3.4",
        "Batch normalization regularises the model: an example is seen together with others of its mini-batch, and "
        "this helps generalisation.",
        NONE,
    ),
    Claim(
        "I6.2",
        f"{SOURCE}, section 3.4",
        "Dropout can be removed or reduced in strength in a network with batch normalization.",
        NONE,
    ),
    Claim(
        "I7",
        f"{SOURCE}, section 3.1 and Algorithm 2",
        "For inference Var[x] = m/(m-1) E_B[sigma_B^2] over training mini-batches of size m is the unbiased estimate, "
        "and batch normalization becomes one affine map.",
        NONE,
    ),
    Claim(
        "I8",
        f"{SOURCE}, section 4.2.2 and Figure 2",
        "Batch normalization alone, at the baseline's learning rate, matches the baseline's accuracy in less than "
        "half the training steps.",
        "13.3 against 31.0 million steps, 2.33 times fewer (Inception, ImageNet)",
    ),
    Claim(
        "I9",
        f"{SOURCE}, section 4.2.2 and Figure 3",
        "With five times the learning rate (BN-x5) far fewer steps are needed than with batch normalization alone.",
        "2.1 million steps, 14.8 times fewer than the baseline and 6.3 times fewer than BN-Baseline (ImageNet)",
    ),
    Claim(
        "I9.2",
        f"{SOURCE}, section 4.2.2 and Figure 3",
        "Thirty times the learning rate (BN-x30) trains somewhat more slowly at first and reaches a higher accuracy.",
        "74.8% against 73.0% with BN-x5 (ImageNet); 2.7 against 2.1 million steps to 72.2%",
    ),
    Claim(
        "I9.3",
        f"{SOURCE}, section 4.2.2 and Figure 3",
        "The network of sigmoids with batch normalization (BN-x5-Sigmoid) stays below the baseline's best accuracy.",
        "69.8% against 72.2% (ImageNet)",
    ),
    Claim(
        "I10",
        f"{SOURCE}, section 4.2.2",
        "Without batch normalization the small increase of the learning rate (five times) makes the parameters reach "
        "machine infinity; with it the network trains.",
        "divergence without batch normalization at x5, none with it at x5 and x30 (ImageNet)",
    ),
    Claim(
        "I10.2",
        f"{SOURCE}, section 4.2.2",
        "Without batch normalization the network of sigmoids never does better than chance; with it, it trains.",
        "at most 1/1000 without, 69.8% with batch normalization (ImageNet)",
    ),
    Claim(
        "I11",
        f"{SOURCE}, section 4.2.1",
        "Shuffling the training examples more thoroughly, so that the same ones do not always share a mini-batch, "
        "improves accuracy.",
        "about 1% of validation accuracy (ImageNet)",
    ),
    Claim(
        "I12",
        f"{SOURCE}, section 4.2.3 and Figure 4",
        "An ensemble of batch-normalized networks beats the best published result on ImageNet.",
        "4.9% top-5 validation error, 4.82% on the test server",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

DEVIATIONS = (
    "Figure 1: the paper states neither learning rate nor optimiser nor the deviation of the initial weights. Here it "
    "is plain SGD, and rate and deviation are those with the best mean validation accuracy after short runs of a small "
    "grid, the same grid and length for both networks. A choice by short runs favours fast starters, in both.",
    "Figure 1: a tenth of the training images is held out for that choice. The inputs to the sigmoids are those of a "
    "fixed batch of these validation images, normalised by its own statistics, as in training. The typical sigmoid is "
    "unit 0, fixed beforehand; the table has all of them.",
    "Section 4.2: a small VGG (or, in the small presets, a LeNet) on CIFAR-10 or digits for a few thousand steps of 32 "
    "images, where the paper trains Inception on ImageNet for tens of millions. The baseline's best is thus what it "
    "reaches in the budget, not where it levels off. The learning rate of the baseline is chosen on validation data; "
    "it stays constant (SGD, momentum 0.9), and nothing but rate, norm and activation differs between the arms. The "
    "paper also removes dropout, reduces weight decay and photometric distortions, and lowers the rate faster.",
    "Accuracy in the table is single-crop, top-1, on validation images, as in the paper; curves are taken every few "
    "steps, which is the resolution of all counts of steps.",
    "Section 3.3: the Jacobian is that of one layer at one image, with the statistics of a fixed batch as constants.",
    "Sections 3.4 and 4.2.1 (dropout, shuffling): a LeNet on 5,000 digits, where there is something to regularise.",
)
