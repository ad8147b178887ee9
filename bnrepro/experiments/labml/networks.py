"""Measurements of the networks that runs left, and the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bnrepro import inference, train
from bnrepro.config import load_config
from bnrepro.data import Dataset, epoch_plan, mix, train_batch
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.experiments.labml import toys
from bnrepro.model import build, norm_of
from bnrepro.norm import reestimate_statistics
from bnrepro.record import Run
from bnrepro.schema import Config

Row = dict[str, Any]
OUTSIDE = ("bn", "detachedmean", "detached")


def arms(settings: Settings) -> list[Arm]:
    """All training runs of a preset."""
    made: list[Arm] = []
    for seed in range(settings["seeds"]):
        for network, asked in settings["networks"].items():
            made += [
                Arm("networks", {"network": network, "variant": v}, _config(asked, seed, f"variant={v}"))
                for v in ("nobn", "bn")
            ]
        asked = settings["outside"]
        made += [
            Arm(
                "outside",
                {"variant": v, "keep_bias": True},
                _config(asked, seed, f"variant={v}", "model.keep_bias=true"),
            )
            for v in OUTSIDE
        ]
        made.append(Arm("outside", {"variant": "bn", "keep_bias": False}, _config(asked, seed, "variant=bn")))
        made.append(Arm("sigmoid", {"variant": "bn"}, _config(settings["sigmoid"], seed, "variant=bn")))
    return made


def _config(asked: dict[str, Any], seed: int, *overrides: str) -> Config:
    return replace(_composed(*asked["overrides"], f"epochs={asked['epochs']}", *overrides), seed=seed)


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))  # takes a tenth of a second


def probes(settings: Settings) -> list[Probe]:
    """All measurements of a preset: those without a network, and those of the runs' networks."""
    made: list[Probe] = []
    toy = settings["toy"]
    for seed in range(settings["seeds"]):
        for statistic in ("mean", "variance"):
            for detached in (True, False):
                factors = {"statistic": statistic, "detached": detached}
                made.append(Probe("toy", factors, seed, toys.outside, factors | toy))
        made.append(Probe("bias", {}, seed, toys.cancelled_bias, {"steps": settings["bias_steps"]}))
        for eps in settings["scale_eps"]:
            arguments = {"eps": eps, "scales": settings["scales"]}
            made.append(Probe("scale", {"eps": eps}, seed, toys.scaled_weights, arguments))
        for mean, std in settings["cancellation"]:
            arguments = {"mean": mean, "std": std, "draws": settings["cancellation_draws"]}
            made.append(Probe("cancellation", {"mean": mean, "std": std}, seed, toys.cancellation, arguments))
    for arm in arms(settings):
        seed, factors = arm.config.seed, arm.factors
        if arm.part == "networks" and factors["variant"] == "bn":
            arguments = {"parts": settings["population_batches"]}
            made.append(Probe("inference", factors, seed, statistics, arguments, arm.config))
        if arm.part == "outside":
            made.append(Probe("outside", factors, seed, outside_network, {}, arm.config))
        if arm.part == "sigmoid":
            made.append(Probe("sigmoid", factors, seed, sigmoid_inputs, {}, arm.config))
    return made


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


@torch.no_grad()
def sigmoid_inputs(run: Run, seed: int) -> list[Row]:
    """Percentage of the sigmoids' inputs within [-1, 1], layer by layer, before training and after it.

    ``normalised`` is before gamma and beta, ``input`` after them; at the start they are the same. Statistics are those
    of the validation images as one batch. ``density`` is the histogram of all layers' inputs, by the bins' middles.
    """
    cfg, data, trained = inference.restore(run)
    weights = torch.Generator().manual_seed(mix(cfg.seed, "weights"))
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
