"""`load_config`, what makes a configuration valid, and a run's identity. Knows Hydra, not torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, fields, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bnrepro import own_code, stored, user_files
from bnrepro.errors import UserError as UserError
from bnrepro.errors import first_line
from bnrepro.overrides import FILES, NAMES, PATHS, check_path, groups, home, keys, parse, written
from bnrepro.schema import Config, Model, Source, TrainOnly
from bnrepro.schema import configs_dir as configs_dir

WHERE_NOT_WHAT = ("root", "tensorboard", "data.root", "data.path", "norm.file", "model.file")
"""Keys that change where things lie, and no number. Archives and files of code count by their content instead."""

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
"""Keys that came after the first runs had been published: `earlier_hash` does not count them at their default."""

MOST_RUNS = 10_000
"""Runs of one sweep or comparison."""


def load_config(overrides: list[str] | None = None) -> Config:
    """The configuration that ``configs/`` and overrides (``optimizer.lr=0.1``, ``data=cifar10``) give.

    A group is chosen before keys are set, whatever their order; of a key that is set twice, the last value counts.

    Raises:
        UserError: an unknown key or group, a wrong type, a value out of range, an archive without a name.
    """
    given = dict(map(parse, overrides or []))
    for key, file in FILES.items():
        if named := user_files.parse(given.get(key, "")):
            given |= {key: named.name, file: str(named.file)}
    chosen = {key: name for key, name in given.items() if key in groups()}
    cfg = deepcopy(_composed(tuple(sorted(chosen.items()))))
    for key, value in given.items():
        if key not in chosen:
            *path, last = key.split(".")
            setattr(reduce(getattr, path, cfg), last, value)
    check(cfg)
    if cfg.data.path is not None and not given.keys() & {"data", "data.name"}:
        # It would count as the dataset that configs/config.yaml names. What its file is called must not count.
        name = re.sub(r"[^A-Za-z0-9_]", "_", Path(cfg.data.path).stem)[:100] or "flowers"
        raise UserError(f"data.path={cfg.data.path[:200]}: give the data a name too, as in data.name={name}.")
    return cfg


@cache
def _composed(chosen: tuple[tuple[str, str], ...]) -> Config:
    """The configuration composed from the chosen group members. Cached, as Hydra takes a tenth of a second."""
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
    except (OSError, MemoryError) as error:
        raise unreadable(file, error) from error
    except Exception as error:  # yaml's, OmegaConf's and decoding errors: all say that this is not a configuration
        raise UserError(
            f"{file} is damaged, or not a run's configuration ({first_line(error)}). Train the run again with --force."
        ) from error


LARGEST_FLOAT = 3.4e38  # float32 has none above, and torch raises errors of its own


def check(cfg: Config) -> Config:
    """``cfg`` itself, if its values make sense.

    Raises:
        UserError: naming the first key that does not.
    """
    values = dict(leaves(asdict(cfg)))
    for key in NAMES:
        # These become folder names: nothing that could climb out of the root.
        name = values[key]
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", name):
            raise UserError(f"{key} must be a name of at most 100 letters, digits and underscores; got {name[:200]!r}.")
    for key in PATHS:
        check_path(key, values[key], "Write the path of an .npz archive." if key == "data.path" else "")
    if cfg.model.file is not None:
        for each in fields(Model):
            if each.name not in ("name", "file") and getattr(cfg.model, each.name) != getattr(Model(), each.name):
                raise UserError(
                    f"model.{each.name} is not used by a network of your own ({cfg.model.file}). Leave it out."
                )
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
    floats = [(key, v) for key, v in values.items() if isinstance(v, float)]
    finite = [(key, v, abs(v) <= LARGEST_FLOAT, f"a finite number of at most {LARGEST_FLOAT:g}") for key, v in floats]
    moderate = [(key, v, abs(v) < 2**63, "between -2^63 and 2^63") for key, v in values.items() if isinstance(v, int)]
    for key, value, holds, wanted in [*finite, *moderate, *rules]:
        if not holds:
            raise UserError(f"{key} must be {wanted}; got {value}.")
    return cfg


def to_dict(cfg: Config) -> dict[str, Any]:
    """``cfg`` as plain dicts, lists, strings and numbers (enums by name)."""
    return deepcopy(_shared_dict(cfg))


def _shared_dict(cfg: Config) -> dict[str, Any]:
    """`to_dict`, to be read only."""
    text = repr(cfg)
    if text not in _dicts:
        _dicts[text] = cast(dict[str, Any], OmegaConf.to_container(_plain(cfg), enum_to_str=True))
    return _dicts[text]


_dicts: dict[str, dict[str, Any]] = {}
"""By the configuration's text: OmegaConf takes 10 ms for one, and hundreds of runs ask for theirs many times."""


def command(cfg: Config, *flags: str) -> str:
    """The command that trains ``cfg``, with every value that differs from the defaults."""
    return shlex.join(["bnrepro", "train", *flags, *(written(*pair) for pair in differing(cfg).items())])


def differing(cfg: Config) -> dict[str, Any]:
    """The values of ``cfg`` that a command has to say, by dotted key."""
    here, defaults = (dict(leaves(_shared_dict(each))) for each in (cfg, load_config()))
    # An archive needs a name even where it is the default.
    said = {"data.name"} if cfg.data.path is not None else set()
    return {key: here[key] for key in keys() if here[key] != defaults[key] or key in said}


def to_yaml(cfg: Config) -> str:
    """``cfg`` in full, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


def _plain(cfg: Config) -> DictConfig:
    return OmegaConf.structured(cfg)


def identity(cfg: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of ``cfg`` that affect the result and differ from their defaults, keyed by dotted name.

    Defaults are omitted so that adding a key to the schema does not rename existing runs. An archive is identified by
    its ``content``, and a norm that is not part of the package by its ``code`` (`own_code.fingerprint`).

    Args:
        cfg: the run.
        without: keys to omit.

    Raises:
        UserError: `data.path` cannot be read.
    """
    values, left_out = dict(leaves(_shared_dict(cfg))), {*WHERE_NOT_WHAT, *without}
    counted = {key: v for key, v in values.items() if key not in left_out and v != _defaults()[key]}
    if cfg.data.path is not None:
        counted["content"] = content_hash(Path(cfg.data.path))
    if "variant" not in without:
        if cfg.norm.file is not None:
            counted["norm.code"] = user_files.digest(Path(cfg.norm.file))
        elif norm := _own_norm(cfg.variant):
            counted["code"] = own_code.fingerprint(norm)
    if cfg.model.file is not None:
        counted["model.code"] = user_files.digest(Path(cfg.model.file))
    return counted


def with_variant(cfg: Config, variant: str) -> Config:
    """``cfg`` with another norm: a name, or ``FILE.py:NAME``."""
    named = user_files.parse(variant)
    file = None if named is None else str(named.file)
    return replace(cfg, variant=variant if named is None else named.name, norm=replace(cfg.norm, file=file))


def config_hash(cfg: Config, without: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits over `identity`."""
    return digits_of(identity(cfg, without))


def digits_of(value: Any) -> str:
    """16 hexadecimal digits over ``value``, which JSON has a word for."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(stored_values: dict[str, Any], cfg: Config) -> list[str]:
    """The differences between a stored configuration and ``cfg``, one phrase per key; missing keys are defaults.

    Raises:
        ValueError: it has not the shape of a configuration.
    """
    there = {**_defaults(), **dict(leaves(stored_values))}
    wanted = [(key, value) for key, value in leaves(_shared_dict(cfg)) if key not in WHERE_NOT_WHAT]
    return [f"{key} is {there[key]} there and {value} here" for key, value in wanted if there[key] != value]


def check_same(directory: Path, cfg: Config, damaged: bool = False) -> None:
    """Check that ``directory`` is free for the run of ``cfg``: it does not exist, or holds that run.

    Args:
        directory: directory of the run.
        cfg: expected configuration.
        damaged: whether to accept a damaged configuration.

    Raises:
        UserError: the directory holds a different run, or its configuration cannot be read.
    """
    there = next((parent for parent in directory.parents if os.path.lexists(parent)), Path())
    if not there.is_dir():
        kind = "a link that leads nowhere" if there.is_symlink() else "no folder"
        raise UserError(f"{there} is {kind}, and {directory} cannot be made. Remove it, or use another root.")
    try:
        unlike = differences(_stored_values(directory / "config.yaml"), cfg)
    except FileNotFoundError:
        return
    except (OSError, MemoryError) as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise UserError(
                f"root={cfg.root}: the path of a run in it is too long for this file system. Use a shorter root."
            ) from error
        raise unreadable(directory / "config.yaml", error) from error
    except ValueError as error:
        if damaged:
            return
        raise UserError(f"{directory / 'config.yaml'} is damaged ({error}). Run it again with --force.") from error
    if unlike:
        raise UserError(
            f"{directory} holds another run: {', '.join(unlike[:3])}. Move that folder away, or use another root."
        )


def check_yaml(text: Any, cfg: Config) -> None:
    """Check that ``text``, the configuration stored in a checkpoint (see `to_yaml`), describes the run of ``cfg``.

    Raises:
        UserError: it describes a different run, or is not a configuration.
    """
    try:
        unlike = differences(_values(str(text)), cfg)
    except ValueError:
        unlike = ["it has no configuration"]
    if unlike:
        raise UserError(f"The checkpoint is another run's: {', '.join(unlike[:3])}. Start over with --force.")


def _stored_values(file: Path) -> dict[str, Any]:
    return _values(stored.read_yaml(file))


def _values(text: str) -> dict[str, Any]:
    try:
        found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    if not isinstance(found, dict) or not {"data", "model"} <= found.keys():
        raise ValueError("it is not a configuration of a run")
    return found


def unreadable(file: Path, error: OSError | MemoryError) -> UserError:
    """The error for a file that cannot be read at the moment. It may be intact, so nothing is changed."""
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return UserError(f"The path {str(file)[:300]} is too long for this file system. Use a shorter one.")
    reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
    return UserError(f"{file} cannot be read ({reason}). It was left as it is. Fix this, then run the command again.")


def no_archive(file: Path, error: OSError | MemoryError, what: str = "data.path") -> UserError:
    """The error for an archive that cannot be read; ``what`` is the key or option that names it."""
    file = Path(str(file)[:300])
    if isinstance(error, FileNotFoundError):
        return UserError(f"{what}: {file} does not exist. Give the path of an .npz archive.")
    if isinstance(error, OSError) and not error.errno:  # `stored.plain_size`
        return UserError(f"{what}: {file} is not a plain file but a folder, pipe or device. Give an archive's path.")
    return UserError(f"{what}: {unreadable(file, error)}")


def _own_norm(variant: str) -> Any:
    """The entry ``variant`` of NORMS if it was added or replaced by the user; None if it is the package's own.

    Whoever did that has imported the table; this module does not, since it knows nothing of torch.
    """
    table = sys.modules.get("bnrepro.norm.table")
    norm = getattr(table, "NORMS", {}).get(variant)
    return None if norm is getattr(table, "SHIPPED", {}).get(variant) else norm


@cache
def _defaults() -> dict[str, Any]:
    return dict(leaves(to_dict(Config())))


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, by dotted key."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def what(cfg: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """``cfg`` as nested dicts, without the keys that do not affect results and those in ``without``.

    Raises:
        UserError: `data.path` cannot be read.
    """
    values = to_dict(cfg)
    for key in {*WHERE_NOT_WHAT, *without}:
        *groups, last = key.split(".")
        reduce(lambda node, group: node[group], groups, values).pop(last, None)
    if cfg.data.path is not None:
        values["data"]["content"] = content_hash(Path(cfg.data.path))
    if cfg.norm.file is not None and "variant" not in without:
        values["norm"]["code"] = user_files.digest(Path(cfg.norm.file))
    if cfg.model.file is not None:
        values["model"]["code"] = user_files.digest(Path(cfg.model.file))
    return values


def earlier_hash(cfg: Config) -> str:
    """The 8-digit hash used up to version 0.1, over all keys except those in LATER that have their default."""
    values = dict(leaves(_shared_dict(cfg)))
    as_ever = tuple(key for key in LATER if values[key] == _defaults()[key])
    return hashlib.sha256(json.dumps(what(cfg, as_ever), sort_keys=True).encode()).hexdigest()[:8]


def content_hash(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: the file is missing or unreadable.
    """
    try:
        size = stored.plain_size(file)
        return _content_hash(file, size, file.stat().st_mtime_ns)
    except (OSError, MemoryError) as error:
        raise no_archive(file, error) from error


@cache
def _content_hash(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def group_dir(cfg: Config) -> Path:
    """``<root>/<dataset>/<model>``, where the runs that can be compared lie side by side."""
    return Path(cfg.root) / cfg.data.name / cfg.model.name


def run_dir(cfg: Config) -> Path:
    """``<root>/<dataset>/<model>/<variant>/seed<k>-<hash>``; a run with the short hash of earlier versions keeps it.

    Raises:
        UserError: what lies under the earlier name cannot be read.
    """
    folder = group_dir(cfg) / cfg.variant
    path = folder / f"seed{cfg.seed}-{config_hash(cfg)}"
    if not os.path.lexists(folder) or os.path.lexists(path):  # not Path's, which raise where nothing can be looked at
        return path
    earlier = folder / f"seed{cfg.seed}-{earlier_hash(cfg)}"
    return earlier if _is_earlier(earlier, cfg) else path


def _is_earlier(directory: Path, cfg: Config) -> bool:
    """Whether ``directory`` is the run of ``cfg``, or its queued job, created by an earlier version."""
    if _own_norm(cfg.variant):
        return False  # nobody knows with which code it was made
    try:
        return not differences(_stored_values(directory / "config.yaml"), cfg)
    except (FileNotFoundError, NotADirectoryError):
        return directory.with_name(f"{directory.name}.job").is_file()
    except (OSError, MemoryError) as error:
        raise unreadable(directory / "config.yaml", error) from error
    except ValueError:
        return True  # damaged: whoever opens the run says so
