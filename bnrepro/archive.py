"""Archives with Keras's keys: any dataset of one's own."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from bnrepro import stored
from bnrepro.config import UserError

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""
Pair = tuple[Arrays, Arrays]
"""Training and test set."""

KEYS = ("x_train", "y_train", "x_test", "y_test")
LARGEST = 2**32  # bytes of the four arrays: 1.3 million colour images of 32 x 32. They are kept whole in memory
DENSEST = 200  # bytes that one packed byte may become: images are at 10, bombs at 1,000
MANY = 2**28  # bytes from which that is looked at: few images may well be all black


def read_npz(file: Path) -> Pair:
    """An archive with ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras has them.

    Images are uint8, (N, H, W) or (N, H, W, C); labels are integers from 0 and less than the number of images to train
    on, (N,) or (N, 1). What the arrays claim to be is held to that before memory is set aside for them.

    Raises:
        UserError: the file is missing or damaged, or an array is not of that kind.
    """
    try:
        return _checked(*_read(file))
    except _WrongError as error:
        what = str(error)
    except FileNotFoundError:
        what = "does not exist"
    except Exception as error:  # zipfile, its decompressors and NumPy's parser fail in many ways on what is no archive
        what = f"is damaged or not an archive ({str(error).splitlines()[0][:200] if str(error) else 'unreadable'})"
    raise UserError(
        f"data.path: {str(file)[:300]} {what}. It must be an .npz archive with the arrays {', '.join(KEYS)}."
    )


class _WrongError(Exception):
    """What the archive is or has, to go on after its name."""


def _read(file: Path) -> tuple[np.ndarray, ...]:
    """The arrays, in the order of `KEYS`."""
    packed = stored.plain_size(file)
    with zipfile.ZipFile(file) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        if missing := [key for key in KEYS if key not in members]:
            raise _WrongError(f"lacks {', '.join(missing)}")
        claimed = {key: _header(archive, key) for key in KEYS}
        for part in ("train", "test"):
            shape, dtype = claimed[f"x_{part}"]
            if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 1:
                raise _WrongError(f"has x_{part} of {dtype} {shape}, not images (N, H, W) or (N, H, W, C) of uint8")
            count, (shape, dtype) = shape[0], claimed[f"y_{part}"]
            if dtype.kind not in "iu" or shape not in ((count,), (count, 1)):
                raise _WrongError(f"has y_{part} of {dtype} {shape}, not {count} integer labels")
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in claimed.values())
        if total > LARGEST or (total > MANY and total > DENSEST * packed):
            raise _WrongError(
                f"claims arrays of {total:,} bytes in a file of {packed:,}. At most {LARGEST:,} are read, and from "
                f"{MANY:,} on at most {DENSEST} for each byte of the file"
            )
        return tuple(_array(archive, key) for key in KEYS)


def _header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype that an array claims, which are those of all bytes that it has."""
    member = archive.getinfo(f"{key}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _WrongError(f"has {key} packed in a way that np.savez and np.savez_compressed do not use")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:  # later ones are for arrays of records
            raise _WrongError(f"has {key} in version {version} of NumPy's format")
        shape, _, dtype = read(stream)
        there = member.file_size - stream.tell()
    if any(type(size) is not int or size < 0 for size in shape):
        raise _WrongError(f"has {key} of shape {shape}")
    if (claimed := math.prod(shape) * dtype.itemsize) != there and not dtype.hasobject:
        raise _WrongError(
            f"has {key} of {dtype} {shape}, which are {claimed:,} bytes and not the {there:,} that are there"
        )
    return shape, dtype


def _array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # at its end the checksum is looked at
    return array


def _checked(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Pair:
    """The arrays as training and test set, channels first, if they go together."""
    pairs: list[Arrays] = []
    for x, y in ((x_train, y_train), (x_test, y_test)):
        images = np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:3], -1), 3, 1))
        pairs.append((images, y.reshape(-1).astype(np.int64)))
    (x, y), (x_other, y_other) = pairs
    if x.shape[1:] != x_other.shape[1:]:
        raise _WrongError(f"has images of {x.shape[1:]} to train on and of {x_other.shape[1:]} to test on")
    if min(y.min(), y_other.min()) < 0 or y_other.max() > y.max():
        raise _WrongError("has labels below 0, or test labels that the training set lacks")
    if y.max() >= len(y):
        raise _WrongError(f"has the label {y.max()}, so more classes than its {len(y)} images to train on")
    return pairs[0], pairs[1]
