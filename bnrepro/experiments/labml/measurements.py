"""Measurements of the networks that runs left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro.claims import measure
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Dataset, derive_seed, epoch_plan, train_batch
from bnrepro.norm import reestimate_statistics
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.model import build, norm_of

Row = dict[str, Any]


@measure("labml/statistics")
def statistics(run: Run, seed: int, parts: list[int]) -> list[Row]:
    """Test accuracy (%) and loss with the moving average, the batch's own, and the population's statistics.

    The population is one epoch of training batches, or only the first few (``parts``).
    """
    rows: list[Row] = []
    for kind in inference.Statistics:
        loss, accuracy = inference.evaluate(run, kind)["test"]
        rows += [
            {"quantity": "accuracy", "x": kind.value, "value": 100 * accuracy},
            {"quantity": "loss", "x": kind.value, "value": loss},
        ]
    cfg, data, network = inference.restore(run)
    for count in parts:  # which replace all that the one before set
        reestimate_statistics(network, islice(_batches(cfg, data), count))
        _, accuracy = train.measure(network, data, data.test, cfg)
        rows.append({"quantity": "part_accuracy", "x": count, "value": 100 * accuracy})
    return rows


@measure("labml/outside_network")
def outside_network(run: Run, seed: int) -> list[Row]:
    """Norm of the biases that a norm follows, of the weights before it, and test accuracy by the batch's statistics."""
    _, _, network = inference.restore(run)
    before = [next(iter(unit)) for unit in network.modules() if isinstance(unit, nn.Sequential) and _normed(unit)]
    rows: list[Row] = []
    for name in ("weight", "bias"):
        parts = [p.detach().flatten() for layer in before if (p := getattr(layer, name)) is not None]
        rows.append({"quantity": f"{name}_norm", "x": None, "value": float(torch.cat(parts).norm()) if parts else 0.0})
    _, accuracy = inference.evaluate(run, inference.Statistics.batch)["test"]
    return [*rows, {"quantity": "batch_accuracy", "x": None, "value": 100 * accuracy}]


def _normed(unit: nn.Sequential) -> bool:
    layers = list(unit)
    follows = len(layers) > 1 and getattr(layers[1], "running_mean", None) is not None
    return follows and isinstance(layers[0], nn.Conv2d | nn.Linear)


@measure("labml/sigmoid_inputs")
@torch.no_grad()
def sigmoid_inputs(run: Run, seed: int) -> list[Row]:
    """Percentage of the sigmoids' inputs within [-1, 1], layer by layer, before training and after it.

    ``normalised`` is before gamma and beta, ``input`` after them; at the start they are the same. Statistics are those
    of the validation images as one batch. ``density`` is the histogram of all layers' inputs, by the bins' middles.
    """
    cfg, data, trained = inference.restore(run)
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    at_start = build(cfg.model, norm_of(cfg), data.channels, data.image_size, data.num_classes, weights)
    at_start.to(cfg.device.value)
    images = data.normalize(data.val.images[:1000])
    rows: list[Row] = []
    edges = torch.linspace(-6, 6, 49)
    for when, network in (("start", at_start), ("end", trained)):
        outputs: dict[str, Tensor] = {}
        for name, norm in network.norms.items():
            norm.register_forward_hook(partial(_keep, outputs, name))
        network.train()
        network(images)
        for name, norm in network.norms.items():
            assert isinstance(norm, nn.BatchNorm1d)
            y = outputs[name]
            z = (y - norm.bias) / norm.weight
            for quantity, values in (("normalised", z), ("input", y)):
                share = 100 * float((values.abs() < 1).float().mean())
                rows.append({"quantity": f"{quantity}_{when}", "x": name, "value": share})
        joined = torch.cat([y.flatten() for y in outputs.values()])
        counts = torch.histogram(joined, edges).hist / joined.numel()
        density = (counts / edges.diff()).tolist()
        rows += [
            {"quantity": f"density_{when}", "x": middle, "value": value}
            for middle, value in zip(((edges[1:] + edges[:-1]) / 2).tolist(), density, strict=True)
        ]
    return rows


def _keep(outputs: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    outputs[name] = output


def _batches(cfg: Config, data: Dataset) -> Iterator[Tensor]:
    """Training batches of the epoch after the last."""
    plan = epoch_plan(len(data.train.labels), cfg.data, cfg.seed, cfg.epochs)
    for start in range(0, len(data.train.labels) - cfg.batch_size + 1, cfg.batch_size):
        yield train_batch(data, plan, cfg.data, start, cfg.batch_size)[0]
