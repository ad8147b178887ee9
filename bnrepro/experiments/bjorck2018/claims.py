"""What the source claims, in sentences that can be wrong."""

from __future__ import annotations

from bnrepro.experiments.base import Claim

PAPER = (
    "Bjorck, Gomes, Selman & Weinberger, Understanding Batch Normalization (NeurIPS 2018), "
    "https://arxiv.org/abs/1806.02375"
)
UNREAD = "no number read in the text"

CLAIMS = (
    Claim("B1.1", PAPER, "Batch normalization enables training with larger learning rates.", UNREAD),
    Claim("B1.2", PAPER, "At the same small learning rate, networks with and without BN generalize alike.", UNREAD),
    Claim("B1.3", PAPER, "The larger learning rate is what BN's better generalization comes from.", UNREAD),
    Claim(
        "B2.1",
        PAPER,
        "At initialisation, the channels' variance grows almost exponentially with depth without BN, and not with it.",
        UNREAD,
    ),
    Claim(
        "B2.2",
        PAPER,
        "In the update in which a network without BN diverges, its activations grow uncontrollably with depth; "
        "BN avoids it.",
        UNREAD,
    ),
    Claim(
        "B2.3",
        PAPER,
        "At initialisation, a network without BN predicts one class whatever the image, so that gradients depend on "
        "the class; with BN they depend on the image.",
        UNREAD,
    ),
    Claim("B2.4", PAPER, "At initialisation, gradients have heavier tails without BN.", UNREAD),
)
BY_ID = {claim.id: claim for claim in CLAIMS}
