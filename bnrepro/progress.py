"""Progress on standard error: bars and a live table; plain lines where that is not a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import timedelta
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
            accuracy = progress.row["val_accuracy"]
            self.validation = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
            if self.lines:
                print(f"epoch {progress.row['epoch']:g}: {numbers}{self.validation}", file=sys.stderr)
        self.bar.update(self.task, completed=progress.step, total=progress.steps, numbers=numbers + self.validation)


class Ended(Protocol):
    """What a piece of work came to."""

    @property
    def state(self) -> str:
        """In one word: completed, diverged, measured, failed, ..."""

    @property
    def error(self) -> str | None:
        """Why it failed."""


class SweepBar:
    """Many runs, or other work: what runs and how far it is, how the rest ended, and the time that is left.

    A live table on a terminal; elsewhere a line for each that ended.
    """

    def __init__(self, names: list[str], what: str = "runs") -> None:
        self.names, self.what = names, what
        self.shares: dict[int, float] = {}
        self.states: dict[int, str] = {}
        self.console = Console(stderr=True)
        self.started = time.monotonic()
        self.live = Live(console=self.console, get_renderable=self.shown, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, index: int, share: float) -> None:
        """Show that ``index`` has done ``share`` of its work."""
        self.shares[index] = max(self.shares.get(index, 0.0), share)

    def ended(self, index: int, outcome: Ended) -> None:
        """Show what came of ``index``."""
        self.shares[index], self.states[index] = 1.0, outcome.state
        text = f"{self.names[index]}: {outcome.state}" + (f" ({outcome.error})" if outcome.error else "")
        if self.console.is_terminal:
            if outcome.error:
                self.live.console.print(text, markup=False, highlight=False)
        else:
            print(f"[{len(self.states)}/{len(self.names)}] {text}", file=sys.stderr)

    def running(self) -> dict[int, float]:
        """What has begun and not ended, with the share that is done."""
        return {index: share for index, share in self.shares.items() if index not in self.states}

    def summary(self) -> str:
        """The counts and the time."""
        running = self.running()
        counts = {**Counter(self.states.values()), "running": len(running)}
        counts["waiting"] = len(self.names) - len(self.states) - len(running)
        elapsed = time.monotonic() - self.started
        done = sum(self.shares.values())
        left = ""
        if 0 < done < len(self.names):
            left = f", about {_clock(elapsed / done * (len(self.names) - done))} left"
        known = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return f"{len(self.names)} {self.what}: {known or 'nothing to do'} ({_clock(elapsed)}{left})"

    def shown(self) -> Group:
        """The summary, and a line for each that runs."""
        table = Table.grid(padding=(0, 2))
        for index, share in sorted(self.running().items()):
            table.add_row(Text(self.names[index]), ProgressBar(total=1, completed=share, width=30), f"{share:4.0%}")
        return Group(Text(self.summary()), table)


def _clock(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))}"
