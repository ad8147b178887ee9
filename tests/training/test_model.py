"""Networks: sizes, placement, dropout, and the same initial weights for every norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.norm import NORMS, BatchNorm2d, ConvBatchNorm2d
from bnrepro.norm.variants import GhostBatchNorm
from bnrepro.training.freezing import prepare
from bnrepro.training.model import Network, build, norm_of, parameter_groups, size_of
from bnrepro.training.networks import MODELS
from bnrepro.training.optimizer import lr_factor, make_optimizer
from bnrepro.training.options import USED_WITH, check_options, options_of
from bnrepro.training.train import rehearse


def network(*overrides: str, channels: int = 1, image: tuple[int, int] = (28, 28), seed: int = 0) -> Network:
    cfg = load_config(list(overrides))
    return build(cfg.model, norm_of(cfg), channels, image, 10, torch.Generator().manual_seed(seed))


def layers(net: nn.Module) -> list[str]:
    leaves = [m for m in net.modules() if not list(m.children())]
    return [type(m).__name__ for m in leaves]


# Instance normalization has nothing to normalize by after a linear layer: of these networks it fits one.
FITTING = [(m, v) for m in MODELS for v in NORMS if v != "instancenorm" or m in ("resnet20", "airbench", "vgg16")]
FITTING.sort(key=lambda pair: pair[0] != "airbench" and pair[1] != "convbn")  # the quick ones first


@pytest.mark.quick(40)
@pytest.mark.parametrize(
    ("model", "variant", "placement"),
    [(*pair, "before") for pair in FITTING] + [(m, v, "after") for m in MODELS for v in ("nobn", "bn", "convbn")],
)
def test_every_norm_trains_every_network(model: str, variant: str, placement: str) -> None:
    net = network(f"model={model}", f"variant={variant}", f"model.placement={placement}", channels=3, image=(32, 32))
    generator = torch.Generator().manual_seed(1)
    logits = net(torch.randn(4, 3, 32, 32, generator=generator))
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    net.eval()
    images = 2 if variant.startswith("adaptive") else 1  # whose statistics are always the batch's
    assert net(torch.randn(images, 3, 32, 32, generator=generator)).shape == (images, 10)


@pytest.mark.quick(4)
@pytest.mark.parametrize("model", MODELS)
def test_all_norms_start_from_the_same_weights(model: str) -> None:
    def weights(variant: str) -> list[torch.Tensor]:
        net = network(f"model={model}", f"variant={variant}", channels=3, image=(32, 32))
        return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    first = weights("nobn")
    for variant in [variant for name, variant in FITTING if name == model]:
        for ours, theirs in zip(weights(variant), first, strict=True):
            assert torch.equal(ours, theirs)


# Counted by hand from the sources: labml's network, He et al.'s 0.27 M, Ioffe & Szegedy's three layers of 100.
SIZES = [
    ("labml_cnn", "nobn", 1, (28, 28), 20 * 25 + 20 + 50 * 500 + 50 + 800 * 500 + 500 + 5010, 0),
    ("labml_cnn", "bn", 1, (28, 28), 20 * 25 + 50 * 500 + 800 * 500 + 5010 + 2 * 570, 2 * 570),
    ("labml_cnn", "convbn", 1, (28, 28), 20 * 25 + 50 * 500 + 800 * 500 + 5010 + 2 * 570, 2 * (11520 + 3200 + 500)),
    ("resnet20", "bn", 3, (32, 32), 269_722, 2 * 688),
    ("vgg16", "bn", 3, (32, 32), 14_710_464 + 5130 + 2 * 4224, 2 * 4224),
    ("paper_mlp", "nobn", 1, (28, 28), 784 * 100 + 100 + 2 * 10100 + 1010, 0),
]


@pytest.mark.parametrize(("model", "variant", "channels", "image", "parameters", "buffers"), SIZES)
def test_number_of_parameters_and_buffers(
    model: str, variant: str, channels: int, image: tuple[int, int], parameters: int, buffers: int
) -> None:
    net = network(f"model={model}", f"variant={variant}", channels=channels, image=image)
    assert size_of(net) == (parameters, buffers)


def test_placement_puts_the_norm_on_either_side_of_the_activation() -> None:
    before = layers(network("model=lenet", "variant=bn"))
    after = layers(network("model=lenet", "variant=bn", "model.placement=after"))
    assert before[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d"]
    assert after[:4] == ["Conv2d", "ReLU", "BatchNorm2d", "AvgPool2d"]


def test_bias_is_dropped_only_before_a_norm() -> None:
    def biases(*overrides: str) -> set[bool]:
        net = network("model=lenet", *overrides)
        return {m.bias is not None for m in list(net.modules())[:-1] if isinstance(m, nn.Conv2d)}

    assert biases("variant=convbn") == {False}
    assert biases("variant=nobn") == {True}
    assert biases("variant=bn", "model.placement=after") == {True}


def test_bias_before_a_norm_is_kept_where_asked_for_and_weights_stay_the_same() -> None:
    for model in ("lenet", "resnet20"):
        kept, usual = network(f"model={model}", "variant=bn", "model.keep_bias=true"), network(f"model={model}")
        assert all(m.bias is not None for m in kept.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        for name, weight in usual.named_parameters():
            assert torch.equal(weight, kept.get_parameter(name))


def test_depth_is_the_number_of_hidden_layers() -> None:
    sizes = {
        depth: size_of(network("model=paper_mlp", "variant=nobn", f"model.depth={depth}"))[0] for depth in (1, 3, 7)
    }
    assert sizes[3] == size_of(network("model=paper_mlp", "variant=nobn"))[0]
    assert sizes[3] - sizes[1] == 2 * 100 * 101
    assert sizes[7] - sizes[3] == 4 * 100 * 101
    assert len(network("model=paper_mlp", "model.depth=7").norms) == 7
    assert len(network("model=resnet20").norms) == 19
    assert len(network("model=resnet20", "model.depth=1").norms) == 7
    with pytest.raises(UserError, match="model=paper_mlp"):
        load_config(["model=lenet", "model.depth=4"])


def test_residual_sums_follow_the_placement() -> None:
    before = network("model=resnet20", "variant=bn", channels=3, image=(32, 32))
    after = network("model=resnet20", "variant=bn", "model.placement=after", channels=3, image=(32, 32))
    assert layers(before)[3:8] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d"]
    assert len(before.norms) == len(after.norms) == 19


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("before_norm", ["Conv2d", "Dropout", "BatchNorm2d", "ReLU", "AvgPool2d"]),
        ("after_norm", ["Conv2d", "BatchNorm2d", "ReLU", "Dropout", "AvgPool2d"]),
        ("last", ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d", "Conv2d"]),
    ],
)
def test_dropout_stands_where_it_is_asked_for(position: str, expected: list[str]) -> None:
    net = layers(network("model=lenet", "variant=bn", "model.dropout=0.5", f"model.dropout_position={position}"))
    assert net[:5] == expected
    assert net.count("Dropout") == (1 if position == "last" else 4)
    assert position != "last" or net[-2:] == ["Dropout", "Linear"]


def test_dropout_in_blocks_stands_before_their_last_convolution() -> None:
    for model, blocks in (("vgg_small", 3), ("resnet20", 9), ("airbench", 3)):
        asked = ("variant=bn", "model.dropout=0.5", "model.dropout_position=in_blocks")
        net = layers(network(f"model={model}", *asked, channels=3, image=(32, 32)))
        places = [place for place, layer in enumerate(net) if layer == "Dropout"]
        assert len(places) == blocks
        assert all(net[place - 1 : place + 2] == ["ReLU", "Dropout", "Conv2d"] for place in places)
    lenet = load_config(["model=lenet", "model.dropout=0.5", "model.dropout_position=in_blocks"])
    with pytest.raises(UserError, match=r"model\.dropout_position=in_blocks is not used by model=lenet"):
        check_options([lenet])


def test_no_dropout_layer_without_dropout() -> None:
    assert "Dropout" not in layers(network("model=vgg_small"))


def test_width_scales_every_hidden_layer() -> None:
    net = network("model=vgg_small", "model.width=0.5", channels=3, image=(32, 32))
    widths = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 16, 32, 32, 64, 64]
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [128, 10]


@pytest.mark.parametrize("model", [m for m in MODELS if (m, "instancenorm") not in FITTING])
def test_norm_that_does_not_fit_the_network_says_so(model: str) -> None:
    with pytest.raises(UserError, match="instancenorm needs maps of more than one location"):
        network(f"model={model}", "variant=instancenorm")


def test_images_too_small_for_the_network_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="images of 6 x 6 are too small"):
        network("model=labml_cnn", image=(6, 6))


@pytest.mark.parametrize("override", ["model.activation=swishy", "variant=nosuch"])
def test_unknown_name_lists_those_there_are(override: str) -> None:
    with pytest.raises(UserError, match="Available: "):
        network(override)


def test_norm_options_reach_the_layers() -> None:
    net = network("variant=custombn", "norm.eps=0.5", "norm.momentum=0.25", "norm.affine=false")
    norm = next(m for m in net.modules() if isinstance(m, BatchNorm2d))
    assert (norm.eps, norm.momentum, norm.weight) == (0.5, 0.25, None)
    assert next(m for m in network("variant=convbn").modules() if isinstance(m, ConvBatchNorm2d)).eps == 1e-3


def test_size_of_ghost_batches_reaches_the_layers() -> None:
    def sizes(*overrides: str) -> set[int]:
        net = network("model=lenet", "variant=ghostbn", *overrides)
        return {m.ghost_size for m in net.modules() if isinstance(m, GhostBatchNorm)}

    assert sizes("norm.ghost_size=4") == {4}
    assert sizes() == {GhostBatchNorm.ghost_size}


@pytest.mark.parametrize("variant", ["bn", "custombn", "convbn", "peractivationbn"])
def test_weight_decay_can_leave_gamma_and_beta_alone(variant: str) -> None:
    net = network("model=lenet", "model.activation=prelu", f"variant={variant}")
    everything = sum(p.numel() for p in net.parameters())
    (all_of_them,) = parameter_groups(net, 0.1, decay_norm=True)
    assert sum(p.numel() for p in all_of_them["params"]) == everything
    decayed, kept = parameter_groups(net, 0.1, decay_norm=False)
    gamma_and_beta = sum(p.numel() for norm in net.norms.values() for p in norm.parameters())
    assert sum(p.numel() for p in kept["params"]) == gamma_and_beta > 0
    assert sum(p.numel() for p in decayed["params"]) == everything - gamma_and_beta
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_initial_distributions_have_their_scale() -> None:
    def std(init: str) -> float:
        net = network("model=labml_cnn", f"model.init={init}", "model.init_std=0.05")
        return float(next(m for m in net.modules() if isinstance(m, nn.Linear)).weight.detach().std())

    assert std("he") == pytest.approx((2 / 800) ** 0.5, rel=0.02)
    assert std("glorot") == pytest.approx((2 / 1300) ** 0.5, rel=0.02)
    assert std("gaussian") == pytest.approx(0.05, rel=0.02)


# --- what is known before any training ---

UNBUILDABLE = {
    ("variant=instancenorm", "model=lenet"): "instancenorm needs maps of more than one location",
    ("variant=convbn", "model=resnet20", "batch_size=1"): "Use batch_size=2 or more",
    ("variant=bn", "model=paper_mlp", "batch_size=1"): "Use batch_size=2 or more",
    ("variant=ghostbn", "model=paper_mlp", "norm.ghost_size=1"): "has 1 value per channel in each part of the batch",
    ("variant=nosuch",): "there is no 'nosuch'",
    ("model.name=nosuch",): "there is no 'nosuch'",
    ("model=lenet", "data.name=digits", "data.source=npz", "data.path=missing.npz"): "missing.npz",
}


@pytest.mark.parametrize(("overrides", "reason"), UNBUILDABLE.items(), ids=lambda case: str(case)[:40])
def test_a_network_that_would_stop_at_its_first_step_is_told_of_before(overrides: tuple[str, ...], reason: str) -> None:
    good = load_config(["variant=bn", "model=lenet"])
    with pytest.raises(UserError, match=reason):
        rehearse([good, load_config(list(overrides))])


@pytest.mark.parametrize("model", ["paper_mlp", "resnet20"])
def test_trying_networks_passes_what_trains_and_draws_no_random_numbers(model: str) -> None:
    variants = ["bn", "custombn", "convbn", "renorm", "ghostbn", "adaptive", "noise", "layernorm", "frozenbn"]
    state = torch.get_rng_state()
    rehearse([load_config([f"model={model}", f"variant={each}"]) for each in variants])
    assert torch.equal(torch.get_rng_state(), state)


def test_an_archives_own_shape_counts(tmp_path: Path) -> None:
    images, labels = np.arange(128, dtype=np.uint8).reshape(8, 4, 4), np.arange(8) % 2
    np.savez(tmp_path / "small.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    archive = [
        "data.name=digits",
        "data.source=npz",
        f"data.path={tmp_path / 'small.npz'}",
        "batch_size=2",
        "data.val_fraction=0",
    ]
    rehearse([load_config(["model=paper_mlp", *archive])])
    with pytest.raises(UserError, match="images of 4 x 4 are too small"):
        rehearse([load_config(["model=lenet", *archive])])


@pytest.mark.parametrize("variant", NORMS)
def test_options_of_a_norm_are_those_that_change_its_layers(variant: str) -> None:
    values = {"eps": "0.5", "momentum": "0.5", "affine": "false", "kernel_size": "3", "ghost_size": "3"}
    if variant == "frozenbn":  # whose running statistics, which never move, take a momentum all the same
        del values["momentum"]
    changing = set()
    for key, value in values.items():
        plain, other = (_described(variant, given) for given in ([], [f"norm.{key}={value}"]))
        changing |= {key} if plain != other else set()
    assert changing == options_of(variant) & values.keys()
    for key in ("kernel_size", "ghost_size", "affine"):
        cfg, beside = (load_config([f"variant={v}", f"norm.{key}={values[key]}"]) for v in (variant, "bn"))
        used_beside = key in options_of("bn")
        if key in changing:
            check_options([cfg])
        else:
            with pytest.raises(UserError, match=f"^norm.{key}=.* is not used by variant={variant}. Leave it out"):
                check_options([cfg])
        if key in changing or used_beside:
            check_options([cfg, beside])


def _described(variant: str, given: list[str]) -> str:
    layer = norm_of(load_config([f"variant={variant}", *given]))(16, (8, 8))
    return f"{sorted((k, v) for k, v in vars(layer).items() if not k.startswith('_'))} {list(layer.parameters())}"


CHANGED = {  # for each key of `USED_WITH`: another value, where it is not looked at, and where it is
    "optimizer.momentum": ("0.5", "optimizer=adam", "optimizer=sgd"),
    "optimizer.nesterov": ("true", "optimizer=adamw", "optimizer=sgd"),
    "optimizer.beta1": ("0.5", "optimizer=sgd", "optimizer=adam"),
    "optimizer.beta2": ("0.5", "optimizer=sgd", "optimizer=adamw"),
    "optimizer.eps": ("0.5", "optimizer=sgd", "optimizer=adam"),
    "schedule.milestones": ("[0.3,0.6]", "schedule=cosine", "schedule=step"),
    "schedule.gamma": ("0.5", "schedule=linear", "schedule=step"),
    "model.init_std": ("0.5", "model.init=he", "model.init=gaussian"),
    "model.dropout_position": ("before_norm", "model.dropout=0", "model.dropout=0.2"),
    "model.keep_bias": ("true", "model.placement=after", "model.placement=before"),
    "norm.gamma": ("uniform", "norm.affine=false", "norm.affine=true"),
    "channels_last": ("true", "model=paper_mlp", "model=lenet"),
}


@pytest.mark.parametrize("key", [key for keys, *_ in USED_WITH for key in keys])
def test_key_is_refused_where_it_changes_no_run_and_taken_where_it_does(key: str) -> None:
    value, without, with_it = CHANGED[key]
    plain, other = load_config([without]), load_config([without, f"{key}={value}"])
    assert _of_a_run(plain) == _of_a_run(other)
    with pytest.raises(UserError, match=f"^{key}=.* is not used by {without}[^ ]*. Leave it out, or use"):
        check_options([other])
    used = load_config([with_it, f"{key}={value}"])
    assert _of_a_run(load_config([with_it])) != _of_a_run(used)
    check_options([used])
    check_options([other, used])  # as in a comparison of the two


def _of_a_run(cfg: Config) -> str:
    """What a run makes of its configuration: layers, initial weights, optimizer and rates."""
    network = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, torch.Generator().manual_seed(0))
    if cfg.channels_last:
        network.to(memory_format=torch.channels_last)
    prepare(network, cfg)
    optimizer = make_optimizer(cfg, network)
    rates = [lr_factor(cfg.schedule, step, 20, 10) for step in range(20)]
    weights = [(p.stride(), p.flatten()[:5]) for p in network.parameters()]
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return f"{network} {weights} {type(optimizer)} {settings} {rates}"


def test_options_of_a_norm_that_cannot_be_tried_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(features: int, shape: tuple[int, ...], options: object = None) -> nn.Module:
        raise RuntimeError("7 channels")

    monkeypatch.setitem(NORMS, "own", own)
    check_options([load_config(["variant=own", "norm.ghost_size=3", "norm.kernel_size=3"])])
