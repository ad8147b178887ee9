"""What others may import is written down in api.txt, has a docstring, and stands in the reference.

After a change that is meant, ``python -m tests.test_api > tests/api.txt`` writes it anew, and its diff shows what users
will notice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

API = Path(__file__).with_name("api.txt")
REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
MODULES = (
    "bnrepro",
    "bnrepro.claims",
    "bnrepro.claims.evidence",
    "bnrepro.config",
    "bnrepro.data.clients",
    "bnrepro.data.corruptions",
    "bnrepro.errors",
    "bnrepro.norm",
    "bnrepro.norm.function",
    "bnrepro.norm.oracle",
    "bnrepro.norm.variants",
    "bnrepro.runs.record",
    "bnrepro.stats",
    "bnrepro.train",
    "bnrepro.training.adaptation",
    "bnrepro.training.attacks",
    "bnrepro.training.depth",
    "bnrepro.training.rotation",
    "bnrepro.training.sharpness",
)
NAMES = [(module, name) for module in MODULES for name in import_module(module).__all__]


def lines() -> Iterator[str]:
    """Each public name with its signature, below it the members of a class; without types, which mypy is for."""
    first: dict[int, str] = {}
    for module, name in NAMES:
        value, full = getattr(import_module(module), name), f"{module}.{name}"
        if (known := first.setdefault(id(value), full)) != full:
            yield f"{full} is {known}"
        else:
            yield from told(full, value)


def told(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield f"{name}: {', '.join(value)}"
    elif inspect.isclass(value) and issubclass(value, Enum):
        yield f"{name}: {', '.join(value.__members__)}"
    elif isinstance(value, FunctionType):
        yield f"{name}{signature(value)}"
    elif not inspect.isclass(value) or issubclass(value, Exception):
        yield name
    else:
        yield f"{name}{signature(value)}"
        for member, each in sorted(vars(value).items()):
            if not member.startswith("_"):
                yield from of_class(f"    {member}", each)


def of_class(name: str, value: Any) -> Iterator[str]:
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if isinstance(function, FunctionType):
        yield f"{name}{signature(function)}"
    elif hasattr(type(value), "__get__"):  # properties, and fields of tuples
        yield name


def signature(value: Any) -> str:
    found = inspect.signature(value)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    text = str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\w+) at \w+>", r"\1", text.replace("<factory>", "..."))


def test_public_names_and_signatures_are_those_that_are_written_down() -> None:
    assert list(lines()) == API.read_text(encoding="utf-8").splitlines(), __doc__


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_public_name_has_a_docstring(module: str, name: str) -> None:
    value = getattr(import_module(module), name)
    if isinstance(value, FunctionType) or inspect.isclass(value):
        text = value.__doc__ or ""
        assert text
        assert not text.startswith(f"{name}("), "a dataclass has its fields for a docstring"


def documented() -> set[str]:
    """Full names that a page of the reference describes."""
    found = set()
    for page in REFERENCE.glob("*.rst"):
        text = page.read_text(encoding="utf-8")
        found.update(re.findall(r"^\.\. (?:auto(?:class|function|exception)|py:data):: (bnrepro\S+)", text, re.M))
        for module, members in re.findall(r"^\.\. automodule:: (\S+)\n   :members: (.+)", text, re.M):
            found.update(f"{module}.{name.strip()}" for name in members.split(","))
        for module, body in re.findall(r"^\.\. module:: (\S+)\n(.*?)(?=^\.\. module::|\Z)", text, re.M | re.S):
            found.update(f"{module}.{name}" for name in re.findall(r"^\.\. py:data:: (\w+)$", body, re.M))
    return found


def test_public_names_stand_in_the_reference() -> None:
    known = documented()
    values = {id(getattr(import_module(each.rpartition(".")[0]), each.rpartition(".")[2])) for each in known}
    lacking = [
        f"{module}.{name}"
        for module, name in NAMES
        if f"{module}.{name}" not in known and id(getattr(import_module(module), name)) not in values
    ]
    assert lacking == ["bnrepro.__version__"]


if __name__ == "__main__":
    print("\n".join(lines()))  # noqa: T201  for api.txt
