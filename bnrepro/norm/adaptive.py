"""Adaptive normalization: local statistics of the present batch, in training and in use alike."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from bnrepro.norm.function import affine as scale_and_shift
from bnrepro.norm.function import centred_moments, dense_both_ways, images_of_each, pooled_mean, reciprocal_std, widen
from bnrepro.norm.layers import NormError, check_tensors, copied_in_its_group, two_lengths


class ConvAdaptiveNorm2d(nn.Module):
    r"""Normalize each location by the statistics of the batch in a neighbourhood of it; train equals eval.

    With :math:`\mathrm{pool}_k` the average over the ``kernel_size`` window round a location, positions outside
    the map not counted:

    .. math::
        \mu = \mathrm{pool}_k\Big(\frac{1}{N} \sum_n x_n\Big), \quad
        \sigma^2 = \mathrm{pool}_k\Big(\frac{1}{N} \sum_n (x_n - \mu)^2\Big), \quad
        y = \gamma_c \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_c

    **Which variance this is.** By default the source's, ``variance="pooled"``: each neighbour is centred on the
    pooled mean *of its own position* before its square is averaged. The variance of the values in the window
    centres all of them on the mean of the window that is being normalized,
    :math:`\mathrm{pool}_k(\frac{1}{N} \sum_n x_n^2) - \mu^2`; that is ``variance="window"``. The two agree for
    ``kernel_size=1`` and where the pooled mean is flat across the window; across an edge in the mean image the
    window's variance also counts how the local means differ, and is larger.

    Shapes: (N, C, H, W) in and out, any H and W; gamma and beta (C,). ``kernel_size=1`` gives the statistics of
    `ConvBatchNorm2d` in training, a window that covers the map from every position those of `BatchNorm2d`.
    Windows of an even length reach one further down and right, as TensorFlow's 'same' padding does.

    There are no running statistics: the output for one image depends on the others of its batch, in eval too. With a
    ``process_group`` the batch in training is the joint one of its processes; in eval it is each process's own.

    Raises:
        NormError: (a ValueError) one value in a window (a batch of 1 with a window of 1 x 1, or of 2 x 2, which is
            one value in the last corner).
        ValueError: not four dimensions, another number of channels, a ``kernel_size`` that is no lengths from 1 on,
            another ``variance``.

    Source: https://github.com/lmcintosh/conv-batchnorm (2018), class ``ConvAdaptiveNormalization``.
    """

    def __init__(
        self,
        num_features: int,
        kernel_size: int | tuple[int, int],
        eps: float = 1e-3,
        affine: bool = True,
        *,
        variance: Literal["pooled", "window"] = "pooled",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["__module__"] = "torch.nn"  # whole in graphs of torch.fx: see `bnrepro.norm.layers`
        self.num_features = num_features
        self.process_group = process_group
        if variance not in ("pooled", "window"):
            raise ValueError(f"variance must be 'pooled' or 'window', got {variance!r}")
        self.kernel_size = two_lengths("kernel_size", kernel_size)
        self.variance = variance
        self.eps = eps
        self.affine = affine
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if affine:
            self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    __deepcopy__ = copied_in_its_group

    def reset_parameters(self) -> None:
        """Gamma 1 and beta 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Shapes and errors: see the class."""
        x = input
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(
                f"ConvAdaptiveNorm2d takes an input of shape (N, {self.num_features}, H, W), got {tuple(x.shape)}"
            )
        check_tensors(self, x, self.weight, self.bias)
        # The smallest windows are those of the last corner, which an even length reaches back to by less.
        reach = [min(size, (k + 1) // 2) for size, k in zip(x.shape[2:], self.kernel_size, strict=True)]
        group = self.process_group if self.training else None
        images = x.shape[0]
        if reach == [1, 1] and group is not None:
            images = sum(images_of_each(x, group))
        if images * reach[0] * reach[1] == 1:
            raise NormError(
                f"ConvAdaptiveNorm2d would normalize each value of an input of shape {tuple(x.shape)} by itself, to "
                "zero. Use batches of 2 or more, or a larger kernel_size."
            )
        wide = widen(dense_both_ways(x))
        # What is common to a channel is not to cost the digits of the means and of their pools. The formula does not
        # see it, whatever constant is taken; one image is quicker than all, and tells as much: if the others are far
        # from it, so is the deviation.
        wide = wide - pooled_mean(wide[:1], (0, 2, 3), group).detach()
        own = pooled_mean(wide, (0,), group)
        apart = wide - own if self.variance == "window" else None
        centred = wide.sub_(self._pool(own))  # in place, it being ours, for the sake of speed
        if apart is None:
            var = self._pool(pooled_mean(centred.square(), (0,), group))
        else:
            rest, within = centred_moments(apart, (0,), group)
            var = self._pool(within) + self._variance_between(own + rest)
        weight, bias = (None if p is None else p.view(1, -1, 1, 1) for p in (self.weight, self.bias))
        return scale_and_shift(centred * reciprocal_std(var, self.eps), weight, bias).to(x.dtype)

    def _variance_between(self, maps: Tensor) -> Tensor:
        """Variance of the values of (1, C, H, W) in the window at each position: along the width, then the height.

        Each value is centred before it is squared: a difference of squares may be negative, and is noise where the
        values are large.
        """
        between = torch.zeros_like(maps)
        for axis, length in ((3, self.kernel_size[1]), (2, self.kernel_size[0])):
            windows = _windows(maps, axis, length)
            inside = _windows(torch.ones_like(maps[:1, :1]), axis, length)
            count = inside.sum(-1)
            mean = (windows * inside).sum(-1) / count
            apart = (windows - mean.unsqueeze(-1)) * inside
            # The variance so far is itself averaged over the windows of this axis.
            between = (_windows(between, axis, length) * inside + apart.square()).sum(-1) / count
            maps = mean
        return between

    def _pool(self, maps: Tensor) -> Tensor:
        """Average of (1, C, H, W) over the window at each position, padding not counted."""
        height, width = self.kernel_size
        if height >= 2 * maps.shape[2] - 1 and width >= 2 * maps.shape[3] - 1:  # every window is the whole map
            return maps.mean((2, 3), keepdim=True).expand_as(maps)
        pad = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
        inside = torch.ones_like(maps[:, :1])
        total, count = (
            F.avg_pool2d(F.pad(t, pad), self.kernel_size, stride=1, divisor_override=1) for t in (maps, inside)
        )
        return total / count

    def extra_repr(self) -> str:
        """The arguments, as torch's layers show theirs."""
        return (
            f"{self.num_features}, kernel_size={self.kernel_size}, eps={self.eps}, affine={self.affine}, "
            f"variance={self.variance!r}"
        )


def _windows(maps: Tensor, axis: int, length: int) -> Tensor:
    """(1, C, H, W) -> (1, C, H, W, length): the values round each position along ``axis``, zeros outside the map."""
    length = min(length, 2 * maps.shape[axis] - 1)  # every window is the whole map
    pad = ((length - 1) // 2, length // 2)
    return F.pad(maps, (*pad, 0, 0) if axis == 3 else (0, 0, *pad)).unfold(axis, length, 1)
