"""Progress on standard error: a bar or a live table; plain lines where a display cannot work."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bnrepro.cli.saying import note, quiet
from bnrepro.config.schema import Config
from bnrepro.system.output import counted, only_shown, tell
from bnrepro.system.reading import printable

if TYPE_CHECKING:
    from bnrepro.runs.index import Row, Stored
    from bnrepro.training.trainer import Progress

PROGRESS = "Progress"
BAR = 15  # columns


class Display:
    """Standard error as a live display; where that cannot work, for plain lines.

    It works on a terminal that moves its cursor: not in a file or a pipe, whatever FORCE_COLOR and the like say, nor
    under TERM=dumb. With ``--quiet`` there is none. Nothing that goes wrong with it is more than told.
    """

    def __init__(self, shown: Callable[[], Any]) -> None:
        self.live: Live | None = None
        with only_shown(PROGRESS):
            console = Console(stderr=True, width=_width())
            at_terminal = sys.stderr is not None and sys.stderr.isatty()
            if quiet():
                return
            if at_terminal and console.is_interactive and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown"):
                self.live = Live(console=console, get_renderable=shown, refresh_per_second=4, redirect_stdout=False)

    def __enter__(self) -> Self:
        if self.live:
            with only_shown(PROGRESS):
                self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            with only_shown(PROGRESS):
                self.live.stop()

    def line(self, text: str, wrong: bool = False) -> None:
        """A line that stays; with ``--quiet``, only where something is ``wrong``."""
        if self.live:
            with only_shown(PROGRESS):
                self.live.console.print(text, markup=False, highlight=False)
        else:
            (tell if wrong else note)(text)


def _width() -> int | None:
    """The width for rich: None (the terminal's) unless COLUMNS has an implausible value."""
    columns = os.environ.get("COLUMNS", "")
    return None if not columns.isdecimal() or 20 <= int(columns) <= 1000 else 80


class TrainBar:
    """A run's progress: a bar on a terminal, a line an evaluation elsewhere."""

    def __init__(self, cfg: Config) -> None:
        self.name = printable(f"{cfg.variant} seed {cfg.seed}")
        self.progress: Progress | None = None
        self.validation = ""
        self.started: tuple[float, int] | None = None
        self.display = Display(self.shown)

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(*error)

    def update(self, progress: Progress) -> None:
        """Show where the run stands."""
        self.started = self.started or (time.monotonic(), progress.step)
        self.progress = progress
        if progress.row:
            accuracy = progress.row["val_accuracy"]
            self.validation = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
            if not self.display.live:
                note(f"epoch {progress.row['epoch']:g}: {self.numbers()}")

    def numbers(self) -> str:
        """The last losses and accuracies."""
        now = self.progress
        return f"loss {now.loss:.4f}, accuracy {now.accuracy:.4f}{self.validation}" if now else "preparing"

    def shown(self) -> Group:
        """A line with the bar, and one with the numbers, so that 60 columns are enough."""
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
        for _ in range(3):
            table.add_column(no_wrap=True)
        now = self.progress
        if now:
            table.add_row(
                Text(self.name),
                ProgressBar(total=now.steps, completed=now.step, width=BAR),
                f"{now.step}/{now.steps}",
                self.left(now),
            )
        else:
            table.add_row(Text(self.name))
        return Group(table, Text(self.numbers()))

    def left(self, now: Progress) -> str:
        """The time that the rest will take."""
        began, first = self.started or (0.0, 0)
        if now.step <= first:
            return "-:--:--"
        return _clock((time.monotonic() - began) / (now.step - first) * (now.steps - now.step))


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

    def __init__(self, names: list[str], what: str = "run") -> None:
        self.names, self.what = names, what
        self.shares: dict[int, float] = {}
        self.states: dict[int, str] = {}
        self.started = time.monotonic()
        self.display = Display(self.shown)

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self.display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(*error)

    def update(self, index: int, share: float) -> None:
        """Show that ``index`` has done ``share`` of its work."""
        self.shares[index] = max(self.shares.get(index, 0.0), share)

    def ended(self, index: int, outcome: Ended) -> None:
        """Show what came of ``index``."""
        self.shares[index], self.states[index] = 1.0, outcome.state
        text = f"{self.names[index]}: {outcome.state}" + (f" ({outcome.error})" if outcome.error else "")
        if not self.display.live:
            self.display.line(f"[{len(self.states)}/{len(self.names)}] {printable(text)}", bool(outcome.error))
        elif outcome.error:
            self.display.line(printable(text))

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
        return f"{counted(len(self.names), self.what)}: {known or 'nothing to do'} ({_clock(elapsed)}{left})"

    def shown(self) -> Group:
        """The summary, and a line for each that runs."""
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for index, share in sorted(self.running().items()):
            table.add_row(
                Text(printable(self.names[index])),
                ProgressBar(total=1, completed=share, width=BAR),
                f"{share:4.0%}",
            )
        return Group(Text(self.summary()), table)


class WatchBar:
    """Runs of other processes, by what they have written: a line for each on a terminal; elsewhere one an evaluation.

    Use it as `TrainBar`.
    """

    def __init__(self) -> None:
        self.lines: dict[str, tuple[float, str]] = {}
        self.seen = 0
        self.display = Display(self.shown)

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(*error)

    def at(self, name: str, run: Stored) -> None:
        """Show where ``run`` stood at its last evaluation."""
        share, said = _stands(run)
        new = self.lines.get(name) != (share, said)
        self.seen += name not in self.lines
        self.lines[name] = share, said
        if new and not self.display.live:
            note(f"{printable(name)}: {said}")

    def ended(self, name: str, row: Row) -> None:
        """Show how a run ended that was followed."""
        self.lines.pop(name, None)
        accuracy = row["test_accuracy"]
        self.display.line(
            printable(f"{name}: {row['status']}{'' if accuracy is None else f', test accuracy {accuracy:.4f}'}")
        )

    def shown(self) -> Table:
        """A line a run."""
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, (share, said) in self.lines.items():
            table.add_row(Text(printable(name)), ProgressBar(total=1, completed=share, width=BAR), Text(said))
        return table


def _stands(run: Stored) -> tuple[float, str]:
    """The share that is done and the numbers of the last evaluation of a run; what cannot be read is not there."""
    from bnrepro.errors import UserError

    try:
        last = run.run.metrics[-1]
    except (UserError, IndexError):
        return 0.0, "before its first evaluation"
    epochs, numbers = run.config.get("epochs"), [f"loss {last['train_loss']:.4f}"]
    numbers += [f"validation accuracy {last['val_accuracy']:.4f}"] if last["val_accuracy"] is not None else []
    share = (last["epoch"] or 0.0) / epochs if epochs else 0.0
    return share, f"epoch {last['epoch']:g} of {epochs}, {', '.join(numbers)}"


def _clock(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))}"
