"""One run on several processes is the run of one: every norm, shares of any size, and every way to end.

The processes are real (gloo), and shared by all tests that can share them: starting one takes longer than its runs.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from bnrepro.config import load_config, run_dir
from bnrepro.data import dataset as data
from bnrepro.errors import UserError
from bnrepro.norm import NORMS
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.training import distributed, train, trainer
from bnrepro.training.distributed import OtherProcessFailed, Processes
from bnrepro.training.trainer import Trainer
from tests.conftest import TINY, changed

ROOT = Path(__file__).parents[2]

# Nothing that rounding can switch: no kink of a ReLU, and no Adam, in whose first steps the sign of a gradient that is
# nothing but rounding moves a weight as far as any (unless eps is larger than rounding: "resumed").
COMMON = changed(TINY, "data.val_fraction=0.75", "epochs=1", "batch_size=48", "eval_every=2", "optimizer=sgd")
COMMON += ["model.activation=tanh"]
AUGMENTED = ("data.crop=2", "data.flip=true", "norm.ghost_size=8", "optimizer.lr=0.05")

VARIANTS = {name: (f"variant={name}", *AUGMENTED) for name in NORMS}
VARIANTS["instancenorm"] += ("model=resnet20", "model.width=0.25")  # which has no hidden linear layer
SMOOTH_ADAM = ("optimizer=adam", "optimizer.eps=1e-3")
OTHERS = {
    "dropout": ("variant=noisybn", "model.dropout=0.4", "channels_last=true", *AUGMENTED),
    "shaded": ("variant=bn", "data.shade=0.2", "data.shade_batches=true", "data.rotate=20", "data.brightness=0.3"),
    "written": ("variant=convbn", "tensorboard=true", *AUGMENTED),
    "resumed": (
        "variant=convbn",
        "model.dropout=0.3",
        "eval_every=1",
        "epochs=6",
        "optimizer=adam",
        "optimizer.eps=1e-3",
    ),
}
POOLED = ("bn", "convbn", "adaptive", "ghostbn", "renorm", "detached", "noisybn", "l1bn", "linfbn")
DIVERGES = ("variant=nobn", "optimizer.lr=1e20", "model.activation=relu")
RUNS = {**VARIANTS, **OTHERS, "diverges": DIVERGES}
QUICK = ("bn", "convbn", "written", "diverges")  # of two processes, with the quick tests
SHARED = ("bn", "convbn", "linfbn", "noisybn", "ghostbn")  # also run by three processes, with 16, 16 and 15 images
UNEVEN = "batch_size=47"


def overrides(digits: Path, root: Path, *more: str) -> list[str]:
    """Of a run of three steps on 150 digits."""
    return [*changed(COMMON, *more), f"data.path={digits}", f"root={root}"]


def in_group(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)


def run_here(root: Path, rank: int, name: str, digits: Path, *more: str) -> Path:
    """A run into ``root / name``. A process other than the first may write nothing, and reports to nobody."""
    cfg = load_config(overrides(digits, root / name, *more))
    if rank == 0:
        return train.run(cfg)
    with (
        mock.patch.object(record, "write_whole", side_effect=AssertionError("another than the first writes")),
        mock.patch.object(trainer, "TensorBoardWriter", side_effect=AssertionError("another than the first writes")),
    ):
        return train.run(cfg, report=pytest.fail)


def work_of_two(rank: int, folder: Path, digits: Path, names: Sequence[str]) -> None:
    in_group(rank, 2, folder)
    for name in names:
        run_here(folder, rank, name, digits, *RUNS[name])
    with mock.patch.object(distributed, "synchronize", lambda network, _group: network):
        for name in (name for name in POOLED if name in names):
            run_here(folder / "apart", rank, name, digits, *VARIANTS[name])
    again = train.run(load_config(overrides(digits, folder / names[0], *RUNS[names[0]])), report=pytest.fail)
    (folder / f"again{rank}").write_text(str(again))
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that still holds a tensor would abort the end of the interpreter


def work_of_three(rank: int, folder: Path, digits: Path) -> None:
    in_group(rank, 3, folder)
    for name in SHARED:
        run_here(folder, rank, name, digits, *VARIANTS[name], UNEVEN)
    refused = []
    for name, more in (("divided", (*VARIANTS["ghostbn"], "batch_size=40")), ("few", ("batch_size=2",))):
        try:
            run_here(folder, rank, name, digits, *more)
        except (UserError, OtherProcessFailed) as error:
            refused.append([type(error).__name__, str(error)])
    (folder / f"refused{rank}").write_text(json.dumps(refused))
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that still holds a tensor would abort the end of the interpreter


@pytest.fixture(scope="module")
def two(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes ran, ``QUICK`` alone."""
    return of_two(digits, tmp_path_factory.mktemp("two"), QUICK)


@pytest.fixture(scope="module")
def two_at_length(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes ran, all but ``QUICK``."""
    return of_two(digits, tmp_path_factory.mktemp("two_at_length"), [name for name in RUNS if name not in QUICK])


def of_two(digits: Path, folder: Path, names: Sequence[str]) -> Path:
    multiprocessing.spawn(work_of_two, (folder, digits, names), nprocs=2)
    return folder


@pytest.fixture
def ran(name: str, request: pytest.FixtureRequest) -> Path:
    """The folder of what two processes ran, with the run ``name``."""
    folder: Path = request.getfixturevalue("two" if name in QUICK else "two_at_length")
    return folder


@pytest.fixture(scope="module")
def three(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what three processes ran."""
    folder = tmp_path_factory.mktemp("three")
    multiprocessing.spawn(work_of_three, (folder, digits), nprocs=3)
    return folder


Alone = Callable[..., Path]


@pytest.fixture
def alone(digits: Path, tmp_path: Path) -> Alone:
    """Run it here, in one process."""
    return lambda *more: train.run(load_config(overrides(digits, tmp_path, *more)))


def only_run(root: Path) -> Path:
    (config,) = root.rglob("config.yaml")
    return config.parent


def difference(one: Path, other: Path) -> float:
    """The largest one between two runs, in their losses (relative) and final weights and statistics (by tensor)."""
    rows, others = Run(one).metrics, Run(other).metrics
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    keys = [key for key in rows[0] if key.endswith("_loss")]
    pairs = [(a[key], b[key]) for a, b in zip(rows, others, strict=True) for key in keys if a[key] is not None]
    found = [abs(a - b) / a for a, b in pairs if a is not None and b is not None]
    states = [checkpoint.load(path / record.CHECKPOINT)["network"] for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        a, b = tensor.double(), states[1][name].double()
        found.append(float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)))
    return max(found)


# --- the same numbers ---


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", sorted([*VARIANTS, *OTHERS], key=lambda name: name not in QUICK))
def test_two_processes_give_one_processes_curve_and_weights(ran: Path, alone: Alone, name: str) -> None:
    one, other = alone(*RUNS[name]), only_run(ran / name)
    assert difference(one, other) < TOLERANCE
    assert one.name == other.name
    summaries = [Run(path).summary for path in (one, other)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    assert summaries[0]["config_hash"] == summaries[1]["config_hash"]


TOLERANCE = 5e-5  # 9e-6 was the largest that was seen


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", POOLED)
def test_processes_that_keep_their_statistics_to_themselves_give_another(ran: Path, alone: Alone, name: str) -> None:
    """The comparison above would see it."""
    assert difference(alone(*VARIANTS[name]), only_run(ran / "apart" / name)) > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_three_processes_with_uneven_shares_give_one_processes_curve(three: Path, alone: Alone, name: str) -> None:
    assert difference(alone(*VARIANTS[name], UNEVEN), only_run(three / name)) < TOLERANCE


def test_shares_cover_the_batch_and_differ_by_one_image_at_most() -> None:
    for images in (3, 7, 48):
        parts = [range(images)[Processes(rank, 3).part(images)] for rank in range(3)]
        assert [i for part in parts for i in part] == list(range(images))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert range(9)[Processes().part(9)] == range(9)


def test_part_of_a_batch_is_that_part_of_the_whole_batch(digits: Path) -> None:
    """Augmentation of every kind, some of which is the batch's and not the image's."""
    kinds = ("crop=2", "flip=true", "rotate=30", "brightness=0.5", "shade=0.1", "shade_batches=true")
    cfg = load_config([*COMMON, f"data.path={digits}", *(f"data.{kind}" for kind in kinds)]).data
    dataset = data.load(cfg, torch.device("cpu"))
    plan = data.epoch_plan(len(dataset.train.labels), cfg, 0, 0)
    x, y = data.train_batch(dataset, plan, cfg, 20, 10)
    part = data.train_batch(dataset, plan, cfg, 20, 10, part=slice(4, 7))
    torch.testing.assert_close(part, (x[4:7], y[4:7]), rtol=0, atol=0)


def test_weighted_mean_of_gradients_is_the_gradient_of_the_batchs_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(7, generator=generator, dtype=torch.float64)
    group: Any = object()
    everyone = [Processes(rank, 3, group) for rank in range(3)]
    weighted = [p.weighted(losses[p.part(7)].mean(), len(losses[p.part(7)]) / 7) for p in everyone]
    torch.testing.assert_close(sum(weighted) / 3, losses.mean())


# --- who writes, and how it ends ---


def test_only_the_first_process_writes_and_writes_what_one_would(two: Path, alone: Alone) -> None:
    def names(path: Path) -> set[str]:
        return {re.sub(r"tfevents.*", "tfevents", file.name) for file in path.iterdir()}

    one, other = alone(*OTHERS["written"]), only_run(two / "written")
    assert names(one) == names(other) > {"config.yaml", "metrics.csv", "summary.json", "checkpoint.pt"}
    assert len(list(other.glob("events.*"))) == 1


def test_divergence_ends_all_at_the_same_step(two: Path, alone: Alone) -> None:
    summary = Run(only_run(two / "diverges")).summary
    assert summary["status"] == "diverged"
    assert summary["diverged_at_step"] == Run(alone(*DIVERGES)).summary["diverged_at_step"]


def test_finished_run_is_not_run_again_and_every_process_knows_where_it_is(two: Path) -> None:
    assert [(two / f"again{rank}").read_text() for rank in (0, 1)] == [str(only_run(two / "bn"))] * 2


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused_in_one_sentence_by_one_process(three: Path) -> None:
    refused = [json.loads((three / f"refused{rank}").read_text()) for rank in range(3)]
    divided, few = zip(*refused, strict=True)
    assert sorted(name for name, _ in divided) == ["OtherProcessFailed", "OtherProcessFailed", "UserError"]
    sentence = "ghost batches of 8 images would be divided between processes, which have [14, 13, 13] of the 40 images"
    assert all(sentence in text for _, text in divided)
    assert Run(only_run(three / "divided")).status == "failed"
    assert all("batch_size=2 leaves some of the 3 processes without an image" in text for _, text in few)
    assert not (three / "few").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = mock.Mock(spec=nn.Module)
    network.parameters.return_value = [mock.Mock(is_cuda=True)]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    group: Any = object()
    with pytest.raises(UserError, match="3 processes on a machine with 2 GPUs: each needs its own"):
        Processes(2, 3, group).wrap(network)


BREAKS_AT = 4


def break_at_step(rank: int, size: int, folder: Path, digits: Path, how: str) -> None:
    """A run that the second process breaks; says what each process raised."""
    in_group(rank, size, folder)
    original = Trainer.update

    def update(self: Trainer, *batch: Any) -> Any:
        if rank == 1 and self.step == BREAKS_AT:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("something of its own") if how == "error" else KeyboardInterrupt
        return original(self, *batch)

    said = "nothing"
    with mock.patch.object(Trainer, "update", update):
        try:
            train.run(load_config(overrides(digits, folder / "run", *OTHERS["resumed"])))
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
    (folder / f"said{rank}").write_text(said)
    os._exit(0)  # as a process ends, with its connections


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "interrupt", "killed"])
def test_process_that_fails_ends_the_others_and_the_run_goes_on_later(
    two_at_length: Path, digits: Path, tmp_path: Path, how: str
) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=break_at_step, args=(rank, 2, tmp_path, digits, how)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode is not None, "a process waits for ever"
    said = (tmp_path / "said0").read_text()
    broken = Run(only_run(tmp_path / "run"))
    if how == "error":
        assert said == "OtherProcessFailed: process 1: ValueError: something of its own"
        assert (tmp_path / "said1").read_text() == "ValueError: something of its own"
        assert broken.status == "failed"
        assert "process 1: ValueError" in broken.summary["error"]
    elif how == "interrupt":
        assert said == "KeyboardInterrupt: "
        assert broken.status == "interrupted"
    else:
        assert said.startswith("UserError: Another process of this run ended without a message")
        assert broken.status == "failed"
    assert 1 <= broken.metrics[-1]["step"] <= BREAKS_AT
    # What two have begun, one can end: the checkpoint is that of one process.
    cfg = load_config(overrides(digits, tmp_path / "run", *OTHERS["resumed"]))
    assert train.run(cfg) == broken.path
    assert difference(only_run(two_at_length / "resumed"), broken.path) < TOLERANCE


# --- torchrun ---

FULL = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}


@pytest.mark.parametrize("there", list(itertools.product([True, False], repeat=5)), ids=str)
def test_only_all_of_torchruns_variables_make_a_process_one_of_several(there: tuple[bool, ...]) -> None:
    environment = {name: FULL[name] for name, is_there in zip(FULL, there, strict=False) if is_there}
    if not there[0]:
        assert not distributed.started_by_torchrun(environment)
    elif all(there):
        assert distributed.started_by_torchrun(environment | {"LOCAL_RANK": ""})
        assert not distributed.started_by_torchrun(environment | {"WORLD_SIZE": "1", "RANK": "0"})
    else:
        lacking = [name for name, is_there in zip(FULL, there, strict=False) if not is_there]
        with pytest.raises(UserError, match=f"TORCHELASTIC_RUN_ID is set, but {', '.join(lacking)} not.*`unset TORCH"):
            distributed.started_by_torchrun(environment)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1 is inconsistent"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is inconsistent"),
        ({"WORLD_SIZE": "0"}, "is inconsistent"),
        ({"MASTER_PORT": "99999"}, "is inconsistent"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x is inconsistent"),
        ({"LOCAL_WORLD_SIZE": "1.5"}, "LOCAL_WORLD_SIZE=1.5 is inconsistent"),
        ({"RANK": ""}, "RANK not"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": "1"}, "no torchrun answers at 127.0.0.1:1"),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "a..b"}, "no torchrun answers at a..b"),
    ],
    ids=str,
)
def test_what_is_left_of_torchruns_variables_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], change: dict[str, str], words: str
) -> None:
    for name, value in (FULL | change).items():
        monkeypatch.setenv(name, value)
    result = call("train")
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err
    assert "unset TORCHELASTIC_RUN_ID" in result.err


def test_variables_of_a_group_without_torchrun_are_nothing_to_a_run(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Any]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "nonsense")
    assert Run(train.run(tiny("epochs=1"))).summary["processes"] == 1


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # As the command torchrun, which need not be on the path.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bnrepro"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_torchrun_is_interrupted_goes_on_and_ends_as_if_nothing_had_happened(
    two_at_length: Path, digits: Path, tmp_path: Path
) -> None:
    arguments = overrides(digits, tmp_path / "runs", *OTHERS["resumed"])
    path = run_dir(train.resolve(load_config(arguments)))
    first = torchrun(tmp_path, "train", *arguments)
    until = time.monotonic() + 240
    while not (path / "metrics.csv").exists() and first.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    first.terminate()
    _, err = first.communicate(timeout=120)
    assert Run(path).status == "interrupted", err
    assert Run(path).metrics[-1]["step"] < 18
    second = torchrun(tmp_path, "train", *arguments)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert [line.split(" (")[0] for line in out.splitlines()][-2:] == [f"Run: {path}", CURVES.format(tmp_path / "runs")]
    assert len(out.splitlines()) == 3
    assert err.count("epoch 6:") == 1
    assert difference(only_run(two_at_length / "resumed"), path) == 0
    assert Run(path).summary["processes"] == 2


CURVES = "Curves: bnrepro tensorboard {}"


@pytest.mark.slow
def test_mistake_under_torchrun_is_told_once(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "train", "batch_size=1", f"root={tmp_path / 'runs'}", "device=cpu")
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("Error: batch_size=1 leaves some of the 2 processes without an image") == 1
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in err


UNUSED = """from torch import nn
class Unused(nn.GroupNorm):
    def __init__(self, num_features):
        super().__init__(1, num_features)
        self.never = nn.Linear(3, 3)
"""


@pytest.mark.slow
def test_norm_of_ones_own_may_have_parameters_that_it_never_uses(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(UNUSED)
    process = torchrun(tmp_path, "train", *overrides(digits, tmp_path / "runs", "variant=norm.py:Unused"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
