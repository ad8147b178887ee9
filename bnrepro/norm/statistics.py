"""What normalizes at inference: the running average, the population's statistics, or the batch's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.comparing import copied, first_line
from bnrepro.norm.function import affine, against, centred_moments, pooled_mean, widen
from bnrepro.norm.inspecting import (
    BlockHook,
    check_open,
    does_more,
    drop_and_act,
    few,
    has_drop_and_act,
    uses_statistics_itself,
)
from bnrepro.norm.layers import NormError, _HandDerived


def tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-normalization layers of ``model``, torch's and ours, that keep running statistics; none is frozen."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not (hasattr(type(module), "frozen") and module.frozen)  # of ours; not an attribute of the user's
    }


class _Pooled:
    """Mean and variance of all values that were added, batch by batch (Chan, Golub & LeVeque 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor
        self.square: Tensor  # sum of squared distances from the mean
        self.within: Tensor  # sum over batches of count times unbiased variance

    def add(self, layer: Any, x: Tensor, group: dist.ProcessGroup | None) -> None:
        wide, axes = widen(x), getattr(layer, "statistics_axes", _channel_axes)(x)
        if _takes_the_variance(layer):
            mean = pooled_mean(wide, axes, group)
            rest, var = (s.double() for s in centred_moments(wide - mean, axes, group))
            mean = mean.double() + rest
        else:
            mean, var = (s.double() for s in layer.moments(wide, axes, group))
        count = x.numel() // max(mean.numel(), 1)
        if group is not None:
            joint = torch.tensor(count, device=x.device)
            dist.all_reduce(joint, group=group)
            count = int(joint)
        if count == 0:
            return
        within = var * count * (count / max(count - 1, 1))
        if self.count == 0:
            self.count, self.mean, self.square, self.within = count, mean, var * count, within
            return
        self.within = self.within + within
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.square = self.square + var * count + delta.square() * (self.count * count / total)
        self.count = total


@torch.no_grad()
def reestimate_statistics(
    model: nn.Module, batches: Iterable[Tensor], *, variance: Literal["pooled", "mean"] = "pooled"
) -> nn.Module:
    """Replace the running statistics of ``model``'s norms by those of the population in ``batches`` ("precise BN").

    Each batch goes through the model in eval mode, but its norms normalize by the batch, so that every layer sees
    inputs as in training, without dropout. What a forward does only ``if self.training`` is not done. A layer's
    ``running_mean`` becomes the mean of all values that entered it, its ``running_var``

    - ``variance="pooled"``: their *unbiased* variance, equal to one pass over the joined values, however they were
      split (as far as the layers before are not themselves changed by the split);
    - ``variance="mean"``: the mean of the batches' *unbiased* variances, each weighted by its number of values, which
      leaves out how the batches' means differ (Ioffe & Szegedy's Algorithm 2 for batches of one size).

    A layer that divides by another measure than the standard deviation (``l1bn``, ``linfbn``, ``l1norm``, ``l2norm``,
    ``linfnorm``) gets the second with both, of that measure squared: it is what it averages in training.

    Layers with a process group (`synchronize`) take the statistics of all its processes' batches
    together; each process must call this then, on as many batches.

    Args:
        model: any network with torch's or our batch-normalization layers. Changed in place and returned, in the
            mode (train or eval) that it was in. A layer that no batch reaches keeps its statistics, and a
            `UserWarning` names it.
        batches: inputs of the model, each of 2 or more; of a list or tuple, as a `DataLoader` gives, its first entry.
        variance: which estimator.

    Raises:
        NormError: (a ValueError) ``batches`` is empty, or one gives a norm a single value per channel; something else
            than a layer's own forward uses its statistics (quantization, a forward that reads them); a layer is lazy; a
            part was made by `torch.jit` or `torch.export`. The model is as it was then.
        TypeError: ``batches`` is one tensor.
        ValueError: another name of an estimator.

    Source: Ioffe & Szegedy (2015), Algorithm 2; Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3.
    """
    if variance not in ("pooled", "mean"):
        raise ValueError(f"variance must be 'pooled' or 'mean', got {variance!r}")
    if isinstance(batches, Tensor):  # whose rows would be taken for batches, by some networks without an error
        raise TypeError("reestimate_statistics takes batches, as a list or a DataLoader; for one tensor write [x]")
    check_open(model)
    layers = tracking_layers(model)
    for name, layer in layers.items():
        if reason := uses_statistics_itself(model, name, layer):
            raise NormError(f"{name or 'The model'} ({type(layer).__name__}) keeps its statistics: {reason}")
    pooled = {name: _Pooled() for name in layers}
    groups = {name: _group(layer) for name, layer in layers.items()}
    modes = {module: module.training for module in model.modules()}

    def collect(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            (x,) = inputs or keywords.values()
            if (
                groups[name] is None
                and x.dim() > 1
                and x.numel() == x.shape[1]
                and not isinstance(module, _HandDerived)
            ):
                raise NormError(  # ours say it themselves
                    f"{name or 'The model'} ({type(module).__name__}) gets one value per channel from a batch, whose "
                    "variance is 0. Give batches of 2 or more (drop_last=True in a DataLoader drops an odd last one)."
                )
            pooled[name].add(module, x, groups[name])

        return hook

    handles = [layer.register_forward_pre_hook(collect(name), with_kwargs=True) for name, layer in layers.items()]
    seen, x = 0, None
    model.eval()
    for name, layer in layers.items():
        if groups[name] is not None and _is_joint_in_training(layer):
            layer.training = True  # in eval mode it would normalize by this process's batch
    try:
        with batch_statistics(model):
            for batch in batches:
                seen += 1
                x = batch[0] if isinstance(batch, list | tuple) else batch
                model(x)
    except NormError:
        raise
    except Exception as error:
        if seen and (reader := _read(model, layers, x)) is not None:
            raise NormError(
                f"{reader or 'The model'}: the forward uses its statistics itself ({type(error).__name__}: "
                f"{first_line(error)}), and they are put aside while others are estimated. Let it call the norm alone."
            ) from error
        raise
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if layers and not seen:
        raise NormError("reestimate_statistics got no batches: give it the training set's inputs.")
    for name, layer in layers.items():
        total = pooled[name]
        if total.count > 1:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(total.mean.reshape(layer.running_mean.shape))
            joined = variance == "pooled" and _takes_the_variance(layer)
            var = total.square / (total.count - 1) if joined else total.within / total.count
            layer.running_var.copy_(var.reshape(layer.running_var.shape))
    if unreached := [name or "the model" for name in layers if not pooled[name].count]:
        warnings.warn(
            f"reestimate_statistics: no batch reached {few(unreached)}, whose statistics stay as they are. A norm is "
            "reached if the model's forward in eval mode calls it: norm(x), not norm.forward(x), and not only "
            "`if self.training`.",
            stacklevel=3,  # one of them is torch.no_grad's
        )
    return model


def _group(layer: Any) -> dist.ProcessGroup | None:
    """The processes whose joint batch ``layer`` takes its statistics from in training."""
    group: dist.ProcessGroup | None = getattr(layer, "process_group", None)
    if group is None and isinstance(layer, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group


def _is_joint_in_training(layer: _BatchNorm) -> bool:
    """Whether ``layer`` does nothing in training but normalize by the joint batch (no noise, no parts of a batch)."""
    if isinstance(layer, nn.SyncBatchNorm):
        return layer.running_mean is not None and layer.running_mean.is_cuda
    return type(layer).forward is _HandDerived.forward


def _read(model: nn.Module, layers: dict[str, _BatchNorm], x: Any) -> str | None:
    """The name of the layer without whose statistics ``model(x)`` fails; None if it fails with all of them too."""

    def fails(without: str | None) -> bool:
        try:
            again = copied(model)  # a forward may keep what it once worked out with the statistics
            with batch_statistics(nn.Module() if without is None else again.get_submodule(without)):
                again(x)
        except Exception:
            return True
        return False

    return None if fails(None) else next((name for name in layers if fails(name)), None)


def _takes_the_variance(layer: nn.Module) -> bool:
    """Whether ``layer`` normalizes by the variance, as torch's do, and not by a measure of its own."""
    return not isinstance(layer, _HandDerived) or type(layer).moments is _HandDerived.moments


def _channel_axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, the norms of ``model`` normalize by the batch in eval mode too; their buffers are not touched."""
    check_open(model)
    layers = list(tracking_layers(model).values())
    kept = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, (mean, var, batches) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, batches


@contextmanager
def mixed_statistics(model: nn.Module, prior: float, images: int) -> Iterator[None]:
    """Within it, norms of ``model`` normalize in eval mode by a mixture of their running statistics and the batch's.

    A batch is cut along N into parts of ``images`` (an incomplete last part stands alone), each of which is adapted to
    by itself: with n images in a part, both mean and variance are ``(prior * running + n * part's) / (prior + n)``.
    With ``prior=0`` a part is normalized by itself (`batch_statistics`), with an infinite one as ever. Buffers are not
    touched. Hooks of a user's own get the mixture's outputs. Layers that are frozen or in training mode stay as ever.

    Raises:
        NormError: a negative ``prior``; ``images`` that is no whole number from 1 on; a norm that divides by another
            measure than the deviation, always takes the whole batch's statistics (adaptive norms,
            ``track_running_stats=False``), or does more than is known here (see `convert`); a copy of the network is
            made within the block, or a function of this package that changes or copies norms is called there.

    Source: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation" (2020),
    where ``prior`` is the number of pseudo samples N.
    """
    if not prior >= 0 or not images >= 1 or images % 1:
        raise NormError(
            f"mixed_statistics needs prior >= 0 and a whole number of images >= 1; got {prior} and {images}."
        )
    check_open(model)
    layers = tracking_layers(model)
    for name, layer in model.named_modules():
        if reason := _cannot_mix(model, name, layer):
            raise NormError(f"mixed_statistics: {name or 'the model'} ({type(layer).__name__}) {reason}")
    mixture = _Mixture(prior, int(images))
    handles = [layer.register_forward_hook(mixture, prepend=True, with_kwargs=True) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cannot_mix(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    """Why the statistics of ``layer`` of ``model`` cannot be mixed; None if they can, or it is no such norm."""
    if isinstance(layer, ConvAdaptiveNorm2d) or (isinstance(layer, _BatchNorm) and layer.running_mean is None):
        return (
            "keeps no running statistics (an adaptive norm, track_running_stats=False, a batch_statistics block), and "
            "takes those of the whole batch. Use norms that keep them, or call the network on the parts one by one."
        )
    if not isinstance(layer, _BatchNorm) or (isinstance(layer, _HandDerived) and layer.frozen):
        return None
    if reason := uses_statistics_itself(model, name, layer) or does_more(layer):
        return f"cannot be mixed: {reason}"
    if not _takes_the_variance(layer):
        return (
            "does not normalize by a variance, which is what is mixed. Use batch_statistics for the batch's own "
            "measure, or another norm."
        )
    return None


class _Mixture(BlockHook):
    """Forward hook: the output by mixed statistics, in place of that of a norm's own forward."""

    block = "mixed_statistics"

    def __init__(self, prior: float, images: int) -> None:
        self.prior, self.images = prior, images

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> Tensor:
        (x,) = inputs or keywords.values()
        if layer.training or not len(x):
            return output
        axes, wide = getattr(layer, "statistics_axes", _channel_axes)(x), widen(x)
        whole = len(x) // self.images * self.images
        parts = [wide[:whole].unflatten(0, (-1, self.images)), wide[None, whole:]]  # (parts, images, C, ...)
        xhat = torch.cat([_mixed(layer, part, axes, self.prior).flatten(0, 1) for part in parts if part.numel()])
        scale, shift = (None if each is None else against(each, x) for each in (layer.weight, layer.bias))
        y = affine(xhat, scale, shift).to(x.dtype)
        return drop_and_act(layer, inputs, y) if has_drop_and_act(layer) else y


def _mixed(layer: Any, parts: Tensor, axes: tuple[int, ...], prior: float) -> Tensor:
    """``parts`` (parts, images, C, ...) with each part normalized along ``axes`` of it."""
    over = tuple(axis + 1 for axis in axes)
    found = torch.var_mean(parts, over, correction=0, keepdim=True)
    share = 1.0 if math.isinf(prior) else prior / (prior + parts.shape[1])
    var, mean = (
        torch.lerp(own, kept.reshape(own.shape[1:]).to(own.dtype), share)
        for own, kept in zip(found, (layer.running_var, layer.running_mean), strict=True)
    )
    return (parts - mean) * (var + layer.eps).rsqrt()
