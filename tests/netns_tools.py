"""Hosts of a network of their own on this machine: namespaces, veth pairs, a bridge, tbf.

Each namespace lives as long as a process that waits for the end of its input, so that nothing is
left of it, nor of the devices in it, whatever becomes of the test.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NEW_NET = 0x40000000  # CLONE_NEWNET
PACKET = 1600  # bytes: a bucket that takes a whole frame and not much more
BUCKET_S = 0.001  # of the rate, where that is more: timers cannot wake for every frame
QUEUE_BYTES = 4_000_000  # nothing is dropped
SUBNET = "10.77.0"
START_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    """A host: its address, and the process that keeps its namespace."""

    name: str
    address: str
    pid: int

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and the processes that it starts, are on this host. No other thread is."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)
            os.close(there)


@dataclass(frozen=True)
class Net:
    """Hosts around a switch."""

    hosts: dict[str, Host]
    switch: Host

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def shape(self, name: str, rate: int | None) -> None:
        """Both directions of a host's cable pass so many bit/s from now on; None: all they can."""
        with self.hosts[name].inside():
            _shape("eth0", rate)
        with self.switch.inside():
            _shape(_port(self.hosts[name]), rate)


def bucket_of(rate: int) -> int:
    """Bytes that pass at once after a pause, at so many bit/s."""
    return max(PACKET, int(rate / 8 * BUCKET_S))


@contextmanager
def network(names: Sequence[str]) -> Iterator[Net]:
    """Hosts with these names, on one subnet, until the block ends."""
    with ExitStack() as stack:
        switch = Host("switch", "", stack.enter_context(_namespace()))
        hosts = {
            name: Host(name, f"{SUBNET}.{i}", stack.enter_context(_namespace()))
            for i, name in enumerate(names, start=1)
        }
        with switch.inside():
            _run("ip link add br0 type bridge")
            _run("ip link set br0 up")
            for host in hosts.values():
                port = _port(host)
                _run(f"ip link add {port} type veth peer name eth0 netns {host.pid}")
                _run(f"ip link set {port} master br0 up")
        for host in hosts.values():
            with host.inside():
                _run("ip link set lo up")
                _run(f"ip addr add {host.address}/24 dev eth0")
                _run("ip link set eth0 up")
        yield Net(hosts, switch)


def why_not() -> str:
    """Why there are no such networks here; empty where there are."""
    if os.geteuid() != 0:
        return "namespaces with shaped links need root"
    lacking = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} is not installed"
    try:
        with network(["probe"]) as net:
            net.shape("probe", 2_000_000)
    except (OSError, RuntimeError) as error:
        return f"this kernel has no namespaces with bridge and tbf: {error}"
    return ""


@contextmanager
def _namespace() -> Iterator[int]:
    """The process that keeps a new one."""
    keeper = subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert keeper.stdin is not None and keeper.stderr is not None
    try:
        ours, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{keeper.pid}/ns/net")
        end = time.monotonic() + START_S
        while theirs.readlink() == ours.readlink():
            if keeper.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"unshare --net: {keeper.stderr.read().decode()}")
            time.sleep(0.005)
        yield keeper.pid
    finally:
        keeper.stdin.close()
        keeper.wait(START_S)
        keeper.stderr.close()


def _port(host: Host) -> str:
    return f"port{host.address.rpartition('.')[2]}"


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, NEW_NET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _shape(device: str, rate: int | None) -> None:
    if rate is None:
        shaped = subprocess.run(
            ["tc", "qdisc", "show", "dev", device], capture_output=True, text=True, check=True
        )
        if "tbf" in shaped.stdout:
            _run(f"tc qdisc del dev {device} root")
        return
    how = f"tbf rate {rate}bit burst {bucket_of(rate)} limit {QUEUE_BYTES}"
    _run(f"tc qdisc replace dev {device} root {how}")


def _run(line: str) -> None:
    done = subprocess.run(
        line.split(), capture_output=True, text=True, timeout=START_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr.strip()}")
