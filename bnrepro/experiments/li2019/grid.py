"""Places and amounts of dropout, and widths."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Factors, Probe, Settings
from bnrepro.experiments.li2019.shift import shifts
from bnrepro.schema import Config, DropoutPosition

DROPOUT = "dropout"
NOWHERE = "none"
POSITIONS = ("before_norm", "after_norm", "last")


def arms(settings: Settings) -> list[Arm]:
    """Every place and amount; and wider networks with the largest amount before BN, and with none."""
    base = _composed(*settings["common"])
    amounts, width = settings["amounts"], base.model.width
    cells = [(NOWHERE, 0.0, width), *((where, amount, width) for where in POSITIONS for amount in amounts)]
    for factor in settings["widths"]:
        cells += [(NOWHERE, 0.0, factor * width), ("before_norm", amounts[-1], factor * width)]
    made: list[Arm] = []
    for where, amount, wide in cells:
        model = replace(base.model, width=wide)
        if amount:
            model = replace(model, dropout=amount, dropout_position=DropoutPosition(where))
        factors: Factors = {"position": where, "amount": amount, "width": wide}
        cfg = replace(base, model=model)
        made += [Arm(DROPOUT, factors, replace(cfg, seed=seed)) for seed in range(settings["seeds"])]
    return made


def probes(settings: Settings) -> list[Probe]:
    """The shift in every run's network, and its accuracy with statistics taken again."""
    return [Probe(DROPOUT, arm.factors, arm.config.seed, shifts, config=arm.config) for arm in arms(settings)]


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))  # takes a tenth of a second
