"""What a run's job asks a cluster for: ``configs/launcher`` and ``launcher.key=value``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

import yaml
from omegaconf import OmegaConf

from bnrepro.config.overrides import home, split, unquoted, value
from bnrepro.config.schema import configs_dir
from bnrepro.errors import UserError, first_line
from bnrepro.system.reading import hold, read_yaml


@dataclass
class Options:
    """``launcher``: what a run's job asks Slurm for."""

    partition: str | None = None
    """Partition (queue); null: the cluster's default."""
    time: int = 60
    """Minutes that a job may take. A run that needs longer is queued again and goes on from its checkpoint."""
    memory: str | None = None
    """Memory of a job, as sbatch takes it (4G); null: the cluster's default."""
    cpus: int = 1
    """CPUs of a job, and threads of its run. Results are bit-equal only for the same number of threads."""
    gpus: int = 0
    """GPUs of a job: 0, or 1 for a run on a GPU."""
    parallelism: int = 256
    """Jobs of an array that may run at the same time."""
    account: str | None = None
    """Account that is charged; null: the user's default."""
    qos: str | None = None
    """Quality of service; null: the default."""
    name: str = "bnrepro"
    """Name of the jobs: `squeue --name=bnrepro` shows them, `scancel --name=bnrepro` ends them."""
    setup: list[str] = field(default_factory=list)
    """Shell commands at the start of each job (module load ..., source .../activate)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More of sbatch's long options by name: {constraint: a100}."""
    logs: str | None = None
    """Folder of the jobs' logs and scripts, on a file system that the nodes share; null: `slurm` in the runs' root."""
    grace: int = 90
    """Seconds before the end of its time (Slurm's clock is coarse: up to 60 more) that a run begins to stop."""
    timeouts: int = 20
    """Times that a job that ran out of time is queued again."""
    poll: float = 10.0
    """Seconds between looks at the queue and the runs."""


def load_options(overrides: Sequence[str] = (), name: str = "slurm") -> Options:
    """The options in ``configs/launcher/<name>.yaml``, with overrides such as ``launcher.partition=gpu``.

    Raises:
        UserError: there is no such file, an unknown key, a wrong type, a value out of range.
    """
    folder = configs_dir() / "launcher"
    file = folder / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise UserError(f"There is no launcher {name!r}. Available: {there}.")
    given = [_parse(override) for override in overrides]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.create(read_yaml(file)))
        options = cast(Options, OmegaConf.to_object(merged))
    except Exception as error:  # yaml's and OmegaConf's: all say that these are not options
        known = ", ".join(Options.__dataclass_fields__)
        raise UserError(f"{file}: {first_line(error)}. The keys: {known}.") from error
    for key, found in given:
        key, _, name = key.partition(".")
        setattr(options, key, options.extra | {name: found} if name else found)
    return _check(options)


def _parse(override: str) -> tuple[str, Any]:
    """The key (``partition``, ``extra.constraint``) and the value of an override."""
    kinds = get_type_hints(Options)
    if extra := re.fullmatch(r"launcher\.(extra\.[\w-]+)=(.*)", override, re.DOTALL):
        return extra[1], unquoted(extra[2])
    key, text = split(override, [f"launcher.{name}" for name in kinds])
    name = key.removeprefix("launcher.")
    if name not in ("setup", "extra"):
        found = value(key, kinds[name], text)
        return name, home(key, found) if name == "logs" and found else found
    shape, example = {
        "setup": (list[str], "'launcher.setup=[module load python]'"),
        "extra": (dict[str, str | int | float | bool | None], "launcher.extra.constraint=a100"),
    }[name]
    try:
        found = yaml.safe_load(text)
        hold(found, shape, key)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"The override {override[:200]!r} is not understood. Write it as in {example}.") from error
    return name, found


def _check(options: Options) -> Options:
    rules = [
        ("time", 1 <= options.time < 2**31, "1 minute or more, and less than 2^31"),
        ("cpus", options.cpus >= 1, "1 or more"),
        ("gpus", options.gpus in (0, 1), "0 or 1: a run uses one"),
        ("parallelism", options.parallelism >= 1, "1 or more"),
        ("grace", 0 < options.grace < 60 * options.time, f"above 0 and below the job's {60 * options.time} seconds"),
        ("timeouts", options.timeouts >= 0, "0 or more"),
        ("poll", 0 < options.poll <= 86400, "above 0, and at most a day (86400)"),
    ]
    for key, text in (each for each in vars(options).items() if isinstance(each[1], str)):
        # It becomes a line of the batch script, where what follows a line break would be a command.
        rules.append((key, bool(text.strip()) and text.isprintable(), "a non-empty single line"))
    for key, holds, wanted in rules:
        if not holds:
            raise UserError(f"launcher.{key} must be {wanted}; got {getattr(options, key)}.")
    return options
