"""Consoles, formats and the JSON object that the verbs share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.manifest import Verification


def stdout() -> Console:
    """Results for a person."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Progress and warnings."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """The one object of --json."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def megabytes(size: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{size / 1e6:.1f} MB"


def verdict(check: Verification) -> str:
    """One cell that says how an artefact stands; only a passed check gets a tick."""
    if check.status == "passed":
        return f"[green]✓[/] error/spread {check.error_over_spread:.1e}"
    if check.status == "not_executed":
        return f"[yellow]–[/] {check.reason}"
    where = f"; first at {check.first_divergence}" if check.first_divergence else ""
    return f"[red]✗ {check.reason}{where}[/]"
