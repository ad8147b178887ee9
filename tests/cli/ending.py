"""A command in a process group of its own, signalled at some moment: nothing of it may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def group(leader: int) -> set[int]:
    """The living processes of a session, zombies not counted."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == leader and state != "Z":
                found.add(int(entry.name))
    return found


class Command:
    """``bnrepro`` with arguments, in a session of its own."""

    def __init__(self, folder: Path, arguments: Sequence[str], prepare: Callable[[], None] | None = None) -> None:
        def before() -> None:
            for number in (signal.SIGINT, signal.SIGHUP):  # ignored, perhaps, where the tests run
                signal.signal(number, signal.SIG_DFL)
            if prepare:
                prepare()

        folder.mkdir(parents=True, exist_ok=True)
        self.err = folder / "stderr.txt"
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bnrepro", *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
                preexec_fn=before,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def wait_for(self, there: Callable[[], object], seconds: float = 120) -> None:
        """Until something is there, or the command has ended."""
        end = time.monotonic() + seconds
        while not there() and self.process.poll() is None:
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.01)

    def signal(self, *numbers: signal.Signals, to_all: bool = False, pause: float = 0.0) -> None:
        """Signals one after the other, to the command alone or to its whole group, as a terminal does."""
        for number in numbers:
            if self.process.poll() is None:
                (os.killpg if to_all else os.kill)(self.process.pid, number)
            time.sleep(pause)

    def ended(self, seconds: float = 30) -> int:
        """Its exit code as a shell sees it. Nothing of it is left after ``seconds``."""
        try:
            code = self.process.wait(seconds)
            end = time.monotonic() + seconds
            while left := group(self.process.pid):
                assert time.monotonic() < end, f"left: {left}"
                time.sleep(0.05)
            return code if code >= 0 else 128 - code
        finally:
            if left := group(self.process.pid):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
