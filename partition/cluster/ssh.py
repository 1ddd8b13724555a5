"""Agents on other machines, started and ended over the `ssh` of the PATH.

ssh asks nobody anything (BatchMode): keys and host keys are arranged before. What runs there is a
script of ours (ssh_script), the token in it; on the command line there is only the host.
"""

from __future__ import annotations

import ipaddress
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from pydantic import Field, ValidationError

from partition.cluster.ssh_run import Said, run_script
from partition.cluster.ssh_script import ending, starting
from partition.errors import PartitionError
from partition.placing.cluster_file import DEVICE_NAME, ClusterDevice, access_to
from partition.placing.ssh_login import SshLogin
from runtime.bundle import first_problem
from runtime.client import Access, AgentClient, AgentFault
from runtime.errors import RuntimeFault
from runtime.manifest import Record
from runtime.serving.addresses import Address

START_S = 120.0  # for a slow board that loads its models again
END_S = 15.0  # the agent's own 10 s for running calls, and some for itself
ANSWER_S = 15.0  # between an agent that is ready there and its answer here
ASK_S = 5.0
MORE_S = 30.0  # for ssh to connect, and for a board to start small programs

Recorded = Callable[[dict[str, Any]], None]
Tell = Callable[[str], None]
"""Told what is done now, in a few words."""


class Remote(Record):
    """What ends an agent again: the login, the device's name, and the mark of who started it."""

    login: SshLogin
    name: str = Field(pattern=DEVICE_NAME)
    mark: str = Field(pattern=r"^[0-9a-f]{32}$")


@dataclass(frozen=True)
class RemoteAgent:
    """An agent that answers. started: it was not there, and now is."""

    access: Access
    device_id: str
    started: bool


class SshHost:
    """A device of cluster.yaml that has an address and the field `ssh`.

    `folder` is the cluster file's. Raises RuntimeFault where the device's files are not right.
    """

    def __init__(self, device: ClusterDevice, folder: Path) -> None:
        whole = device.beside(folder)
        if whole.ssh is None:
            raise RuntimeFault(f"{device.name} has no field 'ssh' in cluster.yaml")
        self._name, self._login = device.name, whole.ssh
        self.access = access_to(whole, folder)

    def ensure(self, remote: dict[str, Any] | None, recorded: Recorded, tell: Tell) -> RemoteAgent:
        """The agent at the device's address, whoever started it; else a new one over ssh.

        remote is what an earlier call recorded. `recorded` is called before anything is started,
        with what `end` takes. Raises PartitionError, and AgentFault where one answers that will not
        talk to us.
        """
        tell("asking its agent")
        device_id = self._answering()
        if device_id is not None:
            return RemoteAgent(self.access, device_id, started=False)
        mark = _remote(remote).mark if remote else uuid.uuid4().hex
        known = Remote(login=self._login, name=self._name, mark=mark)
        recorded(known.model_dump(mode="json"))
        tell(f"starting its agent on {self._login.host}")
        script = starting(
            self._login.store, self._name, mark, START_S, self._login.command,
            self.access.token or "", self._words(),
        )  # fmt: skip
        said = run_script(self._login, script, START_S + MORE_S)
        if said.word not in ("started", "running"):
            raise PartitionError(self._why(said))
        device_id = self._reached(said)
        return RemoteAgent(self.access, device_id, started=said.word == "started")

    @staticmethod
    def end(remote: dict[str, Any]) -> bool:
        """End the agent that was started with what was recorded; whether it was there to end.

        Another's is left alone, and so is one that was started there since. Raises PartitionError
        where the device cannot be reached, or the agent cannot be ended.
        """
        known = _remote(remote)
        script = ending(known.login.store, known.name, known.mark, END_S)
        said = run_script(known.login, script, END_S + MORE_S)
        if said.word in ("ended", "gone"):
            return said.word == "ended"
        raise PartitionError(
            f"the agent on {known.login.host} (process {said.rest or 'unknown'}) is there "
            f"{END_S:g} s after SIGTERM and after SIGKILL too{said.errors()}"
        )

    def _answering(self) -> str | None:
        """The device_id of the agent at the address; None where nobody answers."""
        try:
            with AgentClient(self.access) as agent:
                return agent.describe(timeout_s=ASK_S).device_id
        except AgentFault as fault:
            if fault.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            raise

    def _words(self) -> list[str]:
        """What the agent is told; the device's own options come last and so have the last say."""
        words = ["--listen", listen_for(self.access.address), "--name", self._name, "--json"]
        return [*words, *self._login.options]

    def _reached(self, said: Said) -> str:
        """Wait until the agent that is ready there answers here. Raises PartitionError."""
        until = time.monotonic() + ANSWER_S
        address, host = self.access.address, self._login.host
        while True:
            try:
                with AgentClient(self.access) as agent:
                    found = agent.describe(timeout_s=ASK_S)
                break
            except AgentFault as fault:
                if fault.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                    raise PartitionError(
                        f"its agent runs on {host} (process {said.rest}, listening on "
                        f"{said.facts.get('address')}) and cannot be used from here: {fault}. "
                        f"`edgevit cluster stop` ends it"
                    ) from fault
                time.sleep(0.2)
        if found.device_id != said.facts.get("device_id"):
            raise PartitionError(
                f"another agent ('{found.name}') answers at {address} than the one that runs on "
                f"{host}: in cluster.yaml, 'address' and 'ssh' are not of the same device"
            )
        return found.device_id

    def _why(self, said: Said) -> str:
        """What to say of a start that failed."""
        host, program = self._login.host, self._login.command
        folder = f"{self._login.store}/{self._name}"
        if said.word == "nocommand":
            return (
                f"there is no program '{program}' on {host} (its PATH: {said.rest}). Install it "
                "there (pip install 'edgevit[litert]'), or say where it is: "
                f"ssh: {{host: {host}, command: venv/bin/edgevit}}"
            )
        if said.word == "folder":
            return f"cannot write {folder} on {host}{said.errors()}"
        if said.word == "slow":
            return (
                f"the agent on {host} is not ready after {START_S:g} s{said.last_words()}; its log "
                f"there: {folder}/agent.log"
            )
        if said.word == "died":
            why = said.last_words() or said.full() or said.errors()
            hint = ""
            if "nothing says who may call" in why:
                hint = (
                    ". In cluster.yaml: a 'token_file' for the device, or for a network that you "
                    f"trust, ssh: {{host: {host}, options: [--insecure]}}"
                )
            return (
                f"the agent on {host} ended at its start{why or ' and said nothing'}{hint}; its "
                f"log there: {folder}/agent.log"
            )
        return f"the script on {host} ended without an answer{said.errors()}"


def listen_for(address: str) -> str:
    """Where an agent listens that is reached at an address: its port, for every caller.

    For loopback only (a tunnel, or this machine) where the address is that. The host is not looked
    up: on many systems a device's own name means loopback there.
    """
    host, _, port = address.rpartition(":")
    bare = host.strip("[]")
    try:
        if bare == "localhost" or ipaddress.ip_address(bare).is_loopback:
            return str(Address("127.0.0.1" if bare == "localhost" else bare, int(port)))
    except ValueError:  # a name
        return f"0.0.0.0:{port}"
    return f"[::]:{port}" if ":" in bare else f"0.0.0.0:{port}"


def _remote(value: dict[str, Any]) -> Remote:
    try:
        return Remote.model_validate(value)
    except ValidationError as error:
        raise PartitionError(
            f"what is known of an agent over ssh is not right: {first_problem(error)}"
        ) from error
