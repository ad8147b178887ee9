"""The relatives of batch normalization, each against its formula or a library's layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from bnrepro.norm import NORMS, BatchNorm2d, NormError, NormOptions, batch_statistics, reestimate_statistics
from bnrepro.norm.statistics import tracking_layers
from bnrepro.norm.variants import (
    BatchRenorm,
    DetachedBatchNorm,
    DynamicTanh,
    GhostBatchNorm,
    LocalResponseNorm,
    LpBatchNorm,
    NoisyBatchNorm,
)

C = 4
LP = ["l1bn", "linfbn", "l1norm", "l2norm", "linfnorm"]
NAMES = ["ghostbn", "renorm", "detachedmean", "detached", "noisybn", *LP]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(name: str, shape: tuple[int, ...] = (5, 6)) -> nn.Module:
    """A layer with gamma and beta that are neither 1 nor 0."""
    layer = NORMS[name](C, shape).double()
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(torch.linspace(0.5, 1.5, p.numel()).view(p.shape) * (-1 if name == "bias" else 1))
    return layer


def in_numpy(layer: nn.Module, x: Tensor, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    weight, bias = (p.detach().numpy().reshape(1, C, 1, 1) for p in (layer.weight, layer.bias))
    return (x.numpy() - mean) / std * weight + bias


@pytest.mark.parametrize("name", NAMES)
def test_eval_is_batch_normalization(name: str) -> None:
    layer, reference = made(name), nn.BatchNorm2d(C).double()
    layer.running_mean.copy_(torch.linspace(-1, 1, C))
    layer.running_var.copy_(torch.linspace(0.5, 2, C))
    reference.load_state_dict(layer.state_dict())
    x = normal(6, C, 5, 6)
    torch.testing.assert_close(layer.eval()(x), reference.eval()(x))


def far_from_zero(name: str) -> tuple[nn.Module, Tensor]:
    """A layer without what training does on purpose and eval does not, and values whose mean is part of their size.

    There is no noise, the batch is one ghost batch, and `renorm` has not begun to correct: apart from that these
    normalize by the batch. What each does beyond it has its tests below.
    """
    layer = made(name)
    if name in ("noise", "noisybn"):
        layer.n_mean, layer.n_std, layer.spread = 0.0, 1.0, 0.0
    return layer, normal(6, C, 5, 6) + torch.tensor([0.0, 3, 10, -5]).view(1, C, 1, 1)


@pytest.mark.parametrize("name", NORMS)
def test_the_populations_statistics_are_those_that_training_takes(name: str) -> None:
    layer, x = far_from_zero(name)
    want = layer(x)
    reestimate_statistics(layer, [x])
    for each in tracking_layers(layer).values():
        m = x.numel() // each.running_var.numel()
        each.running_var.mul_((m - 1) / m)  # Bessel's correction
    torch.testing.assert_close(layer.eval()(x), want)


@pytest.mark.parametrize("name", NORMS)
def test_the_batchs_statistics_are_those_that_training_takes(name: str) -> None:
    layer, x = far_from_zero(name)
    want = layer(x)
    with batch_statistics(layer.eval()):
        torch.testing.assert_close(layer(x), want)
    torch.func.replace_all_batch_norm_modules_(layer)  # which takes away the statistics, of frozen layers too
    torch.testing.assert_close(layer(x), layer.train()(x))


@pytest.mark.parametrize("name", LP)
@pytest.mark.parametrize("variance", ["pooled", "mean"])
def test_of_several_batches_a_measure_of_its_own_is_averaged_as_in_training(name: str, variance: str) -> None:
    layer, batches = made(name), [normal(6, C, 5, 6, seed=seed) for seed in range(3)]
    averaged = made(name)
    averaged.momentum = None
    for x in batches:
        averaged(x)
    reestimate_statistics(layer, batches, variance=variance)
    torch.testing.assert_close(layer.running_mean, averaged.running_mean)
    torch.testing.assert_close(layer.running_var, averaged.running_var)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, C, 5, 6), (3, C, 0, 6)], ids=str)
def test_an_empty_batch_is_taken_and_moves_no_statistic(name: str, shape: tuple[int, ...]) -> None:
    layer, x = made(name), torch.empty(shape, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert all(not p.grad.any() for p in layer.parameters())
    assert torch.equal(layer.running_var, torch.ones(C).double())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("ghostbn", *LP)])
def test_running_statistics_move_as_torchs(name: str) -> None:
    layer, reference = made(name), nn.BatchNorm2d(C).double()
    for seed in range(3):
        x = normal(6, C, 5, 6, seed=seed)
        layer(x), reference(x)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("detachedmean", "detached", "noisybn")])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    layer = made(name, ())
    if isinstance(layer, BatchRenorm):
        layer.momentum = 0.0  # the statistics must stand still; its schedule has not begun
    if isinstance(layer, GhostBatchNorm):
        layer.ghost_size = 4
    x = normal(12, C).requires_grad_()
    assert gradcheck(layer, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"takes an input of shape \(N, 4\)"):
        made(name)(normal(6, C + 1, 5, 6))
    with pytest.raises(NormError, match="needs more than 1 value per channel"):
        made(name, ())(normal(1, C))


# --- ghost batches ---


@pytest.mark.parametrize(("images", "parts"), [(8, [4, 4]), (10, [4, 6]), (3, [3]), (12, [4, 4, 4])])
def test_ghost_batches_are_torchs_layer_on_one_part_after_the_other(images: int, parts: list[int]) -> None:
    layer, reference = made("ghostbn"), nn.BatchNorm2d(C).double()
    layer.ghost_size = 4
    reference.load_state_dict(layer.state_dict())
    x = normal(images, C, 5, 6)
    torch.testing.assert_close(layer(x), torch.cat([reference(part) for part in x.split(parts)]))
    for ours, theirs in zip(layer.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_ghost_size_below_1_is_refused() -> None:
    layer = made("ghostbn")
    layer.ghost_size = 0
    with pytest.raises(ValueError, match="ghost_size must be at least 1"):
        layer(normal(4, C, 5, 6))


def test_ghost_batches_of_one_value_name_what_makes_them() -> None:
    layer = made("ghostbn")
    layer.ghost_size = 1
    with pytest.raises(NormError, match=r"ghost_size=1 has 1 value per channel in each part .* ghost_size, 2 or more"):
        layer(normal(4, C, 1, 1))
    layer.ghost_size = 2
    with pytest.raises(NormError, match="Train on batches of 2 or more"):
        layer(normal(1, C, 1, 1))


# --- batch renormalization ---


def test_renorm_starts_as_batch_normalization_and_widens_on_the_papers_schedule() -> None:
    layer = BatchRenorm(C)
    assert [layer.bounds(step) for step in (0, 5000)] == [(1, 0), (1, 0)]
    assert layer.bounds(15_000) == pytest.approx((1 + 2 * 10 / 35, 2.5))
    assert layer.bounds(25_000) == pytest.approx((1 + 2 * 20 / 35, 5))
    assert layer.bounds(40_000) == layer.bounds(10**6) == (3, 5)
    x = normal(6, C, 5, 6)
    layer = made("renorm")
    reference = nn.BatchNorm2d(C).double()
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize(("steps", "mean", "var"), [(10**6, 3.1, 4.2), (10**6, -20.0, 0.01), (10_000, 2.0, 1.0)])
def test_renorm_corrects_towards_the_running_statistics_within_bounds(steps: int, mean: float, var: float) -> None:
    layer = made("renorm")
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(var)
    layer.num_batches_tracked.fill_(steps)
    x = normal(6, C, 5, 6)
    r_max, d_max = layer.bounds(steps)
    batch_mean = x.numpy().mean((0, 2, 3), keepdims=True)
    batch_std = np.sqrt(x.numpy().var((0, 2, 3), keepdims=True) + layer.eps)
    std = math.sqrt(var + layer.eps)
    r = np.clip(batch_std / std, 1 / r_max, r_max)
    d = np.clip((batch_mean - mean) / std, -d_max, d_max)
    xhat = (x.numpy() - batch_mean) / batch_std * r + d
    weight, bias = (p.detach().numpy().reshape(1, C, 1, 1) for p in (layer.weight, layer.bias))
    np.testing.assert_allclose(layer(x).detach().numpy(), xhat * weight + bias, rtol=1e-9)


def test_renorm_within_its_bounds_gives_in_training_what_it_gives_in_eval() -> None:
    layer = made("renorm")
    layer.momentum = 0.0
    layer.running_mean.fill_(3.2)
    layer.running_var.fill_(3.5)
    layer.num_batches_tracked.fill_(10**6)
    x = normal(6, C, 5, 6)
    torch.testing.assert_close(layer(x), layer.eval()(x))


def test_renorm_takes_no_gradient_through_its_corrections() -> None:
    layer = made("renorm")
    layer.running_mean.fill_(2.0)
    layer.running_var.fill_(9.0)
    layer.num_batches_tracked.fill_(10**6)
    layer.momentum = 0.0
    x = normal(6, C, 5, 6).requires_grad_()
    upstream = torch.linspace(0.1, 1, x.numel(), dtype=x.dtype).view(x.shape)
    layer(x).backward(upstream)
    plain, y = BatchNorm2d(C, affine=False).double(), x.detach().clone().requires_grad_()
    std = (x.detach().var((0, 2, 3), correction=0, keepdim=True) + layer.eps).sqrt()
    r = (std / math.sqrt(9 + layer.eps)).clamp(1 / 3, 3)
    plain(y).backward(upstream * r * layer.weight.detach().view(1, -1, 1, 1))
    torch.testing.assert_close(x.grad, y.grad)


# --- statistics outside the gradient ---


@pytest.mark.parametrize("detach", ["mean", "both"])
def test_detached_forward_is_batch_normalization_and_its_backward_lacks_terms(detach: str) -> None:
    layer = DetachedBatchNorm(C, affine=False).double()
    layer.detach = detach  # type-checked as one of the two
    x = normal(6, C, 5, 6).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, BatchNorm2d(C, affine=False).double()(x.detach()))
    upstream = torch.linspace(0.1, 1, x.numel(), dtype=x.dtype).view(x.shape)
    y.backward(upstream)
    mean, var = x.detach().mean((0, 2, 3), keepdim=True), x.detach().var((0, 2, 3), correction=0, keepdim=True)
    rstd = (var + layer.eps).rsqrt()
    xhat = (x.detach() - mean) * rstd
    want = rstd * upstream
    if detach == "mean":
        want = rstd * (upstream - xhat * (upstream * xhat).mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(x.grad, want)


# --- noise ---


def test_noise_has_santurkars_moments_and_is_drawn_anew() -> None:
    torch.manual_seed(0)
    layer = NoisyBatchNorm(1, affine=False).double()
    x = normal(4000, 1, 2, 2)
    clean = BatchNorm2d(1, affine=False).double()(x)
    shifts, scales = [], []
    for _ in range(200):
        y = layer(x)
        for location in np.ndindex(2, 2):
            ours, plain = y[:, 0, *location].numpy(), clean[:, 0, *location].numpy()
            scale, shift = np.polyfit(plain, ours, 1)
            scales.append(scale)
            shifts.append(shift)
            residual = ours - scale * plain - shift
        assert np.abs(residual).max() > 0.05  # each image has noise of its own
    shifts, scales = np.array(shifts), np.array(scales)
    assert -0.52 < shifts.min() < -0.45
    assert 0.45 < shifts.max() < 0.52
    assert 0.98 < scales.min() < 1.02
    assert 1.23 < scales.max() < 1.27
    assert shifts.std() == pytest.approx(1 / math.sqrt(12), rel=0.1)
    # Of one image: uniform on +-0.1 and normal of 0.1, times a value of deviation 1.
    assert residual.std() == pytest.approx(math.sqrt(0.2**2 / 12 + 0.1**2), rel=0.1)


def test_noise_follows_torchs_generator() -> None:
    layer, x = NoisyBatchNorm(C).double(), normal(6, C, 5, 6)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(layer(x))
    assert torch.equal(*outputs)
    assert not torch.equal(layer(x), outputs[0])


def test_noise_alone_is_the_noise_of_the_norm() -> None:
    alone, with_norm = NORMS["noise"](C, (5, 6)), NoisyBatchNorm(C, affine=False).double()
    x = normal(6, C, 5, 6)
    x = BatchNorm2d(C, affine=False, eps=1e-5).double()(x)  # which normalizing once more leaves as it is, but for eps
    outputs = []
    for layer in (alone, with_norm):
        torch.manual_seed(3)
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    assert (outputs[0] - x).abs().max() > 0.3
    assert torch.equal(alone.eval()(x), x)
    assert list(alone.parameters()) == []


# --- other norms of the deviation ---


def test_l1_takes_the_mean_distance() -> None:
    layer, x = made("l1bn"), normal(6, C, 5, 6)
    mean = x.numpy().mean((0, 2, 3), keepdims=True)
    sigma = math.sqrt(math.pi / 2) * np.abs(x.numpy() - mean).mean((0, 2, 3), keepdims=True)
    want = in_numpy(layer, x, mean, np.sqrt(sigma**2 + layer.eps))
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_linf_takes_the_mean_of_the_ten_largest() -> None:
    layer, x = made("linfbn"), normal(6, C, 5, 6)
    mean = x.numpy().mean((0, 2, 3), keepdims=True)
    distances = np.abs(x.numpy() - mean).transpose(1, 0, 2, 3).reshape(C, -1)
    m = distances.shape[1]
    constant = (1 + math.sqrt(math.pi * math.log(4))) / (2 * math.sqrt(2 * math.log(m)))
    sigma = constant * np.sort(distances)[:, -10:].mean(1).reshape(1, C, 1, 1)
    want = in_numpy(layer, x, mean, np.sqrt(sigma**2 + layer.eps))
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


@pytest.mark.parametrize(("name", "p"), [("l1norm", 1.0), ("l2norm", 2.0), ("linfnorm", np.inf)])
def test_lp_norms_divide_by_the_average_norm_of_what_is_not_yet_shifted(name: str, p: float) -> None:
    layer, x = made(name), normal(6, C, 5, 6)
    rows = x.numpy().transpose(1, 0, 2, 3).reshape(C, -1)
    sigma = (np.linalg.norm(rows, p, axis=1) / rows.shape[1] ** (1 / p)).reshape(1, C, 1, 1)
    want = in_numpy(layer, x, rows.mean(1).reshape(1, C, 1, 1), np.sqrt(sigma**2 + layer.eps))
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)
    m = rows.shape[1]
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * sigma.flatten() ** 2 * m / (m - 1), rtol=1e-9)


@pytest.mark.parametrize(("p", "sigmas"), [(1.0, 1.0), (math.inf, 1.35)])
def test_spread_of_gaussian_values_in_standard_deviations(p: float, sigmas: float) -> None:
    layer = LpBatchNorm(1, affine=False).double()
    layer.p = p
    y = layer(normal(200, 1, 16, 16))
    assert 1 / float(y.std()) == pytest.approx(sigmas, rel=0.03)


# --- torch's own, and those that learn nothing ---


@pytest.mark.parametrize(
    ("features", "groups"), [(4, 1), (16, 2), (20, 2), (50, 5), (64, 8), (256, 32), (512, 32), (7, 1)]
)
def test_groups_have_at_least_8_channels_and_number_at_most_32(features: int, groups: int) -> None:
    assert NORMS["groupnorm"](features, (4, 4)).num_groups == groups


def test_frozen_statistics_never_move() -> None:
    layer, x = NORMS["frozenbn"](C, (5, 6)).double(), normal(6, C, 5, 6)
    for _ in range(2):
        torch.testing.assert_close(layer.train()(x), x / math.sqrt(1 + layer.eps))
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("shape", [(6, C, 5), (6, C, 5, 6), (2, 9, 5, 6), (2, 9, 2, 3, 2)])
def test_local_response_norm_is_torchs_in_its_gradient_too(size: int, shape: tuple[int, ...]) -> None:
    constants = {"alpha": 0.5, "beta": 0.75, "k": 2.0}
    layers = LocalResponseNorm(size, **constants), nn.LocalResponseNorm(size, **constants)
    found = []
    for layer in layers:
        x = normal(*shape).requires_grad_()
        y = layer(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
        (dx,) = torch.autograd.grad((y**3).sum(), x)
        found.append((y.detach(), dx))
    torch.testing.assert_close(*found)


def test_local_response_norm_keeps_float32_where_autocast_would_not() -> None:
    x = normal(2, 9, 5, 6).float()
    layer = LocalResponseNorm(5, alpha=1.0)  # AlexNet's 1e-4 would hide 16-bit sums
    with torch.autocast("cpu", torch.bfloat16):
        within = layer(x)
    assert within.dtype == torch.float32
    torch.testing.assert_close(within, layer(x))


def test_layer_and_instance_norms_are_torchs() -> None:
    x = normal(6, C, 5, 6)
    for name, theirs in (
        ("layernorm", nn.LayerNorm((C, 5, 6))),
        ("instancenorm", nn.InstanceNorm2d(C)),
    ):
        layer = NORMS[name](C, (5, 6)).double()
        torch.testing.assert_close(layer(x), theirs.double()(x))
    with pytest.raises(NormError, match="instancenorm needs maps"):
        NORMS["instancenorm"](C, ())


@pytest.mark.parametrize("shape", [(), (5,), (5, 6), (2, 3, 4)], ids=str)
def test_dyt_is_a_tanh_with_gamma_and_beta_in_both_modes(shape: tuple[int, ...]) -> None:
    layer, x = made("dyt", shape), normal(6, C, *shape)
    assert isinstance(layer, DynamicTanh)
    assert [p.numel() for p in layer.parameters()] == [1, C, C]
    weight, bias = (p.detach().numpy().reshape(1, C, *(1 for _ in shape)) for p in (layer.weight, layer.bias))
    want = weight * np.tanh(float(layer.alpha.detach()) * x.numpy()) + bias
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x).detach().numpy(), want, rtol=1e-12, atol=1e-12)
    assert not list(layer.buffers())


def test_dyts_derivatives_are_those_of_differences_and_it_starts_as_the_source_has_it() -> None:
    layer = made("dyt")
    parameters = dict(layer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    x = normal(3, C, 2, 2).requires_grad_()
    assert gradcheck(call, (x, *(p.detach().clone().requires_grad_() for p in parameters.values())))
    fresh = NORMS["dyt"](C, (5, 6))
    assert [float(p.detach().unique()) for p in fresh.parameters()] == [0.5, 1.0, 0.0]
    bare = NORMS["dyt"](C, (5, 6), options=NormOptions(affine=False))
    assert [name for name, _ in bare.named_parameters()] == ["alpha"]
    torch.testing.assert_close(bare(x.float()), torch.tanh(0.5 * x.float()))


def test_dyt_takes_16_bits_as_the_others_do_and_refuses_another_number_of_channels() -> None:
    layer, x = NORMS["dyt"](C, (5, 6)), normal(6, C, 5, 6).float()
    half = layer(x.bfloat16())
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x.bfloat16().float()), rtol=1e-2, atol=1e-2)
    for wrong in (x[:, :3], x[0, :, 0, 0]):
        with pytest.raises(NormError, match=f"takes an input of shape \\(N, {C}\\)"):
            layer(wrong)
