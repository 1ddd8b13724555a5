"""The options with which a verb reaches agents, and gRPC kept from talking on stderr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

DevicesFile = Annotated[
    Path | None,
    typer.Option(
        "--devices",
        help="devices.yaml; default $EDGEVIT_DEVICES, ./devices.yaml, ~/.config/edgevit/.",
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token, for addresses.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="PEM file of the agent's authority, for addresses."),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM file of our own certificate, for addresses.")
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM file of its key, for addresses.")
]


def quiet_grpc() -> None:
    """Keep gRPC's own lines (one for each failed handshake) off stderr; before it is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
