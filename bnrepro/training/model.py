"""The network of a configuration: made with its norms and initial weights, and its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bnrepro.config import user_files
from bnrepro.config.schema import Config, Initialization, Model
from bnrepro.errors import UserError, known_are
from bnrepro.norm import NORMS, NormError, NormOptions
from bnrepro.training.generators import forked
from bnrepro.training.networks import ACTIVATIONS, MODELS, Blocks, TooSmall
from bnrepro.training.user_modules import MakeNorm as MakeNorm
from bnrepro.training.user_modules import Shape, own_network, own_norm

T = TypeVar("T")


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


def look_up(table: dict[str, T], name: str, key: str) -> T:
    """What ``table`` has under ``name``, the value of ``key``.

    Raises:
        UserError: it has none.
    """
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
    return partial(look_up(NORMS, cfg.variant, "variant"), options=options)


def check_names(cfg: Config) -> None:
    """Raise UserError if there is no such variant, network or activation."""
    norm_of(cfg)
    if cfg.model.file is not None:
        user_files.load(Path(cfg.model.file), cfg.model.name)
    else:
        look_up(MODELS, cfg.model.name, "model.name")
    look_up(ACTIVATIONS, cfg.model.activation, "model.activation")


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
    make = look_up(MODELS, model.name, "model.name")
    activation = look_up(ACTIVATIONS, model.activation, "model.activation")
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
    except TooSmall as error:
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
    """Parameters for an optimizer: all of them decayed, or all but gamma and beta of the norms.

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
