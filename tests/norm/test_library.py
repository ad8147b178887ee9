"""How the kernels are compiled, kept and loaded, whatever compilers, caches and other users do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bnrepro.norm import library
from tests.conftest import needs_compiler

DTYPES = ("float32",)
# A library that has the functions for DTYPES, made in a moment, and says which one it is.
FUNCTIONS = "".join(
    f"void {kind}_{direction}_float32(void) {{}}\n"
    for kind in ("rows", "columns")
    for direction in ("forward", "backward")
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and quick kernels: those of a C file without any loops."""
    tmp_path.chmod(0o700)
    source = tmp_path / "kernels.cpp"
    source.write_text(f'extern "C" {{\n{FUNCTIONS}}}\n')
    monkeypatch.setattr(library, "SOURCE", source)
    monkeypatch.setattr(library, "FLAGS", ("-fPIC", "-shared"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(library.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def compiler(place: Path, script: str) -> str:
    """A compiler of our own that ends with ``script``; it counts how often it compiles."""
    file = place / "compiler"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo . >> {shlex.quote(str(place / "count"))}\n{script}\n')
    file.chmod(0o755)
    return str(file)


def compiled(place: Path) -> int:
    """How often our compiler has compiled."""
    count = place / "count"
    return len(count.read_text().splitlines()) if count.exists() else 0


@contextlib.contextmanager
def said(expected: str | None) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(w.message) for w in caught]
    if expected is None:
        assert messages == []
    else:
        assert len(messages) == 1, messages
        assert expected in messages[0], messages
        assert messages[0].count("\n") == 0


WORKS = 'exec c++ "$@"'


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels-*.so"))


# --- the cache ---


@needs_compiler
def test_kernels_are_compiled_once_and_kept_private(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    old = os.umask(0)  # whatever the umask
    try:
        for _ in range(3):
            with said(None):
                assert library.kernels(DTYPES)
    finally:
        os.umask(old)
    assert compiled(place) == 1
    folder = place / "home" / ".cache" / "bnrepro"
    (file,) = folder.iterdir()
    assert kept(folder) == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(p.stat().st_mode) for p in (folder, folder.parent, folder.parent.parent)} == {0o700}


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def garbage(file: Path) -> None:
    file.write_bytes(b"not a library")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def writable(file: Path) -> None:
    file.chmod(0o666)


def link(file: Path) -> None:
    other = file.with_name("elsewhere")
    file.rename(other)
    file.symlink_to(other)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "x").touch()


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@needs_compiler
@pytest.mark.parametrize("harm", [damage, garbage, empty, flip, writable, link, folder, fifo], ids=lambda f: f.__name__)
def test_what_is_damaged_or_not_safe_is_not_loaded(
    harm: Callable[[Path], None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    assert library.kernels(DTYPES)
    (file,) = kept(place / "home" / ".cache" / "bnrepro")
    harm(file)
    with said(None):
        assert library.kernels(DTYPES)
    assert compiled(place) == 2
    if harm is not folder:  # put right
        assert library.kernels(DTYPES)
        assert compiled(place) == 2


def everybodys(folder: Path) -> None:
    folder.chmod(0o777)


def groups(folder: Path) -> None:
    folder.chmod(0o770)


def parent(folder: Path) -> None:
    folder.parent.chmod(0o777)


def grandparent(folder: Path) -> None:
    folder.parent.parent.chmod(0o777)


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))


def somebodys(folder: Path) -> None:
    os.chown(folder, 12345, -1)


@needs_compiler
@pytest.mark.parametrize("way", [everybodys, groups, parent, grandparent, linked, somebodys], ids=lambda f: f.__name__)
def test_a_cache_that_others_can_write_is_not_loaded_from(
    way: Callable[[Path], None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way is somebodys and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    assert library.kernels(DTYPES)
    way(place / "home" / ".cache" / "bnrepro")
    for _ in range(2):
        with said(None):
            assert library.kernels(DTYPES)
    assert compiled(place) == 2
    assert kept(place / "temporary" / f"bnrepro-{os.geteuid()}")


@needs_compiler
def test_another_users_library_is_not_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    assert library.kernels(DTYPES)
    (file,) = kept(place / "home" / ".cache" / "bnrepro")
    os.chown(file, 12345, -1)
    assert library.kernels(DTYPES)
    assert compiled(place) == 2


@needs_compiler
@pytest.mark.parametrize("home", ["missing", "unknown", "empty", "relative", "file", "readonly"])
def test_without_a_home_there_is_one_folder_per_user(home: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    (place / "file").write_text("")
    if home == "missing":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without an entry in passwd
    else:
        value = {"unknown": "~nobody-at-all", "empty": "", "relative": "here", "file": str(place / "file")}
        monkeypatch.setenv("HOME", value.get(home, "/proc/1/nowhere"))
    if home == "empty":  # which is the root folder: root could write there
        monkeypatch.setattr(library.os.path, "expanduser", lambda path: "")
    monkeypatch.chdir(place)
    for _ in range(2):
        with said(None):
            assert library.kernels(DTYPES)
    assert compiled(place) == 1
    assert kept(place / "temporary" / f"bnrepro-{os.geteuid()}")
    assert not (place / "here").exists()


@needs_compiler
def test_with_nowhere_to_keep_them_kernels_are_compiled_and_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    monkeypatch.setattr(library, "cache_folders", lambda: iter(()))
    with said(None):
        assert library.kernels(DTYPES)
    assert list((place / "temporary").iterdir()) == []


@needs_compiler
@pytest.mark.parametrize("memory_files", [True, False])
def test_a_cache_without_permission_to_execute_keeps_its_libraries(
    memory_files: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory files it does not matter; without, the next folder is taken, and nothing is compiled anew."""
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    cache = place / "home" / ".cache" / "bnrepro"
    if not memory_files:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    whole = ctypes.CDLL

    def noexec(name: str) -> ctypes.CDLL:
        if name.startswith(str(cache)):
            raise OSError(f"{name}: failed to map segment from shared object")
        return whole(name)

    assert library.kernels(DTYPES)
    monkeypatch.setattr(library.ctypes, "CDLL", noexec)
    before = kept(cache)
    for _ in range(3):
        with said(None):
            assert library.kernels(DTYPES)
    assert kept(cache) == before
    assert compiled(place) == (1 if memory_files else 3)  # there, and tried there once more, and in the next folder


@pytest.mark.slow
@needs_compiler
def test_a_library_cut_short_while_it_is_in_use_does_no_harm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("without memory files the file itself is in use")
    monkeypatch.setenv("CXX", compiler(place, WORKS))
    script = (
        "from pathlib import Path\nfrom bnrepro.norm import library\n"
        f"library.SOURCE = Path({str(library.SOURCE)!r})\nlibrary.FLAGS = {library.FLAGS}\n"
        f"k = library.kernels({DTYPES})\n"
        "[f.write_bytes(b'') for f in Path.home().glob('.cache/bnrepro/*.so')]\n"
        "k['rows', 'forward', 'float32'](b'')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_library_that_does_not_load_leaves_no_file_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    for _ in range(3):
        with pytest.raises(OSError, match="none"):
            library._loaded(b"no library", tmp_path / "none", DTYPES)
    assert opened() == before


# --- compilers ---

NO_OPENMP = 'for a in "$@"; do [ "$a" = -fopenmp ] && { echo "unknown argument: -fopenmp" >&2; exit 1; }; done\n'
OUT = '[ "$1" = --version ] && exit\nwhile [ "$1" != -o ]; do shift; done\n'
COMPILERS = {
    "fails": ("echo first >&2; echo second >&2; exit 3", "here: first."),
    "fails in silence": ("exit 3", "exit code 3"),
    "no version": ("[ $1 = --version ] && exit 1", "exit code 1"),
    "writes nothing": ("exit 0", "wrote no library"),
    "writes an empty file": (OUT + ': > "$2"', "wrote no library"),
    "writes a text": (OUT + 'echo text > "$2"', ""),  # the loader's own words
    "lacks a function": (OUT + "echo 'int x;' | exec c++ -x c -shared -o \"$2\" -", "no function"),
    "dies": ("[ $1 = --version ] || kill -9 $$", "exit code -9"),
    "says it in latin-1": ("printf 'Fehler: f\\374r\\n' >&2; exit 1", "Fehler: f"),
    "hangs": ("sleep 60", "did not finish within"),
    "hangs behind another": ("sleep 60 & wait", "did not finish within"),
    "compiles for ever": ("[ $1 = --version ] || sleep 60", "did not finish within"),
}


@pytest.mark.quick(2)
@needs_compiler
@pytest.mark.parametrize("kind", COMPILERS)
def test_whatever_the_compiler_does_there_is_one_sentence(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, words = COMPILERS[kind]
    monkeypatch.setenv("CXX", compiler(place, script))
    if "within" in words:
        monkeypatch.setattr(library, "VERSION_SECONDS", 0.5)
        monkeypatch.setattr(library, "COMPILE_SECONDS", 0.5)
    with said(words):
        assert library.kernels(DTYPES) is None
    with said(None):  # another worker is not told again
        assert library.kernels(DTYPES) is None
    monkeypatch.setattr(library, "SAID_FOR", 0)
    with said("kernels cannot be compiled"):  # a later command is
        assert library.kernels(DTYPES) is None


@pytest.mark.parametrize("command", ['g++ "', "none-such", "/", "/dev/null", " ", "''", "~", "\\"])
def test_whatever_cxx_says_there_is_one_sentence(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    with said("kernels cannot be compiled here"):
        assert library.kernels(DTYPES) is None


def test_no_compiler_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    with said("there is no g++ or c++"):
        assert library.kernels(DTYPES) is None


@needs_compiler
def test_a_version_that_is_no_utf8_is_a_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(place, "[ $1 = --version ] && { printf 'f\\374r\\n'; exit; }\n" + WORKS))
    with said(None):
        assert library.kernels(DTYPES)


@needs_compiler
def test_without_openmp_kernels_have_one_thread_and_it_is_said_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(place, NO_OPENMP + WORKS))
    with said("without threads (OpenMP): unknown argument: -fopenmp"):
        assert library.kernels(DTYPES)
    with said(None):
        assert library.kernels(DTYPES)
    assert compiled(place) == 2  # with and without; the second process compiles nothing


@needs_compiler
@pytest.mark.parametrize("flags", library.PARALLEL[1:], ids=str)
def test_the_kernels_compile_without_openmp_too(flags: tuple[str, ...], tmp_path: Path) -> None:
    command = ["c++", "-std=c++17", "-fPIC", "-shared", *flags, str(library.SOURCE), "-o", str(tmp_path / "k.so")]
    subprocess.run(command, check=True)
    assert library._functions(ctypes.CDLL(str(tmp_path / "k.so")), ("float32", "float64", "bfloat16"))
