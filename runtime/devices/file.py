"""devices.yaml: the agents that a person uses, by name.

    - name: pi
      address: raspberrypi.local:8001
      tls: {ca: ca.pem, cert: laptop.pem, key: laptop.key, server_name: raspberrypi.local}
      token_file: pi.token

All but the name and the address may be left out; `tls: true` trusts the public authorities. Paths
are relative to the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from runtime.bundle import first_problem
from runtime.client.channel import Access, read_token
from runtime.errors import RuntimeFault
from runtime.manifest import Record
from runtime.yaml_file import read_yaml

NAME = "devices.yaml"
VARIABLE = "EDGEVIT_DEVICES"
LOCAL = "local"
"""This machine, without an agent; no device may be called so."""


def beside(folder: Path, file: Path | None) -> Path | None:
    """A path that is written in a file of `folder`; ~ is the home."""
    return None if file is None else folder / file.expanduser()


class TlsFiles(Record):
    """PEM files, and the name in the agent's certificate where it is not the host's."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def beside(self, folder: Path) -> TlsFiles:
        """The same with whole paths, where they were relative to `folder`."""
        files = {name: beside(folder, getattr(self, name)) for name in ("ca", "cert", "key")}
        return self.model_copy(update=files)


class DeviceEntry(Record):
    """One device of the file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    address: str
    tls: TlsFiles | bool = False
    token_file: Path | None = None

    @field_validator("name")
    @classmethod
    def _not_local(cls, name: str) -> str:
        if name == LOCAL:
            raise ValueError(f"'{LOCAL}' is this machine itself; choose another name")
        return name

    @field_validator("address")
    @classmethod
    def _an_address(cls, address: str) -> str:
        try:
            Access(address)
        except RuntimeFault as error:
            raise ValueError(str(error)) from error
        return address


_ENTRIES = TypeAdapter(list[DeviceEntry])


@dataclass(frozen=True)
class KnownDevice:
    """A device by the name its owner gave it, or by its address, and how to reach it.

    token_file is read when it is needed, so that one that is gone is this device's trouble only.
    """

    name: str
    how: Access
    token_file: Path | None = None

    def access(self) -> Access:
        """How to reach it. Raises RuntimeFault for a token file that cannot be read."""
        if self.token_file is None:
            return self.how
        return replace(self.how, token=read_token(self.token_file))


@dataclass(frozen=True)
class AddressOptions:
    """What a person says besides an address, where no file describes the device."""

    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None

    def words(self) -> list[str]:
        """The options that were given, as on the command line."""
        given = {
            "--token-file": self.token_file,
            "--tls-ca": self.tls_ca,
            "--tls-cert": self.tls_cert,
            "--tls-key": self.tls_key,
        }
        return [w for flag, path in given.items() if path is not None for w in (flag, str(path))]

    def device(self, address: str) -> KnownDevice:
        """The device at an address. Raises RuntimeFault where that cannot be one."""
        access = Access(address, tls_ca=self.tls_ca, tls_cert=self.tls_cert, tls_key=self.tls_key)
        return KnownDevice(address, access, self.token_file)


def devices_file(given: Path | None = None) -> Path | None:
    """The file in use: the one given, else of EDGEVIT_DEVICES, here, or in ~/.config/edgevit.

    None where there is none. Raises RuntimeFault where one is named that is not there.
    """
    named = os.environ.get(VARIABLE)
    for path, origin in ((given, "--devices"), (Path(named) if named else None, VARIABLE)):
        if path is not None:
            if not path.is_file():
                raise RuntimeFault(f"{origin} names {path}, which is no file")
            return path
    usual = (Path(NAME), Path.home() / ".config" / "edgevit" / NAME)
    return next((path for path in usual if path.is_file()), None)


def read_devices(path: Path) -> list[KnownDevice]:
    """The devices of a file. Raises RuntimeFault naming the file and the field that is wrong."""
    data = read_yaml(path)
    if not isinstance(data, list) or not data:
        raise RuntimeFault(f"{path}: expected a list of devices, each with a name and an address")
    try:
        entries = _ENTRIES.validate_python(data)
    except ValidationError as error:
        raise RuntimeFault(f"{path}: {_place(data, error)}{first_problem(error)}") from error
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise RuntimeFault(f"{path}: two devices are called '{name}'")
    return [_known(entry, path) for entry in entries]


def known_device(
    name: str, address: str, tls: TlsFiles | bool, token_file: Path | None, folder: Path
) -> KnownDevice:
    """A device as a file describes it; the paths there are relative to `folder`.

    Raises RuntimeFault for files that do not belong together.
    """
    files = tls.beside(folder) if isinstance(tls, TlsFiles) else TlsFiles()
    how = Access(
        address,
        tls=tls is not False,
        tls_ca=files.ca,
        tls_cert=files.cert,
        tls_key=files.key,
        server_name=files.server_name,
    )
    return KnownDevice(name, how, beside(folder, token_file))


def find_devices(
    words: Sequence[str], path: Path | None, options: AddressOptions
) -> list[KnownDevice]:
    """The devices that a person names, by name or HOST:PORT; no words are all of the file.

    Raises RuntimeFault for a name that is not known, for no words where there is no file, and for
    options where no word is an address, since a file says it all itself.
    """
    names = [word for word in words if ":" not in word]
    file = devices_file(path) if names or not words or path is not None else None
    known = {device.name: device for device in read_devices(file)} if file is not None else {}
    if not words and file is None:
        raise RuntimeFault(
            f"there is no {NAME} here or in ~/.config/edgevit; write one, name it with --devices, "
            "or give devices as HOST:PORT"
        )
    for name in names:
        if name not in known:
            raise RuntimeFault(_unknown(name, file, list(known)))
    if options.words() and len(names) == len(words):
        raise RuntimeFault(
            f"{', '.join(options.words()[::2])}: only for devices given as HOST:PORT; what is used "
            f"here stands in {file}, so write it there (token_file, tls)"
        )
    chosen = [known[word] if word in known else options.device(word) for word in words]
    return chosen or list(known.values())


def _unknown(name: str, file: Path | None, known: list[str]) -> str:
    if file is None:
        return f"no device is called '{name}': there is no {NAME}; an address is HOST:PORT"
    near = get_close_matches(name, known, n=1)
    return f"no device is called '{name}' in {file}, which has: {', '.join(known)}" + (
        f". Did you mean '{near[0]}'?" if near else ""
    )


def _known(entry: DeviceEntry, path: Path) -> KnownDevice:
    try:
        return known_device(entry.name, entry.address, entry.tls, entry.token_file, path.parent)
    except RuntimeFault as error:
        raise RuntimeFault(f"{path}: {entry.name}: field 'tls': {error}") from error


def _place(data: list[object], error: ValidationError) -> str:
    """The device that a schema error is about, where it has a name."""
    number = error.errors()[0]["loc"][0]
    entry = data[number] if isinstance(number, int) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"{name}: " if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) else ""
