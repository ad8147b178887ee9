"""Signals at any moment end all processes of a command within seconds; what had begun goes on later."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bnrepro.cli import ending
from bnrepro.launch import parallel
from bnrepro.runs.record import find_runs
from bnrepro.system import output, signals
from tests.cli.ending import Command, group
from tests.conftest import TINY, changed

INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")


def comparison(digits: Path, epochs: int = 200) -> list[str]:
    """Two long runs in two processes."""
    return [
        "compare",
        "--variants=nobn,bn",
        "--seeds=1",
        "--jobs=2",
        *changed(TINY, f"epochs={epochs}"),
        f"data.path={digits}",
    ]


def test_training_that_a_benchmark_makes_is_not_said_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = "Stopped at step 27 of 560; run the same command again to continue."

    def stop() -> None:
        raise KeyboardInterrupt(run)

    monkeypatch.setattr(signals, "ignore", lambda: None)
    for command, words in (("bench", "Interrupted."), ("train", run)):
        said: list[str] = []
        monkeypatch.setattr(sys, "argv", ["bnrepro", command])
        monkeypatch.setattr("bnrepro.system.output.tell", said.append)
        with pytest.raises(SystemExit):
            ending.run(stop)
        assert said == [f"\n{words}"]


@pytest.mark.parametrize(("arguments", "code", "said"), [(["--version"], 0, "bnrepro"), (["nonsense"], 2, "Error:")])
def test_what_breaks_the_interpreters_end_of_one_of_several_changes_no_exit_code(
    arguments: list[str], code: int, said: str
) -> None:
    program = "import atexit, os; atexit.register(os.abort); from bnrepro.cli import ending, main"
    command = [sys.executable, "-c", f"{program}; ending.at_once = True; main()", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code, ended.stderr
    assert (ended.stdout + ended.stderr).startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "to_all"),
    [
        ((INT, INT), False),
        pytest.param((HUP,), True, marks=pytest.mark.slow),
        pytest.param((TERM, INT, INT), False, marks=pytest.mark.slow),
        pytest.param((INT,), True, marks=pytest.mark.slow),
        pytest.param((TERM,), False, marks=pytest.mark.slow),
        pytest.param((TERM,), True, marks=pytest.mark.slow),
    ],
)
def test_signals_end_runs_in_order(
    numbers: tuple[signal.Signals, ...], to_all: bool, digits: Path, tmp_path: Path
) -> None:
    command = Command(tmp_path, comparison(digits))
    command.wait_for(lambda: len(list(tmp_path.rglob("metrics.csv"))) == 2)
    command.signal(*numbers, to_all=to_all)
    assert command.ended() in {128 + number for number in numbers}
    runs = list(find_runs(tmp_path / "runs"))
    assert [run.status for run in runs] == ["interrupted"] * 2
    assert all((run.path / "checkpoint.pt").is_file() for run in runs)
    err = command.err.read_text()
    assert "Interrupted. Run the same command again to continue.\n" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_workers_of_a_killed_command_end_in_order(digits: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, comparison(digits))
    command.wait_for(lambda: len(list(tmp_path.rglob("metrics.csv"))) == 2)
    assert len(group(command.process.pid)) >= 3
    command.signal(KILL)
    assert command.ended() == 128 + KILL
    assert [run.status for run in find_runs(tmp_path / "runs")] == ["interrupted"] * 2


@pytest.mark.slow
def test_nohup_goes_on_when_the_terminal_closes(digits: Path, tmp_path: Path) -> None:
    arguments = ["train", *changed(TINY, "epochs=3"), f"data.path={digits}"]
    command = Command(tmp_path, arguments, lambda: signal.signal(HUP, signal.SIG_IGN))
    command.wait_for(lambda: list(tmp_path.rglob("metrics.csv")))
    command.signal(HUP, HUP, to_all=True)
    assert command.ended(60) == 0
    assert [run.status for run in find_runs(tmp_path / "runs")] == ["completed"]


def test_interrupted_run_says_where_it_stopped(digits: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, ["train", *changed(TINY, "epochs=300"), f"data.path={digits}"])
    command.wait_for(lambda: list(tmp_path.rglob("metrics.csv")))
    command.signal(INT)
    assert command.ended() == 130
    (run,) = find_runs(tmp_path / "runs")
    said = command.err.read_text().splitlines()[-1]
    assert said.startswith(f"Stopped at step {run.summary['steps']} of ")
    assert said.endswith("; run the same command again to continue.")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_moment_is_unlucky(seed: int, digits: Path, tmp_path: Path) -> None:
    """From the start of the interpreter to its end: in imports, the pool's start, between runs, while drawing."""
    draw = random.Random(seed)
    numbers = draw.choice([(INT,), (TERM,), (HUP,), (INT, INT), (TERM, INT, INT), (INT, TERM, HUP)])
    command = Command(tmp_path, comparison(digits, 2))
    time.sleep(draw.uniform(0, 10))
    command.signal(*numbers, to_all=draw.random() < 0.5, pause=draw.choice([0.0, 0.02, 0.3]))
    assert command.ended() in (0, *(128 + number for number in numbers))
    assert {run.status for run in find_runs(tmp_path / "runs")} <= {"interrupted", "completed"}
    again = Command(tmp_path, comparison(digits, 2))
    assert again.ended(120) == 0
    assert {run.status for run in find_runs(tmp_path / "runs")} == {"completed"}


SWALLOWS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and callable(signal.getsignal(signal.SIGTERM)):
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["train", *TINY], "numpy.linalg"),
        (["sweep", *TINY, "seed=0,1", "--jobs=2"], "torch.nn.functional"),
        (["compare", *changed(TINY, "epochs=1"), "--variants=bn", "--seeds=1", "--jobs=1"], "matplotlib.artist"),
        (["reproduce", "numpynet", "--preset=smoke"], "numpy.linalg"),
    ],
)
def test_signal_that_an_import_swallows_is_not_lost(
    arguments: list[str], module: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SWALLOWS.format(module=module))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    own = [] if arguments[0] == "reproduce" else [f"data.path={digits}"]
    command = Command(tmp_path, [*arguments, *own])
    assert command.ended() == 128 + TERM
    said = command.err.read_text()
    assert "Interrupted. Run the same command again to continue.\n" in said
    for words in ("cannot be shown", "Traceback"):
        assert words not in said
    assert {run.status for run in find_runs(tmp_path / "runs")} <= {"completed"}


def test_exit_code_is_the_signals_where_it_breaks_off_code_in_a_string(tmp_path: Path) -> None:
    program = "import signal\nfrom bnrepro.cli import ending\nending.run(lambda: exec('signal.raise_signal(15)'))\n"
    (tmp_path / "broken_off.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "broken_off"]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 128 + TERM


# --- in this process ---


def _exit(_item: int, _share: Callable[[float], None]) -> int:
    os._exit(3)


class Unpicklable(Exception):
    """An error that cannot be read back."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def test_signal_that_comes_when_all_is_done_is_not_lost() -> None:
    before = signal.signal(INT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), signals.stop_between_steps() as stop:
            signal.raise_signal(INT)
            assert stop.asked
    finally:
        signal.signal(INT, before)


@contextmanager
def _swallowed() -> Iterator[None]:
    """Takes signals; one came, and what it raised is lost."""
    with signals.terminate_as_interrupt():
        with suppress(BaseException):
            signal.raise_signal(TERM)
        yield


def _sleep() -> None:
    time.sleep(20)
    pytest.fail("nothing interrupted this")


def _begin_a_loop() -> None:
    with signals.stop_between_steps():
        pytest.fail("this began")


def _nothing() -> None:
    pass


class _Signals:
    def __del__(self) -> None:
        signal.raise_signal(TERM)


def _fail() -> None:
    raise AttributeError("module 'numpy' has no attribute 'logical_or'")


def _fail_as_a_display() -> None:
    with output.only_shown("Curves of this test"):
        _fail()


@pytest.mark.parametrize("then", [_sleep, _begin_a_loop, _nothing, _fail, _fail_as_a_display])
def test_interrupt_that_is_swallowed_comes_again(then: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), _swallowed():
        then()
    assert not capsys.readouterr().err
    assert not signals.cut
    with signals.terminate_as_interrupt(), signals.stop_between_steps() as stop:  # whose own signals count alone
        time.sleep(2 * signals.REMIND_SECONDS)
    assert not stop.asked


@pytest.mark.filterwarnings("error")  # pytest takes what is unraisable, and warns of it
def test_interrupt_that_a_deletion_swallows_comes_again_and_is_not_printed() -> None:
    with pytest.raises(KeyboardInterrupt), signals.terminate_as_interrupt():
        _Signals()
        _sleep()


def test_interrupt_that_is_on_its_way_does_not_come_again() -> None:
    ended = []
    with pytest.raises(KeyboardInterrupt, match="first"), signals.terminate_as_interrupt():
        try:
            try:
                signal.raise_signal(TERM)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("first") from None
        finally:
            with parallel.kept_workers(), signals.stop_between_steps() as stop:
                time.sleep(3 * signals.REMIND_SECONDS)
            ended.append(stop.asked)
    assert ended == [False]


def test_import_is_broken_off_by_a_second_signal_and_when_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    slow = (
        "import signal, time\nfor _ in range({times}):\n    signal.raise_signal(15)\ntime.sleep(0.4)\nimport {then}\n"
    )
    for name, times, patience, then in (
        ("whole_module", 1, 60.0, "json"),
        ("cut_module", 2, 60.0, "not_there"),
        ("long_module", 1, 0.0, "not_there"),
    ):
        monkeypatch.setattr(signals, "IMPORT_SECONDS", patience)
        (tmp_path / f"{name}.py").write_text(slow.format(times=times, then=then))
        with pytest.raises(KeyboardInterrupt), signals.terminate_as_interrupt():
            importlib.import_module(name)
            _sleep()
        assert (name in sys.modules) == (name == "whole_module")


@pytest.mark.parametrize("number", signals.STOPPING)
def test_each_signal_interrupts_unless_it_is_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), signals.terminate_as_interrupt():
            signal.raise_signal(number)
        assert signals.received == number
        signal.signal(number, signal.SIG_IGN)
        with signals.terminate_as_interrupt(), signals.stop_between_steps() as stop:
            signal.raise_signal(number)
        assert not stop.asked
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_process_that_dies_costs_its_item_alone_and_errors_are_raised_here() -> None:
    assert parallel.map_all(_exit, [1], 2, lambda item: -item, threads=1) == [-1]
    with pytest.raises(RuntimeError, match="Unpicklable: 1 and 2"):
        parallel.map_all(_raise_unpicklable, [0], 2, lambda _: None, threads=1)
    assert multiprocessing.active_children() == []


def _raise_unpicklable(_item: int, _share: Callable[[float], None]) -> None:
    raise Unpicklable(1, 2)
