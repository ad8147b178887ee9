"""``key=value`` as it is typed: held to the schema, by the type of its key, before Hydra sees anything of it.

What is a text by the schema (a path, a name) is taken as it stands after the first ``=``; everything else is a number,
a truth value, a choice or a list. Quotes round a whole value are removed, as Hydra removes them.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from shlex import quote
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from bnrepro.config import user_files
from bnrepro.config.schema import Config, configs_dir
from bnrepro.errors import UserError, did_you_mean, either, known_are, no_folder

LONGEST = 5000  # characters of an override: enough for any path
PATHS = ("root", "data.root", "data.path", "norm.file", "model.file")
NAMES = ("variant", "data.name", "model.name")  # become folder names (`config.check`)
RECIPE = "recipe"
"""A group whose files set keys of all others."""
FILES = {"variant": "norm.file", "model.name": "model.file"}
"""Keys whose value may be ``FILE.py:NAME``, and the keys that then hold the file."""
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
FUNCTION = r"\s*(?:choice|range|glob|interval|sort|shuffle|tag|int|float|str|bool|json_str)\(.*\)\s*"


@cache
def keys(schema: type = Config, prefix: str = "") -> Mapping[str, Any]:
    """The dotted keys of all values of a schema, with their types."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        nested = isinstance(kind, type) and is_dataclass(kind)
        found |= keys(kind, f"{prefix}{name}.") if nested else {f"{prefix}{name}": kind}
    return found


@cache
def groups() -> Mapping[str, list[str]]:
    """The groups of ``configs/`` that are part of a run, and recipes, with the names of their files."""
    folders = (configs_dir() / name for name in sorted([*Config.__dataclass_fields__, RECIPE]))
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders if folder.is_dir()}


def parse(override: str) -> tuple[str, Any]:
    """The key and the value of an override; of a group (``data=cifar10``), the name of its file.

    Raises:
        UserError: not of the form key=value; an unknown key; a value that is none of the key's type.
    """
    key, text = split(override)
    if key == "model" and user_files.parse(unquoted(text).strip()):
        key = "model.name"
    if key in groups():
        return key, _member(key, text)
    return key, value(key, keys()[key], text)


def split(override: str, known: Collection[str] = ()) -> tuple[str, str]:
    """Split an override into key and text. Hydra's forms for adding or removing keys are rejected.

    Args:
        override: ``key=value``.
        known: the keys; none: those of a run.

    Raises:
        UserError: it is more than that, or sets an unknown key.
    """
    all_keys = "`bnrepro config` prints every key and its value." if not known else f"The keys: {', '.join(known)}."
    known = known or (*keys(), *groups())
    shown = repr(override if len(override) <= 200 else f"{override[:200]}...")
    key, equals, text = override.partition("=")
    bare = key.lstrip("-+~ ").rstrip().replace("-", "_")
    if len(override) > LONGEST or len(key) > 100:
        raise UserError(f"The override {shown} is too long: {len(override):,} characters.")
    if not equals or not key.strip():
        more = " Join key and value with = and no spaces." if override == "=" or bare in known else ""
        raise UserError(f"The override {shown} is not of the form key=value, as in epochs=5.{more}")
    if key in known:
        return key, text
    if bare in known:
        how = "without dashes" if key.startswith("-") else "and nothing before or after the key"
        raise UserError(f"The override {shown} is refused. Write {quote(f'{bare}={text[:200]}')}, {how}.")
    below = [name for name in known if name.startswith(f"{bare}.")]
    if below:
        raise UserError(f"{bare} is a group of keys: {', '.join(below)}. Set one of them, as in {below[0]}=...")
    if not re.fullmatch(r"\w+(\.\w+)*", bare):
        raise UserError(f"The override {shown} must have the form key=value, as in epochs=5.")
    raise UserError(f"There is no key {bare}.{did_you_mean(bare, known) or f' {all_keys}'}")


def value(key: str, kind: Any, text: str) -> Any:
    """``text`` as a value of type ``kind``.

    Raises:
        UserError: it is none.
    """
    optional = NoneType in get_args(kind)
    if optional:
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if optional and text.strip().lower() in ("null", *(["auto"] if kind is not str else [])):
        return None
    if key in NAMES or kind is not str:
        _one_value(key, text)
    text = unquoted(text)
    if kind is str:
        return home(key, text) if key in PATHS else text
    if get_origin(kind) is list:
        return _list(key, get_args(kind)[0], text.strip())
    return _scalar(key, kind, text.strip(), " or null" if optional else "")


def _scalar(key: str, kind: Any, text: str, more: str) -> Any:
    shown = repr(text if len(text) <= 100 else f"{text[:100]}...")
    if kind is bool:
        for truth, words in ((True, ("true", "yes", "on", "y", "1")), (False, ("false", "no", "off", "n", "0"))):
            if text.lower() in words:
                return truth
        choices = ["true", "false", *(["auto"] if more else [])]
        raise UserError(f"{key} must be {either(choices)}; got {shown}.")
    if issubclass(kind, Enum):
        if text in kind.__members__:
            return kind[text]
        near, members = did_you_mean(text, kind.__members__), [*kind.__members__, *(["null"] if more else [])]
        raise UserError(f"{key} must be {either(members)}; got {shown}.{near}")
    try:
        if kind is int and re.fullmatch(r"[+-]?[0-9_]{1,40}", text):
            return int(text)
        if kind is float and text.isascii():
            return float(text) + 0.0  # -0 is 0: one value has one name
    except ValueError:
        pass
    wanted, example = ("an integer", 10) if kind is int else ("a number", 0.1)
    raise UserError(f"{key} must be {wanted}{more}, as in {key}={example}; got {shown}.")


def _list(key: str, kind: Any, text: str) -> list[Any]:
    inside = re.fullmatch(r"\[(.*)\]", text, re.DOTALL)
    parts = [part.strip() for part in (inside[1] if inside else text).split(",")]
    try:
        found = [_scalar(key, kind, each, "") for each in parts if each or len(parts) > 1]
    except UserError as error:
        raise UserError(f"{key} must be a list, as in '{key}=[0.5,0.75]'; got {text[:200]!r}.") from error
    if not inside:
        raise UserError(f"{key}: a list needs brackets: '{key}=[{','.join(parts)}]'.")
    return found


def _member(group: str, text: str) -> str:
    _one_value(group, text)
    name, there = unquoted(text).strip(), groups()[group]
    if name in there:
        return name
    shown = repr(name if len(name) <= 100 else f"{name[:100]}...")
    thing = "dataset" if group == "data" else group
    if group == "data" and name.endswith(".npz"):
        own = re.sub(r"[^A-Za-z0-9_]", "_", Path(name).stem)
        how = f"data.source=npz {quote(written('data.path', name))} data.name={own}"
        raise UserError(f"There is no dataset {shown}. To read an archive, write {how}.")
    raise UserError(f"There is no {thing} {shown}.{known_are(name, there)}")


def _one_value(key: str, text: str) -> None:
    """Raise UserError if ``text`` looks like several values, where the key has one."""
    text = text.strip()
    if re.fullmatch(QUOTED, text, re.DOTALL) or len(text) > 200 or key not in (*keys(), *groups()) or is_a_list(key):
        return
    bracketed = re.fullmatch(r"[\[{(]([^:]*,[^:]*)[\]})]", text, re.DOTALL)
    several = "," in text and not re.search(r"[{}()\[\]]", text)
    if re.fullmatch(FUNCTION, text, re.DOTALL):
        first, second = two_values(key)
        how = f"Write one, as in {key}={first}; `bnrepro sweep` runs several, as in {key}={first},{second}."
        if _is_swept(key, text):
            how = f"`bnrepro sweep {quote(f'{key}={text}')}` runs several."
        raise UserError(f"{key} takes one value; got {text!r}. {how}")
    if not (several or bracketed):
        return
    values = bracketed[1] if bracketed else text
    if not all(part.strip() for part in values.split(",")):
        raise UserError(
            f"{key}={text}: a value is missing next to a comma. {key} takes one value; `bnrepro sweep` runs "
            f"several, written without spaces, as in {key}={','.join(two_values(key))}."
        )
    for part in values.split(","):
        parse(f"{key}={part.strip()}")  # raises, where a sweep would not take it either
    raise UserError(
        f"{key} takes one value; got {text!r}. `bnrepro sweep {quote(f'{key}={values}')}` runs several"
        f"{', without brackets' if bracketed else ''}."
    )


def _is_swept(key: str, text: str) -> bool:
    """Whether a sweep over ``key`` takes the function that ``text`` is."""
    name, _, inside = text.removesuffix(")").partition("(")
    parts = inside.split(",")
    if name == "glob":
        return key in (*groups(), "variant")
    if name not in ("range", "choice") or (name == "range" and (keys().get(key) not in (int, float) or len(parts) > 3)):
        return False
    try:
        for part in parts:
            parse(f"{key}={part.strip()}")
    except UserError:
        return False
    return True


def two_values(key: str) -> tuple[str, str]:
    """Two values that ``key`` can have, for messages that show how values are written."""
    kind = keys().get(key, str)
    if key in groups():
        first, second, *_ = [*groups()[key], ""]
        return first, second
    if key == "variant":
        return "bn", "convbn"
    if is_a_list(key):
        return "[0.5]", "[0.5,0.75]"
    (kind,) = [each for each in get_args(kind) if each is not NoneType] or [kind]
    if isinstance(kind, type) and issubclass(kind, Enum):
        first, second, *_ = kind.__members__
        return first, second
    examples = {bool: ("true", "false"), int: ("1", "2"), float: ("0.1", "0.01")}
    return examples.get(kind, ("a", "b"))


def is_a_list(key: str) -> bool:
    """Whether the value of ``key`` is a list."""
    return get_origin(keys().get(key)) is list


def written(key: str, value: Any) -> str:
    """The override that sets ``key`` to ``value``, which is as in a stored configuration."""
    if isinstance(value, str):
        plain = value == unquoted(value) and value.strip().lower() != "null"
        escaped = re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + end[2].replace('"', '\\"'), value)
        text = value if plain else f'"{escaped}"'
    elif isinstance(value, list):
        text = f"[{','.join(map(str, value))}]"
    else:
        text = "null" if value is None else str(value).lower()
    return f"{key}={text}"


def unquoted(text: str) -> str:
    """``text`` without the quotes round all of it; there a backslash escapes the quote, as in Hydra's grammar."""
    stripped = text.strip()
    if not re.fullmatch(QUOTED, stripped, re.DOTALL):
        return text
    return re.sub(rf"(\\+)(?={stripped[0]}|$)", lambda run: "\\" * (len(run[1]) // 2), stripped[1:-1])


def home(what: str, path: str) -> str:
    """``path`` with the home folder in place of a ``~`` or ``~user`` at its beginning, as a shell would have it.

    Raises:
        UserError: nobody knows that folder.
    """
    if not path.startswith("~"):
        return path
    who = path.partition("/")[0]
    try:
        if who == "~" and os.environ.get("HOME") == "":  # a shell would make /x of ~/x, which nobody means
            raise RuntimeError("HOME is empty")
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"{what}: the home folder {who} is not known here. Write it in full, or ./{path} for a folder of that name."
        ) from error


def check_path(what: str, path: str | None, wanted: str = "") -> None:
    """Raise UserError for a path that cannot exist or cannot be stored in a configuration.

    Args:
        what: the key or the option that has it.
        path: as it was given.
        wanted: what to write where it is empty; by default, what a folder needs.
    """
    if path is None:
        return
    if not path:
        wanted = wanted or "Write the path of a folder; for the current one write '.'."
        raise UserError(f"{what} is empty. {wanted}")
    kinds = {unicodedata.category(c) for c in path}
    if "Cs" in kinds:
        raise UserError(f"{what} must be a path in UTF-8; got {path[:200]!r}. Rename it, or make a link to it.")
    if kinds & {"Cc", "Zl", "Zp"}:
        raise UserError(f"{what} must be a path without control characters; got {path[:200]!r}.")
    if "${" in path or path == "???":
        raise UserError(f"{what} must be a path without ${{...}} and other than ???; got {path[:200]!r}.")


def need_folder(what: str, folder: Path) -> None:
    """Raise UserError if ``folder`` is neither there nor can be made, since something on the way is no folder."""
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not there.is_dir():
        part = f"{what}={folder}" if there == folder else f"{what}={folder}: {there}"
        raise UserError(f"{part} {no_folder(there)}. Give the path of a folder.")


def elements(key: str, text: str) -> Iterator[str]:
    """What is between the commas of a sweep over ``key``; quotes hold a text together, brackets what is in them."""
    whole = QUOTED if keys().get(key) in (str, str | None) else rf"{QUOTED}|\[[^\]]*\]|\{{[^}}]*\}}|\([^)]*\)"
    place = 0
    while place <= len(text):
        found = re.compile(rf"\s*({whole})\s*(?=,|$)|([^,]*)", re.DOTALL).match(text, place)
        assert found is not None  # the second alternative matches anything
        yield (found[1] or found[2]).strip()
        place = found.end() + 1
