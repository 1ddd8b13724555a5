"""Consoles, formats and the JSON object that the verbs share."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.manifest import Verification


PIPE_WIDTH = 120
"""Columns where the output is no terminal and COLUMNS does not say."""


def stdout() -> Console:
    """Results for a person."""
    from rich.console import Console

    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPE_WIDTH if free else None)


def stderr() -> Console:
    """Progress and warnings."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """The one object of --json."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
    sys.stdout.flush()  # here, where a reader that has gone is no fault yet


def megabytes(size: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{size / 1e6:.1f} MB"


def plain(text: object) -> str:
    """Text from elsewhere (errors, names, paths), whose brackets are no markup."""
    from rich.markup import escape

    return escape(str(text))


def print_next(console: Console, *command: str) -> None:
    """The command that comes next, in one line that a shell takes as it is."""
    console.print(f"Next: {shlex.join(command)}", markup=False, soft_wrap=True)


def verdict(check: Verification) -> str:
    """One cell of markup that says how an artefact stands; only a passed check gets a tick."""
    if check.status == "passed":
        return f"[green]✓[/] error/spread {check.error_over_spread:.1e}"
    if check.status == "not_executed":
        return f"[yellow]–[/] {plain(check.reason)}"
    where = f"; first at {check.first_divergence}" if check.first_divergence else ""
    return f"[red]✗ {plain(f'{check.reason}{where}')}[/]"
