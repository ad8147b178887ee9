"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from bnrepro.cores import cores


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number depends on."""
    packages = ("bnrepro", "torch", "torchvision", "numpy", "hydra-core")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def git_revision() -> str | None:
    """The checkout's commit, with ``-dirty`` where the package differs from it; None outside a checkout."""
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.parent:
            return None  # installed inside somebody else's repository
        changed = git("status", "--porcelain", "--", ".", "../configs")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> str:
    """The processor's name and its number of cores for this process."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(errors="replace").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return f"{name}, {cores()} cores"
