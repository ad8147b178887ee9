"""A run's configuration: its schema, how it is loaded and checked, and a run's identity. Knows Hydra, not torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnrepro.config.identity import LATER as LATER
    from bnrepro.config.identity import check_same as check_same
    from bnrepro.config.identity import check_yaml as check_yaml
    from bnrepro.config.identity import config_hash as config_hash
    from bnrepro.config.identity import content_hash as content_hash
    from bnrepro.config.identity import differences as differences
    from bnrepro.config.identity import digits_of as digits_of
    from bnrepro.config.identity import earlier_hash as earlier_hash
    from bnrepro.config.identity import group_dir as group_dir
    from bnrepro.config.identity import identity_of as identity_of
    from bnrepro.config.identity import no_archive as no_archive
    from bnrepro.config.identity import run_dir as run_dir
    from bnrepro.config.identity import stored_values as stored_values
    from bnrepro.config.identity import what as what
    from bnrepro.config.identity import with_variant as with_variant
    from bnrepro.config.identity import yaml_differences as yaml_differences
    from bnrepro.config.loading import LARGEST_FLOAT as LARGEST_FLOAT
    from bnrepro.config.loading import MOST_RUNS as MOST_RUNS
    from bnrepro.config.loading import WHERE_NOT_WHAT as WHERE_NOT_WHAT
    from bnrepro.config.loading import check as check
    from bnrepro.config.loading import command as command
    from bnrepro.config.loading import differing as differing
    from bnrepro.config.loading import leaves as leaves
    from bnrepro.config.loading import load_config as load_config
    from bnrepro.config.loading import read_config as read_config
    from bnrepro.config.loading import to_dict as to_dict
    from bnrepro.config.loading import to_yaml as to_yaml
    from bnrepro.config.loading import unreadable as unreadable
    from bnrepro.config.schema import Config as Config
    from bnrepro.config.schema import configs_dir as configs_dir

__all__ = ["Config", "load_config"]

_HOMES = {
    "identity": [
        "LATER",
        "check_same",
        "check_yaml",
        "config_hash",
        "content_hash",
        "differences",
        "digits_of",
        "earlier_hash",
        "group_dir",
        "identity_of",
        "no_archive",
        "run_dir",
        "stored_values",
        "what",
        "with_variant",
        "yaml_differences",
    ],
    "loading": [
        "LARGEST_FLOAT",
        "MOST_RUNS",
        "WHERE_NOT_WHAT",
        "check",
        "command",
        "differing",
        "leaves",
        "load_config",
        "read_config",
        "to_dict",
        "to_yaml",
        "unreadable",
    ],
    "schema": ["Config", "configs_dir"],
}
"""What each module holds for others. Whoever needs none of it, as the grammar of overrides, imports no Hydra."""


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"bnrepro.config.{home}"), name)
