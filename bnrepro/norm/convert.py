"""Surgery on whole networks: swap their norms, freeze them, fold them away, fit them to another size of input.

A norm that is replaced stays the object that it was, wherever the network or its user holds it: its class changes, and
with it what a norm of that class keeps. So all else stays too: hooks, names, tied parameters, gradients, mode,
attributes and submodules of a user's own. What a norm does beyond its formula is either known here (the activation and
dropout inside timm's `BatchNormAct2d`) or the network is refused, with the module's name, before anything is changed.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvBatchNorm2d, NormError, _HandDerived
from bnrepro.norm.table import NORMS, NormOptions

Shape = tuple[int, ...]


def convert(model: nn.Module, variant: str, example_input: Any) -> nn.Module:
    """Turn the norms of ``model`` into those that ``NORMS[variant]`` makes, and carry their state over.

    Taken are torch's batch-normalization layers, timm's with activation and the layers of this package, wherever they
    stand; each stays the same module with another class. Kept are eps, momentum, gamma and beta (each or both may be
    None), the running statistics, ``num_batches_tracked``, device, dtype, train or eval mode, ``requires_grad``, frozen
    statistics (`freeze`), hooks, and attributes and submodules of your own, where the new layer has them in that shape;
    a parameter of the same shape is the same object still. Statistics and parameters per channel are spread over the
    locations, so that in eval mode ``convert(model, "convbn", x)`` computes what ``model`` did; statistics per location
    are pooled into channels (mean of the means; mean of the variances plus variance of the means).
    `reestimate_statistics` gives the statistics that the new layers would have had.

    Args:
        model: any network; changed in place.
        variant: a name in `NORMS`.
        example_input: an input of the model (its one positional argument), which shows the size of each norm's maps.
            Run once, in eval mode.

    Returns:
        The model. What could not be carried over, and which norms the example did not reach, is told in one
        `UserWarning` that names the layers.

    Raises:
        NormError: (a ValueError) no such variant; a norm is used on maps of several sizes and the variant needs one;
            a norm of this kind cannot be made for such maps; a norm does more than is known here (a forward of its
            own, a parametrization, pruning), or is frozen and the variant cannot be. The model is as it was then.
    """
    if variant not in NORMS:
        raise NormError(f"There is no norm {variant!r}. There are: {', '.join(NORMS)}.")
    shapes = _shapes_of_inputs(model, example_input)
    new: dict[nn.Module, nn.Module] = {}
    lost: list[str] = []
    names = {norm: name or "the model" for name, norm in _norms(model)}
    for norm, name in names.items():
        if norm in shapes:
            new[norm] = _made(name, norm, variant, shapes[norm])
    for norm, layer in new.items():
        lost += [f"{names[norm]}: {what}" for what in _become(norm, layer)]
    if unreached := [name for norm, name in names.items() if norm not in shapes]:
        kinds = sorted({type(norm).__name__ for norm in names if norm not in shapes})
        lost.append(f"example_input did not reach {', '.join(unreached)}: these stay {' and '.join(kinds)}")
    if lost:
        warnings.warn(f"convert to {variant}: {'; '.join(lost)}.", stacklevel=2)
    return model


def freeze(model: nn.Module, *, parameters: bool = True) -> nn.Module:
    """Let the running statistics of ``model``'s norms normalise from now on, in training too, and never change.

    Torch's own layers become ours, since theirs thaw at the next ``.train()``. Layers that are frozen by their class
    (torchvision's `FrozenBatchNorm2d` and timm's) stay as they are.

    Args:
        model: any network; changed in place and returned.
        parameters: whether gamma and beta stop learning too.

    Raises:
        NormError: (a ValueError) a norm keeps no running statistics, or does more than is known here (see `convert`).
            The model is as it was then.
    """
    new: dict[nn.Module, nn.Module | None] = {}
    for name, layer in _norms(model):
        if not isinstance(layer, _BatchNorm):
            continue
        if layer.running_mean is None or layer.running_var is None:
            raise NormError(f"{name or 'The norm'} keeps no running statistics (track_running_stats=False) to freeze.")
        new[layer] = None if isinstance(layer, _HandDerived) else _ours(name, layer, "frozen")
    for old, ours in new.items():
        if ours is not None:
            _become(old, ours)
        assert isinstance(old, _HandDerived)
        old.frozen = True
        for parameter in old.parameters(recurse=False) if parameters else ():
            parameter.requires_grad_(False)
    return model


def synchronize(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """Let ``model``'s norms take their statistics in training from the joint batch of ``group``'s processes.

    The result is that of one process with the joint batch. Torch's batch normalization becomes `torch.nn.SyncBatchNorm`
    on a GPU; on the CPU, where that does not run, it becomes our layer of the same formula. Norms whose statistics are
    each image's own stay as they are. A layer of your own is handed the group if it has an attribute ``process_group``.

    Args:
        model: any network, already on its device; changed in place and returned.
        group: the processes. Each must call the network in training on its part of the joint batch, none may skip one.

    Raises:
        NormError: (a ValueError) a batch normalization does more than is known here (see `convert`) and has no
            ``process_group``.
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in _norms(model, but=lambda layer: hasattr(layer, "process_group")):
        if isinstance(layer, _BatchNorm) and not hasattr(layer, "process_group"):
            ours = _ours(name, layer, "synchronized")
            on_gpu = any(t.is_cuda for t in (*layer.parameters(), *layer.buffers()))
            new[layer] = nn.SyncBatchNorm(layer.num_features) if on_gpu else ours
    for old, layer in new.items():
        _become(old, layer)
    layers: list[Any] = list(model.modules())
    for each in layers:
        if hasattr(each, "process_group"):
            each.process_group = group
    return model


@torch.no_grad()
def fold(model: nn.Module, example_input: Any = None) -> nn.Module:
    """A copy of ``model`` for inference in which its norms cost nothing, or as little as they can.

    A norm with statistics and parameters per channel goes into the convolution or linear layer directly before it,
    where that is known to be the same: the layer is torch's own class, without hooks, parametrization or pruning, of
    the norm's dtype and device; each of the two is called once and nothing else takes the layer's output or weight. Any
    other norm becomes `LocationAffine`, one multiplication and one addition a value: one with statistics or parameters
    per location (a convolution has one weight for all locations), one that follows something else, and all of a network
    that `torch.fx` cannot trace. Outputs change by rounding alone. A norm that the forward never calls stays.

    A linear layer, or a `Conv1d`, before a norm that takes inputs of 2 and 3 dimensions is folded into only with an
    example, which shows which of the axes its channels are.

    Args:
        model: a network in eval mode.
        example_input: an input of the model (its one positional argument), or None. With it the copy's outputs are
            compared with the model's: both are run once.

    Raises:
        NormError: (a ValueError) the model is in training mode; a norm keeps no running statistics, does more than is
            known here (see `convert`), or has tensors that something else uses too; outputs on the example differ by
            more than rounding.
    """
    for name, norm in _norms(model):
        if isinstance(norm, _BatchNorm) and (norm.training or norm.running_mean is None or norm.running_var is None):
            raise NormError(
                f"{name or 'The norm'}: only running statistics can be folded. Call .eval() first, on layers that keep "
                "them."
            )
    folded = copy.deepcopy(model)
    names = {module: name for name, module in folded.named_modules()}
    norms = [norm for norm in names if isinstance(norm, _BatchNorm)]
    if not norms:
        return folded
    dimensions = {} if example_input is None else _dimensions(model, folded, example_input)
    before: dict[_BatchNorm, nn.Module] = {}
    try:
        graph = None if folded in norms else _Tracer().trace(folded, _defaults(folded))
    except Exception as error:  # whatever a network's forward does with what is no tensor
        warnings.warn(
            f"fold: torch.fx cannot trace the network ({type(error).__name__}: {str(error).splitlines()[0][:200]}), so "
            "no norm went into the convolution before it; all became LocationAffine.",
            stacklevel=2,
        )
        graph = None
    if graph is not None:
        before, called, used = _pairs(folded, graph)
        norms = [norm for norm in norms if norm in called]
        for norm in norms:
            if any(id(t) in used for t in (*norm.parameters(recurse=False), *norm.buffers(recurse=False))):
                raise NormError(
                    f"{names[norm]}: its parameters or statistics are used outside of it too, and would be gone. "
                    "Fold the parts of the network that do without."
                )
    for norm in norms:
        layer = before.get(norm)
        fused = layer is not None and _fuse(layer, norm, dimensions.get(norm))
        _become(norm, nn.Identity() if fused else LocationAffine.of(norm), carry=False)
    if example_input is not None:
        _compare(_run(model, example_input, {}), _run(folded, example_input, {}))
    return folded


def resize(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Fit what ``model``'s norms keep per location to the maps that ``example_input`` gives, by interpolation.

    Statistics and parameters per location are resampled bilinearly (corners are pixel corners, as in
    `torch.nn.functional.interpolate` with ``align_corners=False``). Layers that keep nothing per location are not
    touched, nor is a layer whose maps have its size already. That the result is good is not promised: it is as good
    as the statistics of a resized image are those of the image, resized.

    Args:
        model: a network whose other layers take inputs of that size; changed in place and returned.
        example_input: an input of the new size. Run once, in eval mode.
    """

    def fit(layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, ConvBatchNorm2d)
        _resize(layer, (x.shape[2], x.shape[3]))

    layers = [layer for layer in model.modules() if isinstance(layer, ConvBatchNorm2d)]
    _run(model, example_input, dict.fromkeys(layers, fit))
    return model


class LocationAffine(nn.Module):
    """``y = weight * x + bias``, either per channel (C,) or per channel and location (C, H, W).

    Computed in the wider of the dtypes of ``x`` and the parameters, and returned in that of ``x``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.__dict__["__module__"] = "torch.nn"  # whole in graphs of torch.fx, as the norm was

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: (N, C, ...) in and out."""
        x, after = input, input.dim() - 1
        weight = self.weight.view(list(self.weight.shape) + [1] * (after - self.weight.dim()))
        bias = self.bias.view(list(self.bias.shape) + [1] * (after - self.bias.dim()))
        return (x * weight + bias).to(x.dtype)

    @classmethod
    @torch.no_grad()
    def of(cls, norm: _BatchNorm) -> LocationAffine:
        """What ``norm`` does in eval mode. Per channel, it takes inputs of any number of dimensions."""
        scale, shift = _scale_and_shift(norm)
        assert norm.running_mean is not None
        like = norm.running_mean if norm.weight is None else norm.weight
        return cls(scale.to(like.device, like.dtype), shift.to(like.device, like.dtype))


# --- which norms there are, and what else they do -----------------------------------------------------------------

_KINDS: dict[type[nn.Module], type[_HandDerived]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_DROP_AND_ACT = {"timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct"}
"""Batch normalizations that end in their submodules ``drop`` and ``act``. By name: timm need not be installed."""


def _norms(model: nn.Module, but: Callable[[nn.Module], bool] = lambda _: False) -> Iterator[tuple[str, nn.Module]]:
    """The norms of ``model`` with their names, each once.

    Raises:
        NormError: one of them, unless ``but`` is true of it, does more than is known here.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm | ConvAdaptiveNorm2d):
            continue
        if not but(module) and (reason := _unknown(module) or _owner(model, name)):
            raise NormError(f"{name or 'The model'} ({type(module).__name__}) cannot be replaced: {reason}")
        yield name, module


def _unknown(module: nn.Module) -> str | None:
    """Why ``module`` may do more than its formula; None if it is known to do that alone, then perhaps drop and act."""
    kind = type(module)
    base = next(
        (
            base
            for base in kind.__mro__
            if base.__module__.startswith(("torch.nn.modules.", f"{__package__}.")) or _path(base) in _DROP_AND_ACT
        ),
    )
    derived = kind.__mro__[: kind.__mro__.index(base)]
    if any(is_lazy(tensor) for tensor in (*module.parameters(False), *module.buffers(False))):
        return "it has no size yet (lazy). Run the model once first."
    computed = [name for name in _TENSORS[:2] if name not in module._parameters]
    computed += [name for name in _TENSORS[2:] if isinstance(module, _BatchNorm) and name not in module._buffers]
    if computed:
        return (
            f"its {' and '.join(computed)} {'is' if len(computed) == 1 else 'are'} computed from other tensors "
            "(parametrization, pruning, weight norm). Make that permanent first, with torch.nn.utils.parametrize."
            "remove_parametrizations, torch.nn.utils.prune.remove or what undoes the one that you used."
        )
    changed = sorted({name for each in derived for name in vars(each)} - _HARMLESS)
    changed += [name for name in vars(module) if callable(vars(module)[name]) and hasattr(kind, name)]
    if changed:
        return (
            f"it has {' and '.join(f'a {name} of its own' for name in changed)}, and a layer in its place would not do "
            "that. Use torch's layer there, with what else it does in a module after it."
        )
    return None


_HARMLESS = {
    "__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__classdictcell__",
    "__parameters__", "__orig_bases__", "__constants__", "__abstractmethods__", "_abc_impl",
    "extra_repr", "__repr__", "reset_parameters",
}  # fmt: skip
"""What a class may define without doing anything else in its forward."""


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _owner(model: nn.Module, name: str) -> str | None:
    """Why the module that ``name`` belongs to needs just this norm, if it does."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
    if type(parent).__module__.startswith(("torch.ao.nn", "torch.nn.intrinsic")) and not isinstance(
        parent, nn.Sequential
    ):
        return f"{type(parent).__name__}, which it is a part of, uses its tensors. Convert before quantization."
    return None


def _drop_and_act(module: Any, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: what timm's layers with an activation do after their norm."""
    for part in ("drop", "act"):
        if (then := module._modules.get(part)) is not None:
            output = then(output)
    return output


# --- replacing -----------------------------------------------------------------------------------------------------


def _ours(name: str, layer: _BatchNorm, done: str) -> _HandDerived:
    """Our layer of the same formula as torch's ``layer``, for `_become`."""
    kind = next((ours for kind, ours in _KINDS.items() if isinstance(layer, kind)), None)
    if kind is None:
        raise NormError(
            f"{name or 'The norm'} is a {type(layer).__name__}, which cannot be {done} here, since it does not say for "
            "which dimensions it is. Turn it into our layers first: bnrepro.norm.convert(model, 'custombn', an input)."
        )
    return kind(layer.num_features, layer.eps, layer.momentum, device="meta")


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
        made = NORMS[variant](channels, min(shapes), options=options)
    except (NormError, LookupError) as error:
        raise NormError(f"{name or 'The model'}: {error}") from error
    if getattr(old, "frozen", False) and not isinstance(made, _HandDerived | nn.Identity):
        raise NormError(
            f"{name or 'The model'} is frozen, and {variant} would thaw it: a {type(made).__name__} has no frozen "
            "statistics. Set its attribute frozen to False first, or convert to custombn."
        )
    return made


@torch.no_grad()
def _become(old: nn.Module, new: nn.Module, *, carry: bool = True) -> list[str]:
    """Let ``old`` be what ``new`` is, with its own state as far as it fits; what did not fit, in words.

    Without ``carry`` the tensors are those of ``new``.
    """
    lost = _carry_over(old, new) if carry else []
    if any(_path(kind) in _DROP_AND_ACT for kind in type(old).__mro__):
        old.register_forward_hook(_drop_and_act, prepend=True)
    mine, core = vars(old), vars(nn.Module())
    for own in ("_parameters", "_buffers", "_modules"):
        rest = {name: value for name, value in mine[own].items() if name not in _TENSORS}
        mine[own] = type(mine[own])({**vars(new)[own], **rest})
    for name in list(mine):  # the settings of the old class
        if name not in core and (name in _SETTINGS or hasattr(type(old), name)):
            del mine[name]
    mine.update({name: value for name, value in vars(new).items() if name not in core})
    old.__class__ = type(new)
    return lost


_SETTINGS = {
    "num_features", "eps", "momentum", "affine", "track_running_stats",
    "process_group", "spatial_shape", "statistics", "parameters_per", "kernel_size", "variance",
}  # fmt: skip


def _carry_over(old: nn.Module, new: Any) -> list[str]:
    """Put the state of ``old`` into ``new`` as far as it fits; what did not, in words."""
    lost = []
    like = next((t for t in (*old.parameters(False), *old.buffers(False)) if t.is_floating_point()), None)
    if like is not None and not any(t.is_meta for t in new.parameters()):
        new.to(like.device, like.dtype)
    both = isinstance(old, _BatchNorm) and isinstance(new, _BatchNorm)
    if both:
        new.momentum = old.momentum  # None too, which as an option means the layer's default
        new.affine, new.track_running_stats = old.affine, old.track_running_stats
    if isinstance(new, _HandDerived):
        new.frozen = new.frozen or getattr(old, "frozen", False)
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
            fitted = fitted.contiguous()
            own[name] = nn.Parameter(fitted, source.requires_grad) if name in new._parameters else fitted
    if both and sources["running_mean"] is None and getattr(new, "statistics", None) == "location":
        lost.append("keeps no running statistics, and those of a batch are taken per location now")
    return lost


def _shapes_of_inputs(model: nn.Module, example_input: Any) -> dict[nn.Module, set[Shape]]:
    """The spatial shapes that each norm of ``model`` meets."""
    shapes: dict[nn.Module, set[Shape]] = {}

    def note(layer: nn.Module, x: Tensor) -> None:
        shapes.setdefault(layer, set()).add(tuple(x.shape[2:]))

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm | ConvAdaptiveNorm2d)]
    _run(model, example_input, dict.fromkeys(norms, note))
    return shapes


def _run(model: nn.Module, example_input: Any, notes: dict[nn.Module, Callable[[nn.Module, Tensor], None]]) -> Any:
    """``model(example_input)`` in eval mode, each of ``notes`` shown its module's input; modes are put back."""
    modes = {module: module.training for module in model.modules()}

    def hook(module: nn.Module, inputs: tuple, keywords: dict) -> None:
        notes[module](module, inputs[0] if inputs else keywords["input"])

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in notes]
    try:
        with torch.no_grad():
            return model.eval()(example_input)
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


def _resize(layer: ConvBatchNorm2d, shape: tuple[int, int]) -> None:
    if shape == layer.spatial_shape:
        return
    layer.spatial_shape = shape
    for name, t in [*layer.named_parameters(), *layer.named_buffers()]:
        if t.dim() == 3:
            resampled = nn.functional.interpolate(t.detach()[None], shape, mode="bilinear", antialias=False)[0]
            setattr(layer, name, nn.Parameter(resampled, t.requires_grad) if isinstance(t, nn.Parameter) else resampled)


# --- folding -------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """The graph of a network in which norms are whole, and every use of a tensor of its modules shows."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What the forward takes beside its first argument, as it is when nothing else is given."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _pairs(model: nn.Module, graph: fx.Graph) -> tuple[dict[_BatchNorm, nn.Module], set[nn.Module], set[int]]:
    """For each norm the module whose output it alone takes, if both are called once; the modules that are called; the
    ids of the tensors that are used outside of them.
    """
    calls = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    used = {id(_attribute(model, str(node.target))) for node in graph.nodes if node.op == "get_attr"}
    uses = list(calls.values())
    before = {}
    for node, module in calls.items():
        inputs = [*node.args, *node.kwargs.values()]
        source = inputs[0] if len(inputs) == 1 else None
        if not isinstance(module, _BatchNorm) or not isinstance(source, fx.Node) or source not in calls:
            continue
        layer = calls[source]
        alone = len(source.users) == 1 and uses.count(layer) == uses.count(module) == 1
        if alone and not any(id(tensor) in used for tensor in layer.parameters()):
            before[module] = layer
    return before, set(uses), used


def _attribute(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _dimensions(model: nn.Module, folded: nn.Module, example_input: Any) -> dict[Any, int]:
    """The number of dimensions of what each norm of ``folded`` takes, where it is always the same."""
    found: dict[nn.Module, set[int]] = {}
    norms: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    _run(model, example_input, dict.fromkeys(norms, lambda norm, x: found.setdefault(norm, set()).add(x.dim())))
    return {folded.get_submodule(norms[norm]): min(each) for norm, each in found.items() if len(each) == 1}


def _fuse(layer: nn.Module, norm: _BatchNorm, dimensions: int | None) -> bool:
    """Fold ``norm`` into ``layer``, if that is known to be the same."""
    takes = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}.get(type(layer))  # of a subclass nothing is known
    if dimensions is None:  # where the norm itself says it
        dimensions = 4 if isinstance(norm, nn.BatchNorm2d | ConvBatchNorm2d) else 5 * isinstance(norm, nn.BatchNorm3d)
    if takes is None or takes != dimensions or _hooked(layer) or _hooked(norm) or "forward" in vars(layer):
        return False
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    scale, shift = _scale_and_shift(norm)
    if weight is None or "bias" not in layer._parameters or scale.dim() > 1 or weight.shape[0] != len(scale):
        return False
    tensors = [t for t in (weight, bias, norm.running_mean, norm.weight) if t is not None]
    if len({(t.dtype, t.device) for t in tensors}) > 1 or not weight.is_floating_point():
        return False
    folded = (weight.cpu().double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.device, weight.dtype)
    moved = (shift if bias is None else shift + bias.cpu().double() * scale).to(weight.device, weight.dtype)
    if not (folded.isfinite().all() and moved.isfinite().all()):
        return False
    layer.weight, layer.bias = nn.Parameter(folded, weight.requires_grad), nn.Parameter(moved, weight.requires_grad)
    return True


def _hooked(module: nn.Module) -> bool:
    """Whether something is called before or after ``module``, which would see other values."""
    after = [hook for hook in module._forward_hooks.values() if hook is not _drop_and_act]
    return bool(after or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies by and adds in eval mode: (C,) or (C, H, W), in float64 on the CPU."""
    assert norm.running_mean is not None and norm.running_var is not None
    given = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    wide = [None if t is None else t.detach().cpu().double() for t in given]  # not every device has float64
    axes = max(t.dim() for t in wide if t is not None)
    weight, bias, mean, var = (None if t is None else t.view(*t.shape, *[1] * (axes - t.dim())) for t in wide)
    assert mean is not None and var is not None
    scale = (var + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def _compare(want: Any, got: Any) -> None:
    """Refuse a folded network whose outputs differ by more than rounding from the model's."""
    pairs = list(zip(_tensors(want), _tensors(got), strict=False))
    for before, after in pairs:
        if before.shape != after.shape or before.dtype != after.dtype:
            raise NormError(f"fold: an output of shape {tuple(before.shape)} became {tuple(after.shape)}.")
        if not before.is_floating_point() or before.numel() == 0:
            continue
        finite = before.isfinite()
        scale = before[finite].abs().max().item() if finite.any() else 0.0
        apart = (after.double() - before.double())[finite].abs().max().item() if finite.any() else 0.0
        bound = {torch.float64: 1e-9, torch.float32: 1e-4}.get(before.dtype, 5e-2) * scale
        if not apart <= bound:
            raise NormError(
                f"fold: an output of shape {tuple(before.shape)} on the example differs by {apart:.2g}, where its "
                f"largest value is {scale:.2g}: more than rounding. Its norms cannot be folded. (A network whose "
                "outputs are random cannot be compared: fold it without an example.)"
            )


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in whatever a network returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
