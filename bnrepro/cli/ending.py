"""Process exit: the right exit code, whatever happens to the output streams and whichever signal arrives."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from bnrepro.system import output, signals

GOES_ON = ("train", "compare", "sweep", "reproduce")
"""Commands that resume when they are run again, and store what they print."""
ONLY_SHOWS = ("--dry-run", "--help", "-h")
at_once = False
"""Whether to leave without the interpreter's own end, which a thread of gloo that still holds a tensor aborts."""


def run(command: Callable[[], None]) -> None:
    """Run ``command`` with protected output streams, treating SIGTERM and SIGHUP like Ctrl-C.

    Raises:
        SystemExit: with the command's exit code; 128 and the signal's number if one ended it; 1 if all went well but
            standard output could not be written, for another reason than that nobody reads it
            (`bnrepro.system.output`).
    """
    try:
        _run(command)
    except SystemExit as ended:
        if at_once and isinstance(ended.code, int):
            output.flush()
            os._exit(ended.code)
        raise


def _run(command: Callable[[], None]) -> NoReturn:
    output.protect()
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}  # figures are files, and look alike everywhere
    signals.received = None
    try:
        with signals.terminate_as_interrupt():
            command()
    except KeyboardInterrupt as stop:
        _stop(str(stop))
    except SystemExit as ended:
        if ended.code not in (None, 0):
            if signals.received:
                _stop()
            raise
    except Exception:
        if not signals.received:
            raise
        _stop()  # an import that is interrupted can end in any error
    stored = sys.argv[1:2] and sys.argv[1] in GOES_ON and not set(ONLY_SHOWS) & set(sys.argv)
    sys.exit(0 if output.finish(bool(stored)) else 1)


def _stop(message: str = "") -> NoReturn:
    signals.ignore()  # what is left is the interpreter's end
    goes_on = sys.argv[1:2] and sys.argv[1] in GOES_ON
    again = message or "Interrupted. Run the same command again to continue."  # a run inside `bench` says so too
    output.tell(f"\n{again if goes_on else 'Interrupted.'}")
    exec("")  # else one that broke off code in a string, as of a dataclass, would have Python end as SIGINT does
    sys.exit(128 + (signals.received or signal.SIGINT))
