"""How many worker processes memory holds, on machines that are made up of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnrepro.config import load_config
from bnrepro.launch import sweep
from bnrepro.system import memory
from bnrepro.system.memory import WORKER, workers_that_fit

V2, V1 = "0::/user/job\n", "9:name=systemd:/x\n4:memory:/docker/a\n"
PLENTY = 100 * WORKER
MACHINES: dict[str, tuple[int | None, str, dict[str, str], int | None]] = {
    "nothing is said": (None, "", {}, None),
    "room for three": (3 * WORKER + 5, "", {}, 3),
    "room for none": (WORKER // 2, V2, {}, 1),
    "no limit": (PLENTY, V2, {"user/job/memory.max": "max\n"}, 100),
    "a limit": (PLENTY, V2, {"user/job/memory.max": f"{4 * WORKER}\n", "user/job/memory.current": f"{WORKER}\n"}, 3),
    "of the one above": (
        PLENTY,
        V2,
        {"user/job/memory.max": "max", "user/memory.max": str(3 * WORKER), "user/memory.current": str(WORKER)},
        2,
    ),
    "used is not said": (PLENTY, V2, {"user/job/memory.max": str(2 * WORKER)}, 2),
    "more than all is used": (PLENTY, V2, {"memory.max": str(WORKER), "memory.current": str(2 * WORKER)}, 1),
    "version 1": (
        PLENTY,
        V1,
        {"memory/docker/a/memory.limit_in_bytes": str(5 * WORKER), "memory/docker/a/memory.usage_in_bytes": "0"},
        5,
    ),
    "version 1 without a limit": (PLENTY, V1, {"memory/docker/a/memory.limit_in_bytes": "9223372036854771712"}, 100),
    "nonsense": (PLENTY, V2, {"user/job/memory.max": "many"}, 100),
}


@pytest.mark.parametrize(("available", "cgroup", "files", "expected"), MACHINES.values(), ids=MACHINES)
def test_workers_are_as_many_as_memory_and_cgroups_hold(
    tmp_path: Path, available: int | None, cgroup: str, files: dict[str, str], expected: int | None
) -> None:
    written = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    written["proc/self/cgroup"] = cgroup
    if available is not None:
        written["proc/meminfo"] = f"MemTotal: 9 kB\nMemAvailable:   {available // 1024} kB\n"
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert workers_that_fit(tmp_path) == expected


def test_runs_at_a_time_are_bounded_by_cores_and_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(["device=cpu"])
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    for fit, jobs in ((3, 3), (20, 8), (None, 8)):
        monkeypatch.setattr(sweep, "workers_that_fit", lambda fit=fit: fit)
        assert sweep.default_jobs(cfg) == jobs
    assert memory.workers_that_fit() is None or memory.workers_that_fit() >= 1
