"""What TensorBoard is given."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnrepro.config.schema import Config
from bnrepro.runs.board import SHOWN, EventFile, TensorBoardWriter
from bnrepro.runs.record import COLUMNS, Run
from bnrepro.system import output
from bnrepro.training import train

Tiny = Callable[..., Config]


def test_tensorboard_has_the_documented_tags_in_one_run(tiny: Tiny) -> None:
    path = train.run(tiny("tensorboard=true", "variant=convbn"))
    assert len(list(path.glob("events.*"))) == 1
    events = EventAccumulator(str(path)).Reload()
    tags = events.Tags()
    curves = {f"{metric}/{split}" for metric in ("loss", "accuracy") for split in ("train", "val", "test")}
    norms = {f"norm{i}/{what}" for i in (1, 2, 3, 4) for what in ("mean", "std", "p15", "p50", "p85")}
    assert curves | norms | {"lr"} <= set(tags["scalars"])
    assert set(tags["histograms"]) == {f"norm{i}/input" for i in (1, 2, 3, 4)}
    stored = [row["val_accuracy"] for row in Run(path).metrics]
    assert [event.value for event in events.Scalars("accuracy/val")] == pytest.approx(stored)
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert {"batch", "filters/first", "statistics/norm1/running_mean"} <= set(tags["images"])


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_percentiles_of_a_norms_input_are_those_of_the_values(tmp_path: Path, default: torch.dtype) -> None:
    values = torch.arange(101.0).view(1, 101)
    board = TensorBoardWriter(tmp_path)
    torch.set_default_dtype(default)  # which a norm of a user's own may have changed
    try:
        board.norm_inputs({"norm1": values}, step=3)
    finally:
        torch.set_default_dtype(torch.float32)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    got = {key: events.Scalars(f"norm1/{key}")[0].value for key in ("mean", "std", "p15", "p50", "p85")}
    assert got == pytest.approx({"mean": 50, "std": (101**2 - 1) ** 0.5 / 12**0.5, "p15": 15, "p50": 50, "p85": 85})


# --- its errors ---


def no_tensorboard(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        patch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        patch.delitem(sys.modules, name)
    patch.setitem(sys.modules, "tensorboard", None)


def full_disk(patch: pytest.MonkeyPatch) -> None:
    def fail(_self: EventFile, _event: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(EventFile, "_write", fail)


def no_hyperparameters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("torch.utils.tensorboard.summary.hparams", None)


def wrong_type(patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("np.bool8 is no more")

    patch.setattr("torch.utils.tensorboard.summary.scalar", fail)


@pytest.mark.parametrize("broken", [no_tensorboard, full_disk, no_hyperparameters, wrong_type])
def test_errors_of_tensorboard_are_told_once_and_cost_no_run(
    broken: Callable[[pytest.MonkeyPatch], None],
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(output, "_told", set())
    with monkeypatch.context() as patch:
        broken(patch)
        path = train.run(tiny("tensorboard=true"))
    assert Run(path).status == "completed"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("TensorBoard's curves cannot be shown (")


def test_file_that_cannot_be_flushed_is_closed_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_told", {SHOWN})
    board = TensorBoardWriter(tmp_path)
    board.row(dict.fromkeys(COLUMNS, 0.5))
    assert board.events
    assert board.events.file
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, board.events.file.fileno())
    os.close(full)
    board.row(dict.fromkeys(COLUMNS, 0.5))
    assert board.events is None
    board.row(dict.fromkeys(COLUMNS, 0.5))
    board.hyperparameters({}, "g")
    board.close()
    gc.collect()  # where an open file would be told of
