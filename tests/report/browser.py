"""A browser for tests, driven over a pipe: no driver, no port, no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BROWSER = next((p for name in ("chromium", "google-chrome", "chromium-browser") if (p := shutil.which(name))), None)


PATIENCE = 60  # seconds


class Page:
    """A page of the browser."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into, self._count, self._left = out, into, 0, b""
        self.problems: list[str] = []
        """What the console says: errors, and what the policy refused."""
        self.requests: list[str] = []
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    _session: str | None = None

    def open(self, address: str, width: int = 1300, height: int = 900, **media: str) -> None:
        """Load ``address`` in a window of this size."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send("Emulation.setDeviceMetricsOverride", sizes)
        features = [{"name": key.replace("_", "-"), "value": value} for key, value in media.items()]
        self._send("Emulation.setEmulatedMedia", {"media": "", "features": features})
        for place, there in (("about:blank", "completeabout:"), (address, "completefile:")):
            self._send("Page.navigate", {"url": place})  # one while another has not ended may never be answered
            while self.run("document.readyState + location.protocol") != there:
                time.sleep(0.05)  # not by a timer of the page, which has none without scripts
        time.sleep(0.15)

    def run(self, script: str) -> Any:
        """What ``script`` comes to; a promise is waited for."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self._send("Runtime.evaluate", asked)
        if "exceptionDetails" in found:
            raise AssertionError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def key(self, name: str) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self._send("Input.dispatchKeyEvent", {"type": kind, "key": name, "code": name})

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self._send("Input.insertText", {"text": text})

    def without_scripts(self) -> None:
        """Switch the page's scripts off, for pages that are opened later."""
        self._send("Emulation.setScriptExecutionDisabled", {"value": True})

    def picture(self, file: Path, whole: bool = False) -> None:
        """Write a screenshot."""
        found = self._send("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        file.write_bytes(base64.b64decode(found["data"]))

    def _send(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params or {}}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._into, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)
        raise AssertionError("the browser is gone")

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(told["exceptionDetails"]))
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" in self._left:
                first, _, self._left = self._left.partition(b"\0")
                yield json.loads(first)
            if not select.select([self._out], [], [], PATIENCE)[0]:
                raise AssertionError(f"the browser has not answered for {PATIENCE} seconds")
            more = os.read(self._out, 1 << 20)
            if not more:
                return
            self._left += more


def _pipe() -> list[int]:
    """The ends of a pipe, none of which is a descriptor that the browser is to get."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low]
    for end in low:
        os.close(end)
    return high


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a new browser, which ends with it."""
    assert BROWSER
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run"]
    options += ["--remote-debugging-pipe", "--disable-background-networking", "--disable-dev-shm-usage"]
    moved = (
        f"import os; os.dup2({theirs_in}, 3); os.dup2({theirs_out}, 4); os.execv({BROWSER!r}, {[BROWSER, *options]})"
    )
    command = [sys.executable, "-S", "-c", moved]  # the browser reads from 3 and writes to 4
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(ours_in, ours_out)
    finally:
        for end in (ours_out, ours_in):
            with suppress(OSError):
                os.close(end)
        process.terminate()
        process.wait(timeout=20)
