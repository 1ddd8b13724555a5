"""The field `ssh` of a device in cluster.yaml: how its agent is started from here.

ssh: pi@raspberrypi.local
ssh:
  host: pi@raspberrypi.local       # or a name of ~/.ssh/config
  command: venv/bin/edgevit        # relative to the home there; default: edgevit of the PATH
  store: .local/share/edgevit/cluster
  port: 2222                       # default: as ~/.ssh/config says
  identity: keys/pi                # a private key, relative to cluster.yaml
  options: [--tls-cert, /etc/edgevit/agent.pem, --tls-key, /etc/edgevit/agent.key]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from runtime.manifest import Record

# Neither may begin with '-', which ssh would take for an option.
_HOST = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9._-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)"
)
# What the launch says itself, and where cluster.yaml says it.
OURS = {
    "--store": "the field 'store'",
    "--name": "the device's name",
    "--token-file": "the device's 'token_file', which is brought there",
    "--json": "the launch itself",
}


def _text(value: Any) -> Any:
    """A word that YAML took for a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class SshLogin(Record):
    """A login on a device, and what is to be run there. Paths but `identity` are the device's.

    `options` are further words for `edgevit agent`.
    """

    host: str = Field(max_length=255)
    command: str = Field(default="edgevit", min_length=1, max_length=1024)
    store: str = Field(default=".local/share/edgevit/cluster", min_length=1, max_length=1024)
    port: int | None = Field(default=None, ge=1, le=65535)
    identity: Path | None = None
    options: list[Annotated[str, BeforeValidator(_text)]] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _host_alone(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _a_host(cls, host: str) -> str:
        if not _HOST.fullmatch(host):
            raise ValueError(
                f"expected a host as USER@HOST, or a name of ~/.ssh/config, got {host[:80]!a}; a "
                "port has a field of its own"
            )
        return host

    @field_validator("command", "store")
    @classmethod
    def _a_path(cls, path: str) -> str:
        if path.startswith("-") or not path.isprintable():
            raise ValueError(f"expected a path on the device, got {path[:80]!a}")
        return path

    @field_validator("options")
    @classmethod
    def _words(cls, words: Sequence[str]) -> Sequence[str]:
        for word in words:
            if not word.isprintable():
                raise ValueError(f"expected words for `edgevit agent`, got {word[:80]!a}")
            flag = word.partition("=")[0]
            if flag in OURS:
                raise ValueError(f"'{flag}' is said by {OURS[flag]}; leave it out here")
        return words
