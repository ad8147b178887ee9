"""Li et al.'s experiment: the shift against closed forms, and verdicts that follow the records."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import nn

from bnrepro import record, train
from bnrepro.config import configs_dir, load_config
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.li2019 import EXPERIMENT, analysis
from bnrepro.experiments.li2019.shift import by_layer, ratio, shifts
from bnrepro.model import build, norm_of

FOLDER = configs_dir() / "experiment" / "li2019"
PRESETS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets
}
SETTINGS = PRESETS["full"]
SMOKE = PRESETS["smoke"]


def test_presets_say_the_same_keys() -> None:
    assert all(preset.keys() == SETTINGS.keys() for preset in PRESETS.values())
    assert SETTINGS["seeds"] >= 5
    for preset in PRESETS.values():
        assert preset["amounts"] == sorted(preset["amounts"]) and preset["amounts"][-1] == 0.5
        assert all(factor > 1 for factor in preset["widths"])  # the narrowest has all places


def test_dropout_stands_where_the_factor_says() -> None:
    made = [arm for arm in EXPERIMENT.arms(SETTINGS) if arm.config.seed == 0]
    assert len(made) == 1 + 3 * 3 + 2
    for arm in made:
        cfg = arm.config
        network = build(cfg.model, norm_of(cfg), 3, (32, 32), 10, torch.Generator())
        leaves = [m for m in network.modules() if not list(m.children())]
        drops = [i for i, m in enumerate(leaves) if isinstance(m, nn.Dropout)]
        norms = [i for i, m in enumerate(leaves) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert {leaves[i].p for i in drops} == ({arm.factors["amount"]} if drops else set())
        assert cfg.model.width == arm.factors["width"]
        if arm.factors["position"] == "none":
            assert not drops
        elif arm.factors["position"] == "last":
            assert len(drops) == 1 and drops[0] > norms[-1]
        elif arm.factors["position"] == "before_norm":
            assert [i + 1 for i in drops] == norms
        else:
            assert [i + 2 for i in norms] == drops  # after the norm and its activation
    wide = [(a.factors["position"], a.factors["amount"]) for a in made if a.factors["width"] == 0.25]
    assert wide == [("none", 0.0), ("before_norm", 0.5)]


# --- the shift ---


def test_ratio_is_one_where_nothing_shifts_and_symmetric() -> None:
    real, moving = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 1.0, 1.0])
    assert ratio(real, moving).tolist() == [1.0, 2.0, 2.0]
    assert torch.equal(ratio(real, moving), ratio(moving, real))


def test_dropout_before_a_norm_shifts_by_its_closed_form() -> None:
    # Dropout p of z with mean m and variance v has variance (v + m^2) / (1 - p) - m^2 in training, and v in eval.
    mean, var, p = 1.0, 1.0, 0.5
    z = mean + torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
    layers = nn.Sequential(nn.Dropout(p), nn.BatchNorm1d(3, momentum=1.0))
    torch.manual_seed(0)
    layers.train()(z)

    class Called(nn.Module):
        """The layers as a network whose norms are known."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = layers
            self.norms = {"norm1": layers[1]}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return layers(x)

    expected = ((var + mean**2) / (1 - p) - mean**2) / var
    (found,) = by_layer(Called(), [z[:30_000], z[30_000:]])
    assert found == pytest.approx(expected, rel=0.03)
    layers[1].get_buffer("running_var").copy_(z.var(0, correction=0))
    assert by_layer(Called(), [z])[0] == pytest.approx(1.0, abs=1e-5)


def test_statistics_taken_again_end_the_shift_of_a_run(tmp_path: Path) -> None:
    dropout = ["model.dropout=0.5", "model.dropout_position=before_norm"]
    cfg = load_config([*SMOKE["common"], *dropout, "tensorboard=false", f"root={tmp_path}"])
    run = record.Run(train.run(cfg))
    rows = {(row["quantity"], row["x"]): row["value"] for row in shifts(run, 0)}
    assert rows["accuracy", None] == pytest.approx(100 * run.summary["test_accuracy"], abs=1e-6)
    layers = [x for quantity, x in rows if quantity == "shift"]
    assert layers == [1, 2, 3, 4]
    before, after = (sum(rows[name, x] for x in layers) / 4 for name in ("shift", "shift_mended"))
    assert after < 1.02 < 1.1 < before  # taken in one pass by the batches' own statistics, so not 1 exactly


# --- verdicts ---

WIDTH = 0.125
USUAL = {
    ("none", 0.0, WIDTH): (1.0, 80.0, 80.0),
    **{("before_norm", amount, WIDTH): (1 + amount, 80 - 20 * (amount - 0.1), 79.0) for amount in (0.1, 0.3, 0.5)},
    **{("after_norm", amount, WIDTH): (1 + amount / 2, 80 - 10 * amount, 79.0) for amount in (0.1, 0.3, 0.5)},
    **{("last", amount, WIDTH): (1.0, 80.0, 80.0) for amount in (0.1, 0.3, 0.5)},
    ("none", 0.0, 0.25): (1.0, 82.0, 82.0),
    ("before_norm", 0.5, 0.25): (1.2, 78.0, 81.0),
}
"""Shift, accuracy and accuracy with statistics taken again, as the source has it."""


def made_up(changed: dict[Any, tuple[float, float, float]] | None = None, noise: float = 0.1) -> Records:
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        for key, (shift, accuracy, mended) in (USUAL | (changed or {})).items():
            wobble = noise * random.Random(str(key)).sample(range(-2, 3), 5)[seed]  # whose mean is zero
            who = {"part": "dropout", "position": key[0], "amount": key[1], "width": key[2], "seed": seed}
            for layer in (1, 2, 3):  # the mean over layers is the cell's shift
                value = shift + 0.1 * (layer - 2) * (shift - 1) + wobble / 20
                rows.append({**who, "quantity": "shift", "x": layer, "value": value})
                rows.append({**who, "quantity": "shift_mended", "x": layer, "value": 1.0})
            rows.append({**who, "quantity": "accuracy", "x": None, "value": accuracy + wobble})
            rows.append({**who, "quantity": "accuracy_mended", "x": None, "value": mended + wobble / 2})
    return Records("full", SETTINGS, [], [], rows, {})


def found(records: Records) -> dict[str, Finding]:
    findings = analysis.judged(records)
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def test_all_is_reproduced_where_all_is_as_the_source_says() -> None:
    findings = found(made_up())
    assert {finding.verdict for finding in findings.values()} == {Verdict.reproduced}
    shift, harm = findings["D1.1"].effect, findings["D1.2"].effect
    assert shift is not None and shift.mean == pytest.approx(0.5, abs=0.02)
    assert harm is not None and harm.mean == pytest.approx(8.0, abs=0.2)


BEFORE = ("before_norm", 0.5, WIDTH)


@pytest.mark.parametrize(
    ("key", "values", "claim", "verdict"),
    [
        (BEFORE, (1.0, 72.0, 79.0), "D1.1", Verdict.not_reproduced),
        (BEFORE, (1.5, 80.0, 80.0), "D1.2", Verdict.not_reproduced),
        (BEFORE, (1.5, 79.4, 80.0), "D1.2", Verdict.partly),  # there, and negligible
        (("last", 0.5, WIDTH), (1.0, 75.0, 75.0), "D1.3", Verdict.not_reproduced),
        (("last", 0.5, WIDTH), (1.0, 79.0, 79.0), "D1.3", Verdict.inconclusive),  # at the margin
        (("last", 0.5, WIDTH), (1.0, 85.0, 85.0), "D1.3", Verdict.reproduced),
        (BEFORE, (1.5, 72.0, 72.0), "D1.4", Verdict.not_reproduced),
        (("before_norm", 0.1, WIDTH), (1.1, 75.0, 79.0), "D1.5", Verdict.not_reproduced),
        (("before_norm", 0.5, 0.25), (1.9, 78.0, 81.0), "D1.6", Verdict.not_reproduced),
        (("before_norm", 0.5, 0.25), (1.5, 78.0, 81.0), "D1.6", Verdict.not_reproduced),
    ],
)
def test_a_wrong_effect_flips_the_verdict(
    key: Any, values: tuple[float, float, float], claim: str, verdict: Verdict
) -> None:
    assert found(made_up({key: values}))[claim].verdict is verdict


def test_noise_leaves_claims_open_and_no_records_are_no_error() -> None:
    noisy = found(made_up({BEFORE: (1.5, 79.0, 80.0)}, noise=5.0))
    assert noisy["D1.2"].verdict is noisy["D1.3"].verdict is Verdict.inconclusive
    nothing = Records("full", SETTINGS, [], [], [], {})
    assert {finding.verdict for finding in found(nothing).values()} == {Verdict.inconclusive}
    assert EXPERIMENT.analyse(nothing).pictures == []


def test_table_and_figure_hold_every_cell() -> None:
    whole = EXPERIMENT.analyse(made_up())
    assert [len(table.rows) for table in whole.tables] == [len(USUAL)]
    assert len({tuple(row) for row in whole.tables[0].rows}) == 1
    assert [picture.name for picture in whole.pictures] == ["shift"]
