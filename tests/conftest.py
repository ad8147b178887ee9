"""Fixtures that several files share. Small, but real: digits from the embedded set, in an archive."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

# One thread a process, those that tests start included: the tests share the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from bnrepro import cli
from bnrepro.config import load_config
from bnrepro.config.schema import Config
from bnrepro.data import sources
from bnrepro.system.signals import STOPPING

os.environ.pop("COLUMNS", None)  # which xdist sets; what a command prints would be folded to it

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="without a C++ compiler there are no kernels"
)

torch.set_num_threads(1)  # whatever the environment says


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``@pytest.mark.quick(n)``: the first ``n`` cases of a test run with the quick tests, the others are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        if (quick := item.get_closest_marker("quick")) and not item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > quick.args[0]:
                item.add_marker("slow")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with Keras's keys: 600 digits to train and validate on, 200 to test on."""
    (x, y), (x_test, y_test) = sources.lookup("mnist5k").read(Path())
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, x_train=x[:600, 0], y_train=y[:600], x_test=x_test[:200, 0], y_test=y_test[:200])
    return file


@pytest.fixture(params=["float64", "meta"])
def torchs_defaults(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """A context, within which torch has another default dtype, or another device."""

    @contextmanager
    def changed() -> Iterator[None]:
        with torch.device("meta") if request.param == "meta" else nullcontext():
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64 if request.param == "float64" else before)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    return changed


@pytest.fixture
def tiny(digits: Path, tmp_path: Path) -> Callable[..., Config]:
    """``tiny("epochs=1", ...)``: a configuration that trains in about a second, with its runs in ``tmp_path``."""

    def make(*overrides: str) -> Config:
        return load_config([*TINY, f"data.path={digits}", f"root={tmp_path / 'runs'}", *overrides])

    return make


TINY = (
    "data.name=digits",
    "data.source=npz",
    "model=lenet",
    "epochs=2",
    "batch_size=60",
    "tensorboard=false",
    "device=cpu",
)


def changed(overrides: Iterable[str], *changes: str) -> list[str]:
    """``overrides`` with other values, or more: a key that is given twice is an error."""
    keys = {change.partition("=")[0] for change in changes}
    return [text for text in overrides if text.partition("=")[0] not in keys] + list(changes)


class Result(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """``call("train", "epochs=1")`` as from a shell in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["bnrepro", *arguments])
        capfd.readouterr()
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:  # a command that is stopped ignores what comes after, since its process ends
            for number, handler in handlers.items():
                signal.signal(number, handler)
            torch.set_num_threads(1)  # which `bench` changes
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return run
