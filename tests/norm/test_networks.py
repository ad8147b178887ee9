"""Conversion, freezing and folding of torchvision's and timm's networks: the same outputs, or a refusal by name."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torchvision import models

from bnrepro.norm import (
    BatchNorm2d,
    ConvBatchNorm2d,
    NormError,
    convert,
    fold,
    freeze,
    reestimate_statistics,
    resize,
    synchronize,
)
from bnrepro.norm.folding import LocationAffine

# (library, network, side of its images); what takes long is left to the slow part.
QUICK = [
    ("torchvision", "resnet18", 32),
    ("torchvision", "mobilenet_v3_small", 32),
    ("torchvision", "shufflenet_v2_x0_5", 32),
    ("timm", "test_resnet", 32),
    ("timm", "test_efficientnet", 32),
    ("timm", "test_byobnet", 32),
    ("timm", "lcnet_035", 32),
    ("timm", "tinynet_e", 32),
]
SLOW = [
    *(("torchvision", name, 32) for name in ("mobilenet_v2", "squeezenet1_1", "densenet121", "vgg11_bn", "mnasnet0_5")),
    *(("torchvision", name, 32) for name in ("efficientnet_b0", "regnet_y_400mf", "resnext50_32x4d")),
    ("torchvision", "googlenet", 64),
    ("torchvision", "inception_v3", 75),
    *(("timm", name, 64) for name in ("resnet10t", "mobilenetv3_small_050", "efficientnet_lite0", "ghostnet_050")),
    *(("timm", name, 64) for name in ("repvgg_a0", "mobileone_s0", "regnetx_002", "hardcorenas_a", "dla34")),
    *(
        ("timm", name, 64)
        for name in ("fastvit_t8", "skresnet18", "resnet18d", "legacy_seresnet18", "res2net50_26w_4s")
    ),
    *(("timm", name, 64) for name in ("dpn48b", "darknet17", "cspresnet50", "gernet_s", "mobilevit_xxs")),
    ("timm", "tf_mobilenetv3_small_minimal_100", 64),  # which torch.fx cannot trace
    ("timm", "nextvit_small", 64),  # whose attention has norms over (N, C, L), which convbn refuses
    ("timm", "xcit_nano_12_p16_224", 224),
    ("timm", "levit_128s", 224),
]
over_networks = pytest.mark.parametrize(
    ("library", "name", "side"),
    [
        pytest.param(*case, id="-".join(case[:2]), marks=[pytest.mark.slow] if case in SLOW else [])
        for case in QUICK + SLOW
    ],
)
OPERATIONS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "bn": lambda model, x: convert(model, "bn", x),
    "custombn": lambda model, x: convert(model, "custombn", x),
    "convbn": lambda model, x: convert(model, "convbn", x),
    "freeze": lambda model, x: freeze(model),
    "frozen, in training": lambda model, x: norms_in_training(freeze(model)),
    "frozen and converted": lambda model, x: norms_in_training(convert(freeze(model), "custombn", x)),
    "fold": lambda model, x: fold(model),
    "fold, checked": lambda model, x: fold(model, x),
    "fold of ours": lambda model, x: fold(convert(model, "custombn", x)),
}


def make(library: str, name: str) -> nn.Module:
    """In float64 and eval mode, with norms of no initial value."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=5)
    else:
        keywords = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = getattr(models, name)(num_classes=5, **keywords)
    return randomised(model.double().eval())


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low in (module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5):
                if tensor is not None:
                    tensor.uniform_(low, low + 1)
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 1.5)
    return model


def norms_in_training(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
    return model


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.quick(3)
@over_networks
def test_outputs_stay_or_the_network_is_refused_by_name(library: str, name: str, side: int) -> None:
    model = make(library, name)
    x = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = output(model, x)
    names = [n for n, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for what, operation in OPERATIONS.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "convert to .*: example_input did not reach .*: these stay BatchNorm2d")
            warnings.filterwarnings("ignore", "fold: torch.fx cannot trace the network")
            try:
                changed = operation(copy.deepcopy(model), x)
            except NormError as error:
                assert name == "nextvit_small", what
                assert any(str(error).startswith(f"{n}: ") for n in names)
                continue
        difference = (output(changed, x) - want).abs().max() / want.abs().max()
        assert difference < 1e-9, what
        if not what.startswith("fold"):
            assert changed.state_dict().keys() == model.state_dict().keys()
            assert [n for n, _ in changed.named_modules()] == [n for n, _ in model.named_modules()]


def with_activation(**keywords: Any) -> nn.Module:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm = BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=lambda: nn.Dropout2d(0.5), **keywords)
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 1)))


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_norm_with_dropout_and_activation_trains_as_it_did() -> None:
    results = []
    for change in (lambda model: model, lambda model: convert(model, "custombn", IMAGES)):
        model = change(with_activation()).train()
        torch.manual_seed(1)  # of the dropout
        y = model(IMAGES)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters()), *model.buffers()])
    assert len(results[0]) == len(results[1])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_a_norm_with_activation_is_folded_and_its_activation_kept() -> None:
    model = with_activation().eval()
    for changed in (model, convert(copy.deepcopy(model), "custombn", IMAGES)):
        folded = fold(changed)
        torch.testing.assert_close(output(folded, IMAGES), output(model, IMAGES))
        assert not any(isinstance(module, LocationAffine | _BatchNorm) for module in folded.modules())


def test_prelu_inside_a_norm_goes_on_learning_when_the_norm_is_frozen() -> None:
    from timm.layers import BatchNormAct2d

    model = freeze(nn.Sequential(BatchNormAct2d(3, act_layer=nn.PReLU)))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        "0.weight": False,
        "0.bias": False,
        "0.act.weight": True,
    }


@pytest.mark.parametrize("change", ["convert", "freeze"])
def test_norms_that_are_no_batch_normalization_stay_as_they_are(change: str) -> None:
    from timm.layers import EvoNorm2dB0, FrozenBatchNormAct2d, GroupNormAct
    from torchvision.ops import FrozenBatchNorm2d

    kinds = [FrozenBatchNorm2d, FrozenBatchNormAct2d, EvoNorm2dB0, nn.InstanceNorm2d]
    model = nn.Sequential(*(kind(4) for kind in kinds), GroupNormAct(4, num_groups=2)).eval()
    x = torch.randn(2, 4, 3, 3)
    want = model(x)
    changed = convert(model, "custombn", x) if change == "convert" else freeze(model)
    assert torch.equal(changed(x), want)
    assert [type(m) for m in changed] == [*kinds, GroupNormAct]
    torch.testing.assert_close(fold(model, x)(x), want)


def test_networks_for_detection_and_segmentation_with_frozen_norms() -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    model = randomised(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).double().eval())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    want = output(model, x)["out"]
    for change in (lambda m: fold(m, x), lambda m: convert(m, "convbn", x), freeze):
        torch.testing.assert_close(output(change(copy.deepcopy(model)), x)["out"], want, rtol=1e-9, atol=1e-9)


# --- hooks and whatever else a module has ---


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    **{v: partial(convert, variant=v, example_input=IMAGES) for v in ("custombn", "convbn", "groupnorm", "nobn")},
    "freeze": freeze,
    "synchronize": partial(synchronize, group=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_hooks_of_every_kind_attributes_and_references_stay(change: str) -> None:
    calls: list[str] = []

    def note(what: str) -> Callable[..., None]:
        return lambda *_: calls.append(what)

    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    kept = [norm]  # as some networks have it, beside the registered one
    norm.mine, norm.extra, norm.boost = "a note", nn.Linear(2, 2), nn.Parameter(torch.tensor(0.5))
    norm.register_buffer("steps", torch.tensor(3), persistent=False)
    handle = norm.register_forward_pre_hook(note("removed"))
    norm.register_forward_pre_hook(note("before"))
    norm.register_forward_hook(lambda module, inputs, y: y + module.boost)
    norm.register_full_backward_hook(note("backward"))
    norm.register_full_backward_pre_hook(note("before backward"))
    norm.register_state_dict_pre_hook(note("state"))
    norm.register_load_state_dict_pre_hook(note("load"))
    norm.register_load_state_dict_post_hook(note("loaded"))
    gamma = norm.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the statistics that some variants do not keep
        assert CHANGES[change](model) is model
    assert model[1] is kept[0]
    handle.remove()
    calls.clear()
    y = model(IMAGES)
    y.square().sum().backward()
    assert norm.boost.grad is not None
    model.load_state_dict(model.state_dict())
    assert calls == ["before", "before backward", "backward", "state", "load", "loaded"]
    assert (norm.mine, int(norm.steps), norm.extra.in_features) == ("a note", 3, 2)
    assert "1.steps" not in model.state_dict()
    if change not in ("groupnorm", "nobn"):
        assert norm.weight is gamma  # what an optimizer holds


def test_missing_parameters_stay_missing() -> None:
    without_gamma = nn.BatchNorm2d(3)
    without_gamma.weight = None
    no_statistics = nn.BatchNorm2d(3, track_running_stats=False)
    no_count = nn.BatchNorm2d(3)
    no_count.num_batches_tracked = None
    no_beta = nn.BatchNorm2d(3)
    no_beta.bias = None
    for norm in (without_gamma, no_statistics, no_count, no_beta, nn.BatchNorm2d(3, affine=False)):
        x = torch.randn(4, 3, 5, 5)
        have = {name for name in vars(norm)["_parameters"] | norm._buffers if getattr(norm, name) is not None}
        want = copy.deepcopy(norm)(x)
        new = convert(nn.Sequential(norm), "custombn", x)[0]
        assert {name for name in new._parameters | new._buffers if getattr(new, name) is not None} == have
        torch.testing.assert_close(new(x), want)
        assert new.track_running_stats == norm.track_running_stats


def test_frozen_stays_frozen_through_conversion_or_is_refused() -> None:
    model = freeze(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    assert convert(copy.deepcopy(model), "convbn", IMAGES)[1].frozen
    for variant in ("bn", "adaptive", "groupnorm"):
        with pytest.raises(NormError, match=rf"1 is frozen, and {variant} would thaw it"):
            convert(model, variant, IMAGES)
    model[1].frozen = False
    assert type(convert(model, "bn", IMAGES)[1]) is nn.BatchNorm2d


class Clipped(nn.BatchNorm2d):
    """A norm that does more than its base, in one of many ways."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(0, 1)


class Stubborn(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


class Ours(BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Plain(nn.BatchNorm2d):
    """A subclass with other defaults alone."""

    def __init__(self, features: int) -> None:
        super().__init__(features, eps=0.5)


def replaced_forward() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.forward = lambda x: x
    return norm


def flagged() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.frozen = True  # a note of the user's own, which our layers would take for theirs
    return norm


def parametrized() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    return prune.random_unstructured(nn.BatchNorm2d(3), "weight", 1)


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized import BatchNorm2d as Quantized
    return Quantized(3)


REFUSED = {
    "forward": (lambda: Clipped(3), "defines forward"),
    "train": (lambda: Stubborn(3), "defines train"),
    "of ours": (lambda: Ours(3), "defines forward"),
    "instance": (replaced_forward, "defines forward"),
    "attribute": (flagged, "our layers use the name frozen for something else"),
    "parametrized": (parametrized, "its weight is computed from other tensors"),
    "pruned": (pruned, "its weight is computed from other tensors"),
    "lazy": (nn.LazyBatchNorm2d, "it has no size yet"),
    "quantized": (quantized, "defines .*forward"),
}


@pytest.mark.parametrize(("made", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_more_than_is_known_is_refused_and_nothing_is_changed(made: Callable, reason: str) -> None:
    model = nn.ModuleDict({"stem": nn.Sequential(nn.BatchNorm2d(3)), "body": nn.Sequential(made())}).eval()
    model.forward = lambda x: model["stem"](x)
    operations = [lambda: freeze(model), lambda: fold(model)]
    if reason != "it has no size yet":  # convert runs the network, which gives it one
        operations.append(lambda: convert(model, "custombn", IMAGES))
    if not hasattr(model["body"][0], "process_group"):
        operations.append(lambda: synchronize(model, object()))
    for operation in operations:
        with pytest.raises(NormError, match=rf"body\.0 \(\w+\) cannot be replaced: .*{reason}"):
            operation()
    assert type(model["stem"][0]) is nn.BatchNorm2d


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: [f], lambda f: {"norm": f}], ids=["itself", "list", "dict"])
@pytest.mark.parametrize("change", [freeze, partial(synchronize, group=object())], ids=["freeze", "synchronize"])
def test_a_network_that_keeps_the_forward_of_a_norm_is_refused(change: Callable, wrap: Callable) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[0].own = wrap(model[0][1].forward)
    with pytest.raises(NormError, match=r"^0\.own keeps the forward of a BatchNorm2d"):
        change(model)
    assert type(model[0][1]) is nn.BatchNorm2d
    model[0].own = wrap(model[0][1])
    assert type(change(model)[0][1]) is BatchNorm2d


def test_a_norm_that_a_layer_for_quantization_uses_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.intrinsic import ConvBn2d as Fused
        from torch.ao.nn.intrinsic.qat import ConvBn2d
        from torch.ao.quantization import get_default_qat_qconfig

        model = nn.Sequential(ConvBn2d(3, 4, 3, qconfig=get_default_qat_qconfig())).eval()
    for operation in (freeze, fold, lambda model: convert(model, "custombn", IMAGES)):
        with pytest.raises(NormError, match=r"0\.bn \(BatchNorm2d\) cannot be replaced: ConvBn2d, which it is a part"):
            operation(model)
    only_put_together = nn.Sequential(Fused(nn.Conv2d(3, 4, 3), randomised(nn.BatchNorm2d(4)))).eval()
    torch.testing.assert_close(fold(only_put_together)(IMAGES), only_put_together(IMAGES))


def test_remedies_work() -> None:
    for made, remedy in (
        (pruned, lambda norm: nn.utils.prune.remove(norm, "weight")),
        (parametrized, lambda norm: nn.utils.parametrize.remove_parametrizations(norm, "weight")),
    ):
        norm = made()
        remedy(norm)
        assert type(convert(nn.Sequential(norm), "custombn", IMAGES)[0]) is BatchNorm2d


def test_a_subclass_with_other_defaults_is_what_its_base_is() -> None:
    assert type(convert(nn.Sequential(Plain(3)), "custombn", IMAGES)[0]) is BatchNorm2d
    assert convert(nn.Sequential(Plain(3)), "custombn", IMAGES)[0].eps == 0.5


def test_lazy_norms_are_converted_once_they_have_a_size() -> None:
    model = nn.Sequential(nn.LazyBatchNorm2d())
    assert type(convert(model, "convbn", IMAGES)[0]) is ConvBatchNorm2d


def test_synchronized_norms_become_ours_and_say_what_is_lost() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(3)).eval()
    want = model(IMAGES)
    with pytest.raises(NormError, match="0 is a SyncBatchNorm, which cannot be frozen here"):
        freeze(model)
    with pytest.warns(UserWarning, match="0: takes its statistics from each process alone now"):
        convert(model, "custombn", IMAGES)
    torch.testing.assert_close(freeze(model)(IMAGES), want)


# --- what may be folded ---


def trained(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return randomised(nn.Sequential(*layers)).double().eval()


class Twice(nn.Module):
    """The layer's output, or its weight, goes elsewhere too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "weight":
            return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight)
        if self.how == "called twice":
            return self.norm(self.conv(x)) + self.conv(x)
        if self.how == "norm twice":
            return self.norm(self.norm(self.conv(x)))
        if self.how == "order":
            return self.conv(self.norm(x))
        if self.how == "keyword":
            return self.norm(input=self.conv(input=x))
        return self.norm(self.conv(x).relu_())


class Optional(nn.Module):
    """A forward that does something else if it is given more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(x)) if mask is None else self.norm(self.conv(x) * mask)


def hooked(where: str) -> nn.Module:
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    layer = conv if where.startswith("conv") else norm
    if where.endswith("pre"):
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    else:
        layer.register_forward_hook(lambda module, inputs, y: y.relu())
    return trained(conv, norm)


def watched(where: str) -> tuple[nn.Module, list[Tensor]]:
    """A network with a hook on a container, and what the hook notes."""
    first, second = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    model = trained(nn.Sequential(first), nn.Sequential(second))
    seen: list[Tensor] = []
    container = {"output": model[0], "inner output": first, "input": model[1], "inner input": second, "all": model}
    hook = lambda module, inputs, *y: seen.append((*inputs, *y)[-1])  # noqa: E731
    if "input" in where:
        container[where].register_forward_pre_hook(hook)
    else:
        container[where].register_forward_hook(hook)
    return model, seen


@pytest.mark.parametrize("where", ["output", "inner output", "input", "inner input", "all"])
@pytest.mark.parametrize("example", [None, IMAGES.double()], ids=["alone", "with an example"])
def test_a_hook_of_a_container_sees_what_it_saw(where: str, example: Tensor | None) -> None:
    model, seen = watched(where)
    model(IMAGES.double())
    want, folded = seen[-1], fold(model, example)
    folded(IMAGES.double())
    torch.testing.assert_close(seen[-1], want)
    assert any(isinstance(module, LocationAffine) for module in folded.modules()) is (where != "all")


def normed(kind: str) -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        conv = {
            "weight_norm": lambda: nn.utils.weight_norm(conv),
            "parametrized": lambda: nn.utils.parametrizations.weight_norm(conv),
            "spectral": lambda: nn.utils.parametrizations.spectral_norm(conv),
            "pruned": lambda: prune.random_unstructured(conv, "weight", 0.5),
        }[kind]()
    return randomised(nn.Sequential(conv, nn.BatchNorm2d(4))).double().eval()


def patched(method: str) -> nn.Module:
    """The convolution's result is doubled by a method of the instance's own."""
    model = trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    bound = getattr(model[0], method)
    setattr(model[0], method, types.MethodType(lambda conv, *given: 2 * bound(*given), model[0]))
    return model


def tied() -> nn.Module:
    model = trained(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    return model


IMAGE = (2, 3, 5, 5)
FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int | None]] = {
    # a network, the shape of its input, and how many of its norms stay a LocationAffine without an example
    "1d, 3-D, before a convolution": (lambda: trained(nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3)), (2, 6, 9), 1),
    "1d, 3-D, as many as long": (lambda: trained(nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3)), (6, 6, 6), 1),
    "1d, 2-D": (lambda: trained(nn.BatchNorm1d(6), nn.Linear(6, 4)), (6, 6), 1),
    "conv1d": (lambda: trained(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)), (2, 3, 5), 1),
    "conv1d without a batch": (lambda: trained(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)), (3, 5), 1),
    "linear": (lambda: trained(nn.Linear(3, 4), nn.BatchNorm1d(4)), (5, 3), 1),
    "linear on 3-D": (lambda: trained(nn.Linear(5, 5), nn.BatchNorm1d(5)), (2, 5, 5), 1),
    "conv2d": (lambda: trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGE, 0),
    "conv3d": (lambda: trained(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4)), (2, 3, 4, 4, 4), 0),
    "groups": (lambda: trained(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)), (2, 4, 5, 5), 0),
    "no gamma": (lambda: trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), IMAGE, 0),
    "transposed": (lambda: trained(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)), (2, 4, 5, 5), 1),
    "pad": (lambda: trained(nn.Conv2d(3, 4, 1, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)), IMAGE, 0),
    "norm alone": (lambda: trained(nn.BatchNorm2d(3))[0], IMAGE, 1),
    "weight used elsewhere": (lambda: trained(Twice("weight")), IMAGE, 1),
    "layer twice": (lambda: trained(Twice("called twice")), IMAGE, 1),
    "norm twice": (lambda: trained(Twice("norm twice")), IMAGE, 1),
    "other order": (lambda: trained(Twice("order")), IMAGE, 1),
    "in-place activation between": (lambda: trained(Twice("relu")), IMAGE, 1),
    "keywords": (lambda: trained(Twice("keyword")), IMAGE, 0),
    "optional argument": (lambda: trained(Optional()), IMAGE, 0),
    **{f"hook on {at}": (partial(hooked, at), IMAGE, 1) for at in ("conv", "conv pre", "norm", "norm pre")},
    **{f"own {name}": (partial(patched, name), IMAGE, 1) for name in ("forward", "_conv_forward", "_call_impl")},
    **{kind: (partial(normed, kind), IMAGE, 1) for kind in ("weight_norm", "parametrized", "spectral", "pruned")},
    "tied": (tied, IMAGE, 0),
}  # fmt: skip


@pytest.mark.parametrize(("made", "shape", "left"), FOLDED.values(), ids=FOLDED)
def test_only_what_is_the_same_is_folded(made: Callable, shape: tuple[int, ...], left: int) -> None:
    model = made()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    want = output(model, x)
    for example in (None, x):
        folded = fold(model, example)
        torch.testing.assert_close(output(folded, x), want, rtol=1e-9, atol=1e-9)
        affine = sum(isinstance(module, LocationAffine) for module in folded.modules())
        assert affine == left if example is None else affine <= left
    torch.testing.assert_close(output(model, x), want, rtol=0, atol=0)


def test_a_network_whose_forward_is_its_own_is_folded_norm_by_norm() -> None:
    model = trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.forward = types.MethodType(lambda s, x: s[1](2 * s[0](x)), model)
    x = IMAGES.double()
    for example in (None, x):
        with pytest.warns(UserWarning, match="its forward is not that of its class"):
            folded = fold(model, example)
        torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_another_dtype_than_its_convolution_stays_by_itself(dtype: torch.dtype) -> None:
    model = trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).float()
    model[0].to(dtype)
    x = IMAGES.to(dtype)
    folded = fold(model, x)
    assert isinstance(folded[1], LocationAffine)
    torch.testing.assert_close(output(folded, x), output(model, x), rtol=1e-2, atol=1e-2)


def test_weights_that_would_overflow_are_not_folded() -> None:
    model = trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).float()
    with torch.no_grad():
        model[0].weight.fill_(1e30)
        model[1].running_var.fill_(1e-30)
        model[1].eps = 0.0
    assert isinstance(fold(model)[1], LocationAffine)


class Reads(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.norm, self.what = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), what

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * getattr(self.norm, self.what).view(1, 3, 1, 1)


@pytest.mark.parametrize("what", ["weight", "running_mean"])
def test_a_norm_whose_tensors_something_else_reads_is_refused(what: str) -> None:
    with pytest.raises(NormError, match=r"0\.norm: its parameters or statistics are used outside of it too"):
        fold(trained(Reads(what)))


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_an_example_on_which_outputs_differ_is_refused() -> None:
    with pytest.raises(NormError, match="on the example differs by"):
        fold(trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Random()), IMAGES.double())


def test_a_network_that_cannot_be_traced_is_folded_norm_by_norm() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) if y.sum() > 0 else self.norm(-y)

    model = trained(Branching())
    with pytest.warns(UserWarning, match=r"torch\.fx cannot trace the network \(TraceError"):
        folded = fold(model)
    torch.testing.assert_close(output(folded, IMAGES.double()), output(model, IMAGES.double()))
    assert isinstance(folded[0].norm, LocationAffine)


@pytest.mark.parametrize("message", ["", "\n", "first\nsecond"])
def test_whatever_an_error_in_tracing_says_the_warning_is_a_line_at_the_call(message: str) -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(x, Tensor) or isinstance(x, torch.fx.Proxy):
                raise LookupError(message)
            return self.norm(x)

    with pytest.warns(UserWarning, match=r"trace the network \(LookupError(: first)?\), so no norm") as told:
        fold(Refusing().eval())
    assert told[0].filename == __file__


# --- forwards that do more with a norm than call it ---


class Using(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


class Whole(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.part = Using(forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def plain(s: Any, x: Tensor) -> Tensor:
    return s.norm(s.conv(x))


def kept(s: Any, x: Tensor) -> float:
    """A number that is worked out in the first call and kept."""
    if not hasattr(s, "kept"):
        s.conv(x)
        s.kept = 2.0
    return s.kept


# A forward; whether it becomes convbn; whether it is folded without an example, and with one.
USES: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool, bool, bool]] = {
    "class": (lambda s, x: plain(s, x) if isinstance(s.norm, nn.BatchNorm2d) else s.conv(-x), False, False, False),
    "type": (lambda s, x: plain(s, x) if type(s.norm) is nn.BatchNorm2d else s.conv(-x), False, False, False),
    "or none": (lambda s, x: s.conv(x) if isinstance(s.norm, nn.Identity) else plain(s, x), True, False, True),
    "statistics": (lambda s, x: plain(s, x) * s.norm.running_mean.view(1, 3, 1, 1), False, False, False),
    "state_dict of norm": (
        lambda s, x: plain(s, x) * s.state_dict()["norm.running_var"].view(1, 3, 1, 1),
        False,
        False,
        False,
    ),
    "buffers": (lambda s, x: plain(s, x) * dict(s.norm.named_buffers())["running_mean"][:1], True, False, False),
    "parameters": (lambda s, x: plain(s, x) * next(s.conv.parameters()).sum(), True, True, True),
    "a number": (lambda s, x: plain(s, x) * float(next(s.conv.parameters()).sum()), True, True, True),
    "state_dict": (lambda s, x: plain(s, x) * s.conv.state_dict()["weight"].mean(), True, True, True),
    "dict": (lambda s, x: plain(s, x) * s.conv.__dict__["_parameters"]["weight"].mean(), True, True, True),
    "data": (lambda s, x: plain(s, x) + next(s.conv.parameters()).data.mean(), True, True, True),
    "gamma": (lambda s, x: plain(s, x) * next(s.norm.parameters()).mean(), True, False, False),
    "dtype": (lambda s, x: plain(s, x).to(next(s.parameters()).dtype), True, True, True),
    "settings": (lambda s, x: plain(s, x) * s.norm.num_features + s.norm.eps * s.norm.momentum, True, True, True),
    "flags": (lambda s, x: plain(s, x) * s.norm.affine * s.norm.track_running_stats, True, True, True),
    "cache": (lambda s, x: plain(s, x) * kept(s, x) if s.norm.eps else x, True, True, True),
    "random": (lambda s, x: nn.functional.dropout(plain(s, x), 0.5, training=True) * 0, True, True, True),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "becomes", "folds", "folds_checked"), USES.values(), ids=USES)
def test_whatever_a_forward_does_outputs_stay_or_it_is_refused_by_name(
    forward: Callable, becomes: bool, folds: bool, folds_checked: bool
) -> None:
    model, x = randomised(Whole(forward)).double().eval(), IMAGES.double()
    want = output(model, x)
    state = copy.deepcopy(model.state_dict())
    for allowed, change in (
        (becomes, lambda m: convert(m, "convbn", x)),
        (folds, fold),
        (folds_checked, lambda m: fold(m, x)),
    ):
        changed = copy.deepcopy(model)
        if allowed:
            torch.testing.assert_close(output(change(changed), x), want)
        else:
            with pytest.raises(NormError, match=r"part\.norm|part\.conv|^fold: an output of shape"):
                change(changed)
            assert type(changed.part.norm) is nn.BatchNorm2d
            torch.testing.assert_close(dict(changed.state_dict()), dict(state))


def test_a_random_network_is_converted_and_not_compared() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Random()).eval()
    assert type(convert(model, "convbn", IMAGES)[0]) is ConvBatchNorm2d
    with pytest.raises(NormError, match="change from run to run, and cannot be compared: fold it without an example"):
        fold(nn.Sequential(nn.BatchNorm2d(3), Random()).eval(), IMAGES)


def test_rounding_that_a_network_magnifies_is_no_difference() -> None:
    """In float32 these outputs come apart by a tenth of their size, in float64 by nothing to speak of."""

    class Magnifying(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2.0**17).sin()

    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Magnifying())).eval()
    folded = fold(model, IMAGES)
    assert isinstance(folded[1], nn.Identity)
    assert (output(folded, IMAGES) - output(model, IMAGES)).abs().max() > 1e-3
    assert isinstance(convert(model, "convbn", IMAGES)[1], ConvBatchNorm2d)


# --- parts that cannot be changed, tensors without values, tied tensors ---


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()


def scripted(how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "script":
            return torch.jit.script(small())
        if how == "trace":
            return torch.jit.trace(small(), IMAGES)
        if how == "frozen":
            return torch.jit.freeze(torch.jit.script(small()))
        program = torch.export.export(small(), (IMAGES,), strict=False)  # which later torch takes by default
        return program.module() if how == "export" else torch.export.unflatten(program)


EVERY: dict[str, Callable[[nn.Module], Any]] = {
    "convert": lambda model: convert(model, "custombn", IMAGES),
    "fold": fold,
    "freeze": freeze,
    "reestimate_statistics": lambda model: reestimate_statistics(model, [IMAGES]),
    "resize": lambda model: resize(model, IMAGES),
    "synchronize": lambda model: synchronize(model, object()),
}


@pytest.mark.parametrize("how", ["script", "trace", "frozen", "export", "unflatten"])
def test_compiled_parts_are_refused_by_name(how: str) -> None:
    part = scripted(how)
    for operation in EVERY.values():
        for model, name in ((part, "The model" if how != "unflatten" else "0"), (nn.Sequential(nn.ReLU(), part), "1")):
            with pytest.raises(NormError, match=rf"^{name}(\.0)? \(\w+\) was compiled by torch\."):
                operation(model)


@pytest.mark.parametrize("operation", EVERY)
def test_what_is_no_network_and_what_has_no_values_is_refused_in_a_line(operation: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        EVERY[operation](lambda x: x)
    real = small()
    with FakeTensorMode():
        for model in (real, small()):
            with pytest.raises(NormError, match="Fake tensors"):
                EVERY[operation](model)
    if operation == "fold":
        with pytest.raises(NormError, match="on the meta device"):
            fold(small().to("meta"))


@pytest.mark.parametrize("variant", ["custombn", "convbn", "peractivationbn", "groupnorm"])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "num_batches_tracked"])
@pytest.mark.filterwarnings("ignore:convert to groupnorm")
def test_tied_tensors_stay_tied(name: str, variant: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    setattr(model[2], name, getattr(model[0], name))
    convert(model, variant, IMAGES)
    assert getattr(model[0], name, None) is getattr(model[2], name, None)
    if variant == "peractivationbn":
        larger = torch.randn(2, 3, 9, 9)
        resize(model, larger)
        assert getattr(model[0], name) is getattr(model[2], name)
        assert model(larger).shape == larger.shape


def test_tensors_that_would_come_untied_are_refused_by_name() -> None:
    model = small()
    model[1].bias = model[0].bias
    assert convert(copy.deepcopy(model), "convbn", IMAGES)[1].bias.shape == (3,)
    with pytest.raises(NormError, match=r"1\.bias is the same tensor as 0\.bias, and peractivationbn needs it"):
        convert(model, "peractivationbn", IMAGES)
    model[1].bias = nn.Parameter(model[1].bias.detach().clone())  # as it says
    convert(model, "peractivationbn", IMAGES)
    model.also = model[1].bias
    with pytest.raises(NormError, match="The model shares a tensor with a norm"):
        resize(model, torch.randn(2, 3, 9, 9))
    assert model[1].bias is model.also


@pytest.mark.parametrize(
    "example", [None, (IMAGES,), [IMAGES], IMAGES.numpy(), 3, "images"], ids=lambda x: type(x).__name__
)
def test_an_example_of_another_type_is_refused_in_a_line(example: Any) -> None:
    local = convert(small(), "convbn", IMAGES)
    for operation in (lambda: convert(small(), "convbn", example), lambda: resize(local, example)):
        with pytest.raises(NormError, match=f"does not run on the example, a {type(example).__name__} ") as refused:
            operation()
        assert len(str(refused.value).splitlines()) == 1


def test_a_size_that_does_not_fit_leaves_the_network_as_it_was() -> None:
    model = convert(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2)), "convbn", IMAGES)
    want = output(model.eval(), IMAGES)
    for example in (torch.randn(2, 3, 9, 9), IMAGES[0]):
        with pytest.raises((RuntimeError, ValueError), match=r"cannot be multiplied|takes a 4D input"):
            resize(model, example)
    torch.testing.assert_close(output(model, IMAGES), want)


def test_what_is_made_in_inference_mode_can_be_trained() -> None:
    model = small()
    with torch.inference_mode():
        for example in (IMAGES, IMAGES.clone()):  # the second is an inference tensor
            convert(model, "convbn", example)
        resize(model, torch.randn(2, 3, 9, 9))
        folded = fold(model, torch.randn(2, 3, 9, 9))
    for each in (model.train(), folded):
        each(torch.randn(2, 3, 9, 9)).sum().backward()
        assert all(p.grad is not None for p in each.parameters())
