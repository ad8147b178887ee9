"""Surgery on whole networks: what is carried over, and what is said when it cannot be."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torchvision import models

from bnrepro.config import load_config
from bnrepro.norm import (
    NORMS,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvBatchNorm2d,
    NormError,
    batch_statistics,
    convert,
    fold,
    freeze,
    reestimate_statistics,
    resize,
)
from bnrepro.norm.folding import LocationAffine
from bnrepro.training.model import build, norm_of


class Shared(nn.Module):
    """One norm module in two places, as some networks have it."""

    def __init__(self, second_stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, stride=second_stride)
        self.norm = nn.BatchNorm2d(4)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(self.norm(self.first(x)).relu()))


def images(size: int = 32, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)) + 0.5


NETWORKS = {
    "resnet18": lambda: models.resnet18(num_classes=5),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=5),
    "shared": Shared,
}


@pytest.fixture(params=NETWORKS)
def trained(request: pytest.FixtureRequest) -> nn.Module:
    """A network whose statistics, gammas and betas are not those it began with, in eval mode."""
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(3):
        model(images())
    return model.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.detach().abs().max())))


@pytest.mark.parametrize("variant", ["bn", "custombn", "convbn", "peractivationbn", "locationaffinebn"])
def test_conversion_changes_no_output_in_eval_mode(trained: nn.Module, variant: str) -> None:
    want = trained(images())
    converted = convert(copy.deepcopy(trained), variant, images())
    close(converted(images()), want)
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {type(NORMS[variant](4, (2, 2)))}


@pytest.mark.parametrize("variant", ["custombn", "convbn"])
def test_conversion_and_back_restores_every_number(trained: nn.Module, variant: str) -> None:
    state = copy.deepcopy(trained.state_dict())
    back = convert(convert(trained, variant, images()), "bn", images())
    assert back.state_dict().keys() == state.keys()
    for name, value in back.state_dict().items():
        torch.testing.assert_close(value, state[name], msg=name)


def test_shared_norm_stays_shared() -> None:
    model = convert(Shared(), "convbn", images())
    assert model.norm is model.again
    assert isinstance(model.norm, ConvBatchNorm2d)


def test_shared_norm_on_maps_of_two_sizes_cannot_become_local() -> None:
    with pytest.raises(NormError, match=r"norm is used on maps of several sizes \(16x16, 32x32\)"):
        convert(Shared(second_stride=2), "convbn", images())
    assert isinstance(convert(Shared(second_stride=2), "custombn", images()).norm, BatchNorm2d)


def test_settings_mode_dtype_and_requires_grad_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.25, momentum=None)).double()
    model[1].weight.requires_grad_(False)
    new = convert(model, "convbn", images().double())[1]
    assert (new.eps, new.momentum, new.training) == (0.25, None, True)
    assert new.running_mean.dtype == torch.float64
    assert (new.weight.requires_grad, new.bias.requires_grad) == (False, True)
    assert not convert(model.eval(), "bn", images().double())[1].training
    assert convert(nn.Sequential(nn.BatchNorm2d(3, affine=False)), "custombn", images())[0].weight is None


def test_norms_of_every_dimension_are_converted() -> None:
    for theirs, ours, x in (
        (nn.BatchNorm1d(3), BatchNorm1d, torch.randn(4, 3)),
        (nn.BatchNorm1d(3), BatchNorm1d, torch.randn(4, 3, 5)),
        (nn.BatchNorm2d(3), BatchNorm2d, torch.randn(4, 3, 5, 5)),
        (nn.BatchNorm3d(3), BatchNorm3d, torch.randn(4, 3, 5, 5, 2)),
    ):
        new = convert(theirs, "custombn", x)
        assert type(new) is ours
        close(new(x), theirs(x))


def test_what_does_not_fit_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ConvBatchNorm2d(4, (30, 30), parameters="location"))
    with pytest.warns(UserWarning, match=r"1: weight \(4, 30, 30\) not carried over, the new layer keeps \(4,\)"):
        convert(model, "bn", images())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"1: running_mean \(4,\) not carried over, the new layer has none"):
        convert(model, "adaptive", images())


def test_norm_that_the_example_does_not_reach_is_left_and_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.idle = nn.ModuleList([nn.BatchNorm2d(4)])
    model.forward = lambda x: model[0](x)
    with pytest.warns(UserWarning, match=r"example_input did not reach idle\.0: these stay BatchNorm2d\."):
        convert(model, "convbn", images())
    assert type(model.idle[0]) is nn.BatchNorm2d


def test_losses_of_many_layers_are_told_in_a_line_each() -> None:
    model = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(17)))
    model.idle = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(7)])
    model.forward = lambda x: model[:17](x)
    with pytest.warns(UserWarning, match="convert to adaptive") as told:
        convert(model, "adaptive", images())
    (text,) = (str(warning.message) for warning in told)
    lost = r"0, 1, 2, 3, 4 and 12 more: running_mean \(3,\) not carried over, the new layer has none"
    assert len(re.findall(lost, text)) == 1
    assert text.endswith("did not reach idle.0, idle.1, idle.2, idle.3, idle.4 and 2 more: these stay BatchNorm2d.")


@pytest.mark.parametrize(
    "arguments", [(Shared, "x", "convbn"), ("bn", "convbn", "x"), (Shared, 1, "x")], ids=["swapped", "name", "number"]
)
def test_arguments_in_another_order_are_refused_in_a_line(arguments: tuple[Any, ...]) -> None:
    values: Any = [each() if callable(each) else images() if each == "x" else each for each in arguments]
    with pytest.raises(TypeError, match=r"convert takes a torch\.nn\.Module, a norm's name and an input") as refused:
        convert(*values)
    assert len(str(refused.value)) < 200


def test_conversion_to_what_there_is_not_or_does_not_fit_is_refused() -> None:
    with pytest.raises(NormError, match=r"There is no norm 'nosuch'\. Available: "):
        convert(Shared(), "nosuch", images())
    with pytest.raises(NormError, match="Did you mean convbn"):
        convert(Shared(), "convbm", images())
    with pytest.raises(NormError, match="made for maps"):
        convert(nn.BatchNorm3d(3), "convbn", torch.randn(2, 3, 4, 4, 4))


def test_example_moves_no_statistics_and_no_mode() -> None:
    model = Shared()
    before = copy.deepcopy(model.state_dict())
    convert(model, "custombn", images())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_our_networks_can_be_converted_and_still_name_their_norms() -> None:
    cfg = load_config(["model=resnet20", "model.width=0.25", "variant=bn"])
    net = build(cfg.model, norm_of(cfg), 3, (32, 32), 10, torch.Generator().manual_seed(0))
    convert(net, "convbn", images())
    assert {type(norm) for norm in net.norms.values()} == {ConvBatchNorm2d}
    assert len(net.norms) == 19


# --- freezing ---


def test_frozen_norms_stay_frozen_in_training(trained: nn.Module) -> None:
    for module in trained.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    want = trained(images())
    state = copy.deepcopy(trained.state_dict())
    frozen = freeze(trained).train()
    close(frozen(images()), want)
    frozen(images()).square().sum().backward()
    assert all(torch.equal(v, state[k]) for k, v in frozen.state_dict().items())
    norms = [m for m in frozen.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert any(p.grad is not None for p in frozen.parameters())


def test_freezing_can_leave_gamma_and_beta_to_learn() -> None:
    model = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), parameters=False)
    assert all(p.requires_grad for p in model.parameters())
    assert freeze(nn.BatchNorm1d(4)).frozen
    assert freeze(ConvBatchNorm2d(4, (5, 5))).frozen


def test_frozen_statistics_are_neither_estimated_again_nor_replaced_by_the_batchs() -> None:
    model = freeze(nn.Sequential(nn.BatchNorm2d(3))).eval()
    want = model(images())
    with batch_statistics(model):
        torch.testing.assert_close(model(images()), want)
    torch.testing.assert_close(reestimate_statistics(model, [images()])(images()), want)


RESETS = {
    "reset_running_stats": lambda model: [norm.reset_running_stats() for norm in model[1:]],
    "reset_parameters": lambda model: [norm.reset_parameters() for norm in model[1:]],
    "update_bn": lambda model: swa_utils.update_bn([images()], model),
}


@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
def test_nothing_resets_frozen_statistics(reset: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ConvBatchNorm2d(4, (30, 30)), NORMS["l1norm"](4, ()))
    for _ in range(3):
        model(images())
    before = copy.deepcopy(dict(freeze(model).named_buffers()))
    reset(model)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


def test_norm_without_running_statistics_cannot_be_frozen() -> None:
    with pytest.raises(NormError, match="keeps no running statistics"):
        freeze(nn.Sequential(BatchNorm2d(3, track_running_stats=False)))


# --- folding ---


@pytest.mark.quick(8)
@pytest.mark.parametrize("variant", ["bn", "custombn", "convbn", "peractivationbn", "locationaffinebn"])
def test_folding_changes_outputs_by_rounding_alone(trained: nn.Module, variant: str) -> None:
    model = convert(trained.double(), variant, images().double())
    want = model(images().double())
    folded = fold(model)
    torch.testing.assert_close(folded(images().double()), want, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    left = sum(isinstance(m, LocationAffine) for m in folded.modules())
    # Per channel all go into their convolutions, except the norm that is shared; per location none can.
    if isinstance(trained, Shared):
        assert left == 2 - 1
    else:
        assert (left == 0) == (variant in ("bn", "custombn"))
    torch.testing.assert_close(model(images().double()), want)  # the model itself is as it was


def test_folding_into_a_linear_layer_and_without_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), BatchNorm1d(4), nn.ReLU()).double()
    x = torch.randn(8, 6).double() * 3 + 1
    for _ in range(3):
        model(x)
    for example, last in ((None, "LocationAffine"), (x, "Identity")):  # the example shows which axis has the channels
        folded = fold(model.eval(), example)
        torch.testing.assert_close(folded(x), model(x))
        assert [type(m).__name__ for m in folded] == ["LocationAffine", "Linear", last, "ReLU"]


@pytest.mark.parametrize("variant", ["convbn", "peractivationbn", "locationaffinebn"])
def test_a_folded_local_norm_refuses_the_sizes_that_the_norm_refuses(variant: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NORMS[variant](4, (6, 6))).eval()
    folded = fold(model, images(8))
    for x in (images(3), images(5), images(12), images(8)[..., :5]):
        for each in (model, folded, nn.Sequential(folded[1])):
            with pytest.raises(NormError, match=r"size|before folding"):
                each(x)
    with pytest.raises(NormError, match=r"inputs of the shape \[N, 4, 6, 6\], and got \[4, 4, 8, 8\].* before folding"):
        resize(folded, images(10))


def test_a_folded_norm_refuses_other_channels_compiled_too() -> None:
    folded = fold(nn.Sequential(nn.BatchNorm2d(4)).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's script is deprecated
        scripted = torch.jit.script(folded)
    assert scripted(torch.ones(2, 4, 1, 1)).shape == (*folded(torch.ones(2, 4)).shape, 1, 1)
    for each, error in ((folded, NormError), (scripted, torch.jit.Error)):
        with pytest.raises(error, match=r"inputs of the shape \[N, 4, \.\.\.\], and got \[2, 1, 5, 5\]"):
            each(torch.ones(2, 1, 5, 5))


def test_a_norm_with_only_a_bias_per_location_is_folded() -> None:
    model = nn.Sequential(ConvBatchNorm2d(3, (32, 32), statistics="channel", parameters="location"))
    nn.init.uniform_(model[0].bias)
    model[0].weight = None
    torch.testing.assert_close(fold(model.eval())(images()), model(images()))


def test_layer_whose_output_goes_elsewhere_too_is_not_folded_into() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = Branch()
    model(images())
    folded = fold(model.eval())
    torch.testing.assert_close(folded(images()), model(images()))
    assert isinstance(folded.norm, LocationAffine)


def test_only_running_statistics_in_eval_mode_are_folded() -> None:
    with pytest.raises(NormError, match=r"Call \.eval"):
        fold(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4)))
    with pytest.raises(NormError, match="on layers that keep them"):
        fold(nn.Sequential(BatchNorm2d(3, track_running_stats=False)).eval())


# --- other sizes ---


def test_resizing_fits_local_statistics_to_another_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), ConvBatchNorm2d(4, (32, 32), parameters="location"))
    for _ in range(3):
        model(images())
    model.eval()
    same = copy.deepcopy(model)
    resize(same, images())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in same.state_dict().items())
    with pytest.raises(NormError, match="of another size"):
        model(images(48))
    resize(model, images(48))
    layer = model[1]
    assert layer.spatial_shape == (48, 48)
    assert layer.running_mean.shape == layer.weight.shape == (4, 48, 48)
    want = nn.functional.interpolate(same[1].running_mean[None], (48, 48), mode="bilinear")[0]
    torch.testing.assert_close(layer.running_mean, want)
    assert model(images(48)).shape == (4, 4, 48, 48)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_constant_statistics_survive_resizing() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    for _ in range(3):
        plain(images())
    plain.eval()
    local = resize(convert(copy.deepcopy(plain), "convbn", images()), images(40))
    close(local(images(40)), plain(images(40)))


def test_population_statistics_follow_a_conversion() -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.BatchNorm2d(3)), "convbn", images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reestimate_statistics(model, [images(count=6)])
    torch.testing.assert_close(model[0].running_mean, images(count=6).mean(0))
    torch.testing.assert_close(model[0].running_var, images(count=6).var(0))


@pytest.mark.parametrize("variant", ["dyt", "layernorm", "groupnorm", "convbn"])
def test_torchs_defaults_change_nothing(variant, torchs_defaults):
    x = torch.randn(4, 3, 6, 5)
    with torchs_defaults(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not carried over
        layer = convert(nn.Sequential(nn.BatchNorm2d(3, device="cpu", dtype=torch.float32)).eval(), variant, x)[0]
    assert {(t.device.type, t.dtype) for t in layer.parameters()} == {("cpu", torch.float32)}
    if variant == "dyt":
        torch.testing.assert_close(layer(x), torch.tanh(0.5 * x))
