"""`bnrepro doctor`: what this installation runs on, whether it works, and what would make it faster."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnrepro.cli.options import DataRoot, Root
from bnrepro.cli.saying import Json, answer, say

NEEDED = (
    *("torch", "torchvision", "numpy", "scipy", "matplotlib", "hydra-core", "typer", "rich", "pydantic", "pyyaml"),
    *("tensorboard", "mlxtend", "submitit"),
)
LOADED_AS = {"hydra-core": "hydra", "pyyaml": "yaml"}
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")

Facts = dict[str, dict[str, Any]]


def doctor(root: Root = Path("runs"), data_root: DataRoot = None, as_json: Json = False) -> None:
    """Diagnose this installation.

    Versions, processor, memory, kernels, file locks, data and tools; what is wrong with them, and what would make
    training faster.
    """
    from bnrepro.system.text import terminal_width
    from bnrepro.system.text import wrapped as folded

    found, advice = examined(root, data_root or Path("data"))
    answer({**found, "advice": advice})
    for title, facts in found.items():
        say(title)
        for key, value in facts.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)
            say(folded(f"  {key:<21} {text}", terminal_width(), indent=24))
    say("advice")
    for line in advice or ["None."]:
        say(folded(f"  - {line}", terminal_width(), indent=4))


def examined(root: Path, data: Path) -> tuple[Facts, list[str]]:
    """The facts by title, and sentences of advice. What cannot be found out is a fact too, and stops nothing."""
    advice: list[str] = []
    parts: dict[str, Callable[[list[str]], dict[str, Any]]] = {
        "versions": _versions,
        "processor": _processor,
        "memory": _memory,
        "kernels": _kernels,
        "runs": lambda advice: _runs(root, advice),
        "data": lambda _: _data(data),
        "tools": _tools,
    }
    found = {}
    for title, part in parts.items():
        try:
            found[title] = part(advice)
        except Exception as error:  # a doctor whose patient is ill still reports the rest
            found[title] = {"unknown": f"{type(error).__name__}: {error}"}
            advice.append(f"{title}: {type(error).__name__}: {error}. Fix this first.")
    return found, advice


def _versions(advice: list[str]) -> dict[str, Any]:
    """Installed versions; where another one is loaded, both."""
    from importlib import import_module, metadata

    from bnrepro import __version__
    from bnrepro.runs.provenance import git_revision

    found = {"bnrepro": f"{__version__} in {Path(__file__).parents[1]}", "commit": git_revision() or "not a checkout"}
    found["python"] = f"{platform.python_version()} ({platform.platform()})"
    for name in NEEDED:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
            if name != "submitit":
                advice.append(f"{name} is not installed. pip install {name}")
            continue
        found[name] = installed
        try:
            module = import_module(LOADED_AS.get(name, name))
        except Exception as error:  # whatever an import runs into: it is a finding
            found[name] += f", and cannot be loaded ({type(error).__name__}: {error})"
            advice.append(f"{name} cannot be loaded. Reinstall it: pip install --force-reinstall {name}")
            continue
        loaded = str(getattr(module, "__version__", installed))
        if loaded.partition("+")[0] != installed.partition("+")[0]:
            found[name] += f", but {loaded} is loaded, from {getattr(module, '__file__', '?')}"
            advice.append(f"{name} {loaded} hides the installed {installed}: check PYTHONPATH and the current folder.")
    return found


def _processor(advice: list[str]) -> dict[str, Any]:
    import torch

    from bnrepro.config.schema import Device
    from bnrepro.runs.provenance import machine
    from bnrepro.system import cores
    from bnrepro.training.train import multiplies_in_bf16

    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    flags = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = multiplies_in_bf16(Device.cuda if gpus else Device.cpu)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    usable, threads = cores.cores(), torch.get_num_threads()
    if busy > usable + 0.5:
        advice.append(f"The machine is busy (load {busy:.1f} on {usable} cores): use fewer --jobs, or wait.")
    if threads > usable:
        advice.append(f"{threads} threads share {usable} cores: set OMP_NUM_THREADS={usable}.")
    if bf16:
        advice.append("precision=auto selects bf16 here, which is faster for convolutions.")
    return {
        "machine": machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags] or "unknown",
        "CPUs": os.cpu_count(),
        "allowed by affinity": len(cores.BOUND) if cores.BOUND else None,
        "allowed by quotas": sorted(cores.granted(Path("/"))) or "no quota",
        "allowed by environment": sorted(cores.allowed(os.environ)) or "no limit",
        "cores that are used": usable,
        "threads of torch": threads,
        "load": round(busy, 1),
        "GPUs": gpus or "none",
        "bf16 in hardware": "yes" if bf16 else "no",
    }


def _memory(advice: list[str]) -> dict[str, Any]:
    from bnrepro.system import cores, memory

    free = memory.free()
    fit, usable = memory.workers_that_fit(), cores.cores()
    if fit is not None and fit < usable:
        advice.append(f"The free memory holds {fit} worker processes, and there are {usable} cores: free some.")
    shm = Path("/dev/shm")
    return {
        "free": f"{free / 1e9:.1f} GB" if free else "unknown",
        "worker processes": fit,
        "/dev/shm": f"{shutil.disk_usage(shm).free / 1e9:.1f} GB free" if shm.is_dir() else "none",
    }


def _kernels(advice: list[str]) -> dict[str, Any]:
    """The compiler, OpenMP, and whether the norms' kernels work: they are built where they are not there."""
    import warnings

    import torch

    from bnrepro import norm as norms
    from bnrepro.norm import library, native

    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        norms.ConvBatchNorm2d(1, (2, 2))(torch.zeros(2, 1, 2, 2))
    if (arithmetic := native.arithmetic()) != "kernels":
        advice.append("Install a C++ compiler with OpenMP (on Debian: apt install g++): the norms are faster with it.")
    advice += [str(each.message) for each in told]
    folders = list(library.cache_folders())
    return {
        "compiler": compiler or "none",
        "OpenMP in torch": "yes" if torch.backends.openmp.is_available() else "no",
        "MKL, oneDNN": f"{torch.backends.mkl.is_available()}, {torch.backends.mkldnn.is_available()}",
        "arithmetic": arithmetic,
        "cache": [str(folder) for folder in folders] or "no safe folder",
        "cached libraries": len([file for folder in folders for file in folder.glob("*.so")]),
    }


def _runs(root: Path, advice: list[str]) -> dict[str, Any]:
    """Where runs lie: whether files can be made and locked there, how much room there is, and what is stored."""
    import errno
    from tempfile import TemporaryFile

    from bnrepro.runs.record import find_runs

    there = next(place for place in (root.absolute(), *root.absolute().parents) if place.is_dir())
    try:
        import fcntl

        with TemporaryFile(dir=there) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks = "work"
    except ImportError:
        locks = "none on this system"
    except OSError as error:
        locks = f"do not work ({error.strerror})"
        unwritable = error.errno in (errno.EACCES, errno.EROFS, errno.EPERM)
        advice.append(
            f"{there} cannot be written to: use another --root."
            if unwritable
            else f"{there} does not support file locks: do not run the same command twice at once there."
        )
    return {
        "folder": str(root.absolute()) if root.is_dir() else f"{root.absolute()} (not there yet)",
        "file locks": locks,
        "room": f"{shutil.disk_usage(there).free / 1e9:.1f} GB",
        "stored runs": sum(1 for _ in find_runs(root)),
    }


def _data(root: Path) -> dict[str, Any]:
    """Each dataset: whether it is there, and whether its pixels are the published ones."""
    from bnrepro.data import sources

    return {
        name: sources.state(name, root) if known.there(root) else f"not in {root}"
        for name, known in sources.DATASETS.items()
    }


def _tools(advice: list[str]) -> dict[str, Any]:
    import importlib.util

    from bnrepro.cli.completion import installed_for

    found = {"tensorboard": shutil.which("tensorboard") or "as a module: bnrepro tensorboard"}
    submit = shutil.which("sbatch")
    found["Slurm"] = submit or "no sbatch here: runs stay on this machine"
    if submit and importlib.util.find_spec("submitit") is None:
        advice.append("Slurm is here, but submitit is not: pip install 'bnrepro[slurm]'")
    found["torchrun"] = os.environ.get("TORCHELASTIC_RUN_ID") or "not started by it"
    found["completion"] = installed_for()
    return found
