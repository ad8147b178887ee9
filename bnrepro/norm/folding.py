"""Folding: a copy of a network for inference in which its norms cost nothing, or as little as they can."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnrepro.norm.comparing import (
    NOT_FINITE,
    copied,
    difference_after,
    first_line,
    reproducible,
    run,
    same_in_float64,
)
from bnrepro.norm.inspecting import SETTINGS, check_open, drop_and_act, norms_of, replaced_methods
from bnrepro.norm.layers import ConvBatchNorm2d, NormError
from bnrepro.norm.replacing import become


def fold(model: nn.Module, example_input: Any = None) -> nn.Module:
    """A copy of ``model`` for inference in which its norms cost nothing, or as little as they can.

    A norm with statistics and parameters per channel goes into the convolution or linear layer directly before it,
    where that is known to be the same: the layer is torch's own class, without hooks, methods of its own,
    parametrization or pruning, of the norm's dtype and device; each of the two is called once, nothing else takes the
    layer's output or weight, and no hook of a container sees what is between them. Any other norm becomes
    `LocationAffine`, one multiplication and one addition a value: one with statistics or parameters per location (a
    convolution has one weight for all locations), one that follows something else, and all of a network that `torch.fx`
    cannot trace. Outputs change by rounding alone. A norm that the forward never calls stays. What has taken a norm's
    place keeps its settings (``num_features``, ``eps``) as attributes, for forwards that read them.

    A linear layer, or a `Conv1d`, before a norm that takes inputs of 2 and 3 dimensions is folded into only with an
    example, which shows which of the axes its channels are.

    Args:
        model: a network in eval mode.
        example_input: an input of the model (its one positional argument), or None. With it the copy's outputs are
            compared with the model's: both are run once. Without it, a forward that does more with a norm than call it
            may go unnoticed.

    Raises:
        NormError: (a ValueError) the model is in training mode; a norm keeps no running statistics, does more than is
            known here (see `convert`), or has tensors that something else uses too; outputs on the example differ by
            more than rounding; a part was made by `torch.jit` or `torch.export`, or is on the meta device.
    """
    check_open(model)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise NormError("fold: a part of the network is on the meta device, without values. Load them first.")
    said: list[str] = []
    folded, want = _folded(model, example_input, said.append)
    for message in said:
        warnings.warn(message, stacklevel=2)
    why = None if example_input is None else difference_after(folded, example_input, want)
    if why is None:
        return folded
    if why != NOT_FINITE and same_in_float64(model, example_input, lambda wide, x: _folded(wide, x, said.append)[0]):
        return folded
    if not reproducible(model, example_input, want):
        why += (
            ". But the network's own outputs change from run to run, and cannot be compared: fold it without an example"
        )
    raise NormError(
        f"fold: {why}. (Where rounding tips a selection in the network, such as boxes, fold the part before it.)"
    )


def _folded(model: nn.Module, example_input: Any, say: Callable[[str], None]) -> tuple[nn.Module, Any]:
    """The folded copy, not compared, and the model's output on the example, if there is one."""
    for name, norm in norms_of(model):
        if isinstance(norm, _BatchNorm) and (norm.training or norm.running_mean is None or norm.running_var is None):
            raise NormError(
                f"{name or 'The norm'}: only running statistics can be folded. Call .eval() first, on layers that keep "
                "them."
            )
    want, dimensions = (None, {}) if example_input is None else _dimensions(model, example_input)
    folded = copied(model)
    graph = _fold(folded, dimensions, say)
    if example_input is None and graph is not None and (part := _goes_another_way(model, folded, graph)):
        raise NormError(
            f"{part}: the forward goes another way once the norms are folded, whose class or attributes it looks at. "
            "Whether its outputs stay shows an example: fold(model, example_input)."
        )
    return folded, want


@torch.inference_mode(False)  # in which no tensor could be trained that is made here
@torch.no_grad()
def _fold(folded: nn.Module, dimensions: dict[str, int], say: Callable[[str], None]) -> fx.Graph | None:
    """Fold the norms of ``folded`` in place, and return the graph of before, if it has one.

    ``dimensions`` are those of the norms' inputs, by name.
    """
    names = {module: name for name, module in folded.named_modules()}
    norms = [norm for norm in names if isinstance(norm, _BatchNorm)]
    if not norms:
        return None
    before: dict[_BatchNorm, nn.Module] = {}
    graph = None
    tracer, own = _Tracer(), set(vars(folded))
    try:
        if folded not in norms:
            if own & {"forward", "_call_impl"}:
                raise NormError("its forward is not that of its class, which alone is traced")
            with tracer.reads:
                graph = tracer.trace(folded, _defaults(folded))
            before, called = _pairs(folded, tracer)
            norms = [norm for norm in norms if norm in called]
    except Exception as error:  # whatever a network's forward does with what is no tensor
        why = ": ".join([type(error).__name__, *[first_line(error)] * bool(first_line(error))])
        say(
            f"fold: torch.fx cannot trace the network ({why}), so no norm went into the convolution before it; all "
            "became LocationAffine."
        )
    for norm in norms:
        if tracer.has_read(norm):
            raise NormError(
                f"{names[norm]}: its parameters or statistics are used outside of it too, and would be gone. "
                "Fold the parts of the network that do without."
            )
    for name in set(vars(folded)) - own:  # tensors that the tracer keeps there
        delattr(folded, name)
    for norm in norms:
        layer = before.get(norm)
        fused = layer is not None and _fuse(layer, norm, dimensions.get(names[norm]))
        settings = {name: vars(norm)[name] for name in SETTINGS if name in vars(norm) and name != "process_group"}
        become(norm, nn.Identity() if fused else LocationAffine.of(norm), carry=False)
        vars(norm).update(settings)
    return graph


class LocationAffine(nn.Module):
    """``y = weight * x + bias``, either per channel (C,) or per channel and location (C, H, W).

    Computed in the wider of the dtypes of ``x`` and the parameters, and returned in that of ``x``.

    Raises:
        NormError: (a ValueError) other channels or locations than those of the parameters, which would be broadcast.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.__dict__["__module__"] = "torch.nn"  # whole in graphs of torch.fx, as the norm was

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: (N, C, ...) in and out."""
        x, kept = input, list(self.weight.shape)  # in a form that torch.jit.script takes
        if list(x.shape[1:] if len(kept) > 1 else x.shape[1:2]) != kept:
            wanted = f"[N, {str(kept)[1:-1]}]" if len(kept) > 1 else f"[N, {kept[0]}, ...]"
            raise NormError(
                f"A norm was folded for inputs of the shape {wanted}, and got {list(x.shape)}. To change the size of "
                "its maps, use bnrepro.norm.resize before folding."
            )
        ones = [1] * (x.dim() - 1 - len(kept))
        weight, bias = self.weight.view(kept + ones), self.bias.view(kept + ones)
        return (x * weight + bias).to(x.dtype)

    @classmethod
    @torch.no_grad()
    def of(cls, norm: _BatchNorm) -> LocationAffine:
        """What ``norm`` does in eval mode. Per channel, it takes inputs of any number of dimensions."""
        scale, shift = _scale_and_shift(norm)
        assert norm.running_mean is not None
        like = norm.running_mean if norm.weight is None else norm.weight
        both = torch.broadcast_tensors(scale, shift)
        return cls(*(t.contiguous().to(like.device, like.dtype) for t in both))


# --- how ----------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """The graph of a network in which norms are whole, and every use of a tensor of its modules shows."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.reads = _Reads()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)

    def has_read(self, module: nn.Module) -> bool:
        """Whether the forward takes a tensor of ``module`` itself; of a trace that failed, until there."""
        graph = getattr(self, "graph", None)
        nodes = [] if graph is None else [node for node in graph.nodes if node.op == "get_attr"]
        read = [*self.reads.spans, *(_span(_attribute(self.root, str(node.target))) for node in nodes)]
        own = [_span(t) for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        return any(start < stop_read and start_read < stop for start, stop in own for start_read, stop_read in read)


class _Reads(TorchFunctionMode):
    """Where the tensors lie that are computed with. What is traced is no tensor, so these are taken past the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _OF_NO_VALUE:
            self.spans += [_span(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return func(*args, **(kwargs or {}))


_OF_NO_VALUE = {"__get__", "detach", "size", "dim", "numel", "stride", "is_floating_point", "__len__"}
"""Functions that give no value of a tensor, or the tensor itself."""


def _span(tensor: Any) -> tuple[int, int]:
    """Addresses of the first byte of a tensor and of what follows its last."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.numel() == 0:
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Default values of the forward's arguments other than the first."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _pairs(model: nn.Module, tracer: _Tracer) -> tuple[dict[_BatchNorm, nn.Module], set[nn.Module]]:
    """For each norm the module whose output it alone takes, if both are called once; the modules that are called."""
    calls = {node: model.get_submodule(str(node.target)) for node in tracer.graph.nodes if node.op == "call_module"}
    uses = list(calls.values())
    watched = [set(part.modules()) for part in model.modules() if _hooked(part)]
    before = {}
    for node, module in calls.items():
        inputs = [*node.args, *node.kwargs.values()]
        source = inputs[0] if len(inputs) == 1 else None
        if not isinstance(module, _BatchNorm) or not isinstance(source, fx.Node) or source not in calls:
            continue
        layer = calls[source]
        alone = len(source.users) == 1 and uses.count(layer) == uses.count(module) == 1
        # What is between the two leaves or enters a container that holds one of them, whose hooks see it.
        seen = any((layer in inside) != (module in inside) for inside in watched)
        if alone and not seen and not tracer.has_read(layer):
            before[module] = layer
    return before, set(uses)


@torch.no_grad()
def _goes_another_way(model: nn.Module, folded: nn.Module, graph: fx.Graph) -> str | None:
    """The part where the forward of the folded network leaves the ``graph`` of before; None if it does not."""
    before, after = _steps(graph), _steps_of(folded)
    if before == after:
        return None
    again = copied(model)
    if _steps_of(again) != _steps_of(again):  # the forward keeps something from one call to the next
        return None
    at = next((i for i, step in enumerate(before) if after[i : i + 1] != [step]), len(before))
    return ["The model", *(target for op, target in before[: at + 1] if op == "call_module")][-1]


def _steps(graph: fx.Graph) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in graph.nodes]


def _steps_of(model: nn.Module) -> list[tuple[str, str]]:
    """The steps of the graph of ``model``; none where it cannot be traced."""
    own = set(vars(model))
    try:
        return _steps(_Tracer().trace(model, _defaults(model)))
    except Exception:
        return []
    finally:
        for name in set(vars(model)) - own:  # tensors that the tracer keeps there
            delattr(model, name)


def _attribute(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _dimensions(model: nn.Module, example_input: Any) -> tuple[Any, dict[str, int]]:
    """The output, and the number of dimensions of what each norm takes, by its name, where it is always the same."""
    found: dict[nn.Module, set[int]] = {}
    norms: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    notes = dict.fromkeys(norms, lambda norm, x: found.setdefault(norm, set()).add(x.dim()))
    output = run(model, example_input, notes)
    return output, {norms[norm]: min(each) for norm, each in found.items() if len(each) == 1}


def _fuse(layer: nn.Module, norm: _BatchNorm, dimensions: int | None) -> bool:
    """Fold ``norm`` into ``layer`` if that is provably equivalent, and return whether it was done."""
    takes = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}.get(type(layer))  # of a subclass nothing is known
    if dimensions is None:  # where the norm itself says it
        dimensions = 4 if isinstance(norm, nn.BatchNorm2d | ConvBatchNorm2d) else 5 * isinstance(norm, nn.BatchNorm3d)
    if takes is None or takes != dimensions or _hooked(layer) or _hooked(norm) or replaced_methods(layer):
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
    after = [hook for hook in module._forward_hooks.values() if hook is not drop_and_act]
    return bool(after or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies by and adds in eval mode: (C,) or (C, H, W), in float64 on the CPU."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    given = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    wide = [None if t is None else t.detach().cpu().double() for t in given]  # not every device has float64
    axes = max(t.dim() for t in wide if t is not None)
    weight, bias, mean, var = (None if t is None else t.view(*t.shape, *[1] * (axes - t.dim())) for t in wide)
    assert mean is not None
    assert var is not None
    scale = (var + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias
