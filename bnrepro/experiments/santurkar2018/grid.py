"""What is trained, and what is measured on the way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.experiments.santurkar2018 import deep_linear, trajectory
from bnrepro.schema import Config

CURVES, LANDSCAPE, DISTRIBUTIONS, LINEAR = "curves", "landscape", "distributions", "deep_linear"
LP = ("l1norm", "l2norm", "linfnorm")
VARIANTS = ("nobn", "bn", "noisybn", "noise", *LP)  # at the first rate; at the others the first two


def arms(settings: Settings) -> list[Arm]:
    """Training curves: without and with BN at all rates, and noise and other norms at the first."""
    made = []
    for seed in range(settings["seeds"]):
        for place, rate in enumerate(settings["rates"]):
            for variant in VARIANTS if place == 0 else VARIANTS[:2]:
                made.append(Arm(CURVES, {"variant": variant, "rate": rate}, _config(settings, variant, rate, seed)))
    return made


def probes(settings: Settings) -> list[Probe]:
    """The landscape, the distributions, and the deep linear networks."""
    rate = settings["rates"][0]
    made = []
    for seed in range(settings["seeds"]):
        for variant in ("nobn", "bn"):
            config = _config(settings, variant, rate, seed)
            factors = {"variant": variant, "rate": rate}
            made.append(Probe(LANDSCAPE, factors, seed, trajectory.landscape, settings["landscape"], config))
        for variant in ("nobn", "bn", "noisybn"):
            config = _config(settings, variant, rate, seed)
            # Pictures of single activations are of one seed: there is no mean of them.
            asked = settings["distributions"] | ({"ridges": 0} if seed else {})
            made.append(Probe(DISTRIBUTIONS, {"variant": variant}, seed, trajectory.distributions, asked, config))
        for rate_of, runs in settings["deep_linear_runs"]:
            for variant, steps in runs.items():
                factors = {"variant": variant, "rate": rate_of}
                asked = settings["deep_linear"] | {"steps": steps} | factors
                made.append(Probe(LINEAR, factors, seed, deep_linear.trained, asked))
    return made


def _config(settings: Settings, variant: str, rate: float, seed: int) -> Config:
    return replace(_composed(*settings["network"], f"variant={variant}", f"optimizer.lr={rate}"), seed=seed)


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))
