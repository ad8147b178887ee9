"""Large constants: no variance is negative, and outputs are those of float64 on the same values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnrepro.norm import NORMS, BatchNorm1d, BatchNorm2d, ConvAdaptiveNorm2d, NormOptions, native, reestimate_statistics
from bnrepro.norm.function import BatchNormFunction, batch_norm, moments, pooled_mean

EPS = 1e-5
OURS = [name for name in NORMS if name not in ("nobn", "bn", "noise", "noisybn", "groupnorm", "layernorm", "lrn")]


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Tensor, tuple[int, ...]]:
    """Float32 values with an offset of up to 1e7 standard deviations, some channels and locations constant."""
    shape = draw(
        st.sampled_from(
            [(6, 3, 4, 4), (600, 3, 4, 4), (4096, 2, 1, 1), (2, 3, 129, 127), (150, 70, 3, 5), (9, 2, 3, 3)]
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    spread = draw(st.sampled_from((1e-3, 1.0, 1e3)))
    x = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    x[:, 0] = draw(st.sampled_from((0.0, 0.1, -1 / 3)))
    x += spread * draw(st.sampled_from((0, 1, -1))) * 10 ** draw(st.floats(0, 7))
    layout = draw(st.sampled_from((torch.contiguous_format, torch.channels_last)))
    return x.float().contiguous(memory_format=layout), draw(st.sampled_from(((0,), (0, 2, 3))))


@settings(max_examples=80, deadline=None)
@given(inputs(), st.booleans())
@example((torch.full((600, 3, 4, 4), 1.5e9), (0, 2, 3)), False)  # torch's mean is off by tens of its last digits
def test_statistics_and_outputs_are_float64s(problem: tuple[Tensor, tuple[int, ...]], kernels: bool) -> None:
    x, axes = problem
    if kernels and (plan := native.plan(x, None, None, axes)):
        y, kept = plan.forward(x, None, None, EPS)
        mean, var = plan.statistics(kept)
    else:
        y, mean, var = BatchNormFunction.forward(x, None, None, axes, EPS, None)
    wide = x.double()
    want_mean = wide.mean(axes, keepdim=True)
    want_var = (wide - want_mean).square().mean(axes, keepdim=True)
    assert (var >= 0).all()
    torch.testing.assert_close(mean.double(), want_mean, rtol=2e-7, atol=1e-6 * float((wide - want_mean).abs().max()))
    torch.testing.assert_close(var.double(), want_var, rtol=1e-2, atol=1e-3 * EPS)
    rstd = (want_var + EPS).rsqrt()
    want = (wide - want_mean) * rstd
    near = 5e-3 * (1 + want.abs())
    if not kernels:  # the formula multiplies what a float32 sum leaves of the mean, and rounds it twice
        near = near + 2 * 2**-24 * (pooled_mean(x, axes).double() - want_mean).abs() * rstd
    assert ((y.double() - want).abs() <= near).all()


LARGE = [1.0, 1e3, 12345.678, 1e5, 1e7, -1e7, 1e7 / 3]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", [(6, 4, 5, 6), (700, 2, 3, 3)], ids=str)
def test_a_constant_channel_stays_finite_in_every_layer(name: str, shape: tuple[int, ...]) -> None:
    """Its output is beta, as that of torch's layer is, up to what rounding leaves of a constant."""
    for constant in LARGE:
        layer = NORMS[name](shape[1], shape[2:], NormOptions())
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + constant
        x[:, 0] = constant
        x.requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        assert y.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        for buffer in layer.buffers():
            assert buffer.isfinite().all()
        if getattr(layer, "running_var", None) is not None:
            assert (layer.running_var >= 0).all()
        if name in ("custombn", "convbn", "peractivationbn", "ghostbn", "detached", "detachedmean", "renorm"):
            assert y[:, 0].abs().max() < 1e-2


@pytest.mark.parametrize("variance", ["pooled", "window"])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5, (3, 6), 8, 40])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_adaptive_statistics_are_float64s(variance: str, kernel_size: int | tuple[int, int], offset: float) -> None:
    """An offset of the whole map costs nothing; of one of a half of it the digits that float32 lacks are gone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((5, 3, 9, 7), generator=generator) + offset
    x[:, 1, :, 4:] -= offset
    x[:, 2] = offset
    layer = ConvAdaptiveNorm2d(3, kernel_size, variance=variance)
    upstream = torch.rand(x.shape, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        y = layer.to(dtype)(leaf)
        found.append((y, *torch.autograd.grad(y, leaf, upstream.to(dtype))))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got[:, :1].double(), want[:, :1], rtol=1e-4, atol=1e-5)
        assert got.isfinite().all()
    if offset < 1e7:
        torch.testing.assert_close(
            found[0][0][:, :2].double(), found[1][0][:, :2], rtol=1e-2, atol=1e-6 * offset + 1e-5
        )


@pytest.mark.parametrize("kernel_size", [1, 2, 3, (2, 5), 7, 30])
def test_the_windows_variance_is_that_of_the_values_in_it(kernel_size: int | tuple[int, int]) -> None:
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    x = torch.randn((4, 2, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = ConvAdaptiveNorm2d(2, kernel_size, eps=EPS, affine=False, variance="window")(x)
    for i in range(6):
        for j in range(5):
            rows = slice(max(0, i - (height - 1) // 2), i + height // 2 + 1)
            columns = slice(max(0, j - (width - 1) // 2), j + width // 2 + 1)
            var, mean = torch.var_mean(x[:, :, rows, columns], (0, 2, 3), correction=0)
            torch.testing.assert_close(y[:, :, i, j], (x[:, :, i, j] - mean) * (var + EPS).rsqrt())


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e7])
def test_pooled_statistics_of_a_population_are_never_negative(offset: float) -> None:
    layer = nn.Sequential(NORMS["custombn"](3, ()))
    x = torch.randn((64, 3), generator=torch.Generator().manual_seed(0)) + offset
    x[:, 0] = offset
    reestimate_statistics(layer, x.split(16))
    var = layer[0].running_var
    assert (var >= 0).all()
    torch.testing.assert_close(var.double(), x.double().var(0), rtol=0.05 if offset > 1e6 else 1e-3, atol=1e-6)


def test_derivatives_of_the_moments_are_those_of_the_formula() -> None:
    x = torch.randn((6, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: moments(x, (0,)), x)
    assert torch.autograd.gradgradcheck(lambda x: moments(x, (0,)), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    x = torch.randn((6, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    x[2, 1, 0, 0] = value
    y, _, var = batch_norm(x, None, None, (0, 2, 3), EPS)
    assert y[:, 1].isnan().any()
    assert var[0, 1].isnan()
    assert y[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("scale", [1e-12, 1e10, 1e14, 1e16, 1e18])
@pytest.mark.parametrize("shape", [(8, 3), (6, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("switch", ["1", "0"], ids=["kernels", "formula"])
def test_gradients_hold_at_every_scale(
    scale: float, shape: tuple[int, ...], switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if switch == "0":
        monkeypatch.setattr(native, "plan", lambda *_: None)
        monkeypatch.setattr(native, "layer_plan", lambda *_: None)
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    kinds = (BatchNorm1d, nn.BatchNorm1d) if len(shape) == 2 else (BatchNorm2d, nn.BatchNorm2d)
    gradients = []
    for kind, dtype in zip(kinds, (torch.float32, torch.float64), strict=True):
        layer, leaf = kind(3, eps=1e-30).to(dtype), (x * scale).to(dtype).requires_grad_()
        layer(leaf).backward(dy.to(dtype))
        gradients.append(leaf.grad.double() * scale)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("make", [lambda: BatchNorm2d(3), lambda: BatchNorm2d(3, track_running_stats=False).eval()])
def test_a_batch_of_nothing_moves_no_parameter(shape: tuple[int, ...], make: Callable[[], nn.Module]) -> None:
    layer, x = make(), torch.zeros(shape, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == layer.bias.grad.tolist() == [0.0, 0.0, 0.0]
    assert x.grad is not None
    assert x.grad.shape == shape
