"""What is trained, and the gammas that it ends with."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bnrepro import checkpoint, record
from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import trainer_of
from bnrepro.trainable import norms, restrict

DEPTH, WIDTH = "depth", "width"
TRAINED = ("norm", "random", "last", "all")
BINS = 40  # of the histogram

Row = dict[str, Any]


def arms(settings: Settings) -> list[Arm]:
    """Every part that is trained, by depth at the preset's width, and by width at the preset's depth."""
    base = settings["network"]
    made: list[Arm] = []
    for seed in range(settings["seeds"]):
        for part, values in ((DEPTH, settings["depths"]), (WIDTH, settings["widths"])):
            for value in values:
                shape = {**base, part: value}
                for trained in TRAINED:
                    own = (f"model.depth={shape[DEPTH]}", f"model.width={shape[WIDTH]}")
                    cfg = replace(_composed(*settings["common"], *own, f"optimizer.train_only={trained}"), seed=seed)
                    made.append(Arm(part, {"size": value, "trained": trained}, cfg))
    return made


def probes(settings: Settings) -> list[Probe]:
    """The gammas of the networks of which they are trained."""
    return [
        Probe(arm.part, arm.factors, arm.config.seed, gammas, {"threshold": settings["threshold"]}, arm.config)
        for arm in arms(settings)
    ]


@cache
def _composed(*overrides: str) -> Config:
    source = ("model=resnet20", "variant=bn", "norm.gamma=uniform", "optimizer=sgd", "optimizer.lr=0.1")
    return load_config([*source, "schedule=step", "batch_size=128", *overrides])  # takes a tenth of a second


def gammas(run: Run, seed: int, threshold: float) -> list[Row]:
    """Percentage of gammas with a size below ``threshold`` at the end and at the start, and how many are trained.

    ``density``: histogram of the gammas at the end, by the bins' middles.
    """
    network = trainer_of(run.config).network
    counted = restrict(network, run.config.optimizer.train_only, torch.Generator().manual_seed(0))
    start = _gammas(network)
    network.load_state_dict(checkpoint.load(run.path / record.CHECKPOINT)["network"])
    end = _gammas(network)
    rows: list[Row] = [{"quantity": "trained", "x": None, "value": counted}]
    for name, values in (("disabled", end), ("disabled_at_start", start)):
        share = 100 * float((values.abs() < threshold).float().mean())
        rows.append({"quantity": name, "x": None, "value": share})
    edges = torch.linspace(-1.5, 2.5, BINS + 1)
    counts = torch.histogram(end.clamp(-1.5, 2.5), edges).hist / end.numel() / float(edges[1] - edges[0])
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return rows + [
        {"quantity": "density", "x": round(middle, 6), "value": value}
        for middle, value in zip(middles, counts.tolist(), strict=True)
    ]


def _gammas(network: torch.nn.Module) -> Tensor:
    found = [gamma for module in norms(network) if isinstance(gamma := getattr(module, "weight", None), Tensor)]
    return torch.cat([gamma.detach().flatten().cpu() for gamma in found])
