"""Batch normalization over any axes. This package needs torch and nothing else of `bnrepro`.

Its norms are subclasses of torch's ``_BatchNorm``, which most of torch's tools look for and treat as they should
(`torch.optim.swa_utils.update_bn`). One does not: `torch.nn.SyncBatchNorm.convert_sync_batchnorm` silently makes plain
batch normalization of all of them, frozen ones and variants too. Use `synchronize`.
"""

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.convert import convert, freeze, resize, synchronize
from bnrepro.norm.folding import fold
from bnrepro.norm.fused import FusedSequential
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvBatchNorm2d, NormError
from bnrepro.norm.statistics import batch_statistics, mixed_statistics, reestimate_statistics
from bnrepro.norm.table import NORMS, NormFactory, NormOptions

__all__ = [
    "NORMS",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConvAdaptiveNorm2d",
    "ConvBatchNorm2d",
    "FusedSequential",
    "NormError",
    "NormFactory",
    "NormOptions",
    "batch_statistics",
    "convert",
    "fold",
    "freeze",
    "mixed_statistics",
    "reestimate_statistics",
    "resize",
    "synchronize",
]
