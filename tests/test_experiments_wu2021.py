"""`wu2021`: averages against torch's own, the population against brute force, verdicts on made-up records."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from bnrepro import train
from bnrepro.config import configs_dir, load_config
from bnrepro.experiments.base import Records, Verdict
from bnrepro.experiments.wu2021 import EXPERIMENT, analysis
from bnrepro.experiments.wu2021 import measurements as m
from bnrepro.norm.statistics import tracking_layers
from bnrepro.record import Run
from bnrepro.schema import Config
from bnrepro.train import trainer_of

FOLDER = configs_dir() / "experiment" / "wu2021"
PRESETS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in EXPERIMENT.presets}
FULL: dict[str, Any] = PRESETS["full"]
SMOKE: dict[str, Any] = PRESETS["smoke"]


def test_presets_say_the_same_keys_and_full_has_seeds_enough() -> None:
    for preset in PRESETS.values():
        assert preset.keys() == FULL.keys()
        assert all(preset[part].keys() == FULL[part].keys() for part in ("path", "ghost"))
        assert preset["enough"] in preset["path"]["samples"]
        assert {0.1, 1.0} <= set(preset["path"]["momenta"])
        assert {2, 4} <= set(preset["ghost"]["sizes"])
        assert preset["ghost"]["frozen_epochs"] <= preset["ghost"]["epochs"]
    assert FULL["seeds"] >= 5


def test_arms_are_the_first_epoch_of_what_the_probes_train() -> None:
    arms, probes = EXPERIMENT.arms(SMOKE), EXPERIMENT.probes(SMOKE)
    assert [arm.config for arm in arms] == [probe.config for probe in probes]
    assert {arm.config.epochs for arm in arms} == {1}
    assert {arm.config.variant for arm in arms} == {"bn", "convbn", "ghostbn"}
    assert {arm.config.norm.ghost_size for arm in arms if arm.part == "ghost"} == {2, 4}


# --- measurements ---


def test_the_loop_trains_what_a_run_trains(tiny: Callable[..., Config]) -> None:
    cfg = tiny("schedule=cosine", "epochs=2")
    run = Run(train.run(cfg))
    trainer = trainer_of(cfg)
    for batch in trainer.batches():
        trainer.update(batch.x, batch.y, batch.lr)
    assert trainer.measure(trainer.data.test) == (run.summary["test_loss"], run.summary["test_accuracy"])


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5, 1.0, None])
def test_averages_are_those_of_a_layer_with_that_momentum(momentum: float | None) -> None:
    torch.manual_seed(0)
    layer, reference = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=momentum)
    averages = m.Averages(tracking_layers(nn.Sequential(layer)), [0.01, 0.1, 0.5, 1.0])
    for _ in range(7):
        x = 2 + 3 * torch.randn(5, 3)
        layer(x), reference(x)
        averages.update()
    averages.put(m.CUMULATIVE if momentum is None else momentum)
    assert layer.running_mean is not None and layer.running_var is not None
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)


def test_the_population_is_that_of_so_many_images(tiny: Callable[..., Config]) -> None:
    trainer = trainer_of(replace(tiny(), epochs=1))
    first = next(iter(tracking_layers(trainer.network).values()))
    m.population(trainer, None, size=len(trainer.data.train.labels))
    convolution = next(c for c in trainer.network.modules() if isinstance(c, nn.Conv2d))
    with torch.no_grad():
        inputs = convolution(trainer.data.normalize(trainer.data.train.images))
    assert first.running_mean is not None and first.running_var is not None
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, inputs.transpose(0, 1).flatten(1).var(1))
    whole = first.running_mean.clone()
    m.population(trainer, 100)
    assert not torch.allclose(first.running_mean, whole)


def test_places_are_dense_in_the_first_fifth() -> None:
    marks = m.places(100, 10)
    assert marks == [4, 8, 12, 16, 20, 36, 52, 68, 84, 100]
    assert m.places(3, 4) == [1, 2, 3]


def test_frozen_statistics_stay_and_only_what_is_after_the_fork_differs() -> None:
    cfg = load_config([*SMOKE["ghost"]["overrides"], "variant=ghostbn", "norm.ghost_size=4", "epochs=1"])
    run = type("Run", (), {"config": cfg})()
    wanted = {"images": 50, "samples": 40, "size": 4}
    rows = m.ghost_batches(run, seed=0, epochs=1, frozen_epochs=1, **wanted)  # type: ignore[arg-type]
    again = m.ghost_batches(run, seed=0, epochs=1, frozen_epochs=0, **wanted)  # type: ignore[arg-type]
    values, others = ({(r["quantity"], r["x"]): r["value"] for r in found} for found in (rows, again))
    kinds = {"ema", m.POPULATION, m.BATCH, m.FROZEN}
    assert set(values) == {(split, kind) for split in ("test", "train") for kind in kinds}
    assert all(values[key] == others[key] for key in values if key[1] != m.FROZEN)
    assert others["test", m.FROZEN] == others["test", m.POPULATION]  # nothing is trained after freezing


# --- verdicts ---


def made_up(**changed: float) -> Records:
    """Five seeds in which every claim holds, but for what ``changed`` says."""
    effect = {
        "population": 0.0, "early": 20.0, "samples": 0.0, "batch": 5.0, "frozen": 5.0, "momentum": 0.0, "noise": 0.05,
    } | changed  # fmt: skip
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        draw = random.Random(seed)

        def value(base: float) -> float:
            return base + draw.gauss(0, effect["noise"])  # noqa: B023

        for variant in ("bn", "convbn"):
            for size in ("small", "large"):
                who = {"part": m.PATH, "variant": variant, "batch": size, "seed": seed}

                def add(quantity: str, x: Any, number: float) -> None:
                    rows.append({**who, "quantity": quantity, "x": x, "value": number})  # noqa: B023

                for step in m.places(100, FULL["path"]["points"]):
                    lost = effect["early"] if size == "large" and step <= 20 else 0.0
                    for kind in ("ema 0.1", m.CUMULATIVE, m.POPULATION, m.BATCH):
                        add(f"accuracy_{kind}", step, value(90 - 50 / step - (lost if kind == "ema 0.1" else 0)))
                for momentum in FULL["path"]["momenta"]:
                    add(f"final_ema {momentum:g}", None, value(90 - (effect["momentum"] if momentum != 0.1 else 0)))
                for kind in (m.CUMULATIVE, m.POPULATION, m.BATCH):
                    add(f"final_{kind}", None, value(90 + effect["population"]))
                for count in FULL["path"]["samples"]:
                    shift = effect["samples"] + effect["population"] - 200 / count * (count < 500)
                    add("samples", count, value(90 + shift))
        for size in FULL["ghost"]["sizes"]:
            for split in ("test", "train"):
                for kind, extra in (("ema", 0.0), (m.POPULATION, 0.0), (m.BATCH, 5.0), (m.FROZEN, 5.0)):
                    more = effect.get(kind, extra) if kind in (m.BATCH, m.FROZEN) else 0.0
                    row = {"part": m.GHOST, "size": size, "seed": seed, "quantity": split, "x": kind}
                    rows.append({**row, "value": value(70 + 4 * size**0.5 + more / size)})
    return Records("full", FULL, [], [], rows, {})


def verdicts(**changed: float) -> dict[str, Verdict]:
    findings = analysis.judged(made_up(**changed))
    assert [finding.claim for finding in findings] == list(EXPERIMENT.claims)
    return {finding.claim.id: finding.verdict for finding in findings}


def test_all_is_reproduced_where_all_holds() -> None:
    assert set(verdicts().values()) == {Verdict.reproduced}


@pytest.mark.parametrize(
    ("changed", "claim", "verdict"),
    [
        ({"population": -0.3}, "W1", Verdict.reproduced),  # negligibly worse
        ({"population": -2.0}, "W1", Verdict.not_reproduced),
        ({"early": 0.0}, "W1.2", Verdict.not_reproduced),
        ({"early": -5.0}, "W1.2", Verdict.not_reproduced),
        ({"samples": -2.0}, "W1.3", Verdict.not_reproduced),
        ({"samples": 0.5, "noise": 0.2}, "W1.3", Verdict.inconclusive),
        ({"batch": -5.0}, "W1.4", Verdict.not_reproduced),
        ({"batch": 0.0, "noise": 1.0}, "W1.4", Verdict.inconclusive),
        ({"frozen": -5.0}, "W1.5", Verdict.not_reproduced),
        ({"momentum": 2.0}, "W2", Verdict.not_reproduced),
        ({"momentum": 0.0, "noise": 1.0}, "W2", Verdict.inconclusive),
    ],
)
def test_other_records_give_other_verdicts(changed: dict[str, float], claim: str, verdict: Verdict) -> None:
    assert verdicts(**changed)[claim] is verdict


def test_no_records_are_no_error() -> None:
    whole = EXPERIMENT.analyse(Records("full", FULL, [], [], [], {}))
    assert {finding.verdict for finding in whole.findings} == {Verdict.inconclusive}


def test_figures_and_tables() -> None:
    whole = EXPERIMENT.analyse(made_up())
    for table in whole.tables:
        assert table.rows and len({tuple(row) for row in table.rows}) == 1
    for picture in whole.pictures:
        FigureCanvasAgg(picture.figure).draw()
        assert "n=5" in picture.caption
    errors = {row["statistics"]: row["source's error, %"] for row in whole.tables[0].rows}
    assert errors["ema 1"] == 8.63 and errors[m.POPULATION] is None
