"""Adversarial examples: projected gradient ascent (PGD) within a cube round each image, with restarts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["pgd"]

LEVELS = 255.0


def pgd(
    logits_of: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 40,
    restarts: int = 3,
    size: float | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Images at most ``epsilon`` levels from ``images`` in each pixel, and which of them are misclassified.

    Each restart begins at a random place of the cube. A step goes ``size`` levels along the sign of the gradient of the
    margin, the largest other logit minus the label's, which does not vanish where a network is certain, as the
    cross-entropy does; then back into the cube, and to levels from 0 to 255. An image that is misclassified once, or
    from the start, is left as it is then: what counts is the worst of all steps of all restarts.

    Args:
        logits_of: float32 images of 0 to 255 (N, C, H, W) to logits; each image's may depend on no other (eval mode).
        images: (N, C, H, W), of any type.
        labels: (N,).
        epsilon: in levels of 255.
        steps, restarts: of the search.
        size: of a step in levels; None: 2.5 epsilon / steps (Madry et al. 2018), so that any place can be reached.
        seed: of the beginnings.

    Returns:
        float32 images, and whether each is misclassified.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks"
    (ICLR 2018); the margin is Carlini & Wagner's (2017).
    """
    generator = torch.Generator().manual_seed(seed)
    clean = images.to(torch.float32, copy=True)
    found = clean.clone()
    size = 2.5 * epsilon / steps if size is None else size
    with torch.no_grad():
        fooled = margin(logits_of(clean), labels) >= 0
    for _ in range(restarts):
        noise = epsilon * (2 * torch.rand(clean.shape, generator=generator).to(clean.device) - 1)
        start = (clean + noise).clamp(0, LEVELS)
        left = (~fooled).nonzero().flatten()  # those that are still searched for
        x = start[left]
        for step in range(steps + 1):
            if not len(left):
                break
            x.requires_grad_(True)
            with torch.enable_grad():
                margins = margin(logits_of(x), labels[left])
                (gradient,) = torch.autograd.grad(margins.sum(), x)
            x, over = x.detach(), margins.detach() >= 0
            found[left[over]], fooled[left[over]] = x[over], True
            left, x, gradient = left[~over], x[~over], gradient[~over]
            if step < steps:
                around = clean[left]
                x = torch.minimum(torch.maximum(x + size * gradient.sign(), around - epsilon), around + epsilon)
                x = x.clamp(0, LEVELS)
        found[left] = x
    return found, fooled


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's: negative where a prediction is right. (N, classes) -> (N,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own.squeeze(1)
