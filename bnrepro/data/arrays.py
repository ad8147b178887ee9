"""How arrays of images are interpreted: the order of their axes, the scale of their pixels, their labels.

What can be meant in one way only is understood, and said in a note; what can be meant in several ways is refused.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""
Pair = tuple[Arrays, Arrays]
"""Training and test set."""

CHANNELS = (1, 2, 3, 4)  # of images, unless their other two sides are equal
SMALLEST = 8  # side of an image in a flat array: what is shorter is rather a table
CHUNK = 2**24  # bytes that are looked at or converted at a time
HALF = 128  # level from which on images are bright: where the brightest pixel is darker, their scale may be another
NEAR = 1e-3  # part of the scale by which interpolation may go beyond its ends
LONGEST = 100  # characters of a label


class WrongError(Exception):
    """An array that cannot be interpreted. The message continues a sentence that begins with the name of the file."""


# --- axes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How to see an array as images (N, C, H, W)."""

    name: str
    """The axes in their order, as in NHWC."""
    count: int
    last: bool
    """Whether the last axis indexes the images."""
    view: tuple[int, int, int]
    """The three axes of an image as they are stored."""
    order: tuple[int, int, int]
    """Indices of C, H and W among them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = (self.view[i] for i in self.order)
        return c, h, w

    def images(self, array: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Images ``start`` to ``stop`` of ``array``, (N, C, H, W)."""
        part = np.moveaxis(array[..., start:stop], -1, 0) if self.last else array[start:stop]
        c, h, w = (1 + i for i in self.order)
        return part.reshape(len(part), *self.view).transpose(0, c, h, w)


def layouts(images: Sequence[tuple[int, ...]], labels: Sequence[tuple[int, ...]]) -> list[Layout]:
    """The order of the axes of training and test images, from their shapes and those of the labels.

    Raises:
        WrongError: there are not as many labels as images, or the axes could be taken in more than one way.
    """
    parts = list(zip(images, labels, ("train", "test"), strict=True))
    found = [layout(*each) for each in parts]
    if any(each.last for each in found):  # then in both, where one of them could be taken in both ways
        return [layout(*each, last=True) for each in parts]
    if all(layout(*each, last=True).last for each in parts):
        raise WrongError(
            f"has x_train of shape {images[0]} and x_test of shape {images[1]}, where it is not clear whether the "
            "first axis or the last one counts the images. Save them as (N, H, W, C), where N is not C"
        )
    return found


def layout(images: tuple[int, ...], labels: tuple[int, ...], part: str, last: bool = False) -> Layout:
    """The order of the axes of one array of images; ``last``: the images' own is rather the last one than the first.

    Raises:
        WrongError: as `layouts`.
    """
    what = f"has x_{part} of shape {images} and y_{part} of shape {labels}"
    if not images or not labels or 0 in images + labels or len(labels) > 2:
        raise WrongError(
            f"{what}, not images and a label for each. Save one image or more, and one label for each image"
        )
    count = labels[1] if len(labels) == 2 and labels[0] == 1 else labels[0]
    if len(images) < 2 or len(images) > 4 or count not in (images[0], images[-1]):
        counts = f": {images[0]:,} images and {count:,} labels" if count != images[0] else ""
        raise WrongError(
            f"{what}{counts}, not images such as ({count}, H, W), ({count}, H, W, C) or ({count}, C, H, W)"
            " with a label for each"
        )
    ways = {False: _axes(images[1:]) if images[0] == count else [], True: _axes(images[:-1])}
    if images[-1] != count:
        ways[True] = []
    last = last if ways[last] else not last
    if len(ways[last]) != 1:
        raise WrongError(
            f"{what}, where it is not clear which axis holds the colour channels. Save the images as "
            "(N, H, W, C) with at most 4 channels and more than 4 rows and columns"
        )
    name, view, order = ways[last][0]
    return Layout(f"{name}N" if last else f"N{name}", count, last, view, order)


_Axes = tuple[str, tuple[int, int, int], tuple[int, int, int]]
_FIRST, _LAST = (0, 1, 2), (2, 0, 1)  # places of C, H and W


def _axes(shape: tuple[int, ...]) -> list[_Axes]:
    """The ways to take the axes of one image."""
    if len(shape) == 1:
        side = _side(shape[0])
        return [("(HW)", (1, side, side), _FIRST)] if side else []
    if len(shape) == 2:
        a, b = shape
        if a in (1, 3) and (side := _side(b)):
            return [("C(HW)", (a, side, side), _FIRST)]
        if b in (1, 3) and (side := _side(a)):
            return [("(HW)C", (side, side, b), _LAST)]
        return [("HW", (1, a, b), _FIRST)]
    a, b, c = shape
    ways: list[_Axes] = [("HWC", (a, b, c), _LAST), ("CHW", (a, b, c), _FIRST)]
    few = [way for way, channels in zip(ways, (c, a), strict=True) if channels in CHANNELS]
    square = [way for way, sides in zip(ways, ((a, b), (b, c)), strict=True) if sides[0] == sides[1]]
    likely = [way for way in few if way in square] or few or square
    return likely if not square or set(likely) & set(square) else [*likely, *square]


def _side(size: int) -> int:
    """Of a square of ``size`` pixels; 0 if there is none, or a small one."""
    side = math.isqrt(size)
    return side if side * side == size and side >= SMALLEST else 0


# --- pixels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """What the pixels of an array are."""

    low: float
    high: float
    whole: bool


def pixels(arrays: Sequence[np.ndarray], layouts: Sequence[Layout]) -> tuple[list[np.ndarray], list[str]]:
    """Training and test images as levels of 0 to 255, (N, C, H, W) uint8, and notes on what they were.

    Raises:
        WrongError: their scale is none that is known, or not the same; or all pixels of a part are equal.
    """
    parts = ("train", "test")
    about = [_values(array, where, part) for array, where, part in zip(arrays, layouts, parts, strict=True)]
    levels = [array.dtype.kind in "iu" and values.high <= 255 for array, values in zip(arrays, about, strict=True)]
    images, notes, scales = [], [], set()
    for array, where, part in zip(arrays, layouts, parts, strict=True):
        # Those of one type have one scale: a dark test set alone would look like another one.
        alike = [
            values for other, values in zip(arrays, about, strict=True) if all(levels) or other.dtype == array.dtype
        ]
        factor, shift, note = _scale(array.dtype, alike)
        scales.add((factor, shift))
        images.append(_levels(array, where, factor, shift))
        notes += [note] if note else []
        if one_value(images[-1]):
            raise WrongError(
                f"has x_{part} in which all pixels have the same level, {images[-1].flat[0]}: these images show "
                "nothing. Save the original images"
            )
    bright = [values.high * factor + shift >= HALF for values in about]
    if len(scales) == 1 and len(set(bright)) == 2:
        dark = bright.index(False)
        what = "levels" if all(levels) else "values"
        notes.append(f"{what} of at most {about[dark].high:g} in x_{parts[dark]}, brighter ones in x_{parts[1 - dark]}")
    return images, notes


def one_value(images: np.ndarray, threshold: int = 0) -> bool:
    """Whether all pixels of ``images`` are equal; with ``threshold``, whether all or none are at it or above."""

    def seen(some: np.ndarray) -> np.ndarray:
        return some >= threshold if threshold else some

    first = seen(images[0].flat[0])
    step = max(1, CHUNK * len(images) // max(images.nbytes, 1))
    return all((seen(images[start : start + step]) == first).all() for start in range(0, len(images), step))


def _chunks(array: np.ndarray, where: Layout) -> Iterator[tuple[int, np.ndarray]]:
    """The images, some at a time, and the number of the first."""
    step = max(1, CHUNK * where.count // max(array.nbytes, 1))
    for start in range(0, where.count, step):
        yield start, where.images(array, start, start + step)


def _values(array: np.ndarray, where: Layout, part: str) -> Values:
    low, high, whole = math.inf, -math.inf, True
    for start, some in _chunks(array, where):
        if array.dtype.kind == "f":
            if not (finite := np.isfinite(some).all((1, 2, 3))).all():
                raise WrongError(
                    f"has values in x_{part} that are not finite (image {start + int(finite.argmin())}). Fix these "
                    "images or leave them out"
                )
            whole = whole and bool((some == np.rint(some)).all())
        low, high = min(low, float(some.min())), max(high, float(some.max()))
        if array.dtype == np.uint8 and high >= HALF:
            break  # all that is asked of these
    return Values(low, high, whole)


def _scale(dtype: np.dtype, about: list[Values]) -> tuple[float, float, str]:
    """Scale and offset that map values to levels from 0 to 255, and a note if the mapping is not the identity.

    Raises:
        WrongError: that cannot be told.
    """
    low, high = min(v.low for v in about), max(v.high for v in about)
    whole, kind = all(v.whole for v in about), dtype.kind
    small = [v for v in about if 0 < v.high <= 1 + NEAR]

    def note(text: str, factor: float = 1, shift: float = 0) -> str:
        return f"{text}, the brightest of them {high:g}" if high * factor + shift < HALF else text

    if whole and low >= 0 and high <= 1:
        return 255, 0, "" if high == 0 else f"{dtype} 0 and 1 for black and white"
    if whole and low >= 0 and high <= 255 and not small:
        return 1, 0, note(f"{dtype} levels of 0 to 255") if high < HALF or dtype != np.uint8 else ""
    if kind in "iu" and low >= 0 and 2**15 <= high < 2**16 and all(v.high > 255 for v in about):
        return 1 / 257, 0, f"{dtype} levels of 0 to 65535 rounded to 0 to 255"
    if kind == "f" and low >= -NEAR and 0.1 < high <= 1 + NEAR:
        return 255, 0, note(f"{dtype} values from 0 to 1 as 0 to 255", 255)
    if kind == "f" and -1 - NEAR <= low <= -0.9 and high <= 1 + NEAR and all(v.low < 0 for v in about):
        return 127.5, 127.5, note(f"{dtype} values from -1 to 1 as 0 to 255", 127.5, 127.5)
    if kind == "f" and low >= -255 * NEAR and 128 <= high <= 255 * (1 + NEAR) and not small:
        return 1, 0, f"{dtype} values from 0 to 255, rounded"
    each = " and ".join(f"{v.low:g} to {v.high:g}" for v in about)
    raise WrongError(
        f"has images of {dtype} with values from {each}, not of one scale that is known: 0 to 255, 0 to 1 or -1 to 1. "
        "Save them as uint8, black 0 and white 255"
    )


def _levels(array: np.ndarray, where: Layout, factor: float, shift: float) -> np.ndarray:
    if array.dtype == np.uint8 and factor == 1:
        return np.ascontiguousarray(where.images(array, 0, where.count))
    levels = np.empty((where.count, *where.shape), np.uint8)
    for start, some in _chunks(array, where):
        wide: Any = some.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
        levels[start : start + len(some)] = np.rint(np.clip(wide * factor + shift, 0, 255))
    return levels


# --- labels -------------------------------------------------------------------------------------------------------


def classes(y_train: np.ndarray, y_test: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels as class indices (N,) int64, numbering the classes of the training set in ascending order; and notes.

    Raises:
        WrongError: they are not one class for each image, or the test set has others.
    """
    notes: list[str] = []
    hot = [_columns(y_train), _columns(y_test)]
    if all(hot):
        if hot[0] != hot[1]:
            raise WrongError(
                f"has one-hot labels of {hot[0]} classes to train on, {hot[1]} to test. Save a column for "
                "each class in both"
            )
        notes.append("one-hot labels")
    train, test = _plain(y_train, "train"), _plain(y_test, "test")
    if train.dtype.kind != test.dtype.kind:
        raise WrongError(
            "has names for labels in one part and numbers in the other. Save both as names, or both as numbers"
        )
    if any(hot) and not all(hot):
        numbered = np.unique(test if hot[0] else train)
        names = ("y_train", "y_test") if hot[0] else ("y_test", "y_train")
        # A column has no number but its place. Numbers from 1 would fit as well where the last class lacks.
        if numbered[0] != 0 or (hot[1] and not np.array_equal(numbered, np.arange(hot[1]))):
            raise WrongError(
                f"has one-hot labels of {max(hot)} columns in {names[0]} and the numbers {_some(numbered)} in "
                f"{names[1]}, where it is not clear which column has which number. Save both as numbers, or both "
                "as one-hot labels"
            )
        notes.append(f"one-hot labels in {names[0]}, whose columns are the numbers from 0 in {names[1]}")
    if train.dtype.kind == "U":
        _check_seen(np.unique(np.concatenate([train, test])).tolist())
    known, numbers = np.unique(train, return_inverse=True)
    if len(known) == 1:
        raise WrongError(
            f"has the label {_some(known)} alone in y_train. At least two classes are needed: add images of others"
        )
    if len(known) == len(train):
        raise WrongError("has a different label for every training image. Save classes as labels")
    if len(lacking := np.setdiff1d(test, known)):
        what = f"has test labels that the training set lacks ({_some(lacking)})"
        if len(other := np.setdiff1d(known, test)):  # each has what the other lacks: numbers from 0 and from 1
            raise WrongError(
                f"{what} and lacks others that it has ({_some(other)}): y_train and y_test seem to count or name the "
                "classes differently. Give each class the same label in both; if they are the same already, leave out "
                "the test images of classes that are not trained on"
            )
        raise WrongError(f"{what}. Leave these test images out")
    if not np.array_equal(known, np.arange(len(known))) or train.dtype.kind == "U":
        whole_range = train.dtype.kind == "i" and int(known[-1]) - int(known[0]) == len(known) - 1
        said = f"{known[0]} to {known[-1]}" if whole_range and len(known) > 1 else _some(known)
        notes.append(f"labels {said} counted from 0")
    return numbers.reshape(-1).astype(np.int64), np.searchsorted(known, test).astype(np.int64), notes


def _check_seen(names: list[str]) -> None:
    """Raise WrongError if two of ``names`` look the same: they would silently be two classes."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFC", name).split()), name)
        if other != name:
            raise WrongError(
                f"has the labels {other!a} and {name!a}, which look the same and would be two classes. Write "
                "them in one way"
            )


def _some(labels: np.ndarray) -> str:
    shown = [str(label)[:20] for label in labels[:5]]
    return ", ".join(shown) + (f", ... {str(labels[-1])[:20]}" if len(labels) > 5 else "")


def _columns(labels: np.ndarray) -> int:
    """The columns of one-hot labels; 0 of others."""
    return int(labels.shape[1]) if labels.ndim == 2 and 1 not in labels.shape else 0


def _plain(labels: np.ndarray, part: str) -> np.ndarray:
    """Labels (N,) as int64, or as texts where they are names."""
    if _columns(labels):
        labels = _from_one_hot(labels, part)
    labels = labels.reshape(-1)
    if labels.dtype.kind in "US":
        return _from_texts(labels, part)
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise WrongError(
            f"has labels in y_{part} of {labels.dtype} that are not whole numbers. Save the classes as whole numbers "
            "or names, and leave out images without a label"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 and not set(np.unique(labels).tolist()) <= {-1, 1}:  # these are how many write two classes
        raise WrongError(
            f"has labels below 0 in y_{part} ({low}). If these mark images without a label, leave the images out"
        )
    if high >= 2**62:
        raise WrongError(
            f"has the label {high} in y_{part}, which is not the number of a class. Number the classes from 0"
        )
    return labels.astype(np.int64)


def _from_one_hot(labels: np.ndarray, part: str) -> np.ndarray:
    if labels.dtype.kind not in "biuf" or not ((labels == 0) | (labels == 1)).all() or (labels.sum(1) != 1).any():
        raise WrongError(
            f"has y_{part} of {labels.dtype} {labels.shape}, which are not one-hot: each row must have a single "
            "1. Save one class for each image"
        )
    found: np.ndarray = labels.argmax(1)
    return found


def _from_texts(labels: np.ndarray, part: str) -> np.ndarray:
    try:
        texts: Any = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
    except UnicodeDecodeError as error:
        raise WrongError(f"has labels in y_{part} that are not UTF-8 text. Save them with .astype(str)") from error
    distinct = np.unique(texts)
    if any(not text.strip() or len(text) > LONGEST or not text.isprintable() for text in distinct.tolist()):
        raise WrongError(
            f"has labels in y_{part} that are empty, longer than {LONGEST} characters or not printable. Give "
            "these classes other names"
        )
    if all(re.fullmatch(r"[0-9]{1,18}", text) for text in distinct.tolist()):
        by_number: dict[int, str] = {}
        for text in distinct.tolist():
            if (other := by_number.setdefault(int(text), text)) != text:
                raise WrongError(
                    f"has the labels {other!a} and {text!a} in y_{part}, which are the same number and would be one "
                    "class. Use one spelling"
                )
        return np.asarray(texts).astype(np.int64)  # 2 comes before 10
    return np.asarray(texts)
