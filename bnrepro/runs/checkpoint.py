"""Checkpoints: what a broken run goes on from, as data with checksums."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from bnrepro.config import unreadable
from bnrepro.errors import UserError, out_of_memory
from bnrepro.runs import record
from bnrepro.system import output
from bnrepro.system import reading as stored


class DamagedError(UserError):
    """A checkpoint that was cut off or changed on its way."""


def save(file: Path, payload: dict[str, Any], previous: Path | None = None) -> None:
    """Tensors, numbers, strings and containers of them; nothing that needs code to be read.

    The file is a ZIP archive, as torch writes it, with a checksum (CRC-32) of each member. The checkpoint that was
    there is kept as ``previous``, where that is given.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    record.write_whole(file, buffer.getvalue(), previous)


def drop_optimizer(file: Path, do_it: bool = True) -> int:
    """Rewrite a checkpoint without the optimizer's state, and return the bytes that this saves; 0: it has none.

    Raises:
        UserError: as `load`.
    """
    state = load(file)
    if "optimizer" not in state:
        return 0
    buffer = io.BytesIO()
    torch.save({key: value for key, value in state.items() if key != "optimizer"}, buffer)
    saved = file.stat().st_size - len(buffer.getvalue())
    if do_it:
        record.write_whole(file, buffer.getvalue())
    return saved


def check(state: Any) -> Any:
    """``state`` as a checkpoint gives it back.

    Raises:
        ValueError: it cannot, since it holds more than `save` says.
    """
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # of the object itself, of pickle or of torch
        raise ValueError("its state_dict() must hold tensors, numbers, texts and containers of them alone") from error


def load(file: Path) -> dict[str, Any]:
    """A checkpoint as data, once its checksums are right: objects other than tensors and primitives are refused.

    Raises:
        DamagedError: cut off, or its checksums are wrong.
        UserError: missing, not to be read just now, carrying code, or something else.
    """
    damaged = DamagedError(f"{file} is damaged. Run it again with --force.")
    try:
        # Read in full first: from here on no error can be the file system's, and so no file that is whole is taken
        # for a damaged one.
        stored.plain_size(file)
        content = io.BytesIO(file.read_bytes())
        with zipfile.ZipFile(content) as archive:
            if archive.testzip() is not None:
                raise damaged
        content.seek(0)
        payload = torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no checkpoint {file}. Train the run first.") from error
    except (OSError, MemoryError) as error:
        raise unreadable(file, error) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is refused: it carries objects other than tensors.") from error
    except UserError:
        raise
    except Exception as error:  # the kinds of errors that zipfile, zlib and torch have for nonsense are many
        if out_of_memory(error):
            raise unreadable(file, MemoryError()) from error
        raise damaged from error
    if not isinstance(payload, dict):
        raise UserError(f"{file} is not a checkpoint of a run.")
    return payload


def last(directory: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run; None if there is none. What is damaged is reported on standard error.

    Raises:
        UserError: one cannot be read just now, carries code, or is no checkpoint.
    """
    damaged: list[Path] = []
    for file in (directory / record.CHECKPOINT, directory / record.PREVIOUS):
        try:
            found = load(file) if record.is_there(file) else None
        except DamagedError:
            damaged.append(file)
            continue
        if found is not None:
            for other in damaged:
                output.tell(f"{other} is damaged: resuming from the previous one.")
            return found
    for file in damaged:
        output.tell(f"{file} is damaged, and there is no intact earlier one: starting over.")
    return None
