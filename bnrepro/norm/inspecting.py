"""Which norms a network has, and what else they do than their formula: what `convert` and its like look at first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.layers import NormError, _HandDerived

_NAMES = ("num_features", "eps", "momentum", "affine", "track_running_stats")
SETTINGS = (*_NAMES, "process_group", "spatial_shape", "statistics", "parameters_per", "kernel_size", "variance")
TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_DROP_AND_ACT = {"timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct"}
"""Batch normalizations that end in their submodules ``drop`` and ``act``. By name: timm need not be installed."""


def norms_of(model: nn.Module, but: Callable[[nn.Module], bool] = lambda _: False) -> Iterator[tuple[str, nn.Module]]:
    """The norms of ``model`` with their names, each once.

    Raises:
        NormError: one of them, unless ``but`` is true of it, does more than is known here.
    """
    for name, module in all_norms(model):
        if not but(module) and (reason := _irreplaceable(module) or _owner(model, name)):
            raise NormError(f"{name or 'The model'} ({type(module).__name__}) cannot be replaced: {reason}")
        yield name, module


def all_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The norms of ``model`` with their names, each once, whatever else they do."""
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
                "normalizes by. End that block first."
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
    if is_lazy_module(module):
        return LAZY
    computed = [name for name in TENSORS[:2] if name not in module._parameters]
    computed += [name for name in TENSORS[2:] if isinstance(module, _BatchNorm) and name not in module._buffers]
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


def is_lazy_module(module: nn.Module) -> bool:
    """Whether a tensor of ``module`` has no size yet."""
    return any(is_lazy(tensor) for tensor in (*module.parameters(False), *module.buffers(False)))


def uses_statistics_itself(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """Why the norm ``name`` of ``model`` cannot do without its running statistics for a while; None if it can."""
    if is_lazy_module(module):
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


def check_called_as_modules(model: nn.Module, norms: list[nn.Module]) -> None:
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


def few(names: list[str]) -> str:
    """The first five of ``names``, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
