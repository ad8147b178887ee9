"""Our layers wherever torch's are called, changed, copied, traced and refused: beside torch's, step by step."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import swa_utils

from bnrepro.norm import (
    NORMS,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvBatchNorm2d,
    NormError,
    convert,
    fold,
    freeze,
    reestimate_statistics,
)

TWINS = {
    "1d": (BatchNorm1d, nn.BatchNorm1d, (5, 3)),
    "1d, 3-D": (BatchNorm1d, nn.BatchNorm1d, (5, 3, 4)),
    "2d": (BatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 3)),
    "3d": (BatchNorm3d, nn.BatchNorm3d, (3, 3, 2, 1, 2)),
}
over_twins = pytest.mark.parametrize(("ours", "torchs", "shape"), TWINS.values(), ids=TWINS)
LOCAL = partial(ConvBatchNorm2d, 3, (2, 3))
IMAGES = torch.randn(4, 3, 2, 3, generator=torch.Generator().manual_seed(0))

# --- attributes count when they are used ---

CHANGES = {
    "train": lambda layer: layer.train(),
    "eval": lambda layer: layer.eval(),
    "momentum": lambda layer: setattr(layer, "momentum", 0.7),
    "no momentum": lambda layer: setattr(layer, "momentum", None),
    "eps": lambda layer: setattr(layer, "eps", 0.3),
    "not tracking": lambda layer: setattr(layer, "track_running_stats", False),
    "tracking": lambda layer: setattr(layer, "track_running_stats", True),
    "no gamma": lambda layer: setattr(layer, "weight", None),
    "no beta": lambda layer: setattr(layer, "bias", None),
    "gamma": lambda layer: setattr(layer, "weight", nn.Parameter(torch.tensor([2.0, -1.0, 0.5]).double())),
    "no count": lambda layer: setattr(layer, "num_batches_tracked", None),
    "no statistics": lambda layer: [setattr(layer, name, None) for name in ("running_mean", "running_var")],
    "statistics": lambda layer: [setattr(layer, n, torch.ones(3).double()) for n in ("running_mean", "running_var")],
    "reset": lambda layer: (
        layer.running_mean is None or layer.num_batches_tracked is None or layer.reset_running_stats()
    ),
    "mode": lambda layer: setattr(layer, "training", not layer.training),
    "fixed": lambda layer: layer.requires_grad_(False),
    "learning": lambda layer: layer.requires_grad_(True),
    "affine": lambda layer: setattr(layer, "affine", False),  # which torch does not look at after construction
}
SEQUENCES = st.lists(st.sampled_from(["step", *CHANGES]), min_size=1, max_size=10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    twin=st.sampled_from(list(TWINS)),
    sequence=SEQUENCES,
    affine=st.booleans(),
    tracking=st.booleans(),
    momentum=st.sampled_from([0.1, None, 1.0]),
)
def test_any_sequence_of_changes_and_steps_gives_what_torch_gives(
    twin: str, sequence: list[str], affine: bool, tracking: bool, momentum: float | None
) -> None:
    ours, torchs, shape = TWINS[twin]
    layers = [kind(3, 1e-5, momentum, affine, tracking, dtype=torch.float64) for kind in (ours, torchs)]
    generator = torch.Generator().manual_seed(0)
    for change in [*sequence, "step"]:
        if change in CHANGES:
            for layer in layers:
                CHANGES[change](layer)
            continue
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1
        own, want = (everything(layer, x) for layer in layers)
        assert own.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(own[name], want[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def everything(layer: nn.Module, x: Tensor) -> dict[str, Any]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


def test_statistics_of_a_norm_that_does_not_track_them_any_more_stand_still() -> None:
    for layer in (BatchNorm2d(3), LOCAL()):
        layer(IMAGES)
        before = copy.deepcopy(layer.state_dict())
        layer.track_running_stats = False  # as virtual adversarial training does
        layer(IMAGES * 3)
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("kind", [BatchNorm2d, nn.BatchNorm2d])
def test_freezing_a_norm_that_does_not_track_keeps_its_statistics(kind: type[nn.Module]) -> None:
    layer = kind(3)
    layer(IMAGES)
    want = layer.eval()(IMAGES)
    layer.track_running_stats = False
    torch.testing.assert_close(freeze(nn.Sequential(layer)).train()(IMAGES), want)


@over_twins
def test_channels_are_those_of_the_tensors(ours: type, torchs: type, shape: tuple[int, ...]) -> None:
    """Channel pruning slices the tensors without updating ``num_features``, or updates only that."""
    for layer in (ours(5), torchs(5)):
        for name in ("weight", "bias"):
            setattr(layer, name, nn.Parameter(getattr(layer, name)[:3]))
        for name in ("running_mean", "running_var"):
            setattr(layer, name, getattr(layer, name)[:3])
        assert layer(torch.randn(shape)).shape == shape
    for layer in (ours(3), torchs(3)):
        layer.weight = nn.Parameter(torch.ones(1))  # which would broadcast
        with pytest.raises(RuntimeError):
            layer(torch.randn(shape))


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_one_statistic_without_the_other_is_refused_in_eval_mode(name: str) -> None:
    for layer in (BatchNorm2d(3), nn.BatchNorm2d(3)):
        setattr(layer.eval(), name, None)
        with pytest.raises(RuntimeError):
            layer(IMAGES)


# --- what torch refuses ---

VALUES = {
    str(dtype): lambda x, dtype=dtype: x.to(dtype)
    for dtype in (torch.complex64, torch.complex128, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
} | {"sparse": lambda x: x.to_sparse()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"affine": False, "track_running_stats": False}], ids=str)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@over_twins
def test_values_that_torch_refuses_are_refused(
    ours: type, torchs: type, shape: tuple[int, ...], values: Callable, options: dict, training: bool
) -> None:
    x = values(torch.ones(shape))
    for layer, error in ((ours(3, **options), NotImplementedError), (torchs(3, **options), RuntimeError)):
        with pytest.raises(error):  # of the two the latter is the base, which older versions of torch raise
            layer.train(training)(x)
    with pytest.raises(NormError, match="takes dense floating-point inputs"):
        ours(3, **options).train(training)(x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_local_statistics_refuse_the_same_values(values: Callable, training: bool) -> None:
    with pytest.raises(NormError, match="ConvBatchNorm2d takes dense floating-point inputs"):
        LOCAL().train(training)(values(IMAGES))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("parameters", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_that_torch_mixes_are_mixed_and_no_others(
    dtype: torch.dtype, parameters: torch.dtype, training: bool
) -> None:
    outcomes = []
    for layer in (BatchNorm2d(3), nn.BatchNorm2d(3), LOCAL()):
        try:
            outcomes.append(layer.to(parameters).train(training)(IMAGES.to(dtype)).dtype)
        except RuntimeError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("wrong", [None, [1.0, 2.0], 3, "x"], ids=str)
def test_what_is_no_tensor_is_refused_as_by_torch(wrong: Any) -> None:
    for layer in (BatchNorm2d(3), nn.BatchNorm2d(3)):
        with pytest.raises(AttributeError):
            layer(wrong)


def test_a_negative_eps_is_refused_in_both_modes() -> None:
    for training in (True, False):
        with pytest.raises(NormError, match="eps must be non-negative"):
            BatchNorm2d(3, eps=-1.0).train(training)(IMAGES)


# --- called, copied, traced ---

LAYERS = {"torch's": partial(nn.BatchNorm2d, 3), "ours": partial(BatchNorm2d, 3), "local": LOCAL}
over_layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU())


def saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def replica(model: nn.Module) -> nn.Module:
    """As `nn.DataParallel` makes it: tensors are attributes, and no parameters."""
    copies = []
    for each in model:
        copies.append(each._replicate_for_data_parallel())
        for name, tensor in (*each.named_parameters(), *each.named_buffers()):
            setattr(copies[-1], name, tensor * 1)
    return nn.Sequential(*copies)


def parametrized(model: nn.Module) -> nn.Module:
    """With weights that are computed from others, and are the same."""
    parametrizations.weight_norm(model[1], dim=None)
    parametrize.register_parametrization(model[1], "bias", nn.Identity())
    return model


WAYS: dict[str, Callable[[nn.Module], Tensor]] = {
    "keyword": lambda m: m[1](input=m[0](IMAGES)).relu(),
    "deepcopy": lambda m: copy.deepcopy(m)(IMAGES),
    "pickle": lambda m: pickle.loads(pickle.dumps(m))(IMAGES),
    "save": lambda m: saved(m)(IMAGES),
    "replica": lambda m: replica(m)(IMAGES),
    "data parallel": lambda m: nn.DataParallel(m)(IMAGES),
    "functional": lambda m: torch.func.functional_call(m, {k: v.clone() for k, v in m.state_dict().items()}, IMAGES),
    "averaged": lambda m: swa_utils.AveragedModel(m).module.train(m.training)(IMAGES),
    "deepcopy, parametrized": lambda m: copy.deepcopy(parametrized(m))(IMAGES),
    "averaged, parametrized": lambda m: swa_utils.AveragedModel(parametrized(m)).module.train(m.training)(IMAGES),
    "symbolic trace": lambda m: fx.symbolic_trace(m)(IMAGES),
    "trace of a copy": lambda m: fx.symbolic_trace(copy.deepcopy(m))(IMAGES),
    "interpreter": lambda m: fx.Interpreter(fx.symbolic_trace(m)).run(IMAGES),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@over_layers
def test_every_way_of_calling_a_layer_gives_the_same(make: Callable, way: Callable, training: bool) -> None:
    model = network(make())
    model(IMAGES)
    model.train(training)
    torch.testing.assert_close(way(copy.deepcopy(model)), copy.deepcopy(model)(IMAGES))


@over_layers
def test_a_traced_layer_is_one_node_as_torchs_is(make: Callable) -> None:
    for changed in (lambda m: m, freeze, lambda m: fold(m.eval(), IMAGES)):
        graph = fx.symbolic_trace(changed(network(make()))).graph
        assert [node.op for node in graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]


def test_hooks_run_once_in_a_traced_network() -> None:
    results = []
    for norm in (nn.BatchNorm2d(3), BatchNorm2d(3)):
        norm.register_forward_hook(lambda module, inputs, y: y * 2)
        results.append(fx.symbolic_trace(network(norm))(IMAGES))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("variant", ["custombn", "convbn"])
def test_features_are_extracted_from_a_converted_network(variant: str) -> None:
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = resnet18(num_classes=3).eval()
    nodes = get_graph_node_names(model)
    want = create_feature_extractor(copy.deepcopy(model), ["bn1", "layer2.0.bn1"])(x)
    model = convert(model, variant, x)
    assert get_graph_node_names(model) == nodes
    got = create_feature_extractor(model, ["bn1", "layer2.0.bn1"])(x)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-4)


@over_layers
def test_layers_made_without_values_get_them_later(make: Callable) -> None:
    kind, arguments = make.func, make.args
    skipped = nn.utils.skip_init(kind, *arguments)
    assert skipped.running_mean.device.type == "cpu"
    meta = kind(*arguments, device="meta").to_empty(device="cpu")
    with torch.device("meta"):
        second = kind(*arguments)
    assert second.running_mean.is_meta
    for layer in (skipped, meta, second.to_empty(device="cpu")):
        layer.load_state_dict(make().state_dict())
        torch.testing.assert_close(layer(IMAGES), make()(IMAGES))


def test_parametrized_weights_are_used_and_learn() -> None:
    results = []
    for kind in (nn.BatchNorm2d, BatchNorm2d):
        layer = nn.utils.parametrize.register_parametrization(kind(3), "weight", nn.Softplus(), unsafe=True)
        y = layer(IMAGES)
        (y * torch.linspace(0, 1, y.numel()).view(y.shape)).sum().backward()
        results.append((y, layer.parametrizations.weight.original.grad))
    torch.testing.assert_close(results[1], results[0])


def test_update_bn_and_half_take_ours_as_torchs() -> None:
    states = []
    for kind in (nn.BatchNorm2d, BatchNorm2d):
        model = network(kind(3))
        swa_utils.update_bn([IMAGES, IMAGES + 1], model)
        states.append(model[1].state_dict())
        assert model.half()[1](IMAGES.half()).dtype == torch.float16
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name])


def test_script_compiles_torchs_layer_in_the_place_of_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's script is deprecated
        for training in (True, False):
            model = network(BatchNorm2d(3)).train(training)
            want = copy.deepcopy(model)(IMAGES)
            scripted = torch.jit.script(model)
            torch.testing.assert_close(scripted(IMAGES), want)
            torch.testing.assert_close(model.eval()(IMAGES), scripted.eval()(IMAGES))
        for norm in (LOCAL(), freeze(BatchNorm2d(3))):
            model = network(norm).eval()
            with pytest.raises(NormError, match=r"cannot be compiled by torch\.jit\.script\. Fold the network first"):
                torch.jit.script(model)
            torch.testing.assert_close(torch.jit.script(fold(model))(IMAGES), model(IMAGES))


def test_quantization_prepares_a_converted_network() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_fx

        model = network(BatchNorm2d(3)).eval()
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (IMAGES,))
        torch.testing.assert_close(prepared(IMAGES), model(IMAGES))


# --- every norm of the package ---

OWN = {
    name: norm for name, make in NORMS.items() if type(norm := make(3, (2, 3))).__module__.startswith("bnrepro.norm.")
}
over_own = pytest.mark.parametrize("norm", OWN.values(), ids=OWN)


@pytest.mark.parametrize(
    "norm", [norm for name, norm in OWN.items() if name != "noise"], ids=lambda n: type(n).__name__
)
def test_every_norm_refuses_values_that_are_no_floats_in_both_modes(norm: nn.Module) -> None:
    for training in (True, False):
        for values in VALUES.values():
            with pytest.raises(NormError, match="takes dense floating-point inputs"):
                copy.deepcopy(norm).train(training)(values(IMAGES))
        if norm.state_dict():
            with pytest.raises(NormError, match="keeps float32 parameters and statistics, and the input is float64"):
                copy.deepcopy(norm).train(training)(IMAGES.double())


@pytest.mark.parametrize("name", [name for name in OWN if name != "frozenbn"])  # its statistics are not reset
def test_every_norm_goes_through_a_step_without_values_and_gets_them_later(name: str) -> None:
    with torch.device("meta"):
        norm = NORMS[name](3, (2, 3))
        norm(IMAGES.to("meta").requires_grad_()).sum().backward()
    norm.to_empty(device="cpu")
    for tensor in (*norm.parameters(), *norm.buffers()):
        nn.init.constant_(tensor, 7)
    getattr(norm, "reset_parameters", lambda: None)()
    torch.testing.assert_close(norm.state_dict(), NORMS[name](3, (2, 3)).state_dict())


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@over_own
def test_a_tensor_of_another_length_is_refused_by_every_norm_in_both_modes(norm: nn.Module, name: str) -> None:
    for length in (1, 4) if getattr(norm, name, None) is not None else ():
        wrong = copy.deepcopy(norm)
        tensor = torch.ones(length)
        setattr(wrong, name, nn.Parameter(tensor) if name in ("weight", "bias") else tensor)
        for training in (True, False):
            with pytest.raises(NormError, match=f"was made for {length} channels"):
                wrong.train(training)(IMAGES)


@over_own
def test_every_norm_is_called_by_keyword_and_traced_whole(norm: nn.Module) -> None:
    norm = copy.deepcopy(norm).eval()
    torch.testing.assert_close(norm(input=IMAGES), norm(IMAGES))
    traced = fx.symbolic_trace(network(norm))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]
    torch.testing.assert_close(traced(IMAGES), network(norm)(IMAGES))


def test_statistics_of_norms_that_are_called_by_keyword_are_reestimated() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    model = reestimate_statistics(Keyword(), [IMAGES])
    torch.testing.assert_close(model.norm.running_mean, IMAGES.mean((0, 2, 3)))
    assert type(convert(model, "convbn", IMAGES).norm) is ConvBatchNorm2d
