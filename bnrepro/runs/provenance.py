"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from bnrepro import __version__
from bnrepro.system import reading as stored
from bnrepro.system.cores import cores
from bnrepro.system.signals import output_of

PATIENCE = 10.0  # seconds that git has to answer
ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number depends on."""
    packages = ("torch", "torchvision", "numpy", "hydra-core")
    own = {"python": platform.python_version(), "bnrepro": __version__}
    return {**own, **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # it is on the path, without what an installation says of it
        return "not installed"


def git_revision() -> str | None:
    """The commit of the checkout, with ``-dirty`` if the package was modified; None outside a checkout.

    Where git does not say, in brackets why; the commit is then read from git's files, which runs nothing: git refuses
    a repository of another user, whose configuration may name programs.
    """
    package = Path(__file__).resolve().parents[1]
    top = package.parent
    if not (top / ".git").exists():
        return None  # installed, perhaps inside somebody else's repository
    try:
        commit = _git(package, "rev-parse", "--verify", "HEAD")
        return commit + ("-dirty" if _git(package, "status", "--porcelain", "--", ".", "../configs") else "")
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = "git does not answer"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace")
        reason = "the repository belongs to another user" if "dubious ownership" in said else _first_line(said)
    except OSError as error:
        reason = f"git cannot be run: {error.strerror}"
    return f"{_head(top / '.git') or 'unknown'} (changes unknown: {reason})"


def committed(file: Path) -> tuple[str, str] | None:
    """The commit that ``file`` is of, as it is now, and its date; None where it is not committed, or git cannot say."""
    try:
        folder = file.resolve().parent
        if _git(folder, "status", "--porcelain", "--", file.name):
            return None
        commit, _, date = _git(folder, "log", "-1", "--format=%H %cs", "--", file.name).partition(" ")
        return (commit, date) if commit else None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    # A hook that runs this has variables of git's of its own; and nothing is to be written, nor waited for.
    mine = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    environment = {**mine, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    answer = output_of(["git", "-C", str(folder), *arguments], PATIENCE, environment)
    return answer.decode(errors="replace").strip()


def _first_line(said: str) -> str:
    lines = [line.removeprefix("fatal: ") for line in said.splitlines() if line.strip()]
    return lines[0][:200] if lines else "git gives no reason"


def _head(folder: Path) -> str | None:
    """The commit that a checkout's ``.git`` names, a folder or (in a worktree) a file that says which folder."""
    try:
        if folder.is_file():
            folder = folder.parent / _line(folder).removeprefix("gitdir: ")
        head = _line(folder / "HEAD")
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            common = folder / _line(folder / "commondir") if (folder / "commondir").is_file() else folder
            head = _line(common / name) if (common / name).is_file() else _packed(common / "packed-refs", name)
    except (OSError, ValueError):
        return None
    return head if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", head) else None


def _line(file: Path) -> str:
    return stored.read_bytes(file, 4096).decode().strip()


def _packed(file: Path, name: str) -> str:
    lines = (line.split(" ") for line in stored.read_bytes(file).decode().splitlines())
    return next((line[0] for line in lines if line[1:] == [name]), "")


def machine() -> str:
    """The processor's name and its number of cores for this process."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(errors="replace").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return f"{name}, {cores()} cores"
