"""The page a benchmark leaves in docs/results: what was run, where, with which versions, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from converters.lower.base import TARGETS, versions_of
from runtime.environment import describe

PACKAGES = sorted(
    {package for target in TARGETS.values() for package in target.packages} | {"timm"}
)


def publish(out: str, title: str, command: str, about: str, body: list[str]) -> None:
    """Print the page and, where `out` names a file, write it. `body` is Markdown, line by line."""
    here = describe()
    versions = ", ".join(
        f"{name} {version}" for name, version in versions_of(tuple(PACKAGES)).items()
    )
    lines = [
        f"# {title}",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}. {here.cpu_model}, {here.cores_logical} cores "
        f"({' '.join(here.cpu_flags)}), {here.system}, Python {here.python}; {versions}.",
        "",
        about,
        "",
        *body,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if out:
        Path(out).write_text(text, encoding="utf-8")
