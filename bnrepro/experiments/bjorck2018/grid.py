"""Networks, norms and learning rates; what is measured at the start and where training diverges."""

from __future__ import annotations

from bnrepro.experiments.base import Arm, Probe, Settings
from bnrepro.experiments.bjorck2018.moments import at_start, configured, diverging

RATES, START, DIVERGING = "rates", "start", "diverging"
NORMS = ("nobn", "bn")


def arms(settings: Settings) -> list[Arm]:
    """Every network at every rate, with and without BN."""
    made: list[Arm] = []
    for network, about in settings["networks"].items():
        overrides = [*settings["common"], *about["overrides"]]
        for rate in about.get("rates", settings["rates"]):
            for variant in NORMS:
                factors = {"network": network, "layers": about["layers"], "variant": variant, "rate": rate}
                configs = [configured(overrides, variant, seed, rate) for seed in range(settings["seeds"])]
                made += [Arm(RATES, factors, cfg) for cfg in configs]
    return made


def probes(settings: Settings) -> list[Probe]:
    """Activations and gradients of the ``inside`` networks at the start, and at the update that diverges."""
    made: list[Probe] = []
    for network in settings["inside"]:
        about = settings["networks"][network]
        overrides = [*settings["common"], *about["overrides"]]
        for seed in range(settings["seeds"]):
            for variant in NORMS:
                factors = {"network": network, "variant": variant}
                arguments = {"overrides": overrides, "variant": variant, "images": settings["images"]}
                made.append(Probe(START, factors, seed, at_start, arguments))
            asked = {
                "overrides": overrides,
                "rates": about.get("rates", settings["rates"]),
                "steps": settings["diverging_steps"],
                "loss": settings["diverging_loss"],
                "shares": settings["shares"],
            }
            made.append(Probe(DIVERGING, {"network": network}, seed, diverging, asked))
    return made
