"""Where a server listens: HOST:PORT, [IPv6]:PORT or unix:/PATH, and whether others can reach it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import RuntimeFault

HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>[0-9]{1,5})", re.A)
UNIX = "unix:"
UNIX_LIMIT = 107  # bytes of a path in sockaddr_un of Linux; macOS has 103
EXPECTED = "expected HOST:PORT, [IPv6]:PORT or unix:/PATH"


@dataclass(frozen=True)
class Address:
    """A numeric host and a port (0: any free one), or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def loopback(self) -> bool:
        """Whether only programs of this machine reach it."""
        if self.path is not None:
            return True
        ip = ipaddress.ip_address(self.host)
        mapped = getattr(ip, "ipv4_mapped", None)
        return bool((mapped or ip).is_loopback)

    @property
    def family(self) -> socket.AddressFamily:
        """Of a host and port: IPv4 or IPv6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def at(self, port: int) -> Address:
        """The same host with the port that the system gave."""
        return self if self.path is not None else Address(self.host, port)

    def __str__(self) -> str:
        """As gRPC and a person write it."""
        if self.path is not None:
            return f"{UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address that `text` names; a host name is looked up once, IPv4 first.

    Raises RuntimeFault where it is none or its host is unknown.
    """
    if text.startswith(UNIX):
        return _unix(text)
    match = HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise RuntimeFault(f"{EXPECTED}, with a port up to 65535, got '{text[:80]}'")
    host = match["v6"] or match["host"]
    try:
        found = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE, family=_family(match)
        )
    except (OSError, UnicodeError) as error:
        raise RuntimeFault(
            f"cannot listen on '{text}': the host is unknown here ({error})"
        ) from error
    first = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return Address(str(first[4][0]), int(match["port"]))


def claim_unix(path: Path) -> None:
    """Make way for a unix socket: drop the one of a server that has gone.

    Raises RuntimeFault where another server answers there, or something else has the name. gRPC
    would take both away without a word.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise RuntimeFault(f"cannot listen on {UNIX}{path}: no such folder") from None
        return
    except OSError as error:
        raise RuntimeFault(f"cannot listen on {UNIX}{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise RuntimeFault(f"cannot listen on {UNIX}{path}: the file there is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:  # a server too busy to answer is one too
            pass
    raise RuntimeFault(f"cannot listen on {UNIX}{path}: another server listens there")


def _unix(text: str) -> Address:
    path = text.removeprefix(UNIX)
    if path.startswith("//"):  # the other way that gRPC writes it: unix:///path
        path = path[2:]
    if not path.startswith("/") or "\0" in path:
        raise RuntimeFault(f"{EXPECTED}, got '{text[:80]}'; the path starts with /")
    if len(os.fsencode(path)) > UNIX_LIMIT:
        raise RuntimeFault(f"the path of a unix socket has at most {UNIX_LIMIT} bytes: '{path}'")
    return Address(path=Path(path))


def _family(match: re.Match[str]) -> socket.AddressFamily:
    return socket.AF_INET6 if match["v6"] else socket.AF_UNSPEC
