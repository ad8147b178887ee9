"""Fingerprint of a user-defined callable, which changes whenever its code does.

Counted are the files that define it and whatever it refers to by name (functions, classes, modules), and the values
that it carries (defaults, closures, the arguments of a partial). Code that no file holds (a prompt, ``python -c``)
counts by its bytecode. Of Python's own library, torch, NumPy and this package only the names count: their versions are
recorded with every run.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

PLAIN = (int, float, complex, str, bytes, bool, type(None), os.PathLike)
OF_A_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"}


def fingerprint(thing: Any) -> str:
    """16 hexadecimal digits over the code of ``thing``, a function, class or other callable, as it was first met."""
    if id(thing) not in _known_things:
        walk = _Walk()
        walk.add("", thing)
        _known_things[id(thing)] = thing, hashlib.sha256("\n".join(sorted(walk.found)).encode()).hexdigest()[:16]
    return _known_things[id(thing)][1]


_known_things: dict[int, tuple[Any, str]] = {}
"""With the things themselves, whose ids would else be given to others. A file that changes later is not what runs."""


class _Walk:
    def __init__(self) -> None:
        self.found: set[str] = set()
        self.seen: dict[int, Any] = {}  # the things too: an id belongs to another one once its own is gone

    def add(self, label: str, thing: Any, names: frozenset[str] = frozenset()) -> None:
        """Count ``thing``; of a module, its file and those of its members that are called by ``names``."""
        if isinstance(thing, PLAIN):
            self.found.add(f"{label}={thing!r}")
            return
        self.found.add(f"{label}: {_name(thing)}")
        if id(thing) in self.seen and not isinstance(thing, ModuleType):
            return
        self.seen[id(thing)] = thing
        if isinstance(thing, ModuleType):
            if self.file(getattr(thing, "__file__", None)):
                for name in sorted(names & vars(thing).keys()):
                    self.add(name, vars(thing)[name])
        elif isinstance(thing, FunctionType):
            self.function(thing)
        elif isinstance(thing, type):
            self.type(thing)
        else:
            for name, part in _parts(thing):
                self.add(f"{label}.{name}", part)

    def function(self, function: FunctionType) -> None:
        code = function.__code__
        values: dict[Any, Any] = dict(enumerate(function.__defaults__ or ()))
        values |= function.__kwdefaults__ or {}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                values[name] = cell.cell_contents
            except ValueError:  # empty yet
                continue
        for name, value in values.items():
            self.add(f"{function.__qualname__}.{name}", value)
        if not self.file(code.co_filename):
            return
        self.found.add(f"{function.__qualname__}:{code.co_firstlineno}")
        if not Path(code.co_filename).is_file():
            self.found.update(map(repr, _bytecode(code)))
        names = _names(code)
        for name in sorted(names & function.__globals__.keys()):
            self.add(name, function.__globals__[name], names)

    def type(self, kind: type) -> None:
        module = sys.modules.get(kind.__module__)
        if getattr(builtins, kind.__name__, None) is kind or not self.file(getattr(module, "__file__", "?") or "?"):
            return
        for base in kind.__bases__:
            self.add("base", base)
        for name, member in vars(kind).items():
            if name not in OF_A_CLASS:
                self.add(f"{kind.__qualname__}.{name}", member)

    def file(self, name: str | None) -> bool:
        """Count the file ``name``, if there is one; whether what it holds is a user's own."""
        if name is None or any(Path(name).is_relative_to(folder) for folder in _known()):
            return False
        if Path(name).is_file():
            self.found.add(hashlib.sha256(Path(name).read_bytes()).hexdigest())
        return not {"site-packages", "dist-packages"} & set(Path(name).parts)


def _name(thing: Any) -> str:
    """A name that tells torch's from ours; a user's own modules are called otherwise in other processes."""
    module = getattr(thing, "__module__", None) or ""
    known = module.partition(".")[0] in ("bnrepro", "torch", "torchvision", "numpy")
    return f"{module if known else ''}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


@cache
def _known() -> tuple[Path, ...]:
    """The folders of this package, torch and NumPy, and of Python's own library without what is installed into it."""
    specs = [find_spec(name) for name in ("torch", "torchvision", "numpy")]
    packages = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    library = Path(sysconfig.get_path("stdlib"))
    own = [each for each in library.iterdir() if each.name not in ("site-packages", "dist-packages")]
    return (Path(__file__).parents[1], *packages, *own)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What an object carries, by name."""
    if isinstance(thing, partial):
        yield from (("func", thing.func), *((str(i), arg) for i, arg in enumerate(thing.args)), *thing.keywords.items())
    elif isinstance(thing, MethodType):
        yield from (("function", thing.__func__), ("self", thing.__self__))
    elif isinstance(thing, property):
        yield from (("get", thing.fget), ("set", thing.fset))
    elif isinstance(thing, classmethod | staticmethod):
        yield "function", thing.__func__
    elif isinstance(thing, dict):
        yield from ((_shown(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple):
        yield from ((str(i), value) for i, value in enumerate(thing))
    elif isinstance(thing, set | frozenset):
        if all(isinstance(each, PLAIN) for each in thing):
            yield "members", str(sorted(map(repr, thing)))
        else:
            yield from (("member", each) for each in sorted(thing, key=_shown))
    elif hasattr(thing, "tolist"):  # arrays and tensors
        yield "values", repr(thing.tolist())
    else:
        yield "type", type(thing)
        yield from getattr(thing, "__dict__", {}).items()


def _shown(thing: Any) -> str:
    """``thing`` as text, without the address that is another one in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> frozenset[str]:
    return frozenset(name for each in _codes(code) for name in each.co_names)


def _bytecode(code: CodeType) -> Iterator[tuple[bytes, tuple[str, ...], list[str]]]:
    for each in _codes(code):
        constants = [c for c in each.co_consts if not isinstance(c, CodeType)]
        yield (
            each.co_code,
            each.co_names,
            [str(sorted(map(repr, c)) if isinstance(c, frozenset) else c) for c in constants],
        )
