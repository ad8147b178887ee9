"""Files of a user's own: ``my_norm.py:MyNorm`` stands wherever the name of a norm or a network can stand.

The file that the user named is imported, and no other: it must be complete in itself or import what is installed. Its
content is part of the identity of what is made with it (`bnrepro.config.identity`), and that of a module which it finds
elsewhere, by PYTHONPATH or ``sys.path``, would not be: such a module is refused, whenever it is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import sysconfig
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from bnrepro.errors import UserError, did_you_mean
from bnrepro.system.reading import read_bytes

LARGEST = 2**20  # bytes of a file of code
FAILS = (Exception, SystemExit)
"""What code of a user's own can fail with: its ``sys.exit()`` must not end the command, as if all had gone well."""


class Named(NamedTuple):
    """An object in a file."""

    file: Path
    name: str


def parse(text: str) -> Named | None:
    """``FILE.py:NAME``; None where ``text`` is nothing of the kind. The path becomes absolute.

    Raises:
        UserError: a file without a name.
    """
    match = re.fullmatch(r"(.+\.py):([^:]+)", text, flags=re.DOTALL)
    if match and _normal(match[2]).isidentifier():
        return Named(Path(match[1]).expanduser().absolute(), _normal(match[2]))
    if re.search(r"\.py(:.*)?$", text, flags=re.DOTALL):
        raise UserError(f"{text[:200]} does not name a class or function. Write FILE.py:NAME.")
    return None


def _normal(name: str) -> str:
    """``name`` as Python keeps it."""
    return unicodedata.normalize("NFKC", name)


def load(file: Path, name: str) -> Any:
    """The object called ``name`` in ``file``.

    Raises:
        UserError: the file cannot be read or imported, or has nothing of that name.
    """
    module = load_module(file)
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    if name not in vars(module):
        known = f" It defines: {', '.join(own)}." if own else ""
        raise UserError(f"{file} has no {name}.{did_you_mean(name, own)}{known}")
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"{file}:{name} is neither a class nor a function ({type(found).__name__}). Name another.")
    return found


def load_module(file: Path) -> ModuleType:
    """``file`` as a module. It is run once per process, and again where its content has changed.

    Raises:
        UserError: it cannot be read, or raises an error; with the line that did.
    """
    raw = content(file)
    place = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"bnrepro_file_{file.stem}_{place}_{hashlib.sha256(raw).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None:
        raise UserError(f"{file} is not a Python file: its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], _files[name] = module, file
    if not any(isinstance(finder, _Installed) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Installed())
    try:
        with _only_installed(file):
            exec(compile(raw, str(file), "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name], _files[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        alone = " It must be self-contained, or import installed packages alone." * isinstance(error, ImportError)
        raise UserError(f"{file} cannot be imported: {where(error, file)}.{alone}") from error
    return module


@contextmanager
def _only_installed(file: Path) -> Iterator[None]:
    """Within it, no module is found beside ``file`` or in the working directory: its content would not count."""
    beside, before = {file.parent.resolve(), Path.cwd()}, sys.path[:]
    sys.path[:] = [place for place in before if Path(place or ".").resolve() not in beside]
    try:
        yield
    finally:
        sys.path[:] = before


class _Installed:
    """Refuses the modules that a file of a user's own imports from anywhere but the installation."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """None: whatever it is, others find it.

        Raises:
            ImportError: it is none of what is installed.
        """
        if not _is_asked_by_a_file():
            return
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec and (place := _outside(spec)):
            raise ImportError(
                f"{name} lies in {place}, outside Python's installation, where changes would go unnoticed"
            )


def _is_asked_by_a_file() -> bool:
    """Whether the import that is under way stands in a file that `load_module` loaded."""
    frame: FrameType | None = sys._getframe(2)
    while frame and (frame.f_globals.get("__name__") or "").partition(".")[0] in ("importlib", "_frozen_importlib"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in _files


def _outside(spec: ModuleSpec) -> str | None:
    """Where the module lies; None if it is part of the installation."""
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    if not places or any(_is_installed(Path(place)) for place in places):
        return None
    return places[0]


def _is_installed(place: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(place.parts)) or any(
        each.is_relative_to(folder) for each in (place, place.resolve()) for folder in _installation()
    )


@cache
def _installation() -> tuple[Path, ...]:
    """The folders of Python's own library, of what is installed into it, and of this package."""
    paths = sysconfig.get_paths()
    library = (Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return (Path(__file__).parents[1], *library)


def load_any(file: Path, name: str) -> Any:
    """Whatever is called ``name`` in ``file``, for worker processes."""
    return getattr(load_module(file), name)


def file_of(module: str) -> Path | None:
    """The file that `load_module` loaded as ``module``; None where it is another module."""
    return _files.get(module)


def digest_of(module: str) -> str:
    """`digest` of `file_of` as it was loaded; "" where it is another module."""
    return module.rpartition("_")[2] if module in _files else ""


_files: dict[str, Path] = {}


def content(file: Path) -> bytes:
    """The content of a file of code.

    Raises:
        UserError: it is missing, cannot be read, or is no plain file of a moderate size.
    """
    try:
        return read_bytes(file, LARGEST)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {file}. Give the path of a Python file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is not a regular file"
        raise UserError(f"{file} cannot be read ({reason}). Give the path of a Python file.") from error


def digest(file: Path) -> str:
    """SHA-256 of the file's content."""
    return hashlib.sha256(content(file)).hexdigest()


def blamed(error: BaseException, files: Iterable[Path]) -> str | None:
    """``FILE: the error (line 12)`` for the one of ``files`` that the error came through; None: it is not theirs."""
    told = ((file, where(error, file)) for file in files)
    return next((f"{file}: {said}" for file, said in told if "(line" in said), None)


def blame(error: BaseException, files: Sequence[Path]) -> str:
    """`blamed`, and the first of ``files`` where the error came through none, as that of a backward pass."""
    return blamed(error, files) or f"{files[0]}: {where(error, files[0])}"


def where(error: BaseException, file: Path) -> str:
    """The error in one line, with the last line of ``file`` that led to it."""
    line, words = None, str(error)
    if type(error).__module__.startswith("pydantic"):  # whose first line says only how many errors there are
        first: Any = next(iter(getattr(error, "errors", list)()), None)
        words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else words
    if isinstance(error, SyntaxError) and error.filename == str(file):
        line, words = error.lineno, error.msg  # its text names both too
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    text = (words.splitlines() or [""])[0][:300]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said} (line {line})" if line else said
