"""Files are whole or as they were; what is read back is data, or refused."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnrepro import record
from bnrepro.config import UserError

ROW = {**dict.fromkeys(record.COLUMNS), "step": 5.0, "epoch": 0.1, "val_loss": 1 / 3, "seconds": 1e-17}


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    file = tmp_path / "summary.json"
    record.write_whole(file, "before")

    def fail(_: int) -> None:
        raise problem

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(problem)):
        record.write_whole(file, "after" * 1000)
    assert file.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=5))
def test_floats_in_csv_read_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    file = tmp_path_factory.mktemp("csv") / "metrics.csv"
    rows = [{**ROW, "train_loss": value} for value in values]
    record.write_csv(file, record.COLUMNS, rows)
    assert record.read_metrics(file) == rows


def test_nan_in_metrics_is_written_and_read_as_nan(tmp_path: Path) -> None:
    record.write_csv(tmp_path / "m.csv", record.COLUMNS, [{**ROW, "train_loss": math.nan}])
    assert math.isnan(record.read_metrics(tmp_path / "m.csv")[0]["train_loss"] or 0)


GOOD = ",".join(record.COLUMNS)


@pytest.mark.parametrize(
    "content",
    [b"", b"step,epoch\n1,2\n", f"{GOOD}\n1,2\n".encode(), f"{GOOD}\n{'x,' * 9}x\n".encode(), b"\xff\xfe\x00", b'"'],
)
def test_damaged_metrics_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        record.read_metrics(tmp_path / "metrics.csv")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '"status"'])
def test_damaged_summary_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        _ = record.Run(tmp_path).status


def test_run_without_a_summary_is_running(tmp_path: Path) -> None:
    assert record.Run(tmp_path).status == "running"
    assert not record.Run(tmp_path).finished


def test_summary_is_json_without_nan(tmp_path: Path) -> None:
    record.write_summary(tmp_path, {"status": "completed", "loss": math.nan, "inner": {"x": math.inf}, "n": 3})
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "status": "completed",
        "loss": None,
        "inner": {"x": None},
        "n": 3,
    }


def test_runs_are_found_at_their_depth_and_nowhere_else(tmp_path: Path) -> None:
    for path in ("mnist/lenet/bn/seed0-x", "mnist/lenet/nobn/seed0-y", "mnist/lenet/compare-z"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.yaml").touch()
    found = [str(run.path.relative_to(tmp_path)) for run in record.find_runs(tmp_path)]
    assert found == ["mnist/lenet/bn/seed0-x", "mnist/lenet/nobn/seed0-y"]
    assert list(record.find_runs(tmp_path / "nowhere")) == []


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run's directory"):
        record.open_run(tmp_path)
