"""Our layers on the inputs that torch tests its own with, and in the places that torch's are used in."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bnrepro.norm import NORMS, BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvAdaptiveNorm2d, ConvBatchNorm2d, native
from bnrepro.norm.variants import BatchRenorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's internals warn about torch's internals
    from torch.testing._internal.common_modules import module_db

OURS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}


class Case(NamedTuple):
    """A way to make a layer, and the shape of its input."""

    kind: type[nn.Module]
    arguments: tuple
    keywords: dict
    shape: tuple[int, ...]

    def layers(self, training: bool, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[nn.Module, nn.Module]:
        """Torch's layer and ours with the same parameters and statistics, none of them at its initial value."""
        torch.manual_seed(0)
        theirs = self.kind(*self.arguments, **self.keywords, **more).to(dtype)
        for name, t in theirs.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.rand_like(t) + (0.5 if "mean" not in name else -0.5))
        ours = OURS[self.kind](*self.arguments, **self.keywords, **more).to(dtype)
        ours.load_state_dict(theirs.state_dict())
        return theirs.train(training), ours.train(training)

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Values whose mean is not 0 and whose deviation is not 1."""
        generator = torch.Generator().manual_seed(1)
        return (torch.randn(self.shape, generator=generator, dtype=torch.float64) * 2 + 3).to(dtype)


def torchs_cases() -> list[Any]:
    cases = []
    for info in module_db:
        if info.module_cls in OURS:
            inputs = info.module_inputs_func(
                info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
            )
            for each in inputs:
                made, given = each.constructor_input, each.forward_input
                case = Case(info.module_cls, made.args, made.kwargs, tuple(given.args[0].shape))
                cases.append(pytest.param(case, id=f"{info.module_cls.__name__}-{each.desc or 'default'}"))
    return cases


CASES = torchs_cases()
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


def test_torch_ships_cases_for_each_of_the_three() -> None:
    assert {case.values[0].kind for case in CASES} == set(OURS)
    assert len(CASES) >= 19  # torch 2.6 has the fewest


def everything(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers, all in float64."""
    y = layer(x.requires_grad_())
    y.backward(torch.linspace(0.1, 1.3, y.numel(), dtype=torch.float64).view(y.shape).to(x.dtype).to(y.dtype))
    assert y.dtype == x.dtype
    found = {
        "y": y,
        "dx": x.grad,
        **{name: p.grad for name, p in layer.named_parameters()},
        **dict(layer.named_buffers()),
    }
    return {name: t.detach().double() for name, t in found.items()}


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_buffers_are_torchs(case: Case, dtype: torch.dtype, training: bool) -> None:
    theirs, ours = (everything(layer, case.input(dtype)) for layer in case.layers(training, dtype))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **TOLERANCE[dtype], msg=lambda m, n=name: f"{n}: {m}")


@modes
@pytest.mark.parametrize("parameters", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_16_bits_are_rounded_float64(case: Case, dtype: torch.dtype, parameters: str, training: bool) -> None:
    """Held to float64 and not to torch: with 16-bit parameters torch's own weight gradients are up to 8% off."""
    theirs, ours = case.layers(training, dtype)
    if parameters == "float32":
        theirs, ours = theirs.float(), ours.float()
    want = everything(theirs.double(), case.input(dtype).double())
    got = everything(ours, case.input(dtype))
    for name in want:
        torch.testing.assert_close(got[name], want[name], **TOLERANCE[dtype], msg=lambda m, n=name: f"{n}: {m}")


@modes
@pytest.mark.parametrize("case", CASES)
def test_second_gradients_are_torchs(case: Case, training: bool) -> None:
    results = []
    for layer in case.layers(training):
        inputs = [case.input().requires_grad_(), *layer.parameters()]
        y = layer(inputs[0])
        weighted = (y * torch.linspace(0.1, 1.3, y.numel(), dtype=y.dtype).view(y.shape)).pow(2).sum()
        first = torch.autograd.grad(weighted, inputs, create_graph=True)
        total = sum((g * torch.linspace(-1, 2, g.numel(), dtype=g.dtype).view(g.shape)).sum() for g in first)
        second = torch.autograd.grad(total, inputs, allow_unused=True)
        results.append([torch.zeros_like(i) if g is None else g for i, g in zip(inputs, second, strict=True)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@modes
@pytest.mark.parametrize("case", CASES)
def test_forward_mode_is_torchs(case: Case, training: bool) -> None:
    tangents = []
    for layer in case.layers(training):
        with warnings.catch_warnings(), forward_ad.dual_level():
            warnings.simplefilter("ignore")  # torch's own derivative is written in its deprecated script
            x = case.input()
            direction = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)
            tangents.append(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction))).tangent)
    torch.testing.assert_close(*reversed(tangents), rtol=1e-10, atol=1e-12)


@modes
@pytest.mark.parametrize("case", CASES)
def test_functional_call_pickle_and_deepcopy_keep_the_layer(case: Case, training: bool) -> None:
    theirs, ours = case.layers(training)
    x = case.input()
    want = copy.deepcopy(theirs)(x)
    for layer in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(layer(x), want)
        assert repr(layer) == repr(ours)
    doubled = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    state = {name: b.clone() for name, b in ours.named_buffers()}
    got, expected = (torch.func.functional_call(m, {**doubled, **state}, (x,)) for m in (ours, copy.deepcopy(theirs)))
    torch.testing.assert_close(got, torch.func.functional_call(theirs, {**doubled, **copy.deepcopy(state)}, (x,)))
    assert got.shape == expected.shape


@modes
@pytest.mark.parametrize("case", CASES)
def test_meta_device_gives_shapes_without_values(case: Case, training: bool) -> None:
    layer = OURS[case.kind](*case.arguments, **case.keywords, device="meta").train(training)
    y = layer(case.input(torch.float32).to("meta"))
    assert (y.device.type, tuple(y.shape)) == ("meta", case.shape)
    assert {t.device.type for t in layer.state_dict().values()} <= {"meta"}


@pytest.mark.parametrize("kind", OURS)
def test_vmap_without_running_statistics_is_torchs(kind: type[nn.Module]) -> None:
    dimensions = {nn.BatchNorm1d: (5,), nn.BatchNorm2d: (5, 4), nn.BatchNorm3d: (5, 4, 2)}[kind]
    case = Case(kind, (3,), {"track_running_stats": False}, (6, 4, 3, *dimensions))
    x = case.input()

    def gradient(layer: nn.Module, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (layer(x) * torch.linspace(0, 1, x.numel()).view(x.shape)).sum())(x)

    theirs, ours = case.layers(True)
    torch.testing.assert_close(torch.vmap(ours)(x), torch.vmap(theirs)(x))
    torch.testing.assert_close(torch.vmap(partial(gradient, ours))(x), torch.vmap(partial(gradient, theirs))(x))


# --- values and layouts ---


@pytest.mark.parametrize("value", [1e30, 1e-30, 1e20, float("nan"), float("inf"), -float("inf")])
def test_extreme_values_give_what_torch_gives(value: float) -> None:
    case = Case(nn.BatchNorm2d, (3,), {}, (4, 3, 2, 2))
    results = []
    for layer in case.layers(True, torch.float32):
        x = case.input(torch.float32)
        x[0, 0, 0, 0] = value
        x.requires_grad_()
        y = layer(x)
        (y * torch.linspace(0.1, 1, y.numel()).view(y.shape)).sum().backward()
        results.append((y.detach(), x.grad, layer.running_mean, layer.running_var))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


def local(**more: Any) -> nn.Module:
    return ConvBatchNorm2d(3, (4, 5), **more)


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "channel": partial(BatchNorm2d, 3),
    "local": local,
    "control": partial(local, statistics="channel", parameters="location"),
    "adaptive": lambda **_: ConvAdaptiveNorm2d(3, 3),
    "window": lambda **_: ConvAdaptiveNorm2d(3, 3, variance="window"),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


@every_layer
@modes
def test_channels_last_stays_channels_last_in_output_and_gradient(
    make: Callable[..., nn.Module], training: bool
) -> None:
    plain = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for x in (plain, plain.to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        layer, x = make().train(training), x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(x)
        y.backward(torch.linspace(0, 1, y.numel()).view(y.shape).to(memory_format=torch.channels_last))
        results.append((y, x.grad))
    for contiguous, last in zip(*results, strict=True):
        torch.testing.assert_close(last, contiguous)
        assert last.is_contiguous(memory_format=torch.channels_last)


SIZES = {2: (6, 3), 3: (5, 3, 4), 4: (5, 3, 4, 2), 5: (3, 4, 2, 3, 2)}


def strided(sizes: tuple[int, ...]) -> Iterator[Tensor]:
    """Values of this shape at any order of axes in memory: dense, with gaps between and after them, and expanded."""
    generator = torch.Generator().manual_seed(0)
    for order in [*permutations(range(len(sizes)))][:: 3 if len(sizes) == 5 else 1]:  # with channels-last among them
        back = [order.index(axis) for axis in range(len(sizes))]
        wide = torch.randn([2 * sizes[axis] for axis in order], generator=generator, dtype=torch.float64).permute(back)
        corner = wide[tuple(slice(size) for size in sizes)]
        yield corner.permute(order).contiguous().permute(back)
        yield corner
        yield wide[tuple(slice(None, None, 2) for _ in sizes)]
        for axis in range(len(sizes)):
            yield corner.narrow(axis, 0, 1).expand(sizes)


def strides(t: Tensor) -> tuple[int, ...]:
    """Those of the axes that have more than one index: the others mean nothing."""
    return tuple(stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1)


def output_and_gradient(layer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, x, upstream)  # type: ignore[return-value]


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "formula"])
@modes
@pytest.mark.parametrize("kind", OURS)
def test_any_strides_give_the_strides_that_torch_gives(
    kind: type[nn.Module], training: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(native, "_plain", lambda *_: False)
    for dim in {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}[kind]:
        full = SIZES[dim]
        for sizes in {full, (full[0], 1, *full[2:]), (*full[:2], *[1] * (dim - 2))}:
            theirs, ours = Case(kind, sizes[1:2], {}, sizes).layers(training)
            ramp = torch.linspace(0.1, 1.3, math.prod(sizes), dtype=torch.float64)
            upstream = ramp.view(sizes), ramp.view(sizes[::-1]).permute(*reversed(range(dim)))
            for i, x in enumerate(strided(sizes)):
                want, got = (output_and_gradient(layer, x, upstream[i % 2]) for layer in (theirs, ours))
                for found, expected in zip(got, want, strict=True):
                    assert strides(found) == strides(expected), (sizes, x.stride())
                    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "formula"])
@modes
@pytest.mark.parametrize("name", [n for n in NORMS if type(NORMS[n](3, (4, 2))).__module__.startswith("bnrepro.norm")])
def test_every_norm_of_the_package_gives_those_strides(
    name: str, training: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's layer does of a transposed image, of a part of a channels-last one, and of an upstream like them."""
    if not kernels:
        monkeypatch.setattr(native, "_plain", lambda *_: False)
    layer = NORMS[name](3, (4, 2)).double().train(training)
    reference = nn.BatchNorm2d(3).double().train(training)
    values = torch.randn(32, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = torch.cat([values, values], 1).to(memory_format=torch.channels_last)[:, :3]
    if not training and type(layer).__name__ == "Noise":
        return  # hands on what it gets
    for x in (values, values.transpose(2, 3).contiguous().transpose(2, 3), last, last.contiguous()):
        for upstream in (values, values.transpose(0, 1).contiguous().transpose(0, 1), last[:1].expand(values.shape)):
            want, got = (output_and_gradient(each, x, upstream) for each in (reference, layer))
            assert [*map(strides, got)] == [*map(strides, want)], x.stride()


@pytest.mark.parametrize("stride", [(8, 1, 8, 4), (4, 1, 8, 4), (1, 1, 8, 4)], ids=str)
def test_the_stride_of_one_image_means_nothing(stride: tuple[int, ...]) -> None:
    """torch's own gradients of these are wrong where the upstream is contiguous (2.14)."""
    x = torch.arange(24.0, dtype=torch.float64).square().as_strided((1, 4, 3, 2), stride)
    upstream = torch.linspace(0, 1, 24, dtype=torch.float64).view(x.shape)
    for training in (True, False):
        theirs, ours = Case(nn.BatchNorm2d, (4,), {}, tuple(x.shape)).layers(training)
        got, want = output_and_gradient(ours, x, upstream), output_and_gradient(theirs, x.contiguous(), upstream)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        assert strides(got[0]) == strides(theirs(x))


@every_layer
def test_strided_input_gives_what_its_copy_gives(make: Callable[..., nn.Module]) -> None:
    wide = torch.randn(12, 6, 4, 10, generator=torch.Generator().manual_seed(0))
    x = wide[::2, ::2, :, ::2]
    assert not x.is_contiguous()
    torch.testing.assert_close(make()(x), make()(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_layer
def test_16_bit_statistics_are_taken_in_float32(make: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    x = (torch.randn(64, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 100).to(dtype)
    layer, reference = make(), make()
    y, want = layer(x), reference(x.float())
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), want, rtol=1e-2, atol=1e-2)
    for ours, theirs in zip(layer.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)  # of the same digits: bit for bit but for the order of sums


@every_layer
def test_autocast_leaves_the_layer_in_the_dtype_that_reaches_it(make: Callable[..., nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), make())
    x = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}


def test_empty_batch_counts_and_moves_nothing() -> None:
    for layer in (BatchNorm2d(3), local()):
        y = layer(torch.zeros(0, 3, 4, 5))
        assert y.shape == (0, 3, 4, 5)
        assert int(layer.num_batches_tracked) == 1
        assert float(layer.running_mean.abs().sum()) == 0
        assert bool((layer.running_var == 1).all())


def test_old_checkpoint_without_the_count_of_batches_loads_as_into_torchs() -> None:
    theirs, ours = nn.BatchNorm2d(3), BatchNorm2d(3)
    old = {k: v + 1 for k, v in theirs.state_dict().items() if k != "num_batches_tracked"}
    for layer in (theirs, ours):
        layer.load_state_dict(old)  # a plain dict has no version, as checkpoints had before torch 0.4.1
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {
        k: v.tolist() for k, v in theirs.state_dict().items()
    }


# --- compilers and exporters ---


def network(make: Callable[..., nn.Module], **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), make(**more), nn.ReLU())


@pytest.mark.quick(2)
@every_layer
@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_without_a_graph_break_and_changes_no_number(
    make: Callable[..., nn.Module], momentum: float | None
) -> None:
    torch._dynamo.reset()
    x = torch.randn(6, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eager = network(make, momentum=momentum).double()
    compiled_network = copy.deepcopy(eager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler on its own deprecated parts
        compiled = torch.compile(compiled_network, fullgraph=True, backend="aot_eager")
        for training in (True, True, False):
            for each in (compiled, eager):
                each.train(training)
                each(x).square().sum().backward()
    for ours, want in zip(compiled_network.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, want.grad)
    for ours, want in zip(compiled_network.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("name", ["renorm", "ghostbn", "noisybn", "detached", "linfbn", "dyt"])
def test_a_compiled_norm_trains_as_it_does_uncompiled(name: str) -> None:
    """Renorm at its widest bounds, where its corrections depend on the buffers, which move before the backward."""
    torch._dynamo.reset()
    made = NORMS[name](3, (4, 5)).double().train()
    if isinstance(made, BatchRenorm):
        made.start, made.r_steps, made.d_steps = -1, 0, 0
    x = 3 * torch.randn(32, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    upstream = torch.linspace(0, 1, x.numel(), dtype=x.dtype).view(x.shape)
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler on its own deprecated parts
        for compiled in (True, False):
            layer = copy.deepcopy(made)
            torch.manual_seed(0)
            call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
            results.append((*output_and_gradient(call, x, upstream), *layer.buffers()))
    torch.testing.assert_close(*results)


@every_layer
def test_exports_in_eval_mode_and_the_export_computes_the_same(make: Callable[..., nn.Module]) -> None:
    model, x = _trained(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.quick(1)
@pytest.mark.skipif(
    torch.__version__ < "2.7", reason="torch's own exporter writes booleans that protobuf no longer takes"
)
@every_layer
def test_onnx_runtime_computes_the_same(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    import onnxruntime

    model, x = _trained(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def _trained(make: Callable[..., nn.Module]) -> tuple[nn.Module, Tensor]:
    model = network(make)
    x = torch.randn(6, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(x)
    return model.eval(), x
