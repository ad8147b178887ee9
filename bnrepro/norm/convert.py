"""Operations on whole networks: replace their norms, freeze them, adapt them to another input size.

A norm that is replaced stays the object that it was, wherever the network or its user holds it: its class changes, and
with it what a norm of that class keeps. So all else stays too: hooks, names, tied parameters, gradients, mode,
attributes and submodules of a user's own. What a norm does beyond its formula is either known here (the activation and
dropout inside timm's `BatchNormAct2d`) or the network is refused, with the module's name, before anything is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bnrepro.norm.comparing import NOT_FINITE, difference_after, reproducible, run, same_in_float64
from bnrepro.norm.fused import FusedSequential, has_pairs
from bnrepro.norm.inspecting import (
    TENSORS,
    all_norms,
    check_called_as_modules,
    check_open,
    does_more,
    few,
    norms_of,
)
from bnrepro.norm.layers import ConvBatchNorm2d, NormError, _HandDerived
from bnrepro.norm.replacing import Made, Shape, become, counterpart, made_of, resize_layer, undoing
from bnrepro.norm.table import NORMS


def convert(model: nn.Module, variant: str, example_input: Any, *, fuse: bool = False) -> nn.Module:
    """Turn the norms of ``model`` into those that ``NORMS[variant]`` makes, and carry their state over.

    Taken are torch's batch-normalization layers, timm's with activation and the layers of this package, wherever they
    stand; each stays the same module with another class. Kept are eps, momentum, gamma and beta (each or both may be
    None), the running statistics, ``num_batches_tracked``, device, dtype, train or eval mode, ``requires_grad``, frozen
    statistics (`freeze`), hooks, and attributes and submodules of your own, where the new layer has them in that shape;
    a parameter of the same shape is the same object still. Statistics and parameters per channel are spread over the
    locations, so that in eval mode ``convert(model, "convbn", x)`` computes what ``model`` did; statistics per location
    are pooled into channels (mean of the means; mean of the variances plus variance of the means).
    `reestimate_statistics` gives the statistics that the new layers would have had. Where all of it fits, the outputs
    on the example in eval mode are compared with those of before.

    Args:
        model: any network; changed in place.
        variant: a name in `NORMS`.
        example_input: an input of the model (its one positional argument), which shows the size of each norm's maps.
            Run in eval mode, once before and once after.
        fuse: whether each `torch.nn.Sequential` with a norm directly before a ReLU becomes a `FusedSequential`, which
            runs the two as one pass in training on the CPU. Outputs, names and hooks stay. A norm and a ReLU that a
            forward calls one after the other by itself, as torchvision's ResNets do, stay two passes.

    Returns:
        The model. What could not be carried over, and which norms the example did not reach, is reported in one
        `UserWarning` that names the layers.

    Raises:
        TypeError: the arguments are in another order.
        NormError: (a ValueError) no such variant; a norm is used on maps of several sizes and the variant needs one;
            a norm of this kind cannot be made for such maps; a norm does more than is known here (a forward of its
            own, a parametrization, pruning), is frozen and the variant cannot be, or shares a tensor with a layer that
            needs it in the shape that it has; the forward depends on the class or the tensors of a norm; a part was
            made by `torch.jit` or `torch.export`. The model is as it was then.
    """
    if not isinstance(model, nn.Module) or not isinstance(variant, str):
        given = f"{type(model).__name__}, {type(variant).__name__}"
        raise TypeError(f"convert takes a torch.nn.Module, a norm's name and an input, in this order; got {given}")
    if variant not in NORMS:
        near = "".join(f" Did you mean {name}?" for name in get_close_matches(variant, NORMS, 1))
        raise NormError(f"There is no norm {variant!r}.{near} Available: {', '.join(NORMS)}.")
    check_open(model)
    names = {norm: name or "the model" for name, norm in all_norms(model)}
    want, new = _planned(model, variant, example_input)
    compared = all(_is_the_same_in_eval(norm, layer) for norm, layer in new.items())
    lost_by, undo = _become_all(new)
    if compared and (why := difference_after(model, example_input, want)):
        undo()
        _check_was_rounding(model, variant, example_input, want, why, {norm: names[norm] for norm in new}, new)
        _become_all(new)
    for module in model.modules() if fuse else ():
        if type(module) is nn.Sequential and "forward" not in vars(module) and has_pairs(module):
            module.__class__ = FusedSequential
    losses: dict[str, list[str]] = {}  # what was lost, and the layers that lost it
    for norm, parts in lost_by.items():
        for what in parts:
            losses.setdefault(what, []).append(names[norm])
    lost = [f"{few(layers)}: {what}" for what, layers in losses.items()]
    if unreached := [name for norm, name in names.items() if norm not in new]:
        kinds = sorted({type(norm).__name__ for norm in names if norm not in new})
        lost.append(f"example_input did not reach {few(unreached)}: these stay {' and '.join(kinds)}")
    if lost:
        warnings.warn(f"convert to {variant}: {'; '.join(lost)}.", stacklevel=2)
    return model


def freeze(model: nn.Module, *, parameters: bool = True) -> nn.Module:
    """Let the running statistics of ``model``'s norms normalize from now on, in training too, and never change.

    Its norms are its batch normalizations: torch's own, which become ours, since theirs thaw at the next ``.train()``,
    and this package's. Layers that are frozen by their class (torchvision's `FrozenBatchNorm2d` and timm's) stay as
    they are, and so does instance normalization, with running statistics too. Nothing resets frozen statistics, neither
    ``reset_parameters`` nor `torch.optim.swa_utils.update_bn`.

    Args:
        model: any network; changed in place and returned.
        parameters: whether gamma and beta stop learning too.

    Raises:
        NormError: (a ValueError) a norm keeps no running statistics, or does more than is known here (see `convert`),
            or the network keeps its ``forward``, to call that. The model is as it was then.
    """
    check_open(model)
    new: dict[nn.Module, nn.Module | None] = {}
    for name, layer in norms_of(model):
        if not isinstance(layer, _BatchNorm):
            continue
        if layer.running_mean is None or layer.running_var is None:
            raise NormError(f"{name or 'The norm'} keeps no running statistics (track_running_stats=False) to freeze.")
        new[layer] = None if isinstance(layer, _HandDerived) else counterpart(name, layer, "frozen")
    check_called_as_modules(model, [layer for layer, ours in new.items() if ours is not None])
    for old, ours in new.items():
        if ours is not None:
            become(old, ours)
        assert isinstance(old, _HandDerived)
        old.frozen = True
        for parameter in (old.weight, old.bias) if parameters else ():
            if parameter is not None:
                parameter.requires_grad_(False)
    return model


def synchronize(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """Let ``model``'s norms take their statistics in training from the joint batch of ``group``'s processes.

    The result is that of one process with the joint batch. Torch's batch normalization becomes `torch.nn.SyncBatchNorm`
    on a GPU; on the CPU, where that does not run, it becomes our layer of the same formula. Norms whose statistics are
    each image's own stay as they are. A layer of your own is handed the group if it has an attribute ``process_group``.

    Do not use `torch.nn.SyncBatchNorm.convert_sync_batchnorm` on a network with norms of this package: it takes every
    subclass of torch's ``_BatchNorm``, which they are, for plain batch normalization and replaces it, without a message
    and without asking the layer. Frozen statistics thaw, and what a variant does otherwise is lost.

    Args:
        model: any network, already on its device; changed in place and returned.
        group: the processes. Each must call the network in training on its part of the joint batch, none may skip one.

    Raises:
        NormError: (a ValueError) a batch normalization does more than is known here (see `convert`) and has no
            ``process_group``, or the network keeps its ``forward``, to call that.
    """
    check_open(model)
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in norms_of(model, but=lambda layer: hasattr(layer, "process_group")):
        if isinstance(layer, _BatchNorm) and not hasattr(layer, "process_group"):
            ours = counterpart(name, layer, "synchronized")
            on_gpu = any(t.is_cuda for t in (*layer.parameters(), *layer.buffers()))
            new[layer] = nn.SyncBatchNorm(layer.num_features) if on_gpu else ours
    check_called_as_modules(model, list(new))
    for old, layer in new.items():
        become(old, layer)
    layers: list[Any] = list(model.modules())
    for each in layers:
        if hasattr(each, "process_group"):
            each.process_group = group
    return model


def resize(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Fit what ``model``'s norms keep per location to the maps that ``example_input`` gives, by interpolation.

    Statistics and parameters per location are resampled bilinearly (corners are pixel corners, as in
    `torch.nn.functional.interpolate` with ``align_corners=False``). Layers that keep nothing per location are not
    touched, nor is a layer whose maps have its size already. That the result is good is not promised: it is as good
    as the statistics of a resized image are those of the image, resized.

    Args:
        model: a network whose other layers take inputs of that size; changed in place and returned.
        example_input: an input of the new size. Run once, in eval mode.

    Parameters per location are new objects: make the optimizer afterwards.

    Raises:
        NormError: (a ValueError) a norm does not take such an input, or `torch.jit` or `torch.export` made a part of
            the model. The model is as it was then, as it is after the errors of its other layers, which are raised as
            they are.
    """
    check_open(model)
    resampled: Made = {}

    def fit(layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, ConvBatchNorm2d)
        if x.dim() == 4:  # of other inputs the layer says what is wrong
            resize_layer(layer, (x.shape[2], x.shape[3]), resampled)

    layers = [layer for layer in model.modules() if isinstance(layer, ConvBatchNorm2d)]
    undo = [undoing(layer) for layer in layers]
    try:
        run(model, example_input, dict.fromkeys(layers, fit))
        before = {id(tensor) for tensor, _ in resampled.values()}
        for name, module in model.named_modules():
            if any(id(t) in before for t in (*module.parameters(False), *module.buffers(False))):
                raise NormError(
                    f"{name or 'The model'} shares a tensor with a norm that keeps it per location, and has no use for "
                    "it in another size. Give the norm a tensor of its own first (a clone)."
                )
    except BaseException:
        for each in undo:
            each()
        raise
    return model


def _planned(model: nn.Module, variant: str, example_input: Any) -> tuple[Any, dict[nn.Module, nn.Module]]:
    """The output on the example, and what each norm that it reaches is to become."""
    shapes: dict[nn.Module, set[Shape]] = {}

    def note(layer: nn.Module, x: Tensor) -> None:
        shapes.setdefault(layer, set()).add(tuple(x.shape[2:]))

    output = run(model, example_input, dict.fromkeys([norm for _, norm in all_norms(model)], note))
    names = {norm: name or "the model" for name, norm in norms_of(model)}
    new = {norm: made_of(name, norm, variant, shapes[norm]) for norm, name in names.items() if norm in shapes}
    _check_ties(model, variant, new)
    return output, new


def _check_ties(model: nn.Module, variant: str, new: dict[nn.Module, nn.Module]) -> None:
    """Refuse to give a tensor that several modules have another shape in some of them only."""
    holders: dict[int, list[tuple[str, Shape, Shape]]] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or is_lazy(tensor):
                continue
            after = tensor
            if module in new:
                after = {**new[module]._parameters, **new[module]._buffers}.get(
                    name, tensor if name not in TENSORS else None
                )
            if after is not None:
                before = tuple(tensor.shape)
                holders.setdefault(id(tensor), []).append((f"{path}.{name}".lstrip("."), before, tuple(after.shape)))
    for held in holders.values():
        moved = [path for path, before, after in held if before != after]
        if moved and len({after for *_, after in held}) > 1:
            other = next(path for path, *_ in held if path != moved[0])
            raise NormError(
                f"{moved[0]} is the same tensor as {other}, and {variant} needs it in another shape, which would untie "
                "the two. Give the norm a tensor of its own first (a clone)."
            )


def _become_all(new: dict[nn.Module, nn.Module]) -> tuple[dict[nn.Module, list[str]], Callable[[], None]]:
    """Turn each norm into its new layer; what each lost, and what makes them again what they were."""
    made: Made = {}
    undo = [undoing(norm) for norm in new]
    lost = {norm: become(norm, layer, made=made) for norm, layer in new.items()}

    def undo_all() -> None:
        for each in undo:
            each()

    return lost, undo_all


def _is_the_same_in_eval(old: nn.Module, new: nn.Module) -> bool:
    """Whether ``new`` computes in eval mode what ``old`` does, once it has its statistics and parameters."""
    if not isinstance(old, _BatchNorm) or not isinstance(new, _BatchNorm) or does_more(new):
        return False
    if old.running_mean is None or old.running_var is None or new.running_mean is None:
        return False
    pairs = [(getattr(old, name), getattr(new, name)) for name in TENSORS[:4]]
    return all(a is None or (b is not None and a.dim() <= b.dim()) for a, b in pairs)


def _check_was_rounding(
    model: nn.Module,
    variant: str,
    x: Any,
    want: Any,
    why: str,
    names: dict[nn.Module, str],
    new: dict[nn.Module, nn.Module],
) -> None:
    """Refuse a conversion whose outputs differ, by the name of the norm that it is due to."""

    def converted(wide: nn.Module, x: Any) -> nn.Module:
        _become_all(_planned(wide, variant, x)[1])
        return wide

    if not reproducible(model, x, want) or (why != NOT_FINITE and same_in_float64(model, x, converted)):
        return
    where = "the network"
    for norm, layer in new.items():
        _, undo = _become_all({norm: layer})
        alone = difference_after(model, x, want)
        undo()
        if alone:
            where, why = names[norm], alone
            break
    raise NormError(
        f"{where} cannot become {variant}: {why}. The forward depends on the norm's class or tensors: let it call the "
        "norm as a module, and leave the rest to that."
    )
