"""Names of bundles in a store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from runtime.wire.refused import invalid

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """The name itself. Raises Refused, INVALID_ARGUMENT, where it cannot name a bundle."""
    if not NAME.fullmatch(name) or DIGEST.fullmatch(name):
        raise invalid(
            f"expected a bundle name of at most 128 letters, digits, '.', '_' and '-' that starts "
            f"with a letter or digit and is no digest, got {name[:140]!a}"
        )
    return name


def default_name(ref: str) -> str:
    """The name of a bundle that came without one: its model ref, other characters turned to '-'.

    >>> default_name("timm:vit_tiny")
    'timm-vit_tiny'
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", ref).lstrip("-._")[:128] or "model"
    return f"model-{name[:12]}" if DIGEST.fullmatch(name) else name


def check_digest(digest: str) -> str:
    """The digest itself. Raises Refused, INVALID_ARGUMENT, where it is none."""
    if not DIGEST.fullmatch(digest):
        raise invalid(f"expected a digest of 64 lower-case hex digits, got {digest[:80]!a}")
    return digest


def unknown(what: str, known: Iterable[str]) -> str:
    """The message for a bundle that is not there, with the nearest name."""
    names = sorted(known)
    near = get_close_matches(what, names, n=1)
    return (
        f"no bundle {what[:140]!a} in the store, which has: {', '.join(names[:8]) or 'none'}"
        + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        + (f". Did you mean '{near[0]}'?" if near else "")
    )
