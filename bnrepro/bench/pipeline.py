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
from bnrepro.config.schema import Config, Device, OptimizerName
from bnrepro.data import sources
from bnrepro.data.dataset import derive_seed
from bnrepro.launch import sweep
from bnrepro.norm import NORMS
from bnrepro.report import compare, figures
from bnrepro.runs import provenance, record
from bnrepro.training import train
from bnrepro.training.model import build, norm_of
from bnrepro.training.optimizer import lr_factor
from bnrepro.training.trainer import Trainer

OURS = {"bnrepro": (), "bnrepro, NCHW": ("channels_last=false",), "bnrepro, bf16": ("precision=bf16",)}
"""What is added to the configuration. bf16 is left out where the processor does not multiply in it."""
MNIST_MOMENTS = (0.1307,), (0.3081,)
CIFAR10_MOMENTS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Means and standard deviations of the pixels, as PyTorch's examples have them."""
PLAIN, LABML = "plain PyTorch", "labml's experiment"


def epoch(overrides: Sequence[str], repeats: int) -> Table:
    """One epoch of labml's CNN and the test set, data loading, evaluation and records included."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        times.setdefault(PLAIN, []).append(alone(_plain, _config(overrides, "bn")))
        for name, own in ours():
            times.setdefault(name, []).append(alone(_ours, _config([*overrides, *own], "custombn")))
        if find_spec("labml_nn"):  # and labml_helpers, and labml below 0.5, whose later versions do not fit them
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
            *([f"{LABML}: as its page has it, MNIST's files in data.root."] if LABML in times else []),
        ],
    )


def ours() -> list[tuple[str, tuple[str, ...]]]:
    """Those of OURS that this processor is made for."""
    return [pair for pair in OURS.items() if "precision=bf16" not in pair[1] or train.multiplies_in_bf16(Device.cpu)]


def recipe(overrides: Sequence[str], repeats: int) -> Table:
    """One epoch of the recipe cifar_fast and the test set, beside plain PyTorch."""
    shared = ("recipe=cifar_fast", "epochs=1", "schedule.warmup_epochs=0.2", "device=cpu", *overrides)
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        times.setdefault(PLAIN, []).append(alone(_plain, load_config([*shared, "variant=bn"])))
        for what, own in ours():
            times.setdefault(what, []).append(alone(_ours, load_config([*shared, *own, "variant=custombn"])))
    return Table(
        "recipe",
        f"One epoch of CIFAR-10 by recipe=cifar_fast, and the test set: seconds, median of {repeats}, a process each. "
        f"{machine('cpu')}.",
        [
            {"what": what, "seconds": round(median(taken), 1)}
            | {"over_plain": round(median(taken) / median(times[PLAIN]), 3)}
            for what, taken in times.items()
        ],
        [
            f"{PLAIN}: the same network, optimizer, rate and augmentation; torch's BN, fp32, NCHW, one image at a time "
            "through PIL and torchvision's transforms. bnrepro: custombn; checkpoint, TensorBoard and records included."
        ],
    )


def throughput(runs: int = 8) -> Table:
    """Runs an hour with one process and with one a core, and where the time of a run goes."""
    rows: list[dict[str, Any]] = []
    for jobs in dict.fromkeys((1, sweep.default_jobs(load_config(["device=cpu"])))):
        with tempfile.TemporaryDirectory() as scratch:
            configs = [load_config([*_SHORT, f"seed={seed}", f"root={scratch}"]) for seed in range(runs)]
            taken = seconds(partial(sweep.run_all, configs, jobs))
        rows.append({"what": f"{jobs} at a time", "runs_an_hour": round(3600 * runs / taken), "seconds": taken / runs})
    parts = alone(_parts)
    rows += [{"what": what, "runs_an_hour": None, "seconds": taken} for what, taken in parts.items()]
    return Table(
        "throughput",
        f"{runs} runs of two epochs of mnist5k with labml's CNN: runs an hour, and seconds a run; below, the seconds "
        f"of one run in a process of its own, by part. {machine('cpu')}.",
        [row | {"seconds": round(row["seconds"], 3)} for row in rows],
        ["The processes of several at a time are started once, and take the next run without importing torch again."],
    )


def comparison(overrides: Sequence[str], repeats: int) -> Table:
    """Twenty runs with table and figures, beside plain PyTorch twenty times."""
    plain = median(alone(_plain, _config(overrides, "bn")) for _ in range(repeats))
    rows: list[dict[str, Any]] = [{"what": f"20 x {PLAIN}", "seconds": round(20 * plain, 1), "over_plain": 1.0}]
    for what, own in ours():
        if "channels_last=false" in own:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            cfg = load_config([*_LABML, *overrides, *own, f"root={scratch}"])
            taken = seconds(partial(_compare, cfg))
        name = what.replace("bnrepro", "bnrepro compare")
        rows.append({"what": name, "seconds": round(taken, 1), "over_plain": round(taken / 20 / plain, 3)})
    beside = "one plain run" if repeats == 1 else f"the median of {repeats} plain runs"
    return Table(
        "compare",
        f"`bnrepro compare` of 4 variants and 5 seeds, one epoch of {_config(overrides, 'bn').data.name} each, table "
        f"and figures included (measured once), beside 20 times {beside}. {machine('cpu')}.",
        rows,
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
            "bnrepro --help, s": ([sys.executable, "-m", "bnrepro", "--help"], 0.15),
            "to the first training step on mnist5k, s": (first, 3.0),
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

_SHORT = ("model=labml_cnn", "data=mnist5k", "epochs=2", "device=cpu", "variant=custombn")

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


def _parts() -> dict[str, float]:
    """Where the time of a run in a fresh process goes: what it imports, its steps, evaluation, files."""
    with tempfile.TemporaryDirectory() as scratch:
        cfg = load_config([*_SHORT, f"root={scratch}"])
        code = "from bnrepro.launch import parallel; from bnrepro.training import train; import bnrepro.launch.sweep"
        imports = seconds(partial(_call, [sys.executable, "-c", code]))
        spent: dict[str, float] = {}
        timed = {"steps": "update", "evaluation": "measure", "checkpoints": "save", "metrics.csv": "write_metrics"}
        for what, name in timed.items():
            setattr(Trainer, name, _timed(getattr(Trainer, name), what, spent))
        whole = seconds(lambda: train.run(cfg))
    other = whole - sum(spent.values())
    return {"starting a process and importing torch": imports, **spent, "data, batches, TensorBoard, other": other}


def _timed(function: Callable[..., Any], what: str, spent: dict[str, float]) -> Callable[..., Any]:
    def measured(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[what] = spent.get(what, 0.0) + time.perf_counter() - started

    return measured


def _compare(cfg: Config) -> None:
    grid = compare.grid(cfg, compare.VARIANTS, 5)
    runs = sweep.run_all(grid, sweep.default_jobs(cfg))
    folder = compare.directory(grid)
    compare.save(compare.collect(record.Run(outcome.path) for outcome in runs), folder)
    figures.draw(compare.open_comparison(folder), folder / "figures")


class _Images(Dataset[Any]):
    """Images as torchvision's datasets give them: a PIL image each, through the transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        pixels = self.images[index]
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        return self.transform(image), int(self.labels[index])


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
    mean, std = MNIST_MOMENTS if x.shape[1] == 1 else CIFAR10_MOMENTS
    as_input = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = [transforms.RandomCrop(x.shape[2], padding=cfg.data.crop)] if cfg.data.crop else []
    augment += [transforms.RandomHorizontalFlip()] if cfg.data.flip else []
    images = _Images(x, y, transforms.Compose([*augment, *as_input]))
    loader = DataLoader(images, batch_size=cfg.batch_size, shuffle=True, drop_last=True)
    test = DataLoader(_Images(x_test, y_test, transforms.Compose(as_input)), batch_size=1000)
    weights = torch.Generator().manual_seed(derive_seed(cfg.seed, "weights"))
    network = build(cfg.model, norm_of(cfg), x.shape[1], (x.shape[2], x.shape[3]), 10, weights)
    own, steps = cfg.optimizer, cfg.epochs * len(loader)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), lr=own.lr)
    if own.name is OptimizerName.sgd:
        optimizer = torch.optim.SGD(
            network.parameters(), own.lr, own.momentum, weight_decay=own.weight_decay, nesterov=own.nesterov
        )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(cfg.schedule, step, steps, len(loader)))
    network.train()
    for batch, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(batch), labels, label_smoothing=cfg.label_smoothing).backward()
        optimizer.step()
        rate.step()
    network.eval()
    right = 0
    with torch.no_grad():
        for images, labels in test:
            right += int((network(images).argmax(1) == labels).sum())
    if right < len(y_test) / 5:
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
