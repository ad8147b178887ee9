"""The norms by name: what each is, how much it holds, and what every layer has to bear."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bnrepro.norm import (
    NORMS,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvAdaptiveNorm2d,
    ConvBatchNorm2d,
    NormError,
    NormOptions,
)

C, H, W = 8, 6, 5

# The class on maps and after a linear layer, and how many numbers it learns and keeps on maps.
EXPECTED = {
    "nobn": (nn.Identity, nn.Identity, 0, 0),
    "bn": (nn.BatchNorm2d, nn.BatchNorm1d, 2 * C, 2 * C),
    "custombn": (BatchNorm2d, BatchNorm1d, 2 * C, 2 * C),
    "convbn": (ConvBatchNorm2d, BatchNorm1d, 2 * C, 2 * C * H * W),
    "peractivationbn": (ConvBatchNorm2d, BatchNorm1d, 2 * C * H * W, 2 * C * H * W),
    "locationaffinebn": (ConvBatchNorm2d, BatchNorm1d, 2 * C * H * W, 2 * C),
    "adaptive": (ConvAdaptiveNorm2d, BatchNorm1d, 2 * C, 0),
}
over_expected = pytest.mark.parametrize("name", EXPECTED)
over_places = pytest.mark.parametrize("shape", [(H, W), ()], ids=["maps", "linear"])


def normal(*shape, seed=0):
    return 1.5 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(layer, x, arrange=lambda dy: dy):
    """y, and the gradients of x and the parameters, for an upstream neither constant nor of mean zero."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(arrange(torch.rand(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)))
    return {"y": y.detach(), "x": x.grad, **{name: p.grad.clone() for name, p in layer.named_parameters()}}


def held(tensors):
    return sum(t.numel() for t in tensors if t.is_floating_point())


@pytest.mark.parametrize("name", NORMS)
@over_places
def test_each_norm_is_built_and_runs_forward_and_backward(name, shape):
    if name == "instancenorm" and not shape:
        with pytest.raises(NormError, match="normalized by itself, to zero"):
            NORMS[name](C, shape)
        return
    layer, x = NORMS[name](C, shape).double(), normal(6, C, *shape)
    for training in (True, False):
        found = gradients(layer.train(training), x)
        assert found["y"].shape == x.shape
        assert found.keys() == {"y", "x", *dict(layer.named_parameters())}
        for tensor in found.values():
            assert tensor.isfinite().all()
            assert tensor.abs().max() > 1e-3


@over_expected
def test_each_name_stands_for_its_layer(name):
    on_maps, flat, _, _ = EXPECTED[name]
    assert type(NORMS[name](C, (H, W))) is on_maps
    assert type(NORMS[name](C, ())) is flat


@over_expected
def test_parameters_and_buffers_are_as_many_as_the_table_says(name):
    _, _, learned, kept = EXPECTED[name]
    layer = NORMS[name](C, (H, W))
    assert held(layer.parameters()) == learned
    assert held(layer.buffers()) == kept
    flat = NORMS[name](C, ())  # one location: per channel and per location are the same
    assert held(flat.parameters()) == (0 if name == "nobn" else 2 * C)
    assert held(flat.buffers()) == (0 if name in ("nobn", "adaptive") else 2 * C)


@pytest.mark.parametrize(
    ("name", "statistics", "parameters"),
    [
        ("convbn", "location", "channel"),
        ("peractivationbn", "location", "location"),
        ("locationaffinebn", "channel", "location"),
    ],
)
def test_each_cell_is_its_own(name, statistics, parameters):
    layer = NORMS[name](C, (H, W))
    assert (layer.statistics, layer.parameters_per, layer.spatial_shape) == (statistics, parameters, (H, W))


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "nobn"])
@over_places
def test_options_reach_the_layer_and_what_is_not_given_stays_the_layers_own(name, shape):
    default = NORMS[name](C, shape)
    assert default.eps == (1e-5 if name in ("bn", "custombn") else 1e-3)
    given = NORMS[name](C, shape, options=NormOptions(eps=0.5, momentum=0.25, affine=False))
    assert given.eps == 0.5
    assert not list(given.parameters())
    if hasattr(default, "momentum"):
        assert default.momentum == 0.1
        assert given.momentum == (0.1 if name == "adaptive" else 0.25)  # which keeps nothing that could move
    zero = NORMS[name](C, shape, options=NormOptions(momentum=0.0))
    assert getattr(zero, "momentum", 0.0) == (0.1 if name == "adaptive" and not shape else 0.0)


def test_window_reaches_the_adaptive_norms_and_no_other():
    for name, norm in NORMS.items():
        layer, default = norm(4, (5, 5), options=NormOptions(kernel_size=3)), norm(4, (5, 5))
        adaptive = name in ("adaptive", "adaptivewindow")
        assert getattr(layer, "kernel_size", None) == ((3, 3) if adaptive else None)
        assert getattr(default, "kernel_size", None) == ((5, 5) if adaptive else None)


@over_places
def test_the_hand_derived_norm_and_torchs_are_one_function(shape):
    x = normal(6, C, *shape)
    found, expected = (gradients(NORMS[name](C, shape).double(), x) for name in ("custombn", "bn"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_cells_differ_on_maps_and_are_one_function_after_a_linear_layer():
    cells = ("convbn", "peractivationbn", "locationaffinebn")
    on_maps, flat = (
        [gradients(NORMS[name](C, shape).double(), normal(6, C, *shape)) for name in cells] for shape in ((H, W), ())
    )
    for other in flat[1:]:
        torch.testing.assert_close(other, flat[0])
    torch.testing.assert_close(on_maps[0]["y"], on_maps[1]["y"])  # gamma is 1 yet, wherever it lives
    assert not torch.allclose(on_maps[0]["y"], on_maps[2]["y"])
    assert on_maps[1]["weight"].sum((1, 2)).allclose(on_maps[0]["weight"])


@pytest.mark.parametrize(
    ("name", "layers"),
    [("bn", (nn.BatchNorm1d, nn.BatchNorm3d)), ("custombn", (BatchNorm1d, BatchNorm3d))],
)
def test_norms_per_channel_are_made_for_sequences_and_volumes_too(name, layers):
    for kind, shape in zip(layers, ((4,), (2, 3, 2)), strict=True):
        layer = NORMS[name](C, shape)
        assert type(layer) is kind
        assert layer(torch.ones(2, C, *shape)).shape == (2, C, *shape)


# What every layer has to bear; volumes are the hand-derived layer's only.
BEARING = [pytest.param(name, shape, id=f"{name}-{len(shape)}d") for name in EXPECTED for shape in ((H, W), ())]
BEARING.append(pytest.param("custombn", (4, 3, 2), id="custombn-3d"))
over_bearing = pytest.mark.parametrize(("name", "shape"), BEARING)


@over_bearing
def test_strided_inputs_and_gradients_give_the_same_as_contiguous_ones(name, shape):
    layer, x = NORMS[name](C, shape).double(), normal(6, C, *shape)
    expected = gradients(layer, x)

    def swapped(t):
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    for same in (torch.stack((x, -x), -1)[..., 0], swapped(x)):
        assert not same.is_contiguous()
        torch.testing.assert_close(gradients(layer, same, swapped), expected)


@pytest.mark.parametrize(("name", "shape"), [p for p in BEARING if p.values[1]])
def test_channels_last_gives_the_same_and_stays_channels_last(name, shape):
    layer, x = NORMS[name](C, shape).double(), normal(6, C, *shape)
    layout = torch.channels_last if len(shape) == 2 else torch.channels_last_3d
    found = gradients(layer, x.to(memory_format=layout), lambda dy: dy.to(memory_format=layout))
    assert found["y"].is_contiguous(memory_format=layout)
    assert found["x"].is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, gradients(layer, x))


@over_bearing
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original_would_and_shares_nothing_with_it(name, shape, copied):
    layer, (x, y) = NORMS[name](C, shape).double(), (normal(6, C, *shape, seed=s) for s in (0, 1))
    gradients(layer, x)
    kept = copy.deepcopy(layer.state_dict())
    twin = copied(layer)
    after = gradients(twin, y)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    torch.testing.assert_close(layer.state_dict(), kept, rtol=0, atol=0)
    torch.testing.assert_close(gradients(layer, y), after, rtol=0, atol=0)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()), rtol=0, atol=0)
