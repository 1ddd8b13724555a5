"""What an agent and a coordinator have alike: where they listen, who may call, how they end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address, parse_address
from runtime.serving.ending import Grace, ending
from runtime.serving.limits import Limits
from runtime.serving.logs import LEVELS, log_to_stderr
from runtime.serving.security import Security, check_reach, read_security
from runtime.serving.services.health import Health

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """The part of a server's configuration that faces its callers.

    message_bytes are bytes, grace_s seconds; metrics is an address, None for no metrics.
    """

    listen: str = "127.0.0.1:8001"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    metrics: str | None = None
    message_bytes: int = Limits.message_bytes
    concurrent_calls: int = Limits.concurrent_calls
    grace_s: float = 10.0
    log_level: str = "info"


def guarded(config: FrontConfig) -> tuple[Address, Address | None, Security]:
    """Where to listen, where for metrics, and the secrets; every one read and allowed.

    Raises RuntimeFault for an address, a file or a reach that is not right.
    """
    address = parse_address(config.listen)
    metrics = parse_address(config.metrics) if config.metrics is not None else None
    security = read_security(
        config.tls_cert, config.tls_key, config.tls_client_ca, config.token_file
    )
    for each, flag in ((address, "--listen"), (metrics, "--metrics")):
        if each is not None:
            check_reach(each, security, config.insecure, flag)
            if not each.loopback and security.token is not None and not security.tls:
                log.warning("the token travels unencrypted; give --tls-cert and --tls-key")
    return address, metrics, security


def run_until_a_signal(
    config: FrontConfig, serve: Callable[[asyncio.Event], Awaitable[None]]
) -> None:
    """Await serve(stop); SIGTERM, SIGINT or SIGHUP set `stop`. Logs go to stderr.

    A second signal ends the process at once, and so does the end of the grace period; therefore
    nothing else belongs into the process. Raises RuntimeFault, and what `serve` raises.
    """
    if config.log_level not in LEVELS:
        raise RuntimeFault(
            f"expected a --log-level of {', '.join(LEVELS)}, got '{config.log_level[:40]}'"
        )
    if not math.isfinite(config.grace_s) or config.grace_s < 0:
        raise RuntimeFault(f"expected a --grace of 0 seconds or more, got {config.grace_s}")

    async def until_a_signal() -> None:
        with ending(config.grace_s) as stop:
            await serve(stop)
        log.info("ended")

    log_to_stderr(config.log_level)
    asyncio.run(until_a_signal())


async def drain(server: Any, health: Health, grace: Grace) -> None:
    """No new calls; those that run may end within the grace period."""
    health.drain()
    await server.stop(grace.left())
