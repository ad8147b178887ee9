"""What TensorBoard shows of a run: a view of its record, never read here, whose errors stop nothing."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from bnrepro.runs.record import SPLITS, Row
from bnrepro.system.output import only_shown

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch import Tensor, nn

SHOWN = "TensorBoard's curves"
PICTURES = 64  # images, filters or channels in one picture
SMALLEST = 200  # pixels of a picture's side, at least: filters of 5 x 5 are enlarged

GAP = 2  # pixels between two images of a picture

_numbers = count()


class EventFile:
    """An event file in ``directory``, made when there is something to write: importing TensorBoard takes seconds.

    torch's `SummaryWriter` writes in a thread of its own, where a full disk is a traceback and may be a wait without
    an end. Here every error is one of the call that wrote.

    Args:
        directory: of the events.
        first_step: where a run goes on; TensorBoard drops what an earlier file says of this step and later ones.
    """

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        self.directory, self.first_step = directory, first_step
        self.file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A number at a step."""
        from torch.utils.tensorboard.summary import scalar

        self.summary(scalar(tag, value), step)

    def summary(self, summary: Summary, step: int = 0) -> None:
        """What the functions in `torch.utils.tensorboard.summary` make."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if self.file is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
            self.file = (self.directory / name).open("xb")
            self._write(Event(step=self.first_step, file_version="brain.Event:2"))
            if self.first_step:
                self._write(Event(step=self.first_step, session_log=SessionLog(status=SessionLog.START)))
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Event) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        RecordWriter(self.file).write(event.SerializeToString())

    def flush(self) -> None:
        """Have TensorBoard see what was written."""
        if self.file:
            self.file.flush()

    def close(self) -> None:
        """Close the file, if there is one; once."""
        file, self.file = self.file, None
        if file:
            file.close()


class TensorBoardWriter:
    """A run's TensorBoard events: one event file in the run's own directory, under tags that compare across runs.

    After a first error, which is reported, it takes everything and writes nothing.
    """

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        self.events: EventFile | None = EventFile(directory, first_step)

    def row(self, row: Row) -> None:
        """The losses, accuracies and learning rate of one evaluation."""
        self._show(self._row, row)

    def norm_inputs(self, inputs: dict[str, Tensor], step: int) -> None:
        """For the values that enter each norm: mean, standard deviation, 15/50/85th percentiles, histogram.

        Mean and deviation are of all values; percentiles and histogram of at most 65,536 taken at equal steps.
        """
        self._show(self._norm_inputs, inputs, step)

    def turns(self, turns: Mapping[str, Mapping[str, float]], step: int) -> None:
        """What the step did to the weights of each layer: their angle, norm and effective rate."""
        self._show(self._turns, turns, step)

    def batch(self, images: Tensor, step: int = 0) -> None:
        """A batch (N, C, H, W) as the network sees it: augmented and normalized."""
        self._show(self._picture, "batch", images, step)

    def layers(self, network: nn.Module, step: int) -> None:
        """The first convolution's filters, and the maps of each norm with statistics per location.

        Means are shown minus the mean of their channel, variances divided by it.
        """
        self._show(self._layers, network, step)

    def hyperparameters(self, values: dict[str, Any], group: str) -> None:
        """For the HPARAMS page, in this run: the library's own `add_hparams` would make a second one.

        Runs of one ``group``, as the seeds of one configuration, are one row there, with the mean of their metrics.
        Which columns there are is not said by a run, as it cannot know what varies: see `bnrepro.runs.hparams`.
        """
        self._show(self._hyperparameters, values, group)

    def close(self) -> None:
        """Flush and close the event file, if there is one."""
        self._show(EventFile.close)

    def _show(self, what: Any, *values: Any) -> None:
        if self.events is None:
            return
        whole = False
        try:
            with only_shown(SHOWN):
                what(self.events, *values)
                self.events.flush()
                whole = True
        finally:
            if not whole:
                with suppress(Exception):
                    self.events.close()
                self.events = None

    @staticmethod
    def _row(events: EventFile, row: Row) -> None:
        step = int(row["step"] or 0)
        for split in SPLITS:
            for metric in ("loss", "accuracy"):
                value = row[f"{split}_{metric}"]
                if value is not None:
                    events.scalar(f"{metric}/{split}", value, step)
        if row["lr"] is not None:
            events.scalar("lr", row["lr"], step)

    @staticmethod
    def _norm_inputs(events: EventFile, inputs: dict[str, Tensor], step: int) -> None:
        import torch
        from torch.utils.tensorboard.summary import histogram

        for name, values in inputs.items():
            flat = values.float().flatten()
            if not bool(flat.isfinite().all()):
                continue
            some = flat[:: -(-len(flat) // 65536)]
            marks = torch.quantile(some, some.new_tensor([0.15, 0.5, 0.85]))
            numbers = {"mean": flat.mean(), "std": flat.std(correction=0)}
            numbers |= dict(zip(("p15", "p50", "p85"), marks, strict=True))
            for key, value in numbers.items():
                events.scalar(f"{name}/{key}", float(value), step)
            events.summary(histogram(f"{name}/input", some.cpu().numpy(), bins=64), step)

    @staticmethod
    def _turns(events: EventFile, turns: Mapping[str, Mapping[str, float]], step: int) -> None:
        for layer, turn in turns.items():
            for key, value in turn.items():
                events.scalar(f"{layer}/{key}", value, step)

    @staticmethod
    def _picture(events: EventFile, tag: str, images: Tensor, step: int) -> None:
        from torch.utils.tensorboard.summary import image

        picture = tiled(images.detach().float().cpu())
        events.summary(image(tag, picture.numpy(), dataformats="CHW"), step)

    @staticmethod
    def _layers(events: EventFile, network: nn.Module, step: int) -> None:
        from torch import nn

        kernels = next((each.weight for each in network.modules() if isinstance(each, nn.Conv2d)), None)
        if kernels is not None:
            seen = kernels if kernels.shape[1] in (1, 3) else kernels.mean(1, keepdim=True)
            TensorBoardWriter._picture(events, "filters/first", seen, step)
        norms = [each for each in network.modules() if getattr(each, "running_mean", None) is not None]
        for number, norm in enumerate(norms, 1):
            for name in ("running_mean", "running_var"):
                maps = getattr(norm, name)
                if maps.dim() >= 3 and maps.shape[-1] * maps.shape[-2] > 1:  # per location
                    flat = maps.detach().reshape(-1, 1, *maps.shape[-2:])
                    mean = flat.mean((-2, -1), keepdim=True)  # channels differ by more than locations do
                    flat = flat / mean.clamp(min=1e-12) if name == "running_var" else flat - mean
                    TensorBoardWriter._picture(events, f"statistics/norm{number}/{name}", flat, step)

    @staticmethod
    def _hyperparameters(events: EventFile, values: dict[str, Any], group: str) -> None:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        _, start, end = hparams(values, {})
        about = start.value[0].metadata.plugin_data
        found = HParamsPluginData.FromString(about.content)
        found.session_start_info.group_name = group
        about.content = found.SerializeToString()
        for summary in (start, end):
            events.summary(summary)


def tiled(images: Tensor) -> Tensor:
    """Images (N, C, H, W) side by side as one (C, H', W') from 0 to 1: darkest to brightest of all of them.

    Other channels than 1 and 3 are averaged; lines of `GAP` pixels lie between images.
    """
    images = images[:PICTURES] if images.shape[1] in (1, 3) else images[:PICTURES].mean(1, keepdim=True)
    low, high = images.min(), images.max()
    images = (images - low) / (high - low if high > low else 1)
    columns = max(1, math.ceil(math.sqrt(len(images))))
    rows = -(-len(images) // columns)
    factor = -(-SMALLEST // max(rows * images.shape[2], columns * images.shape[3]))
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)  # before the lines, which stay thin
    _, channels, height, width = images.shape
    grid = images.new_ones(channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    for place, each in enumerate(images):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = each
    return grid
