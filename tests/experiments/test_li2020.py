"""Li & Arora's experiment: equivalence where it is claimed, and none where it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from bnrepro.claims import Results
from bnrepro.claims.evidence import Verdict
from bnrepro.claims.judging import judged
from bnrepro.config import load_config
from bnrepro.data.dataset import load
from bnrepro.experiments.li2020 import ARMS, DECAY, GROWING, NEITHER, Schedule, exactly, losses, paper, trained
from bnrepro.training.optimizer import without_decay

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")
RATES = [0.1] * 12 + [0.01] * 8 + [0.03] * 10
WITH: dict[str, Any] = {"momentum": 0.9, "decay": 0.01}


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["quantity"], row["x"]): row["value"] for row in rows}


# --- the schedule ---


def test_rates_without_momentum_are_those_of_the_closed_form() -> None:
    found = list(without_decay([0.1] * 5, 0.5))
    assert [rate for rate, _ in found] == pytest.approx([0.1 * 0.95 ** (-2 * t - 1) for t in range(5)])
    assert all(kick == 0 for _, kick in found)


def test_rates_grow_by_the_square_of_the_root_and_the_momentum_is_corrected_where_they_change() -> None:
    found = list(without_decay(RATES, 0.01, 0.9))
    root = (1.9 - 0.001) / 2 + math.sqrt(((1.9 - 0.001) / 2) ** 2 - 0.9)
    assert root**2 - (1 + 0.9 - 0.1 * 0.01) * root + 0.9 == pytest.approx(0, abs=1e-12)
    assert found[11][0] / found[0][0] == pytest.approx(root**-22)
    assert [step for step, (_, kick) in enumerate(found) if kick] == [0, 12, 20]
    assert [x for pair in without_decay([0.1] * 3, 0.0, 0.9) for x in pair] == pytest.approx([0.1, 0] * 3)


def test_rates_that_do_not_shrink_weights_steadily_are_refused() -> None:
    for rate, momentum in ((3.0, 0.0), (0.1, 0.9)):
        with pytest.raises(ValueError, match="steadily"):
            list(without_decay([rate], 0.5 if momentum == 0 else 10.0, momentum))


# --- equivalence: identities, held to 1e-11 ---


@pytest.mark.parametrize("norm", SETTINGS.norms)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_growing_rate_does_what_weight_decay_does(norm: str, momentum: float) -> None:
    pair = [losses(1000, norm, arm, RATES, momentum, 0.01) for arm in (DECAY, GROWING)]
    torch.testing.assert_close(*pair, rtol=1e-11, atol=0)


def test_it_does_not_without_a_norm_a_correction_or_the_growth() -> None:
    other = [
        [losses(1000, "nobn", arm, RATES, **WITH) for arm in (DECAY, GROWING)],
        [losses(1000, "custombn", arm, RATES, **WITH, corrected=False) for arm in (DECAY, GROWING)],
        [losses(1000, "custombn", arm, RATES, **WITH) for arm in (DECAY, NEITHER)],
    ]
    for one, another in other:
        assert float(((one - another) / one).abs().max()) > 1e-4


def test_verdicts_follow_the_measured_differences() -> None:
    measured = exactly.function(1000, norms=SETTINGS.norms, steps=12, decay=0.01, momentum=0.9)
    assert {x for _, x in values(measured)} == {*SETTINGS.norms, "nobn"}

    def verdicts(**changed: float) -> dict[str, Verdict]:
        rows = [r | {"value": changed.get(r["quantity"], r["value"]), "part": "exact", "seed": 0} for r in measured]
        return {each.claim.id: each.verdict for each in judged(paper, Results("full", [], [], rows), SETTINGS)}

    assert [verdicts()[claim] for claim in ("E1", "E2", "E3")] == [Verdict.reproduced] * 3
    assert verdicts(step=1e-6)["E3"] is Verdict.not_reproduced
    assert verdicts(uncorrected=1e-12)["E2"] is Verdict.partly


# --- training ---


def test_only_weights_that_a_norm_follows_are_decayed_or_have_the_growing_rate() -> None:
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    schedule = Schedule(network, [0.1, 0.1], 0.9, 0.02, GROWING)
    for _ in range(2):
        schedule.step(network(torch.eye(3)).square().sum())
    first, others = schedule.optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(network[0].weight)]
    assert len(others["params"]) == 4
    assert others["lr"] == 0.1 < first["lr"] == schedule.rate
    decayed = Schedule(network, [0.1], 0.9, 0.02, DECAY).optimizer.param_groups
    assert [group["weight_decay"] for group in decayed] == [0.02, 0.0]


def test_networks_in_float32_train_nearly_alike_and_their_weights_do_not() -> None:
    data = load(load_config([o for o in SMOKE.common if o.startswith("data")]).data, torch.device("cpu"))
    asked: dict[str, Any] = {"overrides": SMOKE.common, "decay": 0.02, "points": 2}
    found = {arm: values(trained.function(data, 1000, arm=arm, **asked)) for arm in ARMS}
    last = max(x for _, x in found[DECAY] if x is not None)
    assert found[GROWING]["loss", last] == pytest.approx(found[DECAY]["loss", last], rel=0.02)
    assert found[GROWING]["size", last] > 1.02 * found[DECAY]["size", last]
    assert found[GROWING]["rate", last] > found[DECAY]["rate", last] == found[NEITHER]["rate", last]
    assert found[DECAY]["test_accuracy", None] > 20
