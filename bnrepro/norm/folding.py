"""Folding: a copy of a network for inference in which its norms cost nothing, or as little as they can."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.norm.convert import become, drop_and_act, norms_of, run
from bnrepro.norm.layers import ConvBatchNorm2d, NormError


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
    for name, norm in norms_of(model):
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
        why = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
        warnings.warn(
            f"fold: torch.fx cannot trace the network ({why}), so no norm went into the convolution before it; all "
            "became LocationAffine.",
            stacklevel=3,  # one of them is torch.no_grad's
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
        become(norm, nn.Identity() if fused else LocationAffine.of(norm), carry=False)
    if example_input is not None:
        _compare(run(model, example_input, {}), run(folded, example_input, {}))
    return folded


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


# --- how ----------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """The graph of a network in which norms are whole, and every use of a tensor of its modules shows."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Default values of the forward's arguments other than the first."""
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
    run(model, example_input, dict.fromkeys(norms, lambda norm, x: found.setdefault(norm, set()).add(x.dim())))
    return {folded.get_submodule(norms[norm]): min(each) for norm, each in found.items() if len(each) == 1}


def _fuse(layer: nn.Module, norm: _BatchNorm, dimensions: int | None) -> bool:
    """Fold ``norm`` into ``layer`` if that is provably equivalent, and return whether it was done."""
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
    after = [hook for hook in module._forward_hooks.values() if hook is not drop_and_act]
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
                f"largest value is {scale:.2g}: more than rounding. (A network whose outputs are random, or a "
                "selection that rounding can tip, such as boxes, cannot be compared: fold it without an example.)"
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
