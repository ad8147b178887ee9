"""Adaptation of a network to unlabelled test images: entropy minimisation (Tent)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from bnrepro.config.schema import OptimizerName
from bnrepro.norm.statistics import batch_statistics
from bnrepro.training.freezing import norms
from bnrepro.training.optimizer import OPTIMIZERS

__all__ = ["tent"]


def tent(network: nn.Module, batches: Iterable[Tensor], lr: float = 1e-3) -> Iterator[Tensor]:
    """The logits of each batch in turn, while gamma and beta move so that predictions get more certain.

    A batch is normalized by its own statistics. Its logits are those before the step that is taken on it, Adam's on the
    mean entropy of its predictions. No label is seen. ``network`` is left with the gamma and beta of the end, in eval
    mode; give it a copy (`copy.deepcopy`) to keep it.

    Source: Wang, Shelhamer, Liu, Olshausen & Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR
    2021); Adam at 1e-3 and one step a batch are the authors' settings for CIFAR-10-C (DequanWang/tent, cfgs/tent.yaml).

    Raises:
        ValueError: the network has no gamma and beta.
    """
    moved = [each for module in norms(network) for each in module.parameters(recurse=False)]
    if not moved:
        raise ValueError("tent moves gamma and beta of the norms, and the network has none")
    optimizer = OPTIMIZERS[OptimizerName.adam](moved, lr=lr)
    network.eval()
    with batch_statistics(network):
        for x in batches:
            with torch.enable_grad():
                logits = network(x)
                optimizer.zero_grad(set_to_none=True)
                entropy(logits).mean().backward(inputs=moved)
            optimizer.step()
            yield logits.detach()


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's prediction: (N, classes) -> (N,)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
