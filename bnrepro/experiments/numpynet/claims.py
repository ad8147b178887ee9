"""What NumPyNet says, sentence by sentence; its text, its code, and the tests of the repository that it documents."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

SOURCE = "NumPyNet, documentation of its batch normalization layer: https://github.com/Nico-Curti/NumPyNet"
TEXT = "NumPyNet's documentation, text"
CODE = "NumPyNet's documentation, code"
TESTS = "NumPyNet, testing/test_batchnorm_layer.py: https://github.com/Nico-Curti/NumPyNet"
READING = "this project's reading of NumPyNet's code"
NONE = "no number"

CLAIMS = (
    Claim(
        "N4.1",
        CODE,
        '"output = scale * input_norm + bias, where input_norm = (input - mean) / sqrt(var + epsil)", mean and '
        'variance "computed over the first axis (batch)": what `forward` returns.',
        NONE,
    ),
    Claim(
        "N4.2",
        TEXT,
        "The normalised pixel is x̂ = (x - x̄)² / √(σ² + ε), and the code's forward \"is basically a numpy version of "
        'the theory described above".',
        NONE,
    ),
    Claim("N4.3", TEXT, "δβ = Σ δ and δγ = Σ δ x̂, summed over the batch, are the updates of bias and scales.", NONE),
    Claim(
        "N4.4",
        TEXT,
        "The error to be back-propagated is (N δx̂ - Σ δx̂ - x̂ Σ δx̂ x̂) / (N √(σ² + ε)), with N the batch's size.",
        NONE,
    ),
    Claim("N4.5", CODE, '"Here, delta is the derivative of the output w.r.t. input", at the end of `backward`.', NONE),
    Claim("N4.6", CODE, "`mean_delta = (delta * (-var)).mean(axis=0)  # dmu`: the derivative by the mean.", NONE),
    Claim("N4.7", CODE, "`var_delta`, marked `# dvar`, is the derivative by the variance.", NONE),
    Claim(
        "N4.8",
        READING,
        "The backward has two independent mistakes: invN counts locations instead of images, and dmu is a mean instead "
        "of a sum. Mending one of them does not do; mending both gives the exact gradient.",
        NONE,
    ),
    Claim(
        "N4.9",
        READING,
        "For many more locations than images the code's gradient is that which takes mean and variance for constants.",
        NONE,
    ),
    Claim(
        "N4.10",
        CODE,
        '"Now net_delta is modified and ready to be passed to the previous layer": a layer before this one learns from '
        "the code's gradient as it does from the exact one.",
        NONE,
    ),
    Claim(
        "N4.11", TEXT, "A layer before this one learns from the text's gradient as it does from the exact one.", NONE
    ),
    Claim(
        "N4.12",
        READING,
        "NumPyNet's mistake is what labml's page warns of: where locations outnumber images, the code trains as with "
        "statistics outside the gradient.",
        NONE,
    ),
    Claim(
        "N4.13",
        READING,
        "With the code's gradient, as labml's page says of statistics outside the gradient, the bias before the layer "
        '"will increase or decrease ... and keep on growing"; with the exact one it stays where it is.',
        NONE,
    ),
    Claim(
        "N4.14",
        TESTS,
        "Its test of the backward (delta = 1, against Keras, rtol = atol = 0.1) shows that the gradient is right.",
        "the test passes",
    ),
    Claim(
        "N4.15",
        TESTS,
        'The test draws w and h from 50 up because of "numerical instability for small dimensions!"',
        NONE,
    ),
    Claim(
        "N4.16",
        TEXT,
        '"The layer has been implemented following the original paper", in its parameters: scales and bias of shape '
        "(w, h, c).",
        "scales and bias of shape (100, 100, 3) in its example",
    ),
    Claim("N4.17", CODE, '"A single image won\'t work in this case": a batch of one cannot be normalised.', NONE),
    Claim(
        "N4.18",
        TEXT,
        '"Following the original paper, where is also possible to find the entire implementation of the algorithm", at '
        "inference: the paper's Algorithm 2 makes the output a function of the image alone.",
        NONE,
    ),
)

DEVIATIONS = (
    "The source trains no network. Ours are small ones on 5,000 digits, with the layer after a convolution or a linear "
    "layer that keeps its bias, plain SGD, and one learning rate a curve, named there.",
    "Networks are trained in float32 and in torch, whose gradient is held in float64 to the source's lines in NumPy; "
    "the source computes in float64.",
    "Sums that the text runs from i = 0 to batch_size (one term too many) are taken over the batch.",
    "The layer has no inference mode, so test accuracy is that with statistics of test batches of the training's size.",
    "The repository's test is written again with torch in Keras's place (inference mode, moving statistics set to the "
    "batch's), on shapes drawn within its ranges but with at most 100 x 100 x 3 locations.",
)
