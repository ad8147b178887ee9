"""What is trained, and gamma before training: the options of Frankle, Schwab & Morcos (2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bnrepro.config.schema import Config, Gamma, TrainOnly
from bnrepro.data.dataset import derive_seed
from bnrepro.training.model import weighted_layers


def prepare(network: nn.Module, cfg: Config) -> None:
    """Draw gamma, and freeze what is not trained, as ``cfg`` says. Done before an optimizer is made."""
    if cfg.norm.gamma is Gamma.uniform:
        draw_gamma(network, torch.Generator().manual_seed(derive_seed(cfg.seed, "gamma")))
    freeze_parameters(
        network, cfg.optimizer.train_only, torch.Generator().manual_seed(derive_seed(cfg.seed, "trained"))
    )


def draw_gamma(network: nn.Module, generator: torch.Generator) -> None:
    """The norms' gamma anew, uniform between 0 and 1."""
    for module in norms(network):
        gamma = getattr(module, "weight", None)
        if isinstance(gamma, Tensor):
            nn.init.uniform_(gamma, generator=generator)


def norms(network: nn.Module) -> list[nn.Module]:
    """The modules whose parameters are gamma and beta: those of no layer with weights and of no activation."""
    return [module for module in network.modules() if not isinstance(module, nn.Conv2d | nn.Linear | nn.PReLU)]


def freeze_parameters(network: nn.Module, which: TrainOnly, generator: torch.Generator) -> int:
    """Leave ``which`` of the parameters to be trained; the number of them.

    - ``all``: all of them.
    - ``norm``: gamma and beta of the norms.
    - ``last``: weights and biases of the layer of the logits.
    - ``random``: for each channel of each convolution or linear layer but the last, two of its weights (or one, where
      there is but one), as many as the norm after it has gamma and beta. The others get gradients of zero, which no
      optimizer moves as long as there is no weight decay.

    Args:
        network: its layer of the logits is the last convolution or linear layer.
        which: a part.
        generator: draws the random ones.
    """
    layers = weighted_layers(network)
    if which is not TrainOnly.all:
        parts: dict[TrainOnly, Sequence[nn.Module]] = {TrainOnly.norm: norms(network), TrainOnly.last: layers[-1:]}
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for module in parts.get(which, []):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    if which is not TrainOnly.random:
        return sum(p.numel() for p in network.parameters() if p.requires_grad)
    count = 0
    for layer in layers[:-1]:
        chosen = drawn(layer.weight, generator)
        count += int(chosen.sum())
        layer.weight.requires_grad_(True)
        layer.weight.register_hook(partial(_masked, chosen))
    return count


def _masked(chosen: Tensor, gradient: Tensor) -> Tensor:
    return gradient * chosen.to(gradient)


def drawn(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Two random places of each output channel, as a mask of the weight's shape."""
    flat = weight.flatten(1)
    noise = torch.rand(flat.shape, generator=generator)
    places = noise.topk(min(2, flat.shape[1]), 1).indices
    return torch.zeros(flat.shape, dtype=torch.bool).scatter_(1, places, True).view(weight.shape).to(weight.device)
