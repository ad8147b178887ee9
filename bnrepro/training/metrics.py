"""Running sums of a training run, kept on the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class MetricAccumulator:
    """Losses and right answers since the last evaluation, kept on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start again from nothing."""
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.images = 0
        self.unread: list[Tensor] = []
        self.unread_right: list[Tensor] = []
        self.unread_images = 0
        self.shown = (math.nan, math.nan)

    def add(self, loss: Tensor, right: Tensor, images: int) -> None:
        """One batch: its mean loss, its right answers, its size."""
        self.unread.append(loss)
        self.unread_right.append(right)
        self.unread_images += images

    def first_non_finite(self) -> int | None:
        """Take in the batches added since the last call, and say where the first loss was not finite.

        None if all were; else how many batches before the last one it came (0: it was the last one).
        """
        losses, rights = torch.stack(self.unread).double(), torch.stack(self.unread_right)
        finite = losses.isfinite().tolist()
        if not all(finite):
            return len(finite) - 1 - finite.index(False)
        each = self.unread_images // len(self.unread)
        self.loss += losses.sum() * each
        self.right += rights.sum()
        self.images += self.unread_images
        self.shown = (float(losses.mean()), float(rights.sum()) / self.unread_images)
        self.unread, self.unread_right, self.unread_images = [], [], 0
        return None

    def recent(self) -> tuple[float, float]:
        """Loss and accuracy of the batches taken in last."""
        return self.shown

    def mean(self) -> tuple[float, float]:
        """Loss and accuracy over all batches since the last evaluation, each measured before its update."""
        return float(self.loss) / self.images, float(self.right) / self.images

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint. Batches not yet taken in are kept apart, or sums would round otherwise."""
        return dict(vars(self), device=None)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for key in vars(self).keys() - {"device"}:
            value = state[key]
            if isinstance(value, Tensor):
                value = value.to(self.device)
            setattr(self, key, [v.to(self.device) for v in value] if isinstance(value, list) else value)
