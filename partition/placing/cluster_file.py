"""cluster.yaml: the devices that are to serve one model together, and what each of them can give.

    devices:
      - name: pi-1
        address: 192.168.1.11:8001     # left out: a device on this machine
        memory: 512MiB                 # for the weights of sub-models, float32
        compute: measured              # or 2.5 GMAC/s
        ssh: pi@192.168.1.11           # that a launch starts its agent by; ssh_login.py has more
        energy: 40 J                   # for `inferences` pictures
        energy_per_mac: 15 pJ
        link: 2 Mbit/s
        targets: [tflite, onnx]        # the first is the one it serves
    settings:
      submodels: 3                     # default: one for each device
      inferences: 1000
      latency: 50 ms                   # that no device may be above
      total_size: 180MB                # of all sub-models; default: that of the whole model

All but a device's name and compute may be left out: what is not limited has no limit. Paths are
relative to the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from partition.errors import PartitionError
from partition.placing.quantities import (
    MACS_A_SECOND,
    BitRate,
    Bytes,
    Duration,
    Energy,
    amount,
)
from partition.placing.ssh_login import SshLogin
from runtime.bundle import first_problem
from runtime.client.channel import Access
from runtime.devices.file import TlsFiles, beside, known_device
from runtime.errors import RuntimeFault
from runtime.manifest import Record
from runtime.yaml_file import read_yaml

NAME = "cluster.yaml"
DEVICE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MEASURED = "measured"
TARGETS = ("tflite", "executorch", "onnx", "coreml")
DEFAULT_TARGETS = ("tflite",)


def _compute(value: Any) -> Any:
    example = f"2.5 GMAC/s, or {MEASURED}"
    return value if value == MEASURED else amount(value, MACS_A_SECOND, example)


class ClusterDevice(Record):
    """One device. `compute` is MAC/s, `energy` joules, `link` bit/s; None is no limit.

    address is None for an agent that is started on this machine. ssh says how a launch starts the
    one at the address; without it somebody else does. threads are the engine's.
    """

    name: str = Field(pattern=DEVICE_NAME, max_length=64)
    address: str | None = None
    memory: Bytes | None = None
    compute: Annotated[float | Literal["measured"], BeforeValidator(_compute)]
    energy: Energy | None = None
    energy_per_mac: Energy | None = None
    link: BitRate | None = None
    targets: list[str] = Field(default_factory=lambda: list(DEFAULT_TARGETS), min_length=1)
    threads: int = Field(default=1, ge=1)
    tls: TlsFiles | bool = False
    token_file: Path | None = None
    ssh: SshLogin | None = None

    @property
    def is_local(self) -> bool:
        """Whether its agent is started on this machine."""
        return self.address is None

    @property
    def target(self) -> str:
        """The artefact that it serves."""
        return self.targets[0]

    @field_validator("address")
    @classmethod
    def _an_address(cls, address: str | None) -> str | None:
        try:
            if address is not None:
                Access(address)
        except RuntimeFault as error:
            raise ValueError(str(error)) from error
        return address

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: list[str]) -> list[str]:
        for target in targets:
            if target not in TARGETS:
                raise ValueError(f"'{target}' is no target; expected some of {', '.join(TARGETS)}")
        if len(set(targets)) < len(targets):
            raise ValueError(f"a target is there twice: {', '.join(targets)}")
        return targets

    @model_validator(mode="after")
    def _whole(self) -> ClusterDevice:
        if (self.energy is None) != (self.energy_per_mac is None):
            given, absent = (
                ("energy", "energy_per_mac") if self.energy else ("energy_per_mac", "energy")
            )
            raise ValueError(f"'{given}' says nothing without '{absent}'; give both or neither")
        if self.is_local and (self.tls is not False or self.token_file is not None):
            raise ValueError("'tls' and 'token_file' are for a device with an address")
        if self.ssh is not None and (self.address is None or self.address.startswith("unix:")):
            raise ValueError(
                "'ssh' needs an 'address' as HOST:PORT: where the agent that it starts is reached"
            )
        return self

    def beside(self, folder: Path) -> ClusterDevice:
        """The same with whole paths, where they were relative to `folder`."""
        tls, ssh = self.tls, self.ssh
        if isinstance(tls, TlsFiles):
            tls = tls.beside(folder)
        if ssh is not None:
            ssh = ssh.model_copy(update={"identity": beside(folder, ssh.identity)})
        token = beside(folder, self.token_file)
        return self.model_copy(update={"tls": tls, "ssh": ssh, "token_file": token})


class Settings(Record):
    """What holds for the cluster as a whole. latency is seconds, total_size bytes."""

    submodels: int | None = Field(default=None, ge=1, le=256)
    inferences: int = Field(
        default=1000, ge=1, description="pictures that an energy is to last for"
    )
    latency: Duration | None = None
    total_size: Bytes | None = None
    replicas: int = Field(default=1, ge=0, description="most copies of one sub-model")


class ClusterFile(Record):
    """cluster.yaml as it is read."""

    devices: list[ClusterDevice] = Field(min_length=1)
    settings: Settings = Field(default_factory=Settings)

    @property
    def submodels(self) -> int:
        """How many sub-models there are to be, where no explicit split says so."""
        return self.settings.submodels or len(self.devices)

    @property
    def targets(self) -> list[str]:
        """Every target that some device takes, in the order of TARGETS."""
        wanted = {target for device in self.devices for target in device.targets}
        return [target for target in TARGETS if target in wanted]

    @field_validator("devices")
    @classmethod
    def _names_of_their_own(cls, devices: list[ClusterDevice]) -> list[ClusterDevice]:
        for what in ("name", "address"):
            seen: set[str] = set()
            for device in devices:
                value = getattr(device, what)
                if value is not None and value in seen:
                    raise ValueError(f"two devices have the {what} '{value}'")
                seen.add(value)
        return devices


def read_cluster(path: Path) -> ClusterFile:
    """Read cluster.yaml. Raises PartitionError naming the file, the device and the field."""
    try:
        data = read_yaml(path)
    except RuntimeFault as error:
        raise PartitionError(str(error)) from error
    if not isinstance(data, dict) or "devices" not in data:
        raise PartitionError(
            f"{path}: expected a mapping with the field 'devices', a list that has a name and a "
            "compute for each device"
        )
    try:
        return ClusterFile.model_validate(data)
    except ValidationError as error:
        raise PartitionError(f"{path}: {_problem(data, error)}") from error


def access_to(device: ClusterDevice, folder: Path) -> Access:
    """How to reach a device that has an address; its files are relative to `folder`.

    Raises RuntimeFault.
    """
    if device.address is None:
        raise RuntimeFault(f"{device.name} has no address in cluster.yaml")
    found = known_device(device.name, device.address, device.tls, device.token_file, folder)
    return found.access()


def _problem(data: dict[str, Any], error: ValidationError) -> str:
    """The first bad field, with the name of its device where it has one."""
    where: Sequence[int | str] = error.errors()[0]["loc"]
    devices = data["devices"]
    at = where[1] if len(where) > 1 and where[0] == "devices" else None
    if isinstance(at, int) and isinstance(devices, list) and isinstance(devices[at], dict):
        name = devices[at].get("name")
        if isinstance(name, str) and name:
            return f"device '{name[:64]}': {first_problem(error)}"
    return first_problem(error)
