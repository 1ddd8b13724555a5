"""The speed of a device: the probe on an engine right here, and on a real agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent_tools import running_agent
from plan_tools import REF, write_model

from partition.cutting.geometry import Geometry, Keep, scaled
from partition.errors import PartitionError
from partition.making.measure import MEASURED, check_reach, macs_per_s, make_probe, measure
from partition.making.original import load_reference, save_original
from partition.placing.cluster_file import ClusterDevice
from runtime.bundle import read_bundle

pytestmark = pytest.mark.slow


def told(share: float, text: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a probe of two of three heads, for LiteRT and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("probe")
    write_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        source = load_reference(REF, str(folder / "small.safetensors"), None, 10)
    for name in ("original", "probe"):
        (folder / name).mkdir()
    save_original(source, folder / "original")
    settings = {"heads": 2, "targets": ["onnx", "tflite"], "jobs": 2}
    make_probe(settings, {"original": folder / "original"}, folder / "probe", told)
    return folder / "probe"


def measured(device: ClusterDevice, probe: Path, out: Path) -> float:
    out.mkdir()
    settings = {"device": device.model_dump(mode="json"), "folder": str(out)}
    measure(settings, {"probe": probe}, out, told)
    return macs_per_s(out)


def test_a_local_device_is_profiled_here(probe, tmp_path):
    speeds = {}
    for target in ("tflite", "onnx"):
        device = ClusterDevice(name="here", compute="measured", targets=[target])
        speeds[target] = measured(device, probe, tmp_path / target)
        found = json.loads((tmp_path / target / MEASURED).read_text())
        whole = Geometry(2, 3, 8, 24, 96, 5, 10)
        assert found["probe_macs"] == scaled(whole, Keep(2)).macs
        assert speeds[target] == pytest.approx(
            found["probe_macs"] / (found["probe_p50_ms"] / 1e3), rel=1e-9
        )
        assert found["threads"] == 1
    assert min(speeds.values()) > 1e6


def test_an_agent_profiles_it_and_keeps_nothing(probe, tmp_path):
    with running_agent(tmp_path / "store") as agent:
        device = ClusterDevice(
            name="far", address=agent.address, compute="measured", targets=["onnx", "tflite"]
        )
        check_reach(device, tmp_path)
        assert measured(device, probe, tmp_path / "out") > 1e6
        found = json.loads((tmp_path / "out" / MEASURED).read_text())
        assert found["engine"].startswith("onnxruntime")
        from runtime.client import AgentClient

        with AgentClient(agent.address) as client:
            assert client.describe().bundles == []
    gone = device.model_copy()
    with pytest.raises(PartitionError, match=r"device 'far' at .* cannot be measured"):
        check_reach(gone, tmp_path)


def test_a_target_that_the_probe_has_not_is_said(probe, tmp_path):
    device = ClusterDevice(name="here", compute="measured", targets=["executorch"])
    with pytest.raises(PartitionError, match="'here' could not be measured on executorch"):
        measured(device, probe, tmp_path / "out")


def test_the_probe_says_what_it_is(probe):
    manifest = read_bundle(probe / "probe").manifest
    assert manifest.model.ref == f"{REF}, 2 of 3 heads"
    assert any("not a trained model" in note for note in manifest.model.notes)
