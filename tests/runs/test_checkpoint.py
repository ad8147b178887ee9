"""Checkpoints are data, whole, or refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from bnrepro.errors import UserError
from bnrepro.runs import checkpoint


def test_checkpoint_keeps_tensors_and_numbers(tmp_path: Path) -> None:
    state = {
        "w": torch.arange(3.0),
        "step": 3,
        "rows": [{"step": 5.0, "val_loss": 1 / 3, "test_loss": None}],
        "text": "x",
    }
    checkpoint.save(tmp_path / "c.pt", state)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded.pop("w"), state.pop("w"))
    assert loaded == state


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_checkpoint_that_carries_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"x": Trap(tmp_path / "sprung")}, tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    for name in ("c.pt", "d.pt"):
        with pytest.raises(UserError, match=f"{name} is "):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt is "):
        checkpoint.load(tmp_path / "c.pt")


def test_truncated_or_missing_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"w": torch.zeros(1000)})
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:-700])
    for name in ("c.pt", "none.pt"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "list.pt")
