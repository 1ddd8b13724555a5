"""The latency table on the other engines, and on a device behind a real agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_tools import Agent, running_agent
from slim_cost_tools import QUICK, TIMES, TinyFamily, TinyShape

from converters.refs.base import seeded
from converters.slim.cost.making import Makers, Order
from converters.slim.cost.meters import DeviceMeter, together
from converters.slim.cost.predict import LatencyTable
from converters.slim.cost.setup import local_setup
from converters.slim.errors import SlimError
from converters.slim.families.base import Part
from runtime.bundle import check_bytes, read_bundle
from runtime.client import Access, AgentClient
from runtime.devices.file import KnownDevice
from runtime.errors import RuntimeFault

LARGE, SMALL = Part("tiny", "block", 16, (96,)), Part("tiny", "block", 8, (16,))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "executorch"])
def test_a_larger_part_takes_longer_on_every_engine(tmp_path, target):
    with LatencyTable.open(
        tmp_path / "table.sqlite", TinyFamily(), target, jobs=1, effort=QUICK
    ) as table:
        table.measure([LARGE, SMALL])
        entries = table.store.entries(table.setup)
        # 144 times the arithmetic.
        assert entries[LARGE].ms > 5 * entries[SMALL].ms > 0
        assert entries[SMALL].times == TIMES and table.setup.target == target


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Iterator[Agent]:
    with running_agent(tmp_path_factory.mktemp("agent") / "store") as running:
        yield running


@pytest.mark.slow
def test_parts_and_networks_on_a_device(agent, tmp_path):
    """Pushed, interleaved there, taken away again; its times are not this machine's."""
    told: list[str] = []
    device = KnownDevice("board", Access(agent.address))
    with LatencyTable.open(
        tmp_path / "table.sqlite", TinyFamily(), "onnx", device=device, jobs=1, effort=QUICK,
        progress=lambda text, _: told.append(text),
    ) as table, AgentClient(agent.address) as client:  # fmt: skip
        table.measure([LARGE, SMALL])  # of two sides, so of two bundles
        entries = table.store.entries(table.setup)
        assert entries[LARGE].ms > 5 * entries[SMALL].ms > 0
        with seeded():
            modules = [TinyShape(*wd).build(10, 32) for wd in ((16, 1), (192, 6))]
        small, large = table.measure_networks(modules, 32)
        assert large.ms > 5 * small.ms
        seen = client.describe()
        assert seen.bundles == [] and seen.store_used == 0
        assert table.setup.machine.agent_id == seen.device_id
        local = local_setup("onnx", None, 1)
        assert local.engine_version == table.setup.engine_version
        assert table.store.entries(local) == {}, "of the same computer, without its agent"
        with pytest.raises(SlimError, match=r"nearest differs in: machine.agent_id"):
            table.store.require(local)
        assert sum("push to board" in text for text in told) >= 3
        assert any("board: block 20 of 20" in text for text in told)


def test_a_device_that_is_not_there_and_an_engine_that_it_has_not(agent):
    with pytest.raises(RuntimeFault, match=r"nothing listens at 127.0.0.1:1"):
        DeviceMeter(KnownDevice("gone", Access("127.0.0.1:1")), "onnx")
    with pytest.raises(SlimError, match=r"coreml cannot run on the device '.*': Core ML runs on"):
        DeviceMeter(KnownDevice("board", Access(agent.address)), "coreml")


def test_several_networks_travel_as_one_sound_bundle(tmp_path):
    with Makers("onnx", "fp32", tmp_path / "made", jobs=1) as makers:
        order = Order(makers.place(), SMALL)
        makers.make(TinyFamily(), [order])
        bundles = {path.name: read_bundle(path) for path in order.made}
    names = together(bundles, "onnx", tmp_path / "flight")
    assert names == {"onnx-0": "short", "onnx-1": "long"}
    both = read_bundle(tmp_path / "flight")
    check_bytes(both)
    (note,) = [n for n in both.manifest.model.notes if "side by side" in n]
    assert note.endswith("those of tiny-block-8-16-short, the artefact onnx-0")
    for label, name in names.items():
        own = bundles[name].artifact("onnx")
        assert both.artifact(label).sha256 == own.sha256 and own.verification.status == "passed"
        assert (
            both.artifact_path(label).read_bytes()
            == Path(bundles[name].artifact_path("onnx")).read_bytes()
        )
