"""The loop: deterministic, the same for all variants, resumable at any moment."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bnrepro.config import run_dir
from bnrepro.config.schema import Config, Device, OptimizerName, Schedule, ScheduleName
from bnrepro.errors import UserError
from bnrepro.runs import record
from bnrepro.runs.record import Run, Status
from bnrepro.training import train
from bnrepro.training.optimizer import lr_factor, make_optimizer
from bnrepro.training.trainer import Progress, Trainer

Tiny = Callable[..., Config]


def results(path: Path) -> list[record.Row]:
    """The metrics less the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in Run(path).metrics]


def test_the_network_learns_the_digits(tiny: Tiny) -> None:
    summary = Run(train.run(tiny("epochs=8", "variant=bn"))).summary
    assert summary["status"] == "completed"
    assert summary["test_accuracy"] > 0.75  # a guess gets 0.1
    assert summary["steps"] == 8 * 9


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "overrides",
    [
        ("variant=convbn",),
        ("variant=bn", "data.crop=2", "data.flip=true", "model.dropout=0.3"),
        ("variant=nobn", "optimizer=sgd", "precision=bf16", "channels_last=true"),
    ],
    ids=["convbn", "augmented", "bf16"],
)
def test_same_seed_gives_bit_equal_metrics_twice(tiny: Tiny, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    first = results(train.run(tiny(*overrides)))
    second = results(train.run(tiny(*overrides, f"root={tmp_path / 'again'}")))
    assert first == second
    other = results(train.run(tiny(*overrides, "seed=1")))
    assert first != other


def test_all_variants_see_the_same_batches_and_start_from_the_same_weights(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    begun: dict[str, list[torch.Tensor]] = {}
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        if self.step == 0:
            plain = [m for m in self.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            begun[self.cfg.variant] = [m.weight.detach().clone() for m in plain]
        seen.setdefault(self.cfg.variant, []).append(x.clone())
        return original(self, x, y, lr)

    monkeypatch.setattr(Trainer, "update", update)
    variants = ("nobn", "bn", "custombn", "convbn")
    for variant in variants:
        train.run(tiny(f"variant={variant}", "data.crop=2", "data.flip=true"))
    for variant in variants[1:]:
        assert all(map(torch.equal, begun["nobn"], begun[variant]))
        assert all(map(torch.equal, seen["nobn"], seen[variant]))
    assert len(seen["nobn"]) == 18


def test_custom_bn_trains_like_the_frameworks(tiny: Tiny) -> None:
    ours = results(train.run(tiny("variant=custombn")))
    theirs = results(train.run(tiny("variant=bn")))
    for key in ("train_loss", "val_loss", "test_loss"):
        if ours[-1][key] is not None:
            assert ours[-1][key] == pytest.approx(theirs[-1][key], rel=0.02)


class Stop(Exception):
    """Stands for whatever ends a run early."""


@pytest.mark.quick(1)
@pytest.mark.parametrize("problem", [Stop(), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 12])
def test_broken_run_goes_on_and_ends_as_if_nothing_had_happened(
    tiny: Tiny, tmp_path: Path, problem: BaseException, at: int
) -> None:
    overrides = ("variant=convbn", "data.crop=2", "model.dropout=0.3", "epochs=3", "eval_every=4", "schedule=cosine")
    whole = results(train.run(tiny(*overrides, f"root={tmp_path / 'whole'}")))

    def stop(progress: Progress) -> None:
        if progress.step >= at:
            raise problem

    cfg = tiny(*overrides)
    with pytest.raises(type(problem)):
        train.run(cfg, report=stop)
    broken = Run(run_dir(cfg))
    assert broken.status == ("interrupted" if isinstance(problem, KeyboardInterrupt) else "failed")
    assert not broken.finished
    assert results(train.run(cfg)) == whole
    assert Run(run_dir(cfg)).status == "completed"


def test_signals_while_files_are_written_leave_it_interrupted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record.write_whole

    def signalled(file: Path, content: bytes | str, previous: Path | None = None) -> None:
        whole(file, content, previous)
        if file.name in noisy:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(record, "write_whole", signalled)
    cfg = tiny("epochs=1")
    for file in (record.CONFIG, record.CHECKPOINT):
        noisy = {file, record.SUMMARY}
        with pytest.raises(KeyboardInterrupt):
            train.run(cfg)
        assert Run(run_dir(cfg)).status == "interrupted"
    noisy = {record.SUMMARY}
    with pytest.raises(KeyboardInterrupt):  # whoever runs several is to begin no other
        train.run(cfg)
    assert Run(run_dir(cfg)).status == "completed"


def test_run_that_stopped_between_checkpoint_and_metrics_loses_no_row(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results(train.run(tiny(f"root={tmp_path / 'whole'}")))

    def stop(_: Trainer, __: Path) -> None:
        raise Stop

    cfg = tiny()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "write_metrics", stop)
        with pytest.raises(Stop):
            train.run(cfg)
    assert not (run_dir(cfg) / "metrics.csv").exists()
    assert results(train.run(cfg)) == whole


def test_finished_run_is_not_run_again_unless_forced(tiny: Tiny) -> None:
    cfg = tiny("epochs=1")
    path = train.run(cfg)
    stamp = (path / "summary.json").stat().st_mtime_ns
    called: list[Progress] = []
    assert train.run(cfg, report=called.append) == path
    assert called == []
    assert (path / "summary.json").stat().st_mtime_ns == stamp
    train.run(cfg, force=True, report=called.append)
    assert called


def test_only_the_runs_own_directory_is_written(tiny: Tiny, tmp_path: Path) -> None:
    path = train.run(tiny("epochs=1", "tensorboard=true"))
    files = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.parent for file in files} == {path}
    names = {file.name.split(".")[0] for file in files if file.name != record.LOCK}
    assert names == {"config", "metrics", "summary", "checkpoint", "events"}


def test_divergence_is_a_result_with_its_step(tiny: Tiny) -> None:
    path = train.run(tiny("variant=nobn", "optimizer=sgd", "optimizer.lr=1e20"))
    summary = Run(path).summary
    assert summary["status"] == Status.diverged
    assert 1 <= summary["diverged_at_step"] <= 5
    assert summary["test_accuracy"] is None
    assert train.run(tiny("variant=nobn", "optimizer=sgd", "optimizer.lr=1e20")) == path


def test_step_of_divergence_is_that_of_the_first_bad_loss(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        loss, right = original(self, x, y, lr)
        return (loss * math.nan if self.step + 1 >= 7 else loss), right

    monkeypatch.setattr(Trainer, "update", update)
    assert Run(train.run(tiny())).summary["diverged_at_step"] == 7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.together=541",), "data.together=541 is more than the 540 training images"),
        (("batch_size=541",), "batch_size=541 is more than the 540 training images"),
        (("batch_size=1", "variant=convbn"), "variant=convbn: .*batch of 1"),
        (("variant=nosuch",), "there is no 'nosuch'"),
        (("model.activation=nosuch",), "there is no 'nosuch'"),
    ],
)
def test_configuration_that_cannot_train_is_one_sentence(tiny: Tiny, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train.run(tiny(*overrides))


def test_gpu_that_is_not_there_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda: torch finds no GPU"):
        train.resolve(tiny("device=cuda"))
    assert train.resolve(tiny("device=auto")).device == "cpu"


def test_checkpoint_of_another_run_is_refused(tiny: Tiny) -> None:
    cfg, other = tiny("epochs=1"), tiny("epochs=1", "model=paper_mlp")
    path = train.run(cfg)
    run_dir(other).mkdir(parents=True)
    shutil.copy(path / "checkpoint.pt", run_dir(other) / "checkpoint.pt")
    with pytest.raises(UserError, match=r"belongs to another run: model\.name is lenet there"):
        train.run(other)


def test_test_set_is_measured_at_the_end_unless_asked_for(tiny: Tiny) -> None:
    rows = Run(train.run(tiny())).metrics
    assert [row["test_accuracy"] is None for row in rows] == [True, False]
    rows = Run(train.run(tiny("eval_test=true"))).metrics
    assert [row["test_accuracy"] is None for row in rows] == [False, False]


def test_training_accuracy_is_that_of_the_batches_since_the_last_row(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        loss, right = original(self, x, y, lr)
        losses.append(float(loss))
        return loss, right

    monkeypatch.setattr(Trainer, "update", update)
    rows = Run(train.run(tiny("eval_every=6"))).metrics
    assert [row["step"] for row in rows] == [6, 12, 18]
    means = [sum(losses[i : i + 6]) / 6 for i in (0, 6, 12)]
    assert [row["train_loss"] for row in rows] == pytest.approx(means)


# --- optimizers and schedules ---


@pytest.mark.parametrize("name", OptimizerName)
def test_optimizer_is_torchs_with_the_settings_asked_for(tiny: Tiny, name: str) -> None:
    cfg = tiny(f"optimizer={name}", "optimizer.lr=0.05", "optimizer.weight_decay=0.1", "optimizer.momentum=0.5")
    cfg.optimizer.nesterov, cfg.optimizer.beta2, cfg.optimizer.decay_norm = True, 0.9, False
    cfg.optimizer.eps = 1e-7
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = make_optimizer(cfg, net)
    assert type(optimizer).__name__.lower() == name
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.05}
    if name == "sgd":
        assert all(group["momentum"] == 0.5 and group["nesterov"] for group in optimizer.param_groups)
    else:
        assert all(group["betas"] == (0.9, 0.9) and group["eps"] == 1e-7 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", OptimizerName)
def test_optimizer_moves_the_weights_as_torchs_own(tiny: Tiny, name: str) -> None:
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    options = {"momentum": 0.9} if name == "sgd" else {}
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = make_optimizer(tiny(f"optimizer={name}", "optimizer.lr=0.05", "optimizer.weight_decay=0.1"), nets[0])
    theirs = kind(nets[1].parameters(), lr=0.05, weight_decay=0.1, fused=True, **options)
    for _ in range(5):
        x = torch.randn(7, 3)
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(nets[0].weight, nets[1].weight)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict()["state"].keys() == ours.state_dict()["state"].keys()


STEPS, EPOCH = 100, 10


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), {0: 1, 99: 1}),
        (Schedule(ScheduleName.linear), {0: 1, 50: 0.5, 99: 0.01}),
        (Schedule(ScheduleName.cosine), {0: 1, 25: 0.5 + 0.5**1.5, 50: 0.5, 75: 0.5 - 0.5**1.5}),
        (Schedule(ScheduleName.step), {49: 1, 50: 0.1, 74: 0.1, 75: 0.01}),
        (Schedule(ScheduleName.step, milestones=[0.3], gamma=0.5), {29: 1, 30: 0.5, 99: 0.5}),
        (Schedule(ScheduleName.constant, warmup_epochs=1), {0: 0.1, 4: 0.5, 9: 1, 10: 1}),
        (Schedule(ScheduleName.cosine, warmup_epochs=2), {0: 0.05, 19: 1, 20: 1, 60: 0.5}),
    ],
)
def test_learning_rate_follows_its_schedule(schedule: Schedule, expected: dict[int, float]) -> None:
    got = {step: lr_factor(schedule, step, STEPS, EPOCH) for step in expected}
    assert got == pytest.approx(expected)


def test_learning_rate_in_the_metrics_is_the_one_that_was_used(tiny: Tiny) -> None:
    rows = Run(train.run(tiny("schedule=linear", "optimizer.lr=0.5", "optimizer=sgd", "variant=bn"))).metrics
    assert [row["lr"] for row in rows] == pytest.approx([0.5 * (1 - 8 / 18), 0.5 * (1 - 17 / 18)])


# --- what is recorded ---


def test_summary_holds_what_others_rely_on(tiny: Tiny) -> None:
    cfg = tiny("epochs=1")
    summary = Run(train.run(cfg)).summary
    needed = {"status", "variant", "seed", "test_accuracy", "test_loss", "seconds", "data_fingerprint", "versions"}
    assert needed | {"config_hash", "data", "data_official", "machine", "git_revision"} <= summary.keys()
    assert run_dir(cfg).name == f"seed0-{summary['config_hash']}"
    assert summary["data_official"] is False


def test_configuration_beside_the_run_is_the_one_that_ran(tiny: Tiny) -> None:
    cfg = tiny("epochs=1", "variant=convbn")
    assert Run(train.run(cfg)).config == train.resolve(cfg)


@pytest.mark.parametrize("bf16", [True, False])
def test_precision_auto_is_what_the_hardware_multiplies_in(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: bf16)
    said = "bf16" if bf16 else "fp32"
    path = train.run(tiny("epochs=1", "precision=auto"))
    assert path == run_dir(train.resolve(tiny("epochs=1", f"precision={said}")))
    assert Run(path).summary["precision"] == said
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation and bf16)
    assert train.multiplies_in_bf16(Device.cuda) is bf16


def test_networks_are_laid_out_as_the_configuration_says_and_learn_the_same(tiny: Tiny) -> None:
    def trainer(*overrides: str) -> Trainer:
        return train.trainer_of(tiny("model=labml_cnn", "model.width=0.2", *overrides))

    auto, nchw = trainer(), trainer("channels_last=false")
    for each, layout in ((auto, torch.channels_last), (nchw, torch.contiguous_format)):
        weights = [p for p in each.network.parameters() if p.dim() == 4]
        assert weights
        assert all(p.is_contiguous(memory_format=layout) for p in weights)
        assert all(batch.x.is_contiguous(memory_format=layout) for batch in each.batches(0, 2))
    for one, other in zip(auto.batches(0, 5), nchw.batches(0, 5), strict=True):
        losses = [t.update(b.x, b.y, b.lr)[0] for t, b in ((auto, one), (nchw, other))]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_labels_are_smoothed_in_training_alone(tiny: Tiny) -> None:
    trainer, plain = train.trainer_of(tiny("label_smoothing=0.2")), train.trainer_of(tiny())
    (batch,) = trainer.batches(0, 1)
    assert trainer.measure(trainer.data.test) == plain.measure(plain.data.test)
    with torch.no_grad():
        log_probabilities = plain.network.train()(batch.x).log_softmax(1)
    true, any_class = log_probabilities.gather(1, batch.y[:, None]).mean(), log_probabilities.mean()
    loss, _ = trainer.update(batch.x, batch.y, batch.lr)
    torch.testing.assert_close(loss, -(0.8 * true + 0.2 * any_class))
