"""What the source says, and what the benchmark that it shows says, both read there."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

NOTES = "Notes on batch normalization"
BENCHMARK = "ducha-aiki/caffenet-benchmark (https://github.com/ducha-aiki/caffenet-benchmark), batchnorm.md"

CLAIMS = (
    Claim(
        "P1",
        f"{NOTES}, which shows {BENCHMARK}",
        "Putting batch normalization after the activation function provides better performance than before it.",
        "CaffeNet128 on ImageNet, top-1: before .474, after .499 (with gamma and beta .478, .493), no BN .471; "
        "the same file's GoogLeNet128 says the opposite: before .603 and .607, after .596 and .584, no BN .619",
    ),
    Claim(
        "P2",
        NOTES,
        "Dropout is generally not put after batch normalization, or with a very low probability of about 0.1.",
        "no number of its own; the benchmark's CaffeNet128 with BN: dropout 0.5 .499, 0.2 .527, 0 .513",
    ),
    Claim(
        "P3",
        NOTES,
        "The computation of mean and deviation on the batch adds noise during training and regularizes.",
        "no number",
    ),
    Claim(
        "P4",
        NOTES,
        "Gamma and beta allow the model to avoid mean 0 and unit variance if it needs to.",
        "no number; exactly: gamma = deviation and beta = mean give the identity. The formula has no eps",
    ),
    Claim(
        "P5",
        NOTES,
        "For convolutional layers, the normalization is applied per channel.",
        "BatchNorm2d(6) after Conv2d(1, 6)",
    ),
    Claim(
        "P6",
        BENCHMARK,
        "The learned scale and shift help where BN stands before the activation, and not where it stands after it.",
        "CaffeNet128, top-1: before .474, with them .478; after .499, with them .493",
    ),
    Claim(
        "P7",
        BENCHMARK,
        "BN (after the activation) makes the difference between ReLU, ELU and PReLU negligible.",
        "CaffeNet128, top-1: ReLU .499, ELU .498, PReLU .503 with BN; .471, .488, .485 without",
    ),
)
BY_ID = {claim.id: claim for claim in CLAIMS}

REPORTED: dict[str, dict[str, float]] = {
    "CaffeNet128, ImageNet (source)": {"before": 0.474, "after": 0.499, "none": 0.471},
    "CaffeNet128, gamma and beta (source)": {"before": 0.478, "after": 0.493, "none": 0.471},
    "GoogLeNet128, LSUV (source)": {"before": 0.603, "after": 0.596, "none": 0.619},
    "GoogLeNet128, orthogonal (source)": {"before": 0.607, "after": 0.584, "none": 0.619},
}
"""The benchmark's top-1 accuracies with ReLU, one run each."""
