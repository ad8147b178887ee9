"""Where a number comes from."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bnrepro.runs import provenance


def test_provenance_names_versions_and_machine() -> None:
    assert {"python", "bnrepro", "torch", "torchvision"} <= set(provenance.versions())
    assert re.search(r", [1-9][0-9]* cores$", provenance.machine())


needs_git = pytest.mark.skipif(not shutil.which("git"), reason="without git there are no checkouts")
AS_SOMEBODY = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
AS_SOMEBODY |= {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, **AS_SOMEBODY}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which this package seems to be."""
    top = tmp_path / "checkout"
    (top / "bnrepro").mkdir(parents=True)
    (top / "configs").mkdir()
    for name in ("bnrepro/runs/provenance.py", "configs/config.yaml", "notes.txt"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("a")
    git(top, "init", "-q", "-b", "main")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(top / "bnrepro" / "runs" / "provenance.py"))
    return top


@needs_git
def test_revision_is_the_commit_and_whether_the_package_differs(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("b")
    assert provenance.git_revision() == commit
    git(tmp_path, "init", "-q", "elsewhere")  # as in a hook of another repository
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", "nowhere")
    assert provenance.git_revision() == commit
    monkeypatch.delenv("GIT_DIR")
    (checkout / "configs" / "config.yaml").write_text("b")
    assert provenance.git_revision() == f"{commit}-dirty"
    (checkout / "configs" / "config.yaml").write_text("a")
    (checkout / "bnrepro" / "new.py").touch()
    assert provenance.git_revision() == f"{commit}-dirty"


@needs_git
@pytest.mark.parametrize("kind", ["branch", "packed", "detached", "worktree"])
def test_revision_without_git_is_read_from_its_files_with_the_reason(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    if kind == "packed":
        git(checkout, "pack-refs", "--all")
    elif kind == "detached":
        git(checkout, "checkout", "-q", "--detach")
    elif kind == "worktree":
        git(checkout, "worktree", "add", "-q", str(tmp_path / "tree"))
        monkeypatch.setattr(provenance, "__file__", str(tmp_path / "tree" / "bnrepro" / "runs" / "provenance.py"))
        assert provenance.git_revision() == commit
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision() == f"{commit} (changes unknown: git is not installed)"


def remove_head(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").unlink()


def no_commit(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    git(checkout, "init", "-q")


def nonsense(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_bytes(b"\xff\xfe" * 5000)


@needs_git
@pytest.mark.parametrize("harm", [remove_head, no_commit, nonsense])
def test_revision_of_a_broken_checkout_is_unknown_for_a_reason(checkout: Path, harm: Callable[[Path], None]) -> None:
    harm(checkout)
    assert re.fullmatch(r"unknown \(changes unknown: .+\)", provenance.git_revision() or "")


@needs_git
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_repository_of_another_user_is_read_and_nothing_of_it_is_run(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "config", "core.fsmonitor", f"touch {tmp_path / 'sprung'}")
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 12345, 12345)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert provenance.git_revision() == f"{commit} (changes unknown: the repository belongs to another user)"
    assert not (tmp_path / "sprung").exists()


def test_outside_a_checkout_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bnrepro" / "runs" / "provenance.py"))
    assert provenance.git_revision() is None


def test_git_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "held")
    (tmp_path / "git").write_text(f"#!/bin/sh\nexec 3<>{tmp_path / 'held'}\nsleep 60\nexit 0\n")
    (tmp_path / "git").chmod(0o755)
    (tmp_path / "top" / ".git").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "top" / "bnrepro" / "runs" / "provenance.py"))
    monkeypatch.setattr(provenance, "PATIENCE", 0.3)
    assert provenance.git_revision() == "unknown (changes unknown: git does not answer)"
    for _ in range(50):  # a pipe that nobody has open cannot be opened for writing
        try:
            os.close(os.open(tmp_path / "held", os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            assert error.errno == errno.ENXIO
            return
        time.sleep(0.1)
    pytest.fail("a child of git is left over")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "git gives no reason"),
        ("printf 'fatal: \\377 is odd\\nmore' >&2; exit 128", ". is odd"),
        ("printf 'fatal: detected dubious ownership in repository' >&2; exit 128", "the repository belongs to another"),
    ],
)
def test_whatever_git_says_is_no_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "git").chmod(0o755)
    (tmp_path / "top" / ".git").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "top" / "bnrepro" / "runs" / "provenance.py"))
    assert re.search(rf"unknown \(changes unknown: {reason}", provenance.git_revision() or "")
