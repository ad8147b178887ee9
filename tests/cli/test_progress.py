"""What progress looks like on terminals of all kinds, and in files."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bnrepro.cli import listing
from bnrepro.cli.progress import SweepBar, TrainBar
from bnrepro.config.schema import Config
from bnrepro.runs import index
from bnrepro.runs.record import COLUMNS, Run
from bnrepro.system import output
from bnrepro.training.trainer import Progress

Tiny = Callable[..., Config]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FORCED = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLORTERM": "truecolor", "CLICOLOR_FORCE": "1"}
ROW = dict.fromkeys(COLUMNS, 1.0) | {"val_accuracy": 0.8765}


@dataclass(frozen=True)
class Ended:
    state: str = "completed"
    error: str | None = None


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Iterator[Callable[[], str]]:
    """Standard error on a terminal; gives what was written to it."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read() -> str:
        content = b""
        while select.select([master], [], [], 0.1)[0]:
            content += os.read(master, 2**16)
        return content.decode()

    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        for name in ("COLUMNS", "LINES", "TTY_INTERACTIVE", "NO_COLOR", *FORCED):
            monkeypatch.delenv(name, raising=False)
        yield read
    os.close(master)


def both(cfg: Config) -> None:
    """A run's bar and a sweep's, from the start to the end."""
    with TrainBar(cfg) as one:
        one.update(Progress(10, 1680, 0.5, 0.75))
        one.update(Progress(840, 1680, 0.25, 0.8125, ROW))
    with SweepBar(["mnist5k/lenet/bn/seed0-0123456789abcdef", "other"]) as many:
        many.update(0, 0.5)
        many.ended(1, Ended("failed", "why"))


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, FORCED])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_bars_show_their_numbers_from_60_columns(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, columns: int, environment: dict[str, str]
) -> None:
    with terminal(monkeypatch, columns) as read:
        monkeypatch.setenv("TERM", "xterm-256color")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        both(tiny("variant=convbn"))
        text = read()
    assert "\x1b[" in text
    lines = ESCAPE.sub("", text).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= columns
    shown = "\n".join(lines)
    assert "840/1680" in shown
    assert "loss 0.2500, accuracy 0.8125, validation accuracy 0.8765" in shown
    assert "other: failed (why)" in shown
    assert "50%" in shown
    assert "2 runs: 1 failed, 1 running" in shown


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None])
def test_plain_lines_on_a_terminal_that_cannot_move_its_cursor(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, term: str | None
) -> None:
    with terminal(monkeypatch, 80) as read:
        monkeypatch.delenv("TERM", raising=False)
        if term is not None:
            monkeypatch.setenv("TERM", term)
        both(tiny())
        text = read()
    assert_plain(text)


@pytest.mark.parametrize("environment", [{}, FORCED, {"TERM": "xterm"}, {"COLUMNS": "20"}])
def test_plain_lines_in_a_file(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "err").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        both(tiny())
    assert_plain((tmp_path / "err").read_text())


def assert_plain(text: str) -> None:
    assert text.replace("\r\n", "\n").splitlines() == [
        "epoch 1: loss 0.2500, accuracy 0.8125, validation accuracy 0.8765",
        "[1/2] other: failed (why)",
    ]


@pytest.mark.parametrize("columns", ["0", "20", "100000", "-5", "x", ""])
def test_any_value_of_columns(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    with terminal(monkeypatch, 80) as read:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", columns)
        both(tiny())
        assert len(read()) < 20_000
        assert listing.verdict_table([]) == "The paper has no claims."
        assert listing.terminal_width() is None or listing.terminal_width() in (40, 100_000)


def test_terminal_that_is_gone_stops_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_told", set())
    with terminal(monkeypatch, 80):
        monkeypatch.setenv("TERM", "xterm")
        stream = sys.stderr
        with TrainBar(tiny()) as bar:
            os.dup2(broken := os.open(os.devnull, os.O_RDONLY), stream.fileno())  # every write is EBADF
            os.close(broken)
            bar.update(Progress(840, 1680, 0.25, 0.8125, ROW))
        monkeypatch.setattr(sys, "stderr", sys.__stderr__)
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), stream.fileno())


# --- tables ---


LINES = [["variant", "n", "test accuracy, %", "minus nobn", "epochs to threshold", "seconds"]] + [
    [name, "5", "98.76 [98.70, 98.82]", "1.23 [1.17, 1.29]", "2.0 [1.5, 2.5] (4/5)", "123.4"]
    for name in ("bn", "convbn")
]


@pytest.mark.parametrize("columns", range(40, 130, 10))
def test_tables_fit_the_terminal_with_the_first_column_in_each_part(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = listing.fitted(LINES)
    assert max(map(len, text.splitlines())) <= columns
    parts = text.split("\n\n")
    assert all(part.splitlines()[-1].startswith("convbn") for part in parts)
    for line in LINES:
        assert all(cell in text for cell in line)


def test_tables_in_a_file_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert listing.fitted(LINES) == listing.aligned(LINES)


def test_paths_of_runs_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "runs/mnist5k/lenet/bn/seed0-0123456789abcdef"
    stored = index.Stored(Run(Path(path)))
    vars(stored)["first"] = dict.fromkeys(index.FIRST) | {
        "variant": "bn",
        "seed": 0,
        "status": "completed",
        "path": path,
    }
    monkeypatch.setenv("COLUMNS", "60")
    text = listing.as_text([stored])
    assert f"  {path}" in text.splitlines()
    assert max(map(len, text.splitlines())) <= 60
