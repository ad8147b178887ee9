"""What TensorBoard's HPARAMS page has for rows and columns, as TensorBoard itself reads it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from bnrepro.config import config_hash, load_config
from bnrepro.runs import hparams
from bnrepro.runs.board import SMALLEST, TensorBoardWriter, tiled
from tests.runs.test_index import stored


def content(folder: Path, tag: str) -> bytes:
    events = EventAccumulator(str(folder)).Reload()
    return events.summary_metadata[tag].plugin_data.content


def test_seeds_of_one_configuration_are_one_row_and_others_are_not(tmp_path: Path) -> None:
    groups = {}
    for overrides in (["seed=0"], ["seed=1"], ["seed=1", "optimizer.lr=0.1"]):
        cfg, place = load_config(overrides), tmp_path / "-".join(overrides)
        board = TensorBoardWriter(place)
        board.hyperparameters({"variant": cfg.variant, "optimizer.lr": cfg.optimizer.lr}, config_hash(cfg, ("seed",)))
        board.close()
        start = metadata.parse_session_start_info_plugin_data(content(place, metadata.SESSION_START_INFO_TAG))
        assert start.hparams["variant"].string_value == "bn"
        groups[tuple(overrides)] = start.group_name
        with pytest.raises(KeyError):  # the columns are the folder's, not a run's
            content(place, metadata.EXPERIMENT_TAG)
    assert len(set(groups.values())) == 2
    assert groups[("seed=0",)] == groups[("seed=1",)]


def test_columns_are_what_varies_variant_and_rate_first(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    stored(root, "seed=0", "batch_size=32")
    stored(root, "seed=1", "variant=convbn", "tensorboard=false")
    stored(root, "seed=1", "data.flip=true")
    hparams.write(root)
    experiment = metadata.parse_experiment_plugin_data(content(root, metadata.EXPERIMENT_TAG))
    first = [info.name for info in experiment.hparam_infos if info.differs]
    assert sorted(first) == ["optimizer.lr", "variant"]
    assert {info.name for info in experiment.hparam_infos} == {*first, "batch_size", "data.flip"}
    assert {info.name.tag for info in experiment.metric_infos} == set(hparams.METRICS)
    before = (root / hparams.FILE).read_bytes()
    hparams.write(root)
    assert [file.read_bytes() for file in root.glob("events*")] == [before]


def test_folder_without_runs_gets_no_file(tmp_path: Path) -> None:
    hparams.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (200, 3, 32, 32), (7, 20, 5, 5), (64, 1, 28, 28), (3, 1, 2, 300)])
def test_pictures_are_within_bounds_and_show_all_that_fits(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    picture = tiled(images)
    assert picture.shape[0] in (1, 3)
    assert max(picture.shape[1:]) >= SMALLEST
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert bool(tiled(torch.zeros(shape)).isfinite().all())


def test_file_has_the_users_permissions(tmp_path: Path) -> None:
    stored(tmp_path, "seed=0")
    hparams.write(tmp_path)
    assert not stat.S_IMODE((tmp_path / hparams.FILE).stat().st_mode) & stat.S_IXUSR
