"""The coordinator as a process of its own.

    python -m partition.coordinator_main PLAN [--listen ADDR] [--device NAME=HOST:PORT]...

Prints one JSON object with its address when it takes calls.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from partition.errors import PartitionError
from runtime.client.channel import Access
from runtime.errors import RuntimeFault


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 after a drain, 1 for a failed check, 2 for bad input."""
    # gRPC's own words on stderr would stand between the lines of JSON; read once, at its import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    given = _parser().parse_args(words)
    from partition.coordinator import Coordinating, CoordinatorConfig, run

    def tell(running: Coordinating) -> None:
        """Once, when it takes calls."""
        sys.stdout.write(json.dumps(running.facts()) + "\n")
        sys.stdout.flush()

    try:
        devices = dict(_device(each) for each in given.device)
        config = CoordinatorConfig(
            plan=given.plan, listen=given.listen, devices=devices, name=given.name,
            worker_timeout_s=given.worker_timeout, tls_cert=given.tls_cert, tls_key=given.tls_key,
            tls_client_ca=given.tls_client_ca, token_file=given.token_file,
            insecure=given.insecure, metrics=given.metrics, grace_s=given.grace,
            log_level=given.log_level,
        )  # fmt: skip
        return run(config, tell)
    except (RuntimeFault, PartitionError) as error:
        sys.stderr.write(f"error: {error}\n")
        return int(getattr(error, "exit_code", 2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m partition.coordinator_main")
    add = parser.add_argument
    add("plan", type=Path)
    add("--listen", default="127.0.0.1:8001", metavar="ADDR")
    where = "where the agent of a device listens; others are where cluster.yaml says"
    add("--device", action="append", default=[], metavar="NAME=HOST:PORT", help=where)
    add("--name", help="what clients call the model; default: as the one that was partitioned")
    add("--worker-timeout", type=float, default=5.0, metavar="SECONDS")
    add("--tls-cert", type=Path)
    add("--tls-key", type=Path)
    add("--tls-client-ca", type=Path)
    add("--token-file", type=Path)
    add("--insecure", action="store_true")
    add("--metrics", metavar="ADDR")
    add("--grace", type=float, default=10.0, metavar="SECONDS")
    add("--log-level", default="info")
    return parser


def _device(text: str) -> tuple[str, Access]:
    name, _, address = text.partition("=")
    if not name or not address:
        raise PartitionError(f"--device: expected NAME=HOST:PORT, got '{text[:80]}'")
    return name, Access(address)


if __name__ == "__main__":
    sys.exit(main())
