"""What is read from files is data: plain files of bounded size, of the shape that they should have, and no code.

What is not so raises ValueError (or OSError, where it cannot be read); the readers say what that means for the user.
"""

from __future__ import annotations

import codecs
import math
import stat
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import from_json

from bnrepro.errors import first_line

LARGEST = 2**26  # bytes of a text or a figure: a hundred times what experiments of hundreds of runs have left
LARGEST_YAML = 2**16  # bytes of a configuration or preset, which have a few thousand
MOST = 1e100  # squared and summed it must still be a number
DEEPEST = 20  # levels of a YAML file; ours have 4


def _moderate(value: float) -> float:
    if math.isfinite(value) and abs(value) > MOST:
        raise ValueError("is larger than any that a run can leave")
    return value


def _loss(value: float) -> float:
    if value < 0:  # which nan is not
        raise ValueError("is below 0")
    return _moderate(value)


Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=100)]
"""What can become the name of a file or an anchor: it leads nowhere else and needs no escaping."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True), AfterValidator(_moderate)]
Amount = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Loss = Annotated[float, Field(strict=True), AfterValidator(_loss)]
"""May be nan or infinite."""


def read_bytes(file: Path, most: int = LARGEST, within: Path | None = None) -> bytes:
    """The content of a plain file.

    Args:
        file: the file.
        most: how many bytes it may have.
        within: a folder that no link on the way to the file may lead out of.

    Raises:
        ValueError: it has more bytes, or lies outside.
        OSError: it cannot be read, or is a folder, a pipe or a device (which might never end).
    """
    if within is not None and leads_out(file, within):
        raise ValueError(f"{file.name} is a link that leads out of the folder")
    plain_size(file)
    with file.open("rb") as stream:
        raw = stream.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"{file.name} has more than {most:,} bytes")
    return raw


def plain_size(file: Path) -> int:
    """The size of a plain file in bytes.

    Raises:
        OSError: it is missing, or is a folder, a pipe or a device.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(0, "it is not a plain file", str(file))
    return about.st_size


def is_file(path: Path) -> bool:
    """Whether ``path`` is a plain file; no, where that may not be looked at (`Path.is_file` raises there)."""
    return stat.S_ISREG(mode(path))


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; no, where that may not be looked at."""
    return stat.S_ISDIR(mode(path))


def mode(path: Path) -> int:
    """``st_mode`` of what ``path`` leads to; 0 where nothing is there, or it may not be looked at."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def leads_out(file: Path, folder: Path) -> bool:
    """Whether links make ``file``, which is named as a part of ``folder``, lie elsewhere."""
    try:
        return not file.resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # a link to itself, before Python 3.13
        return True


def read_json(file: Path, shape: Any, within: Path | None = None) -> Any:
    """The content of a JSON file that has ``shape``, which is a type or a dataclass; keys beyond it are kept.

    Raises:
        ValueError: it is no JSON, nested too deep, has texts that are no Unicode, or another shape.
        OSError: it cannot be read.
    """
    raw = read_bytes(file, within=within).removeprefix(codecs.BOM_UTF8)  # which editors on Windows write
    try:
        _adapter(shape).validate_json(raw, strict=True)
    except ValidationError as error:
        raise ValueError(f"{file.name}: {_first(error)}") from error
    return from_json(raw)


def hold(value: Any, shape: Any, what: str) -> None:
    """Check that ``value`` has ``shape``. Floats with integral values are accepted as integers.

    Raises:
        ValueError: it does not; the message begins with ``what``.
    """
    try:
        _adapter(shape).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{what}: {_first(error)}") from error


def read_yaml(file: Path) -> str:
    """The text of a YAML file of nested keys and plain values.

    Raises:
        ValueError: it is none, or has aliases (which can grow beyond all bounds), tags, look-ups, a key twice or many
            levels.
        OSError: it cannot be read.
    """
    text = read_bytes(file, LARGEST_YAML).decode()
    inside: list[_Keys | None] = []  # the mappings (None: sequences) around an event
    try:
        # PyYAML's own scanner, since libyaml has limits of its own that come before ours (1,000 levels from 0.2.6 on).
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases")
            if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
                raise ValueError(f"it has the tag {event.tag!r}")
            # Looked for here and not in the text, where an escaped "$" would not be seen.
            if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
                raise ValueError("it looks something up with ${...}")
            if isinstance(event, yaml.CollectionEndEvent):
                inside.pop()
            elif isinstance(event, yaml.NodeEvent) and inside and (keys := inside[-1]):
                keys.next(event)
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append(_Keys() if isinstance(event, yaml.MappingStartEvent) else None)
            if len(inside) > DEEPEST:
                raise ValueError(f"it has more than {DEEPEST} levels")
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    return text


def load_yaml(file: Path) -> Any:
    """The content of a YAML file, as `read_yaml` accepts it.

    Raises:
        ValueError: it is not accepted.
        OSError: it cannot be read.
    """
    return parse_yaml(read_yaml(file))


def parse_yaml(text: str) -> Any:
    """The content of a text that `read_yaml` has accepted; by libyaml, which is faster, where PyYAML has it.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error


class _Keys:
    """Those of a mapping so far; PyYAML would let the last of two that are the same replace the others."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.is_key = True

    def next(self, event: yaml.NodeEvent) -> None:
        """A key or a value, which take turns."""
        if self.is_key and isinstance(event, yaml.ScalarEvent):
            if event.value in self.seen:
                raise ValueError(f"it has the key {event.value} twice (line {event.start_mark.line + 1})")
            self.seen.add(event.value)
        self.is_key = not self.is_key


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _first(error: ValidationError) -> str:
    """What is wrong first, and where."""
    about = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, about["loc"]))[:200]
    return f"{where}: {about['msg']}" if where else about["msg"]


def printable(text: str) -> str:
    """``text`` for a terminal, which would take control characters in it for commands."""
    if (
        text.replace("\n", "").replace("\t", "").isprintable()
    ):  # as nearly all of it is; a page has millions of characters
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
