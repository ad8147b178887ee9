"""What is measured: the landscape along a run and its activations' distributions; and deep linear networks.

A run is trained again from its initial weights, on the same batches, and measured on its way.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnrepro.claims import measure
from bnrepro.data.dataset import derive_seed
from bnrepro.experiments.santurkar2018.landscape import Factor, Objective, Row, copies, measured
from bnrepro.norm import NORMS
from bnrepro.runs.record import Run
from bnrepro.training.model import Network
from bnrepro.training.train import trainer_of

BINS = 24
REACH = 4.0  # standard deviations to either side of the mean over all times that a histogram shows


@measure("santurkar2018/landscape")
def landscape(run: Run, seed: int, steps: int, every: int, along: list[float], layers: list[int]) -> list[Row]:
    """`landscape.measured` on every ``every``-th batch of the first ``steps``, before its update."""
    trainer = trainer_of(run.config)
    rows: list[Row] = []
    for step, x, y, lr in trainer.batches(0, steps):
        if step % every == 0:
            objective = Objective(trainer.network, x, partial(F.cross_entropy, target=y))
            rows += measured(step, objective, [p.detach() for p in trainer.network.parameters()], lr, along, layers)
        loss, _ = trainer.update(x, y, lr)
        if not math.isfinite(float(loss)):
            return [*rows, {"quantity": "diverged", "x": None, "value": step}]
    return rows


# --- distributions ---


@measure("santurkar2018/distributions")
def distributions(
    run: Run, seed: int, steps: int, every: int, images: int, units: int, layers: list[int], ridges: int
) -> list[Row]:
    """How the inputs of single activations are distributed over the first ``images`` of the validation set.

    In each layer ``units`` activations (channel and location) are drawn by ``seed``; their inputs are read in training
    mode every ``every`` steps. Row ``shift`` (x = step): how far the distribution has moved since the time before,
    sqrt((m' - m)^2 + (s' - s)^2) / sqrt((s^2 + s'^2) / 2) with m and s its mean and standard deviation, averaged over
    layers and units. This is the Wasserstein distance of two normal distributions, in standard deviations.

    At ``ridges`` of the times, the density of the first unit of each of ``layers`` (from 1): rows
    ``density_<layer>_<step>`` (x = the unit's input).
    """
    trainer = trainer_of(run.config)
    data = trainer.data
    x = data.normalize(data.val.images[:images], trainer.cfg.channels_last)
    chosen: dict[str, Tensor] = {}
    times: list[tuple[int, dict[str, Tensor]]] = []
    for step, batch, y, lr in trainer.batches(0, steps + 1):
        if step % every == 0:
            times.append((step, sampled(trainer.network, x, units, chosen, derive_seed(seed, "noise", step), seed)))
        loss, _ = trainer.update(batch, y, lr)
        if not math.isfinite(float(loss)):
            break
    rows = [
        {"quantity": "shift", "x": step, "value": shift(before, after)}
        for (_, before), (step, after) in pairwise(times)
    ]
    return rows + _densities(times, layers, ridges)


@torch.no_grad()
def sampled(
    network: Network, x: Tensor, units: int, chosen: dict[str, Tensor], noise: int, seed: int
) -> dict[str, Tensor]:
    """The inputs of the chosen activations of each layer, (images, units), by norm. The network stays as it is."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        flat = output.flatten(1)
        if name not in chosen:
            generator = torch.Generator().manual_seed(derive_seed(seed, f"units of {name}"))
            chosen[name] = torch.randperm(flat.shape[1], generator=generator)[:units].to(flat.device)
        found[name] = flat[:, chosen[name]].clone()

    handles = [norm.register_forward_hook(partial(keep, name)) for name, norm in network.norms.items()]
    with torch.random.fork_rng():  # the run's own noise continues as if nothing had been read
        torch.manual_seed(noise)
        functional_call(network.train(), copies(network), (x,))
    for handle in handles:
        handle.remove()
    return found


def shift(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Mean over units and layers of the distance that `distributions` describes."""
    distances = []
    for name, values in before.items():
        (m, s), (m2, s2) = ((v.double().mean(0), v.double().std(0, correction=0)) for v in (values, after[name]))
        pooled = ((s.square() + s2.square()) / 2).sqrt()
        distance = ((m2 - m).square() + (s2 - s).square()).sqrt() / pooled
        distances.append(float(distance[pooled > 0].mean()))
    return sum(distances) / len(distances)


def _densities(times: list[tuple[int, dict[str, Tensor]]], layers: list[int], ridges: int) -> list[Row]:
    rows: list[Row] = []
    shown = sorted({round(i * (len(times) - 1) / max(1, ridges - 1)) for i in range(ridges)}) if ridges else []
    for layer in layers if shown else []:
        series = [(times[i][0], times[i][1][f"norm{layer}"][:, 0].float()) for i in shown]
        joined = torch.cat([values for _, values in series])
        edges = torch.linspace(-REACH, REACH, BINS + 1) * joined.std() + joined.mean()
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        for step, values in series:
            density = torch.histogram(values.cpu(), edges).hist / (len(values) * edges.diff())
            rows += [
                {"quantity": f"density_{layer}_{step}", "x": middle, "value": value}
                for middle, value in zip(middles, density.tolist(), strict=True)
            ]
    return rows


# --- deep linear networks ---


@measure("santurkar2018/deep_linear")
def deep_linear(
    seed: int,
    variant: str,
    rate: float,
    depth: int,
    width: int,
    samples: int,
    steps: int,
    every: int,
    along: list[float],
    layers: list[int],
) -> list[Row]:
    r"""min :math:`\sum_x \|W_1 \cdots W_k x - A x\|^2` by full-batch gradient descent, measured every ``every`` steps.

    From Glorot's weights; the rows are those of `landscape.measured`. A network whose loss is not finite stops there:
    row ``diverged``.
    """
    x, target = problem(width, samples, seed)
    net = network(variant, depth, width, samples, seed)
    objective = Objective(net, x, partial(F.mse_loss, target=target, reduction="sum"))
    parameters: list[Tensor] = list(net.parameters())
    rows: list[Row] = []
    for step in range(steps + 1):
        if step % every == 0:
            rows += measured(step, objective, parameters, rate, along, layers)
        loss = objective.loss(net(x))
        if not bool(loss.isfinite()):
            return [*rows, {"quantity": "diverged", "x": None, "value": step}]
        gradient = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradient, alpha=-rate)
    return rows


def network(variant: str, depth: int, width: int, samples: int, seed: int) -> nn.Sequential:
    """``depth`` layers of ``width`` x ``width``, a norm after each but the last; all norms share weights."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(Factor(width, generator))
        if index < depth - 1:
            layers.append(NORMS[variant](width, (samples,)))
    return nn.Sequential(*layers)


def problem(width: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs x and targets A x, both (1, width, samples); x and A are standard normal."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "data"))
    x = torch.randn(1, width, samples, generator=generator)
    return x, torch.randn(width, width, generator=generator) @ x
