"""The compiled kernels against the formula that they compile."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnrepro.norm import BatchNorm2d, ConvBatchNorm2d, native
from bnrepro.norm.function import batch_norm
from bnrepro.runs.record import Run
from bnrepro.training import train
from tests.conftest import needs_compiler

EPS = 1e-5
pytestmark = needs_compiler


def results(
    x: Tensor, dy: Tensor, weight: Tensor | None, bias: Tensor | None, axes: tuple[int, ...]
) -> list[Tensor | None]:
    """Outputs and gradients of one forward and backward."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y, mean, var = batch_norm(leaves[0], leaves[1], leaves[2], axes, EPS)
    y.backward(dy)
    return [y.detach(), mean, var, *(None if t is None else t.grad for t in leaves)]


def by_formula(*arguments: Tensor | tuple[int, ...] | None) -> list[Tensor | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "plan", lambda *_: None)
        return results(*arguments)  # type: ignore[arg-type]


def check(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float64,
    layout: torch.memory_format = torch.contiguous_format,
    weighted: bool = True,
    biased: bool = True,
    shift: float = 3.0,
) -> None:
    """The kernels are used, and agree with the formula in float64 to the rounding of ``dtype``."""
    rng = torch.Generator().manual_seed(len(shape) + shape[0])
    # Neither constant nor of mean zero: such an upstream gradient would hide a wrong mean over S.
    x, dy = (torch.randn(shape, generator=rng, dtype=torch.float64) + offset for offset in (shift, 1.5))
    per_statistic = [1 if axis in axes else length for axis, length in enumerate(shape)]
    per_channel = [length if axis == 1 else 1 for axis, length in enumerate(shape)]
    weight = torch.rand(per_channel, generator=rng, dtype=torch.float64) + 0.5 if weighted else None
    bias = torch.randn(per_statistic, generator=rng, dtype=torch.float64) if biased else None
    inputs = [None if t is None else t.to(dtype) for t in (x, dy, weight, bias)]
    inputs[:2] = [t.to(memory_format=layout) for t in inputs[:2]]  # type: ignore[union-attr]
    assert native.plan(inputs[0], inputs[2], inputs[3], axes)  # type: ignore[arg-type]
    fast = results(*inputs, axes)  # type: ignore[arg-type]
    exact = by_formula(*(None if t is None else t.double() for t in inputs), axes)
    digit = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 8e-3}[dtype]
    for ours, want in zip(fast, exact, strict=True):
        if ours is None:
            assert want is None
            continue
        assert ours.shape == want.shape  # type: ignore[union-attr]
        scale = float(want.abs().max()) + 1e-30  # type: ignore[union-attr]
        torch.testing.assert_close(ours.double(), want, rtol=digit, atol=digit * scale)
    assert fast[0].is_contiguous(memory_format=layout)  # type: ignore[union-attr]
    assert fast[3].is_contiguous(memory_format=layout)  # type: ignore[union-attr]


CHANNEL, LOCAL = (0, 2, 3), (0,)
# On either side of each length at which the kernels change how they cut the work.
SHAPES = [
    (2, 1, 1, 1),
    (3, 5, 2, 3),
    (7, 3, 90, 91),  # a row of almost a block
    (2, 2, 129, 127),  # two blocks a row
    (9, 2, 128, 128),  # a channel too long to be kept
    (600, 3, 4, 4),  # a length that has its own loop
    (70, 3, 8, 8),
    (130, 3, 32, 32),
    (16, 700, 2, 2),  # more than one tile of columns
    (2050, 20, 1, 1),  # chunks of rows
    (150, 70, 3, 5),
    (3000, 2, 2, 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axes", [CHANNEL, LOCAL], ids=["channel", "local"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_kernels_agree_with_the_formula(shape, axes, layout):
    check(shape, axes, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axes", [CHANNEL, LOCAL], ids=["channel", "local"])
@pytest.mark.parametrize("shape", [(9, 2, 128, 128), (150, 70, 3, 5)], ids=str)
def test_kernels_agree_with_the_formula_in_fewer_digits(shape, axes, dtype):
    check(shape, axes, dtype=dtype)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_kernels_do_without_weight_or_bias(weighted, biased):
    check((6, 4, 5, 3), CHANNEL, weighted=weighted, biased=biased)
    check((6, 4, 5, 3), LOCAL, weighted=weighted, biased=biased)


@pytest.mark.parametrize(("shape", "axes"), [((40, 9), (0,)), ((6, 9, 11), (0, 2)), ((3, 4, 5, 6, 7), (0, 2, 3, 4))])
def test_kernels_take_other_numbers_of_dimensions(shape, axes):
    check(shape, axes)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 70),
    c=st.integers(1, 40),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    local=st.booleans(),
    last=st.booleans(),
)
def test_kernels_agree_with_the_formula_on_any_shape(n, c, h, w, local, last):
    layout = torch.channels_last if last else torch.contiguous_format
    check((n, c, h, w), LOCAL if local else CHANNEL, layout=layout)


@pytest.mark.parametrize("axes", [CHANNEL, LOCAL], ids=["channel", "local"])
@pytest.mark.parametrize("shape", [(64, 8, 28, 28), (2050, 20, 1, 1)], ids=str)
def test_a_large_mean_costs_no_digits(shape, axes):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng) + 3000
    plan = native.plan(x, None, None, axes)
    assert plan
    mean, var = plan.statistics(plan.forward(x, None, None, EPS)[1])
    torch.testing.assert_close(mean.double(), x.double().mean(axes, keepdim=True), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var(axes, correction=0, keepdim=True), rtol=1e-5, atol=0)


@pytest.mark.parametrize("axes", [CHANNEL, LOCAL], ids=["channel", "local"])
@pytest.mark.parametrize("shape", [(33, 7, 15, 17), (3000, 20, 1, 1), (64, 300, 4, 4)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape, axes):
    rng = torch.Generator().manual_seed(0)
    x, dy = torch.randn(shape, generator=rng), torch.rand(shape, generator=rng)
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            runs.append(results(x, dy, None, None, axes)[:4])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_an_upstream_gradient_in_another_layout_is_taken():
    x = torch.randn(6, 4, 5, 3, dtype=torch.float64)
    dy = torch.rand(6, 4, 5, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    for mine, want in zip(results(x, dy, None, None, CHANNEL), by_formula(x, dy, None, None, CHANNEL), strict=True):
        assert mine is want or torch.allclose(mine, want)
    assert results(x, torch.ones(()).double().expand(6, 4, 5, 3), None, None, CHANNEL)[3].abs().max() < 1e-12


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(6, 4, 5, 8)[..., ::2],
        torch.randn(6, 4, 5, 8, dtype=torch.float16),
        torch.empty(0, 4, 5, 8),
        torch.empty(6, 4, 5, 8, device="meta"),
    ],
    ids=["strided", "float16", "empty", "meta"],
)
def test_what_the_kernels_do_not_take_is_left_to_the_formula(x):
    assert native.plan(x, None, None, CHANNEL) is None


def test_other_axes_and_wider_parameters_are_left_to_the_formula():
    x = torch.randn(6, 4, 5, 8)
    assert native.plan(x, None, None, (1, 2, 3)) is None
    assert native.plan(x, torch.ones(1, 4, 5, 8), None, CHANNEL) is None


def test_layers_use_the_kernels(monkeypatch):
    calls = []
    for name in ("forward", "backward"):
        whole = getattr(native.KernelPlan, name)
        monkeypatch.setattr(native.KernelPlan, name, lambda *a, name=name, whole=whole: calls.append(name) or whole(*a))
    for layer in (BatchNorm2d(4), ConvBatchNorm2d(4, (5, 3))):
        layer(torch.randn(6, 4, 5, 3, requires_grad=True)).square().sum().backward()
    assert calls == ["forward", "backward"] * 2


SCRIPT = """
import torch
from bnrepro.norm import BatchNorm2d
layer = BatchNorm2d(4)
for _ in range(3):
    layer(torch.randn(6, 4, 5, 3, requires_grad=True)).sum().backward()
print(layer.num_batches_tracked.item())
"""


def run_script(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", SCRIPT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_without_a_compiler_layers_work_and_say_so_once(tmp_path):
    done = run_script(CXX=str(tmp_path / "none"), XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "3"
    assert done.stderr.count("kernels cannot be compiled") == 1
    assert "Install a C++ compiler" in done.stderr


def test_the_kernels_can_be_switched_off(tmp_path):
    done = run_script(BNREPRO_NATIVE="0", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "3"
    assert not done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("allowed", ["1", "0"])
def test_a_runs_summary_says_which_arithmetic_made_it(allowed, tiny, monkeypatch):
    monkeypatch.setenv("BNREPRO_NATIVE", allowed)
    native._library.cache_clear()
    native._plan.cache_clear()
    try:
        path = train.run(tiny("epochs=1", "variant=custombn"))
        assert Run(path).summary["kernels"] == ("kernels" if allowed == "1" else "tensor operations")
    finally:
        monkeypatch.undo()
        native._library.cache_clear()
        native._plan.cache_clear()
