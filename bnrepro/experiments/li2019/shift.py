"""The shift of the variance in a trained network, and what its accuracy is without the shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnrepro import inference, train
from bnrepro.data import eval_batches
from bnrepro.norm import reestimate_statistics
from bnrepro.record import Run

Row = dict[str, Any]


@torch.no_grad()
def shifts(run: Run, seed: int) -> list[Row]:
    """How far the variances that enter the norms at test are from the moving ones.

    Rows: ``shift`` (x = layer from 1), the mean over channels of `ratio`, with the network in eval mode on all training
    images; ``shift_mended``, the same after statistics were taken again from these images without dropout; and
    ``accuracy`` and ``accuracy_mended``, test accuracy in % with either.
    """
    cfg, data, network = inference.restore(run)
    images = [x for x, _ in eval_batches(data, data.train, train.EVAL_IMAGES)]
    rows: list[Row] = []
    for suffix in ("", "_mended"):
        if suffix:
            reestimate_statistics(network, images)
        for layer, value in enumerate(by_layer(network, images), 1):
            rows.append({"quantity": f"shift{suffix}", "x": layer, "value": value})
        _, accuracy = train.measure(network, data, data.test, cfg)
        rows.append({"quantity": f"accuracy{suffix}", "x": None, "value": 100 * accuracy})
    return rows


@torch.no_grad()
def by_layer(network: Any, images: list[Tensor]) -> list[float]:
    """The mean `ratio` of each norm of ``network``, in order, with what enters it in eval mode over all ``images``."""
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in network.norms}

    def collect(name: str) -> Any:
        def hook(_module: Any, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].double().transpose(0, 1).flatten(1)  # (C, values)
            of = sums[name]
            of[0], of[1], of[2] = of[0] + x.shape[1], of[1] + x.sum(1), of[2] + x.square().sum(1)

        return hook

    handles = [norm.register_forward_pre_hook(collect(name)) for name, norm in network.norms.items()]
    network.eval()
    for x in images:
        network(x)
    for handle in handles:
        handle.remove()
    found = []
    for name, norm in network.norms.items():
        count, total, square = sums[name]
        real = square / count - (total / count).square()  # in float64, where this cancels nothing that counts
        found.append(float(ratio(real + norm.eps, norm.running_var.double() + norm.eps).mean()))
    return found


def ratio(real: Tensor, moving: Tensor) -> Tensor:
    """max(real / moving, moving / real), 1 where they are the same. Both have eps added, as BN has: dead channels."""
    return torch.maximum(real / moving, moving / real)
