"""Archives of images and labels: any dataset of one's own."""

from __future__ import annotations

import errno
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnrepro.config import no_archive
from bnrepro.data.arrays import Layout, Pair, WrongError, classes, layouts, pixels
from bnrepro.errors import UserError
from bnrepro.system import reading as stored

KEYS = ("x_train", "y_train", "x_test", "y_test")
LARGEST = 2**32  # bytes of the four arrays: 1.3 million colour images of 32 x 32. They are kept whole in memory
DENSEST = 200  # bytes that one packed byte may become: images are at 10, bombs at 1,000
FORM = f"It must be an .npz archive with the arrays {', '.join(KEYS)}, as np.savez writes it"
MANY = 2**28  # bytes from which that is looked at: few images may well be all black

_PARTS = {"train": "train|training", "test": "test|testing", "val": "val|valid|validation|dev"}
_KINDS = {"x": "x|images?|imgs?|data|pixels|inputs?", "y": "y|labels?|targets?|class(?:es)?"}


@dataclass(frozen=True)
class Archive:
    """What was found in an archive."""

    pair: Pair
    notes: tuple[str, ...]
    """How ambiguous properties of the arrays were interpreted."""


def read_npz(file: Path) -> Pair:
    """The images and labels in an archive; see `read_archive`."""
    return read_archive(file).pair


def read_archive(file: Path) -> Archive:
    """An archive with ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras has them.

    Names such as ``train_images`` and ``X_train`` are known too. Images are (N, H, W), (N, H, W, C), (N, C, H, W), with
    N last, or flat where they are square and grey; of 0 to 255, 0 to 1 or -1 to 1. Labels are whole numbers, names or
    one-hot. All become uint8 (N, C, H, W) and classes from 0; what can be meant in several ways is refused. What the
    arrays claim to be is held to that before memory is set aside for them.

    Raises:
        UserError: the file is missing or damaged, cannot be read just now, or an array is not of that kind.
    """
    name = str(file)[:300]
    try:
        return _read(file)
    except WrongError as error:
        raise UserError(f"data.path: {name} {error}.") from error
    except Exception as error:  # zipfile, its decompressors and NumPy's parser fail in many ways on what is no archive
        # What cannot be read may be whole. Only a place in the file that no file has (EINVAL) is the file's own fault.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (errno.EINVAL, None)):
            raise no_archive(file, error) from error
        why = str(error).splitlines()[0][:200] if str(error) else "unreadable"
        raise UserError(f"data.path: {name} is damaged or not an archive ({why}). {FORM}.") from error


def _read(file: Path) -> Archive:
    packed = stored.plain_size(file)
    with file.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            raise WrongError(f"is a single array (.npy). {FORM}")
    with zipfile.ZipFile(file) as archive:
        members, notes = _members(archive)
        claimed = {key: _header(archive, key, member) for key, member in members.items()}
        where = _check(claimed)
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in claimed.values())
        if total > LARGEST or (total > MANY and total > DENSEST * packed):
            raise WrongError(
                f"claims arrays of {total:,} bytes in a file of {packed:,}. At most {LARGEST:,} are read, and from "
                f"{MANY:,} on at most {DENSEST} for each byte of the file. Save fewer images, smaller ones or uint8"
            )
        if where[0].shape != where[1].shape:
            raise WrongError(
                f"has training images of {where[0].shape} and test images of {where[1].shape} (C, H, W). "
                "Resize them to one shape, all gray or all in color"
            )
        arrays = {key: _array(archive, member) for key, member in members.items()}
    notes += [f"axes {each.name}" for each in where if each.name not in ("NHW", "NHWC")]
    y_train, y_test, about_labels = classes(arrays["y_train"], arrays["y_test"])
    (x_train, x_test), about_pixels = pixels([arrays["x_train"], arrays["x_test"]], where)
    notes = [*notes, *about_pixels, *about_labels]
    return Archive(((x_train, y_train), (x_test, y_test)), tuple(dict.fromkeys(notes)))


def _members(archive: zipfile.ZipFile) -> tuple[dict[str, str], list[str]]:
    """The archive's member for each of `KEYS`, and notes.

    Raises:
        WrongError: one is missing, or there are two of them.
    """
    files = [name for name in archive.namelist() if not name.rpartition("/")[2].startswith("._")]  # macOS's shadows
    arrays = [name for name in files if name.endswith(".npy")]
    if not arrays and (inside := [name for name in files if name.endswith(".npz")]):
        raise WrongError(f"is a zip file that contains {inside[0][:100]}. Unpack it, and use the path of that file")
    exact = {key: f"{key}.npy" for key in KEYS}
    roles: dict[str, list[str]] = {}
    for name in arrays:
        if role := _role(name):
            roles.setdefault(role, []).append(name)
    if missing := [key for key in KEYS if key not in roles]:
        names = ", ".join(name.removesuffix(".npy")[:40] for name in arrays[:10])
        unsplit = any(re.fullmatch(_KINDS["x"], _plain(name)) for name in arrays)
        advice = ". Split its images into training and test images, and save them under these names"
        has = names or "no arrays"
        raise WrongError(f"lacks {', '.join(missing)}; it has {has}{advice if unsplit else ''}. {FORM}")
    if twice := [names for names in map(roles.__getitem__, KEYS) if len(names) > 1]:
        raise WrongError(f"has both {twice[0][0][:100]} and {twice[0][1][:100]}, which mean the same. Leave one out")
    if set(exact.values()) <= set(arrays):
        return exact, _left_out(arrays)
    members = {key: roles[key][0] for key in KEYS}
    names = ", ".join(member.removesuffix(".npy")[:40] for member in members.values())
    return members, [f"arrays {names}", *_left_out(arrays)]


def _role(name: str) -> str | None:
    """Which of `KEYS` (or of x_val and y_val) an array is, whatever its writer called it: train_images, X_train."""
    plain = _plain(name)
    for part, parts in _PARTS.items():
        for kind, kinds in _KINDS.items():
            if re.fullmatch(f"(?:{parts})(?:{kinds})|(?:{kinds})(?:{parts})", plain):
                return f"{kind}_{part}"
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].removesuffix(".npy").lower())


def _left_out(arrays: list[str]) -> list[str]:
    return ["its own validation set left out"] if any(_role(name) == "x_val" for name in arrays) else []


_Claim = tuple[tuple[int, ...], np.dtype]


def _check(claimed: dict[str, _Claim]) -> list[Layout]:
    """The layouts of training and test images, once the types of images and labels have been checked."""
    for key, (shape, dtype) in claimed.items():
        if dtype.kind not in ("buif" if key[0] == "x" else "buifUS"):
            what = (
                "images: save them as uint8" if key[0] == "x" else "labels: save them as .astype(int) or .astype(str)"
            )
            raise WrongError(f"has {key} of {dtype} {shape}, not {what}")
    shapes = {key: shape for key, (shape, _) in claimed.items()}
    return layouts([shapes["x_train"], shapes["x_test"]], [shapes["y_train"], shapes["y_test"]])


def _header(archive: zipfile.ZipFile, key: str, name: str) -> _Claim:
    """The shape and dtype that an array claims, which are those of all bytes that it has."""
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise WrongError(f"has {key} locked with a password. Unpack it, and save the arrays with np.savez")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WrongError(
            f"has {key} compressed by a method that np.savez and np.savez_compressed do not use. Save the arrays with "
            "one of these"
        )
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:  # later ones are for arrays of records
            raise WrongError(f"has {key} in version {version} of NumPy's format. Save plain arrays with np.savez")
        shape, _, dtype = read(stream)
        there = member.file_size - stream.tell()
    if any(type(size) is not int or size < 0 for size in shape):
        raise WrongError(f"has {key} of shape {shape}, which no array has. Save the arrays anew with np.savez")
    if (claimed := math.prod(shape) * dtype.itemsize) != there and not dtype.hasobject:
        raise WrongError(
            f"has {key} of {dtype} {shape}, which are {claimed:,} bytes and not the {there:,} that are there. "
            "Save the arrays anew with np.savez"
        )
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # at its end the checksum is looked at
    return array
