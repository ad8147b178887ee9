"""Files of a user's own: found, run once, and wrong ones told in one sentence."""

from __future__ import annotations

import importlib
import sys
import unicodedata
from pathlib import Path

import pytest

from bnrepro.config import user_files
from bnrepro.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my norm.py"
    path.write_text(
        "import math\nRUNS = []\nclass MyNorm:\n    pass\n\ndef fail():\n    raise RuntimeError('no')\nSIZE = 3\n"
    )
    return path


def test_a_name_in_a_file_is_told_from_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert user_files.parse("bn") is None
    assert user_files.parse("bn:x") is None
    assert user_files.parse("x.pyc:A") is None
    assert user_files.parse("a b/c,d.py:My_Norm2") == (tmp_path / "a b/c,d.py", "My_Norm2")
    for name in ("Ümlaut", "U\u0308mlaut", "Ü" * 50):
        assert user_files.parse(f"c.py:{name}") == (tmp_path / "c.py", unicodedata.normalize("NFC", name))
    for text in ("my_norm.py", "my_norm.py:", "my_norm.py:2a", "my_norm.py:a.b", "my_norm.py:a-b", "c.py:²"):
        with pytest.raises(UserError, match=r"does not name a class or function. Write FILE.py:NAME"):
            user_files.parse(text)


def test_a_file_is_run_once_and_again_when_it_has_changed(file: Path) -> None:
    first = user_files.load(file, "MyNorm")
    assert user_files.load(file, "MyNorm") is first
    before = user_files.digest(file)
    file.write_text(file.read_text() + "# changed\n")
    assert user_files.load(file, "MyNorm") is not first
    assert user_files.digest(file) != before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("MyNrom", None, r"my norm.py has no MyNrom. Did you mean MyNorm\? It defines: MyNorm, fail."),
        ("SIZE", None, "SIZE is neither a class nor a function .int"),
        ("MyNorm", "import nothing_of_that_name", r"ModuleNotFoundError: No module named .* \(line 1\)"),
        ("MyNorm", "\n\nclass MyNorm(:", r"cannot be imported: SyntaxError: [^(]* \(line 3\)\.$"),
        ("MyNorm", "x = 1\n  y = 2", r"cannot be imported: IndentationError: [^(]* \(line 2\)\.$"),
        ("MyNorm", "\neval('1 +')", r"SyntaxError: .*\(<string>, line 1\) \(line 2\)\.$"),
        ("MyNorm", "x = 1\nraise SystemExit(3)", r"cannot be imported: SystemExit: 3 \(line 2\)"),
        ("MyNorm", "\x00", "cannot be imported: .*null bytes"),
    ],
)
def test_what_is_wrong_is_one_sentence(file: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        user_files.load(file, name)
    assert "\n" not in str(error.value)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*none.py"):
        user_files.load(tmp_path / "none.py", "A")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UserError, match=r"folder.py cannot be read"):
        user_files.load(tmp_path / "folder.py", "A")
    (tmp_path / "long.py").write_text("#" * (2**20 + 1))
    with pytest.raises(UserError, match=r"has more than 1,048,576 bytes"):
        user_files.load(tmp_path / "long.py", "A")


@pytest.mark.parametrize(
    "text",
    [
        "import {name}",
        "from {name} import A",
        "import importlib\nA = importlib.import_module('{name}').A",
        "import sys\nsys.path.insert(0, {folder!r})\nimport {name}",
        "def MyNorm():\n    import {name}\nMyNorm()",
        "import {name}_folder.inner",
    ],
)
def test_modules_that_are_not_installed_are_refused(
    text: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = f"hlp_{abs(hash(text))}", tmp_path / "lib"
    (folder / f"{name}_folder").mkdir(parents=True)
    for helper in (folder / f"{name}.py", folder / f"{name}_folder" / "inner.py"):
        helper.write_text("A = 1\n")
    if "sys.path" in text:
        monkeypatch.setattr("sys.path", sys.path[:])
    else:
        monkeypatch.syspath_prepend(folder)
    file.write_text(text.format(name=name, folder=str(folder)))
    with pytest.raises(
        UserError, match=rf"ImportError: {name}\w* lies in {folder}.*, outside Python's installation, .*\(line \d\)"
    ):
        user_files.load_module(file)
    if "sys.path" not in text:
        assert importlib.import_module(name).A == 1  # by others


def test_what_is_installed_is_imported(file: Path) -> None:
    file.write_text("import bnrepro.norm.adaptive, colorsys, numpy.polynomial.laguerre, torch, yaml, _json\nA = dict\n")
    assert user_files.load(file, "A") is dict
