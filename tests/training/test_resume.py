"""Whatever ends a run, it goes on exactly where its last checkpoint was, and loses nothing that had finished."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnrepro.config import run_dir
from bnrepro.config.schema import Config
from bnrepro.errors import UserError
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.training import train, trainer
from bnrepro.training.trainer import Progress, Trainer

Tiny = Callable[..., Config]

RANDOM = ("variant=convbn", "model.dropout=0.3", "data.crop=2", "epochs=4", "eval_every=4", "schedule=cosine")


def results(path: Path) -> tuple[list[dict[str, float | None]], dict[str, torch.Tensor]]:
    """All that a run leaves but for times: the rows of metrics.csv, and the final weights and statistics."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in Run(path).metrics]
    return rows, checkpoint.load(path / record.CHECKPOINT)["network"]


def assert_same(one: Path, other: Path) -> None:
    (rows, weights), (other_rows, other_weights) = results(one), results(other)
    assert rows == other_rows
    assert weights.keys() == other_weights.keys()
    for key, mine in weights.items():
        another = other_weights[key]
        assert torch.equal(mine, another) if isinstance(mine, torch.Tensor) else mine == another  # extra state


def in_a_fork(work: Callable[[], object], seconds: float | None) -> int:
    """Run ``work()`` in a fork of this process, kill it after so many seconds, and return its exit status."""
    torch.set_num_threads(1)  # a fork of a process with threads can hang
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except UserError:
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def apart() -> Iterator[Callable[..., int]]:
    """`in_a_fork` of a process that has done nothing yet: a fork of this one might refuse to differentiate.

    A fork, because a new process would import torch for seconds at each of many kills.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda work, seconds=None: process.submit(in_a_fork, work, seconds).result()


@pytest.mark.slow
def test_run_killed_at_fifty_moments_ends_as_if_nothing_had_happened(
    tiny: Tiny, tmp_path: Path, apart: Callable[..., int]
) -> None:
    whole = tiny(*RANDOM, "epochs=12", f"root={tmp_path / 'whole'}")
    started = time.perf_counter()
    train.run(whole)
    length = time.perf_counter() - started
    cfg = tiny(*RANDOM, "epochs=12")
    moments = random.Random(0)
    kills = 0
    while kills < 50:
        code = apart(partial(train.run, cfg), moments.uniform(0, length / 4))
        if code == 0:
            assert Run(run_dir(cfg)).status == "completed"  # faster than the kill
            assert_same(run_dir(whole), run_dir(cfg))
            record.clear(run_dir(cfg))
        else:
            assert code == -signal.SIGKILL
            kills += 1
    assert apart(partial(train.run, cfg)) == 0
    assert_same(run_dir(whole), run_dir(cfg))
    assert not list(run_dir(cfg).glob(f"*{record.PREVIOUS}"))


def killed_by_itself(cfg: Config) -> None:
    """The run dies at its step 25, with checkpoints as often as there can be any."""
    update = Trainer.update

    def killed(self: Trainer, *arguments: torch.Tensor) -> object:
        if self.step == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *arguments)

    with mock.patch.object(trainer, "CHECKPOINT_SECONDS", 0), mock.patch.object(Trainer, "update", killed):
        train.run(cfg)


def test_run_killed_long_before_its_first_evaluation_goes_on_from_a_checkpoint(
    tiny: Tiny, tmp_path: Path, apart: Callable[..., int]
) -> None:
    seldom = (*RANDOM, "eval_every=1000")
    whole, cfg = train.run(tiny(*seldom, f"root={tmp_path / 'whole'}")), tiny(*seldom)
    assert apart(partial(killed_by_itself, cfg)) == -signal.SIGKILL
    assert checkpoint.load(run_dir(cfg) / record.CHECKPOINT)["step"] == 20
    train.run(cfg)
    assert_same(whole, run_dir(cfg))


@pytest.mark.quick(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 10, 13])
def test_signal_ends_a_run_after_its_step_with_a_checkpoint(
    tiny: Tiny, tmp_path: Path, number: signal.Signals, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.run(tiny(*RANDOM, f"root={tmp_path / 'whole'}"))
    cfg = tiny(*RANDOM)
    update = Trainer.update

    def signalled(self: Trainer, *arguments: torch.Tensor) -> object:
        if self.step == at - 1:
            signal.raise_signal(number)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", signalled)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                train.run(cfg)
        finally:
            signal.signal(signal.SIGINT, before)
    assert Run(run_dir(cfg)).status == "interrupted"
    assert checkpoint.load(run_dir(cfg) / record.CHECKPOINT)["step"] == at
    assert_same(train.run(cfg), whole)


@pytest.mark.parametrize("becomes", [None, ImportError, RuntimeError])
def test_second_signal_ends_at_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, becomes: type[Exception] | None
) -> None:
    reached: list[int] = []

    def twice(self: Trainer, *_: torch.Tensor) -> object:
        signal.raise_signal(signal.SIGTERM)
        reached.append(self.step)
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            if becomes:  # as in the middle of an import, or in C++
                raise becomes("cut") from None
            raise
        raise AssertionError("it went on")

    monkeypatch.setattr(Trainer, "update", twice)
    cfg = tiny()
    with pytest.raises(KeyboardInterrupt):
        train.run(cfg)
    assert reached == [0]
    assert Run(run_dir(cfg)).status == "interrupted"


class Stop(Exception):
    """Stands for whatever ends a run early."""


def broken(cfg: Config, at: int) -> Path:
    """A run that stopped after its evaluation at or after step ``at``."""

    def stop(progress: Progress) -> None:
        if progress.step >= at and progress.row:
            raise Stop

    with pytest.raises(Stop):
        train.run(cfg, report=stop)
    return run_dir(cfg)


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


def emptied(_: bytes) -> bytes:
    return b""


@pytest.mark.quick(1)
@pytest.mark.parametrize("damage", [cut, flipped, emptied])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    tiny: Tiny, tmp_path: Path, damage: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = train.run(tiny(*RANDOM, f"root={tmp_path / 'whole'}"))
    path = broken(tiny(*RANDOM), at=12)
    newest = path / record.CHECKPOINT
    newest.write_bytes(damage(newest.read_bytes()))
    (path / record.METRICS).write_bytes(damage((path / record.METRICS).read_bytes()))
    assert checkpoint.load(path / record.PREVIOUS)["step"] == 8
    assert_same(train.run(tiny(*RANDOM)), whole)
    err = capfd.readouterr().err
    assert f"{newest} is damaged: resuming from the previous one.\n" in err


def test_run_whose_checkpoints_are_all_damaged_starts_over_and_says_so(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = train.run(tiny(f"root={tmp_path / 'whole'}"))
    path = broken(tiny("eval_every=2"), at=4)
    for name in (record.CHECKPOINT, record.PREVIOUS):
        (path / name).write_bytes(b"nonsense")
    again = results(train.run(tiny("eval_every=2")))
    assert "starting over" in capfd.readouterr().err
    assert all(torch.equal(again[1][key], value) for key, value in results(whole)[1].items())


def test_checkpoint_that_carries_code_is_not_passed_over(tiny: Tiny) -> None:
    path = broken(tiny(), at=1)
    torch.save({"x": Path()}, path / record.CHECKPOINT)
    with pytest.raises(UserError, match="refused"):
        train.run(tiny())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A checkpoint and its bytes."""
    file = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    checkpoint.save(file, {"w": torch.arange(50.0), "rows": [{"step": 3}], "step": 3})
    return file, file.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_noticed_or_changes_nothing(
    saved: tuple[Path, bytes], data: st.DataObject, tmp_path: Path
) -> None:
    _, raw = saved
    place = data.draw(st.integers(0, 8 * len(raw) - 1))
    file = tmp_path / "flipped.pt"
    file.write_bytes(raw[: place // 8] + bytes([raw[place // 8] ^ 1 << place % 8]) + raw[place // 8 + 1 :])
    try:
        loaded = checkpoint.load(file)
    except UserError:
        return
    assert torch.equal(loaded["w"], torch.arange(50.0))
    assert (loaded["rows"], loaded["step"]) == ([{"step": 3}], 3)


def counted(cfg: Config, updates: Path) -> None:
    """A run that leaves a letter in ``updates`` for each of its steps."""
    update = Trainer.update

    def leaves_a_letter(self: Trainer, *arguments: torch.Tensor) -> object:
        with updates.open("a") as stream:
            stream.write("x")
        return update(self, *arguments)

    with mock.patch.object(Trainer, "update", leaves_a_letter):
        train.run(cfg)


def counted_twice(cfg: Config, updates: Path) -> None:
    """Two processes, of which the second comes when the first has claimed the run."""
    first = os.fork()
    if first == 0:
        counted(cfg, updates)
        os._exit(0)
    while not (run_dir(cfg) / record.CONFIG).exists():
        time.sleep(0.005)
    counted(cfg, updates)
    assert os.waitpid(first, 0)[1] == 0


@pytest.mark.slow
def test_two_processes_asked_for_one_run_make_it_once(
    tiny: Tiny, tmp_path: Path, apart: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny("epochs=30")
    updates = tmp_path / "updates"
    assert apart(partial(counted_twice, cfg, updates)) == 0
    assert updates.stat().st_size == Run(run_dir(cfg)).summary["steps"]
    assert "another process is working on this run; waiting for it" in capfd.readouterr().err


def test_clock_that_jumps_changes_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.run(tiny(*RANDOM, f"root={tmp_path / 'whole'}"))
    now = time.time()
    jumps = itertools.chain([now], itertools.cycle((now + 1e7, now - 1e7)))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    cfg = tiny(*RANDOM, "tensorboard=true")
    broken(cfg, at=8)
    path = train.run(cfg)
    assert_same(path, whole)
    assert Run(path).summary["seconds"] >= 0
