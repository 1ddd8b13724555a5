"""Read a YAML file that a person wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from runtime.errors import RuntimeFault


def read_yaml(path: Path) -> Any:
    """What the file holds, plain values only. Raises RuntimeFault where it is gone or no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RuntimeFault(f"cannot read {path}: {why}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month
        raise RuntimeFault(f"{path} is not YAML: {' '.join(str(error).split())}") from error
