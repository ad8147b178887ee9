"""The kernels point at memory, so they are for plain tensors; in every other context the result is torch's too.

Each case is run through torch's layer and through ours, which must agree; a kernel that ran on what it cannot see would
crash, or differ.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bnrepro.norm import BatchNorm2d, ConvBatchNorm2d, native
from bnrepro.norm.function import batch_norm
from tests.conftest import needs_compiler

SHAPE = (6, 4, 5, 3)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def drawn(seed: int, layout: str = "contiguous", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * 2 + 3
    return x.to(dtype).to(memory_format=LAYOUTS[layout])


def layers(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    """Torch's layer and ours, with gamma and beta that are neither 1 nor 0."""
    made = [nn.BatchNorm2d(4, dtype=dtype), BatchNorm2d(4, dtype=dtype)]
    for layer in made:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 1.5, 4))
            layer.bias.copy_(torch.linspace(-1, 1, 4))
    return made


def pairs(function: Callable[[nn.Module], Any], dtype: torch.dtype = torch.float64) -> None:
    """``function`` gives the same of torch's layer and of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about torch's
        theirs, ours = (function(layer) for layer in layers(dtype))
    digits = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(ours, theirs, rtol=digits, atol=digits)


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


# --- saved tensors that come back otherwise ---


def strided(t: Tensor) -> Tensor:
    """Equal values with gaps between them, at an offset."""
    room = torch.full((2 * t.numel() + 1,), torch.nan, dtype=t.dtype)
    out = room[1::2].view(t.shape)
    return out.copy_(t)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": torch.clone,
    "contiguous": lambda t: t.clone(memory_format=torch.contiguous_format),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last) if t.dim() == 4 else t.clone(),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": strided,
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "float32": torch.Tensor.float,
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "parameter": lambda t: nn.Parameter(t.clone(), requires_grad=False),
    "negative": lambda t: torch._neg_view(-t),
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "inference": lambda t: torch.inference_mode()(torch.clone)(t),
    "expanded": lambda t: t.mean().expand(t.shape),
}
LOSSY = {"float32", "float16", "bfloat16", "mkldnn", "expanded"}
OPENED = {"sparse": lambda t: t.to_dense(), "mkldnn": lambda t: t.to_dense()}


@layouts
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("only_x", [True, False], ids=["x", "all"])
def test_the_backward_takes_saved_tensors_as_they_come_back(change: str, only_x: bool, layout: str) -> None:
    """The reference is the formula on the same changed tensors: they may have lost digits, or hold something else.

    Statistics are saved in other tensors there, and must not: then they differ.
    """

    def unpack(t: Tensor) -> Tensor:
        changed = CHANGES[change](t) if t.shape == SHAPE or not (only_x or change in LOSSY) else t
        return OPENED.get(change, lambda t: t)(changed)

    found = []
    for kernels in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not kernels:
                patch.setattr(native, "_plain", lambda *_: False)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
                found.append(gradients(layers()[1], drawn(0, layout), drawn(1, layout)))
    torch.testing.assert_close(*found, rtol=1e-4 if change in ("float32", "mkldnn") else 1e-9, atol=1e-9)


@layouts
@pytest.mark.parametrize("kind", [BatchNorm2d, ConvBatchNorm2d])
def test_saving_on_the_cpu_changes_nothing(kind: type[nn.Module], layout: str) -> None:
    layer = kind(4, *[(5, 3)] * (kind is ConvBatchNorm2d)).double()
    want = gradients(layer, drawn(0, layout), drawn(1, layout))
    for pinned in (False, True):  # True: copies that are contiguous, pinned where there is a GPU
        with torch.autograd.graph.save_on_cpu(pin_memory=pinned):
            found = gradients(layer, drawn(0, layout), drawn(1, layout))
        torch.testing.assert_close(found, want)


UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "other layout": lambda t: t.contiguous(),
    "strided": strided,
    "expanded": lambda t: t[:1, :1].expand(SHAPE),
    "one number": lambda t: t.mean().expand(SHAPE),
    "negative": lambda t: torch._neg_view(t),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "zero": lambda t: torch._efficientzerotensor(SHAPE, dtype=t.dtype),
    "parameter": lambda t: nn.Parameter(t.clone()),
}


@layouts
@pytest.mark.parametrize("change", UPSTREAM)
def test_any_upstream_gradient_is_taken(change: str, layout: str) -> None:
    pairs(lambda layer: gradients(layer, drawn(0, layout), UPSTREAM[change](drawn(1, "channels_last"))))


def test_a_bias_may_change_before_the_backward_and_a_weight_may_not() -> None:
    for layer in layers():
        y = layer(drawn(0).requires_grad_())
        with torch.no_grad():
            layer.bias.add_(1)
        y.sum().backward()
        assert layer.bias.grad is not None
        y = layer(drawn(0).requires_grad_())
        with torch.no_grad():
            layer.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


# --- contexts ---


def by_jacobian(layer: nn.Module) -> Any:
    x = drawn(0)[:2, :2, :2, :2].contiguous()
    small = type(layer)(2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    return [
        jacobian(small, x),
        jacobian(small, x, vectorize=True),
        jacobian(small, x, vectorize=True, strategy="forward-mode"),
        torch.autograd.functional.hessian(lambda x: small(x).pow(3).sum(), x, vectorize=True),
    ]


def by_batched_gradients(layer: nn.Module) -> Any:
    x = drawn(0).requires_grad_()
    return torch.autograd.grad(layer(x), x, torch.stack([drawn(1), drawn(2)]), is_grads_batched=True)


def by_vmap_over_backward(layer: nn.Module) -> Any:
    x = drawn(0).requires_grad_()
    y = layer(x)
    each = torch.stack([drawn(1), drawn(2)])
    return torch.func.vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(each)


def by_a_dual_upstream(layer: nn.Module) -> Any:
    x = drawn(0).requires_grad_()
    y = layer(x)
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, [x, layer.weight], forward_ad.make_dual(drawn(1), drawn(2)))
        return [tuple(forward_ad.unpack_dual(t)) for t in found]


def by_modes(layer: nn.Module) -> Any:
    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    found = []
    for mode in (Dispatch(), Function()):
        with mode:
            found.append(gradients(layer, drawn(0), drawn(1)))
    return found


def by_a_subclass(layer: nn.Module) -> Any:
    class Named(Tensor):
        pass

    found = layer(drawn(0).as_subclass(Named)).as_subclass(Tensor).detach()
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Named))
    return [found, layer(drawn(0)).as_subclass(Tensor).detach()]


def by_inference(layer: nn.Module) -> Any:
    with torch.inference_mode():
        inside = layer(drawn(0))
    with torch.no_grad():
        return [inside.clone(), layer(inside).clone()]


def by_a_negative_view(layer: nn.Module) -> Any:
    layer.weight = nn.Parameter(torch._neg_view(layer.weight.detach()))
    return gradients(layer, torch._neg_view(drawn(0)), drawn(1))


def by_checkpointing(layer: nn.Module) -> Any:
    from torch.utils.checkpoint import checkpoint

    x = drawn(0).requires_grad_()
    return torch.autograd.grad(checkpoint(layer, x, use_reentrant=False), x, drawn(1))


def by_func(layer: nn.Module) -> Any:
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    buffers = dict(layer.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y = torch.func.functional_call(layer, (parameters, {k: v.clone() for k, v in buffers.items()}), (x,))
        return y.pow(3).mean()

    x, t = drawn(0), drawn(1)
    zero = {name: torch.ones_like(p) for name, p in parameters.items()}
    return [
        torch.func.grad(loss, argnums=(0, 1))(parameters, x),
        torch.func.jvp(loss, (parameters, x), (zero, t)),
        torch.func.jvp(torch.func.grad(loss, argnums=1), (parameters, x), (zero, t)),
    ]


CONTEXTS: list[Callable[[nn.Module], Any]] = [
    by_jacobian,
    by_batched_gradients,
    by_vmap_over_backward,
    by_a_dual_upstream,
    by_modes,
    by_a_subclass,
    by_inference,
    by_a_negative_view,
    by_checkpointing,
    by_func,
]


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda f: f.__name__.removeprefix("by_"))
def test_in_every_context_the_result_is_torchs(context: Callable[[nn.Module], Any]) -> None:
    def run(layer: nn.Module) -> Any:
        layer.track_running_stats, layer.running_mean, layer.running_var, layer.num_batches_tracked = [None] * 4
        layer.track_running_stats = False
        return context(layer)

    pairs(run)


def test_forward_over_reverse_has_the_tangent_of_the_statistics() -> None:
    """Against central differences of the gradient, without create_graph, where torch's layer has no such derivative."""
    layer = layers()[1]
    x, t = drawn(0), drawn(2)

    def gradient(x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.requires_grad_()
        return torch.autograd.grad(layer(x).pow(3).sum(), x)[0]

    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(gradient(forward_ad.make_dual(x.clone().requires_grad_(), t))).tangent
    step = 1e-5
    want = (gradient((x + step * t).detach()) - gradient((x - step * t).detach())) / (2 * step)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


TRACERS = ["make_fx", "pre_dispatch", "functionalize", "fake", "jit"]


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_traced_graph_computes_with_its_own_input(tracer: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    layer = layers()[1]
    x, other = drawn(0), drawn(5)

    def function(x: Tensor) -> Tensor:
        return batch_norm(x, layer.weight, layer.bias, (0, 2, 3), 1e-5)[0]

    def step(x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        y = function(x)
        return y.detach(), *torch.autograd.grad(y.pow(3).sum(), [x])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if tracer == "jit":
            layer.requires_grad_(False)
            traced = torch.jit.trace(function, x)
            found, want = traced(other), step(other)[0]
        else:
            traced = {
                "make_fx": lambda: make_fx(step)(x),
                "pre_dispatch": lambda: make_fx(step, pre_dispatch=True)(x),
                "functionalize": lambda: make_fx(torch.func.functionalize(function))(x),
                "fake": lambda: make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
            }[tracer]()
            found, want = traced(other), function(other) if tracer == "functionalize" else step(other)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_a_traced_layer_learns_and_is_saved(tmp_path) -> None:
    layer = layers(torch.float32)[1]
    x = drawn(0, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, x, check_trace=False)
        traced.save(tmp_path / "layer.pt")
        again = torch.jit.load(tmp_path / "layer.pt")
    for t in (x, drawn(1, dtype=torch.float32)):
        want = gradients(layers(torch.float32)[0], t, drawn(3, dtype=torch.float32))
        torch.testing.assert_close(gradients(again, t, drawn(3, dtype=torch.float32)), want, rtol=1e-4, atol=1e-4)


# --- defaults ---

SCRIPT = """
import sys
import torch
from torch import nn
from bnrepro.norm import BatchNorm2d, ConvBatchNorm2d, native

x = torch.randn(6, 4, 5, 3)
last = x.to(memory_format=torch.channels_last)
layers = [BatchNorm2d(4), nn.BatchNorm2d(4), ConvBatchNorm2d(4, (5, 3))]
dy = torch.randn(6, 4, 5, 3)

def run():
    out = []
    for layer in layers:
        for t in (x, last):
            t = t.detach().requires_grad_()
            y = layer(t)
            y.backward(dy)
            assert y.device.type == "cpu" and y.dtype is torch.float32 and t.grad.device.type == "cpu"
            out += [y.detach(), t.grad]
    torch.testing.assert_close(out[:4], out[4:8], rtol=1e-4, atol=1e-5)

for change in sys.argv[1:]:
    native._plan.cache_clear()
    exec(change)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    assert native.arithmetic() == "kernels", change
"""
DEFAULTS = [
    "torch.set_default_device('meta'); run()",
    "torch.set_default_device('cpu'); run()",
    "torch.set_default_dtype(torch.float64); run()",
    "torch.set_default_dtype(torch.float16); run()",
    "with torch.device('meta'): run()",
    "with torch.device('meta'), torch.device('cpu'): run()",
    "with torch.inference_mode(): native.plan(x, None, None, (0, 2, 3)); native.plan(last, None, None, (0,))\nrun()",
    "torch.use_deterministic_algorithms(True); run()",
    "torch.set_num_threads(1000); run()",
]


@pytest.mark.slow
@needs_compiler
def test_no_default_of_torchs_reaches_the_kernels() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT, *DEFAULTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_plain_tensors_take_the_kernels_and_others_do_not() -> None:
    x, axes = drawn(0), (0, 2, 3)
    weight = torch.ones(4, dtype=torch.float64)

    class Named(Tensor):
        pass

    assert native.plan(x, weight, nn.Parameter(weight), axes)
    assert native.plan(nn.Parameter(x), weight, None, axes)
    with torch.no_grad(), torch.device("meta"):
        assert native.plan(x, weight, weight, axes)
    with torch.inference_mode():
        assert native.plan(drawn(0), weight, weight, axes)
    for other in (
        torch._neg_view(x),
        torch._efficientzerotensor(SHAPE, dtype=x.dtype),
        x.as_subclass(Named),
        x.to_sparse(),
        x.float().to_mkldnn(),
        x.to("meta"),
        x.cfloat(),
        x.int(),
        x[:0],
        x[..., ::2],
    ):
        assert native.plan(other, None, None, axes) is None
        assert native.plan(x, other, None, axes) is None
        assert native.plan(x, None, other, axes) is None
