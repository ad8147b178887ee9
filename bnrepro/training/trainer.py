"""The loop of training: batches, steps, evaluations and checkpoints of one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnrepro.config import check_yaml, config_hash, to_dict, to_yaml, user_files
from bnrepro.config.schema import Config, Precision, in_channels_last
from bnrepro.data.dataset import Dataset, Split, derive_seed, epoch_plan, eval_batches, train_batch
from bnrepro.errors import UserError, in_brackets, out_of_memory
from bnrepro.norm import NormError, native
from bnrepro.runs import checkpoint, provenance, record
from bnrepro.runs.board import TensorBoardWriter
from bnrepro.runs.record import Row, Status
from bnrepro.system import output
from bnrepro.system.cores import CrowdedCores, crowded
from bnrepro.system.signals import Stop
from bnrepro.training import generators, rotation
from bnrepro.training.distributed import Processes
from bnrepro.training.freezing import prepare
from bnrepro.training.metrics import MetricAccumulator
from bnrepro.training.model import Network, at_norms, build, load_state, norm_of, size_of, state_of
from bnrepro.training.optimizer import lr_factor, make_optimizer
from bnrepro.training.user_modules import own_files

EVAL_IMAGES = 500  # images a forward pass in evaluation: fits the caches
CHECK_STEPS = 10  # steps between looks at the loss, each of which a GPU has to be waited for
CHECKPOINT_SECONDS = 120  # of training without a checkpoint, after which one is written between evaluations
CROWDED_SECONDS = 10  # of training, after which it is looked whether other processes slow it down
PROBE_IMAGES = 256  # images of the validation set whose way through the norms is recorded


@dataclass(frozen=True)
class Progress:
    """Where a run stands: for a progress bar. Loss and accuracy are of the training batches since the last look."""

    step: int
    steps: int
    loss: float
    accuracy: float
    row: Row | None = None
    """The row of metrics.csv that has just been written, at an evaluation."""


class Batch(NamedTuple):
    """One step's images (normalized), labels and learning rate; ``step`` counts from 0."""

    step: int
    x: Tensor
    y: Tensor
    lr: float


class Trainer:
    """The loop and its state, which is what a checkpoint holds."""

    def __init__(
        self,
        cfg: Config,
        data: Dataset,
        network: Network,
        report: Callable[[Progress], None] | None = None,
        processes: Processes = Processes(),
    ) -> None:
        self.cfg, self.data, self.processes = cfg, data, processes
        self.report = report if processes.first else None
        self.part = processes.part(cfg.batch_size)
        self.device = torch.device(cfg.device.value)
        prepare(network, cfg)
        self.network = network.to(self.device)
        self.channels_last = in_channels_last(cfg)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.forward = processes.wrap(self.network, bool(own_files(cfg)))  # before the optimizer: norms are replaced
        self.optimizer = make_optimizer(cfg, network)
        # Others hold what is no number on purpose, as a mask of attention does, or cannot be asked.
        self.finite_buffers = [name for name, buffer in self.network.named_buffers() if _is_finite(buffer)]
        self.unchecked = bool(own_files(cfg))
        self.steps_per_epoch = len(data.train.labels) // cfg.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={cfg.batch_size} is more than the {len(data.train.labels)} training images of "
                f"{data.name}. Use a smaller batch."
            )
        if cfg.data.together > len(data.train.labels):
            raise UserError(
                f"data.together={cfg.data.together} is more than the {len(data.train.labels)} training images of "
                f"{data.name}. Use a smaller number."
            )
        self.steps = cfg.epochs * self.steps_per_epoch
        self.step = 0
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.diverged_at: int | None = None
        # Dropout, noise and code of a user's own draw from the global generators; batches and weights have their own.
        generators.seed_all(derive_seed(cfg.seed, "dropout"))

    # --- the loop ---

    def rehearse(self) -> None:
        """Run a batch through a copy of the network in training mode, so that errors surface before training.

        Raises:
            UserError: the batch or the maps are too small for a norm, with the norm's reason.
        """
        images = self.data.normalize(self.data.train.images[: self.cfg.batch_size], self.channels_last)
        devices = [self.device] if self.device.type == "cuda" else []
        own = own_files(self.cfg)
        try:
            copy = deepcopy(self.network).train()
        except user_files.FAILS:  # a layer that cannot be copied: what is wrong in a step is reported in training
            if not own:
                return
            copy = None
        try:
            with generators.forked(devices):
                if copy is None:
                    self.check(state_of(self.network))
                elif own:  # it is not known to be right
                    self.probe(copy, images)
                else:
                    with torch.no_grad(), self.autocast():
                        copy(images)
        except user_files.FAILS as error:
            if own and not isinstance(error, NormError | MemoryError) and not out_of_memory(error):
                said = user_files.blame(error, own)
                raise UserError(f"A batch of shape {tuple(images.shape)} cannot be trained on. {said}") from error
            if not isinstance(error, ValueError):
                raise
            size = f", batch_size={self.cfg.batch_size}" if not isinstance(error, NormError) else ""
            advice = " Use batch_size=2 or more." if self.cfg.batch_size == 1 else ""
            raise UserError(f"variant={self.cfg.variant}{size}: {str(error).rstrip('.')}.{advice}") from error

    def probe(self, network: nn.Module, images: Tensor) -> None:
        """Take two steps with ``network`` on ``images``, and check what it gives and what a checkpoint holds of it.

        Two, since what is wrong with what the first one keeps, as a graph in a buffer, comes out in the second.
        """
        wanted = (len(images), self.data.num_classes)
        optimizer = make_optimizer(self.cfg, network)
        for _ in range(2):
            with self.autocast():
                logits = network(images)
            if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(f"its output must have shape {wanted}; got {got}")
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), self.data.train.labels[: wanted[0]]).backward()
            optimizer.step()
        self.check(state_of(network))

    def check(self, state: dict[str, Any]) -> None:
        """Check that a run can go on from ``state``, and be evaluated.

        Raises:
            ValueError: a newly built network cannot take it; the message says which tensor does not fit.
        """
        cfg, data = self.cfg, self.data
        kept = checkpoint.check(state)
        shape = (data.channels, data.image_size, data.num_classes)
        try:
            load_state(build(cfg.model, norm_of(cfg), *shape, torch.Generator()), kept)
        except ValueError as error:
            raise ValueError(
                f"a newly built network cannot load its checkpoint ({error}). Create everything that state_dict() "
                "holds in __init__, in its final size"
            ) from error

    def train(self, directory: Path, stop: Stop, state: dict[str, Any] | None = None) -> Status:
        """Run to the end, from ``state``, a checkpoint of this run, if there is one.

        Raises:
            KeyboardInterrupt: ``stop`` was asked for; a checkpoint was written after the step.
        """
        since = MetricAccumulator(self.device)
        first = self.processes.first
        if state:
            self.restore(state, since)
            if first:
                self.write_metrics(directory)
        wanted = self.cfg.tensorboard and first
        board = TensorBoardWriter(directory, self.step + 1 if self.step else 0) if wanted else None
        if board and self.step == 0:
            board.batch(next(self.batches(0, 1)).x)
        started = time.perf_counter() - self.seconds
        try:
            status = self.loop(directory, board, since, started, stop)
        finally:
            self.seconds = time.perf_counter() - started
            if board:
                if self.rows:
                    board.hyperparameters(_flat(self.cfg), config_hash(self.cfg, ("seed",)))
                board.close()
        return status

    def loop(
        self, directory: Path, board: TensorBoardWriter | None, since: MetricAccumulator, started: float, stop: Stop
    ) -> Status:
        """The steps that are left."""
        others = CrowdedCores() if self.report and self.device.type == "cpu" else None
        look_at_others = time.perf_counter() + CROWDED_SECONDS
        saved = time.perf_counter()
        for batch in self.batches(self.step):
            watched = board is not None and self.cfg.angles and self.evaluation_due(self.step + 1)
            before = rotation.weights(self.network) if watched else {}
            since.add(*self.update(batch.x, batch.y, batch.lr), self.cfg.batch_size)
            self.step += 1
            due = self.evaluation_due()
            look = due or self.step % CHECK_STEPS == 0
            if look:
                if (bad := since.first_non_finite()) is not None:
                    self.diverged_at = self.step - bad
                    self.seconds = time.perf_counter() - started
                    return Status.diverged
                if self.report:
                    self.report(Progress(self.step, self.steps, *since.recent()))
                if others and time.perf_counter() > look_at_others:
                    if said := crowded(others.by_others(), torch.get_num_threads()):
                        output.tell(said)
                    others = None
            if due:
                self.seconds = time.perf_counter() - started
                if not self.evaluate(directory, board, since, batch.lr):
                    self.diverged_at = self.step
                    return Status.diverged
                if board and before:
                    turns = rotation.turns(before, self.network, batch.lr)
                    board.turns({layer: turn._asdict() for layer, turn in turns.items()}, self.step)
                saved = time.perf_counter()
            elif look and time.perf_counter() - saved > CHECKPOINT_SECONDS and self.processes.first:
                self.seconds = time.perf_counter() - started
                self.save(directory, since)
                saved = time.perf_counter()
            # Several processes have to end at the same step: they agree on it where they wait for each other anyway.
            asked = stop.asked if self.processes.size == 1 else look and self.processes.any(stop.asked, self.device)
            if asked and self.step < self.steps:
                self.seconds = time.perf_counter() - started
                if self.processes.first:
                    self.save(directory, since)
                raise KeyboardInterrupt(
                    f"Stopped at step {self.step} of {self.steps}; run the same command again to continue."
                )
        return Status.completed

    def batches(self, start: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``end`` (None: the last), of each the part that falls to this process."""
        cfg, plan = self.cfg, None
        for step in range(start, self.steps if end is None else end):
            epoch, position = divmod(step, self.steps_per_epoch)
            if plan is None or position == 0:
                plan = epoch_plan(len(self.data.train.labels), cfg.data, cfg.seed, epoch)
            first, size, nhwc = position * cfg.batch_size, cfg.batch_size, self.channels_last
            x, y = train_batch(self.data, plan, cfg.data, first, size, channels_last=nhwc, part=self.part)
            yield Batch(step, x, y, cfg.optimizer.lr * lr_factor(cfg.schedule, step, self.steps, self.steps_per_epoch))

    def update(self, x: Tensor, y: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take one step on this process's part of a batch; return the whole batch's mean loss and correct count."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self.forward(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, y, label_smoothing=self.cfg.label_smoothing)
        share = len(y) / self.cfg.batch_size
        self.processes.weighted(loss, share).backward()
        self.optimizer.step()
        return self.processes.joint(loss.detach(), (logits.detach().argmax(1) == y).sum(), share)

    def autocast(self) -> torch.autocast:
        """bf16 where the configuration asks for it."""
        enabled = self.cfg.precision is Precision.bf16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def evaluation_due(self, step: int | None = None) -> bool:
        """After every ``eval_every`` steps, or each epoch; always after the last step. None: after those made."""
        every, step = self.cfg.eval_every or self.steps_per_epoch, self.step if step is None else step
        return step % every == 0 or step == self.steps

    def evaluate(self, directory: Path, board: TensorBoardWriter | None, since: MetricAccumulator, lr: float) -> bool:
        """Evaluate and record the results. If a value is not finite, write nothing and return False."""
        train_loss, train_accuracy = since.mean()
        row: Row = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        row |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
        row["val_loss"], row["val_accuracy"] = (
            self.measure(self.data.val) if len(self.data.val.labels) else (None, None)
        )
        row["test_loss"] = row["test_accuracy"] = None
        if self.cfg.eval_test or self.step == self.steps:
            row["test_loss"], row["test_accuracy"] = self.measure(self.data.test)
        row |= {"lr": lr, "seconds": self.seconds}
        # Each process measures all of it and comes to the same, but for rounding: so they agree.
        if self.processes.any(not (self.finite() and _all_finite(row)), self.device):
            return False
        self.rows.append(row)
        since.reset()
        if not self.processes.first:
            return True
        # The checkpoint holds the rows too: if the machine stops between these two lines, neither is lost.
        self.save(directory, since)
        self.write_metrics(directory)
        if board:
            board.row(row)
            board.norm_inputs(self.norm_inputs(), self.step)
            if len(self.rows) == 1 or self.step == self.steps:
                board.layers(self.network, self.step)
        if self.report:
            self.report(Progress(self.step, self.steps, train_loss, train_accuracy, row))
        return True

    def finite(self) -> bool:
        """Whether all parameters are finite, and all buffers that were finite at the start."""
        buffers = dict(self.network.named_buffers())
        tensors = [*self.network.parameters(), *(buffers[name] for name in self.finite_buffers if name in buffers)]
        return bool(torch.stack([t.isfinite().all() for t in tensors]).all()) if tensors else True

    def write_metrics(self, directory: Path) -> None:
        """metrics.csv, whole."""
        whole = [{**row, "step": int(row["step"] or 0)} for row in self.rows]
        record.write_csv(directory / record.METRICS, record.COLUMNS, whole)

    def measure(self, split: Split) -> tuple[float, float]:
        """Mean cross-entropy and accuracy in eval mode."""
        return loss_and_accuracy(self.network, self.data, split, self.cfg)

    @torch.inference_mode()
    def norm_inputs(self) -> dict[str, Tensor]:
        """What enters each norm when the first images of the validation set are classified, in eval mode.

        Without a validation set: of the training set.
        """
        source = self.data.val if len(self.data.val.labels) else self.data.train
        probe = Split(source.images[:PROBE_IMAGES], source.labels[:PROBE_IMAGES])
        self.network.eval()
        batches = eval_batches(self.data, probe, PROBE_IMAGES, self.cfg.data, channels_last=self.channels_last)
        with self.autocast(), at_norms(self.network) as inputs:
            for x, _ in batches:
                self.network(x)
        return inputs

    # --- what is kept ---

    def begin(self, directory: Path) -> None:
        """What is there before the first step: the configuration, and files of a user's own."""
        record.keep_code(directory, self.cfg)
        record.write_whole(directory / record.CONFIG, to_yaml(self.cfg))

    def put_back(self, directory: Path) -> None:
        """Write again what has been removed from the run's directory, or with it, since it was written."""
        if not record.is_there(directory / record.CONFIG):
            self.begin(directory)
        if self.rows and not record.is_there(directory / record.METRICS):
            self.write_metrics(directory)
        if self.rows and self.cfg.tensorboard and not any(directory.glob("events.*")):
            board = TensorBoardWriter(directory)
            for row in self.rows:
                board.row(row)
            board.close()

    def save(self, directory: Path, since: MetricAccumulator) -> None:
        """A checkpoint; the one before is kept until the run has ended."""
        state = self.state(since)
        if self.unchecked:  # code of a user's own, which may have changed its network since it was rehearsed
            self.check(state)
            self.unchecked = False
        checkpoint.save(directory / record.CHECKPOINT, state, directory / record.PREVIOUS)

    def state(self, since: MetricAccumulator) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and primitives.

        After the last step that is no longer the optimizer's state, two thirds of the file.
        """
        kept = self.step < self.steps or self.cfg.keep_optimizer
        return {
            "config": to_yaml(self.cfg),
            **state_of(self.network),
            **({"optimizer": self.optimizer.state_dict()} if kept else {}),
            "step": self.step,
            "rows": self.rows,
            "seconds": self.seconds,
            "since": since.state(),
            **generators.states(self.device),
        }

    def restore(self, state: dict[str, Any], since: MetricAccumulator) -> None:
        """Go on from `state`.

        Raises:
            UserError: it is not a checkpoint of this run.
        """
        check_yaml(state.get("config"), self.cfg)
        try:
            load_state(self.network, state)
            if "optimizer" in state or state["step"] != self.steps:
                self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.rows, self.seconds = int(state["step"]), list(state["rows"]), float(state["seconds"])
            since.restore(state["since"])
            generators.restore(state, self.device)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"The checkpoint does not fit this run ({in_brackets(error)}). Start over with --force."
            ) from error

    def summary(self, status: Status, error: str | None = None) -> dict[str, Any]:
        """summary.json: the final numbers and where they come from."""
        last: dict[str, Any] = dict(self.rows[-1]) if self.rows else dict.fromkeys(record.COLUMNS)
        done = status is Status.completed
        parameters, buffers = size_of(self.network)
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "status": status.value,
            "variant": self.cfg.variant,
            "seed": self.cfg.seed,
            "dataset": self.cfg.data.name,
            "model": self.cfg.model.name,
            "test_accuracy": last["test_accuracy"] if done else None,
            "test_loss": last["test_loss"] if done else None,
            "val_accuracy": last["val_accuracy"],
            "val_loss": last["val_loss"],
            "train_accuracy": last["train_accuracy"],
            "train_loss": last["train_loss"],
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "diverged_at_step": self.diverged_at,
            "error": error,
            "seconds": round(self.seconds, 3),
            "parameters": parameters,
            "buffers": buffers,
            "data": self.data.description,
            "data_official": self.data.official,
            "data_fingerprint": self.data.fingerprint,
            "precision": self.cfg.precision.value,
            "device": gpu or "cpu",
            "machine": provenance.machine(),
            "processes": self.processes.size,
            "threads": torch.get_num_threads(),
            "kernels": native.arithmetic(),
            "versions": provenance.versions(),
            "git_revision": provenance.git_revision(),
            "config_hash": config_hash(self.cfg),
        }


@torch.inference_mode()
def loss_and_accuracy(
    network: nn.Module, data: Dataset, split: Split, cfg: Config, batch_size: int | None = None
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of ``network`` in eval mode on ``split``, ``batch_size`` images at a time."""
    network.eval()
    count, size = len(split.labels), batch_size or EVAL_IMAGES
    device = split.labels.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=cfg.precision is Precision.bf16):
        for x, y in eval_batches(data, split, size, cfg.data, channels_last=in_channels_last(cfg)):
            logits = network(x).float()
            loss += F.cross_entropy(logits, y, reduction="sum").double()
            right += (logits.argmax(1) == y).sum()
    return float(loss) / count, float(right) / count


def _is_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds finite numbers alone; False where torch cannot say, as of a sparse one."""
    try:
        return bool(tensor.isfinite().all())
    except RuntimeError:
        return False


def _all_finite(row: Row) -> bool:
    return all(math.isfinite(value) for value in row.values() if value is not None)


def _flat(cfg: Config) -> dict[str, Any]:
    """The configuration as one level of names and values, for TensorBoard's HPARAMS page."""
    flat: dict[str, Any] = {}
    for key, value in to_dict(cfg).items():
        pairs = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        flat |= {name: v for name, v in pairs.items() if isinstance(v, bool | int | float | str)}
    return flat
