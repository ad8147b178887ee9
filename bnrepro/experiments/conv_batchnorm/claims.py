"""What the source says, sentence by sentence, and what was predicted of it before anything was trained."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

README = "lmcintosh/conv-batchnorm (https://github.com/lmcintosh/conv-batchnorm), README"
CODE = "lmcintosh/conv-batchnorm (https://github.com/lmcintosh/conv-batchnorm), code"
PREDICTED = "A prediction about the source's layer, from untrained networks, made before this experiment"
NONE = "no number: the source has no experiment, no figure and no test"

_CLAIMS = (
    Claim("L1", README, "Local normalization takes the same number of parameters as channel-wise batch norm.", NONE),
    Claim(
        "L1b",
        README,
        "A scale for each x and y position is possibly thousands of additional parameters that may be poorly "
        "constrained.",
        NONE,
    ),
    Claim("L2", README, "It computes statistics for each channel and each x, y location independently.", NONE),
    Claim(
        "L3",
        README,
        "It is a modification of batch normalization whose parameters are translation invariant: gamma and beta are "
        "one for all locations, and their gradients are sums over them.",
        NONE,
    ),
    Claim(
        "L4a",
        README,
        "Collapsing the spatial dimensions with the channels (a scale for each position) renders the network no longer "
        "fully convolutional, and its receptive fields vary with space.",
        NONE,
    ),
    Claim(
        "L4b",
        README,
        "To solve this, local normalization with parameters per channel: it keeps the network fully convolutional.",
        NONE,
    ),
    Claim("L5", README, "Implied by fully convolutional: the layer takes maps of any size.", NONE),
    Claim(
        "L6a",
        README,
        "If we normalize across the entire layer, we may shove all pixels below the horizon below threshold, and only "
        "process the well-illuminated parts of the scene.",
        NONE,
    ),
    Claim("L6b", README, "Local normalization does not: it keeps the dark half active where BN loses it.", NONE),
    Claim(
        "L6c",
        README,
        "Local normalization suits inputs that are not translation invariant across the batch: with a lower half "
        "that is always dark it classifies better than channel-wise batch norm.",
        NONE,
    ),
    Claim(
        "L6d",
        README,
        "The same for batches of sequential frames, each batch with a darkness of its own (the car at sunrise).",
        NONE,
    ),
    Claim(
        "L6e",
        README,
        "Neurons adapt to the light at their location: trained in one light, local normalization bears another better "
        "than channel-wise batch norm.",
        NONE,
    ),
    Claim(
        "L6f",
        CODE,
        "ConvAdaptiveNormalization, whose statistics are those of the present batch, adapts at test time too: trained "
        "in one light, it bears another better than channel-wise batch norm.",
        NONE,
    ),
    Claim("L7", README, "Neurons sensitive to different locations in space adapt somewhat independently.", NONE),
    Claim("L8a", CODE, "ConvAdaptiveNormalization does the same in training and in testing.", NONE),
    Claim(
        "L8b",
        CODE,
        "Its window (kernel_size) leads from statistics per location to statistics per channel.",
        NONE,
    ),
    Claim(
        "L9",
        CODE,
        "The moving variance is made unbiased, by the factor n / (n - (1 + epsilon)) with epsilon 1e-3.",
        "the factor itself: -1000 for n = 1, 2.002 for n = 2",
    ),
    Claim(
        "L-gap",
        PREDICTED,
        "Statistics of a batch and running statistics normalise several times further apart when they are local.",
        "9 to 12 times, at batch sizes 8 to 128, after a random convolution on MNIST",
    ),
    Claim(
        "L-eps",
        PREDICTED,
        "With local statistics eps decides how large values become at inference, and with channel statistics not.",
        "largest normalised value after a random convolution on MNIST: 60.7 at eps 1e-5 and 30.3 at 1e-3, beside 6.0 "
        "for channel statistics",
    ),
    Claim("L-batch", PREDICTED, "Local statistics lose more accuracy than channel statistics in small batches.", NONE),
    Claim(
        "L-one",
        PREDICTED,
        "A training batch of 1, which the source's code lets through, is normalised to zero whatever it was, and must "
        "be refused.",
        "the source's layer returns beta",
    ),
)
CLAIMS: dict[str, Claim] = {claim.id: claim for claim in _CLAIMS}
