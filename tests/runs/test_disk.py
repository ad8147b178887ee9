"""A disk that is full or read-only: nothing that was there is lost, one sentence says so, and the run goes on later.

Each test is a script in a mount namespace of its own, where a small tmpfs stands for the disk.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ["unshare", "--mount", "--map-root-user"]


def _can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _can_mount(), reason="no mount namespace may be made here"),
]

COMMON = """
import io, os, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from bnrepro.runs import checkpoint
from bnrepro import cli
from bnrepro.report import compare
from bnrepro.runs import record
from bnrepro.config import load_config, run_dir
from bnrepro.runs.record import Run

torch.set_num_threads(1)
digits, scratch = sys.argv[1], Path(sys.argv[2])
disk = scratch / "disk"
disk.mkdir()
OVERRIDES = ["data.name=digits", "data.source=npz", f"data.path={digits}", "model=lenet", "epochs=2", "batch_size=60",
             "eval_every=3", "device=cpu", "model.dropout=0.2"]

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)], check=True)

def remount(*options):
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(disk)], check=True)

def bnrepro(*arguments):
    sys.argv = ["bnrepro", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    return code, err.getvalue()

def results(path):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in Run(path).metrics]
    return rows, checkpoint.load(path / record.CHECKPOINT)["network"]

def same(one, other):
    (rows, weights), (other_rows, other_weights) = results(one), results(other)
    return rows == other_rows and all(torch.equal(weights[k], other_weights[k]) for k in weights)

def run_of(root, *overrides):
    return run_dir(load_config([*OVERRIDES, *overrides, f"root={root}"]))
"""

FULL = """
def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

for events in ("tensorboard=false", "tensorboard=true"):
    whole = scratch / events.replace("=", "-")
    assert bnrepro("train", *OVERRIDES, events, f"root={whole}")[0] == 0
    mount("size=64m")
    assert bnrepro("train", *OVERRIDES, "seed=1", events, f"root={disk}")[0] == 0  # a finished run, not to be harmed
    other = run_of(disk, "seed=1")
    before = {file: file.read_bytes() for file in other.rglob("*") if file.is_file()}
    used = size_of(disk) // 4096 + 20
    needed = size_of(whole) // 4096 + 1
    stopped = kinds = 0
    # From no room at all to nearly enough, so that each kind of file is the one that no longer fits.
    for pages in sorted({0, 1, 2, 3, 4, 6, 8, *(needed * part // 8 for part in range(1, 17, 2))}):
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * 4096 - pages * 4096
        with filler.open("wb") as stream:
            stream.write(bytes(max(0, free)))
        code, err = bnrepro("train", *OVERRIDES, events, f"root={disk}")
        filler.unlink()
        path = run_of(disk)
        if code:
            stopped += 1
            assert code == 2, (pages, code, err)
            last = err.strip().splitlines()[-1]
            assert last.startswith(f"Error: {disk}") and "No space left" in last and "Make room there" in last, err
            assert not Run(path).finished
            leftover = [file for file in disk.rglob("*.tmp")]
            assert leftover == [], leftover
            if (path / record.METRICS).exists():
                assert Run(path).metrics  # whole
            code, err = bnrepro("train", *OVERRIDES, events, f"root={disk}")
        assert code == 0, err
        assert same(path, run_of(whole)), pages
        assert {file: file.read_bytes() for file in before} == before
        record.clear(path)
    assert stopped >= 5, stopped
    print(events, "stopped", stopped)
    subprocess.run(["umount", str(disk)], check=True)
"""

READ_ONLY = """
mount("size=64m")
assert bnrepro("compare", "--variants=bn", "--seeds=1", "--jobs=1", *OVERRIDES, f"root={disk}")[0] == 0
before = {file: file.read_bytes() for file in disk.rglob("*") if file.is_file()}
remount("ro")
folder = next(compare.find(disk))
for arguments in (
    ["train", *OVERRIDES, "seed=1", f"root={disk}"],
    ["train", *OVERRIDES, "--force", f"root={disk}"],
    ["compare", "--variants=bn", "--seeds=1", "--jobs=1", *OVERRIDES, f"root={disk}"],
    ["figures", str(folder)],
    ["report", f"--out={disk}"],
):
    code, err = bnrepro(*arguments)
    assert code == 2, (arguments, code, err)
    assert err.strip().splitlines()[-1].startswith("Error: "), err
for arguments in (["train", *OVERRIDES, f"root={disk}"], ["runs", f"--root={disk}"], ["show", str(run_of(disk))]):
    assert bnrepro(*arguments)[0] == 0, arguments
assert {file: file.read_bytes() for file in disk.rglob("*") if file.is_file()} == before
"""


@pytest.mark.parametrize("script", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_disk_that_takes_nothing_costs_nothing(digits: Path, tmp_path: Path, script: str) -> None:
    command = [*NAMESPACE, sys.executable, "-c", COMMON + script, str(digits), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
