"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from bnrepro.errors import UserError
from bnrepro.system.output import shown

LIST = ".bnrepro"
"""In a folder that a user named: the files that are ours there, a line each."""


def replace_own(folder: Path, names: Collection[str], option: str = "--out") -> None:
    """Note that the files ``names`` in ``folder``, which are about to be written, are ours.

    Raises:
        UserError: one of them is there and is not ours; ``option`` names another folder.
    """
    listed = folder / LIST
    try:
        ours = listed.read_text("utf-8", errors="replace").splitlines() if listed.is_file() else []
    except OSError:  # then nothing is
        ours = []
    for name in names:
        if name not in ours and os.path.lexists(folder / name):
            raise UserError(
                f"{shown(folder / name)} was not written by this command and would be replaced. Move it away, or use "
                f"another {option}."
            )
    if new := [name for name in names if name not in ours]:
        write_whole(listed, "".join(f"{name}\n" for name in (*ours, *new)))


def write_whole(file: Path, content: bytes | str, previous: Path | None = None) -> None:
    """Write ``file`` so that it is there in full or, whatever happens, as it was before.

    What was there is kept as ``previous``, where that is given.
    """
    raw = content.encode() if isinstance(content, str) else content
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    # Not by tempfile, whose files are the user's alone: who may read this one is for the umask to say.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(raw)
            stream.flush()
            _sync(stream.fileno())
        if previous and file.exists():
            _keep(file, previous)
        temporary.replace(file)
        _sync_folder(file.parent)
    except BaseException as error:
        # That of a write or a sync does not say where, and of the temporary file nobody needs to know.
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(file), None
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def _sync(handle: int) -> None:
    """Flush to disk, if the file system supports it."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise


def _keep(file: Path, previous: Path) -> None:
    """``file`` as ``previous`` too; it stays where it is, so that a rename that fails after this loses nothing."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(file, link)
        link.replace(previous)
    except OSError:  # a file system without hard links
        with suppress(OSError):
            link.unlink(missing_ok=True)
        file.replace(previous)


def _sync_folder(folder: Path) -> None:
    """Have the new name survive a power cut too, where folders can be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems
    finally:
        os.close(handle)
