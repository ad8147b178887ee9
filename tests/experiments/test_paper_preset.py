"""The sources' own settings: composed, started for a step on made-up images of their shape, and their cost said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bnrepro.claims.estimating import operations
from bnrepro.claims.judging import judged
from bnrepro.claims.results import Results
from bnrepro.config import check, load_config
from bnrepro.config.schema import Config, Data, Source
from bnrepro.data.dataset import load
from bnrepro.data.sources import DATASETS
from bnrepro.experiments.wu2018 import in_runs
from bnrepro.runs.record import Run
from bnrepro.training import train
from tests.conftest import changed
from tests.experiments.test_papers import PAPERS

WITH = [name for name, paper in PAPERS.items() if "paper" in paper.presets]


def networks(name: str) -> list[Config]:
    """A configuration of each network, norm and dataset of the preset."""
    paper = PAPERS[name]
    design = paper.designed(paper.settings("paper"))
    configs = [arm.config for arm in design.arms] + [probe.config for probe in design.probes if probe.config]
    return list({(str(cfg.model), cfg.variant, cfg.data.name): cfg for cfg in configs}.values())


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of noise in the shape of each dataset, of a few batches."""
    folder, draw = tmp_path_factory.mktemp("made_up"), np.random.default_rng(0)
    for name, known in DATASETS.items():
        images = {
            f"x_{part}": draw.integers(0, 256, (n, *known.shape[1:], known.shape[0]), dtype=np.uint8)
            for part, n in (("train", 600), ("test", known.classes))
        }
        labels = {f"y_{part}": np.arange(n) % known.classes for part, n in (("train", 600), ("test", known.classes))}
        np.savez(folder / f"{name}.npz", **images, **labels)
    return folder


def test_there_are_some() -> None:
    assert {"bjorck2018", "santurkar2018", "wu2018"} <= set(WITH)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH)
def test_each_network_takes_its_first_steps(name: str, made_up: Path, tmp_path: Path) -> None:
    for cfg in networks(name):
        data = replace(cfg.data, source=Source.npz, path=str(made_up / f"{cfg.data.name}.npz"), val_fraction=0.2)
        short = replace(cfg, data=data, epochs=1, root=str(tmp_path), tensorboard=False, device="cpu")
        assert Run(train.run(check(short))).finished


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "renorm"])
def test_batches_of_few_classes(norm: str, made_up: Path) -> None:
    design = PAPERS["wu2018"].designed(PAPERS["wu2018"].settings("paper"))
    of = {"norm": norm, "classes": 16}
    probe = next(probe for probe in design.probes if probe.part == "classes" and probe.factors == of)
    assert probe.data
    data = load(replace(probe.data, source=Source.npz, path=str(made_up / "cifar100.npz")), torch.device("cpu"))
    arguments = probe.arguments | {"overrides": changed(probe.arguments["overrides"], "epochs=1")}
    found = {each["quantity"] for each in probe.measure.function(data=data, seed=0, **arguments)}
    assert found == {"test_accuracy"} | ({"batch_accuracy"} if norm == "bn" else set())


def test_runs_of_one_class() -> None:
    labels = torch.arange(70) % 7
    order = in_runs(labels, 4, 0)
    runs = labels[order][: 7 * 8].view(-1, 4)
    assert sorted(order.tolist()) == list(range(70))
    assert (runs == runs[:, :1]).all()
    assert not torch.equal(order, in_runs(labels, 4, 1))


@pytest.mark.parametrize("name", WITH)
def test_cost_of_what_was_never_run_is_known(name: str) -> None:
    for cfg in networks(name):
        assert (operations(cfg) or 0) > 1e12


def test_verdicts_are_of_the_scale_that_a_preset_says() -> None:
    paper, nothing = PAPERS["bjorck2018"], Results("paper", [], [], [])
    for preset, scales in (("paper", {"paper"}), ("full", {claim.scale for claim in paper.claims})):
        found = [each.claim for each in judged(paper, nothing, paper.settings(preset))]
        assert {claim.scale for claim in found if claim.scale != "exact"} == scales - {"exact"}


@pytest.mark.parametrize(
    ("overrides", "forward"),
    [
        (["data=mnist", "model=paper_mlp"], 2 * (784 * 100 + 2 * 100 * 100 + 100 * 10)),
        (["data=cifar10", "model=resnet20"], 2 * 40.55e6),  # He et al. give multiplications of their networks
        (["data=cifar10", "model=vgg16"], 2 * 313e6),
    ],
)
def test_operations_are_counted(overrides: list[str], forward: float) -> None:
    cfg = load_config([*overrides, "epochs=3", "data.val_fraction=0.1"])
    images = 3 * 0.9 * DATASETS[cfg.data.name].images
    assert operations(cfg) == pytest.approx(3 * forward * images, rel=0.01)


def test_operations_of_data_of_unknown_shape_are_not_known() -> None:
    cfg = load_config([])
    assert operations(replace(cfg, data=Data(name="mine"))) is None
    assert operations(replace(cfg, model=replace(cfg.model, file="net.py"))) is None
