"""What TensorBoard is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnrepro import train
from bnrepro.board import Board
from bnrepro.record import Run
from bnrepro.schema import Config

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
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)


def test_percentiles_of_a_norms_input_are_those_of_the_values(tmp_path: Path) -> None:
    values = torch.arange(101.0).view(1, 101)
    board = Board(tmp_path)
    board.norm_inputs({"norm1": values}, step=3)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    got = {key: events.Scalars(f"norm1/{key}")[0].value for key in ("mean", "std", "p15", "p50", "p85")}
    assert got == pytest.approx({"mean": 50, "std": (101**2 - 1) ** 0.5 / 12**0.5, "p15": 15, "p50": 50, "p85": 85})
