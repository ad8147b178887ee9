"""Li et al.'s experiment: where dropout stands, and the shift against closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bnrepro.config import load_config
from bnrepro.experiments.li2019 import by_layer, paper, ratio, variance_shift
from bnrepro.runs import record
from bnrepro.training import train
from bnrepro.training.model import build, norm_of

SETTINGS, SMOKE = paper.settings("full"), paper.settings("smoke")


def test_dropout_stands_where_the_factor_says() -> None:
    made = [arm for arm in paper.designed(SETTINGS).arms if arm.config.seed == 0]
    assert len(made) == 2 + 2 + 2
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
            assert len(drops) == 1
            assert drops[0] > norms[-1]
        else:
            assert [i + 2 for i in drops] == norms[2::2]  # before the last convolution of each pair
    narrow = [(a.factors["position"], a.factors["amount"]) for a in made if a.factors["width"] == SETTINGS.narrow]
    assert narrow == [("none", 0.0), ("in_blocks", 0.5)]


# --- the shift ---


class Called(nn.Module):
    """Layers as a network whose norms are known."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        found = [m for m in layers.modules() if isinstance(m, nn.BatchNorm1d)]
        self.norms = {f"norm{i}": norm for i, norm in enumerate(found, 1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


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

    expected = ((var + mean**2) / (1 - p) - mean**2) / var
    (found,) = by_layer(Called(layers), [z[:30_000], z[30_000:]])
    assert found == pytest.approx(expected, rel=0.03)
    layers[1].get_buffer("running_var").copy_(z.var(0, correction=0))
    assert by_layer(Called(layers), [z])[0] == pytest.approx(1.0, abs=1e-5)


def test_a_layer_s_shift_is_the_geometric_mean_of_its_channels() -> None:
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm1d(2)
    norm.get_buffer("running_var").copy_(x.var(0, correction=0) * torch.tensor([100.0, 1.0]))
    assert by_layer(Called(norm), [x])[0] == pytest.approx(10, rel=1e-3)


def test_reestimated_statistics_end_the_shift_of_a_run(tmp_path: Path) -> None:
    dropout = ["model.dropout=0.5", "model.dropout_position=in_blocks"]
    cfg = load_config([*SMOKE.common, *dropout, "tensorboard=false", f"root={tmp_path}"])
    run = record.Run(train.run(cfg))
    rows = {(row["quantity"], row["x"]): row["value"] for row in variance_shift.function(run=run, seed=0)}
    assert rows["accuracy", None] == pytest.approx(100 * run.summary["test_accuracy"], abs=1e-6)
    layers = [x for quantity, x in rows if quantity == "shift"]
    assert layers == [1, 2, 3, 4, 5, 6, 7]
    before, after = (sum(rows[name, x] for x in layers) / 7 for name in ("shift", "shift_mended"))
    assert after < 1.02 < 1.1 < before  # taken in one pass by the batches' own statistics, so not 1 exactly
