"""Networks that are handed a norm. None knows which: a block asks the factory for its layer and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnrepro.config.schema import DropoutPosition, Placement
from bnrepro.norm import ConvAdaptiveNorm2d, FusedSequential
from bnrepro.training.user_modules import MakeNorm, Shape

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
    """y = alpha x, with one learned number alpha. It normalizes nothing, and so is no row of the table of norms."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(start)))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, in and out."""
        return self.alpha * x


def add_skip_init(network: nn.Module, start: float = 0.0) -> list[LearnedScale]:
    """Put a `LearnedScale` at the end of each residual branch of ``network``, before the sum; return them in order.

    With ``start`` = 0 the network begins with its shortcuts alone. Done before an optimizer is made, and with norms or
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


class TooSmall(Exception):
    """No pixel of the image is left."""


def _smaller(shape: Shape, by: int = 0, pool: int = 1) -> Shape:
    """The map after a valid convolution that takes ``by`` pixels off, and a pooling."""
    out = tuple((n - by) // pool for n in shape)
    if min(out) < 1:
        raise TooSmall
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
