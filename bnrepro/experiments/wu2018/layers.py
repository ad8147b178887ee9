"""Norms whose statistics come from parts of the batch, as factories that networks are handed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bnrepro.model import MakeNorm
from bnrepro.norm import BatchNorm1d, ConvBatchNorm2d
from bnrepro.norm.variants import BatchRenorm, GhostBatchNorm

LOCAL_EPS = 1e-3  # local statistics' own, as in `bnrepro.norm.table`

if TYPE_CHECKING:
    _Layer = BatchNorm1d
else:
    _Layer = object


class _Parts(_Layer):
    """In training, each part of ``images`` images goes through the layer by itself, in order (see GhostBatchNorm)."""

    images = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        starts = list(range(self.images, len(x) - self.images + 1, self.images))
        one = super().forward
        return torch.cat([one(part) for part in x.tensor_split(starts)])


class PartsRenorm(_Parts, BatchRenorm):
    """Batch renormalization over parts of the batch; its schedule counts parts."""


class PartsLocal(_Parts, ConvBatchNorm2d):
    """Statistics per channel and location over parts of the batch."""


def momentum_of_part(momentum: float, images: int, batch: int) -> float:
    """The momentum of a part so that the parts of one batch together weigh ``momentum``: 1 - (1 - m)^(images / batch).

    Running statistics then average over as many images whatever the size of a part, and what differs is training.
    """
    return 1 - (1 - momentum) ** (images / batch)


def renorm(images: int, momentum: float, shares: list[float], batches: int) -> MakeNorm:
    """`PartsRenorm`; ``shares`` of ``batches`` parts are its schedule's start, and the steps at which r and d end."""

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        layer = PartsRenorm(features, momentum=momentum)
        layer.images = images
        layer.start, layer.r_steps, layer.d_steps = (round(share * batches) for share in shares)
        return layer

    return make


def local(images: int, momentum: float) -> MakeNorm:
    """`PartsLocal`; after a linear layer, where there is one location, BN over parts."""

    def make(features: int, shape: tuple[int, ...]) -> nn.Module:
        if not shape:
            ghost = GhostBatchNorm(features, LOCAL_EPS, momentum)
            ghost.ghost_size = images
            return ghost
        layer = PartsLocal(features, (shape[0], shape[1]), eps=LOCAL_EPS, momentum=momentum)
        layer.images = images
        return layer

    return make
