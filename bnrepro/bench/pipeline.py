"""The pipeline: an epoch and a comparison beside plain PyTorch, start-up, and cost against size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bnrepro.bench.timing import Table, alone, forget_peak, in_turn, machine, resident, seconds
from bnrepro.claims.results import RUN_COLUMNS
from bnrepro.config import load_config, run_dir, to_yaml
from bnrepro.config.schema import Config
from bnrepro.data import sources
from bnrepro.data.dataset import derive_seed
from bnrepro.launch import sweep
from bnrepro.norm import NORMS
from bnrepro.report import compare, figures
from bnrepro.runs import provenance, record
from bnrepro.training import train
from bnrepro.training.model import build, norm_of

OURS = {
    "bnrepro": (),
    "bnrepro, channels last": ("channels_last=true",),
    "bnrepro, channels last, bf16": ("channels_last=true", "precision=bf16"),
}
PLAIN, LABML = "plain PyTorch", "labml's experiment"


def epoch(overrides: Sequence[str], repeats: int) -> Table:
    """One epoch of labml's CNN and the test set, data loading, evaluation and records included."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        times.setdefault(PLAIN, []).append(alone(_plain, _config(overrides, "bn")))
        for name, own in OURS.items():
            times.setdefault(name, []).append(alone(_ours, _config([*overrides, *own], "custombn")))
        if find_spec("labml_nn"):
            times.setdefault(LABML, []).append(alone(_labml, _config(overrides, "bn")))
    base = median(times[PLAIN])
    rows = [
        {
            "what": name,
            "norm": {PLAIN: "bn", LABML: "its own"}.get(name, "custombn"),
            "seconds": round(median(taken), 2),
            "over_plain": round(median(taken) / base, 3),
        }
        for name, taken in times.items()
    ]
    return Table(
        "epoch",
        f"One epoch of {_config(overrides, 'bn').data.name} with labml's CNN (conv 20, conv 50, fc 500), Adam, batch "
        f"64, and the test set: seconds, median of {repeats}, a process each. {machine('cpu')}.",
        rows,
        [
            f"{PLAIN}: one image at a time through PIL, ToTensor and Normalize, a DataLoader, torch's BN, fp32. "
            "bnrepro: validation, checkpoint, TensorBoard and records included.",
            f"{LABML}: as its page has it, where it is installed (labml_nn, labml_helpers and labml below 0.5, whose "
            "later versions do not fit them), MNIST's files in data.root.",
        ],
    )


def comparison(overrides: Sequence[str], repeats: int) -> Table:
    """Twenty runs with table and figures, beside plain PyTorch twenty times."""
    plain = median(alone(_plain, _config(overrides, "bn")) for _ in range(repeats))
    with tempfile.TemporaryDirectory() as scratch:
        cfg = load_config([*_LABML, *overrides, "channels_last=true", f"root={scratch}"])
        taken = seconds(lambda: _compare(cfg))
    return Table(
        "compare",
        f"`bnrepro compare` of 4 variants and 5 seeds, one epoch of {cfg.data.name} each, table and figures included "
        f"(measured once), beside 20 times the median of {repeats} plain runs. {machine('cpu')}.",
        [
            {"what": f"20 x {PLAIN}", "seconds": round(20 * plain, 1), "over_plain": 1.0},
            {"what": "bnrepro compare", "seconds": round(taken, 1), "over_plain": round(taken / 20 / plain, 3)},
        ],
    )


def startup(repeats: int) -> Table:
    """What a user waits for before anything happens."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        first = [sys.executable, "-c", _FIRST_STEP, f"root={root / 'first'}"]
        made_up(root / "many", 200)
        runs = [record.Run(path.parent) for path in (root / "many").rglob(record.SUMMARY)]
        compare.save(compare.collect(runs), root / "comparison")
        draw = [sys.executable, "-m", "bnrepro", "figures", str(root / "comparison")]
        path = train.run(load_config(["epochs=10", "variant=convbn", f"root={root / 'board'}"]))
        events = sum(file.stat().st_size for file in path.rglob("events.out.*"))
        commands = {
            "bnrepro --help, s": ([sys.executable, "-m", "bnrepro", "--help"], 0.4),
            "to the first training step on mnist5k, s": (first, 4.0),
            "figures over 200 runs, s": (draw, 10.0),
        }
        rows = [
            {"what": name, "measured": round(median(seconds(partial(_call, command)) for _ in range(repeats)), 3),
             "goal": goal}
            for name, (command, goal) in commands.items()
        ]  # fmt: skip
        rows.append({"what": "TensorBoard's files of a run at the defaults, MB", "measured": events / 1e6, "goal": 5.0})
    return Table("startup", f"Start-up (median of {repeats}) and size. {machine('cpu')}.", rows)


def growth(repeats: int) -> Table:
    """A step's time and memory against batch, width and depth; `runs` and `report` against the number of runs."""
    rows = []
    for along, values, shape in (
        ("batch", (16, 32, 64, 128, 256), lambda v: (v, 32, 4)),
        ("channels", (8, 16, 32, 64, 128), lambda v: (64, v, 4)),
        ("depth", (2, 4, 8, 16, 32), lambda v: (64, 32, v)),
    ):
        steps = {str(v): _stack_step(*shape(v)) for v in values}
        times = in_turn(steps, repeats)
        peaks = alone(_stack_peaks, [shape(v) for v in values])
        for v, peak in zip(values, peaks, strict=True):
            numbers = {"milliseconds": round(times[str(v)], 3), "megabytes": round(peak / 1e6, 1)}
            rows.append({"what": "step", "along": along, "value": v, **numbers})
    with tempfile.TemporaryDirectory() as scratch:
        for count in (10, 100, 1000):
            root = Path(scratch) / str(count)
            made_up(root, count)
            found = [record.Run(path.parent) for path in root.rglob(record.SUMMARY)]
            compare.save(compare.collect(found), root / "results" / "made_up")
            for what, place in (("runs", ["--root", str(root)]), ("report", ["--out", str(root / "results")])):
                command = [sys.executable, "-m", "bnrepro", what, *place]
                taken = round(1e3 * median(seconds(partial(_call, command)) for _ in range(3)))
                row = {"what": f"bnrepro {what}", "along": "runs", "value": count, "milliseconds": taken}
                rows.append(row | {"megabytes": None})
    return Table(
        "growth",
        "A training step (blocks of 3 x 3 convolution, custom BN and ReLU on maps of 16 x 16): time, median of "
        f"{repeats}, and peak memory over that before it. Listing runs, and a report on them: time, median of 3. "
        f"{machine('cpu')}.",
        rows,
    )


def made_up(root: Path, count: int) -> None:
    """``count`` finished runs of four variants with invented numbers, for measuring what reads them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        variant = compare.VARIANTS[number % 4]
        cfg = load_config([f"variant={variant}", f"seed={number // 4}", f"root={root}"])
        path = run_dir(cfg)
        rows = [
            dict.fromkeys(record.COLUMNS, None)
            | {"step": 60 * (e + 1), "epoch": float(e + 1), "lr": 1e-3, "seconds": 1.0 * e}
            | {
                f"{split}_{metric}": float(rng.random())
                for split in ("train", "val")
                for metric in ("loss", "accuracy")
            }
            for e in range(10)
        ]
        record.write_csv(path / record.METRICS, list(record.COLUMNS), rows)
        summary = dict.fromkeys(RUN_COLUMNS) | {
            "status": "completed", "variant": variant, "seed": cfg.seed, "test_accuracy": float(rng.random()),
            "test_loss": 1.0, "parameters": 1, "buffers": 1, "seconds": 1.0, "data": "invented numbers",
            "data_official": False,
            "data_fingerprint": "none", "machine": provenance.machine(), "versions": provenance.versions(),
        }  # fmt: skip
        record.write_summary(path, summary)
        record.write_whole(path / record.CONFIG, to_yaml(cfg))


# --- what is measured ---------------------------------------------------------------------------------------------

_LABML = ("model=labml_cnn", "data=mnist", "epochs=1", "data.val_fraction=0.0001", "device=cpu")

_FIRST_STEP = """
import os, sys
from bnrepro.claims.results import RUN_COLUMNS
from bnrepro.config import load_config
from bnrepro.training import train
train.run(load_config(sys.argv[1:]), report=lambda progress: os._exit(0))
"""


def _config(overrides: Sequence[str], variant: str) -> Config:
    return load_config([*_LABML, *overrides, f"variant={variant}"])


def _ours(cfg: Config) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        cfg.root = scratch
        return seconds(lambda: train.run(cfg))


def _compare(cfg: Config) -> None:
    grid = compare.grid(cfg, compare.VARIANTS, 5)
    runs = sweep.run_all(grid, sweep.default_jobs(cfg))
    folder = compare.directory(grid)
    compare.save(compare.collect(record.Run(outcome.path) for outcome in runs), folder)
    figures.draw(compare.open_comparison(folder), folder / "figures")


class _Images(Dataset):
    """Images as torchvision's datasets give them: a PIL image each, through the transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index, 0])), int(self.labels[index])


def _labml(cfg: Config) -> float:
    """The epoch as the source's own experiment makes it."""
    from labml import experiment
    from labml_nn.experiments.mnist import MNISTConfigs
    from labml_nn.normalization.batch_norm import mnist  # noqa: F401  it registers its network

    root = Path(cfg.data.root).resolve()
    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        os.chdir(scratch)
        settings = {"check_repo_dirty": False, "data_path": str(root), "experiments_path": scratch}
        Path(".labml.yaml").write_text(json.dumps(settings), encoding="utf-8")
        Path("mnist.py").touch()  # labml looks for its settings beside it
        conf = MNISTConfigs()
        experiment.create(name="mnist_batch_norm", python_file=str(Path(scratch) / "mnist.py"), writers=set())
        asked = {"optimizer.optimizer": "Adam", "epochs": 1, "device.use_cuda": False}
        sizes = {"train_batch_size": cfg.batch_size, "valid_batch_size": cfg.batch_size}
        experiment.configs(conf, asked | sizes)
        with experiment.start():
            return seconds(conf.run)


def _plain(cfg: Config) -> float:
    """The epoch as PyTorch's own examples write it."""
    from torchvision import transforms

    started = time.perf_counter()
    (x, y), (x_test, y_test) = sources.read(cfg.data)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    loader = DataLoader(_Images(x, y, transform), batch_size=cfg.batch_size, shuffle=True, drop_last=True)
    test = DataLoader(_Images(x_test, y_test, transform), batch_size=1000)
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    network = build(cfg.model, norm_of(cfg), 1, (28, 28), 10, weights)
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.optimizer.lr)
    network.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    right = 0
    with torch.no_grad():
        for images, labels in test:
            right += int((network(images).argmax(1) == labels).sum())
    if right < len(y_test) / 2:
        raise RuntimeError("the plain loop does not learn: what it takes says nothing")
    return time.perf_counter() - started


def _stack_step(batch: int, channels: int, depth: int) -> Callable[[], object]:
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks += [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            NORMS["custombn"](channels, (16, 16)),
            nn.ReLU(),
        ]
    network = nn.Sequential(*blocks)
    x = torch.randn(batch, channels, 16, 16)
    return lambda: network(x).square().mean().backward()


def _stack_peaks(sizes: list[tuple[int, int, int]]) -> list[int]:
    """Bytes that the first step of each network takes at most, from the smallest to the largest.

    All over what the process had before the first of them: freed memory stays with it and is used again.
    """
    _stack_step(1, 8, 1)()  # what the libraries take once
    before = resident()
    peaks = []
    for size in sizes:
        step = _stack_step(*size)
        forget_peak()
        step()
        peaks.append(resident(peak=True) - before)
    return peaks


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
