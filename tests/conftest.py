"""Fixtures that several files share. Small, but real: digits from the embedded set, in an archive."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bnrepro import sources
from bnrepro.config import load_config
from bnrepro.schema import Config

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="without a C++ compiler there are no kernels"
)

# One thread a test process: the tests share the cores already.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with Keras's keys: 600 digits to train and validate on, 200 to test on."""
    (x, y), (x_test, y_test) = sources.lookup("mnist5k").read(Path())
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, x_train=x[:600, 0], y_train=y[:600], x_test=x_test[:200, 0], y_test=y_test[:200])
    return file


@pytest.fixture
def tiny(digits: Path, tmp_path: Path) -> Callable[..., Config]:
    """``tiny("epochs=1", ...)``: a configuration that trains in about a second, with its runs in ``tmp_path``."""

    def make(*overrides: str) -> Config:
        return load_config([*TINY, f"data.path={digits}", f"root={tmp_path / 'runs'}", *overrides])

    return make


TINY = ("data.source=npz", "model=lenet", "epochs=2", "batch_size=60", "tensorboard=false", "device=cpu")
