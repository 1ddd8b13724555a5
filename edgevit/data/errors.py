"""The one error type of the data layer: what was expected, what came, what to do."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar


class DataError(Exception):
    """Data that cannot be read or do not fit; the command line prints it without a traceback."""

    exit_code: ClassVar[int] = 2


def did_you_mean(name: str, known: list[str]) -> str:
    """' Did you mean ...?' with the most similar known name, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def package_folder(what: str, module: str, package: str) -> Path:
    """Where an installed package lies, without importing it, for the files it ships.

    Raises DataError where it is not installed, with the line that installs it.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(
            f"{what} needs the files that the package '{package}' ships, and it is not installed. "
            "Install it with: pip install 'edgevit[train]'"
        )
    return Path(spec.origin).parent
