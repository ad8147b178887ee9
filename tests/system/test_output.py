"""Standard output and standard error are displays: whatever becomes of them, a command does its work."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bnrepro.system import output, signals
from bnrepro.system.output import Shield, only_shown, tell
from tests.conftest import TINY, changed


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``command`` in bash, where ``bnrepro`` is this one."""
    name = f'bnrepro() {{ {sys.executable} -m bnrepro "$@"; }}; set -o pipefail; '
    env = {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(["bash", "-c", name + command], cwd=folder, env=os.environ | env, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment", "code"),
    [
        ("bnrepro config <&- >&- 2>&-", {}, 0),
        ("bnrepro config | true", {}, 0),
        ("bnrepro config >/dev/full", {}, 1),
        ("bnrepro show $'\\u5c42'", {"PYTHONIOENCODING": "ascii"}, 2),
        ("bnrepro config >&-", {}, 0),
        ("bnrepro config >&- 2>&-", {}, 0),
        ("bnrepro config 2>&1 | head -1", {}, 0),
        ("bnrepro config >/dev/full 2>&1", {}, 1),
        ("bnrepro --help >/dev/full", {}, 1),
        ("bnrepro sweep seed=0,1 --dry-run >/dev/full", {}, 1),
        ("bnrepro epochs=x nope >/dev/full 2>&1", {}, 2),
        ("bnrepro show $'\\u5c42'", {"PYTHONIOENCODING": "latin-1"}, 2),
        ("bnrepro show $'\\u5c42'", {"PYTHONIOENCODING": "cp1252", "PYTHONUNBUFFERED": "1"}, 2),
        ("bnrepro config | cat", {"PYTHONIOENCODING": "utf-16"}, 0),
        ("bnrepro config | cat", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0),
    ],
)
def test_command_ends_as_it_should_whatever_takes_its_output(
    command: str, environment: dict[str, str], code: int, tmp_path: Path
) -> None:
    ended = shell(command, tmp_path, **environment)
    assert ended.returncode == code, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr + ended.stdout
    if "/dev/full" in command and "2>" not in command:
        assert b"standard output could not be written (No space left on device). Write it elsewhere." in ended.stderr


def test_results_that_cannot_be_printed_are_said_to_be_stored(digits: Path, tmp_path: Path) -> None:
    train = f"bnrepro train {' '.join(changed(TINY, 'epochs=1'))} data.path={digits} >/dev/full"
    ended = shell(train, tmp_path)
    assert (ended.returncode, b"Results are stored; run the command again to see them." in ended.stderr) == (1, True)


@pytest.mark.slow
def test_run_is_completed_while_nobody_reads(digits: Path, tmp_path: Path) -> None:
    command = f"bnrepro train {' '.join(changed(TINY, 'tensorboard=true'))} data.path={digits} 2>&1 | true"
    assert shell(command, tmp_path).returncode == 0
    (summary,) = tmp_path.rglob("summary.json")
    assert '"status": "completed"' in summary.read_text()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_every_character_has_an_escape(encoding: str, unbuffered: str) -> None:
    code = r"""
import sys
from bnrepro.system import output
output.protect()
for stream in (sys.stdout, sys.stderr):
    print("\u2212 \u5c42 \udc80 \x00 a", file=stream)
sys.exit(not output.finish())
"""
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    for content in (ended.stdout, ended.stderr):
        assert content.decode(encoding).endswith("\\udc80 \x00 a\n")


# --- the shield ---


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO])
def test_reader_that_is_gone_is_no_fault(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(number, monkeypatch).error is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.EPERM, errno.ENOBUFS])
def test_other_errors_are_kept_for_the_end(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error = written(number, monkeypatch).error
    assert error
    assert error.errno == number


def written(number: int, monkeypatch: pytest.MonkeyPatch) -> Shield:
    """A shield that met an error, and took more after it."""
    shield = Shield(os.open(os.devnull, os.O_WRONLY))

    def fail(_descriptor: int, _data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        assert shield.write(b"first") == 5
    stream = io.TextIOWrapper(io.BufferedWriter(shield), "ascii", "backslashreplace")
    print("ö" * 100_000, file=stream, flush=True)
    os.close(shield.descriptor)
    return shield


def test_pipe_that_does_not_block_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    content, got = os.urandom(300_000), bytearray()

    def read() -> None:
        time.sleep(0.1)
        while data := os.read(reader, 4096):
            got.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    assert Shield(writer).write(content) == len(content)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert bytes(got) == content


def test_after_a_signal_nothing_waits_for_a_reader_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(signals, "received", 15)
    monkeypatch.setattr(output, "PATIENCE", 0.05)
    started = time.monotonic()
    assert Shield(writer).write(bytes(10**6)) == 10**6
    assert time.monotonic() - started < 5
    os.close(reader)
    os.close(writer)


# --- what only shows ---


class _Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str, /) -> int:
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), ValueError("I/O operation on closed file")])
def test_telling_never_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, _Broken(error), io.TextIOWrapper(io.BytesIO(), "ascii")):
        monkeypatch.setattr(sys, "stderr", stream)
        tell("ö")
    assert isinstance(stream, io.TextIOWrapper)
    stream.seek(0)
    assert stream.read() == "\\xf6\n"


def raising(error: BaseException) -> Callable[..., None]:
    """A function that raises ``error``."""

    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_what_only_shows_is_told_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ImportError("no module\nmore"), OSError(28, "full"), ValueError("x")):
        with only_shown("A thing of test_output"):
            raising(error)()
    assert capsys.readouterr().err == (
        "A thing of test_output cannot be shown (ImportError: no module). Results are not affected.\n"
    )
    with pytest.raises(KeyboardInterrupt), only_shown("x"):
        raise KeyboardInterrupt
