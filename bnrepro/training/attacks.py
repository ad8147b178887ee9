"""Adversarial examples: projected gradient ascent (PGD) within a cube round each image, with restarts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

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
    from the start, is left as it is then: what counts is the worst of all steps of all restarts. Misclassified is all
    that is not certainly right: ties, and logits that are NaN. A pixel stays where the gradient is NaN.

    Args:
        logits_of: float32 images of 0 to 255 (N, C, H, W) to logits; each image's may depend on no other (eval mode).
        images: (N, C, H, W), of any type.
        labels: (N,), int64.
        epsilon: in levels of 255, 0 or more.
        steps: of each restart, 1 or more.
        restarts: of the search; with 0 there is none, and what is misclassified is reported.
        size: of a step in levels; None: 2.5 epsilon / steps (Madry et al. 2018), so that any place can be reached.
        seed: of the beginnings.

    Returns:
        float32 images, and whether each is misclassified.

    Raises:
        ValueError: another number than these, or other labels or logits; a norm is in training mode, where images
            depend on each other and running statistics move.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks"
    (ICLR 2018); the margin is Carlini & Wagner's (2017).
    """
    for name, value, least in (("epsilon", epsilon, 0), ("steps", steps, 1), ("restarts", restarts, 0)):
        whole = name != "epsilon"
        if not least <= value < torch.inf or (whole and value % 1):
            raise ValueError(f"pgd: {name} must be {'a whole' if whole else 'a'} number from {least} on, got {value}")
    if size is not None and not 0 < size < torch.inf:
        raise ValueError(f"pgd: size must be a number above 0, or None for 2.5 epsilon / steps; got {size}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"pgd: labels must be torch.int64 and one of each image, ({len(images)},); got {given}")
    generator = torch.Generator("cpu").manual_seed(seed)
    clean = images.to(torch.float32, copy=True)
    found = clean.clone()
    size = 2.5 * epsilon / steps if size is None else size
    with torch.no_grad(), _no_norm_in_training():
        logits = logits_of(clean)
    if logits.dim() != 2 or len(logits) != len(labels):
        raise ValueError(f"pgd: logits must be (images, classes), ({len(labels)}, ...); got {tuple(logits.shape)}")
    if len(labels) and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        raise ValueError(f"pgd: labels must be from 0 to {logits.shape[1] - 1}, as there are logits of classes")
    fooled = ~(margin(logits, labels) < 0)  # NaN too
    for _ in range(int(restarts)):
        drawn = torch.rand(clean.shape, generator=generator, dtype=torch.float32, device="cpu")
        noise = epsilon * (2 * drawn.to(clean.device) - 1)
        start = (clean + noise).clamp(0, LEVELS)
        left = (~fooled).nonzero().flatten()  # those that are still searched for
        x = start[left]
        for step in range(int(steps) + 1):
            if not len(left):
                break
            x.requires_grad_(True)
            with torch.enable_grad():
                margins = margin(logits_of(x), labels[left])
                (gradient,) = torch.autograd.grad(margins.sum(), x)
            x, over = x.detach(), ~(margins.detach() < 0)
            found[left[over]], fooled[left[over]] = x[over], True
            left, x, gradient = left[~over], x[~over], gradient[~over]
            if step < steps:
                around = clean[left]
                x = torch.minimum(
                    torch.maximum(x + size * gradient.nan_to_num(0).sign(), around - epsilon), around + epsilon
                )
                x = x.clamp(0, LEVELS)
        found[left] = x
    return found, fooled


@contextmanager
def _no_norm_in_training() -> Iterator[None]:
    """Within it, a norm in training mode that is called, by whatever function, is an error."""
    caller = get_ident()

    def check(module: nn.Module, _inputs: object) -> None:
        frozen = hasattr(type(module), "frozen") and module.frozen
        if isinstance(module, _BatchNorm) and module.training and not frozen and get_ident() == caller:
            raise ValueError(
                f"pgd: the network is in training mode: a {type(module).__name__} in it would normalize by the batch, "
                "and its running statistics would move. Call .eval() on the network first"
            )

    handle = register_module_forward_pre_hook(check)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile")  # of the hook, which may be called twice
            yield
    finally:
        handle.remove()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's: negative where a prediction is right. (N, classes) -> (N,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own.squeeze(1)
