"""The command line: one file per verb, thin. Heavy packages are imported inside the verbs."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from edgevit.cli.app import app
from edgevit.cli.errors import exit_code_of


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 bad usage or bad input."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    try:
        code = app(arguments, prog_name="edgevit", standalone_mode=False)
    except BaseException as error:
        code = exit_code_of(error, as_json="--json" in arguments, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)
