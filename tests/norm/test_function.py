"""The oracle is held to finite differences, the function to the oracle, to torch's own checks, and behind a layer."""

import ast
import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from bnrepro.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, oracle
from bnrepro.norm.function import batch_norm
from bnrepro.norm.oracle import batch_norm_backward, batch_norm_forward, seed004_backward

EPS = 1e-3

# The shape of x, the axes of its statistics, the shape of gamma and beta. Channels are sometimes as many as rows,
# where a parameter laid along the wrong axis still fits.
CASES = [
    pytest.param((6, 3), (0,), (1, 3), id="linear"),
    pytest.param((5, 3, 4), (0, 2), (1, 3, 1), id="sequence"),
    pytest.param((4, 3, 3, 2), (0, 2, 3), (1, 3, 1, 1), id="channel-channel"),
    pytest.param((4, 3, 3, 2), (0,), (1, 3, 1, 1), id="location-channel"),
    pytest.param((4, 3, 3, 2), (0, 2, 3), (1, 3, 3, 2), id="channel-location"),
    pytest.param((4, 3, 3, 2), (0,), (1, 3, 3, 2), id="location-location"),
    pytest.param((2, 3, 2, 2, 2), (0, 2, 3, 4), (1, 3, 1, 1, 1), id="volume"),
    pytest.param((3, 4, 2), (1, 2), (1, 4, 2), id="layer"),
    pytest.param((3, 5), (1,), None, id="without-parameters"),
]
over_cases = pytest.mark.parametrize(("shape", "axes", "parameters"), CASES)


def arrays(shape, parameters, seed=0):
    """x, weight, bias and an upstream gradient that is neither constant nor of mean zero: either hides terms of dx."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1.5, 2, shape)
    weight, bias = (None, None) if parameters is None else rng.uniform(0.5, 2, (2, *parameters))
    return x, weight, bias, rng.uniform(0, 1, shape)


def tensors(*values, dtype=torch.float64):
    return [None if v is None else torch.tensor(v, dtype=dtype, requires_grad=True) for v in values]


def central_differences(loss, at, step=1e-5):
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (loss(up) - loss(down)) / (2 * step)
    return gradient


def test_the_oracle_imports_nothing_but_numpy():
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(oracle))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").split(".")[0])
    assert imported == {"__future__", "typing", "numpy"}


def test_the_oracle_normalises_a_batch_that_can_be_done_in_the_head():
    y, _ = batch_norm_forward([[1, 10], [3, 30], [5, 50]], [2, 3], [7, -1], axes=0, eps=0)
    edge = np.sqrt(1.5)  # the outer two of three equidistant values, in biased standard deviations
    np.testing.assert_allclose(y, [[7 - 2 * edge, -1 - 3 * edge], [7, -1], [7 + 2 * edge, -1 + 3 * edge]])


@over_cases
def test_the_oracles_gradients_are_the_central_differences(shape, axes, parameters):
    x, weight, bias, dy = arrays(shape, parameters)

    def loss(x=x, weight=weight, bias=bias):
        return (batch_norm_forward(x, weight, bias, axes, EPS)[0] * dy).sum()

    dx, dweight, dbias = batch_norm_backward(dy, batch_norm_forward(x, weight, bias, axes, EPS)[1])
    np.testing.assert_allclose(dx, central_differences(lambda v: loss(x=v), x), rtol=1e-6, atol=1e-8)
    if parameters is None:
        assert dweight is None
        assert dbias is None
    else:
        np.testing.assert_allclose(dweight, central_differences(lambda v: loss(weight=v), weight), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(dbias, central_differences(lambda v: loss(bias=v), bias), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_the_oracle_returns_the_gradients_in_the_shape_the_parameters_came_in(shape):
    x, weight, bias, dy = arrays((4, 3, 3, 2), (1, 3, 1, 1))
    y, cache = batch_norm_forward(x, weight, bias, (0, 2, 3), EPS)
    same_y, same_cache = batch_norm_forward(x, weight.reshape(shape), bias.reshape(shape), (0, -2, -1), EPS)
    np.testing.assert_array_equal(same_y, y)
    same, expected = batch_norm_backward(dy, same_cache)[1:], batch_norm_backward(dy, cache)[1:]
    for gradient, reference in zip(same, expected, strict=True):
        assert gradient.shape == shape
        np.testing.assert_allclose(gradient, reference.reshape(shape), rtol=1e-14)


@pytest.mark.parametrize(("weight", "bias", "name"), [(np.ones(2), None, "weight"), (None, np.ones((4, 1)), "bias")])
def test_the_oracle_refuses_a_parameter_that_does_not_fit(weight, bias, name):
    with pytest.raises(ValueError, match=f"{name} of shape"):
        batch_norm_forward(np.ones((5, 3, 4)), weight, bias, (0, 2))


def relative_error(wrong, exact):
    return np.linalg.norm(wrong - exact) / np.linalg.norm(exact)


def test_the_gradient_of_seed_004_is_239_percent_off_on_its_own_example():
    rng = np.random.default_rng(123)
    shape = (5, 100, 100, 3)
    x, delta = rng.uniform(0, 1, (2, *shape))
    scales, bias = rng.uniform(0, 1, (2, *shape[1:]))
    dx, dscales, dbias = seed004_backward(x, scales, delta)
    exact, dweight, exact_dbias = batch_norm_backward(delta, batch_norm_forward(x, scales, bias, 0, 1e-8)[1])
    assert relative_error(dx, exact) == pytest.approx(2.39, abs=0.03)
    assert (dx * exact).sum() / (np.linalg.norm(dx) * np.linalg.norm(exact)) == pytest.approx(0.386, abs=0.005)
    np.testing.assert_allclose(dscales, dweight, rtol=1e-9)
    np.testing.assert_allclose(dbias, exact_dbias, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 1, 1, 1), (64, 1, 1, 2)], ids=str)
def test_seed_004_weighs_the_two_correction_terms_by_1_over_m_and_n_over_m(shape):
    x, scales, _, delta = arrays(shape, shape[1:])
    n, m = shape[0], np.prod(shape[1:])
    _, cache = batch_norm_forward(x, scales, None, 0, 1e-8)
    dxhat = delta * scales
    expected = cache.rstd * (dxhat - dxhat.mean(0) / m - n / m * cache.xhat * (dxhat * cache.xhat).mean(0))
    dx = seed004_backward(x, scales, delta)[0]
    np.testing.assert_allclose(dx, expected, rtol=1e-9, atol=1e-12)
    assert relative_error(dx, batch_norm_backward(delta, cache)[0]) > 0.5


def test_seed_004_returns_gamma_over_sigma_where_the_exact_gradient_is_zero():
    x, scales, _, _ = arrays((6, 10, 10, 2), (10, 10, 2))
    ones = np.ones_like(x)
    _, cache = batch_norm_forward(x, scales, None, 0, 1e-8)
    np.testing.assert_allclose(batch_norm_backward(ones, cache)[0], 0, atol=1e-12)
    wrong = seed004_backward(x, scales, ones)[0]
    np.testing.assert_allclose(wrong, np.broadcast_to(scales * cache.rstd * (1 - 1 / 200), x.shape), rtol=1e-9)


def check_against_oracle(x, weight, bias, dy, axes, eps, rtol=1e-9, atol=1e-9):
    tx, tw, tb = tensors(x, weight, bias)
    y, mean, var = batch_norm(tx, tw, tb, axes, eps)
    y.backward(torch.tensor(dy))
    expected_y, cache = batch_norm_forward(x, weight, bias, axes, eps)
    found = [y.detach(), mean, var, tx.grad, *(None if p is None else p.grad for p in (tw, tb))]
    expected = [expected_y, x.mean(axes, keepdims=True), x.var(axes, keepdims=True), *batch_norm_backward(dy, cache)]
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            np.testing.assert_allclose(a.numpy(), b, rtol=rtol, atol=atol)


@over_cases
def test_the_function_equals_the_oracle(shape, axes, parameters):
    check_against_oracle(*arrays(shape, parameters), axes, EPS, rtol=1e-11, atol=1e-13)


@st.composite
def problems(draw):
    """Any shape, any axes, and parameters broadcast along any axes, the statistics' or not."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    axes = tuple(draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True)))
    parameters = draw(st.none() | st.tuples(*(st.sampled_from((1, n)) for n in shape)))
    x, weight, bias, dy = arrays(shape, parameters, draw(st.integers(0, 1000)))
    x = x * draw(st.sampled_from((0.1, 1, 10))) + draw(st.sampled_from((0, -100)))
    return x, weight, bias, dy, axes, draw(st.sampled_from((1e-5, 1e-3, 1)))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_the_function_equals_the_oracle_over_any_shape_and_axes(problem):
    check_against_oracle(*problem)


@over_cases
def test_first_and_second_derivatives_pass_torchs_numerical_checks(shape, axes, parameters):
    torch.manual_seed(0)  # the checks draw the upstream gradients
    x, weight, bias, _ = arrays(shape, parameters)
    inputs = [t for t in tensors(x, weight, bias) if t is not None]

    def function(x, weight=None, bias=None):
        return batch_norm(x, weight, bias, axes, EPS)[0]

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@over_cases
def test_the_gradient_of_x_is_orthogonal_to_a_shift_and_to_a_scaling_of_x(shape, axes, parameters):
    x, weight, bias, dy = arrays(shape, parameters)
    tx, tw, tb = tensors(x, weight, bias)
    batch_norm(tx, tw, tb, axes, 1e-14)[0].backward(torch.tensor(dy))
    dx = tx.grad.numpy()
    assert np.abs(dx).max() > 1e-2
    np.testing.assert_allclose(dx.sum(axes), 0, atol=1e-11)
    np.testing.assert_allclose((dx * x).sum(axes), 0, atol=1e-11)


class Detached(nn.BatchNorm1d):
    """The mistake: the statistics taken for constants. Its output is right."""

    def forward(self, x):
        var, mean = torch.var_mean(x.detach(), 0, correction=0)
        return self.weight * (x - mean) / (var + self.eps).sqrt() + self.bias


def behind(before, kind, shape):
    """What ``kind`` gives for itself behind ``before`` (y, dgamma, dbeta), and the gradients of ``before``."""
    torch.manual_seed(0)
    before = before(2, 3, *[2] * (len(shape) > 2), dtype=torch.float64)
    norm = kind(3, dtype=torch.float64)
    nn.init.uniform_(norm.weight, 0.5, 2)
    y = norm(before(torch.randn(shape, dtype=torch.float64)))
    y.backward(torch.rand(y.shape, dtype=torch.float64))
    return [y.detach(), norm.weight.grad, norm.bias.grad], [before.weight.grad, before.bias.grad]


@pytest.mark.parametrize(
    ("before", "own", "torchs", "shape"),
    [
        pytest.param(nn.Linear, BatchNorm1d, nn.BatchNorm1d, (6, 2), id="linear"),
        pytest.param(nn.Conv1d, BatchNorm1d, nn.BatchNorm1d, (6, 2, 5), id="conv1d"),
        pytest.param(nn.Conv2d, BatchNorm2d, nn.BatchNorm2d, (6, 2, 5, 6), id="conv2d"),
        pytest.param(nn.Conv3d, BatchNorm3d, nn.BatchNorm3d, (6, 2, 3, 4, 3), id="conv3d"),
    ],
)
def test_the_gradients_of_a_layer_in_front_equal_those_through_torchs(before, own, torchs, shape):
    found, expected = behind(before, own, shape), behind(before, torchs, shape)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[1][1], torch.zeros_like(found[1][1]), rtol=0, atol=1e-11)  # a bias is cancelled


def test_only_the_layer_in_front_tells_detached_statistics_from_the_right_ones():
    (own, (weight, bias)), (same, (wrong_weight, wrong_bias)) = (
        behind(nn.Linear, kind, (6, 2)) for kind in (BatchNorm1d, Detached)
    )
    torch.testing.assert_close(own, same)  # y, dgamma, dbeta: a test of these alone lets the mistake through
    assert (wrong_weight - weight).norm() > 0.5 * weight.norm()
    assert bias.abs().max() < 1e-11 < 0.1 < wrong_bias.norm()


def test_the_statistics_carry_no_gradient():
    x, weight, bias = tensors(*arrays((6, 3), (1, 3))[:3])
    y, mean, var = batch_norm(x, weight, bias, (0,), EPS)
    assert y.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad


@pytest.mark.parametrize("learned", [w for w in itertools.product((True, False), repeat=3) if any(w)], ids=str)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same_as_ever(learned):
    x, weight, bias, dy = arrays((6, 3), (1, 3))
    inputs = tensors(x, weight, bias)
    for tensor, wanted in zip(inputs, learned, strict=True):
        tensor.requires_grad_(wanted)
    batch_norm(*inputs, (0,), EPS)[0].backward(torch.tensor(dy))
    expected = batch_norm_backward(dy, batch_norm_forward(x, weight, bias, 0, EPS)[1])
    for tensor, wanted, gradient in zip(inputs, learned, expected, strict=True):
        assert (tensor.grad is not None) == wanted
        if wanted:
            np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_floats_are_computed_in_float32_and_rounded_once(dtype):
    x, weight, bias, dy = arrays((6, 3, 4), (1, 3, 1))
    runs = []
    for wide in (False, True):
        (tx,) = tensors(x, dtype=dtype)
        tw, tb = tensors(weight, bias, dtype=torch.float32)
        if wide:
            tx = tx.detach().float().requires_grad_()
        y, mean, var = batch_norm(tx, tw, tb, (0, 2), EPS)
        y.backward(torch.tensor(dy, dtype=dtype).to(y.dtype))
        runs.append((y, mean, var, tx.grad, tw.grad, tb.grad))
    half_a_digit = torch.finfo(dtype).eps / 2
    for narrow, wide in zip(*runs, strict=True):
        once = half_a_digit if narrow.dtype is dtype else 0
        torch.testing.assert_close(narrow.float(), wide.float(), rtol=once + 2e-6, atol=2e-6)


def test_a_mean_of_3000_with_a_deviation_of_1_loses_nothing_in_float32():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(3000, 1, (64, 16, 8)), dtype=torch.float32)
    exact = x.double().var((0, 2), correction=0)
    at_once = (x.square().mean((0, 2)) - x.mean((0, 2)).square()).double()
    assert ((at_once - exact) / exact).abs().max() > 0.1, "the input is too easy: one pass gets it right too"

    dy = rng.uniform(0, 1, x.shape)
    x.requires_grad_()
    y, _, var = batch_norm(x, None, None, (0, 2), 1e-5)
    y.backward(torch.tensor(dy, dtype=torch.float32))
    expected, cache = batch_norm_forward(x.detach().numpy(), None, None, (0, 2), 1e-5)
    np.testing.assert_allclose(var.flatten().numpy(), exact.numpy(), rtol=1e-5)
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(x.grad.numpy(), batch_norm_backward(dy, cache)[0], atol=1e-3)
