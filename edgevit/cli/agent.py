"""edgevit agent: serve and profile on this device, for others to use over the network."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson, Threads, app
from edgevit.cli.server_options import Insecure, Metrics, TlsCert, TlsClientCa, TlsKey

if TYPE_CHECKING:
    from runtime.agent import Running

SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(i?B)?", re.IGNORECASE | re.ASCII)
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def bytes_of(text: str) -> int:
    """'4G' and '4GiB' as bytes, by powers of 1024."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"expected a size such as 500M or 4G, got '{text}'")
    return int(match[1]) << 10 * UNITS[match[2].upper()]


def default_store() -> Path:
    """Where programs of a user keep their data (XDG base directories)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    folder = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return folder / "edgevit" / "agent"


@app.command("agent")
def agent(
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDR", help="HOST:PORT or unix:/PATH; port 0: any.")
    ] = "127.0.0.1:8001",
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="Where bundles are kept. [~/.local/share/...]"),
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(
            "--load", metavar="BUNDLE", help="Serve it: a folder, or a name in the store."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="DIR", help="What this device senses: NAME.npy, for `input_ref`."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What this device calls itself; default its host.")
    ] = None,
    threads: Threads = 1,
    instances: Annotated[
        int, typer.Option("--instances", min=1, help="Engines of a model, side by side.")
    ] = 1,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Requests of a model that may wait.")
    ] = 64,
    isolate: Annotated[
        bool, typer.Option("--isolate/--no-isolate", help="Engines in processes of their own.")
    ] = True,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", envvar="EDGEVIT_TOKEN_FILE", help="Ask callers for the token in it."
        ),
    ] = None,
    insecure: Insecure = False,
    metrics: Metrics = None,
    quota: Annotated[
        int | None,
        typer.Option(
            "--quota", metavar="SIZE", parser=bytes_of, help="Most the store may take: 4G."
        ),
    ] = None,
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds for running calls at the end.")
    ] = 10.0,
    log_level: Annotated[
        str, typer.Option("--log-level", help="debug, info, warning or error; logs go to stderr.")
    ] = "info",
    as_json: AsJson = False,
) -> None:
    """Serve bundles over the Open Inference Protocol, and profile them for others."""
    # gRPC's own words on stderr would stand between the lines of JSON; read once, at its import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from runtime.agent import AgentConfig, run

    config = AgentConfig(
        listen=listen, store=store or default_store(), load=tuple(load or ()), name=name,
        threads=threads, instances=instances, queue=queue, isolate=isolate, tls_cert=tls_cert,
        tls_key=tls_key, tls_client_ca=tls_client_ca, token_file=token_file, insecure=insecure,
        metrics=metrics, quota=quota, inputs=inputs, grace_s=grace, log_level=log_level,
    )  # fmt: skip

    def tell(running: Running) -> None:
        """Once, when the agent takes calls."""
        from edgevit.cli.output import print_json

        with suppress(BrokenPipeError):  # who started it has gone, and may come back by its address
            if as_json:
                print_json(running.facts())
            else:
                typer.echo(f"listening on {running.address}")

    raise typer.Exit(run(config, tell))
