"""Files are whole or as they were; what is read back is data, or refused."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnrepro.config import load_config, to_yaml
from bnrepro.errors import UserError
from bnrepro.runs import record

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


@given(st.lists(st.floats(0, 1e100), min_size=1, max_size=5))
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


ENDED = {"status": "completed", "variant": "bn", "seed": 0, "seconds": 1.0, "parameters": 1, "buffers": 0}
BEYOND = {"accuracy": [-1, -1e-9, 1.001, 3.0, 88.2], "loss": [-0.1], "seconds": [-1], "epochs": [-1], "steps": [-1]}


@pytest.mark.parametrize("split", record.SPLITS)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BEYOND.items() for value in values])
def test_number_that_no_run_leaves_is_damage(tmp_path: Path, split: str, name: str, value: float) -> None:
    column = f"{split}_{name}" if name in ("accuracy", "loss") else name
    summary = ENDED | {"test_accuracy": 1.0, "test_loss": 0.0}
    record.write_summary(tmp_path, summary)
    assert record.Run(tmp_path).status == "completed"
    record.write_summary(tmp_path, summary | {column: value})
    with pytest.raises(UserError, match=rf"summary\.json is damaged .*{column}"):
        _ = record.Run(tmp_path).status
    column = {"epochs": "epoch", "steps": "step"}.get(column, column)
    record.write_csv(tmp_path / record.METRICS, record.COLUMNS, [ROW, {**ROW, column: value}])
    with pytest.raises(UserError, match=rf"metrics\.csv is damaged .*{column}"):
        record.read_metrics(tmp_path / record.METRICS)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_only_losses_are_no_finite_numbers_and_only_where_the_run_diverged(tmp_path: Path, value: float) -> None:
    for status in ("completed", "diverged"):
        record.write_summary(tmp_path, ENDED | {"status": status, "test_accuracy": 0.5})
        for column in ("val_loss", "val_accuracy", "lr"):
            record.write_csv(tmp_path / record.METRICS, record.COLUMNS, [ROW, {**ROW, column: value}])
            if (status, column) == ("diverged", "val_loss"):
                assert len(record.Run(tmp_path).metrics) == 2
            else:
                with pytest.raises(UserError, match=rf"metrics\.csv is damaged .*{column}"):
                    _ = record.Run(tmp_path).metrics


def test_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    record.write_summary(tmp_path, ENDED | {"test_accuracy": 0.5})
    record.write_csv(tmp_path / record.METRICS, record.COLUMNS, [ROW])
    record.write_whole(tmp_path / record.CONFIG, to_yaml(load_config()))
    for file in list(tmp_path.iterdir()):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    run = record.Run(tmp_path)
    assert (run.status, run.metrics, run.config) == ("completed", [ROW], load_config())


@pytest.mark.parametrize("summary", [None, "interrupted", "failed"])
def test_run_that_has_not_ended_is_running_only_while_a_process_is_at_it(tmp_path: Path, summary: str | None) -> None:
    if summary:
        record.write_summary(tmp_path, {"status": summary})
    run = lambda: record.Run(tmp_path)  # noqa: E731
    assert run().status == (summary or "interrupted")
    hold = "import sys, pathlib\nfrom bnrepro.runs.record import claim\nwith claim(pathlib.Path(sys.argv[1])):"
    command = [sys.executable, "-c", f"{hold}\n    print('held', flush=True)\n    input()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert run().status == "running"
        assert not run().finished
        process.kill()
    assert run().status == (summary or "interrupted")


def test_status_says_so_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / record.LOCK).touch()

    def refuse(_handle: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert record.Run(tmp_path).status == "running or interrupted"
    assert not record.Run(tmp_path).finished


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_users_umask_holds_for_every_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        record.write_whole(tmp_path / "folder" / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder" / "a.txt").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


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
