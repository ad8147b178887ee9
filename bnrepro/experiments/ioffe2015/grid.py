"""What is trained and measured. The sources' procedures that no run has are probes (`figure1`, `race`)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

from bnrepro.config import load_config
from bnrepro.experiments.base import Arm, Factors, Probe, Settings
from bnrepro.experiments.ioffe2015 import exact
from bnrepro.experiments.ioffe2015.choosing import at
from bnrepro.experiments.ioffe2015.figure1 import train_and_watch
from bnrepro.experiments.ioffe2015.race import ARMS, race
from bnrepro.experiments.labml import toys
from bnrepro.experiments.placement.exact import channels, fit
from bnrepro.schema import Config

FIGURE1, CHOICE1 = "figure1", "figure1_choice"
RACE, CHOICE2 = "speed", "speed_choice"
RATES, DROPOUT, SHUFFLE, EXACT = "rates", "dropout", "shuffle", "exact"
NORMS = ("nobn", "bn")


@cache
def _composed(*overrides: str) -> Config:
    return load_config(list(overrides))  # takes a tenth of a second


def cells(asked: dict[str, Any]) -> list[list[float]]:
    """The grid of learning rates and initial deviations, from the smallest rate on."""
    return [[float(lr), float(std)] for lr, std in product(sorted(asked["rates"]), asked.get("deviations", [0.01]))]


def arms(settings: Settings) -> list[Arm]:
    """All ordinary runs: the grids that choose, learning rates with and without BN, dropout, batches that stay."""
    made = [*_choice1(settings), *_choice2(settings)]
    asked = settings["rates"]
    for variant, lr in product(asked["variants"], asked["rates"]):
        cfg = _composed(*asked["overrides"], f"variant={variant}")
        made += _seeds(settings, RATES, {"variant": variant, "rate": float(lr)}, at(cfg, (float(lr), 0.01), 0))
    return [*made, *_dropout(settings), *_shuffle(settings)]


def probes(settings: Settings) -> list[Probe]:
    """Figure 1's networks, the race of Figures 2 and 3, how well networks fit, and the identities."""
    made: list[Probe] = []
    asked = settings["figure1"]
    for arm in _choice1(settings):
        # The run with the smallest rate says where the data and the other runs are; it does not diverge.
        if [arm.factors["rate"], arm.factors["deviation"]] == cells(asked)[0] and arm.config.seed == 0:
            arguments = {"cells": cells(asked), "choosing_seeds": settings["choosing_seeds"]}
            arguments |= {key: asked[key] for key in ("steps", "every", "images", "jacobians")}
            for seed in range(settings["seeds"]):
                factors = {"variant": arm.factors["variant"]}
                made.append(Probe(FIGURE1, factors, seed, train_and_watch, arguments, arm.config))
    asked = settings["speed"]
    first = next(a.config for a in _choice2(settings) if a.factors["rate"] == cells(asked)[0][0])
    for name, seed in product(ARMS, range(settings["seeds"])):
        arguments = {"arm": name, "cells": cells(asked), "choosing_seeds": settings["choosing_seeds"]}
        arguments |= {key: asked[key] for key in ("steps", "every")}
        made.append(Probe(RACE, {"arm": name}, seed, race, arguments, first))
    made += [Probe(DROPOUT, a.factors, a.config.seed, fit, {}, a.config) for a in _dropout(settings)]
    return [*made, *_exact(settings)]


def _choice1(settings: Settings) -> list[Arm]:
    asked, made = settings["figure1"], []
    for variant, cell, seed in product(NORMS, cells(asked), range(settings["choosing_seeds"])):
        cfg = _composed(*asked["overrides"], f"epochs={asked['choosing_epochs']}", f"variant={variant}")
        factors = {"variant": variant, "rate": cell[0], "deviation": cell[1]}
        made.append(Arm(CHOICE1, factors, at(cfg, (cell[0], cell[1]), seed)))
    return made


def _choice2(settings: Settings) -> list[Arm]:
    asked, made = settings["speed"], []
    for cell, seed in product(cells(asked), range(settings["choosing_seeds"])):
        cfg = _composed(*asked["overrides"], f"epochs={asked['choosing_epochs']}", "variant=nobn")
        made.append(Arm(CHOICE2, {"rate": cell[0]}, at(cfg, (cell[0], cell[1]), seed)))
    return made


def _dropout(settings: Settings) -> list[Arm]:
    made = []
    for variant, amount in product(NORMS, settings["dropout_amounts"]):
        cfg = _composed(*settings["regularized"], f"variant={variant}")
        cfg = replace(cfg, model=replace(cfg.model, dropout=float(amount)))
        made += _seeds(settings, DROPOUT, {"variant": variant, "amount": float(amount)}, cfg)
    return made


def _shuffle(settings: Settings) -> list[Arm]:
    made = []
    for variant, fixed in product(NORMS, (False, True)):
        cfg = _composed(*settings["regularized"], f"variant={variant}")
        cfg = replace(cfg, data=replace(cfg.data, together=cfg.batch_size if fixed else 0))
        made += _seeds(settings, SHUFFLE, {"variant": variant, "fixed": fixed}, cfg)
    return made


def _seeds(settings: Settings, part: str, factors: Factors, cfg: Config) -> list[Arm]:
    return [Arm(part, factors, replace(cfg, seed=seed)) for seed in range(settings["seeds"])]


def _exact(settings: Settings) -> list[Probe]:
    shape = {"batch": 16, "channels": 6, "height": 9, "width": 7}
    made = [
        Probe(EXACT, {"what": "bias"}, 0, toys.cancelled_bias, {"steps": 50}),
        Probe(EXACT, {"what": "channels"}, 0, channels, shape),
        Probe(EXACT, {"what": "effective batch"}, 0, exact.effective_batch, shape),
        Probe(EXACT, {"what": "algorithm 2"}, 0, exact.algorithm_2, {"values": 5, "batch": 3, "features": 4}),
    ]
    scales = settings["scales"]
    return [
        *made,
        *(
            Probe(EXACT, {"what": f"scale, eps {eps:g}"}, 0, toys.scaled_weights, {"eps": eps, "scales": scales})
            for eps in settings["scale_eps"]
        ),
    ]
