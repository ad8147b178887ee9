"""Whatever is in a file or an argument: a valid value or one sentence, soon, in little memory, and nothing is run."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import datasets

from bnrepro.claims import Evidence, Results, conclusion, measuring, records
from bnrepro.claims.design import Probe
from bnrepro.claims.measures import Measure
from bnrepro.claims.words import numbers
from bnrepro.cli import listing
from bnrepro.config import configs_dir, load_config, read_config, run_dir, to_yaml
from bnrepro.config.schema import Config
from bnrepro.data import published, sources
from bnrepro.data.archive import read_npz
from bnrepro.data.sources import Cifar, Idx
from bnrepro.errors import UserError
from bnrepro.launch import sweep
from bnrepro.report import compare, report, wording
from bnrepro.report.drawing import inline
from bnrepro.runs import checkpoint, index, record, tables
from bnrepro.stats import Interval
from bnrepro.system import reading as stored
from bnrepro.training import train
from tests.claims.made_up import Settings, varied
from tests.conftest import Call
from tests.report.test_compare import ended, point
from tests.report.test_report import ASSETS, PAPER, RECORDS, Reader

fuzz = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\n\n</code>&lt;`'\"$title"
NASTY: list[Any] = [
    None, True, -1, 0, 2**63, 10**30, 1e308, -1e308, math.nan, math.inf, "", "1", EVIL, "../up", "/etc", "a\0b",
    "\ud800", "\x1b[31m", "x" * 5000, [], {}, [[]], {"a": None}, [None], json.loads("[" * 300 + "]" * 300),
]  # fmt: skip
CELLS = [
    "",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e999",
    "-1",
    "0.5",
    "9" * 30,
    "9" * 5000,
    "x",
    EVIL,
    '"\\ud800"',
    '"',
    "\0",
]


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """``raw`` cut, with bits flipped, with a piece replaced, or other bytes altogether."""
    place = draw(st.integers(0, max(0, len(raw) - 1)))
    match draw(st.integers(0, 3)):
        case 0:
            return raw[:place]
        case 1:
            changed = bytearray(raw)
            for at in draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
                changed[at] ^= 1 << draw(st.integers(0, 7))
            return bytes(changed)
        case 2:
            return raw[:place] + draw(st.binary(max_size=20)) + raw[place + draw(st.integers(0, 30)) :]
        case _:
            return draw(st.binary(max_size=60))


@st.composite
def twisted(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with something else somewhere in it."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 4)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: draw(twisted(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(twisted(value[place])), *value[place + 1 :]]
    return draw(st.sampled_from(NASTY))


@st.composite
def damaged_file(draw: st.DrawFn, raw: bytes, name: str) -> bytes:
    """`damaged`, or still of the file's kind, with something else somewhere in it."""
    if draw(st.booleans()):
        return draw(damaged(raw))
    if name.endswith(".json"):
        return json.dumps(draw(twisted(json.loads(raw)))).encode("utf-8", "surrogatepass")
    lines = [line.split(",") for line in raw.decode().splitlines()]
    row = draw(st.integers(0, len(lines) - 1))
    lines[row][draw(st.integers(0, len(lines[row]) - 1))] = draw(st.sampled_from(CELLS))
    return "\n".join(",".join(line) for line in lines).encode()


def limited(code: str, *arguments: object, memory: int = 2**31, seconds: int = 60) -> str:
    """What ``code`` prints in a process that has ``memory`` bytes of address space; ``refused`` prints a UserError."""
    head = f"""
        import resource, sys
        from pathlib import Path
        from bnrepro.errors import UserError
        from bnrepro.config import read_config
        from bnrepro.data import archive
        from bnrepro.data import sources
        from bnrepro.system import reading as stored
        resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
        def refused(function, *arguments):
            try:
                function(*arguments)
            except UserError as error:
                print(error)
            else:
                print("accepted")
    """
    command = [sys.executable, "-c", textwrap.dedent(head) + code, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert process.returncode == 0, process.stderr
    return process.stdout


# --- archives of arrays ---------------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 8, 6), np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (8, 8, 6), np.uint8),
        "y_test": np.arange(8) % 4,
    }


def npy(array: np.ndarray) -> bytes:
    raw = io.BytesIO()
    np.lib.format.write_array(raw, array)
    return raw.getvalue()


def header(text: str, version: int = 1) -> bytes:
    """The beginning of an .npy file that says ``text`` of itself."""
    raw = text.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(raw)) + raw


def claim(descr: object, shape: object) -> bytes:
    return header(repr({"descr": descr, "fortran_order": False, "shape": shape}))


def put(folder: Path, kind: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    """An archive of `arrays`, of which ``members`` are replaced."""
    file = folder / "a.npz"
    with zipfile.ZipFile(file, "w", kind) as archive:
        for key, raw in ({key: npy(array) for key, array in arrays().items()} | members).items():
            archive.writestr(f"{key}.npy", raw)
    return file


PLAIN = npy(arrays()["x_train"])[-960:]
ARCHIVES = {
    "terabytes": ({"x_train": claim("|u1", (10**9, 100, 100)) + PLAIN}, "10,000,000,000,000 bytes and not the 960"),
    "terabytes of labels": ({"y_train": claim("<i8", (10**12,))}, "and not the 0"),
    "more than numbers can say": ({"x_train": claim("|u1", (2**63, 2**63, 2)) + PLAIN}, "and not the 960"),
    "more behind it": ({"x_train": claim("|u1", (20, 8, 6)) + PLAIN + b"x"}, "960 bytes and not the 961"),
    "negative": ({"x_train": claim("|u1", (-20, -8, 6)) + PLAIN}, "of shape"),
    "truth for a number": ({"x_train": claim("|u1", (True, 8, 6)) + PLAIN[:48]}, "of shape"),
    "huge elements": ({"x_train": claim("|V999999999", (20, 8, 6)) + PLAIN}, "x_train"),
    "records": ({"x_train": claim([("a", "<i4")], (20, 8, 6)) + PLAIN}, "x_train"),
    "objects": ({"y_train": claim("|O", (20,)) + pickle.dumps([0] * 20)}, "y_train of object"),
    "no dtype": ({"x_train": claim("os.system", (20, 8, 6)) + PLAIN}, "damaged"),
    "code": ({"x_train": header("__import__('os').system('touch sprung')") + PLAIN}, "damaged"),
    "brackets": ({"x_train": header("(" * 9000) + PLAIN}, "damaged"),
    "long header": ({"x_train": header(" " * 60000) + PLAIN}, "damaged"),
    "half a text": ({"x_train": header("{'descr': '''") + PLAIN}, "damaged"),
    "another version": ({"x_train": header("{}", 3) + PLAIN}, "version"),
    "no array": ({"x_train": b"hello"}, "damaged"),
    "nan labels": ({"y_train": npy(np.full(20, np.nan))}, "not whole numbers"),
    "a class for each image": ({"y_train": npy(np.arange(20) + 1)}, "a different label for every training image"),
    "label of 10^18": ({"y_train": npy(np.full(20, 10**18))}, "alone in y_train"),
    "label of 2^64 - 1": ({"y_train": npy(np.full(20, 2**64 - 1, np.uint64))}, "the label 18446744073709551615"),
}


@pytest.mark.parametrize(("members", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_archive_that_lies_is_refused(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_npz(put(tmp_path, **members))
    assert "\n" not in str(error.value)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99), (10, 14), (24, 255)])
def test_archive_of_another_packing_is_refused(tmp_path: Path, place: int, value: int) -> None:
    """Encrypted, packed by an unknown method or by LZMA, of another size than it says."""
    file = put(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[raw.find(b"PK\x01\x02") + place] = value
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.npz"):
        read_npz(file)


@fuzz
@given(st.data())
def test_archive_with_any_damage_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    file = put(tmp_path, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    _valid(file)


@fuzz
@given(st.data())
def test_any_header_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    about = {"descr": "|u1", "fortran_order": False, "shape": (20, 8, 6)}
    sizes = st.sampled_from([-1, 0, 1, 20, 2**31, 2**63, True, 2.0, None])
    about["shape"] = data.draw(st.lists(sizes, max_size=5).map(tuple) | st.just((20, 8, 6)))
    about["descr"] = data.draw(
        st.sampled_from(["|u1", ">u1", "|b1", "<f8", "|O", "|S0", "<U9", "<M8[ns]", [], None, 3])
    )
    text = data.draw(st.just(repr(about)) | damaged(repr(about).encode()).map(lambda raw: raw.decode("latin1")))
    _valid(put(tmp_path, x_train=header(text) + PLAIN))


def _valid(file: Path) -> None:
    try:
        (x, y), (x_test, y_test) = read_npz(file)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert (x.ndim, x.dtype, y.dtype) == (4, np.uint8, np.int64)
    assert (len(x), len(x_test), x.shape[1:]) == (len(y), len(y_test), x_test.shape[1:])
    assert 0 <= y.min() <= y.max() < len(y)


CHUNK = 2**20


def _zeros(chunks: int) -> bytes:
    """A deflated stream of so many million zeros, made at once: each piece unpacks by itself."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(CHUNK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * chunks + packer.flush()


def _bomb(file: Path, chunks: int) -> None:
    """An archive whose images unpack to ``chunks`` MiB, and which is right in all it says."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays().items():
            if key != "x_train":
                archive.writestr(f"{key}.npy", npy(np.zeros(chunks, np.int64) if key == "y_train" else array))
    head = claim("|u1", (chunks, 1024, 1024))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + _zeros(chunks)
    with zipfile.ZipFile(file, "a") as archive:
        info = zipfile.ZipInfo("x_train.npy")
        info.compress_type, info.compress_size, info.file_size = 8, len(packed), len(head) + chunks * CHUNK
        info.CRC = 0  # which nobody is to get as far as
        info.header_offset = archive.start_dir
        archive.fp.seek(archive.start_dir)
        archive.fp.write(info.FileHeader(zip64=True) + packed)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(info)
        archive.NameToInfo[info.filename] = info
        archive._didModify = True


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    _bomb(tmp_path / "large.npz", 6000)
    _bomb(tmp_path / "dense.npz", 300)
    lying = put(tmp_path, x_train=claim("|u1", (10**7, 100, 10)) + PLAIN)
    idx = sources.DATASETS["mnist"]
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    packed = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + _zeros(20_000) + bytes(8)
    (folder / f"{sources.IDX_FILES[0]}.gz").write_bytes(packed)
    yaml = tmp_path / "config.yaml"
    levels = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    yaml.write_text(f"a: &a [x, x, x, x, x, x, x, x, x]\n{levels}")
    (tmp_path / "long.yaml").write_text(f"a: {'[' * 10_000_000}")
    assert idx.there(tmp_path) is False
    code = """
root = Path(sys.argv[1])
for name in ("large.npz", "dense.npz", "a.npz"):
    refused(archive.read_npz, root / name)
refused(sources.DATASETS["mnist"].read, root)
for name in ("config.yaml", "long.yaml"):
    refused(read_config, root / name)
try:
    stored.read_json(root / "long.yaml", dict)
except ValueError as error:
    print(error)
# Not ru_maxrss, which is never less than that of the process that started this one.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""
    large, dense, claims, unpacked, aliases, long, broken, most = limited(code, tmp_path).splitlines()
    assert "claims arrays of 6,291," in large
    assert "claims arrays of 314," in dense
    assert "100,000,000,000 bytes" not in claims
    assert "10,000,000,000 bytes and not the 960" in claims
    assert f"unpacks to more than {sources.LARGEST:,} bytes" in unpacked
    assert "it has aliases" in aliases
    assert "has more than 65,536 bytes" in long
    assert "long.yaml" in broken
    assert int(most) < 900
    assert lying.is_file()


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    file = tmp_path / place
    for read in (read_npz, read_config, published.content, record.read_metrics):
        with pytest.raises(UserError, match="not a plain file"):
            read(file)
    with pytest.raises(UserError, match="not a plain file"):
        run_dir(load_config(["data.name=digits", "data.source=npz", f"data.path={file}"]))


# --- published files ------------------------------------------------------------------------------------------------


@pytest.fixture
def idx(tmp_path: Path) -> Idx:
    """Four small IDX files under ``tmp_path``, as if they were a published dataset."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    digests = []
    for name, count in zip(sources.IDX_FILES, (6, 6, 4, 4), strict=True):
        raw = bytes(16 + 784 * count) if "images" in name else bytes(8 + count)
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw, mtime=0))
        digests.append(hashlib.sha256(raw).hexdigest())
    return Idx("MNIST", (digests[0], digests[1], digests[2], digests[3]))


@fuzz
@given(st.data())
def test_idx_file_with_any_damage_is_refused_or_gives_the_published_pixels(
    idx: Idx, tmp_path: Path, data: st.DataObject
) -> None:
    file = tmp_path / "MNIST" / "raw" / f"{data.draw(st.sampled_from(sources.IDX_FILES))}.gz"
    whole = file.read_bytes()
    right = sources.fingerprint(idx.read(tmp_path))
    file.write_bytes(data.draw(damaged(whole) | damaged(gzip.decompress(whole)).map(gzip.compress)))
    try:
        assert sources.fingerprint(idx.read(tmp_path)) == right
    except UserError as error:
        assert str(file) in str(error)
    finally:
        file.write_bytes(whole)


def batch(count: int = 4) -> bytes:
    return pickle.dumps({b"data": np.zeros((count, 3072), np.uint8), b"labels": [0] * count}, protocol=2)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cifar]:
    """``cifar(raw)``: one batch for training and test, published with the right MD5."""
    (tmp_path / "cifar-10-batches-py").mkdir()

    def publish(raw: bytes) -> Cifar:
        listed = [["batch", hashlib.md5(raw).hexdigest()]]
        for kind in ("train_list", "test_list"):
            monkeypatch.setattr(datasets.CIFAR10, kind, listed)
        (tmp_path / "cifar-10-batches-py" / "batch").write_bytes(raw)
        return Cifar("CIFAR10", b"labels")

    return publish


@fuzz
@given(data=st.data())
def test_pickle_with_a_wrong_checksum_is_never_opened(
    cifar: Callable[..., Cifar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    published = cifar(batch())
    raw = data.draw(damaged(batch()).filter(lambda raw: raw != batch()))
    (tmp_path / "cifar-10-batches-py" / "batch").write_bytes(raw)
    monkeypatch.setattr(sources, "_ArrayUnpickler", pytest.fail)
    with pytest.raises(UserError, match="checksum is wrong"):
        published.read(tmp_path)


GLOBALS = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy.f2py.crackfortran\nndarray\n", b"cnumpy_of_mine\ndtype\n",
    b"cnumpy.testing\n_reconstruct\n", b"cnumpy\nload\n", b"c_codecs\ndecode\n",
    b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0hextR",
]  # fmt: skip


@pytest.mark.parametrize("name", GLOBALS)
def test_pickle_imports_nothing_and_calls_nothing_of_its_own(
    cifar: Callable[..., Cifar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    (tmp_path / "numpy_of_mine.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"is not an array|asks for the codec"):
        cifar(b"\x80\x02" + name + b".").read(tmp_path)
    assert not {module for module in set(sys.modules) - before if module.startswith("numpy")}


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


BASE = "cifar-10-batches-py"
PACKED = {
    "above": _member("../outside/batch", size=5),
    "above in it": _member(f"{BASE}/../../outside/batch", size=5),
    "absolute": _member("/tmp/outside-batch", size=5),
    "link": _member(f"{BASE}/batch", tarfile.SYMTYPE, "/etc/passwd"),
    "link above": _member(f"{BASE}/batch", tarfile.SYMTYPE, "../../secret"),
    "link to itself": _member(f"{BASE}/batch", tarfile.SYMTYPE, "batch"),
    "hard link": _member(f"{BASE}/batch", tarfile.LNKTYPE, "/etc/passwd"),
    "linked folder": _member(BASE, tarfile.SYMTYPE, ".."),
    "device": _member(f"{BASE}/batch", tarfile.CHRTYPE),
    "pipe": _member(f"{BASE}/batch", tarfile.FIFOTYPE),
    "folder": _member(f"{BASE}/batch", tarfile.DIRTYPE),
}


def _packed(*members: tarfile.TarInfo) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size) if member.size else None)
    return raw.getvalue()


@pytest.mark.parametrize("member", PACKED.values(), ids=PACKED)
def test_dataset_archive_writes_nothing_but_the_files_that_are_wanted(
    cifar: Callable[..., Cifar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: tarfile.TarInfo
) -> None:
    published, root = cifar(batch()), tmp_path / "inner" / "data"
    root.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sources, "_download", lambda *_: _packed(member))
    with pytest.raises(UserError, match="cannot be unpacked"):
        published.fetch(root)
    assert sorted(tmp_path.rglob("*")) == before


@fuzz
@given(data=st.data())
def test_dataset_archive_with_any_damage_is_read_or_refused(
    cifar: Callable[..., Cifar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    published, root = cifar(batch()), tmp_path / "inner" / "data"
    shutil.rmtree(root, ignore_errors=True)
    whole = _packed(_member(f"{BASE}/batch", size=100))
    raw = data.draw(damaged(whole) | damaged(gzip.decompress(whole)).map(gzip.compress))
    monkeypatch.setattr(sources, "_download", lambda *_: raw)
    try:
        published.fetch(root)
    except UserError as error:
        assert "cannot be unpacked" in str(error)
    assert {str(file.relative_to(tmp_path / "inner")) for file in root.rglob("*") if file.is_file()} <= {
        f"data/{BASE}/batch"
    }


# --- overrides and configurations -----------------------------------------------------------------------------------

REFUSED = [
    *("data=../model/lenet", "data=/etc/passwd", "data=.", "data=[mnist,../model/lenet]", "model='../data/mnist'"),
    *("hydra/job_logging=none", "hydra/launcher=basic", "hydra@x=1", "hydra.searchpath=[file:///tmp]"),
    *("data@model=mnist", "optimizer@_global_=sgd", "experiment=labml/full"),
    *(" +epochs=3", "\t++epochs=3", "'+x'=1", "data={_target_: os.system}", "model={name: x, _target_: y}"),
    *("data.name=../../x", "model.name=/etc", "model.name=..", "variant=../..", "variant=a/b", "variant=."),
    *("root=a\0b", "root=a\nb", "data.root='a\x1b[31m'", "data.name='a\nb'", "variant=\ud800", "root='a\x7f'"),
    *("root=${oc.env:HOME}", r"root=\${oc.env:HOME}", r'root="\${oc.env:HOME}"', "data.name={a: ${seed}}"),
    *(f"variant={'a' * 101}", f"variant={'a' * 10**6}", f"{'a' * 4000}=1", f"seed={'9' * 30}", f"seed={'9' * 4500}"),
    *(f"schedule.milestones={'[' * 2000}{']' * 2000}", f"schedule.milestones=[{'0.5,' * 50_000}0.5]"),
    *("optimizer.lr=inf", "model.width=inf", "schedule.gamma=inf", "data.shade=inf", "norm.eps=nan"),
    *("epochs=1,2", "epochs=range(3)", "variant=glob(*)", "data.name={a: 1}", "defaults=[x]", "--config-dir=/tmp"),
]  # fmt: skip


@pytest.mark.parametrize("override", REFUSED, ids=lambda override: ascii(override[:30]))
def test_override_that_is_more_than_a_value_is_refused_in_a_sentence(override: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([override])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


SWEEPS = [
    *("seed=range(10000000000)", "seed=range(101) epochs=range(1,101)", f"seed={'[' * 2000}1,2"),
    *("hydra/launcher=basic,x", "root=a,${oc.env:HOME}", "+seed=1,2", "optimizer.lr=interval(0,1)", "data=glob(../*)"),
    "data=../model/lenet,mnist",
]  # fmt: skip


@pytest.mark.parametrize("overrides", SWEEPS, ids=lambda text: text[:30])
def test_sweep_that_is_more_than_values_is_refused_in_a_sentence(overrides: str) -> None:
    with pytest.raises(UserError) as error:
        [load_config(each) for each in sweep.expand(overrides.split(" "))]
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@settings(fuzz, max_examples=25)
@given(
    st.sampled_from(["variant", "data.name", "model.name"]),
    st.text("./~a\\0 \n%$&é\x00", max_size=8) | st.sampled_from(["a" * 300, "..", "~root", "a/../../.."]),
)
def test_runs_directory_stays_under_the_root(key: str, value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    try:
        cfg = load_config(["root=r", f'{key}="{quoted}"'])
    except UserError:
        return
    folder = run_dir(cfg)
    assert folder.resolve().is_relative_to(Path("r").resolve())
    assert len(folder.parts) == 5


NAMES = "data: {name: mnist}\nmodel: {name: lenet}\n"
CONFIGURATIONS = {
    "escaped look-up": (NAMES + 'root: "\\x24{oc.env:HOME}"\n', "looks something up"),
    "merged alias": ("a: &a {seed: 1}\nb:\n  <<: *a\n", "aliases"),
    "code": (NAMES + "root: !!python/object/apply:os.system ['touch sprung']\n", "tag"),
    "path": (NAMES + "root: !!python/object/apply:pathlib.Path [a]\n", "tag"),
    "bytes": (NAMES + "root: !!binary aGVsbG8=\n", "tag"),
    "set": ("!!set {a, b}", "tag"),
    "levels": (f"a: {'[' * 3000}{']' * 3000}", "levels"),
    "levels without an end": (f"a: {'[' * 60000}", "levels"),
    "levels of both kinds": (f"a: {'[{a: ' * 3000}", "levels"),
    "one level too many": (f"a: {'[' * stored.DEEPEST}{']' * stored.DEEPEST}", "levels"),
    "levels by indentation": ("".join(f"{' ' * i}a:\n" for i in range(300)), "levels"),
    "two documents": (f"{NAMES}---\n{NAMES}", "config"),
    "one key twice": (f"{NAMES}seed: 1\nseed: 2\n", "twice"),
    "one key twice, further in": ("a: [{b: 1, c: {d: 1, e: 2, d: 3}}]\n", "twice"),
    "end of text in a path": (NAMES + 'root: "a\\0b"\n', "root"),
    "terminal's commands in a path": (NAMES + 'root: "\\e]0;x\\a"\n', "root"),
    "another folder": ("data: {name: ../..}\nmodel: {name: lenet}\n", "data.name"),
    "long number": (f"{NAMES}seed: {'9' * 5000}\n", "config"),
    "infinite": ("data: {name: mnist}\nmodel: {name: lenet, width: .inf}\n", "finite"),
}


@pytest.mark.parametrize(("text", "words"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_stored_configuration_that_is_more_than_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_config(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("bnrepro.claims.paper.configs_dir", lambda: tmp_path)
    if words in ("aliases", "tag", "levels", "twice"):  # what no preset can be either
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / f"{PAPER.name}.yaml").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            varied().settings("smoke")
    assert not (tmp_path / "sprung").exists()


@pytest.fixture(scope="module")
def good_yaml() -> bytes:
    return to_yaml(load_config([])).encode()


@settings(fuzz, max_examples=40)
@given(data=st.data())
def test_stored_configuration_with_any_damage_is_read_or_refused(
    good_yaml: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    (tmp_path / "config.yaml").write_bytes(data.draw(damaged(good_yaml)))
    try:
        assert isinstance(read_config(tmp_path / "config.yaml"), Config)
    except UserError as error:
        assert "\n" not in str(error)


def test_every_shipped_preset_is_plain() -> None:
    files = sorted((configs_dir() / "experiment").rglob("*.yaml"))
    assert files
    for file in files:
        stored.read_yaml(file)


# --- what runs leave ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, good_yaml: bytes) -> record.Run:
    """A run that has ended, with two evaluations."""
    folder = tmp_path / "runs" / "mnist5k" / "labml_cnn" / "bn" / "seed0-0"
    row = dict.fromkeys(record.COLUMNS, 0.5)
    record.write_csv(
        folder / record.METRICS, record.COLUMNS, [{**row, "step": 1}, {**row, "step": 2, "test_loss": None}]
    )
    summary = {
        **ended("bn", 0, 0.9),
        "epochs": 2.0,
        "test_loss": 0.5,
        "data": "x",
        "versions": {"a": "1"},
        "machine": "m",
        "error": None,
    }
    record.write_summary(folder, summary)
    record.write_whole(folder / record.CONFIG, good_yaml)
    return record.Run(folder)


@settings(fuzz, max_examples=150)
@given(data=st.data())
def test_run_with_any_damage_is_listed_and_shown_or_refused(run: record.Run, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([record.SUMMARY, record.METRICS]))
    whole = (run.path / name).read_bytes()
    root = run.path.parents[3]
    (run.path / name).write_bytes(data.draw(damaged_file(whole, name)))
    try:
        for sort in ("path", "-seed", "status", "test_accuracy", "val_accuracy", "seconds"):
            text = listing.as_text(index.select(root, [], sort))
        assert text.isascii() or "\N{REPLACEMENT CHARACTER}" in text
        assert len(text.splitlines()) == 2
        shown = listing.describe(run.path)
        assert not {c for c in shown if not c.isprintable()} - {"\n", "\t"}
        again = record.Run(run.path)
        if again.finished:
            compare.table(compare.collect([again]))
    except UserError as error:
        assert str(run.path) in str(error)
    finally:
        (run.path / name).write_bytes(whole)


@pytest.mark.parametrize("variant", ["../../../../precious", "/precious", "..", "a/b", "", ".hidden", "a\0b", "<b>"])
def test_summary_cannot_name_a_folder_elsewhere(run: record.Run, variant: str) -> None:
    """`write_board` empties the folder of each variant."""
    summary = {**run.summary, "variant": variant}
    (run.path / record.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"summary\.json is damaged .*variant"):
        compare.collect([record.Run(run.path)])


def test_run_that_is_a_link_out_of_the_root_is_left_alone(tiny: Callable[..., Config], tmp_path: Path) -> None:
    cfg = train.resolve(tiny("epochs=1"))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.yaml").write_text("mine")
    run_dir(cfg).parent.mkdir(parents=True)
    run_dir(cfg).symlink_to(precious)
    for force in (False, True):
        with pytest.raises(UserError, match="is a link out of root="):
            train.run(cfg, force=force)
    assert [file.read_text() for file in precious.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def good_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    checkpoint.save(file, {"network": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "rows": [{"a": None}]})
    return file.read_bytes()


@settings(fuzz, max_examples=150)
@given(data=st.data())
def test_checkpoint_with_any_damage_is_read_or_refused(
    good_checkpoint: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    (tmp_path / "c.pt").write_bytes(data.draw(damaged(good_checkpoint)))
    try:
        assert isinstance(checkpoint.load(tmp_path / "c.pt"), dict)
    except UserError as error:
        assert "c.pt" in str(error)


# --- comparisons and experiments ------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A comparison and a concluded experiment."""
    runs = [ended(variant, seed, 0.9) for seed in (0, 1) for variant in ("nobn", "bn")]
    curves = [point(run["variant"], run["seed"], epoch, 0.5) for run in runs for epoch in (1, 2)]
    provenance = {**RECORDS.provenance, "experiment": "compare"}
    settings = {"data": {"name": "d"}, "model": {"name": "m"}}
    out = tmp_path / "results"
    compare.save(compare.Comparison(runs, curves, provenance, settings), out / "side")
    shutil.copytree(_concluded(tmp_path.parent), out / "experiments" / PAPER.name)
    return out


def _concluded(parent: Path) -> Path:
    """The experiment's folder, drawn once for all tests."""
    folder = PAPER.directory(parent / "concluded")
    if not (folder / conclusion.CAPTIONS).is_file():
        records.save(RECORDS, folder)
        conclusion.conclude(PAPER, RECORDS, folder)
    return folder


PLACES = (f"experiments/{PAPER.name}", f"experiments/{PAPER.name}/tables", "side")


@pytest.mark.quick(1)
@pytest.mark.parametrize("place", PLACES)
@settings(fuzz, max_examples=100)
@given(data=st.data())
def test_report_on_any_damage_is_whole_and_harmless_or_refused(results: Path, place: str, data: st.DataObject) -> None:
    files = sorted(file for file in (results / place).iterdir() if file.suffix in (".json", ".csv"))
    file = data.draw(st.sampled_from(files))
    whole = file.read_bytes()
    file.write_bytes(data.draw(damaged_file(whole, file.name)))
    try:
        _, _, page = report.write(results)
    except UserError as error:
        assert str(file.parent if place != files else "") in str(error) or str(results) in str(error)
        assert "\n" not in str(error)
    else:
        _harmless(page.read_text(encoding="utf-8"))
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
@settings(fuzz, max_examples=150)
@given(data=st.data())
def test_claims_with_anything_in_them_are_reported_as_json_or_refused(results: Path, data: st.DataObject) -> None:
    file = results / "experiments" / PAPER.name / conclusion.CLAIMS
    whole = file.read_bytes()
    file.write_bytes(json.dumps(data.draw(twisted(json.loads(whole)))).encode("utf-8", "surrogatepass"))
    try:
        claims, markdown, page = report.write(results)
    except UserError as error:
        assert f"{conclusion.CLAIMS}: " in str(error)
        assert f"`bnrepro figures {file.parent}` makes them again" in str(error)
        assert "\n" not in str(error)
    else:
        json.loads(claims.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        for made in (claims, markdown, page):  # a terminal that shows them takes nothing in them for a command
            assert all(c.isprintable() or c in "\n\t" for c in made.read_text(encoding="utf-8"))
        _harmless(page.read_text(encoding="utf-8"))
    finally:
        file.write_bytes(whole)


def _harmless(page: str) -> Reader:
    read = Reader(page)  # which holds that no attribute begins with "on"
    assert read.open == []
    assert not {"iframe", "object", "embed", "base", "link", "foreignobject", "animate"} & set(read.tags)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)  # its own, and data
    assert read.tags["script"] == len(scripts)
    assert all(text in ASSETS or about.startswith(' type="application/json"') for about, text in scripts)
    assert read.tags["form"] <= 1
    assert all(load.startswith(("#f", "data:image/png")) for load in read.loads)
    assert all(link.startswith(("#", "http://", "https://")) for link in read.links)
    assert 'http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;;' in page[:400]
    return read


GATE = {"what": EVIL, "value": None, "needed": EVIL, "passed": None}


def test_every_text_of_the_results_is_escaped(results: Path) -> None:
    """In names, tables' columns, captions, provenance, settings: everything that a file can hold."""

    def evil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                k if key in ("tables", "figures", "seconds", "") else f"{EVIL}{k}": evil(v, k) for k, v in value.items()
            }
        if isinstance(value, list):
            return [evil(each, key) for each in value]
        return EVIL + value if isinstance(value, str) and key not in ("name", "experiment", "preset") else value

    def evil_claim(row: dict[str, Any]) -> dict[str, Any]:
        kept = ("paper", "kind", "scale", "verdict", "preset")  # which are names or of a list
        texts = {k: EVIL + v if isinstance(v, str) and k not in kept else v for k, v in row.items()}
        effects = {
            key: [
                {k: EVIL + v if isinstance(v, str) and k != "rule" else v for k, v in effect.items()}
                for effect in row[key]
            ]
            for key in ("effects", "beside")
        }
        return texts | effects | {"quote": EVIL, "where": EVIL, "gate": GATE, EVIL: EVIL}

    folder = results / "experiments" / PAPER.name
    for file in (folder / conclusion.CAPTIONS, folder / records.PROVENANCE, results / "side" / records.PROVENANCE):
        file.write_text(json.dumps(evil(json.loads(file.read_text()))))
    claims = folder / conclusion.CLAIMS
    evil_claims = list(map(evil_claim, json.loads(claims.read_text())))
    claims.write_text(json.dumps(evil_claims))
    for file in (folder / "tables").iterdir():
        rows = [
            {f"{k}{EVIL}": EVIL + v if isinstance(v, str) else v for k, v in row.items()}
            for row in tables.read_rows(file)
        ]
        tables.write_rows(file, rows)
    told, markdown, page = report.write(results)
    assert json.loads(told.read_text(encoding="utf-8")) == evil_claims
    read = _harmless(page.read_text(encoding="utf-8"))
    assert read.text.count("<script>alert(1)</script>") > 60
    assert max(Counter(read.ids).values()) == 1
    shown = markdown.read_text(encoding="utf-8")
    outside = [part for line in shown.splitlines() for part in re.split(r"(?<!\\)`", line)[::2]]  # of code spans
    assert len(outside) > 100
    assert not [part for part in outside if re.search("<(script|img|/code)", part)]


@pytest.mark.parametrize("key", ["name", "tables", "figures"])
@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "..", "", "a/b", "a\0b", "<b>", "a" * 300])
def test_captions_cannot_name_files_elsewhere(results: Path, key: str, name: str) -> None:
    file = results / "experiments" / PAPER.name / conclusion.CAPTIONS
    captions = json.loads(file.read_text())
    file.write_text(json.dumps({**captions, key: name if key == "name" else {name: "caption"}}))
    with pytest.raises(UserError, match=rf"captions\.json: {key}"):
        report.write(results)


@pytest.mark.parametrize(
    "name", ["tables/small.csv", "figures/one.svg", "figures/one.png", "captions.json", "claims.json", "figures"]
)
def test_links_out_of_the_results_are_not_followed(results: Path, tmp_path: Path, name: str) -> None:
    folder = results / "experiments" / PAPER.name
    shutil.move(folder / name, tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="link that leads out of the folder"):
        report.write(results)
    shutil.move(results, tmp_path / "elsewhere")  # the folder of all results may well be a link
    results.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "experiments" / PAPER.name / name).unlink()
    shutil.move(tmp_path / "secret", tmp_path / "elsewhere" / "experiments" / PAPER.name / name)
    assert len(report.write(results)) == 3


@pytest.mark.parametrize("part", ["tables", "figures"])
def test_files_behind_a_linked_folder_are_not_deleted(results: Path, tmp_path: Path, part: str) -> None:
    folder, precious = results / "experiments" / PAPER.name, tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    shutil.rmtree(folder / part)
    (folder / part).symlink_to(precious)
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        conclusion.conclude(PAPER, RECORDS, folder)
    assert [file.name for file in precious.iterdir()] == ["thesis.txt"]


def test_links_in_circles_are_refused(results: Path) -> None:
    folder = results / "experiments" / PAPER.name
    (folder / "tables" / "small.csv").unlink()
    (folder / "tables" / "small.csv").symlink_to("small.csv")
    (results / "circle").symlink_to(results)
    with pytest.raises(UserError, match=r"small\.csv"):
        report.write(results)


@settings(fuzz, max_examples=150)
@given(data=st.data())
def test_measurement_with_any_damage_is_read_or_made_again(tmp_path: Path, data: st.DataObject) -> None:
    probe = Probe("part", {}, 0, Measure(_measure, "made_up/measure"))
    about = {"seconds": 0.1, "data": {"data": "x"}, "machine": "m", "versions": {"a": "1"}, "git_revision": None}
    raw = json.dumps({"rows": [{"quantity": "q", "x": None, "value": 1.0}], **about}).encode()
    record.write_whole(measuring.file_of(probe, tmp_path), data.draw(damaged_file(raw, "a.json")))
    found = measuring.stored(probe, tmp_path)
    if found is not None:
        assert all(isinstance(row["quantity"], str) and isinstance(row["value"], int | float) for row in found["rows"])
        json.dumps(found, ensure_ascii=False).encode()


def _measure(seed: int) -> list[dict[str, Any]]:
    return [{"quantity": "q", "x": None, "value": 1.0}]


@given(*[st.floats(width=64)] * 3, st.integers(0, 2**63))
@settings(fuzz, max_examples=300)
def test_any_interval_can_be_shown(mean: float, low: float, high: float, n: int) -> None:
    assert numbers(Interval(mean, low, high, n))
    assert wording.number(Interval(mean, low, high, n))


# --- figures --------------------------------------------------------------------------------------------------------

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">{}</svg>'
)
ELEMENTS = [
    "<script>alert(1)</script>", "<SCRIPT>alert(1)</SCRIPT>", "<style>*{}</style>",
    '<g ONLOAD="alert(1)" onclick="x"/>',
    '<a xlink:href="javascript:alert(1)"><path/></a>', '<a><animate attributeName="href" values="javascript:x"/></a>',
    '<set attributeName="href" to="javascript:x"/>', '<use xlink:href="http://example.org/x.svg#a"/>',
    '<image href="http://example.org/x.png"/>', '<image href="data:image/svg+xml,x"/>', '<image href="file:///etc"/>',
    '<rect fill="url(http://example.org/x.svg#a)"/>', '<rect style="fill: url( http://example.org)"/>',
    '<rect style="background: image-set(&quot;http://example.org&quot; 1x)"/>', r'<rect style="fill: u\72l(http://a)"/>',
    '<rect style="@import &quot;http://example.org&quot;"/>', '<foreignObject><iframe src="x"/></foreignObject>',
    '<img xmlns="" src="http://example.org/x"/>', '<p xmlns=""><base href="http://example.org"/></p>',
    '<x:iframe xmlns:x="http://www.w3.org/1999/xhtml" src="http://example.org"/>', '<object data="http://example.org"/>',
    '<rect fill="image(http://example.org)"/>', "<text><![CDATA[</svg><script>load(1)</script>]]></text>",
]  # fmt: skip


@pytest.mark.parametrize("element", ELEMENTS)
def test_figure_neither_runs_nor_loads_anything(tmp_path: Path, element: str) -> None:
    (tmp_path / "a.svg").write_text(DRAWING.format(element))
    drawn, _ = inline(tmp_path / "a.svg", "f1-", "label")
    read = Reader(drawn)
    assert set(read.tags) <= {"svg", "g", "rect", "use", "image", "text", "path"}
    assert read.loads == []
    assert not any(word in drawn for word in ("http", "javascript", "alert"))


@pytest.mark.parametrize(
    "text",
    [
        "", "<svg", "<svg/>", "<html/>",
        DRAWING.replace("0 0 9 9", "0 0 nan 1"), DRAWING.replace("0 0 9 9", "0 0 -1 1"),
        '<?xml version="1.0" encoding="nonsense"?><svg/>', DRAWING.format("<g>" * 50_000 + "</g>" * 50_000),
        '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        ) + "]>" + DRAWING.format("<text>&j;</text>"),
        '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + DRAWING.format("<text>&a;</text>"),
    ],
    ids=range(10),
)  # fmt: skip
def test_figure_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.svg").write_text(text)
    with pytest.raises(UserError, match=r"a\.svg is not a figure"):
        inline(tmp_path / "a.svg", "f1-", "label")


@fuzz
@given(data=st.data())
def test_figure_with_any_damage_is_drawn_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = (_concluded(tmp_path.parent) / "figures" / "one.svg").read_bytes()
    (tmp_path / "a.svg").write_bytes(data.draw(damaged(whole)))
    try:
        drawn, width = inline(tmp_path / "a.svg", "f1-", "label")
    except UserError:
        return
    assert width > 0
    assert Reader(drawn).open == []


# --- the command line -----------------------------------------------------------------------------------------------


def test_commands_on_hostile_files_end_with_a_sentence_and_code_2(call: Call, results: Path, run: record.Run) -> None:
    folder = results / "experiments" / PAPER.name
    (run.path / record.METRICS).write_bytes(b"\xff")
    (folder / conclusion.CAPTIONS).write_text("[" * 10_000)
    (results / "side" / records.RUNS).write_text("\x1b]0;title\x07")
    (run.path.parents[3] / "bad.npz").write_bytes(b"PK")
    archive = ["data.name=digits", "data.source=npz", f"data.path={run.path.parents[3] / 'bad.npz'}"]
    for arguments in (
        ["show", str(run.path)],
        ["report", "--out", str(results)],
        ["figures", str(results / "side")],
        ["figures", str(folder)],
        ["train", *archive],
        ["train", "--variant=../../etc"],
        ["train", f"root={'a' * 300}/x", "device=cpu"],
        ["config", "data=../model/lenet"],
        ["config", f"seed={'[' * 4000}"],
        ["runs", "--sort", "\x1b[31m"],
        ["show", "a\x1b[31m"],
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        (line,) = err.splitlines()
        assert line.startswith("Error: ")
        assert line.isprintable()


@pytest.mark.parametrize("place", ["evil.py", "./evil.py", "/evil.py"])
def test_file_that_provenance_names_is_not_run(call: Call, results: Path, place: str) -> None:
    folder = results / "experiments" / PAPER.name
    evil = Path("evil.py").absolute()
    evil.write_text("raise SystemExit('run')")
    about = json.loads((folder / records.PROVENANCE).read_text())
    name = str(evil) if place.startswith("/") else place
    (folder / records.PROVENANCE).write_text(json.dumps(about | {"experiment": name}))
    told = call("figures", str(folder))
    assert (told.code, told.out) == (2, "")
    assert f"says that it holds the experiment '{name}', which does not exist" in told.err


def test_claims_for_a_terminal_hold_no_commands_for_it(call: Call, results: Path) -> None:
    file = results / "experiments" / PAPER.name / conclusion.CLAIMS
    rows = json.loads(file.read_text(encoding="utf-8"))
    sentence = "\x1b[31m \x9b31m \x7f \r é \N{GREEK SMALL LETTER GAMMA}"
    rows[0]["sentence"] = sentence
    file.write_text(json.dumps(rows))
    told = call("report", "--json", f"--out={results}")
    assert all(line.isprintable() for line in told.out.splitlines())
    assert "é \N{GREEK SMALL LETTER GAMMA}" in told.out
    assert json.loads(told.out)[0]["sentence"] == stored.printable(sentence)


def test_damaged_runs_are_listed_and_harm_no_other(call: Call, run: record.Run) -> None:
    root = run.path.parents[3]
    other = run.path.with_name("seed1-\x1b[31m\n0")
    shutil.copytree(run.path, other)
    (other / record.SUMMARY).write_text('{"status": "completed", "seed": "<b>"}')
    code, out, _ = call("runs", "--root", str(root))
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["completed", "damaged"]
    assert "\x1b" not in out


def test_claim_that_records_do_not_fit_is_a_sentence(
    call: Call, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_evidence(r: Results, s: Settings) -> Evidence:
        raise KeyError("no such factor")

    paper = varied(claims=[replace(PAPER.claims[0], evidence=no_evidence)])
    monkeypatch.setattr("bnrepro.experiments.experiment", lambda _: paper)
    code, _, err = call("figures", str(results / "experiments" / PAPER.name))
    assert code == 2
    assert "cannot judge the records" in err


def test_tensorboard_listens_on_this_machine_alone_and_imports_nothing_from_here(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: started.append(arguments))
    (tmp_path / "runs").mkdir()
    assert call("tensorboard").code == 0
    (command,) = started
    assert command[command.index("--host") + 1] == "localhost"
    assert "--bind_all" not in command
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").touch()
    (tmp_path / "tensorboard" / "main.py").write_text("raise SystemExit('a stranger')")
    asked = [*command[: command.index("--logdir")], "--version"]
    assert "a stranger" not in subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stderr
