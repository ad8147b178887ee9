"""`load_config`, what makes a configuration valid, and a run's identity. Knows Hydra, not torch."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, fields
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

from bnrepro.config import user_files
from bnrepro.config.overrides import FILES, NAMES, PATHS, RECIPE, check_path, groups, home, keys, parse, written
from bnrepro.config.schema import Config, Model, Source, TrainOnly
from bnrepro.config.schema import configs_dir as configs_dir
from bnrepro.errors import UserError as UserError
from bnrepro.errors import first_line
from bnrepro.system import reading as stored

WHERE_NOT_WHAT = (
    *("root", "tensorboard", "keep_optimizer", "angles", "data.root", "data.path", "norm.file", "model.file"),
)
"""Keys that change where things lie, and no number. Archives and files of code count by their content instead."""


LEAVE_ONE = "Leave one of them out."
MOST_RUNS = 10_000
"""Runs of one sweep or comparison."""


def load_config(overrides: list[str] | None = None) -> Config:
    """The configuration that ``configs/`` and overrides (``optimizer.lr=0.1``, ``data=cifar10``) give.

    A group is chosen before keys are set, whatever their order; of a key that is set twice, the last value counts.

    Raises:
        UserError: an unknown key or group, a wrong type, a value out of range, an archive without a name.
    """
    given: dict[str, Any] = {}
    for text in overrides or []:
        key, value = parse(text)
        if key == "model.name" and text.startswith("model="):  # a network of one's own, in place of the group's
            given.pop("model", None)
        given[key] = value
    said = set(given)
    if recipe := given.pop(RECIPE, None):
        # A group that is chosen beside it replaces all that the recipe says of that group.
        apart = {key for key in given if key in groups()}
        given = {key: v for key, v in _recipe(recipe) if key.partition(".")[0] not in apart} | given
    for key, file in FILES.items():
        if named := user_files.parse(given.get(key, "")):
            if given.get(file, str(named.file)) != str(named.file):
                raise UserError(
                    f"{file} is given twice: {file}={given[file]} and {key}={named.file}:{named.name}. {LEAVE_ONE}"
                )
            given |= {key: named.name, file: str(named.file)}
    chosen = {key: name for key, name in given.items() if key in groups()}
    cfg = deepcopy(_composed(tuple(sorted(chosen.items()))))
    # An archive has a name of its own, whichever dataset it is treated like.
    of_archive = given.get("data.source") is Source.npz or "data.path" in given
    for group in sorted(said & chosen.keys() - ({"data"} if of_archive else set())):
        name, there = f"{group}.name", getattr(cfg, group).name
        if name in said and given[name] != there:
            other = getattr(given[name], "name", given[name])
            raise UserError(f"{name} is given twice: {group}={chosen[group]} and {name}={other}. {LEAVE_ONE}")
    for key, value in given.items():
        if key not in chosen:
            *path, last = key.split(".")
            setattr(reduce(getattr, path, cfg), last, value)
    check(cfg)
    if cfg.schedule.warmup_epochs > cfg.epochs:  # not in `check`: runs that were stored with it stay readable
        raise UserError(
            f"schedule.warmup_epochs={cfg.schedule.warmup_epochs:g} exceeds epochs={cfg.epochs}. "
            "Increase epochs, or reduce schedule.warmup_epochs."
        )
    if cfg.data.path is not None and not given.keys() & {"data", "data.name"}:
        # It would count as the dataset that configs/config.yaml names. What its file is called must not count.
        name = re.sub(r"[^A-Za-z0-9_]", "_", Path(cfg.data.path).stem)[:100] or "flowers"
        raise UserError(f"data.path={cfg.data.path[:200]}: the dataset needs a name, as in data.name={name}.")
    return cfg


def _recipe(name: str) -> list[tuple[str, Any]]:
    """The keys and values in ``configs/recipe/<name>.yaml``, in which they stand as on the command line."""
    file = configs_dir() / RECIPE / f"{name}.yaml"
    try:
        found = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(stored.read_yaml(file))))
        return [parse(written(key, value)) for key, value in found.items()]
    except (OSError, OmegaConfBaseException, YAMLError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{file} does not fit the schema ({first_line(error)}). Undo the changes in it.") from error


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
            f"The files in {configs_dir()} do not fit the schema ({first_line(error)}). Undo the changes in them."
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
        of_code = key in FILES and values[FILES[key]] is not None and name.isidentifier()  # as Python has names
        if not (re.fullmatch(r"[A-Za-z0-9_]+", name) or of_code) or len(name.encode(errors="replace")) > 100:
            ours = " A norm of your own is FILE.py:NAME." if key == "variant" and not {*"./:"}.isdisjoint(name) else ""
            raise UserError(
                f"{key} must be a name of at most 100 letters, digits and underscores; got {name[:200]!r}.{ours}"
            )
    for key in PATHS:
        check_path(key, values[key], "Write the path of an .npz archive." if key == "data.path" else "")
    if cfg.model.file is not None:
        for each in fields(Model):
            if each.name not in ("name", "file") and getattr(cfg.model, each.name) != getattr(Model(), each.name):
                raise UserError(
                    f"model.{each.name} is not used by a network of your own ({cfg.model.file}). Leave it out."
                )
    if cfg.data.path is None and cfg.data.source is Source.npz:
        raise UserError("data.source=npz needs an archive. Add data.path=FILE.npz data.name=NAME.")
    if cfg.data.path is not None and cfg.data.source is not Source.npz:
        raise UserError(f"data.path={cfg.data.path} is read only with data.source=npz. Add data.source=npz.")
    rules = [
        ("seed", cfg.seed, 0 <= cfg.seed < 2**63, "0 or more, and less than 2^63"),
        ("epochs", cfg.epochs, cfg.epochs >= 1, "1 or more"),
        ("batch_size", cfg.batch_size, cfg.batch_size >= 1, "1 or more"),
        ("eval_every", cfg.eval_every, cfg.eval_every is None or cfg.eval_every >= 1, "1 or more, or null"),
        ("label_smoothing", cfg.label_smoothing, 0 <= cfg.label_smoothing < 1, "in [0, 1)"),
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
            "something other than random with weight decay, which moves parameters without gradients",
        ),
        ("data.val_fraction", cfg.data.val_fraction, 0 <= cfg.data.val_fraction < 1, "in [0, 1)"),
        (
            "data.train_images",
            cfg.data.train_images,
            cfg.data.train_images is None or cfg.data.train_images >= 2,
            "2 or more, or null",
        ),
        ("data.crop", cfg.data.crop, 0 <= cfg.data.crop <= 1000, "0 to 1000 pixels"),
        ("data.rotate", cfg.data.rotate, 0 <= cfg.data.rotate <= 180, "in [0, 180]"),
        ("data.brightness", cfg.data.brightness, 0 <= cfg.data.brightness <= 1, "in [0, 1]"),
        (
            "data.binarize",
            cfg.data.binarize,
            not (cfg.data.binarize and cfg.data.samplewise),
            "false where data.samplewise is set: images of zeros and ones are not normalized",
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
    moderate = [(key, v, v < 2**63, "less than 2^63") for key, v in values.items() if isinstance(v, int)]
    for key, value, holds, wanted in [*finite, *rules, *moderate]:
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


def unreadable(file: Path, error: OSError | MemoryError) -> UserError:
    """The error for a file that cannot be read at the moment. It may be intact, so nothing is changed."""
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return UserError(f"The path {str(file)[:300]} is too long for this file system. Use a shorter one.")
    reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
    return UserError(f"{file} cannot be read ({reason}). It was left as it is. Fix this, then run the command again.")


@cache
def _defaults() -> dict[str, Any]:
    """The values that a run's name leaves out: the defaults; of the layout, the one before there was auto."""
    return {**dict(leaves(to_dict(Config()))), "channels_last": False}


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, by dotted key."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
