"""From an exception to one clear message and an exit code."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import suppress

import typer

USAGE = 2
INTERRUPTED = 130
OUR_FAULT = 70  # EX_SOFTWARE of sysexits.h


def exit_code_of(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print what went wrong to stderr (with --json also as an object on stdout); give the code.

    Errors of our packages carry `exit_code`: 2 for bad usage or input, 1 for a failed check.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if debug:
        traceback.print_exception(error)
    message, code = _describe(error)
    if message:
        print(f"error: {message}", file=sys.stderr)  # noqa: T201  # the one place that prints errors
        if as_json:
            with suppress(BrokenPipeError):  # the reader has gone
                print(json.dumps({"error": message, "exit_code": code}), flush=True)  # noqa: T201
    return code


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; nothing half-written was left behind", INTERRUPTED
    if hasattr(error, "format_message"):  # a usage error; typer keeps its classes to itself
        message = str(error.format_message()).rstrip()
        stop = "" if message.endswith((".", "?", "!")) else "."
        return f"{message}{stop} See: {_command(error)} --help", USAGE
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA_OF:
        package = error.name
        return (
            f"this verb needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'edgevit[{_EXTRA_OF[package]}]'"
        ), 2
    return (
        f"{type(error).__name__}: {error}\nThis is a fault of edgevit; run again with --debug and "
        "report what it prints"
    ), OUR_FAULT


_EXTRA_OF = {
    "torch": "convert",
    "coremltools": "convert",
    "litert_torch": "convert",
    "executorch": "convert",
    "onnx": "convert",
    "onnxscript": "convert",
    "sklearn": "convert",
    "PIL": "convert",
    "safetensors": "convert",
    "timm": "timm",
    "accelerate": "train",
}


def _command(error: BaseException) -> str:
    """The command that was called wrongly, as far as it was understood: 'edgevit convert'."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "edgevit"
