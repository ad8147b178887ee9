"""What Santurkar et al. (2018) say, and what is done otherwise here."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = (
    "Santurkar, Tsipras, Ilyas & Madry, How Does Batch Normalization Help Optimization? (NeurIPS 2018, "
    "https://arxiv.org/abs/1805.11604)"
)
NO_NUMBER = "no number read in the text"
_PAPER = "Santurkar et al. 2018"

CLAIMS = (
    Claim(
        "S1",
        f"{_PAPER}, Figure 1",
        "A VGG on CIFAR-10, trained by plain SGD, has a higher test accuracy with BN, at either learning rate.",
        "83% with BN and 80% without after 15,000 steps; 92% and 88% with augmentation",
    ),
    Claim("S1.2", f"{_PAPER}, Figure 1", "It also trains faster with BN.", NO_NUMBER),
    Claim(
        "S2",
        f"{_PAPER}, Figure 1 (c)",
        "The difference in distributional stability of the activations, with BN and without, seems marginal.",
        NO_NUMBER,
    ),
    Claim(
        "S3",
        f"{_PAPER}, section 2.2, Figure 2",
        "BN followed by noise whose distribution changes at each step performs nearly as well as BN.",
        NO_NUMBER,
    ),
    Claim("S3.2", f"{_PAPER}, Figure 2", "BN followed by such noise performs better than no BN.", NO_NUMBER),
    Claim(
        "S3.3",
        f"{_PAPER}, section 2.2",
        "The same amount of noise on the activations of the network without BN prevents it from training entirely.",
        NO_NUMBER,
    ),
    Claim(
        "S3.4",
        f"{_PAPER}, section 2.2, Figure 2",
        "With this noise after BN the distributions are less stable than in the network without BN.",
        NO_NUMBER,
    ),
    Claim(
        "S4",
        f"{_PAPER}, section 2.3, Figure 3",
        "The VGG's internal covariate shift (norm of the difference of a layer's gradients before and after the "
        "earlier layers move) is with BN similar or worse.",
        NO_NUMBER,
    ),
    Claim("S4.2", f"{_PAPER}, Figure 3", "So is the cosine between these gradients.", NO_NUMBER),
    Claim(
        "S4.3",
        f"{_PAPER}, section 2.3, Figure 3",
        "In deep linear networks there is almost no internal covariate shift without BN, and with BN the two gradients "
        "are almost uncorrelated.",
        NO_NUMBER,
    ),
    Claim(
        "S5",
        f"{_PAPER}, section 3.2, Figure 4 (a)",
        "The loss varies less along the gradient with BN.",
        NO_NUMBER,
    ),
    Claim(
        "S6",
        f"{_PAPER}, Figure 4 (b)",
        "The gradient is more predictive with BN: it changes less along its own direction.",
        NO_NUMBER,
    ),
    Claim(
        "S6.2",
        f"{_PAPER}, Figure 4 (b)",
        "Early in training that differs by close to two orders of magnitude.",
        "close to two orders of magnitude",
    ),
    Claim(
        "S7",
        f"{_PAPER}, Figure 4 (c)",
        "The effective beta-smoothness (largest change of the gradient over the distance moved) is better with BN.",
        NO_NUMBER,
    ),
    Claim(
        "S8",
        f"{_PAPER}, section 3.3, Figure 5",
        "Normalization by the average l1, l2 or maximum norm, which does not fix the second moment, performs "
        "comparably to BN.",
        NO_NUMBER,
    ),
    Claim(
        "S8.2",
        f"{_PAPER}, section 3.3",
        "For deep linear networks l1 normalization performs even better than BN.",
        NO_NUMBER,
    ),
    Claim(
        "S9",
        f"{_PAPER}, section 2.3 and appendix",
        "A deep linear network of 25 layers, trained by full-batch gradient descent, reaches a lower loss with BN.",
        NO_NUMBER,
    ),
    Claim(
        "S9.2",
        f"{_PAPER}, section 3.2 and appendix",
        "The landscape of deep linear networks is smoother with BN too: loss, gradient predictiveness and beta.",
        NO_NUMBER,
    ),
)

DEVIATIONS = (
    "The VGG is small and narrow (six convolutions of 3 x 3, one hidden linear layer; the preset says how narrow), and "
    "is trained for hundreds of steps, where the paper has a standard VGG and 15,000. What the paper says of early "
    "training can be seen here, and of the rest there is the beginning only.",
    "Learning rates, batch size, Glorot's weights, plain SGD and no "
    "augmentation are the paper's. Biases stand where no norm follows.",
    "The paper's text says what range the steps along the gradient span, and not how many there are: here they are "
    "those of the preset, and beta is the largest of their ratios. All are taken from one trajectory, at the "
    "trajectory's own batches, in training mode; the running statistics are left alone.",
    "A layer's internal covariate shift is measured by the gradient of its weight; the earlier layers move with all "
    "their parameters, gamma and beta among them.",
    "A distribution is of single activations (channel and location) over validation images in training mode, and its "
    "stability is how far it moves from one measurement to the next, in its own deviations; the paper shows pictures.",
    "Activation j of the noise is a channel and location. The noise stands after gamma and beta.",
    "The average of an lp norm is taken over the values of a channel that BN has its statistics from: the mean of |x|, "
    "the root of the mean of x squared, the largest |x|; all before the mean is subtracted.",
    "The loss of the deep linear network is the sum over samples and outputs: with their mean, a learning rate of "
    "1e-6 would leave the network without BN where it is. Its norm stands after each layer but the last.",
    "The layers whose internal covariate shift is shown are the preset's.",
)
