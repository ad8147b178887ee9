"""Published files, identified by their content rather than their name and verified by checksum."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bnrepro.errors import UserError, no_folder
from bnrepro.system import reading as stored

LARGEST = 2**28  # bytes of a published file, unpacked: CIFAR-100's archive, the largest, has 169 million
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
DEEPEST = 4  # folders below data.root that are looked into
MOST = 5000  # files and folders that are looked at
BLOCK = 512  # bytes by which a file is taken for what it may hold; the header of a tar archive


@dataclass(frozen=True)
class Wanted:
    """A published file: its path in torchvision's layout, and how to recognise it under any other name."""

    file: Path
    kind: str
    digest: str
    """Of its content, unpacked."""
    size: int | None = None
    """Bytes of its content, where they are known."""
    start: bytes = b""
    """What its content begins with."""

    def likely(self, start: bytes, size: int) -> bool:
        """Whether content of ``size`` bytes that begins with ``start`` may be this file."""
        return self.size in (None, size) and start.startswith(self.start)

    def is_in(self, raw: bytes) -> bool:
        """Whether ``raw`` is the content."""
        return hashlib.new(self.kind, raw, usedforsecurity=False).hexdigest() == self.digest

    def place(self) -> Path:
        """The file in its own place, packed or not."""
        unpacked = self.file.with_name(self.file.name.removesuffix(".gz"))
        return unpacked if stored.is_file(unpacked) else self.file


@dataclass(frozen=True)
class Found:
    """A published file that was found elsewhere."""

    raw: bytes
    in_archive: bool


Whose = Callable[[bytes], str | None]
"""Which published file a content is, where that is known."""


def need_folder(root: Path) -> None:
    """Raise UserError if ``root``, or what leads to it, is a file."""
    places = (root, *root.parents)
    there = next((path for path in places if stored.mode(path) or os.path.islink(path)), None)  # noqa: PTH114  no errors
    if there is not None and not stored.is_folder(there):
        raise UserError(f"data.root={root}: {there} {no_folder(there)}. Set data.root to a folder.")


def read_all(root: Path, wanted: Sequence[Wanted], remedy: str, whose: Whose = lambda _: None) -> list[bytes]:
    """The contents of published files: each from its own place, else from wherever in ``root`` it is.

    Raises:
        UserError: one of them is nowhere; says what is wrong in its own place.
    """
    need_folder(root)
    contents: dict[str, bytes] = {}
    problems: dict[str, UserError] = {}
    for each in wanted:
        try:
            contents[each.digest] = checked(each.place(), each.kind, each.digest, remedy, whose)
        except UserError as error:
            problems[each.digest] = error
    if problems:
        elsewhere = search(root, [each for each in wanted if each.digest in problems])
        contents |= {digest: found.raw for digest, found in elsewhere.items()}
    for each in wanted:
        if each.digest not in contents:
            raise problems[each.digest]
    return [contents[each.digest] for each in wanted]


def search(root: Path, wanted: Sequence[Wanted]) -> dict[str, Found]:
    """Those of ``wanted`` that are somewhere in ``root``, by their digests: under another name, packed, in an archive.

    Only what has the right size and beginning is read whole.
    """
    found: dict[str, Found] = {}
    for file in _plain_files(root):
        left = [each for each in wanted if each.digest not in found]
        if not left:
            break
        try:
            for raw, in_archive in _contents(file, left):
                found |= {each.digest: Found(raw, in_archive) for each in left if each.is_in(raw)}
        except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, zipfile.BadZipFile, NotImplementedError):
            continue  # damaged, or cannot be read: not what is looked for
        except RuntimeError:  # a zip file with a password
            continue
    return found


def _plain_files(folder: Path) -> Iterator[Path]:
    """The plain files in ``folder`` and below, some levels deep; links count for what they lead to."""
    queue, seen = deque([(folder, 0)]), 0
    while queue:
        here, depth = queue.popleft()
        try:
            entries = sorted(here.iterdir())
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > MOST:
                return
            if stored.is_folder(entry):
                if depth < DEEPEST and not entry.name.startswith("."):
                    queue.append((entry, depth + 1))
            elif stored.is_file(entry):  # no pipe, no device
                yield entry


def _contents(file: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[bytes, bool]]:
    """Candidates for ``wanted`` in ``file`` (itself, unpacked, or members of an archive), and which are members."""
    size = stored.plain_size(file)
    if size > LARGEST:
        return
    with file.open("rb") as stream:
        start = stream.read(BLOCK)
        if start.startswith(GZIP):
            stream.seek(-4, io.SEEK_END)
            size = int.from_bytes(stream.read(4), "little")  # as gzip says at its end; the checksum decides
            stream.seek(0)
            start = gzip.GzipFile(fileobj=stream).read(BLOCK)
    if start.startswith(ZIP):
        yield from ((raw, True) for raw in _zipped(file, wanted))
    elif _is_tar(start):
        yield from ((raw, True) for raw in _tarred(_unpacked(file), wanted))
    elif any(each.likely(start, size) for each in wanted):
        yield _unpacked(file), False


def _is_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unpacked(file: Path) -> bytes:
    """The content of ``file``, unpacked if it is gzip's, whatever its name.

    Raises:
        ValueError: it is too large.
        OSError, EOFError, zlib.error: it cannot be read, or does not unpack.
    """
    raw = stored.read_bytes(file, LARGEST)
    if raw.startswith(GZIP):
        raw = _gunzip(raw)
    return raw


def _gunzip(raw: bytes) -> bytes:
    with gzip.open(io.BytesIO(raw)) as stream:
        content = stream.read(LARGEST + 1)  # and no more, whatever is packed in it
    if len(content) > LARGEST:
        raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
    return content


def _zipped(file: Path, wanted: Sequence[Wanted]) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist()[:MOST]:
            if member.is_dir() or member.file_size > LARGEST:
                continue
            with archive.open(member) as stream:
                start = stream.read(BLOCK)
                if start.startswith(GZIP):  # packed twice: each of them is small
                    yield _gunzip(start + stream.read(LARGEST))
                elif any(each.likely(start, member.file_size) for each in wanted):
                    yield start + stream.read(LARGEST)


def _tarred(raw: bytes, wanted: Sequence[Wanted]) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for member in islice(archive, MOST):
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                continue
            start = stream.read(BLOCK)
            if start.startswith(GZIP):
                yield _gunzip(start + stream.read(LARGEST))
            elif any(each.likely(start, member.size) for each in wanted):
                yield start + stream.read()


def content(file: Path, remedy: str = "") -> bytes:
    """The content of ``file``, unpacked if it is gzip's."""
    try:
        return _unpacked(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing. {remedy}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} is damaged: it does not unpack. Delete it. {remedy}") from error
    except ValueError as error:
        raise UserError(f"{file} is not the published file: {error}. Delete it. {remedy}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}). {remedy}") from error


def checked(file: Path, kind: str, digest: str, remedy: str, whose: Whose = lambda _: None) -> bytes:
    """`content` of ``file`` if they have the checksum ``digest``."""
    raw = content(file, remedy)
    if hashlib.new(kind, raw, usedforsecurity=False).hexdigest() != digest:
        if other := whose(raw):
            raise UserError(f"{file} is intact, but it is {other}. Move it there. {remedy}")
        raise UserError(f"{file} is damaged or not the published file: its checksum is wrong. Delete it. {remedy}")
    return raw


def store(file: Path, raw: bytes) -> None:
    """Write a file of a dataset, whole.

    Raises:
        UserError: that is not possible there.
    """
    from bnrepro.system.writing import write_whole

    try:
        write_whole(file, raw)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}). Set data.root to a writable folder with enough space."
        ) from error


def missing(root: Path, wanted: Sequence[Wanted]) -> list[Wanted]:
    """Those that are neither in their own place (whatever is in them) nor elsewhere in ``root``."""
    absent = [each for each in wanted if not stored.is_file(each.place())]
    elsewhere = search(root, absent) if absent else {}
    return [each for each in absent if each.digest not in elsewhere]
