"""kernels.cpp as a library in memory: compiled once per user and machine, kept in a cache, verified before loading.

A library is taken only from a folder and a file that belong to the user and that nobody else can write, and only if
its bytes have the checksum in its name; a damaged one is made again. The bytes that were verified are the ones that
are loaded (through a memory file where the system has them), so that it matters neither what happens to the file
afterwards nor whether its file system permits execution.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = (
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=c++17",
    "-fPIC",
    "-shared",
)
PARALLEL = (("-fopenmp",), ("-fopenmp-simd",), ())
"""Optional compiler flags, best first."""
VERSION_SECONDS, COMPILE_SECONDS = 30, 300
SAID_FOR = 3600  # seconds

Kernel = Callable[[bytes], None]
"""Takes what kernels.cpp calls a Call."""


class Unavailable(Exception):
    """The reason why the kernels cannot be compiled."""


def kernels(dtypes: tuple[str, ...]) -> dict[tuple[str, str, str], Kernel] | None:
    """The functions of kernels.cpp by kind, direction and dtype; None, after one warning, if there are none here."""
    try:
        return _found_or_built(dtypes)
    except (Unavailable, OSError, ValueError) as error:
        _say(
            "bnrepro.norm works with tensor operations, several times slower than torch's norms on the CPU, because "
            f"its kernels cannot be compiled here: {error}. Install a C++ compiler with OpenMP (on Debian: apt install "
            "g++), name it in CXX, or set BNREPRO_NATIVE=0 to run without them and without this warning.",
            f"{os.environ.get('CXX')}: {error if isinstance(error, Unavailable) else type(error)}",
        )
        return None


def _found_or_built(dtypes: tuple[str, ...]) -> dict[tuple[str, str, str], Kernel]:
    if os.name != "posix":
        raise Unavailable("this is not a POSIX system")
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "")
    if not compiler:
        raise Unavailable("there is no g++ or c++")
    identity = (SOURCE.read_text(), compiler, FLAGS, _output([*compiler, "--version"], VERSION_SECONDS), _processor())
    name = f"kernels-{_digest(repr(identity).encode())}"
    folders = list(cache_folders())
    for folder in folders:
        for file in sorted(folder.glob(f"{name}-*.so")):
            if content := _verified(file):
                with suppress(OSError):  # one that does not load here is left alone: it may be good elsewhere
                    return _loaded(content, file, dtypes)
    problem: OSError | None = None
    for place in [*folders, None]:  # None: for this process alone
        try:
            with tempfile.TemporaryDirectory(dir=place, prefix="build-", ignore_cleanup_errors=True) as scratch:
                made = _compiled(compiler, Path(scratch) / "kernels.so")
                content = made.read_bytes()
                functions = _loaded(content, made, dtypes)
                if place is not None:
                    with suppress(OSError):  # kept if it can be; it is loaded already
                        made.chmod(0o600)
                        made.replace(place / f"{name}-{_digest(content)}.so")
                return functions
        except TimeoutError:
            raise
        except OSError as error:  # a folder that cannot be written to, or loaded from
            problem = error
    assert problem is not None
    raise problem


# --- where libraries are kept ---


def cache_folders() -> Iterator[Path]:
    """The folders that libraries may be loaded from, the user's cache first; made where they are missing."""
    if os.name != "posix":
        return
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises where there is none
    candidates = [Path(os.environ.get("XDG_CACHE_HOME") or "."), Path(home) / ".cache"]
    candidates = [place / "bnrepro" for place in candidates if place.is_absolute()][:1]
    with suppress(OSError):  # no folder for temporary files
        candidates.append(Path(tempfile.gettempdir()) / f"bnrepro-{os.geteuid()}")
    for folder in candidates:
        with suppress(OSError, RuntimeError):  # RuntimeError: a loop of links
            _make(folder)
            if _safe(folder):
                yield folder


def _make(folder: Path) -> None:
    """``folder`` and its missing parents, none of which others may enter."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _safe(folder: Path) -> bool:
    """Whether only this user (and the administrator) can have written to ``folder``."""
    own = folder.lstat()
    if not (stat.S_ISDIR(own.st_mode) and own.st_uid == os.geteuid() and not own.st_mode & 0o022):
        return False
    trusted = (0, os.geteuid(), Path("/").stat().st_uid)  # the last: an administrator that a container renamed
    parents = [parent.stat() for parent in folder.resolve().parents]
    return all(p.st_uid in trusted and (not p.st_mode & 0o022 or p.st_mode & stat.S_ISVTX) for p in parents)


def _verified(file: Path) -> bytes | None:
    """The content of a library if it belongs to this user and matches its checksum; a damaged file is removed."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return None
            content = stream.read()
    except OSError:
        return None
    if file.stem.rpartition("-")[2] == _digest(content):
        return content
    with suppress(OSError):
        file.unlink()
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


# --- loading ---


def _loaded(content: bytes, file: Path, dtypes: tuple[str, ...]) -> dict[tuple[str, str, str], Kernel]:
    """The functions of a library with this ``content``, which is also that of ``file``."""
    try:
        handle = os.memfd_create("bnrepro-kernels")  # stays open: the loader knows libraries by their names
        try:
            with os.fdopen(os.dup(handle), "wb") as stream:
                stream.write(content)
            library = ctypes.CDLL(f"/proc/self/fd/{handle}")
        except OSError:
            os.close(handle)
            raise
        return _functions(library, dtypes)
    except (AttributeError, OSError):  # no memory files on this system, or none that may be executed
        return _functions(ctypes.CDLL(str(file)), dtypes)


def _functions(library: ctypes.CDLL, dtypes: tuple[str, ...]) -> dict[tuple[str, str, str], Kernel]:
    functions: dict[tuple[str, str, str], Kernel] = {}
    for kind, direction, dtype in product(("rows", "columns"), ("forward", "backward"), dtypes):
        name = f"{kind}_{direction}_{dtype}"
        try:
            function = library[name]
        except AttributeError as error:
            raise OSError(f"the library has no function {name}") from error
        function.argtypes, function.restype = [ctypes.c_char_p], None
        functions[kind, direction, dtype] = function
    return functions


# --- compiling ---


def _compiled(compiler: list[str], made: Path) -> Path:
    """kernels.cpp compiled to ``made``, with threads if the compiler can."""
    reasons = []
    for parallel in PARALLEL:
        try:
            _output([*compiler, *FLAGS, *parallel, str(SOURCE), "-o", str(made)], COMPILE_SECONDS, TMPDIR=made.parent)
        except Unavailable as error:
            reasons.append(str(error))
            continue
        if not made.is_file() or not made.stat().st_size:
            raise Unavailable(f"{compiler[0]} succeeded, but wrote no library")
        if reasons:
            _say(
                f"The kernels of bnrepro.norm are compiled without threads (OpenMP): {reasons[0]}. On several cores "
                "they are slower than they could be. Install a compiler with OpenMP (on Debian: apt install g++) or "
                "name one in CXX.",
                compiler[0],
            )
        return made
    raise Unavailable(reasons[0])


def _output(command: list[str], limit: float, **environment: Path) -> bytes:
    """Output of ``command``, which is killed with its children after ``limit`` seconds or on an interrupt."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        process_group=0,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )
    with process:
        try:
            out, err = process.communicate(timeout=limit)
        except BaseException as error:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{command[0]} did not finish within {limit:g} seconds") from error
            raise
    if process.returncode:
        said = [line.strip() for line in err.decode(errors="replace").splitlines() if line.strip()]
        raise Unavailable(said[0] if said else f"{command[0]} ended with exit code {process.returncode}")
    return out


def _processor() -> object:
    """What -march=native depends on: a cache may be shared by machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.machine(), platform.processor()
    return sorted({line for line in text.splitlines() if line.startswith(("flags", "model name", "Features"))})


# --- saying so ---


def _say(message: str, reason: str) -> None:
    """Warn, unless a process of this user has for this ``reason`` within the hour: workers come in dozens."""
    for folder in cache_folders():
        marker = folder / f"said-{_digest(os.fsencode(reason))}"
        with suppress(OSError):
            if time.time() - marker.stat().st_mtime < SAID_FOR:
                return
            marker.unlink()
        with suppress(OSError):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            break
        if marker.exists():  # said by another process in between
            return
    warnings.warn(message, RuntimeWarning, stacklevel=5)
