"""Surgery on whole networks: swap their norms, freeze them, fold them away, fit them to another size of input."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from bnrepro.norm.adaptive import ConvAdaptiveNorm2d
from bnrepro.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvBatchNorm2d, NormError, _HandDerived
from bnrepro.norm.table import NORMS, NormOptions

Shape = tuple[int, ...]


def convert(model: nn.Module, variant: str, example_input: Tensor) -> nn.Module:
    """Replace the norms of ``model`` by those that ``NORMS[variant]`` makes, and carry their state over.

    Replaced are torch's batch-normalization layers and the layers of this package, wherever they stand; one module
    that is used in several places is replaced by one module. Kept are eps, momentum, gamma and beta, the running
    statistics, ``num_batches_tracked``, device, dtype, train or eval mode and ``requires_grad``, where the new layer
    has them in that shape. Statistics and parameters per channel are spread over the locations, so that in eval mode
    ``convert(model, "convbn", x)`` computes what ``model`` did; statistics per location are pooled into channels
    (mean of the means; mean of the variances plus variance of the means). `reestimate_statistics` gives the statistics
    that the new layers would have had.

    Args:
        model: any network; changed in place.
        variant: a name in `NORMS`.
        example_input: an input of the model, which shows the size of each norm's maps. Run once, in eval mode.

    Returns:
        The model, or the new layer if ``model`` is itself a norm. What could not be carried over is told in one
        `UserWarning` that names the layers.

    Raises:
        NormError: (a ValueError) no such variant; a norm is used on maps of several sizes and the variant needs one;
            a norm of this kind cannot be made for such maps.
    """
    if variant not in NORMS:
        raise NormError(f"There is no norm {variant!r}. There are: {', '.join(NORMS)}.")
    shapes = _shapes_of_inputs(model, example_input)
    new: dict[nn.Module, nn.Module] = {}
    lost: list[str] = []
    for name, old in model.named_modules():
        if not _is_norm(old):
            continue
        if old not in shapes:
            lost.append(f"{name or 'the model'} was not reached by example_input and stays as it is")
            continue
        if len(shapes[old]) > 1 and variant not in ("nobn", "bn", "custombn"):
            sizes = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes[old]))
            raise NormError(f"{name} is used on maps of several sizes ({sizes}), and {variant} needs one size.")
        channels = int(old.num_features)
        options = NormOptions(eps=old.eps, momentum=getattr(old, "momentum", None), affine=old.affine)
        new[old] = NORMS[variant](channels, min(shapes[old]), options=options)
        lost += [f"{name or 'the model'}: {what}" for what in _carry_over(old, new[old])]
    if lost:
        warnings.warn(f"convert to {variant}: {'; '.join(lost)}.", stacklevel=2)
    return _replace(model, new)


def freeze(model: nn.Module, *, parameters: bool = True) -> nn.Module:
    """Let the running statistics of ``model``'s norms normalise from now on, in training too, and never change.

    Torch's own layers are replaced by ours, since theirs thaw at the next ``.train()``.

    Args:
        model: any network; changed in place and returned (or its replacement, if it is itself a norm).
        parameters: whether gamma and beta stop learning too.

    Raises:
        NormError: (a ValueError) a norm keeps no running statistics.
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if layer.running_mean is None:
            raise NormError(f"{name or 'The norm'} keeps no running statistics (track_running_stats=False) to freeze.")
        if not isinstance(layer, _HandDerived):
            ours = _ours(layer)
            if ours is None:
                raise NormError(f"{name or 'The norm'} is a {type(layer).__name__}, which cannot be frozen here.")
            new[layer] = layer = ours
        layer.frozen = True
        if parameters:
            layer.requires_grad_(False)
    return _replace(model, new)


def synchronize(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """Let ``model``'s norms take their statistics in training from the joint batch of ``group``'s processes.

    The result is that of one process with the joint batch. Torch's batch normalization becomes `torch.nn.SyncBatchNorm`
    on a GPU; on the CPU, where that does not run, it becomes our layer of the same formula. Norms whose statistics are
    each image's own stay as they are. A layer of your own is handed the group if it has an attribute ``process_group``.

    Args:
        model: any network, already on its device; changed in place and returned (or its replacement, if it is itself
            a norm).
        group: the processes. Each must call the network in training on its part of the joint batch, none may skip one.
    """
    new: dict[nn.Module, nn.Module] = {}
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if hasattr(layer, "process_group"):
            layer.process_group = group
        elif isinstance(layer, _BatchNorm) and (ours := _ours(layer)):
            on_gpu = any(t.is_cuda for t in (*layer.parameters(), *layer.buffers()))
            ours.process_group = group
            new[layer] = nn.SyncBatchNorm.convert_sync_batchnorm(layer, group) if on_gpu else ours
    return _replace(model, new)


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference in which its norms cost nothing, or as little as they can.

    A norm with statistics and parameters per channel goes into the convolution or linear layer directly before it.
    One with either of them per location cannot: a convolution has one weight for all locations. It becomes
    `LocationAffine`, one multiplication and one addition a value, and so does a norm per channel that follows something
    else. Outputs change by rounding alone.

    Args:
        model: a network in eval mode that `torch.fx` can trace (no control flow that depends on values).

    Raises:
        NormError: (a ValueError) the model is in training mode, or a norm keeps no running statistics.
    """
    folded = copy.deepcopy(model)
    norms = {name: m for name, m in folded.named_modules() if isinstance(m, _BatchNorm)}
    for name, norm in norms.items():
        if norm.training or norm.running_mean is None:
            raise NormError(
                f"{name}: only running statistics can be folded. Call .eval() first, on layers that keep them."
            )
    before = _layers_before(folded)
    new: dict[nn.Module, nn.Module] = {}
    for norm in norms.values():
        layer = before.get(norm)
        assert norm.running_mean is not None and norm.running_var is not None
        local = norm.running_mean.dim() > 1 or (norm.weight is not None and norm.weight.dim() > 1)
        fuse = None if local else _fuse(layer)
        if layer is None or fuse is None:
            new[norm] = LocationAffine.of(norm)
            continue
        weight, bias = fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        new[norm] = nn.Identity()
    return _replace(folded, new)


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

    def fit(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, ConvBatchNorm2d)
        _resize(layer, (inputs[0].shape[2], inputs[0].shape[3]))

    layers = [layer for layer in model.modules() if isinstance(layer, ConvBatchNorm2d)]
    _run(model, example_input, dict.fromkeys(layers, fit))
    return model


class LocationAffine(nn.Module):
    """``y = weight * x + bias``, either per channel (C, 1, 1) or per channel and location (C, H, W)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, ...) in and out."""
        return x * self.weight.to(x.dtype) + self.bias.to(x.dtype)

    @classmethod
    @torch.no_grad()
    def of(cls, norm: _BatchNorm) -> LocationAffine:
        """What ``norm`` does in eval mode."""
        assert norm.running_mean is not None and norm.running_var is not None
        dimensions = 2 if isinstance(norm, nn.BatchNorm2d | ConvBatchNorm2d) else 3 * isinstance(norm, nn.BatchNorm3d)

        def spread(t: Tensor) -> Tensor:
            return t.view(*t.shape, *[1] * (1 + dimensions - t.dim()))

        scale = spread((norm.running_var + norm.eps).rsqrt())
        if norm.weight is not None:
            scale = scale * spread(norm.weight)
        shift = -spread(norm.running_mean) * scale
        if norm.bias is not None:
            shift = shift + spread(norm.bias)
        return cls(scale.clone(), shift.clone())


# --- how ----------------------------------------------------------------------------------------------------------


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | ConvAdaptiveNorm2d)


def _ours(layer: _BatchNorm) -> _HandDerived | None:
    """Our layer of the same formula as torch's ``layer``, with its state; None if it is of another kind."""
    kinds = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
    ours = next((ours for kind, ours in kinds.items() if isinstance(layer, kind)), None)
    if ours is None:
        return None
    made = ours(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    _carry_over(layer, made)
    return made


def _shapes_of_inputs(model: nn.Module, example_input: Tensor) -> dict[nn.Module, set[Shape]]:
    """The spatial shapes that each norm of ``model`` meets."""
    shapes: dict[nn.Module, set[Shape]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes.setdefault(layer, set()).add(tuple(inputs[0].shape[2:]))

    _run(model, example_input, {module: note for module in model.modules() if _is_norm(module)})
    return shapes


def _run(
    model: nn.Module, example_input: Tensor, hooks: dict[nn.Module, Callable[[nn.Module, tuple[Tensor, ...]], None]]
) -> None:
    """``model(example_input)`` in eval mode with ``hooks`` before their modules; modes are put back."""
    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        with torch.no_grad():
            model.eval()(example_input)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """``model`` with each key of ``new`` replaced by its value wherever it stands."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
    return new.get(model, model)


@torch.no_grad()
def _carry_over(old: nn.Module, new: nn.Module) -> list[str]:
    """Copy the state of ``old`` into ``new`` as far as it fits; what did not, in words."""
    lost = []
    if isinstance(old, _BatchNorm) and isinstance(new, _BatchNorm):
        new.momentum = old.momentum  # None too, which as an option means the layer's default
    like = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    if like is not None:
        new.to(like.device, like.dtype)
    new.train(old.training)
    sources, targets = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (old, new))
    for name, source in sources.items():
        target = targets.get(name)
        fitted = None if target is None else _fit(name, source, target.shape, sources)
        if fitted is None or target is None:
            there = "has none" if target is None else f"keeps {tuple(target.shape)}"
            lost.append(f"{name} {tuple(source.shape)} not carried over, the new layer {there}")
            continue
        target.copy_(fitted)
        target.requires_grad_(source.requires_grad)
    return lost


def _fit(name: str, source: Tensor, shape: torch.Size, sources: dict[str, Tensor]) -> Tensor | None:
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


def _layers_before(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """For each norm, the module whose output it alone takes, if both are used once."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return _is_norm(module) or super().is_leaf_module(module, name)

    graph = Tracer().trace(model)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = {node: model.get_submodule(str(node.target)) for node in calls}
    uses = list(modules.values())
    found = {}
    for node, module in modules.items():
        source = node.args[0] if node.args else None
        if _is_norm(module) and isinstance(source, fx.Node) and source in modules and len(source.users) == 1:
            layer = modules[source]
            if uses.count(layer) == uses.count(module) == 1:
                found[module] = layer
    return found


def _fuse(layer: nn.Module | None) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Torch's formula for folding a norm into ``layer``, if there is one."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return fuse_conv_bn_weights
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_weights
    return None
