"""The options with which the verbs of `edgevit cluster` find a coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from partition.cluster.running import Running
    from runtime.devices.file import AddressOptions

PlanFolder = Annotated[
    Path, typer.Argument(metavar="PLAN", help="The folder that `edgevit partition` wrote.")
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        "--coordinator", metavar="HOST:PORT", help="Where it listens; default: as launched here."
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the coordinator's token.")
]
TlsCa = Annotated[
    Path | None, typer.Option("--tls-ca", help="PEM file of the coordinator's authority.")
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM file of our own certificate.")
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM file of its key.")]
InputRef = Annotated[
    str | None,
    typer.Option(
        "--input-ref", metavar="NAME", help="The workers read this input themselves (--inputs)."
    ),
]


@dataclass(frozen=True)
class Where:
    """How a coordinator was named on the command line."""

    coordinator: str | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    token_file: Path | None

    def running(self, plan: Path) -> Running:
        """The cluster of a plan. Raises PartitionError or RuntimeFault."""
        from partition.cluster.running import find_running

        return find_running(plan, self.coordinator, self._options())

    def words(self) -> list[str]:
        """The same for the next command."""
        named = [] if self.coordinator is None else ["--coordinator", self.coordinator]
        return [*named, *self._options().words()]

    def _options(self) -> AddressOptions:
        from runtime.devices.file import AddressOptions

        return AddressOptions(self.tls_ca, self.tls_cert, self.tls_key, self.token_file)


def warn(text: str) -> None:
    """A line on stderr that nobody overlooks."""
    from edgevit.cli.output import stderr

    stderr().print(f"warning: {text}", style="bold yellow", markup=False, soft_wrap=True)
