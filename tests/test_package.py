"""The wheel: all that is needed is in it, it works from any folder, and its types are seen by those who install it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory, "wheel")


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def built(places: pytest.TempPathFactory, kind: str) -> Path:
    folder = places.mktemp(kind)
    build = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return file


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z", "bnrepro", "configs"], cwd=ROOT, capture_output=True, text=True)
    files = {name for name in tracked.stdout.split("\0") if name and (ROOT / name).is_file()}
    if not files:
        pytest.skip("this is not a checkout")
    wanted = {name if name.startswith("bnrepro/") else f"bnrepro/{name}" for name in files}
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert wanted <= shipped
    assert {Path(name).name for name in shipped} >= {"py.typed", "kernels.cpp", "page.html", "questions.yaml"}


def test_what_few_need_is_an_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        about = message_from_bytes(file.read(name))
    needed = {re.split(r"[^\w-]", line)[0] for line in about.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert needed.isdisjoint({"submitit", "pytest", "sphinx", "mypy", "ruff", "timm", "onnx"})
    assert {"slurm", "test", "docs", "dev"} == set(about.get_all("Provides-Extra", []))


def test_wheel_works_from_any_folder(site: Path, tmp_path: Path) -> None:
    code = "import bnrepro, sys; from bnrepro.cli import main; print(bnrepro.__file__)\n"
    code += "sys.argv = ['bnrepro', 'config', 'data=cifar10']; main()"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    where, _, config = done.stdout.partition("\n")
    assert Path(where).is_relative_to(site), done.stderr
    assert yaml.safe_load(config)["data"]["name"] == "cifar10"


@pytest.mark.slow
def test_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built(tmp_path_factory, "sdist")) as file:
        file.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (other,) = folder.glob("*.whl")
    assert set(zipfile.ZipFile(other).namelist()) == set(zipfile.ZipFile(wheel).namelist())


DOWNSTREAM = '''
"""What a user may write, held to mypy --strict."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnrepro import __version__
from bnrepro.claims import Design, Evidence, Gate, Paper, Preset, Results, Row, greater, measure, reaches, row
from bnrepro.config import Config, load_config
from bnrepro.data.corruptions import corrupt
from bnrepro.errors import UserError
from bnrepro.norm import NORMS, BatchNorm2d, ConvBatchNorm2d, NormOptions, convert, fold, mixed_statistics
from bnrepro.norm.function import batch_norm
from bnrepro.norm.oracle import batch_norm_forward
from bnrepro.runs.record import Run, open_run
from bnrepro.stats import Interval, Values, t_interval
from bnrepro.train import run
from bnrepro.training.depth import Layer, by_depth

VERSION: str = __version__


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ConvBatchNorm2d(8, (4, 4), statistics="channel", parameters="location")
        self.other = BatchNorm2d(8)
        self.third: nn.Module = NORMS["groupnorm"](8, (4, 4), NormOptions(eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.other(self.norm(x)))
        return y


def surgery(x: Tensor) -> Tensor:
    network = convert(Net(), "bn", x)
    with mixed_statistics(network, prior=16, images=1):
        network(corrupt(x, "noise", severity=1))
    y: Tensor = fold(network.eval(), x)(x)
    return batch_norm(y, None, None, (0, 2, 3), 1e-5)[0]


def trained() -> Interval:
    cfg: Config = load_config(["epochs=1"])
    path: Path = run(cfg)
    one: Run = open_run(path)
    layers: list[Layer] = by_depth(Net(), torch.ones(2, 8, 4, 4))
    batch_norm_forward([[1.0], [2.0]], None, None, (0,))
    if not one.finished:
        raise UserError(f"{layers[0].name} has not finished")
    return t_interval([1.0, 2.0, float(one.metrics[-1]["test_accuracy"] or 0)])


class Settings(Preset):
    rate: float = 0.1


paper = Paper("own", Settings, scale="toy")


@measure("own/size")
def size(network: nn.Module, **_: object) -> list[Row]:
    return [row("size", len(list(network.parameters())))]


@paper.design
def runs(s: Settings) -> Design:
    design = Design(s.seeds)
    design.train("main", {"norm": "bn"}, ["variant=bn", f"optimizer.lr={s.rate}"], size)
    return design


def learned(r: Results, s: Settings) -> Gate:
    return reaches(r.test_accuracy(part="main"), 90, "test accuracy, %")


@paper.claim("1", reported="no number", gate=learned)
def it_is_so(r: Results, s: Settings) -> Evidence:
    """It is so."""
    accuracy: Values = r.test_accuracy(part="main")
    return greater(accuracy, "accuracy", "%", bar=90.0, margin=s.rate)


@paper.table(over_seeds=False)
def listed(r: Results, s: Settings) -> list[Row]:
    """Accuracies."""
    return [{"accuracy": r.test_accuracy().interval()}]


@paper.figure
def drawn(r: Results, s: Settings) -> Figure | None:
    """Accuracies."""
    return None


rows: list[Row] = listed(Results("full", [], [], []), Settings())
'''


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed")
def test_types_hold_for_those_who_install_the_package(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (tmp_path / "downstream.py").write_text(DOWNSTREAM)
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "downstream.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr
    (packages / "bnrepro" / "py.typed").unlink()  # and by nothing else than by this file
    done = subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "missing library stubs or py.typed marker" in done.stdout
