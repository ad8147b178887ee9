"""What labml's page says, sentence by sentence, and the formula in the code that it documents."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = "labml.ai, annotated batch normalization: https://nn.labml.ai/normalization/batch_norm/"
PAGE = "https://nn.labml.ai/normalization/batch_norm/"
CODE = "https://nn.labml.ai/normalization/batch_norm/, its code"
NONE = "no number"

CLAIMS = (
    Claim(
        "A1",
        PAGE,
        'With the mean outside the gradient computation, x̂ = x - E[x] and x = u + b, the bias b "will increase or '
        'decrease ... and keep on growing indefinitely in each training update", while x̂ and the loss do not change.',
        NONE,
    ),
    Claim("A1.2", PAGE, '"The paper notes that similar explosions happen with variances."', NONE),
    Claim(
        "A1.3",
        PAGE,
        '"Normalizing outside the gradient computation using pre-computed (detached) means and variances doesn\'t work"'
        ", in a network.",
        NONE,
    ),
    Claim(
        "A2",
        PAGE,
        '"If the inputs to a sigmoid are normalized most of it will be within [-1, 1] range where the sigmoid is '
        'linear."',
        NONE,
    ),
    Claim(
        "A2.2",
        PAGE,
        '"To overcome this each feature is scaled and shifted by two trained parameters": with trained gamma and beta, '
        "less of it is within [-1, 1].",
        NONE,
    ),
    Claim(
        "A3",
        PAGE,
        '"After a linear transform like Wu + b the bias parameter b gets cancelled due to normalization. So you can '
        'and should omit" it.',
        NONE,
    ),
    Claim(
        "A4",
        PAGE,
        '"Batch normalization also makes the back propagation invariant to the scale of the weights."',
        NONE,
    ),
    Claim("A5", PAGE, '"Empirically it improves generalization."', NONE),
    Claim("A5.2", PAGE, '"So it has regularization effects too": training and test accuracy are less apart.', NONE),
    Claim(
        "A6",
        PAGE,
        'For inference, statistics of "the whole (or part of) dataset" and "an estimate calculated during training", '
        "an exponential moving average, will do alike.",
        NONE,
    ),
    Claim(
        "A7", PAGE, "The page links training code for a CNN on MNIST, and its site another for a VGG on CIFAR-10.", NONE
    ),
    Claim(
        "A8",
        PAGE,
        "Variants on its site: batch-channel normalization, estimated batch normalization, channel normalization.",
        NONE,
    ),
    Claim("A9", CODE, "Var[x] = E[x²] - E[x]², as the layer computes it in float32, is the variance.", NONE),
)

DEVIATIONS = (
    "The VGG is three pairs of convolutions at a quarter of the usual width (8, 16 and 32 channels), not the source's "
    "13 convolutions of 64 to 512 channels, and is trained for fewer epochs, to fit two cores; optimiser, batch size, "
    "crops and flips are the source's. The MNIST network is the source's, trained for fewer than its ten epochs.",
    "Images are normalised by the training set's mean and deviation per channel, not the source's constants.",
    "Biases directly before a norm are left out, as the source says one should (its own VGG keeps them); the arms that "
    "need them have them.",
    "Accuracies are on the test set; the validation images are held out of the training set and train nothing.",
    "The toy losses of A1 and A1.2 are ours: the source gives the argument without an example.",
)
