"""A plan served over links of a given speed: on hosts of a network, or behind proxies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from agent_tools import running_agent
from coordinator_tools import DEVICES, Coordinator, TinyPlan, coordinating, pictures
from netns_tools import Net
from shaping_proxy import Pipe, Proxy, proxied

HUB, CALLER, SCENE = "desk", "caller", "scene"
PATIENCE = ("--worker-timeout", "60", "--log-level", "warning")  # no worker is to be left out


@contextmanager
def on_hosts(net: Net, plan: TinyPlan, home: Path, count: int, side: int) -> Iterator[Coordinator]:
    """Agents on the first `count` devices of a network, and a coordinator on its HUB."""
    inputs = _inputs(home, side)
    with ExitStack() as stack:
        addresses = {}
        for index, name in enumerate(DEVICES[:count]):
            with net[name].inside():
                agent = running_agent(
                    home / f"store-{index}", "--insecure", "--no-isolate", "--inputs", inputs,
                    load=[plan.bundle(index)], listen=f"{net[name].address}:8001",
                )  # fmt: skip
                addresses[name] = stack.enter_context(agent).address
        with net[HUB].inside():
            listen = f"{net[HUB].address}:8000"
            served = coordinating(plan, addresses, "--insecure", *PATIENCE, listen=listen)
            coordinator = stack.enter_context(served)
        yield coordinator


@dataclass(frozen=True)
class Cables:
    """What stands between a coordinator and its agents: the coordinator's own, and one each."""

    hub: tuple[Pipe, Pipe]
    devices: tuple[Pipe, ...]
    proxies: tuple[Proxy, ...]

    @property
    def addresses(self) -> list[str]:
        """Where the agents are to be reached, through their cables."""
        return [proxy.address for proxy in self.proxies]

    def shape(self, rate: float | None, hub_rate: float | None) -> None:
        """bit/s from now on, of the devices' cables and of the coordinator's."""
        for pipe in self.devices:
            pipe.rate = rate
        for pipe in self.hub:
            pipe.rate = hub_rate

    def passed(self) -> tuple[int, int]:
        """Bytes that went to all agents so far, and bytes that came back."""
        sent, returned = (sum(p.bytes[way] for p in self.proxies) for way in ("up", "down"))
        return sent, returned


@contextmanager
def behind_proxies(
    plan: TinyPlan, home: Path, count: int, side: int
) -> Iterator[tuple[Coordinator, Cables]]:
    """Agents and a coordinator on this machine, a proxy before each agent."""
    inputs = _inputs(home, side)
    hub, devices, proxies = (Pipe(), Pipe()), [], []
    with ExitStack() as stack:
        addresses = {}
        for index, name in enumerate(DEVICES[:count]):
            agent = running_agent(
                home / f"store-{index}", "--no-isolate", "--inputs", inputs,
                load=[plan.bundle(index)],
            )  # fmt: skip
            forth, back = Pipe(), Pipe()
            devices += [forth, back]
            address = stack.enter_context(agent).address
            proxy = proxied(address, (hub[0], forth), (back, hub[1]))
            proxies.append(stack.enter_context(proxy))
            addresses[name] = proxies[-1].address
        coordinator = stack.enter_context(coordinating(plan, addresses, *PATIENCE))
        yield coordinator, Cables(hub, tuple(devices), tuple(proxies))


def _inputs(home: Path, side: int) -> Path:
    """A folder with one picture, SCENE, as the devices sense it."""
    folder = home / "inputs"
    folder.mkdir()
    x = np.ascontiguousarray(pictures(1, side=side).transpose(0, 3, 1, 2))
    np.save(folder / f"{SCENE}.npy", x)
    return folder
