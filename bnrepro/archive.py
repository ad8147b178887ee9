"""Archives with Keras's keys: any dataset of one's own."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from bnrepro.config import UserError

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""
Pair = tuple[Arrays, Arrays]
"""Training and test set."""

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(file: Path) -> Pair:
    """An archive with ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras has them.

    Images are uint8, (N, H, W) or (N, H, W, C); labels are integers from 0, (N,) or (N, 1).

    Raises:
        UserError: the file is missing or damaged, or an array is not of that kind.
    """

    def wrong(what: str) -> UserError:
        return UserError(f"data.path: {file} {what}. It must be an .npz archive with the arrays {', '.join(KEYS)}.")

    arrays: dict[str, np.ndarray] = {}
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise wrong("is a single array")
            if missing := [key for key in KEYS if key not in archive.files]:
                raise wrong(f"lacks {', '.join(missing)}")
            arrays = {key: archive[key] for key in KEYS}
    except FileNotFoundError as error:
        raise wrong("does not exist") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise wrong(
            f"is damaged or not an archive ({str(error).splitlines()[0] if str(error) else 'unreadable'})"
        ) from error

    pairs: list[Arrays] = []
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
            raise wrong(f"has x_{part} of {x.dtype} {x.shape}, not images (N, H, W) or (N, H, W, C) of uint8")
        if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
            raise wrong(f"has y_{part} of {y.dtype} {y.shape}, not {len(x)} integer labels")
        images = np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:3], -1), 3, 1))
        pairs.append((images, y.reshape(-1).astype(np.int64)))
    (x_train, y_train), (x_test, y_test) = pairs
    if x_train.shape[1:] != x_test.shape[1:]:
        raise wrong(f"has images of {x_train.shape[1:]} to train on and of {x_test.shape[1:]} to test on")
    if min(y_train.min(), y_test.min()) < 0 or y_test.max() > y_train.max():
        raise wrong("has labels below 0, or test labels that the training set lacks")
    return pairs[0], pairs[1]
