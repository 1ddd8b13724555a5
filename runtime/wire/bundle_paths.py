"""Which paths a bundle's files may have, so that they mean one file, inside the bundle, anywhere.

What one file system takes as two names another takes as one (case, Unicode normalisation), and what
is a name here is a device there (Windows). A bundle travels, so the strictest of them decides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from runtime.wire.refused import invalid

PATH_BYTES = 4096
PART_BYTES = 255
DEPTH = 32
FORBIDDEN = frozenset('\\:*?"<>|')
# Control characters, invisible ones that turn the reading direction, half characters, line ends.
UNSEEN = frozenset(["Cc", "Cf", "Cs", "Zl", "Zp"])
DIGITS = "123456789\u00b9\u00b2\u00b3"
RESERVED = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [device + digit for device in ("com", "lpt") for digit in DIGITS]
)


def check_paths(paths: Iterable[str]) -> None:
    """Refuse relative POSIX paths that could leave the bundle or fall together on some system.

    Raises Refused, INVALID_ARGUMENT, naming the path and what is wrong with it.
    """
    spelled: dict[tuple[str, ...], tuple[str, ...]] = {}  # what folds alike must be spelled alike
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    for path in paths:
        wrong = _wrong(path)
        if wrong:
            raise invalid(f"the path {_shown(path)} {wrong}; rename the file, or convert again")
        parts = tuple(path.split("/"))
        folded = tuple(_folded(part) for part in parts)
        if folded in files:
            raise invalid(f"two files fall together at {_shown(path)} on some systems; rename one")
        files.add(folded)
        for depth in range(1, len(parts)):
            folder = folded[:depth]
            folders.add(folder)
            if spelled.setdefault(folder, parts[:depth]) != parts[:depth]:
                raise invalid(
                    f"the folder of {_shown(path)} is spelled in two ways; give it one name"
                )
    for both in files & folders:
        raise invalid(f"{_shown('/'.join(both))} is a file and a folder of other files")


def _wrong(path: str) -> str | None:
    """What is wrong with a path by itself."""
    if any(unicodedata.category(c) in UNSEEN for c in path):
        return "has a control character or one that cannot be seen"
    if len(path.encode()) > PATH_BYTES:
        return f"is longer than {PATH_BYTES} bytes"
    forbidden = sorted(FORBIDDEN.intersection(path))
    if forbidden:
        return f"has {' '.join(forbidden)}, which not every system allows"
    if path.startswith("/"):
        return "is absolute"
    parts = path.split("/")
    if len(parts) > DEPTH:
        return f"is more than {DEPTH} folders deep"
    return next(filter(None, map(_wrong_part, parts)), None)


def _wrong_part(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "has an empty part, '.' or '..'"
    if len(part.encode()) > PART_BYTES:
        return f"has a part of more than {PART_BYTES} bytes"
    if part[-1] in ". ":
        return "has a part that ends with a dot or a space, which Windows drops"
    if part.split(".", maxsplit=1)[0].rstrip().casefold() in RESERVED:
        return "has a name that is a device on Windows"
    return None


def _folded(part: str) -> str:
    """What a file system that ignores case and Unicode's forms makes of a name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold())


def _shown(path: str) -> str:
    """A path as it can stand in a message, whatever it holds."""
    return repr(path if len(path) <= 80 else path[:77] + "...").encode("ascii", "replace").decode()
