"""Checkpoints: what a broken run goes on from, as data with checksums."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from bnrepro import record
from bnrepro.config import UserError


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


def load(file: Path) -> dict[str, Any]:
    """A checkpoint as data, once its checksums are right: objects other than tensors and primitives are refused.

    Raises:
        DamagedError: cut off, or its checksums are wrong.
        UserError: missing, carrying code, or something else.
    """
    damaged = DamagedError(f"{file} is damaged. Run it again with --force.")
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise damaged
        payload = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no checkpoint {file}. Train the run first.") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is refused: it carries objects other than tensors.") from error
    except UserError:
        raise
    except Exception as error:  # the kinds of errors that zipfile, zlib and torch have for nonsense are many
        raise damaged from error
    if not isinstance(payload, dict):
        raise UserError(f"{file} is not a checkpoint of a run.")
    return payload


def last(directory: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run; None if there is none. What is damaged is told on standard error.

    Raises:
        UserError: one carries code, or is no checkpoint.
    """
    for name in (record.CHECKPOINT, record.PREVIOUS):
        file = directory / name
        if not file.exists():
            continue
        try:
            return load(file)
        except DamagedError:
            then = "going on from the one before" if name == record.CHECKPOINT else "starting over"
            if name == record.CHECKPOINT and not (directory / record.PREVIOUS).exists():
                then = "there is none before it, so the run starts over"
            print(f"{file} is damaged: {then}.", file=sys.stderr)
    return None
