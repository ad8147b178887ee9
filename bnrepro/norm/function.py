r"""The subject of the project: batch normalization as one function with a hand-derived backward.

Let :math:`S` be the axes that the statistics are pooled over, :math:`m` the number of values pooled
into each statistic, and let every mean below run over :math:`S`.

Forward, with the *biased* variance (Ioffe & Szegedy 2015, Algorithm 1)::

    mean = mean_S(x)
    var  = mean_S((x - mean)^2)          two passes: no cancellation when |mean| >> std; corrected
                                         for the rounding of the mean
    rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd
    y    = weight * xhat + bias

Backward. Write ``dy`` for dL/dy, and so on. The parameters are broadcast in the forward, so their
gradients are summed over the axes they were broadcast along, which need not be :math:`S`::

    dbias   = sum(dy)
    dweight = sum(dy * xhat)
    dxhat   = dy * weight

``x`` reaches ``xhat`` three ways: directly, through ``mean`` and through ``var``. With
``dxhat/dmean = -rstd`` (the path from mean to var vanishes, as mean_S(x - mean) = 0) and
``dvar/dx = 2 (x - mean) / m``, the chain rule gives::

    dx = rstd * (dxhat - mean_S(dxhat) - xhat * mean_S(dxhat * xhat))

The two subtracted terms are what "normalizing outside the gradient" loses, and what NumPyNet's layer
gets wrong (see `bnrepro.norm.oracle`). They make dx orthogonal, along S, to a constant and to xhat
(the latter up to eps): shifting or scaling x changes nothing.

Forward mode, from the same two paths, with ``t`` before a name for its tangent::

    ty = weight * rstd * (tx - mean_S(tx) - xhat * mean_S(tx * xhat)) + tweight * xhat + tbias

The 2 x 2 table of the project is two tuples of axes: S, and the axes the parameters are broadcast
along. Both come from the caller; nothing here knows about channels. With a process group S goes on
across its processes: every mean above becomes a sum over all of them divided by their joint m.
"""

from __future__ import annotations

import math
from typing import Any, overload

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import forward_ad

from bnrepro.norm import native

__all__ = ["batch_norm"]

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axes: tuple[int, ...],
    eps: float,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize ``x`` by its own statistics over ``axes``; see the module's docstring for the formula.

    Args:
        x: input of any shape and floating dtype. float16 and bfloat16 are computed in float32.
        weight, bias: None, or tensors that broadcast against ``x`` and have its number of dimensions. With fewer, their
            axes are those of ``x`` from the second on: (C,) or (C, H, W).
        axes: the axes that the statistics are pooled over.
        eps: added to the variance.
        group: processes whose inputs are pooled too; their shapes may differ along ``axes``. Gradients of x are those
            of the sum of all processes' losses; those of weight and bias are this process's part, which
            DistributedDataParallel averages, as it does for every parameter.

    Returns:
        y in the shape and dtype of ``x``, and the mean and the *biased* variance, with length 1 along
        ``axes``. Gradients flow through y only; the statistics are detached. y and the gradient of ``x`` are dense, in
        the memory format that torch's layers choose: see `dense`.
    """
    if torch.compiler.is_compiling():  # which fuses the formula itself, and refuses functions with a forward mode
        return BatchNormFunction.apply(dense(x), weight, bias, axes, eps, group)
    if group is None and (plan := native.plan(x, weight, bias, axes)):
        kept: list[Tensor] = []
        y = _Compiled.apply(x, weight, bias, eps, plan, False, None, kept)
        mean, var = plan.statistics(kept[0])
        return y, mean, var
    if (copy := dense(x)) is not x:
        return batch_norm(copy, weight, bias, axes, eps, group)
    if _only_operations():
        y, mean, var = BatchNormFunction.forward(x, weight, bias, axes, eps, group)
        return y, mean.detach(), var.detach()
    return _WithForwardMode.apply(x, weight, bias, axes, eps, group)


def by_kernels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: native.Running | None,
    axes: tuple[int, ...],
    eps: float,
    relu: bool,
) -> Tensor | None:
    """`batch_norm`, a ReLU of it and the update of ``running`` in one call; None where the kernels do not apply."""
    if torch.compiler.is_compiling():
        return None
    plan = native.layer_plan(x, weight, bias, running[:3] if running else None, axes)
    if plan is None:
        return None
    if torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    ):
        return _compiled(x, weight, bias, eps, plan, relu, running, None)
    return plan.forward(x, weight, bias, eps, relu, running)[0]


def _only_operations() -> bool:
    """Whether no Python function may stand in the graph: in `torch.jit.trace` and `torch.func.functionalize`."""
    if torch._C._get_tracing_state() is not None:
        return True
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() if functorch.maybe_current_level() is not None else None
    return any(level.key() == functorch.TransformType.Functionalize for level in stack or ())


def dense(x: Tensor) -> Tensor:
    """``x`` in the memory format that torch's layers write in: channels-last if its strides say so, else contiguous.

    A copy only if it is neither. With a copy's strides an output can be viewed wherever torch's can.
    """
    return x if x.is_contiguous() else _in_format(x, _says_channels_last(x))


def dense_both_ways(x: Tensor) -> Tensor:
    """`dense`, and its gradient too: for formulas whose backward is autograd's, which keeps the upstream's strides."""
    derived_otherwise = forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None
    if not x.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling() or derived_otherwise:
        return dense(x)
    return dense(x) if _only_operations() else _DenseBothWays.apply(x)


def _says_channels_last(x: Tensor) -> bool:
    """torch's rule for what strides mean (`suggest_memory_format`, which Python has not); x may have gaps."""
    sizes, strides = x.shape, x.stride()
    if len(sizes) not in (4, 5) or strides[1] == 0:
        return False
    least = 0
    for axis in (1, 4, 3, 2, 0) if len(sizes) == 5 else (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return axis == 0 and x.movedim(1, -1).is_contiguous()  # one image: its stride says nothing
        least = strides[axis] * sizes[axis]
    return True


def _in_format(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return x.contiguous()
    # By permutation: under vmap there is no memory format but one.
    moved = x.movedim(1, -1)
    return x if moved.is_contiguous() else moved.contiguous().movedim(-1, 1)


class _DenseBothWays(torch.autograd.Function):
    """``apply(x) -> x``. For plain autograd alone: forward and context in one, which apply() is much quicker with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = dense(x)
        ctx.stride, ctx.channels_last = y.stride(), not y.is_contiguous()
        return y.view_as(y) if y is x else y

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx if dx.stride() == ctx.stride else _in_format(dx, ctx.channels_last)


@overload
def against(parameter: None, x: Tensor) -> None: ...


@overload
def against(parameter: Tensor, x: Tensor) -> Tensor: ...


def against(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """``parameter`` of shape (C,) or (C, H, W), viewed so that it broadcasts against ``x``."""
    if parameter is None or parameter.dim() == x.dim():
        return parameter
    return parameter.view(native.aligned(parameter.shape, x.dim()))


def widen(x: Tensor) -> Tensor:
    """16-bit floats as float32, anything else as it is: statistics need the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pooled_mean(x: Tensor, axes: tuple[int, ...], group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean over ``axes``, and over the processes of ``group``; length 1 kept. Differentiable."""
    return _pooled_means(axes, group, x)[0]


def _pooled_means(axes: tuple[int, ...], group: dist.ProcessGroup | None, *tensors: Tensor) -> list[Tensor]:
    """`pooled_mean` of each of ``tensors``, which have one shape, with one exchange between the processes."""
    if group is None:
        return [x.mean(axes, keepdim=True) for x in tensors]
    totals = torch.stack([x.sum(axes, keepdim=True) for x in tensors])
    count = totals.new_tensor([tensors[0].numel() / max(totals[0].numel(), 1)])
    both = _SumOverProcesses.apply(torch.cat([totals.flatten(), count]), group)
    return list((both[:-1] / both[-1]).view(totals.shape))


def moments(x: Tensor, axes: tuple[int, ...], group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over ``axes``, length 1 kept there. Two passes."""
    mean = pooled_mean(x, axes, group)
    rest, var = centred_moments(x - mean, axes, group)
    return mean + rest, var


def centred_moments(centred: Tensor, axes: tuple[int, ...], group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """What is left of the mean, which was rounded before it was subtracted, and the biased variance, never negative.

    With c for what is ``centred``, the formulas are::

        rest = mean_S(c)
        var  = mean_S(c^2) - rest^2

    For a constant input of 1e7 the float32 mean can be off by several units, whose square must not count as variance.
    """
    rest, square = _pooled_means(axes, group, centred, centred.square())
    rest = rest.detach()  # a constant: 0 but for rounding
    return rest, (square - rest.square()).clamp(min=0)


def images_of_each(x: Tensor, group: dist.ProcessGroup) -> list[int]:
    """How many images each process of ``group`` has in the joint batch, in the order of their ranks."""
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=x.device)
    counts[dist.get_rank(group)] = len(x)
    dist.all_reduce(counts, group=group)
    return [int(count) for count in counts]  # tolist() cannot read a tensor of torch.func before torch 2.7


def joint_batch(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, slice]:
    """An uninitialized tensor like ``x`` with the joint batch's images, and where among them this process's are.

    For random numbers: processes whose generators are in the same state draw the joint batch's, as one process would,
    and each takes its own.
    """
    images, rank = images_of_each(x, group), dist.get_rank(group)
    nhwc = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    whole = torch.empty((sum(images), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
    start = sum(images[:rank])
    return whole, slice(start, start + len(x))


def of_all_processes(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Each process's ``x``, all of one shape, stacked in the order of their ranks. Differentiable."""
    slots = x.new_zeros((dist.get_world_size(group), *x.shape))
    slots[dist.get_rank(group)] = x
    return _SumOverProcesses.apply(slots, group)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of each process's tensor. Its adjoint is the same sum, taken of the gradients; so is its tangent."""

    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(gradient, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _SumOverProcesses.apply(tangent, ctx.group)

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[Any, ...], x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Any]:
        return _SumOverProcesses.apply(x, group), in_dims[0]


def affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``weight * xhat + bias``, either of them None."""
    if weight is not None:
        xhat = xhat * weight
    if bias is not None:
        xhat = xhat + bias
    return xhat


class BatchNormFunction(torch.autograd.Function):
    """``apply(x, weight, bias, axes, eps, group) -> (y, mean, var)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axes: tuple[int, ...],
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, wide = against(weight, x), against(bias, x), widen(x)
        mean = pooled_mean(wide, axes, group)
        centred = wide - mean
        rest, var = centred_moments(centred, axes, group)
        scale = affine(reciprocal_std(var, eps), weight, None)
        shift = affine(-rest * scale, None, bias)
        # addcmul is one pass less; its result has the memory format of its first argument, which is to be x's.
        per_channel = shift.numel() == max(shift.shape)
        y = torch.addcmul(shift, centred, scale) if per_channel else centred * scale + shift
        return y.to(x.dtype), mean + rest, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, weight, bias, axes, eps, group = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        # x and not xhat: no second tensor of x's size is kept alive, and double backward needs x. Nothing is needed of
        # bias but its shape, and as with torch's layer it may change before the backward.
        ctx.save_for_backward(x, weight, mean, var)
        ctx.axes, ctx.eps, ctx.group, ctx.bias = axes, eps, group, native.of_parameter(bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _dmean: Tensor, _dvar: Tensor) -> Gradients:
        x, weight, mean, var = ctx.saved_tensors
        return *_backward(ctx, x, dy, weight, mean, var, ctx.axes, ctx.group), None, None, None


def _backward(
    ctx: Any,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    axes: tuple[int, ...],
    group: dist.ProcessGroup | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias by tensor operations."""
    need_dx, need_dweight, need_dbias = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        # Double backward, and forward over reverse, differentiate the formula. The saved statistics are constants
        # to them; made again from x they are the functions of x that they ought to be.
        mean, var = moments(widen(x), axes, group)
    dx, dweight, dbias = _gradients(x, dy, against(weight, x), mean, var, axes, ctx.eps, group, need_dx)
    return (
        dx,
        _summed_as(native.of_parameter(weight), dweight, x) if need_dweight and weight is not None else None,
        _summed_as(ctx.bias, dbias, x) if need_dbias else None,
    )


def _summed_as(parameter: native.Parameter, gradient: Tensor, x: Tensor) -> Tensor:
    """``gradient``, whose axes are those of ``x``, summed to the shape of the parameter that was broadcast."""
    shape, dtype = parameter
    if gradient.shape != shape:
        if gradient.numel() != math.prod(shape):
            gradient = gradient.sum_to_size(native.aligned(shape, x.dim()))
        gradient = gradient.reshape(shape)
    return gradient.to(dtype)


def reciprocal_std(var: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(var + eps)``. Not `torch.rsqrt`, in whose derivative the cube of it underflows from 1e-13 down."""
    return (var + eps).sqrt().reciprocal()


def _gradients(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    axes: tuple[int, ...],
    eps: float,
    group: dist.ProcessGroup | None,
    need_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The module's formula: dx, and what summed to the shapes of weight and bias gives their gradients.

    The factors that are constant along S are taken out of the means: each pass over a tensor of x's size that is
    saved is time saved. Where weight is one of them::

        dx = rstd * weight * (dy - mean_S(dy) - (x - mean) * rstd^2 * mean_S(dy * (x - mean)))
    """
    dtype = dy.dtype
    if x.numel() == 0 and group is None:  # sums over nothing are zero, and means over nothing are not
        return dy, widen(dy), widen(dy)
    channels_last = not x.is_contiguous() and _says_channels_last(x)
    wide, dy = widen(x), widen(_in_format(dy, channels_last))
    rstd = reciprocal_std(var, eps)
    outside = weight is None or all(weight.shape[axis] == 1 for axis in axes)
    gradient = dy if weight is None or outside else dy * weight
    centred = wide - mean
    mean_gradient = pooled_mean(gradient, axes, group)
    mean_product = pooled_mean(gradient * centred, axes, group)
    if outside and group is None:
        dweight = mean_product * (rstd * (x.numel() // max(mean.numel(), 1)))
    else:
        dweight = dy * centred * rstd
    dx = None
    if need_dx:
        scale = rstd * weight if outside and weight is not None else rstd
        # The result has the memory format of the first argument, which is to be x's.
        dx = torch.addcmul(_in_format(-scale * mean_gradient, channels_last), gradient, scale)
        dx = torch.addcmul(dx, centred, -scale * (rstd * (rstd * mean_product))).to(dtype)
    return dx, dweight, dy


class _Compiled(torch.autograd.Function):
    """The same with the kernels of `native`, a ReLU and running statistics; ``results`` takes the batch's own.

    Forward and context in one, which apply() is much quicker with.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        plan: native.KernelPlan,
        relu: bool,
        running: native.Running | None,
        results: list[Tensor] | None,
    ) -> Tensor:
        y, kept = plan.forward(x, weight, bias, eps, relu, running)
        ctx.save_for_backward(x, weight, kept)
        ctx.plan, ctx.eps, ctx.relu, ctx.bias = plan, eps, relu, plan.bias
        if results is not None:
            results.append(kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        plan, relu = ctx.plan, ctx.relu
        need_dx, need_dweight, need_dbias, *_ = ctx.needs_input_grad
        differentiated = torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.compiler.is_compiling()
        if not differentiated and plan.takes(x, dy, weight, kept):
            dx, dweight, dbias = plan.backward(x, dy, weight, kept, ctx.eps, relu, need_dx, need_dweight or need_dbias)
            if plan.expanded:
                dweight = _summed_as(plan.weight, dweight, x) if need_dweight else None
                dbias = _summed_as(plan.bias, dbias, x) if need_dbias else None
        else:
            mean, var, *shift = plan.statistics(kept)
            if relu:
                scale = affine(reciprocal_std(var, ctx.eps), against(weight, x), None)
                dy = dy.masked_fill(((widen(x) - mean) * scale + shift[0]).detach() <= 0, 0)
            dx, dweight, dbias = _backward(ctx, x, dy, weight, mean, var, plan.axes, None)
        return (
            dx,
            dweight if need_dweight else None,
            dbias if need_dbias else None,
            *(None, None, None, None, None),
        )


_compiled: Any = super(torch.autograd.Function, _Compiled).apply
"""Without what torch's does for functorch, which is not active where there is a plan."""


class _WithForwardMode(BatchNormFunction):
    """The same with its forward-mode derivative."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        BatchNormFunction.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2], *output[1:])

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor | None, tweight: Tensor | None, tbias: Tensor | None, *_: None
    ) -> tuple[Tensor, None, None]:
        x, weight, mean, var = ctx.saved_tensors
        weight, tweight, tbias = against(weight, x), against(tweight, x), against(tbias, x)
        rstd = reciprocal_std(var, ctx.eps)
        xhat = (widen(x) - mean) * rstd
        ty = torch.zeros_like(xhat)
        if tx is not None:
            ty = affine(_through_statistics(widen(tx), xhat, rstd, ctx.axes, ctx.group), weight, None)
        if tweight is not None:
            ty = ty + tweight * xhat
        if tbias is not None:
            ty = ty + tbias
        return ty.to(x.dtype), None, None


def _through_statistics(
    gradient: Tensor, xhat: Tensor, rstd: Tensor, axes: tuple[int, ...], group: dist.ProcessGroup | None
) -> Tensor:
    """The Jacobian of xhat, which is symmetric, times ``gradient`` (from the right: a tangent)."""
    along_xhat = xhat * pooled_mean(gradient * xhat, axes, group)
    return rstd * (gradient - pooled_mean(gradient, axes, group) - along_xhat)
