"""The layers against torch's own, the four cells against torch's layers put together, the adaptive one by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from bnrepro.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, ConvAdaptiveNorm2d, ConvBatchNorm2d, NormError

# Channels are sometimes as many as rows: a parameter laid along the wrong axis would fit there.
TWINS = [
    pytest.param(BatchNorm1d, nn.BatchNorm1d, (6, 3), id="1d-NC"),
    pytest.param(BatchNorm1d, nn.BatchNorm1d, (5, 3, 4), id="1d-NCL"),
    pytest.param(BatchNorm2d, nn.BatchNorm2d, (4, 3, 3, 5), id="2d"),
    pytest.param(BatchNorm3d, nn.BatchNorm3d, (3, 3, 2, 3, 2), id="3d"),
]
over_twins = pytest.mark.parametrize(("own", "torchs", "shape"), TWINS)
OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    {"eps": 0.1, "momentum": 0.7},
]
CELLS = [(statistics, parameters) for statistics in ("location", "channel") for parameters in ("channel", "location")]
over_cells = pytest.mark.parametrize(("statistics", "parameters"), CELLS)


def noise(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (1.5 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def upstream(y):
    """A gradient for y that is neither constant nor of mean zero: with either, wrong layers pass."""
    return torch.rand(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)


def randomised(layer):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return layer


def step(layer, x):
    """One forward and backward: the output, every gradient, and every buffer after it, flat and by its last name."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(upstream(y))
    named = [(f"d{name}", p.grad) for name, p in layer.named_parameters()] + list(layer.named_buffers())
    return {"y": y.detach(), "dx": x.grad} | {name.split(".")[-1]: t.flatten().clone() for name, t in named}


def assert_same(found, expected, tolerance=1e-11):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_life(own, torchs, batches, tolerance=1e-11):
    """Equal in every step of training, and then in eval on what they have kept."""
    for x in batches:
        assert_same(step(own, x), step(torchs, x), tolerance)
    own.eval()
    torchs.eval()
    assert_same(step(own, batches[0]), step(torchs, batches[0]), tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "parameters", "tolerance"),
    [
        pytest.param(torch.float64, torch.float64, 1e-12, id="float64"),
        pytest.param(torch.float32, torch.float32, 1e-5, id="float32"),
        pytest.param(torch.bfloat16, torch.float32, 1.6e-2, id="bfloat16-in"),
    ],
)
@over_twins
def test_training_and_eval_equal_torchs(own, torchs, shape, dtype, parameters, tolerance, options):
    own = randomised(own(3, **options, dtype=parameters))
    torchs = torchs(3, **options, dtype=parameters)
    torchs.load_state_dict(own.state_dict())
    assert_same_life(own, torchs, [noise(shape, seed, dtype) for seed in range(3)], tolerance)


@over_twins
def test_a_state_dict_loads_in_either_direction(own, torchs, shape):
    x = noise(shape, dtype=torch.float32)
    trained, empty = randomised(own(3)), torchs(3).eval()
    step(trained, x)
    assert trained.state_dict().keys() == empty.state_dict().keys()
    empty.load_state_dict(trained.state_dict())
    assert_same(step(empty, x), step(trained.eval(), x), 1e-5)
    back = own(3).eval()
    back.load_state_dict(empty.state_dict())
    assert_same(step(back, x), step(trained, x), 0)


@over_twins
@pytest.mark.parametrize("arguments", [(3,), (3, 1e-3, 0.2), (3, 1e-3, None, False, False)], ids=str)
def test_the_arguments_and_the_repr_are_torchs(own, torchs, shape, arguments):
    assert repr(own(*arguments)) == repr(torchs(*arguments))


@over_twins
def test_another_number_of_dimensions_is_refused_as_by_torch(own, torchs, shape):
    for wrong in ((3,), (4, 3, 2, 2) if torchs is nn.BatchNorm1d else (4, 3)):
        for layer in (own(3), torchs(3)):
            with pytest.raises(ValueError, match="expected"):
                layer(torch.ones(wrong))


@over_twins
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize(("channels", "given"), [(3, 1), (1, 3), (3, 4)])
def test_another_number_of_channels_is_refused_and_never_broadcast(own, torchs, shape, options, channels, given):
    x = torch.ones(shape[0], given, *shape[2:])
    for training in (True, False):
        with pytest.raises(NormError, match=f"{own.__name__} was made for {channels} channels"):
            own(channels, **options).train(training)(x)
        with pytest.raises(RuntimeError, match="elements"):
            torchs(channels, **options).train(training)(x)


@over_twins
def test_one_value_per_channel_is_refused_in_training_and_taken_in_eval(own, torchs, shape):
    one = torch.full((1, 3, *[1] * (len(shape) - 2)), 2.0)
    for layer in (own(3), own(3, track_running_stats=False).eval(), torchs(3)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(one)
    with pytest.raises(NormError, match=r"batches of 2 or more"):
        own(3)(one)
    assert torch.equal(own(3).eval()(one), torchs(3).eval()(one))


class Cell(nn.Module):
    """A cell of the table made of torch's layers: one without parameters, then gamma and beta."""

    def __init__(self, size, statistics, parameters, eps, momentum):
        super().__init__()
        self.flat = statistics == "location"
        kind, features = (nn.BatchNorm1d, size.numel()) if self.flat else (nn.BatchNorm2d, size[0])
        self.norm = kind(features, eps, momentum, affine=False, dtype=torch.float64)
        shape = size if parameters == "location" else (size[0], 1, 1)
        self.weight, self.bias = (nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return self.norm(x.flatten(1) if self.flat else x).view_as(x) * self.weight + self.bias


@over_cells
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("size", [(3, 4, 5), (4, 4, 4), (3, 1, 1)], ids=str)
def test_each_cell_equals_torchs_layers_put_together(statistics, parameters, momentum, size):
    own = ConvBatchNorm2d(
        size[0], size[1:], 0.01, momentum, statistics=statistics, parameters=parameters, dtype=torch.float64
    )
    together = randomised(Cell(torch.Size(size), statistics, parameters, 0.01, momentum))
    randomised(own)
    assert_same_life(own, together, [noise((6, *size), seed) for seed in range(3)])


def test_the_default_cell_is_local_gain():
    layer = ConvBatchNorm2d(3, (4, 5))
    assert (layer.statistics, layer.parameters_per, layer.eps, layer.momentum) == ("location", "channel", 1e-3, 0.1)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        "weight": (3,),
        "bias": (3,),
        "running_mean": (3, 4, 5),
        "running_var": (3, 4, 5),
        "num_batches_tracked": (),
    }


def test_statistics_and_parameters_per_channel_are_torchs_batchnorm2d():
    own = ConvBatchNorm2d(3, (4, 5), eps=1e-5, statistics="channel", parameters="channel", dtype=torch.float64)
    torchs = randomised(nn.BatchNorm2d(3, dtype=torch.float64))
    own.load_state_dict(torchs.state_dict())
    assert_same_life(own, torchs, [noise((6, 3, 4, 5), seed) for seed in range(3)])
    assert_same(step(own, noise((6, 3, 2, 7))), step(torchs, noise((6, 3, 2, 7))))  # nothing local: any size


@over_cells
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_each_cell_passes_torchs_checks_of_both_derivatives(statistics, parameters, affine, training):
    layer = ConvBatchNorm2d(2, (2, 3), affine=affine, statistics=statistics, parameters=parameters, dtype=torch.float64)
    check_derivatives(randomised(layer).train(training), noise((3, 2, 2, 3)))


def check_derivatives(layer, x):
    torch.manual_seed(0)  # the checks draw the upstream gradients
    names, values = zip(("x", x), *layer.named_parameters(), strict=True)
    inputs = [v.detach().clone().requires_grad_() for v in values]

    def function(x, *parameters):
        return functional_call(layer, dict(zip(names[1:], parameters, strict=True)), (x,))

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_local_statistics_refuse_a_training_batch_of_1_and_eval_takes_it():
    layer, one = ConvBatchNorm2d(3, (4, 5)), torch.ones(1, 3, 4, 5)
    with pytest.raises(NormError, match=r"over the batch alone, so a training batch of 1 .*batches of 2 or more"):
        layer(one)
    assert layer.eval()(one).shape == one.shape
    assert ConvBatchNorm2d(3, (4, 5), statistics="channel")(one).shape == one.shape


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("statistics", "parameters", "kept"),
    [
        ("location", "channel", "statistics"),
        ("channel", "location", "parameters"),
        ("location", "location", "statistics and parameters"),
    ],
)
def test_what_is_kept_per_location_refuses_maps_of_another_size(statistics, parameters, kept, training):
    layer = ConvBatchNorm2d(3, (4, 5), statistics=statistics, parameters=parameters).train(training)
    with pytest.raises(NormError, match=rf"keeps {kept} per location for maps of 4 x 5, and the input's are 5 x 4"):
        layer(torch.ones(2, 3, 5, 4))


def test_a_norm_error_is_a_value_error():
    assert issubclass(NormError, ValueError)


@pytest.mark.parametrize("argument", ["statistics", "parameters"])
def test_a_misspelt_cell_is_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"{argument} must be 'location' or 'channel', got 'chanel'"):
        ConvBatchNorm2d(3, (4, 5), **{argument: "chanel"})


@pytest.mark.parametrize("layer", [ConvBatchNorm2d(3, (4, 5)), ConvAdaptiveNorm2d(3, 3)], ids=["conv", "adaptive"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 60), (2, 1, 4, 5)], ids=str)
def test_a_layer_for_maps_refuses_other_dimensions_and_channels(layer, shape):
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} .*\({', '.join(map(str, shape))}\)"):
        layer(torch.ones(shape))


def adaptive_by_hand(x, kernel, eps, weight, bias, variance):
    """The docstring's formula, location by location."""
    (height, width), (rows, columns) = kernel, x.shape[2:]
    y = np.empty_like(x)

    def window(maps, i, j):
        top, left = max(0, i - (height - 1) // 2), max(0, j - (width - 1) // 2)
        return maps[..., top : i + height // 2 + 1, left : j + width // 2 + 1]

    places = list(np.ndindex(rows, columns))
    mean = np.stack([window(x, *at).mean((0, 2, 3)) for at in places], -1).reshape(x.shape[1:])
    for i, j in places:
        centre = mean[:, i, j][:, None, None] if variance == "window" else window(mean, i, j)
        var = ((window(x, i, j) - centre) ** 2).mean((0, 2, 3))
        y[:, :, i, j] = weight * (x[:, :, i, j] - mean[:, i, j]) / np.sqrt(var + eps) + bias
    return y


over_variances = pytest.mark.parametrize("variance", ["pooled", "window"])


@over_variances
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, (3, 1), (2, 5), 99], ids=str)
def test_the_adaptive_norm_equals_its_formula_in_training_and_in_eval(kernel, variance):
    layer = randomised(ConvAdaptiveNorm2d(2, kernel, eps=0.01, variance=variance, dtype=torch.float64))
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    for shape in ((4, 2, 5, 6), (3, 2, 4, 1)):  # one layer takes maps of any size
        x = noise(shape)
        expected = adaptive_by_hand(x.numpy(), layer.kernel_size, 0.01, weight, bias, variance)
        for training in (True, False):
            y = layer.train(training)(x).detach().numpy()
            np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    assert not list(layer.buffers())


def test_the_adaptive_variance_is_the_pooled_one_unless_the_windows_is_asked_for():
    x = noise((4, 2, 5, 6)) + 10 * (torch.arange(6) > 2)  # an edge in the mean image tells them apart
    y = ConvAdaptiveNorm2d(2, 3, affine=False)(x).numpy()
    np.testing.assert_allclose(y, adaptive_by_hand(x.numpy(), (3, 3), 1e-3, 1, 0, "pooled"), rtol=1e-10)
    assert np.abs(y - adaptive_by_hand(x.numpy(), (3, 3), 1e-3, 1, 0, "window")).max() > 0.1
    with pytest.raises(ValueError, match="variance must be 'pooled' or 'window', got 'own'"):
        ConvAdaptiveNorm2d(2, 3, variance="own")


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@over_variances
@pytest.mark.parametrize("kernel", [1, 2, 3, 99])
def test_the_adaptive_norm_passes_torchs_checks_of_both_derivatives(kernel, variance, affine):
    layer = randomised(ConvAdaptiveNorm2d(2, kernel, affine=affine, variance=variance, dtype=torch.float64))
    check_derivatives(layer, noise((3, 2, 2, 3)))


@pytest.mark.parametrize(
    ("kernel", "limit"),
    [
        (1, ConvBatchNorm2d(3, (4, 6), track_running_stats=False, dtype=torch.float64)),
        ((7, 11), nn.BatchNorm2d(3, 1e-3, track_running_stats=False, dtype=torch.float64)),
        (99, nn.BatchNorm2d(3, 1e-3, track_running_stats=False, dtype=torch.float64)),
    ],
    ids=["local", "just-the-map", "far-beyond-it"],
)
def test_the_adaptive_norm_goes_from_local_statistics_to_the_maps(kernel, limit):
    own = randomised(ConvAdaptiveNorm2d(3, kernel, dtype=torch.float64))
    x = noise((5, 3, 4, 6))
    assert_same(step(own, x), step(randomised(limit), x))


@pytest.mark.parametrize("kernel", [1, 2, (2, 1)], ids=str)  # an even window has one value in the last corner
def test_the_adaptive_norm_refuses_a_window_of_one_value(kernel):
    layer = ConvAdaptiveNorm2d(3, kernel)
    with pytest.raises(NormError, match=r"by itself, to zero\. Use batches of 2 or more, or a larger kernel_size"):
        layer(torch.ones(1, 3, 4, 5))
    assert layer(torch.ones(2, 3, 4, 5)).shape == (2, 3, 4, 5)
    assert ConvAdaptiveNorm2d(3, 3)(torch.ones(1, 3, 4, 5)).shape == (1, 3, 4, 5)


@pytest.mark.parametrize(("kind", "name"), [(ConvBatchNorm2d, "spatial_shape"), (ConvAdaptiveNorm2d, "kernel_size")])
def test_lengths_are_two_whole_numbers_from_1_on_or_one_for_both(kind, name):
    for given in (14, (14, 14), [14, 14], np.int64(14), torch.Size((14, 14))):
        assert getattr(kind(8, given), name) == (14, 14)
    for given in ((), (14,), (3, 14, 14), "3", "33", 2.5, 4.0, (4.0, 4), None, (None, 3), {3: 3}):
        with pytest.raises(NormError, match=rf"{name} must be \(H, W\), or one number for both; got "):
            kind(8, given)
    for given in (0, (3, 0), -1):
        with pytest.raises(NormError, match=f"{name} must be at least 1, got "):
            kind(8, given)
