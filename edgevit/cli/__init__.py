"""The command line: one file per verb, thin. Heavy packages are imported inside the verbs."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import sys
from io import TextIOWrapper
from types import FrameType

from edgevit.cli.app import app
from edgevit.cli.errors import INTERRUPTED, exit_code_of

# By number, since not every system knows SIGHUP (the terminal was closed).
ENDINGS = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 bad usage or bad input."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old terminal has no tick; say '?' to it
    try:
        for number in ENDINGS & signal.valid_signals():
            if signal.getsignal(number) is signal.SIG_DFL:  # else nohup has chosen already
                signal.signal(number, _terminate)
        for module in pkgutil.iter_modules(__path__, f"{__name__}."):
            importlib.import_module(module.name)
        code = app(arguments, prog_name="edgevit", standalone_mode=False)
        if code == INTERRUPTED:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
    except BaseException as error:
        code = exit_code_of(error, as_json="--json" in arguments, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End like Ctrl-C does: with everything tidied up."""
    sys.exit(128 + number)
