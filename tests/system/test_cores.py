"""How many cores a process may use, on machines that are made up of files, and what worker processes need."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnrepro.system import cores as counting
from tests.conftest import TINY, changed

V2 = "0::/user.slice/job.scope\n"
V1 = "9:name=systemd:/x\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n"
HYBRID = "2:cpu,cpuacct:/a\n0::/a\n"
MACHINES = {
    "no cgroups": ("", {}, []),
    "no quota": (V2, {"user.slice/job.scope/cpu.max": "max 100000\n"}, []),
    "two CPUs": (V2, {"user.slice/job.scope/cpu.max": "200000 100000\n"}, [2]),
    "half a CPU": (V2, {"user.slice/job.scope/cpu.max": "50000 100000"}, [1]),
    "one and a half": (V2, {"user.slice/job.scope/cpu.max": "150000 100000"}, [2]),
    "another period": (V2, {"user.slice/job.scope/cpu.max": "30000 10000"}, [3]),
    "period not said": (V2, {"user.slice/job.scope/cpu.max": "300000"}, [3]),
    "of the one above": (
        V2,
        {"user.slice/job.scope/cpu.max": "max 100000", "user.slice/cpu.max": "400000 100000"},
        [4],
    ),
    "nested": (V2, {"user.slice/job.scope/cpu.max": "800000 100000", "user.slice/cpu.max": "300000 100000"}, [8, 3]),
    "a container's own root": ("0::/\n", {"cpu.max": "200000 100000"}, [2]),
    "a container and the host's path": ("0::/kubepods/pod1/abc\n", {"cpu.max": "200000 100000"}, [2]),
    "path above the root": ("0::/../../other\n", {"cpu.max": "200000 100000"}, [2]),
    "nonsense": (V2, {"user.slice/job.scope/cpu.max": "many few", "user.slice/cpu.max": "100 0", "cpu.max": ""}, []),
    "version 1": (
        V1,
        {"cpu/docker/abc/cpu.cfs_quota_us": "200000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"},
        [2],
    ),
    "version 1, both controllers in one": (
        V1,
        {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        [3],
    ),
    "version 1, no quota": (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
    "version 1 in version 2": (
        HYBRID,
        {"cpu/a/cpu.cfs_quota_us": "500000", "cpu/a/cpu.cfs_period_us": "100000", "unified/a/cpu.max": "max 100000"},
        [5],
    ),
    "not a table": ("hello\n::\n:::\n\xff", {}, []),
}


@pytest.mark.parametrize(("own", "files", "found"), MACHINES.values(), ids=MACHINES)
def test_quotas_of_cgroups_count(tmp_path: Path, own: str, files: dict[str, str], found: list[int]) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(own, encoding="latin1")
    for name, text in files.items():
        file = tmp_path / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert list(counting.granted(tmp_path)) == found


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, []),
        ({"PYTHON_CPU_COUNT": "3"}, [3]),
        ({"PYTHON_CPU_COUNT": "default", "LOKY_MAX_CPU_COUNT": "0"}, []),
        ({"LOKY_MAX_CPU_COUNT": "5"}, [5]),
        ({"OMP_THREAD_LIMIT": "2"}, [2]),
        ({"SLURM_CPUS_PER_TASK": "4"}, []),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8", "SLURM_JOB_ID": "1"}, [4, 8]),
        ({"SLURM_CPUS_PER_TASK": "-1", "LOKY_MAX_CPU_COUNT": "two"}, []),
    ],
)
def test_environment_may_allow_fewer(environment: dict[str, str], found: list[int]) -> None:
    assert list(counting.allowed(environment)) == found


def test_the_least_of_all_limits_counts_and_one_core_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BOUND", frozenset(range(64)))
    monkeypatch.setattr(counting, "allowed", lambda _: iter([16]))
    monkeypatch.setattr(counting, "granted", lambda _: iter([2, 8]))
    assert counting.cores() == 2
    monkeypatch.setattr(counting, "granted", lambda _: iter([0]))
    assert counting.cores() == 1


@pytest.mark.parametrize(
    ("environment", "wanted", "set_to", "said"),
    [
        ({}, None, None, ""),
        ({}, 4, 4, ""),
        ({"OMP_THREAD_LIMIT": "4"}, None, None, ""),
        ({"OMP_THREAD_LIMIT": "2"}, None, 2, ""),
        ({"OMP_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "4"}, None, 1, "OMP_THREAD_LIMIT=1 allows fewer than 4 threads"),
        ({"OMP_THREAD_LIMIT": "2"}, 3, 2, "OMP_THREAD_LIMIT=2 allows fewer than 3 threads: 2 are used."),
        ({"OMP_THREAD_LIMIT": "none"}, 3, 3, ""),
    ],
)
def test_threads_stay_within_the_limit_of_openmp(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    wanted: int | None,
    set_to: int | None,
    said: str,
) -> None:
    for name in ("OMP_THREAD_LIMIT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    taken: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    counting.use_threads(wanted)
    assert taken == ([] if set_to is None else [set_to])
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert told.count("\n") == bool(said)


@pytest.mark.slow
def test_training_under_a_limit_of_threads_does_not_wait_for_those_that_openmp_does_not_start(
    tmp_path: Path, digits: Path
) -> None:
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(counting.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-m", "bnrepro", "train", *changed(TINY, "epochs=1"), f"data.path={digits}"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "OMP_THREAD_LIMIT=1 allows fewer than 2 threads: 1 is used." in done.stderr) == (0, True)


BINDS = """
import os
from bnrepro.launch import parallel
def work(item, share):
    return len(os.sched_getaffinity(0)), parallel.cores()
if __name__ == "__main__":
    print(parallel.cores())
    if JOBS:
        print(*parallel.map_all(work, range(JOBS), JOBS, lambda item: None))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("jobs", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torch_that_binds_its_thread_changes_neither_the_count_nor_the_workers(tmp_path: Path, jobs: int) -> None:
    there, count = len(os.sched_getaffinity(0)), counting.cores()
    (tmp_path / "binds.py").write_text(BINDS.replace("JOBS", str(jobs)))
    environment = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(counting.__file__).parents[1]), *sys.path])
    command = [sys.executable, str(tmp_path / "binds.py")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.splitlines() == [str(count), *([f"({there}, {count}) ({there}, {count})"] if jobs else [])]


@pytest.mark.slow
def test_worker_processes_need_no_semaphores(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], digits: Path
) -> None:
    """A container may have no writable /dev/shm."""

    def none(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", none)
    assert call("sweep", "seed=0,1", *changed(TINY, "epochs=1"), f"data.path={digits}", "--jobs=2").code == 0


def test_cores_that_others_keep_busy_are_told_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BOUND", frozenset({0, 2}))
    monkeypatch.setattr(counting, "cores", lambda: 2)
    clock = iter([10.0, 20.0, 20.0])
    monkeypatch.setattr(counting.time, "monotonic", lambda: next(clock))
    ticks, stat = os.sysconf("SC_CLK_TCK"), tmp_path / "proc" / "stat"
    stat.parent.mkdir()

    def busy(each: dict[int, int]) -> None:
        stat.write_text("cpu 9 9 9 9\n" + "".join(f"cpu{n} {s * ticks} 0 0 7\n" for n, s in each.items()) + "intr 1\n")

    busy({0: 100, 1: 100, 2: 100})
    others = counting.CrowdedCores(tmp_path)
    monkeypatch.setattr(counting.os, "times", lambda: (others.started[2] + 6.0, 0.0, 0.0, 0.0, 0.0))
    busy({0: 106, 1: 200, 2: 110})
    assert others.by_others() == pytest.approx((16 - 6) / 10)
    stat.write_text("")
    assert others.by_others() == counting.CrowdedCores(tmp_path / "nowhere").by_others() == 0
    assert counting.crowded(1.0, 1) is counting.crowded(0.2, 2) is None
    assert "about 1 of the 2 cores" in counting.crowded(1.0, 2)
    assert "OMP_NUM_THREADS=1 " in counting.crowded(1.0, 2)
    monkeypatch.setattr(counting, "cores", lambda: 8)
    assert counting.crowded(3.0, 4) is None
    assert "OMP_NUM_THREADS=5 " in counting.crowded(3.0, 8)
