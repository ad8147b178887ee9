"""One norm becomes another and stays the object that it was: its class changes, and with it what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.norm.inspecting import SETTINGS, TENSORS, drop_and_act, has_drop_and_act
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvBatchNorm2d, NormError, _HandDerived
from bnrepro.norm.table import NORMS, NormOptions

Shape = tuple[int, ...]

_KINDS: dict[type[nn.Module], type[_HandDerived]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}


def counterpart(name: str, layer: _BatchNorm, done: str) -> _HandDerived:
    """Our layer of the same formula as torch's ``layer``, for `become`."""
    kind = next((ours for kind, ours in _KINDS.items() if isinstance(layer, kind)), None)
    if kind is None:
        raise NormError(
            f"{name or 'The norm'} is a {type(layer).__name__}, which cannot be {done} here, since it does not say for "
            "which dimensions it is. Turn it into our layers first: bnrepro.norm.convert(model, 'custombn', an input)."
        )
    return kind(layer.num_features, layer.eps, layer.momentum, device="meta")


@torch.inference_mode(False)
def made_of(name: str, old: Any, variant: str, shapes: set[Shape]) -> nn.Module:
    """The norm of ``variant`` that ``old`` is to become."""
    if len(shapes) > 1 and variant not in ("nobn", "bn", "custombn"):
        sizes = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise NormError(f"{name} is used on maps of several sizes ({sizes}), and {variant} needs one size.")
    tensors = [t for t in (old.weight, old.bias, getattr(old, "running_mean", None)) if t is not None]
    channels = tensors[0].shape[0] if tensors else int(old.num_features)
    affine = old.weight is not None or old.bias is not None
    options = NormOptions(eps=old.eps, momentum=getattr(old, "momentum", None), affine=affine)
    try:
        with torch.device("cpu"):  # whatever the default is: tensors that are not carried over are to have values
            made = NORMS[variant](channels, min(shapes), options=options)
    except NormError as error:
        raise NormError(f"{name or 'The model'}: {error}") from error
    except LookupError as error:  # of a table by dimensions
        raise NormError(f"{name or 'The model'}: there is no {variant} for maps {min(shapes)}.") from error
    if isinstance(old, _HandDerived) and old.frozen and not isinstance(made, _HandDerived | nn.Identity):
        raise NormError(
            f"{name or 'The model'} is frozen, and {variant} would thaw it: a {type(made).__name__} has no frozen "
            "statistics. Set its attribute frozen to False first, or convert to custombn."
        )
    return made


Made = dict[tuple[int, Shape], tuple[Tensor, Tensor]]
"""What a tensor became in another shape, by its id and that shape, with the tensor itself: tied ones stay tied."""


@torch.inference_mode(False)  # in which no tensor could be trained that is made here
@torch.no_grad()
def become(old: nn.Module, new: nn.Module, *, carry: bool = True, made: Made | None = None) -> list[str]:
    """Turn ``old`` into a layer like ``new``, keeping its own state where it fits; return descriptions of what did not.

    Without ``carry`` the tensors are those of ``new``.
    """
    lost = _carry_over(old, new, {} if made is None else made) if carry else []
    if has_drop_and_act(old):
        old.register_forward_hook(drop_and_act, prepend=True)
    mine, core = vars(old), vars(nn.Module())
    for own in ("_parameters", "_buffers", "_modules"):
        rest = {name: value for name, value in mine[own].items() if name not in TENSORS}
        mine[own] = type(mine[own])({**vars(new)[own], **rest})
    for name in list(mine):  # the settings of the old class
        if name not in core and (name in SETTINGS or hasattr(type(old), name)):
            del mine[name]
    mine.update({name: value for name, value in vars(new).items() if name not in core})
    old.__class__ = type(new)
    return lost


def _carry_over(old: nn.Module, new: Any, made: Made) -> list[str]:
    """Copy the state of ``old`` into ``new`` where it fits; return descriptions of what did not."""
    lost = []
    like = next((t for t in (*old.parameters(False), *old.buffers(False)) if t.is_floating_point()), None)
    if like is not None and not any(t.is_meta for t in new.parameters()):
        new.to(like.device, like.dtype)
    both = isinstance(old, _BatchNorm) and isinstance(new, _BatchNorm)
    if both:
        new.momentum = old.momentum  # None too, which as an option means the layer's default
        new.affine, new.track_running_stats = old.affine, old.track_running_stats
    if isinstance(new, _HandDerived):
        new.frozen = new.frozen or (isinstance(old, _HandDerived) and old.frozen)
    if (group := getattr(old, "process_group", None)) is not None or isinstance(old, nn.SyncBatchNorm):
        if hasattr(new, "process_group") and dist.is_available() and dist.is_initialized():
            new.process_group = dist.group.WORLD if group is None else group
        else:
            lost.append("takes its statistics from each process alone now (see bnrepro.norm.synchronize)")
    sources = {name: getattr(old, name, None) for name in TENSORS}
    for name, source in sources.items():
        own = new._parameters if name in new._parameters else new._buffers
        if source is None:
            if own.get(name) is not None and (both or name in ("weight", "bias")):
                own[name] = None
            continue
        target = own.get(name)
        fitted = None if target is None else _fit(name, source, target.shape, sources)
        if fitted is None or target is None:
            there = "has none" if target is None else f"keeps {tuple(target.shape)}"
            lost.append(f"{name} {tuple(source.shape)} not carried over, the new layer {there}")
        elif fitted is source:
            own[name] = source
        else:
            fitted = fitted.clone(memory_format=torch.contiguous_format)
            fitted = nn.Parameter(fitted, source.requires_grad) if name in new._parameters else fitted
            _, own[name] = made.setdefault((id(source), tuple(target.shape)), (source, fitted))
    if both and sources["running_mean"] is None and getattr(new, "statistics", None) == "location":
        lost.append("keeps no running statistics, and those of a batch are taken per location now")
    return lost


def _fit(name: str, source: Tensor, shape: torch.Size, sources: dict[str, Any]) -> Tensor | None:
    """``source`` in another shape: spread over locations, or (statistics only) pooled over them."""
    if source.shape == shape:
        return source
    if source.dim() == 1 and len(shape) == 3:
        return source.view(-1, 1, 1).expand(shape)
    if source.dim() == 3 and len(shape) == 1 and name == "running_mean":
        return source.mean((1, 2))
    if source.dim() == 3 and len(shape) == 1 and name == "running_var":
        return source.mean((1, 2)) + sources["running_mean"].var((1, 2), correction=0)
    return None


def undoing(module: nn.Module) -> Callable[[], None]:
    """What makes ``module`` again what it is now, after `become` or `resize_layer`."""
    kind, mine, hooks = type(module), dict(vars(module)), dict(module._forward_hooks)
    tables = {name: dict(mine[name]) for name in ("_parameters", "_buffers")}

    def undo() -> None:
        module.__class__ = kind
        vars(module).clear()
        vars(module).update(mine)
        for table, values in ((module._forward_hooks, hooks), *((mine[name], tables[name]) for name in tables)):
            table.clear()
            table.update(values)

    return undo


@torch.inference_mode(False)
@torch.no_grad()
def resize_layer(layer: ConvBatchNorm2d, shape: tuple[int, int], made: Made) -> None:
    if shape == layer.spatial_shape:
        return
    layer.spatial_shape = shape
    for name, t in [*layer.named_parameters(), *layer.named_buffers()]:
        if t.dim() == 3:
            new = nn.functional.interpolate(t.detach()[None], shape, mode="bilinear", antialias=False)[0]
            new = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
            setattr(layer, name, made.setdefault((id(t), shape), (t, new))[1])
