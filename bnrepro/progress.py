"""Progress bars on standard error; plain lines where that is not a terminal."""

from __future__ import annotations

import sys
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bnrepro.schema import Config
from bnrepro.train import Progress


class TrainBar:
    """A run's progress: a bar on a terminal, a line an evaluation elsewhere."""

    def __init__(self, cfg: Config) -> None:
        console = Console(stderr=True)
        self.lines = not console.is_terminal
        self.bar = Bar(
            TextColumn(f"{cfg.variant} seed {cfg.seed}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=self.lines,
        )
        self.task = self.bar.add_task("train", total=None, numbers="preparing")
        self.validation = ""

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, progress: Progress) -> None:
        """Show where the run stands."""
        numbers = f"loss {progress.loss:.4f}, accuracy {progress.accuracy:.4f}"
        if progress.row:
            self.validation = f", validation accuracy {progress.row['val_accuracy']:.4f}"
            if self.lines:
                print(f"epoch {progress.row['epoch']:g}: {numbers}{self.validation}", file=sys.stderr)
        self.bar.update(self.task, completed=progress.step, total=progress.steps, numbers=numbers + self.validation)


class SweepBar:
    """Progress of many runs, or of other work: one bar over all of them."""

    def __init__(self, runs: int, what: str = "runs") -> None:
        console = Console(stderr=True)
        self.shares = [0.0] * runs
        self.bar = Bar(
            TextColumn("{task.fields[done]} of {task.total} " + what),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(what, total=runs, done=0)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, index: int, share: float) -> None:
        """Show that run ``index`` has done ``share`` of its steps."""
        self.shares[index] = max(self.shares[index], share)
        self.bar.update(self.task, completed=sum(self.shares), done=sum(s >= 1 for s in self.shares))
