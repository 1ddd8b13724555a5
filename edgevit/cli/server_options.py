"""The options of who may call a server of ours, be it an agent or a coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="The server's certificate, PEM.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")]
TlsClientCa = Annotated[
    Path | None,
    typer.Option("--tls-client-ca", help="Ask callers for a certificate that this signed."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine and ask for nothing.")
]
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="ADDR", help="HOST:PORT for Prometheus; off by default."),
]
