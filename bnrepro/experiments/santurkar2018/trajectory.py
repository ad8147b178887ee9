"""One run's trajectory, measured on its way: the landscape round it, and the distributions of its activations."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnrepro.data import mix
from bnrepro.experiments.santurkar2018.landscape import Objective, Row, copies, measured
from bnrepro.model import Network
from bnrepro.record import Run
from bnrepro.train import trainer_of

BINS = 24
REACH = 4.0  # standard deviations from the mean over the whole time that a histogram shows


def landscape(run: Run, seed: int, steps: int, every: int, along: list[float], layers: list[int]) -> list[Row]:
    """The first ``steps`` of a run again, with all measures on every ``every``-th batch before its step."""
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


def distributions(
    run: Run, seed: int, steps: int, every: int, images: int, units: int, layers: list[int], ridges: int
) -> list[Row]:
    """How the inputs of single activations are distributed over the first ``images`` of the validation set.

    Of each layer, ``units`` activations (channel and location) are drawn by ``seed``, and what enters them is taken
    in training mode every ``every`` steps. Row ``shift`` by step: how far the distribution has moved since the time
    before, sqrt((m' - m)^2 + (s' - s)^2) / sqrt((s^2 + s'^2) / 2) with m and s its mean and deviation, in the mean
    over layers and units. It is the Wasserstein distance of two normal distributions, in deviations.

    For ``ridges`` of the times, the density of the first unit of each of ``layers`` (from 1): rows ``density_L_step``
    by its value.
    """
    trainer = trainer_of(run.config)
    data = trainer.data
    x = data.normalize(data.val.images[:images], trainer.cfg.channels_last)
    chosen: dict[str, Tensor] = {}
    times: list[tuple[int, dict[str, Tensor]]] = []
    for step, batch, y, lr in trainer.batches(0, steps + 1):
        if step % every == 0:
            times.append((step, _sampled(trainer.network, x, units, chosen, mix(seed, "noise", step), seed)))
        loss, _ = trainer.update(batch, y, lr)
        if not math.isfinite(float(loss)):
            break
    rows = [
        {"quantity": "shift", "x": step, "value": _shift(before, after)}
        for (_, before), (step, after) in pairwise(times)
    ]
    return rows + _densities(times, layers, ridges)


@torch.no_grad()
def _sampled(
    network: Network, x: Tensor, units: int, chosen: dict[str, Tensor], noise: int, seed: int
) -> dict[str, Tensor]:
    """What enters the chosen activations of each layer, (images, units), by norm. The network stays as it is."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        flat = output.flatten(1)
        if name not in chosen:
            generator = torch.Generator().manual_seed(mix(seed, f"units of {name}"))
            chosen[name] = torch.randperm(flat.shape[1], generator=generator)[:units].to(flat.device)
        found[name] = flat[:, chosen[name]].clone()

    handles = [norm.register_forward_hook(partial(keep, name)) for name, norm in network.norms.items()]
    with torch.random.fork_rng():  # the run's own noise goes on as if nobody had looked
        torch.manual_seed(noise)
        functional_call(network.train(), copies(network), (x,))
    for handle in handles:
        handle.remove()
    return found


def _shift(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
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
