"""A real Slurm on this machine: one node, no accounting, as the user who runs the tests; up in about a second."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "setpriv")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port_a}
SlurmdPort={port_b}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# The second value is also how long a job that is queued again has to wait: 120 s if not said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
# No more than users ask for: a cluster may not queue jobs again unasked.
JobRequeue=0
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What a cluster needs and this machine lacks (Debian: apt-get install slurm-wlm munge)."""
    return [name for name in (*DAEMONS, *COMMANDS) if not _find(name)]


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """A cluster; yields the variables that Slurm's commands need. All its jobs and daemons end with it.

    Raises:
        RuntimeError: it does not come up; with the daemons' last words.
    """
    # Not pytest's folder: a socket's path has at most 107 characters, and munged wants no folder that others can write.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        port_a, port_b = _free_ports()
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        host = socket.gethostname()
        (folder / "slurm.conf").write_text(
            CONF.format(host=host, port_a=port_a, port_b=port_b, user=user, folder=folder)
        )
        env = {"SLURM_CONF": str(folder / "slurm.conf")}
        files = {f"--{name}={folder}/munge.{suffix}" for name, suffix in (("socket", "socket"), ("pid-file", "pid"))}
        files |= {f"--key-file={key}", f"--seed-file={folder}/munge.seed"}
        for name, options in (("munged", sorted(files)), ("slurmctld", ["-c"]), ("slurmd", [])):
            stack.enter_context(_daemon(name, options, folder, env))
            if name == "munged":
                _wait_for((folder / "munge.socket").exists, folder)
        _wait_for(lambda: "idle" in _ask("sinfo", "--noheader", "--format=%T", env=env), folder)
        stack.callback(_end_jobs, env)
        yield env


@contextmanager
def _daemon(name: str, options: list[str], folder: Path, env: dict[str, str]) -> Iterator[None]:
    """In the foreground, so that it is a child of ours and ends as one."""
    foreground = "--foreground" if name == "munged" else "-D"
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=TERM",
                str(_find(name)),
                foreground,
                *options,
            ],  # ends even if the tests are killed
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | env,
            start_new_session=True,  # Ctrl-C in the tests must not reach it before the jobs have ended
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_jobs(env: dict[str, str]) -> None:
    _ask("scancel", "--me", "--signal=KILL", env=env)
    _ask("scancel", "--me", env=env)
    with suppress(RuntimeError):
        _wait_for(lambda: not _ask("squeue", "--me", "--noheader", env=env), None)


def _ask(*command: str, env: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=30).stdout.strip()


def _wait_for(condition: object, folder: Path | None) -> None:
    assert callable(condition)
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            words = [log.read_text(errors="replace")[-1000:] for log in sorted(folder.glob("*.log"))] if folder else []
            raise RuntimeError("\n".join(["Slurm does not come up.", *words]))
        time.sleep(0.1)


def _free_ports() -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
