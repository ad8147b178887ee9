"""Operations on whole networks: replace their norms, freeze them, adapt them to another input size.

A norm that is replaced stays the object that it was, wherever the network or its user holds it: its class changes, and
with it what a norm of that class keeps. So all else stays too: hooks, names, tied parameters, gradients, mode,
attributes and submodules of a user's own. What a norm does beyond its formula is either known here (the activation and
dropout inside timm's `BatchNormAct2d`) or the network is refused, with the module's name, before anything is changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.fused import FusedSequential, has_pairs
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvBatchNorm2d, NormError, _HandDerived
from bnrepro.norm.table import NORMS, NormOptions

Shape = tuple[int, ...]


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
        The model. What could not be carried over, and which norms the example did not reach, is told in one
        `UserWarning` that names the layers.

    Raises:
        TypeError: the arguments are in another order.
        NormError: (a ValueError) no such variant; a norm is used on maps of several sizes and the variant needs one;
            a norm of this kind cannot be made for such maps; a norm does more than is known here (a forward of its
            own, a parametrization, pruning), is frozen and the variant cannot be, or shares a tensor with a layer that
            needs it in the shape that it has; the forward depends on the class or the tensors of a norm; a part is
            compiled. The model is as it was then.
    """
    if not isinstance(model, nn.Module) or not isinstance(variant, str):
        given = f"{type(model).__name__}, {type(variant).__name__}"
        raise TypeError(f"convert takes a torch.nn.Module, a norm's name and an input, in this order; got {given}")
    if variant not in NORMS:
        near = "".join(f" Did you mean {name}?" for name in get_close_matches(variant, NORMS, 1))
        raise NormError(f"There is no norm {variant!r}.{near} Available: {', '.join(NORMS)}.")
    check_open(model)
    names = {norm: name or "the model" for name, norm in _norms(model)}
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


def few(names: list[str]) -> str:
    """The first five of ``names``, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def freeze(model: nn.Module, *, parameters: bool = True) -> nn.Module:
    """Let the running statistics of ``model``'s norms normalise from now on, in training too, and never change.

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
        new[layer] = None if isinstance(layer, _HandDerived) else _ours(name, layer, "frozen")
    _check_called_as_modules(model, [layer for layer, ours in new.items() if ours is not None])
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
            ours = _ours(name, layer, "synchronized")
            on_gpu = any(t.is_cuda for t in (*layer.parameters(), *layer.buffers()))
            new[layer] = nn.SyncBatchNorm(layer.num_features) if on_gpu else ours
    _check_called_as_modules(model, list(new))
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
        NormError: (a ValueError) a norm does not take such an input, or a part of the model is compiled. The model is
            as it was then, as it is after the errors of its other layers, which are raised as they are.
    """
    check_open(model)
    resampled: Made = {}

    def fit(layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, ConvBatchNorm2d)
        if x.dim() == 4:  # of other inputs the layer says what is wrong
            _resize(layer, (x.shape[2], x.shape[3]), resampled)

    layers = [layer for layer in model.modules() if isinstance(layer, ConvBatchNorm2d)]
    undo = [_undo(layer) for layer in layers]
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


# --- which norms there are, and what else they do -----------------------------------------------------------------

_KINDS: dict[type[nn.Module], type[_HandDerived]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_NAMES = ("num_features", "eps", "momentum", "affine", "track_running_stats")
SETTINGS = (*_NAMES, "process_group", "spatial_shape", "statistics", "parameters_per", "kernel_size", "variance")
_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_DROP_AND_ACT = {"timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct"}
"""Batch normalizations that end in their submodules ``drop`` and ``act``. By name: timm need not be installed."""


def norms_of(model: nn.Module, but: Callable[[nn.Module], bool] = lambda _: False) -> Iterator[tuple[str, nn.Module]]:
    """The norms of ``model`` with their names, each once.

    Raises:
        NormError: one of them, unless ``but`` is true of it, does more than is known here.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm | ConvAdaptiveNorm2d):
            continue
        if not but(module) and (reason := _irreplaceable(module) or _owner(model, name)):
            raise NormError(f"{name or 'The model'} ({type(module).__name__}) cannot be replaced: {reason}")
        yield name, module


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm | ConvAdaptiveNorm2d)]


def check_open(model: nn.Module) -> None:
    """Refuse a network with parts whose norms cannot be seen or changed, and tensors without values.

    Raises:
        TypeError: no network.
        NormError: it has a part that `torch.jit` or `torch.export` made, a hook of a block, or fake tensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Norms are those of a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if block := next((hook.block for hook in module._forward_hooks.values() if isinstance(hook, BlockHook)), None):
            raise NormError(
                f"{name or 'The model'} ({type(module).__name__}) is within a {block} block, which sets what it "
                "normalises by. End that block first."
            )
        maker = None
        graph = getattr(module, "graph", None)
        functions = [value for value in vars(module).values() if isinstance(value, torch.jit.ScriptFunction)]
        if isinstance(module, torch.jit.ScriptModule) or any("batch_norm" in str(f.inlined_graph) for f in functions):
            maker = "torch.jit"
        elif isinstance(graph, fx.Graph) and any(isinstance(n.target, torch._ops.OpOverload) for n in graph.nodes):
            maker = "torch.export or a like tool"
        if maker:
            raise NormError(
                f"{name or 'The model'} ({type(module).__name__}) was compiled by {maker}: norms in it can be neither "
                "seen nor changed. Do this to the network that it was made of, and compile that afterwards."
            )
    tensors = [torch.empty(0), *model.parameters(), *model.buffers()]  # the first is fake within FakeTensorMode
    if any(type(tensor).__name__ == "FakeTensor" for tensor in tensors):
        raise NormError(
            "Fake tensors (FakeTensorMode) have no values to work with. Do this to real ones, outside of it."
        )


class BlockHook:
    """A forward hook that a norm has within a ``with`` block alone. It cannot be copied or saved, and so outlast it."""

    block: str

    def __reduce__(self) -> Any:
        raise NormError(
            f"A copy of a network that is made within {self.block} would be changed for good. Copy or save "
            "the network outside of the block, or save its state_dict."
        )


def _irreplaceable(module: nn.Module) -> str | None:
    """Why no layer of ours can stand in the place of ``module``; None if one can."""
    if (reason := does_more(module)) or isinstance(module, _HandDerived | ConvAdaptiveNorm2d):
        return reason
    theirs = {*_NAMES, "process_group"} if isinstance(module, nn.SyncBatchNorm) else _NAMES
    if taken := sorted(vars(module).keys() & ({*SETTINGS, "frozen"} - {*theirs})):  # which would become attributes
        return f"our layers use the name {taken[0]} for something else than its attribute. Rename the attribute."
    return None


def does_more(module: nn.Module) -> str | None:
    """Why ``module`` may compute more than its formula (and a known dropout and activation); None if it does not."""
    kind = type(module)
    base = next(
        (
            base
            for base in kind.__mro__
            if base.__module__.startswith(("torch.nn.modules.", f"{__package__}.")) or _path(base) in _DROP_AND_ACT
        ),
    )
    derived = kind.__mro__[: kind.__mro__.index(base)]
    if _is_lazy(module):
        return LAZY
    computed = [name for name in _TENSORS[:2] if name not in module._parameters]
    computed += [name for name in _TENSORS[2:] if isinstance(module, _BatchNorm) and name not in module._buffers]
    if computed:
        return (
            f"its {' and '.join(computed)} {'is' if len(computed) == 1 else 'are'} computed from other tensors "
            "(parametrization, pruning, weight norm). Make that permanent first, with torch.nn.utils.parametrize."
            "remove_parametrizations, torch.nn.utils.prune.remove or what undoes the one that you used."
        )
    changed = sorted({name for each in derived for name in vars(each)} - _HARMLESS)
    changed += replaced_methods(module)
    if changed:
        return (
            f"its class or instance defines {', '.join(changed)}, of which nothing is known here."
            " Use torch's layer there, with what else it does in a module after it."
        )
    return None


def replaced_methods(module: nn.Module) -> list[str]:
    """Names of the methods that ``module`` itself has in the place of its class's."""
    names = [name for name, value in vars(module).items() if callable(value) and hasattr(type(module), name)]
    return [name for name in names if name != "_compiled_call_impl"]  # of Module.compile: calls what there is then


LAZY = "it has no size yet (lazy). Run the model once first."


def _is_lazy(module: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in (*module.parameters(False), *module.buffers(False)))


def uses_statistics_itself(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """Why the norm ``name`` of ``model`` cannot do without its running statistics for a while; None if it can."""
    if _is_lazy(module):
        return LAZY
    if type(module).__module__.startswith("torch.ao."):
        return "it is quantized, and computes with them alone. Do this before quantization."
    return _owner(model, name)


_HARMLESS = {
    "__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__classdictcell__",
    "__parameters__", "__orig_bases__", "__constants__", "__abstractmethods__", "_abc_impl",
    "extra_repr", "__repr__", "reset_parameters",
}  # fmt: skip
"""Attributes a subclass may define without changing its forward."""


def _check_called_as_modules(model: nn.Module, norms: list[nn.Module]) -> None:
    """Refuse a network that keeps the ``forward`` of one of ``norms``: it stays that of the class that it is now."""
    known = {id(norm) for norm in norms}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            for kept in tree_leaves(value):
                if isinstance(kept, MethodType) and kept.__name__ == "forward" and id(kept.__self__) in known:
                    raise NormError(
                        f"{f'{path}.{name}'.lstrip('.')} keeps the forward of a {type(kept.__self__).__name__}, which "
                        "would go on as it is. Keep the norm instead, and call that."
                    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _owner(model: nn.Module, name: str) -> str | None:
    """Why the parent of the module ``name`` depends on this particular norm; None if it does not."""
    parent = type(model.get_submodule(name.rpartition(".")[0])) if name else nn.Module
    if (
        parent.__module__.startswith(("torch.ao.", "torch.nn.intrinsic"))
        and parent.forward is not nn.Sequential.forward
    ):
        return f"{parent.__name__}, which it is a part of, uses its tensors. Do this before quantization."
    return None


def has_drop_and_act(module: nn.Module) -> bool:
    """Whether ``module`` is one of timm's combined layers."""
    return any(_path(kind) in _DROP_AND_ACT for kind in type(module).__mro__)


def drop_and_act(module: Any, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook: the dropout and activation that timm's combined layers apply after the norm."""
    for part in ("drop", "act"):
        if (then := module._modules.get(part)) is not None:
            output = then(output)
    return output


# --- replacing -----------------------------------------------------------------------------------------------------


def _ours(name: str, layer: _BatchNorm, done: str) -> _HandDerived:
    """Our layer of the same formula as torch's ``layer``, for `become`."""
    kind = next((ours for kind, ours in _KINDS.items() if isinstance(layer, kind)), None)
    if kind is None:
        raise NormError(
            f"{name or 'The norm'} is a {type(layer).__name__}, which cannot be {done} here, since it does not say for "
            "which dimensions it is. Turn it into our layers first: bnrepro.norm.convert(model, 'custombn', an input)."
        )
    return kind(layer.num_features, layer.eps, layer.momentum, device="meta")


@torch.inference_mode(False)
def _made(name: str, old: Any, variant: str, shapes: set[Shape]) -> nn.Module:
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
        rest = {name: value for name, value in mine[own].items() if name not in _TENSORS}
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
    sources = {name: getattr(old, name, None) for name in _TENSORS}
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


def _planned(model: nn.Module, variant: str, example_input: Any) -> tuple[Any, dict[nn.Module, nn.Module]]:
    """The output on the example, and what each norm that it reaches is to become."""
    shapes: dict[nn.Module, set[Shape]] = {}

    def note(layer: nn.Module, x: Tensor) -> None:
        shapes.setdefault(layer, set()).add(tuple(x.shape[2:]))

    output = run(model, example_input, dict.fromkeys([norm for _, norm in _norms(model)], note))
    names = {norm: name or "the model" for name, norm in norms_of(model)}
    new = {norm: _made(name, norm, variant, shapes[norm]) for norm, name in names.items() if norm in shapes}
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
                    name, tensor if name not in _TENSORS else None
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
    undo = [_undo(norm) for norm in new]
    lost = {norm: become(norm, layer, made=made) for norm, layer in new.items()}

    def undo_all() -> None:
        for each in undo:
            each()

    return lost, undo_all


def _undo(module: nn.Module) -> Callable[[], None]:
    """What makes ``module`` again what it is now, after `become` or `_resize`."""
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


# --- comparing -----------------------------------------------------------------------------------------------------


def _is_the_same_in_eval(old: nn.Module, new: nn.Module) -> bool:
    """Whether ``new`` computes in eval mode what ``old`` does, once it has its statistics and parameters."""
    if not isinstance(old, _BatchNorm) or not isinstance(new, _BatchNorm) or does_more(new):
        return False
    if old.running_mean is None or old.running_var is None or new.running_mean is None:
        return False
    pairs = [(getattr(old, name), getattr(new, name)) for name in _TENSORS[:4]]
    return all(a is None or (b is not None and a.dim() <= b.dim()) for a, b in pairs)


def difference_after(model: nn.Module, example_input: Any, want: Any) -> str | None:
    """How the changed network's output differs from ``want``, in words; None if it does by rounding alone."""
    try:
        return difference(want, run(model, example_input, {}))
    except Exception as error:  # whatever a forward does that takes its norm for another
        return f"the network ends with {type(error).__name__} ({first_line(error)})"


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


def reproducible(model: nn.Module, example_input: Any, want: Any) -> bool:
    """Whether ``model`` computes ``want`` once more: no random numbers, no state that changes."""
    return difference(want, run(model, example_input, {})) is None


def same_in_float64(model: nn.Module, example_input: Any, change: Callable[[nn.Module, Any], nn.Module]) -> bool:
    """Whether ``change`` keeps the outputs of a copy of ``model`` in float64; False where there is no such copy."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said of the model itself
            wide = copied(model).double()
            x = tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, example_input)
            want = run(wide, x, {})
            return difference(want, run(change(wide, x), x, {})) is None
    except Exception:  # a network that fixes a dtype, a device without float64
        return False


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` that works in the same process groups."""
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    with torch.inference_mode(False):
        return copy.deepcopy(model, {id(group): group for group in groups if group is not None})


NOT_FINITE = "an output on the example is not finite any more"


def difference(want: Any, got: Any) -> str | None:
    """How one output of a network differs from another, in words; None if it does by rounding alone."""
    before, after = ([t for t in tree_leaves(_plain(each)) if isinstance(t, Tensor)] for each in (want, got))
    if len(before) != len(after):
        return f"the network gives {len(after)} tensors where it gave {len(before)}"
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            was, is_now = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (one, other))
            return f"an output of {was} became {is_now}"
        if not one.is_floating_point() or one.numel() == 0 or one.is_meta:
            continue
        finite = one.isfinite()
        scale = one[finite].abs().max().item() if finite.any() else 0.0
        if not other[finite].isfinite().all():
            return NOT_FINITE
        apart = (other.double() - one.double())[finite].abs().max().item() if finite.any() else 0.0
        bound = {torch.float64: 1e-9, torch.float32: 1e-4}.get(one.dtype, 5e-2) * scale
        if not apart <= bound:
            return (
                f"an output of shape {tuple(one.shape)} on the example differs by {apart:.2g}, where its largest value "
                f"is {scale:.2g}: more than rounding"
            )
    return None


def _plain(output: Any) -> Any:
    """``output`` with every kind of dict, list and tuple as torch's trees know them."""
    if isinstance(output, dict):
        return [_plain(value) for value in output.values()]
    return [_plain(value) for value in output] if isinstance(output, list | tuple) else output


def run(model: nn.Module, example_input: Any, notes: dict[nn.Module, Callable[[nn.Module, Tensor], None]]) -> Any:
    """Run ``model(example_input)`` in eval mode, calling each of ``notes`` with its module's input; restore modes.

    Raises:
        NormError: the model does not take it, for its type.
    """
    modes = {module: module.training for module in model.modules()}

    def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        notes[module](module, inputs[0] if inputs else next(iter(keywords.values())))

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in notes]
    try:
        with torch.no_grad():
            return model.eval()(example_input)
    except (TypeError, AttributeError, LookupError) as error:
        given = f"{type(example_input).__name__} ({type(error).__name__}: {first_line(error)})"
        raise NormError(
            f"The network does not run on the example, a {given}. Give what its forward takes as its one argument."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


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


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says."""
    return "".join(str(error).strip().splitlines()[:1])[:200]


@torch.inference_mode(False)
@torch.no_grad()
def _resize(layer: ConvBatchNorm2d, shape: tuple[int, int], made: Made) -> None:
    if shape == layer.spatial_shape:
        return
    layer.spatial_shape = shape
    for name, t in [*layer.named_parameters(), *layer.named_buffers()]:
        if t.dim() == 3:
            new = nn.functional.interpolate(t.detach()[None], shape, mode="bilinear", antialias=False)[0]
            new = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
            setattr(layer, name, made.setdefault((id(t), shape), (t, new))[1])
