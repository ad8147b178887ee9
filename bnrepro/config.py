"""`load_config`, what makes a configuration valid, and a run's identity. Knows Hydra, not torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import cache, reduce
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bnrepro import stored
from bnrepro.errors import UserError as UserError
from bnrepro.errors import first_line
from bnrepro.overrides import NAMES, PATHS, check_path, groups, home, keys, parse, written
from bnrepro.schema import Config, Source, TrainOnly
from bnrepro.schema import configs_dir as configs_dir

WHERE_NOT_WHAT = ("root", "tensorboard", "data.root", "data.path")
"""Keys that change where things lie, and no number. An archive counts by its content instead (`content_hash`)."""

LATER = (
    "data.rotate",
    "data.brightness",
    "data.samplewise",
    "data.binarize",
    "data.together",
    "data.shade",
    "data.shade_batches",
    "data.shade_test",
    "model.depth",
    "model.keep_bias",
    "norm.gamma",
    "norm.ghost_size",
    "norm.kernel_size",
    "optimizer.eps",
    "optimizer.train_only",
)
"""Keys that came after runs had been published: at their default they are not counted, so that those keep their names.
"""


def load_config(overrides: list[str] | None = None) -> Config:
    """The configuration that ``configs/`` and overrides (``optimizer.lr=0.1``, ``data=cifar10``) give.

    A group is chosen before keys are set, whatever their order; of a key that is set twice, the last value counts.

    Raises:
        UserError: an unknown key or group, a wrong type, a value out of range.
    """
    given = dict(map(parse, overrides or []))
    chosen = {key: name for key, name in given.items() if key in groups()}
    cfg = deepcopy(_composed(tuple(sorted(chosen.items()))))
    for key, value in given.items():
        if key not in chosen:
            *path, last = key.split(".")
            setattr(reduce(getattr, path, cfg), last, value)
    return check(cfg)


@cache
def _composed(chosen: tuple[tuple[str, str], ...]) -> Config:
    """What ``configs/`` says of the chosen members of its groups. Hydra takes a tenth of a second for it."""
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_dir()), version_base="1.3"):
            composed = compose("config", overrides=[f"{group}={name}" for group, name in chosen])
        return cast(Config, OmegaConf.to_object(composed))
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise UserError(
            f"The files in {configs_dir()} do not fit the schema ({first_line(error)}). Undo what was changed in them."
        ) from error


def read_config(file: Path) -> Config:
    """A stored ``config.yaml`` as a `Config`; keys that it lacks take their default.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        found = OmegaConf.create(stored.read_yaml(file))
        cfg = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), found)))
        cfg.root, cfg.data.root = home("root", cfg.root), home("data.root", cfg.data.root)
        cfg.data.path = cfg.data.path and home("data.path", cfg.data.path)
        return check(cfg)
    except FileNotFoundError as error:
        raise UserError(f"There is no configuration {file}.") from error
    except Exception as error:  # yaml's, OmegaConf's and decoding errors: all say that this is not a configuration
        raise UserError(f"{file} is not a configuration of a run: {first_line(error)}") from error


def check(cfg: Config) -> Config:
    """``cfg`` itself, if its values make sense.

    Raises:
        UserError: naming the first key that does not.
    """
    values = asdict(cfg)
    for key in NAMES:
        # These become folder names: nothing that could climb out of the root.
        name = _value(values, key)
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", name):
            raise UserError(f"{key} must be a name of at most 100 letters, digits and underscores; got {name[:200]!r}.")
    for key in PATHS:
        check_path(key, _value(values, key))
    if cfg.data.path is None and cfg.data.source is Source.npz:
        raise UserError("data.source=npz needs the archive's file. Write data.path=FILE too.")
    if cfg.data.path is not None and cfg.data.source is not Source.npz:
        raise UserError(f"data.path={cfg.data.path} is an archive's file. Write data.source=npz too.")
    rules = [
        ("seed", cfg.seed, 0 <= cfg.seed < 2**63, "0 or more, and less than 2^63"),
        ("epochs", cfg.epochs, cfg.epochs >= 1, "1 or more"),
        ("batch_size", cfg.batch_size, cfg.batch_size >= 1, "1 or more"),
        ("eval_every", cfg.eval_every, cfg.eval_every is None or cfg.eval_every >= 1, "1 or more, or null"),
        ("optimizer.lr", cfg.optimizer.lr, cfg.optimizer.lr > 0, "above 0"),
        ("optimizer.momentum", cfg.optimizer.momentum, 0 <= cfg.optimizer.momentum < 1, "in [0, 1)"),
        ("optimizer.beta1", cfg.optimizer.beta1, 0 <= cfg.optimizer.beta1 < 1, "in [0, 1)"),
        ("optimizer.beta2", cfg.optimizer.beta2, 0 <= cfg.optimizer.beta2 < 1, "in [0, 1)"),
        ("optimizer.eps", cfg.optimizer.eps, cfg.optimizer.eps > 0, "above 0"),
        ("optimizer.weight_decay", cfg.optimizer.weight_decay, cfg.optimizer.weight_decay >= 0, "0 or more"),
        (
            "optimizer.nesterov",
            cfg.optimizer.nesterov,
            not cfg.optimizer.nesterov or cfg.optimizer.momentum > 0,
            "false where optimizer.momentum is 0",
        ),
        ("schedule.warmup_epochs", cfg.schedule.warmup_epochs, cfg.schedule.warmup_epochs >= 0, "0 or more"),
        (
            "schedule.milestones",
            cfg.schedule.milestones,
            all(0 < m < 1 for m in cfg.schedule.milestones),
            "fractions of the run, between 0 and 1",
        ),
        ("schedule.gamma", cfg.schedule.gamma, cfg.schedule.gamma > 0, "above 0"),
        (
            "optimizer.train_only",
            cfg.optimizer.train_only.value,
            cfg.optimizer.train_only is not TrainOnly.random or cfg.optimizer.weight_decay == 0,
            "another than random where there is weight decay, which moves what has no gradient",
        ),
        ("data.val_fraction", cfg.data.val_fraction, 0 <= cfg.data.val_fraction < 1, "in [0, 1)"),
        ("data.crop", cfg.data.crop, 0 <= cfg.data.crop <= 1000, "0 to 1000 pixels"),
        ("data.rotate", cfg.data.rotate, 0 <= cfg.data.rotate <= 180, "in [0, 180]"),
        ("data.brightness", cfg.data.brightness, 0 <= cfg.data.brightness <= 1, "in [0, 1]"),
        (
            "data.binarize",
            cfg.data.binarize,
            not (cfg.data.binarize and cfg.data.samplewise),
            "false where data.samplewise is set: images of zeros and ones are not normalised",
        ),
        ("data.together", cfg.data.together, cfg.data.together >= 0, "0 or more"),
        ("data.shade", cfg.data.shade, cfg.data.shade >= 0, "0 or more"),
        (
            "data.shade_batches",
            cfg.data.shade_batches,
            not cfg.data.shade_batches or cfg.data.shade < 1,
            "false where data.shade is not below 1: factors are drawn between data.shade and 1",
        ),
        ("data.shade_test", cfg.data.shade_test, (cfg.data.shade_test or 0) >= 0, "0 or more, or null"),
        ("model.width", cfg.model.width, 0 < cfg.model.width <= 1000, "above 0, and at most 1000"),
        (
            "model.depth",
            cfg.model.depth,
            cfg.model.depth is None or (1 <= cfg.model.depth <= 1000 and cfg.model.name in ("paper_mlp", "resnet20")),
            "1 to 1000, with model=paper_mlp or model=resnet20, or null",
        ),
        ("model.dropout", cfg.model.dropout, 0 <= cfg.model.dropout < 1, "in [0, 1)"),
        ("model.init_std", cfg.model.init_std, cfg.model.init_std > 0, "above 0"),
        ("norm.eps", cfg.norm.eps, cfg.norm.eps is None or cfg.norm.eps > 0, "above 0, or null"),
        (
            "norm.momentum",
            cfg.norm.momentum,
            cfg.norm.momentum is None or 0 <= cfg.norm.momentum <= 1,
            "in [0, 1], or null",
        ),
        (
            "norm.kernel_size",
            cfg.norm.kernel_size,
            cfg.norm.kernel_size is None or cfg.norm.kernel_size >= 1,
            "1 or more, or null",
        ),
        (
            "norm.ghost_size",
            cfg.norm.ghost_size,
            cfg.norm.ghost_size is None or cfg.norm.ghost_size >= 1,
            "1 or more, or null",
        ),
    ]
    finite = [(key, value, math.isfinite(value), "a finite number") for key, value in _numbers(values, float)]
    moderate = [(key, value, abs(value) < 2**63, "between -2^63 and 2^63") for key, value in _numbers(values, int)]
    for key, value, holds, wanted in [*finite, *moderate, *rules]:
        if not holds:
            raise UserError(f"{key} must be {wanted}; got {value}.")
    return cfg


def _numbers(node: dict[str, Any], kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of all numbers of a kind, with their values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _numbers(value, kind, f"{prefix}{key}.")
        elif isinstance(value, kind):
            yield f"{prefix}{key}", value


def to_dict(cfg: Config) -> dict[str, Any]:
    """``cfg`` as plain dicts, lists, strings and numbers (enums by name)."""
    text = repr(cfg)
    if text not in _dicts:
        _dicts[text] = cast(dict[str, Any], OmegaConf.to_container(_plain(cfg), enum_to_str=True))
    return deepcopy(_dicts[text])


_dicts: dict[str, dict[str, Any]] = {}
"""By the configuration's text: OmegaConf takes 10 ms for one, and hundreds of runs ask for theirs many times."""


def command(cfg: Config, *flags: str) -> str:
    """What is typed to train ``cfg``: all that differs from the defaults."""
    here, defaults = to_dict(cfg), to_dict(load_config())
    differing = [key for key in keys() if _value(here, key) != _value(defaults, key)]
    return shlex.join(["bnrepro", "train", *flags, *(written(key, _value(here, key)) for key in differing)])


def to_yaml(cfg: Config) -> str:
    """``cfg`` in full, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


def _plain(cfg: Config) -> DictConfig:
    return OmegaConf.structured(cfg)


def identity(cfg: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything in ``cfg`` that changes the result, less the keys in ``without``.

    Raises:
        UserError: `data.path` cannot be read.
    """
    counted = to_dict(cfg)
    as_ever = [key for key in LATER if _value(counted, key) == _value(_defaults(), key)]
    for key in {*WHERE_NOT_WHAT, *as_ever, *without}:
        group, _, last = key.rpartition(".")
        (_value(counted, group) if group else counted).pop(last)
    if cfg.data.path is not None:
        counted["data"]["content"] = content_hash(Path(cfg.data.path))
    return counted


@cache
def _defaults() -> dict[str, Any]:
    return to_dict(Config())


def _value(node: dict[str, Any], key: str) -> Any:
    """What stands in nested dicts at a dotted key."""
    for part in key.split("."):
        node = node[part]
    return node


def config_hash(cfg: Config, without: tuple[str, ...] = ()) -> str:
    """Eight hexadecimal digits over `identity`."""
    text = json.dumps(identity(cfg, without), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def content_hash(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: the file is missing or unreadable.
    """
    try:
        size = stored.plain_size(file)
        return _content_hash(file, size, file.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"data.path: cannot read {file} ({error.strerror}). Give the path of an .npz archive."
        ) from error


@cache
def _content_hash(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def group_dir(cfg: Config) -> Path:
    """``<root>/<dataset>/<model>``, where the runs that can be compared lie side by side."""
    return Path(cfg.root) / cfg.data.name / cfg.model.name


def run_dir(cfg: Config) -> Path:
    """``<root>/<dataset>/<model>/<variant>/seed<k>-<hash>``."""
    return group_dir(cfg) / cfg.variant / f"seed{cfg.seed}-{config_hash(cfg)}"
