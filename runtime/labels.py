"""labels.txt: the names of the classes, one a line, in the order of the logits."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import RuntimeFault


def read_labels(path: Path) -> list[str]:
    """The labels, without empty lines. Raises RuntimeFault where the file is no such text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise RuntimeFault(f"cannot read the labels: no such labels file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeFault(
            f"cannot read the labels {path}: {error}; expected UTF-8 text, one label a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]
