"""What the source claims, and the numbers that were read in it."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

PAPER = (
    "Li, Chen, Hu & Yang, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift "
    "(CVPR 2019), https://arxiv.org/abs/1801.05134"
)
UNREAD = "no number read in the text"

CLAIMS = (
    Claim(
        "D1.1",
        PAPER,
        "Dropout before BN shifts the variance of BN's inputs between training and test.",
        UNREAD,
    ),
    Claim(
        "D1.2",
        PAPER,
        "Dropout of 0.5 in every block makes a network with BN less accurate.",
        "DenseNet on CIFAR-100: 77.42% without dropout, 68.55% with 0.5 in every bottleneck",
    ),
    Claim("D1.3", PAPER, "Dropout after the last BN alone does no harm.", UNREAD),
    Claim(
        "D1.4", PAPER, "The shift is what harms: statistics taken again without dropout bring accuracy back.", UNREAD
    ),
    Claim("D1.5", PAPER, "A small amount, 0.1, is safe before BN.", UNREAD),
    Claim("D1.6", PAPER, "A wide network shifts less.", UNREAD),
)
BY_ID = {claim.id: claim for claim in CLAIMS}
