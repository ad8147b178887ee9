"""A run's identity: what of its configuration counts, its hash, its directory, and whether a stored run is the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from copy import deepcopy
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

from bnrepro.config import own_code, user_files
from bnrepro.config.loading import WHERE_NOT_WHAT, _defaults, _shared_dict, leaves, unreadable
from bnrepro.config.schema import Config, in_channels_last
from bnrepro.errors import UserError, no_folder
from bnrepro.system import reading as stored

LATER = (
    "data.rotate",
    "data.brightness",
    "data.samplewise",
    "data.binarize",
    "data.together",
    "data.shade",
    "data.shade_batches",
    "data.shade_test",
    "data.train_images",
    "label_smoothing",
    "model.depth",
    "model.keep_bias",
    "norm.gamma",
    "norm.ghost_size",
    "norm.kernel_size",
    "optimizer.eps",
    "optimizer.train_only",
)
"""Keys that came after the first runs had been published: `earlier_hash` does not count them at their default."""


def identity_of(cfg: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of ``cfg`` that affect the result and differ from their defaults, keyed by dotted name.

    Defaults are omitted so that adding a key to the schema does not rename existing runs. An archive is identified by
    its ``content``, and a norm that is not part of the package by its ``code`` (`own_code.fingerprint`).

    Args:
        cfg: the run.
        without: keys to omit.

    Raises:
        UserError: `data.path` cannot be read.
    """
    values, left_out = dict(leaves(_settled(cfg))), {*WHERE_NOT_WHAT, *without}
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


def _settled(cfg: Config) -> dict[str, Any]:
    """The values of ``cfg``, to be read only, with the layout that ``channels_last=auto`` means for its network."""
    return _shared_dict(replace(cfg, channels_last=in_channels_last(cfg)))


def with_variant(cfg: Config, variant: str) -> Config:
    """``cfg`` with another norm: a name, or ``FILE.py:NAME``."""
    named = user_files.parse(variant)
    file = None if named is None else str(named.file)
    return replace(cfg, variant=variant if named is None else named.name, norm=replace(cfg.norm, file=file))


def config_hash(cfg: Config, without: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits over `identity_of`."""
    return digits_of(identity_of(cfg, without))


def digits_of(value: Any) -> str:
    """16 hexadecimal digits over ``value``, which JSON has a word for."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(stored_values: dict[str, Any], cfg: Config) -> list[str]:
    """The differences between a stored configuration and ``cfg``, one phrase per key; missing keys are defaults.

    Raises:
        ValueError: it has not the shape of a configuration.
    """
    there = {**_defaults(), **dict(leaves(stored_values))}
    if there["channels_last"] is None:  # a run that failed before anything in it was resolved
        there["channels_last"] = in_channels_last(replace(cfg, channels_last=None))
    wanted = [(key, value) for key, value in leaves(_settled(cfg)) if key not in WHERE_NOT_WHAT]
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
        raise UserError(f"{there} {no_folder(there)}, and {directory} cannot be created. Use another root.")
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
    if unlike := yaml_differences(text, cfg):
        raise UserError(f"The checkpoint belongs to another run: {', '.join(unlike[:3])}. Start over with --force.")


def yaml_differences(text: Any, cfg: Config) -> list[str]:
    """`differences` to ``text``, the configuration stored in a checkpoint."""
    try:
        return differences(_values(str(text)), cfg)
    except ValueError:
        return ["it has no configuration"]


def stored_values(file: Path) -> dict[str, Any]:
    """The values in a stored ``config.yaml`` by dotted key; of those that it lacks, the defaults.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a configuration.
    """
    return {**_defaults(), **dict(leaves(_stored_values(file)))}


def _stored_values(file: Path) -> dict[str, Any]:
    return _values(stored.read_yaml(file))


def _values(text: str) -> dict[str, Any]:
    found = stored.parse_yaml(text)
    if not isinstance(found, dict) or not {"data", "model"} <= found.keys():
        raise ValueError("it is not a configuration of a run")
    return found


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


def what(cfg: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """``cfg`` as nested dicts, without the keys that do not affect results and those in ``without``.

    Raises:
        UserError: `data.path` cannot be read.
    """
    values = deepcopy(_settled(cfg))
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
    values = dict(leaves(_settled(cfg)))
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
def _content_hash(file: Path, _size: int, _mtime_ns: int) -> str:
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
