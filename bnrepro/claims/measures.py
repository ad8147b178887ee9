"""A measure: a function of a paper's that measures what a run left, a dataset, or something made up."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, SupportsFloat

from bnrepro.claims.results import Row
from bnrepro.config import user_files


@dataclass(frozen=True)
class Measure:
    """A measurement: a function with a name and a version of its own, under which its results are kept.

    ``function(seed=..., **arguments)``, ``function(run=Run, seed=..., **arguments)`` where it measures what a run left,
    or ``function(data=Dataset, seed=..., **arguments)`` where it needs a dataset and no run, returns rows
    ``{"quantity": str, "x": float | str | None, "value": float}``, the same for the same arguments. Moving or renaming
    the function measures nothing again; raise ``version`` when its results change.
    """

    function: Callable[..., list[Row]]
    name: str
    version: int = 1

    @property
    def identity(self) -> str:
        """What its results are kept under; of a function in a file of a user's own, the file's code counts too.

        Not what judges and shows: an amended margin measures nothing again.
        """
        return " ".join(filter(None, (self.name, str(self.version), _code_of(self.function.__module__))))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its place, for worker processes: there a decorated function's name stands for the measure."""
        module, name = self.function.__module__, self.function.__qualname__
        if getattr(sys.modules.get(module), name, None) is not self:
            return Measure, (self.function, self.name, self.version)
        if file := user_files.file_of(module):
            return user_files.load_any, (file, name)
        return _named, (module, name)


def _named(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def measure(name: str, version: int = 1) -> Callable[[Callable[..., list[Row]]], Measure]:
    """Make a function a `Measure`: ``@measure("li2019/variance_shift")``."""
    if not isinstance(name, str):
        raise TypeError('a measure needs a name of its own, as in @measure("my_paper/shift")')
    return lambda function: Measure(function, name, version)


def row(quantity: str, value: SupportsFloat, x: float | str | None = None) -> Row:
    """One measured value, as a `Measure` returns them.

    Raises:
        ValueError: the quantity has no name.
    """
    if not (isinstance(quantity, str) and quantity.strip()):
        raise ValueError(f'a quantity needs a name, as in row("loss", 0.5); got {quantity!r}')
    if hasattr(value, "detach"):  # a tensor with a graph would warn
        value = value.detach()
    return {"quantity": quantity, "x": x, "value": float(value)}


def check_measure(what: Any, arguments: Any, of: Sequence[str] = ()) -> None:
    """Raise TypeError for what is no measure, or cannot be called with its seed, ``of`` and arguments in JSON."""
    if not isinstance(what, Measure):
        name = getattr(what, "__name__", repr(what)[:100])
        raise TypeError(f'{name} is not a measure: write a function with @measure("my_paper/name") above it')
    if not isinstance(arguments, dict):
        raise TypeError(f"the arguments of {what.name} must be a dict, and are {arguments!r}"[:300])
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            wanted = "a text, a number, or a list or dict of them"
            raise TypeError(f"the argument {name} of {what.name} must be {wanted}; got {value!r}"[:300]) from error
    given = {"seed": 0, **dict.fromkeys(of), **arguments}
    try:
        inspect.signature(what.function).bind(**given)
    except TypeError as error:
        raise TypeError(f"{what.name} is called with {', '.join(given)}, which it does not take: {error}") from error


@cache
def _code_of(module: str) -> str:
    """16 hexadecimal digits over what a measure may use of a file of a user's own; "" where it is another module.

    Left out are the design, claims, tables and figures, what only they name (settings, gates), and comments.
    """
    file, whole = user_files.file_of(module), user_files.digest_of(module)
    if file is None:
        return ""
    raw = user_files.content(file)
    if not hashlib.sha256(raw).hexdigest().startswith(whole):  # it has changed since it was loaded
        return whole
    body = [each for each in ast.parse(raw).body if not _is_text(each)]
    counted: list[ast.stmt] = []
    while more := [each for each in body if each not in counted and _counts(each, counted)]:
        counted += more
    return hashlib.sha256("\n".join(ast.dump(each) for each in body if each in counted).encode()).hexdigest()[:16]


def _counts(node: ast.stmt, counted: list[ast.stmt]) -> bool:
    return not _can_go(node) or any(_name(node) in _names(each) for each in counted)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name(node: ast.stmt) -> str | None:
    """What a function, class or assignment defines."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node
    return getattr(target, "name", getattr(target, "id", None))


def _can_go(node: ast.stmt) -> bool:
    """Whether it counts only where something else names it: all functions and classes but measures, and the paper."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        made_by = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
        ours = ("design", "claim", "table", "figure")
        return all(isinstance(each, ast.Attribute) and each.attr in ours for each in made_by)
    value = node.value if isinstance(node, ast.Assign) else None
    return isinstance(value, ast.Call) and getattr(value.func, "id", getattr(value.func, "attr", "")) == "Paper"


def _names(node: ast.AST) -> set[Any]:
    """All names, attributes and texts in it."""
    keys = ("id", "attr", "value")
    return {getattr(each, key) for each in ast.walk(node) for key in keys if isinstance(getattr(each, key, 0), str)}
