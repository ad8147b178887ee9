"""What is trained: by a run where it can, by a loop of its own where batches or norms are made for this experiment."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.experiments.wu2018.layers import momentum_of_part
from bnrepro.experiments.wu2018.loops import trained
from bnrepro.schema import Config

PARTS, SORTED = "parts", "sorted"
WHOLE = {"bn": "bn", "group": "groupnorm", "none": "nobn", "lrn": "lrn"}
"""Norms that runs know, with statistics from the whole batch or from each image."""
OWN = ("local", "renorm")
"""Norms over parts of the batch that this experiment makes."""
SORTED_NORMS = ("bn", "renorm", "group")


def arms(settings: Settings) -> list[Arm]:
    """Norms over the whole batch, and BN over parts of it."""
    base = _composed(*settings["common"])
    batch = base.batch_size
    made: list[Arm] = []
    for norm, variant in WHOLE.items():
        cfg = replace(base, variant=variant, norm=replace(base.norm, momentum=settings["momentum"]))
        made += _seeds(settings, {"norm": norm, "images": batch}, cfg)
    for images in settings["images"]:
        momentum = momentum_of_part(settings["momentum"], images, batch)
        norm_options = replace(base.norm, ghost_size=images, momentum=momentum)
        cfg = replace(base, variant="ghostbn", norm=norm_options)
        made += _seeds(settings, {"norm": "bn", "images": images}, cfg)
    return made


def probes(settings: Settings) -> list[Probe]:
    """Local statistics and renorm over parts; batches of few classes. The run beside is BN's over the whole batch."""
    made: list[Probe] = []
    schedule = {"renorm_shares": settings["renorm_shares"]}
    whole = [arm.config for arm in arms(settings) if arm.config.variant == "bn"]
    for cfg in whole:
        for norm in OWN:
            for images in [*settings["few_images"], cfg.batch_size]:
                factors = {"norm": norm, "images": images}
                arguments = {**factors, "classes": 0, "momentum": settings["momentum"], **schedule}
                made.append(Probe(PARTS, factors, cfg.seed, trained, arguments, cfg))
        for norm in SORTED_NORMS:
            for classes in (0, settings["classes"]):
                factors = {"norm": norm, "classes": classes}
                arguments = {**factors, "images": cfg.batch_size, "momentum": settings["sorted_momentum"], **schedule}
                made.append(Probe(SORTED, factors, cfg.seed, trained, arguments, cfg))
    return made


def _seeds(settings: Settings, factors: dict[str, Any], cfg: Config) -> list[Arm]:
    return [Arm(PARTS, factors, replace(cfg, seed=seed)) for seed in range(settings["seeds"])]


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))  # takes a tenth of a second
