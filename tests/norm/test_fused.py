"""A norm and its ReLU in one pass against one after the other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from bnrepro.norm import NORMS, BatchNorm2d, ConvBatchNorm2d, FusedSequential, convert, native
from tests.conftest import needs_compiler

SHAPES = [(6, 3, 4, 5), (2, 5, 8, 8), (40, 4, 16, 16), (300, 20, 3, 3), (9, 300, 5, 5), (3, 2, 129, 127)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DIGITS = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2}


def pair(norm: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Sequential]:
    """The same norm and ReLU: one after the other, and in one pass."""
    layer = NORMS[norm](shape[1], shape[2:])
    with torch.no_grad():
        layer.weight.uniform_(-1.5, 1.5)  # negative ones turn the ReLU round
        layer.bias.uniform_(-1, 1)
    layer = layer.to(torch.float32 if dtype is torch.bfloat16 else dtype)
    return [nn.Sequential(layer, nn.ReLU()), FusedSequential(copy.deepcopy(layer), nn.ReLU())]


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, layout: str = "contiguous") -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    both = [torch.randn(shape, generator=rng, dtype=torch.float64) + offset for offset in (0.3, 0.5)]
    return [t.to(dtype).to(memory_format=LAYOUTS[layout]) for t in both]


def results(network: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = network(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *network.parameters()], dy), *network.buffers()]


@pytest.fixture
def torchs_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its script is deprecated, in which its own derivatives are written
        yield


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the forward kernels, whether it had a ReLU."""
    calls, whole = [], native.KernelPlan.forward

    def forward(plan: Any, x: Tensor, w: Any, b: Any, eps: float, relu: bool = False, running: Any = None) -> Any:
        calls.append(relu)
        return whole(plan, x, w, b, eps, relu, running)

    monkeypatch.setattr(native.KernelPlan, "forward", forward)
    return calls


@needs_compiler
@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["custombn", "convbn", "peractivationbn"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_pass_gives_outputs_gradients_and_statistics_of_two(
    shape: tuple[int, ...], norm: str, layout: str, dtype: torch.dtype, fused: list[bool]
) -> None:
    apart, together = pair(norm, shape, dtype)
    x, dy = drawn(shape, dtype, layout)
    want, got = results(apart, x, dy), results(together, x, dy)
    assert fused == [False, True]
    assert len(want) == len(got)
    for one, other in zip(want, got, strict=True):
        scale = float(one.abs().max())
        torch.testing.assert_close(other, one, rtol=DIGITS[dtype], atol=DIGITS[dtype] * scale)
        assert other.stride() == one.stride()


@needs_compiler
@pytest.mark.parametrize("norm", ["custombn", "convbn"])
def test_gradients_of_one_pass_are_differentiated(norm: str) -> None:
    shape = (4, 3, 3, 2)
    _, together = pair(norm, shape)
    x = drawn(shape)[0].requires_grad_()
    parameters = list(together.parameters())

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return together(x)

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


@pytest.mark.parametrize("norm", ["custombn", "convbn"])
@pytest.mark.parametrize(
    "transform", ["grad", "vmap", "jvp", "forward_ad", "is_grads_batched", "compile", "checkpoint"]
)
@pytest.mark.usefixtures("torchs_own_warnings")
def test_transforms_see_one_after_the_other(norm: str, transform: str) -> None:
    shape = (4, 3, 3, 2)
    x, dy = drawn(shape)
    found = []
    for network in pair(norm, shape):
        network[0].track_running_stats = False  # wrapped values cannot be written into buffers

        def loss(x: Tensor, network: nn.Module = network) -> Tensor:
            return (network(x) * dy).sum()

        if transform == "grad":
            found.append(torch.func.grad(loss)(x))
        elif transform == "vmap":
            found.append(torch.func.vmap(network)(torch.stack([x, 2 * x])))
        elif transform == "jvp":
            found.append(torch.func.jvp(loss, (x,), (dy,))[1])
        elif transform == "forward_ad":
            with torch.autograd.forward_ad.dual_level():
                found.append(torch.autograd.forward_ad.unpack_dual(network(torch.autograd.forward_ad.make_dual(x, dy))))
        elif transform == "is_grads_batched":
            leaf = x.clone().requires_grad_()
            y = network(leaf)
            found.append(torch.autograd.grad(y, leaf, torch.stack([dy, 2 * dy]), is_grads_batched=True)[0])
        elif transform == "compile":
            leaf = x.clone().requires_grad_()
            torch.compile(network, backend="aot_eager")(leaf).backward(dy)
            found.append(leaf.grad)
        else:
            leaf = x.clone().requires_grad_()
            torch.utils.checkpoint.checkpoint(network, leaf, use_reentrant=False).backward(dy)
            found.append(leaf.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mode", ["eval", "frozen", "momentum", "no statistics", "no_grad", "inference"])
def test_every_mode_gives_what_one_after_the_other_gives(mode: str) -> None:
    shape = (4, 3, 3, 2)
    x, _ = drawn(shape)
    found = []
    for network in pair("custombn", shape):
        network.train(mode != "eval")
        network[0].frozen = mode == "frozen"
        network[0].momentum = None if mode == "momentum" else 0.1
        network[0].track_running_stats = mode != "no statistics"
        with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode not in ("no_grad", "inference")):
            found.append([network(x), *network.buffers()])
    torch.testing.assert_close(*found)


HOOKS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "forward": lambda m, keep: m.register_forward_hook(lambda _m, _x, y: keep(y)),
    "pre": lambda m, keep: m.register_forward_pre_hook(lambda _m, x: keep(x[0])),
    "backward": lambda m, keep: m.register_full_backward_hook(lambda _m, _dx, dy: keep(dy[0])),
    "global": lambda m, keep: nn.modules.module.register_module_forward_hook(
        lambda module, _x, y: keep(y) if module is m else None
    ),
}


@needs_compiler
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("which", [0, 1], ids=["norm", "relu"])
def test_hooks_see_what_they_would_without(hook: str, which: int, fused: list[bool]) -> None:
    shape = (4, 3, 3, 2)
    x, dy = drawn(shape)
    found: list[list[Tensor]] = [[], []]
    for network, seen in zip(pair("custombn", shape), found, strict=True):
        handle = HOOKS[hook](network[which], lambda t, seen=seen: seen.append(t.detach().clone()))
        results(network, x, dy)
        handle.remove()
        assert len(seen) == 1
        results(network, x, dy)
        assert len(seen) == 1
    torch.testing.assert_close(*found)
    assert fused == [False, False, False, True]


@pytest.mark.usefixtures("torchs_own_warnings")
def test_tools_that_take_modules_apart_find_them() -> None:
    network = FusedSequential(nn.Conv2d(2, 3, 1), BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten())
    x = torch.randn(4, 2, 5, 5)
    want = nn.Sequential(*copy.deepcopy(network))(x)
    names = [node.target for node in fx.symbolic_trace(copy.deepcopy(network)).graph.nodes if node.op == "call_module"]
    assert names == ["0", "1", "2", "3"]
    assert list(network.state_dict()) == list(nn.Sequential(*network).state_dict())
    torch.testing.assert_close(torch.jit.trace(copy.deepcopy(network), x)(x), want)
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(network).eval())(x), copy.deepcopy(network).eval()(x))
    torch.testing.assert_close(network(x), want)
    assert isinstance(network[:2], FusedSequential)


@needs_compiler
def test_what_is_no_plain_pair_is_run_one_after_the_other(fused: list[bool]) -> None:
    class Own(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input

    shape = (4, 3, 5, 5)
    x, _ = drawn(shape, torch.float32)
    network = FusedSequential(BatchNorm2d(3), Own(), ConvBatchNorm2d(3, 5), nn.ReLU(), nn.ReLU(), BatchNorm2d(3))
    assert (network(x) < 0).any()
    assert fused == [False, True, False]


@needs_compiler
def test_the_bias_may_change_before_the_backward() -> None:
    shape = (4, 3, 3, 2)
    x, dy = drawn(shape)
    found = []
    for network in pair("custombn", shape):
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        with torch.no_grad():
            network[0].bias += 5
        y.backward(dy)
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


@needs_compiler
def test_convert_makes_pairs_of_any_network_one_pass(fused: list[bool]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
            self.plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.inner(x)).relu()

    torch.manual_seed(0)
    x, model = torch.randn(4, 3, 5, 5), Block()
    apart, together = (convert(copy.deepcopy(model), "custombn", x, fuse=fuse) for fuse in (False, True))
    assert type(apart.inner) is type(together.plain) is nn.Sequential
    assert type(together.inner) is FusedSequential
    fused.clear()
    results(apart, x, torch.ones(4, 4, 5, 5)), results(together, x, torch.ones(4, 4, 5, 5))
    assert fused == [False, False, True, False]
    torch.testing.assert_close(together(x), apart(x))
    assert list(together.state_dict()) == list(model.state_dict())
