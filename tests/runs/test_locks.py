"""Faults of the file system at locks, folders, renames and syncs: an answer, the old file, and nothing left over."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnrepro.runs import record
from bnrepro.system import signals

WITHOUT = ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "EACCES", "EIO", "EROFS", "EINVAL", "EBADF", "ESTALE", "ENOTSUP", "EPERM")


def raising(name: str) -> Callable[..., Any]:
    """A system call that gives this error."""

    def call(*_: object, **__: object) -> None:
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("name", WITHOUT)
def test_where_there_are_no_locks_a_run_goes_on_and_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", raising(name))
    done = False
    with record.claim(tmp_path / "run"):
        done = True
    assert done
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not support locks" in line


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EACCES", "ENOTDIR", "EIO", "EMFILE", "ESTALE"])
@pytest.mark.parametrize("call", ["open", "mkdir"])
def test_lock_that_cannot_be_made_is_an_error_at_once(
    name: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, raising(name))
    with pytest.raises(OSError, match=re.escape(os.strerror(getattr(errno, name)))), record.claim(tmp_path / "run"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from bnrepro.runs import record
with record.claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_waiting_says_so_ends_with_the_holder_and_can_be_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline()
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(KeyboardInterrupt), signals.terminate_as_interrupt(), record.claim(tmp_path):
            pass
        timer.join()
        assert capsys.readouterr().err == f"{tmp_path}: another process is working on this run; waiting for it.\n"
        holder.kill()
        started = time.monotonic()
        with record.claim(tmp_path):  # a dead process holds nothing
            assert time.monotonic() - started < 5
    assert (tmp_path / record.LOCK).is_file()


# --- files ---


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT", "EROFS", "EXDEV", "EBUSY", "EACCES", "ESTALE", "EMFILE"])
@pytest.mark.parametrize("call", ["open", "mkdir", "fsync", "replace", "stat"])
@pytest.mark.parametrize("previous", [False, True])
def test_write_that_fails_leaves_what_was_there(
    call: str, name: str, previous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, older = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    record.write_whole(older, "older")
    record.write_whole(file, "before")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, raising(name))
        try:
            record.write_whole(file, "after", older if previous else None)
        except OSError as error:
            assert error.errno == getattr(errno, name)
        else:
            assert call in ("mkdir", "stat")
    assert file.read_text() in ("before", "after")
    assert file.read_text() == "before" or call in ("mkdir", "stat")
    assert sorted(path.name for path in tmp_path.iterdir()) == [older.name, file.name]


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_file_system_that_cannot_sync_is_written_to(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(name))
    record.write_whole(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize("name", ["EPERM", "EOPNOTSUPP", "EMLINK", "ENOSYS"])
def test_file_system_without_hard_links_keeps_the_previous_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, older = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    record.write_whole(file, "1")
    monkeypatch.setattr(os, "link", raising(name))
    record.write_whole(file, "2", older)
    assert (file.read_text(), older.read_text()) == ("2", "1")
    record.write_whole(file, "3", older)
    assert (file.read_text(), older.read_text()) == ("3", "2")
    assert len(list(tmp_path.iterdir())) == 2
