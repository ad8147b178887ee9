"""Wu & He's and Ioffe's experiment: layers over parts, runs of one class, and verdicts that follow the records."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from bnrepro import record, train
from bnrepro.config import configs_dir, load_config
from bnrepro.experiments.base import Finding, Records, Verdict
from bnrepro.experiments.wu2018 import EXPERIMENT, analysis, layers, loops
from bnrepro.norm import NORMS, ConvBatchNorm2d, NormOptions
from bnrepro.norm.variants import BatchRenorm

FOLDER = configs_dir() / "experiment" / "wu2018"
PRESETS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets
}
SETTINGS = PRESETS["full"]
SMOKE = PRESETS["smoke"]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2 + 1


# --- presets, arms and probes ---


def test_presets_say_the_same_keys_and_ask_for_sizes_that_are_there() -> None:
    assert all(preset.keys() == SETTINGS.keys() for preset in PRESETS.values())
    assert SETTINGS["seeds"] >= 5
    for preset in PRESETS.values():
        assert preset["fewest"] == min(preset["images"])
        assert preset["microbatch"] in preset["few_images"] and set(preset["few_images"]) <= set(preset["images"])
        batch = load_config(preset["common"]).batch_size
        assert batch % preset["classes"] == 0 and all(batch % images == 0 for images in preset["images"])


def test_arms_differ_in_the_norm_and_its_part_alone() -> None:
    made = [arm for arm in EXPERIMENT.arms(SMOKE) if arm.config.seed == 1]
    got = {(a.factors["norm"], a.factors["images"]): a.config for a in made}
    assert set(got) == {("bn", 32), ("group", 32), ("none", 32), ("lrn", 32), ("bn", 2), ("bn", 4)}
    for (norm, images), cfg in got.items():
        assert cfg.batch_size == 32 and cfg.optimizer.lr == got["bn", 32].optimizer.lr
        if norm == "bn" and images < 32:
            assert (cfg.variant, cfg.norm.ghost_size) == ("ghostbn", images)
            assert cfg.norm.momentum is not None
            assert (1 - cfg.norm.momentum) ** (32 / images) == pytest.approx(0.9)  # parts together weigh 0.1
    probes = [p for p in EXPERIMENT.probes(SMOKE) if p.seed == 1]
    assert all(p.config is not None and p.config == got["bn", 32] for p in probes)
    parts = {(p.factors["norm"], p.factors["images"]) for p in probes if p.part == "parts"}
    assert parts == {(norm, images) for norm in ("local", "renorm") for images in (4, 32)}
    composed = {(p.factors["norm"], p.factors["classes"]) for p in probes if p.part == "sorted"}
    assert composed == {(norm, classes) for norm in ("bn", "renorm", "group") for classes in (0, 2)}


# --- layers ---


def test_parts_of_local_statistics_are_the_layers_of_each_part() -> None:
    x = normal(8, 3, 4, 5)
    layer = layers.local(4, 0.2)(3, (4, 5))
    alone = ConvBatchNorm2d(3, (4, 5), momentum=0.2)
    expected = torch.cat([alone(x[:4]), alone(x[4:])])
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.get_buffer("running_var"), alone.get_buffer("running_var"))
    torch.testing.assert_close(layer.eval()(x), alone.eval()(x))
    linear = layers.local(4, 0.2)(3, ())
    ghost = NORMS["ghostbn"](3, (), options=NormOptions(eps=1e-3, momentum=0.2, ghost_size=4))
    torch.testing.assert_close(linear(x[:, :, 0, 0]), ghost(x[:, :, 0, 0]))


def test_renorm_over_parts_begins_as_ghost_bn_and_ends_near_the_running_statistics() -> None:
    x = normal(8, 3, 4, 5)
    layer = layers.renorm(4, 0.1, [0.5, 1.0, 0.75], 100)(3, (4, 5))
    assert isinstance(layer, BatchRenorm)
    assert (layer.start, layer.r_steps, layer.d_steps) == (50, 100, 75)
    ghost = NORMS["ghostbn"](3, (4, 5), options=NormOptions(momentum=0.1, ghost_size=4))
    torch.testing.assert_close(layer(x), ghost(x))
    assert int(layer.get_buffer("num_batches_tracked")) == 2  # it counts parts
    for _ in range(60):
        layer(x)
    trained = layer(x).detach()
    torch.testing.assert_close(trained, layer.eval()(x), atol=0.02, rtol=0.02)  # r and d undo the parts' differences
    assert float((trained - ghost(x).detach()).abs().max()) > 0.05


# --- batches of few classes ---


def test_runs_of_one_class_hold_each_image_once() -> None:
    labels = torch.randint(0, 10, (403,), generator=torch.Generator().manual_seed(1))
    order = loops.in_runs(labels, 16, torch.Generator().manual_seed(2))
    assert torch.equal(order.sort().values, torch.arange(403))
    whole = int((labels.bincount() // 16).sum())
    runs = labels[order[: whole * 16]].view(-1, 16)
    assert (runs == runs[:, :1]).all()
    assert (runs[:, 0].diff() < 0).any()  # in no order of classes
    rest = labels[order[whole * 16 :]]
    assert (rest.diff() >= 0).all() and rest.bincount().max() < 16


def test_epochs_without_runs_are_the_runs_own() -> None:
    from bnrepro.data import epoch_plan

    cfg = load_config(SMOKE["common"])
    labels = torch.arange(400) % 10
    assert torch.equal(loops.epoch_order(labels, cfg, 0, 3), epoch_plan(400, cfg.data, cfg.seed, 3).order)


def test_the_loop_is_the_runs_own_where_nothing_differs(tmp_path: Path) -> None:
    cfg = load_config([*SMOKE["common"], "variant=bn", "epochs=1", "tensorboard=false", f"root={tmp_path}"])
    run = record.Run(train.run(cfg))
    shares = SMOKE["renorm_shares"]
    rows = loops.trained(run, 0, "bn", 32, 0, 0.1, shares)
    found = {row["quantity"]: row["value"] for row in rows}
    assert found["test_accuracy"] == pytest.approx(100 * run.summary["test_accuracy"], abs=1e-6)
    assert "batch_accuracy" not in found
    apart = {row["quantity"]: row["value"] for row in loops.trained(run, 0, "bn", 32, 2, 0.1, shares)}
    assert 0 <= apart["batch_accuracy"] <= 100 and apart["test_accuracy"] != found["test_accuracy"]


# --- verdicts ---

USUAL = {
    ("bn", 2): 65.0,
    ("bn", 4): 73.0,
    ("bn", 16): 76.0,
    ("bn", 128): 76.0,
    ("group", 128): 76.0,
    ("none", 128): 70.0,
    ("lrn", 128): 70.0,
    ("renorm", 4): 76.0,
    ("renorm", 128): 76.0,
    ("local", 4): 60.0,
    ("local", 128): 70.0,
}
COMPOSED = {
    ("bn", 0, "test"): 78.0,
    ("bn", 2, "test"): 67.0,
    ("bn", 2, "batch"): 76.0,
    ("renorm", 0, "test"): 78.0,
    ("renorm", 2, "test"): 78.0,
    ("group", 0, "test"): 77.0,
    ("group", 2, "test"): 77.0,
}


def wobble(key: Any) -> list[int]:
    """Five numbers whose mean is zero, in an order of the key's own."""
    return random.Random(str(key)).sample(range(-2, 3), 5)


def made_up(changed: dict[Any, float] | None = None, noise: float = 0.1) -> Records:
    """Five seeds of accuracies that are as the sources have them, but for what is changed."""
    changed = changed or {}
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        for key, value in (USUAL | {k: v for k, v in changed.items() if len(k) == 2}).items():
            accuracy = value + noise * wobble(key)[seed]
            who = {"part": "parts", "norm": key[0], "images": key[1], "seed": seed}
            if key[0] in ("local", "renorm"):
                rows.append({**who, "quantity": "test_accuracy", "x": None, "value": accuracy})
            else:
                values = {"test_accuracy": accuracy / 100, "val_accuracy": accuracy / 100}
                runs.append({**who, "status": "completed", **values})
        for cell, value in (COMPOSED | {k: v for k, v in changed.items() if len(k) == 3}).items():
            who = {"part": "sorted", "norm": cell[0], "classes": cell[1], "seed": seed, "x": None}
            accuracy = value + noise * wobble(cell)[seed]
            rows.append({**who, "quantity": f"{cell[2]}_accuracy", "value": accuracy})
    return Records("full", SETTINGS, runs, [], rows, {})


def found(records: Records) -> dict[str, Finding]:
    findings = analysis.judged(records)
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding for finding in findings}


def test_verdicts_where_all_is_as_the_sources_say() -> None:
    verdicts = {claim: finding.verdict for claim, finding in found(made_up()).items()}
    yes, no = Verdict.reproduced, Verdict.not_reproduced
    assert verdicts == {
        **dict.fromkeys(("G1.1", "G1.2", "G1.3", "R1.1", "R1.2", "R1.3", "R1.4", "R1.5", "N2"), yes),
        "G2": no,  # and G1.3 says the opposite
        "T1": no,
        "E1": Verdict.not_testable,
        "Z1": Verdict.not_testable,
        "N1": Verdict.not_testable,
        "N3": Verdict.not_testable,
    }


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({("bn", 2): 76.0}, "G1.1", Verdict.not_reproduced),
        ({("bn", 2): 80.0}, "G1.2", Verdict.not_reproduced),
        ({("bn", 2): 75.5}, "G1.2", Verdict.partly),  # larger, and negligible
        ({("group", 128): 73.0}, "G1.3", Verdict.not_reproduced),
        ({("group", 128): 73.0}, "G2", Verdict.reproduced),
        ({("renorm", 4): 73.0}, "R1.1", Verdict.not_reproduced),
        ({("renorm", 128): 70.0}, "R1.2", Verdict.not_reproduced),
        ({("bn", 2, "test"): 78.0}, "R1.3", Verdict.not_reproduced),
        ({("renorm", 2, "test"): 60.0}, "R1.4", Verdict.not_reproduced),
        ({("bn", 2, "batch"): 60.0}, "R1.5", Verdict.not_reproduced),
        ({("bn", 16): 79.0}, "T1", Verdict.reproduced),
        ({("lrn", 128): 75.0}, "N2", Verdict.not_reproduced),
        ({("lrn", 128): 60.0}, "N2", Verdict.reproduced),
    ],
)
def test_a_wrong_effect_flips_the_verdict(changed: dict[Any, float], claim: str, verdict: Verdict) -> None:
    assert found(made_up(changed))[claim].verdict is verdict


def test_noise_leaves_claims_open_and_no_records_are_no_error() -> None:
    noisy = found(made_up({("bn", 2): 75.0}, noise=5.0))
    assert {noisy[claim].verdict for claim in ("G1.1", "G1.2", "G1.3")} == {Verdict.inconclusive}
    nothing = Records("full", SETTINGS, [], [], [], {})
    testable = [f for claim, f in found(nothing).items() if claim not in ("E1", "Z1", "N1", "N3")]
    assert {finding.verdict for finding in testable} == {Verdict.inconclusive}
    assert EXPERIMENT.analyse(nothing).pictures == []


def test_tables_are_whole_and_say_whose_numbers_they_are() -> None:
    whole = EXPERIMENT.analyse(made_up())
    assert all(len({tuple(row) for row in table.rows}) == 1 for table in whole.tables)
    assert [len(table.rows) for table in whole.tables] == [len(USUAL) + 10, 7 + 4]
    assert sum("source" in str(row["norm"]) for table in whole.tables for row in table.rows) == 14
    assert [picture.name for picture in whole.pictures] == ["images", "composition"]
