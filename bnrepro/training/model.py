"""Networks that are handed a norm. None knows which: a block asks the factory for its layer and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.config import user_files
from bnrepro.config.overrides import written
from bnrepro.config.schema import Config, DropoutPosition, Initialization, Model, Norm, Placement
from bnrepro.errors import UserError, either, known_are
from bnrepro.norm import NORMS, ConvAdaptiveNorm2d, FusedSequential, NormError, NormOptions
from bnrepro.training.generators import forked
from bnrepro.training.user_modules import MakeNorm as MakeNorm
from bnrepro.training.user_modules import Shape, own_network, own_norm

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
}


@dataclass
class Blocks:
    """What every block of a network is made with; remembers the norms that it handed out, in order."""

    norm: MakeNorm
    activation: Callable[[], nn.Module]
    placement: Placement
    dropout: float
    dropout_position: DropoutPosition
    factor: float
    keep_bias: bool = False
    depth: int | None = None
    norms: list[nn.Module] = field(default_factory=list)

    def width(self, features: int) -> int:
        """``features`` times the configuration's width, at least 1."""
        return max(1, round(features * self.factor))

    def make_norm(self, features: int, shape: Shape) -> nn.Module:
        """A norm for ``features`` channels of ``shape`` (H, W), () after a linear layer."""
        self.norms.append(self.norm(features, shape))
        return self.norms[-1]

    def drop(self, position: DropoutPosition) -> list[nn.Module]:
        """A dropout layer if it belongs at ``position``."""
        wanted = self.dropout > 0 and position is self.dropout_position
        return [nn.Dropout(self.dropout)] if wanted else []

    def unit(
        self, layer: Callable[..., nn.Module], features: int, shape: Shape, begins_block: bool = False
    ) -> nn.Sequential:
        """``layer`` with its norm, activation and dropout; ``layer(bias=...)`` makes a convolution or a linear layer.

        placement=before: layer, norm, activation. placement=after: layer, activation, norm. A bias directly before
        a norm is cancelled by it and left out (Ioffe & Szegedy 2015, section 3.2), unless ``keep_bias`` is set.
        """
        norm = self.make_norm(features, shape)
        normed = [*self.drop(DropoutPosition.before_norm), norm]
        first = layer(bias=self.keeps_bias(norm))
        before = self.placement is Placement.before
        inner = [*normed, self.activation()] if before else [self.activation(), *normed]
        inner += self.drop(DropoutPosition.in_blocks) if begins_block else []
        return FusedSequential(first, *inner, *self.drop(DropoutPosition.after_norm))

    def keeps_bias(self, norm: nn.Module) -> bool:
        """Whether the layer before ``norm`` needs a bias: a norm either has one, or cancels it, or is none."""
        cancels = isinstance(norm, _BatchNorm | nn.InstanceNorm2d | ConvAdaptiveNorm2d)
        needed = self.placement is Placement.after or not (cancels or getattr(norm, "bias", None) is not None)
        return needed or self.keep_bias


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions round a shortcut (He et al. 2015; shortcut "A": subsampled, padded with zero channels).

    placement=before: conv, norm, act, conv, norm, + shortcut, act. placement=after: conv, act, norm, conv,
    + shortcut, act, norm, so that each norm follows an activation.
    """

    def __init__(self, blocks: Blocks, inputs: int, features: int, stride: int, shape: Shape) -> None:
        super().__init__()
        first = partial(nn.Conv2d, inputs, features, 3, stride=stride, padding=1)
        self.inner = blocks.unit(first, features, shape, begins_block=True)
        norm = blocks.make_norm(features, shape)
        self.conv = nn.Conv2d(features, features, 3, padding=1, bias=blocks.keeps_bias(norm))
        normed = nn.Sequential(*blocks.drop(DropoutPosition.before_norm), norm)
        end = blocks.drop(DropoutPosition.after_norm)
        if blocks.placement is Placement.before:
            self.before_sum, self.after_sum = normed, nn.Sequential(blocks.activation(), *end)
        else:
            self.before_sum, self.after_sum = nn.Sequential(), nn.Sequential(blocks.activation(), normed, *end)
        self.stride, self.extra = stride, features - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, features, ceil(H / stride), ceil(W / stride))."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return self.after_sum(self.before_sum(self.conv(self.inner(x))) + shortcut)


class LearnedScale(nn.Module):
    """y = alpha x, with one learned number alpha. It normalises nothing, and so is no row of the table of norms."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(start)))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, in and out."""
        return self.alpha * x


def add_skip_init(network: nn.Module, start: float = 0.0) -> list[LearnedScale]:
    """Put a `LearnedScale` at the end of each residual branch of ``network``, before the sum; return them in order.

    With ``start`` = 0 the network begins with its shortcuts alone. Done before an optimiser is made, and with norms or
    without. Source: De & Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep
    Networks" (2020): SkipInit.

    Raises:
        ValueError: ``network`` has no residual block of this module with its norms before the sum.
    """
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    if not blocks or any(len(block.before_sum) == 0 for block in blocks):
        raise ValueError("SkipInit needs residual blocks, with placement=before: model=resnet20 has them")
    scales = [LearnedScale(start) for _ in blocks]
    for block, scale in zip(blocks, scales, strict=True):
        block.before_sum.append(scale)
    return scales


class Network(nn.Module):
    """Images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, layers: nn.Module, norms: list[nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        names = {module: name for name, module in self.named_modules()}
        # By name and not by reference: a norm may be replaced (`bnrepro.norm.convert`).
        self._norm_names = [names[norm] for norm in norms]

    @property
    def norms(self) -> dict[str, nn.Module]:
        """The norms in order: norm1, norm2, ..."""
        return {f"norm{i}": self.get_submodule(name) for i, name in enumerate(self._norm_names, 1)}

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@contextmanager
def at_norms(network: Network, outputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Within it, what enters each norm of ``network``, or what leaves it, is kept by the norm's name, in order."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[name] = (output if outputs else inputs[0]).detach()

    handles = [norm.register_forward_hook(partial(keep, name)) for name, norm in network.norms.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _TooSmall(Exception):
    """No pixel of the image is left."""


def _smaller(shape: Shape, by: int = 0, pool: int = 1) -> Shape:
    """The map after a valid convolution that takes ``by`` pixels off, and a pooling."""
    out = tuple((n - by) // pool for n in shape)
    if min(out) < 1:
        raise _TooSmall
    return out


def paper_mlp(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """Three fully connected layers of 100 (Ioffe & Szegedy 2015, section 4.1; sigmoids by its configuration).

    ``model.depth`` makes more of them, or fewer.
    """
    hidden = (100,) * (blocks.depth or 3)
    return [nn.Flatten(), *_fully_connected(blocks, channels * image[0] * image[1], hidden, classes)]


def lenet(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """The LeNet of dksakkos/BatchNorm: conv 6 and conv 16 (3 x 3), each with average pooling, then fc 120 and fc 84."""
    layers: list[nn.Module] = []
    inputs, shape = channels, image
    for features in map(blocks.width, (6, 16)):
        shape = _smaller(shape, by=2)
        layers += [blocks.unit(partial(nn.Conv2d, inputs, features, 3), features, shape), nn.AvgPool2d(2)]
        inputs, shape = features, _smaller(shape, pool=2)
    return [*layers, nn.Flatten(), *_fully_connected(blocks, inputs * shape[0] * shape[1], (120, 84), classes)]


def labml_cnn(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """labml's MNIST network: conv 20 and conv 50 (5 x 5), each with max pooling, then fc 500."""
    layers: list[nn.Module] = []
    inputs, shape = channels, image
    for features in map(blocks.width, (20, 50)):
        shape = _smaller(shape, by=4)
        layers += [blocks.unit(partial(nn.Conv2d, inputs, features, 5), features, shape), nn.MaxPool2d(2)]
        inputs, shape = features, _smaller(shape, pool=2)
    return [*layers, nn.Flatten(), *_fully_connected(blocks, inputs * shape[0] * shape[1], (500,), classes)]


def vgg_small(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """Three pairs of 3 x 3 convolutions (32, 64, 128) with max pooling, then fc 256: VGG's pattern, small."""
    layers, inputs = _vgg(blocks, channels, image, ((32, 2), (64, 2), (128, 2)))
    return [*layers, *_fully_connected(blocks, inputs, (256,), classes)]


def vgg16(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """VGG-16 (Simonyan & Zisserman 2015, configuration D) as CIFAR-10 has it: 13 convolutions and the logits."""
    layers, inputs = _vgg(blocks, channels, image, ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    return [*layers, *_fully_connected(blocks, inputs, (), classes)]


def _vgg(
    blocks: Blocks, channels: int, image: Shape, stages: tuple[tuple[int, int], ...]
) -> tuple[list[nn.Module], int]:
    """Stages (channels, number) of 3 x 3 convolutions, each with max pooling, flattened; and its features."""
    layers: list[nn.Module] = []
    inputs, shape = channels, image
    for full, number in stages:
        features = blocks.width(full)
        for place in range(number):
            layer = partial(nn.Conv2d, inputs, features, 3, padding=1)
            layers.append(blocks.unit(layer, features, shape, begins_block=place == number - 2))
            inputs = features
        layers.append(nn.MaxPool2d(2))
        shape = _smaller(shape, pool=2)
    return [*layers, nn.Flatten()], inputs * shape[0] * shape[1]


def resnet20(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """ResNet-20 for CIFAR (He et al. 2015, section 4.2): 16, 32 and 64 channels, three blocks each.

    ``model.depth`` makes it n blocks each, which is their ResNet of 6 n + 2 layers.
    """
    inputs, shape = blocks.width(16), image
    layers: list[nn.Module] = [blocks.unit(partial(nn.Conv2d, channels, inputs, 3, padding=1), inputs, shape)]
    for stage, features in enumerate(map(blocks.width, (16, 32, 64))):
        for block in range(blocks.depth or 3):
            stride = 2 if stage > 0 and block == 0 else 1
            shape = tuple(-(-n // stride) for n in shape)
            layers.append(ResidualBlock(blocks, inputs, features, stride, shape))
            inputs = features
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_fully_connected(blocks, inputs, (), classes)]


def resnet_layers(depth: float) -> int:
    """He et al.'s count for ``model.depth`` blocks in each of three stages: two each, the first, and the last."""
    return int(6 * depth + 2)


def airbench(blocks: Blocks, channels: int, image: Shape, classes: int) -> list[nn.Module]:
    """The network of airbench94 (Jordan 2024), without its whitening: conv 24 (2 x 2), then three pairs of 3 x 3.

    A pair of 64, 256 or 256 channels: conv, max pooling, norm, activation, conv, norm, activation.
    """

    def pooled(inputs: int, features: int, bias: bool) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, features, 3, padding=1, bias=bias), nn.MaxPool2d(2))

    inputs, shape = blocks.width(24), _smaller(image, by=1)
    layers: list[nn.Module] = [blocks.unit(partial(nn.Conv2d, channels, inputs, 2), inputs, shape)]
    for features in map(blocks.width, (64, 256, 256)):
        shape = _smaller(shape, pool=2)
        layers.append(blocks.unit(partial(pooled, inputs, features), features, shape, begins_block=True))
        layers.append(blocks.unit(partial(nn.Conv2d, features, features, 3, padding=1), features, shape))
        inputs = features
    return [*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), *_fully_connected(blocks, inputs, (), classes)]


def _fully_connected(blocks: Blocks, inputs: int, hidden: tuple[int, ...], classes: int) -> list[nn.Module]:
    """Hidden layers of these sizes with norm and activation, and the layer of the logits."""
    layers: list[nn.Module] = []
    for features in map(blocks.width, hidden):
        layers.append(blocks.unit(partial(nn.Linear, inputs, features), features, ()))
        inputs = features
    return [*layers, *blocks.drop(DropoutPosition.last), nn.Linear(inputs, classes)]


MODELS: dict[str, Callable[[Blocks, int, Shape, int], list[nn.Module]]] = {
    "paper_mlp": paper_mlp,
    "lenet": lenet,
    "labml_cnn": labml_cnn,
    "vgg_small": vgg_small,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "airbench": airbench,
}


def _look_up(table: dict[str, T], name: str, key: str) -> T:
    if name not in table:
        raise UserError(f"{key}: there is no {name!r}.{known_are(name, table)}")
    return table[name]


def norm_of(cfg: Config) -> MakeNorm:
    """The norm factory of ``cfg.variant`` with the options in ``cfg.norm``.

    Raises:
        UserError: no such variant.
    """
    if cfg.norm.file is not None:
        return own_norm(Path(cfg.norm.file), cfg.variant)
    options = NormOptions(
        eps=cfg.norm.eps,
        momentum=cfg.norm.momentum,
        affine=cfg.norm.affine,
        ghost_size=cfg.norm.ghost_size,
        kernel_size=cfg.norm.kernel_size,
    )
    return partial(_look_up(NORMS, cfg.variant, "variant"), options=options)


HARMLESS = ("eps", "momentum")
"""Options of nearly all norms: published runs of the others have them too, as their neighbours do."""


def options_of(variant: str, own: bool = False) -> set[str]:
    """The keys of ``norm`` that make a difference to ``variant``: those that its factory looks at, and gamma's.

    A norm in a file of a user's ``own`` is handed none of them.
    """
    if own:
        return {"file", "gamma"}
    known, looked_at = {each.name for each in fields(Norm)} - {"file"}, set()

    class Watched(NormOptions):
        def __getattribute__(self, name: str) -> Any:
            looked_at.add(name)
            return super().__getattribute__(name)

    make = _look_up(NORMS, variant, "variant")
    for shape in ((), (8, 8)):  # after a linear layer, and on maps
        try:
            weights = getattr(make(16, shape, options=Watched()), "weight", None)
            looked_at |= {"gamma"} if isinstance(weights, Tensor) else set()
        except NormError:  # it is not made for this shape
            pass
        except user_files.FAILS:  # a user's own, which may need other sizes: nobody knows
            return known
    return looked_at & known


USED_WITH: Sequence[tuple[tuple[str, ...], str, Callable[[Config], Any], str]] = [
    (("optimizer.momentum", "optimizer.nesterov"), "optimizer.name", lambda c: c.optimizer.name == "sgd", "sgd"),
    (
        ("optimizer.beta1", "optimizer.beta2", "optimizer.eps"),
        "optimizer.name",
        lambda c: c.optimizer.name != "sgd",
        "adam or adamw",
    ),
    (("schedule.milestones", "schedule.gamma"), "schedule.name", lambda c: c.schedule.name == "step", "step"),
    (("model.init_std",), "model.init", lambda c: c.model.init == "gaussian", "gaussian"),
    (("model.dropout_position",), "model.dropout", lambda c: c.model.dropout > 0, "0.2"),
    (
        ("model.dropout_position",),
        "model.name",
        lambda c: c.model.dropout_position != "in_blocks" or c.model.name in ("vgg_small", "resnet20", "airbench"),
        "resnet20",
    ),
    (("model.keep_bias",), "model.placement", lambda c: c.model.placement == "before", "before"),
    (("norm.gamma",), "norm.affine", lambda c: c.norm.affine, "true"),
    (("channels_last",), "model.name", lambda c: not c.channels_last or c.model.name != "paper_mlp", "resnet20"),
]
"""Keys that are looked at only where another has some values: the keys, the other, whether it has one, and which.

Not among them is what makes no difference to a part of a published design's runs alone, as ``optimizer.decay_norm``
without weight decay.
"""


def check_options(configs: Sequence[Config]) -> None:
    """Raise UserError if a key is set to something else than its default, and none of ``configs`` looks at it."""
    for keys, other, holds, wanted in USED_WITH:
        for key in keys:
            if (cfg := _setting(key, configs)) and not any(map(holds, configs)):
                there = either(list(dict.fromkeys(_said(other, _of(each, other)) for each in configs)))
                raise UserError(
                    f"{_said(key, _of(cfg, key))} is not used by {there}. Leave it out, or use {_said(other, wanted)}."
                )
    variants = list(dict.fromkeys((cfg.variant, cfg.norm.file is not None) for cfg in configs))
    used = {"file"}.union(*(options_of(*each) for each in variants))
    harmless = HARMLESS if any(not own for _, own in variants) else ()
    for name in (each.name for each in fields(Norm) if each.name not in harmless):
        if (cfg := _setting(key := f"norm.{name}", configs)) and name not in used:
            users, names = [each for each in NORMS if name in options_of(each)], [variant for variant, _ in variants]
            raise UserError(
                f"{_said(key, _of(cfg, key))} is not used by variant={', '.join(names)}. Leave it out, or use a "
                f"variant that uses it: {either(users)}."
            )


def _setting(key: str, configs: Sequence[Config]) -> Config | None:
    """The first of ``configs`` in which ``key`` has not its default."""
    default = _of(Config(), key)
    return next((cfg for cfg in configs if _of(cfg, key) != default), None)


def _of(cfg: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)


def _said(key: str, value: Any) -> str:
    """``key=value`` as it is typed: a group by its own name."""
    return written(key.removesuffix(".name"), getattr(value, "value", value))


def check_names(cfg: Config) -> None:
    """Raise UserError if there is no such variant, network or activation."""
    norm_of(cfg)
    if cfg.model.file is not None:
        user_files.load(Path(cfg.model.file), cfg.model.name)
    else:
        _look_up(MODELS, cfg.model.name, "model.name")
    _look_up(ACTIVATIONS, cfg.model.activation, "model.activation")


def build(
    model: Model, norm: MakeNorm, channels: int, image: Shape, classes: int, generator: torch.Generator
) -> Network:
    """A network with its initial weights.

    Args:
        model: which network, activation, placement, dropout, initial distribution.
        norm: ``(num_features, spatial_shape) -> Module``.
        channels, image, classes: the data's channels, (H, W) and number of classes.
        generator: source of the weights. It is used for weights alone and in the order of the layers, so all
            norms start from the same ones.

    Raises:
        UserError: no such model or activation; images too small; a norm that does not fit the network.
    """
    if model.file is not None:
        return Network(*own_network(Path(model.file), model.name, norm, channels, image, classes, generator))
    make = _look_up(MODELS, model.name, "model.name")
    activation = _look_up(ACTIVATIONS, model.activation, "model.activation")
    blocks = Blocks(
        norm,
        activation,
        model.placement,
        model.dropout,
        model.dropout_position,
        model.width,
        model.keep_bias,
        model.depth,
    )
    try:
        # What a norm of a user's own draws when it is made comes from the seed too; all other weights are drawn below.
        with forked(seed=generator.initial_seed()):
            network = Network(nn.Sequential(*make(blocks, channels, image, classes)), blocks.norms)
    except NormError as error:
        raise UserError(str(error)) from error
    except _TooSmall as error:
        size = " x ".join(map(str, image))
        raise UserError(f"model={model.name}: images of {size} are too small. Use model=paper_mlp.") from error
    _initialize(network, model, generator)
    return network


@torch.no_grad()
def _initialize(network: nn.Module, model: Model, generator: torch.Generator) -> None:
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if model.init is Initialization.he:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif model.init is Initialization.glorot:
            nn.init.xavier_uniform_(module.weight, generator=generator)
        else:
            nn.init.normal_(module.weight, std=model.init_std, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def weighted_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """All convolutions and linear layers in order; the last is that of the logits, the others have a norm."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def parameter_groups(network: nn.Module, weight_decay: float, decay_norm: bool) -> list[dict[str, Any]]:
    """Parameters for an optimiser: all of them decayed, or all but gamma and beta of the norms.

    A norm's parameters are those of the modules that are neither convolution, linear layer nor PReLU.
    """
    plain = (nn.Conv2d, nn.Linear, nn.PReLU)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        (decayed if decay_norm or isinstance(module, plain) else kept).extend(own)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def state_of(network: nn.Module) -> dict[str, Any]:
    """What a checkpoint holds of ``network``: its state_dict(), and the buffers that this leaves out.

    Layers of a user's own may compute with a buffer that is not persistent, and change it.
    """
    kept = network.state_dict()
    buffers = network.named_buffers(remove_duplicate=False)
    return {"network": kept, "buffers": {name: b.detach() for name, b in buffers if name not in kept}}


def load_state(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Give ``network`` what `state_of` one like it has returned.

    Raises:
        ValueError: it does not fit; the message says which tensor.
    """
    try:
        network.load_state_dict(state["network"])
        for name, buffer in state.get("buffers", {}).items():
            owner, _, last = name.rpartition(".")
            here = next(network.parameters()).device
            network.get_submodule(owner).register_buffer(last, buffer.to(here), persistent=False)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        first, *rest = filter(None, map(str.strip, str(error).splitlines() or [""]))  # torch names tensors from line 2
        raise ValueError((rest[0] if rest else first)[:300].rstrip(".")) from error


def size_of(network: nn.Module) -> tuple[int, int]:
    """(numbers in parameters, numbers in running statistics)."""
    parameters = sum(p.numel() for p in network.parameters())
    return parameters, sum(b.numel() for b in network.buffers() if b.is_floating_point())
