"""Runs that cannot go well: what is not finite is diverged, and what the user can mend is one sentence, beforehand."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnrepro.config import load_config, run_dir, to_yaml
from bnrepro.config.schema import Config
from bnrepro.data.dataset import Split, equal_parts
from bnrepro.errors import UserError
from bnrepro.launch import sweep
from bnrepro.norm import NORMS
from bnrepro.report import compare
from bnrepro.runs import checkpoint, record
from bnrepro.runs.record import Run
from bnrepro.training import evaluation as inference
from bnrepro.training import train
from bnrepro.training.trainer import Progress, Trainer, loss_and_accuracy
from tests.conftest import Call

Tiny = Callable[..., Config]


# --- not finite ---


class Spoiling(torch.nn.Identity):
    """Its parameter or buffer is no number any more after the first step, which nothing shows."""

    def __init__(self, value: float, buffer: bool) -> None:
        super().__init__()
        self.value = value
        tensor = torch.zeros(1)
        if buffer:
            self.register_buffer("hidden", tensor)
        else:
            self.hidden = torch.nn.Parameter(tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.hidden.fill_(self.value)
        return x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("buffer", [True, False])
def test_network_with_a_number_that_is_none_is_diverged(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, value: float, buffer: bool
) -> None:
    monkeypatch.setitem(NORMS, "spoiling", lambda c, s, options: Spoiling(value, buffer))
    cfg = tiny("variant=spoiling", "epochs=1", "eval_every=2")
    run = Run(train.run(cfg))
    assert (run.status, run.summary["diverged_at_step"]) == ("diverged", 2)
    assert not (run.path / record.METRICS).exists()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_that_is_not_finite_is_diverged(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    real = Trainer.measure

    def measure(self: Trainer, which: Any) -> tuple[float, float]:
        bad = which is getattr(self.data, split)
        return (math.nan, 0.1) if bad else real(self, which)

    monkeypatch.setattr(Trainer, "measure", measure)
    if split == "train":
        monkeypatch.setattr("bnrepro.training.metrics.MetricAccumulator.mean", lambda _: (math.inf, 0.1))
    run = Run(train.run(tiny("epochs=1")))
    assert run.status == "diverged"
    assert run.summary["diverged_at_step"] == run.summary["steps"]
    assert compare.collect([run]).completed("bn") == []


@pytest.mark.parametrize("variant", ["nobn", "bn", "convbn"])
def test_rate_at_the_end_of_the_numbers_diverges(tiny: Tiny, variant: str) -> None:
    run = Run(train.run(tiny("optimizer.lr=3e38", f"variant={variant}")))
    assert run.status == "diverged"
    assert run.summary["test_accuracy"] is None


def test_completed_run_of_an_earlier_version_without_a_loss_counts_as_diverged(tiny: Tiny) -> None:
    path = train.run(tiny("epochs=1"))
    summary = Run(path).summary
    record.write_summary(path, summary | {"test_loss": math.nan})
    assert Run(path).status == "diverged"
    assert Run(path).finished


@pytest.mark.parametrize(
    "key", ["optimizer.lr", "optimizer.weight_decay", "norm.eps", "model.init_std", "schedule.gamma"]
)
def test_number_that_no_float32_holds_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key} must be a finite number of at most"):
        load_config([f"{key}=1e39"])


# --- batches of one ---


@given(count=st.integers(0, 3000), size=st.integers(1, 600))
def test_parts_are_equal_and_none_is_one_image(count: int, size: int) -> None:
    parts = equal_parts(count, size)
    lengths = [part.stop - part.start for part in parts]
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert max(lengths) - min(lengths) <= 1
    assert count < 2 or min(lengths) >= 2
    assert max(lengths) <= max(size, 2) + (size <= 2)


@pytest.mark.parametrize("batch_size", [2, 3, 27, 59, 199])
@pytest.mark.parametrize("variant", ["bn", "convbn"])
def test_no_batch_of_one_is_evaluated(tiny: Tiny, batch_size: int, variant: str) -> None:
    cfg = tiny("epochs=1", f"variant={variant}", "model=paper_mlp", f"batch_size={batch_size}")
    trainer = train.trainer_of(cfg)
    (run_dir(cfg)).mkdir(parents=True)
    checkpoint.save(run_dir(cfg) / record.CHECKPOINT, {"network": trainer.network.state_dict()})
    record.write_whole(run_dir(cfg) / record.CONFIG, to_yaml(cfg))
    for statistics in ("batch", "population"):
        found = inference.evaluate(Run(run_dir(cfg)), statistics)
        assert all(math.isfinite(loss) for loss, _ in found.values())


def test_evaluation_of_anything_but_what_was_trained_is_refused(tiny: Tiny, tmp_path: Path, digits: Path) -> None:
    with np.load(digits) as arrays:
        whole = dict(arrays)
    cfg = tiny("epochs=1", f"data.path={tmp_path / 'd.npz'}")
    file = Path(cfg.data.path or "")
    np.savez(file, **whole)
    path = train.run(cfg)
    stored = (path / record.CONFIG).read_text()
    found = inference.evaluate(Run(path))
    for key, array in (("x_test", 255 - whole["x_test"]), ("y_train", whole["y_train"][::-1])):
        np.savez(file, **whole | {key: array})
        with pytest.raises(UserError, match=rf"data\.path={file} was changed after the run {path}: its fingerprint"):
            inference.evaluate(Run(path))
    np.savez_compressed(file, **whole)  # other bytes, the same images
    for line in ("  samplewise: ", "batch_size: ", "seed: ", "  lr: ", "  val_fraction: "):
        old = re.search(f"^{line}(.*)$", stored, re.MULTILINE)
        new = {"false": "true", "60": "59", "0": "1", "0.001": "0.01", "0.1": "0.2"}[old[1]] if old else ""
        (path / record.CONFIG).write_text(stored.replace(f"\n{line}{old and old[1]}\n", f"\n{line}{new}\n", 1))
        with pytest.raises(UserError, match=rf"config\.yaml was changed after the run.*{line.strip(' :')} is"):
            inference.evaluate(Run(path))
    (path / record.CONFIG).write_text(stored.replace("device: cpu", "device: auto").replace(": true", ": yes"))
    assert inference.evaluate(Run(path)) == found


def test_data_are_found_from_elsewhere_or_where_the_sentence_says(
    tiny: Tiny, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").symlink_to(digits.parent)
    path = train.run(tiny("epochs=1", "data.path=d/digits.npz", "root=runs")).absolute()
    found = inference.evaluate(Run(path))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert inference.evaluate(Run(Path("..", *path.parts[-5:]))) == inference.evaluate(Run(path)) == found
    (tmp_path / "d").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data\.path=d/digits\.npz, does not exist.*as data\.path in .*config\.yaml"):
        inference.evaluate(Run(path))
    config = path / record.CONFIG
    config.write_text(config.read_text().replace("path: d/digits.npz", f"path: {digits}"))
    assert inference.evaluate(Run(path)) == found


def test_copy_without_a_checkpoint_is_told_where_training_would_put_one(tiny: Tiny, tmp_path: Path) -> None:
    path = train.run(tiny("epochs=1"))
    for copy in (tmp_path / "copy", tmp_path / "a" / "b" / "c" / "copy"):
        shutil.copytree(path, copy)
        (copy / record.CHECKPOINT).unlink()
        with pytest.raises(UserError, match="training makes none there") as error:
            inference.evaluate(Run(copy))
        assert f"root={tmp_path / 'runs'}" in str(error.value)
        assert "--force" not in str(error.value)


@pytest.mark.parametrize(("images", "batch_size"), [(10, 3), (3, 2), (28, 27), (2, 1)])
def test_measure_under_batch_statistics_has_no_batch_of_one(tiny: Tiny, images: int, batch_size: int) -> None:
    trainer = train.trainer_of(tiny("model=paper_mlp"))
    split = Split(trainer.data.test.images[:images], trainer.data.test.labels[:images])
    trainer.network.train()  # as torch checks it
    trainer.network.eval = lambda: trainer.network  # type: ignore[method-assign]
    loss, _ = loss_and_accuracy(trainer.network, trainer.data, split, trainer.cfg, batch_size)
    assert math.isfinite(loss)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=paper_mlp", "batch_size=1"], "batch_size=2 or more"),
        (["model=lenet", "batch_size=1", "variant=convbn"], "batch_size=2 or more"),
        (["model=resnet20", "batch_size=1", "variant=peractivationbn", "model.width=0.1"], "batch_size=2 or more"),
        (["model=lenet", "variant=instancenorm"], "instancenorm"),
    ],
)
def test_what_a_norm_refuses_is_told_before_anything_is_written(
    tiny: Tiny, call: Call, tmp_path: Path, overrides: list[str], words: str
) -> None:
    cfg = tiny(*overrides)
    with pytest.raises(UserError, match=words):
        train.run(cfg)
    assert not Path(cfg.root).exists()
    given = [
        "data.name=digits",
        "data.source=npz",
        f"data.path={cfg.data.path}",
        *overrides,
        f"root={tmp_path / 'runs'}",
    ]
    variant = next((text for text in overrides if text.startswith("variant=")), "variant=bn").removeprefix("variant=")
    given = [text for text in given if not text.startswith("variant=")]
    result = call("compare", f"--variants=nobn,{variant}", "--seeds=2", "--jobs=1", *given)
    assert result.code == 2
    assert result.err.count(words) == 1
    assert not Path(cfg.root).exists()


def test_rehearsal_changes_nothing(tiny: Tiny) -> None:
    cfg = tiny("epochs=1", "model.dropout=0.3")
    one, other = train.trainer_of(cfg), train.trainer_of(cfg)
    before = torch.get_rng_state()
    one.rehearse()
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name])


# --- memory and files ---


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
@pytest.mark.parametrize("where", ["trainer_of", "Trainer.update", "Trainer.measure"])
def test_too_little_memory_is_a_sentence(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(f"bnrepro.training.train.{where}", fail)
    with pytest.raises(UserError, match="not enough memory for model=lenet"):
        train.run(tiny())
    (outcome,) = sweep.run_all([tiny()], jobs=1)
    assert outcome.by_user


def test_network_that_no_machine_holds_is_a_sentence(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="not enough memory"):
        train.run(tiny("model=vgg_small", "model.width=1000"))


def _dangling(root: Path) -> None:
    root.symlink_to(root.with_name("nowhere") / "else")


def _file(root: Path) -> None:
    root.write_text("a file")


@pytest.mark.parametrize("spoil", [_dangling, _file])
def test_root_that_cannot_hold_runs_is_told(tiny: Tiny, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    cfg = replace(tiny("epochs=1"), root=str(tmp_path / "root"))
    spoil(tmp_path / "root")
    with pytest.raises(UserError, match=r"root is .*\. Use another root\.$"):
        train.run(cfg)
    (outcome,) = sweep.run_all([cfg], jobs=1)
    assert outcome.by_user


def test_configuration_that_is_a_folder_is_told(tiny: Tiny) -> None:
    cfg = tiny("epochs=1")
    (run_dir(cfg) / record.CONFIG).mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read \(it is not a plain file\)"):
        train.run(cfg)


@pytest.mark.quick(1)
@pytest.mark.parametrize("at", [1, 7, 10, 20])
def test_folder_that_is_removed_meanwhile_is_written_again(tiny: Tiny, at: int) -> None:
    cfg = replace(tiny("epochs=2", "eval_every=4"), tensorboard=at == 7)
    whole = Run(train.run(replace(cfg, root=f"{cfg.root}-whole")))
    steps = whole.summary["steps"]

    def remove(progress: Progress) -> None:
        if progress.step >= min(at, steps) and not removed:
            removed.append(progress.step)
            shutil.rmtree(cfg.root)

    removed: list[int] = []
    run = Run(train.run(cfg, report=remove))
    assert removed
    assert run.finished
    assert run.config == train.resolve(cfg)
    assert [row["val_loss"] for row in run.metrics] == [row["val_loss"] for row in whole.metrics]
    curves = b"".join(file.read_bytes() for file in run.path.glob("events.*"))
    assert curves.count(b"loss/val") == (len(run.metrics) if cfg.tensorboard else 0)
    assert removed[0] == steps or inference.evaluate(run)["test"][1] == whole.summary["test_accuracy"]
