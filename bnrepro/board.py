"""What TensorBoard shows of a run: a view of its record, never read here."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnrepro.record import SPLITS, Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """A run's TensorBoard events: one event file in the run's own directory, under tags that compare across runs."""

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        self.directory, self.first_step = directory, first_step

    @cached_property
    def writer(self) -> SummaryWriter:
        """torch's writer, made when there is something to write: importing TensorBoard takes longer than many steps."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.directory), purge_step=self.first_step or None, flush_secs=30)

    def row(self, row: Row) -> None:
        """The losses, accuracies and learning rate of one evaluation."""
        step = int(row["step"] or 0)
        for split in SPLITS:
            for metric in ("loss", "accuracy"):
                value = row[f"{split}_{metric}"]
                if value is not None:
                    self.writer.add_scalar(f"{metric}/{split}", value, step)
        self.writer.add_scalar("lr", row["lr"], step)

    def norm_inputs(self, inputs: dict[str, Tensor], step: int) -> None:
        """For the values that enter each norm: mean, standard deviation, 15/50/85th percentiles, histogram.

        Mean and deviation are of all values; percentiles and histogram of at most 65,536 taken at equal steps.
        """
        for name, values in inputs.items():
            flat = values.float().flatten()
            if not bool(flat.isfinite().all()):
                continue
            some = flat[:: -(-len(flat) // 65536)]
            marks = torch.quantile(some, torch.tensor([0.15, 0.5, 0.85], device=some.device))
            numbers = {"mean": flat.mean(), "std": flat.std(correction=0)}
            numbers |= dict(zip(("p15", "p50", "p85"), marks, strict=True))
            for key, value in numbers.items():
                self.writer.add_scalar(f"{name}/{key}", float(value), step)
            self.writer.add_histogram(f"{name}/input", some.cpu().numpy(), step, bins=64)

    def hyperparameters(self, values: dict[str, Any], result: float | None) -> None:
        """For the HPARAMS page, in this run: the library's own `add_hparams` would make a second one."""
        from torch.utils.tensorboard.summary import hparams

        metrics = {} if result is None else {"accuracy/test": result}
        file_writer = self.writer._get_file_writer()
        for summary in hparams(values, metrics):
            file_writer.add_summary(summary)

    def close(self) -> None:
        """Flush and close the event file, if there is one."""
        if "writer" in self.__dict__:
            self.writer.close()
