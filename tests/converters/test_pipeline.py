"""A whole conversion from Python: the bundle's files agree, and failures stay where they are."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest
import torch
import yaml
from cli_tools import CLASSES, FILES, SIZE, TARGETS, TINY, temporary_folders, write_model

from converters.bundle_writer import staging
from converters.errors import ConvertError
from converters.pipeline import ConvertOptions, convert, failed_targets
from converters.progress import Event, Stage
from converters.source import load_source
from runtime.bundle import check_bytes, read_bundle, read_reference
from runtime.compare import verify_outputs
from runtime.digest import sha256_of, size_of
from runtime.manifest import Manifest


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The working directory of a person who keeps tinynet.py there."""
    monkeypatch.chdir(write_model(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    return tmp_path


def test_manifest_is_what_the_schema_says_and_nothing_else(conversion):
    text = (conversion.bundle / "manifest.json").read_text()
    manifest = Manifest.model_validate_json(text)
    assert manifest.model_dump_json(indent=2) + "\n" == text
    assert manifest.model_dump(mode="json") == conversion.answer.json()["manifest"]


def test_manifest_describes_the_files(conversion):
    bundle = read_bundle(conversion.bundle)
    manifest = bundle.manifest
    check_bytes(bundle)
    assert list(manifest.artifacts) == TARGETS and manifest.failures == {}
    for target, artifact in manifest.artifacts.items():
        file = conversion.bundle / FILES[target]
        assert (artifact.target, artifact.file) == (target, file.name)
        assert artifact.sha256 == sha256_of(file)
        assert artifact.size_bytes == size_of(file) > 1000
        assert artifact.precision == ("fp16" if target == "coreml" else "fp32")
        assert artifact.tool_versions and artifact.output.shape == [1, CLASSES]
        assert artifact.timings_s.keys() == {"import", "lower", "verify"}
    layouts = {t: manifest.artifacts[t].input.layout for t in TARGETS}
    assert list(layouts.values()) == ["NHWC", "NHWC", "NCHW", "NCHW"]
    assert manifest.artifacts["tflite"].delegation.delegate == "XNNPACK"
    assert manifest.artifacts["onnx"].delegation is None
    assert manifest.model.ref == TINY and manifest.model.trained
    assert manifest.timings_s.keys() == {"load", "export", "reparam", "bundle", "total"}
    assert manifest.reparam.rules["batch norm into the linear map before it"] == 1


def test_labels_are_copied(conversion):
    names = (conversion.bundle / "labels.txt").read_text().splitlines()
    assert names == [f"class {i}" for i in range(CLASSES)]
    assert read_bundle(conversion.bundle).manifest.labels == "labels.txt"


def test_reference_is_the_models_own_answer(conversion, home):
    """The module itself, without export, folding or a converter between."""
    inputs, outputs = read_reference(read_bundle(conversion.bundle))
    assert inputs.shape == (9, SIZE, SIZE, 3) and inputs.dtype == np.float32
    assert outputs.shape == (9, CLASSES) and outputs.dtype == np.float32
    assert inputs.min() >= 0 and inputs.max() <= 1
    module = load_source(TINY).module
    mean, std = (
        torch.tensor(module.pretrained_cfg["mean"]),
        torch.tensor(module.pretrained_cfg["std"]),
    )
    with torch.no_grad():
        expected = module(((torch.from_numpy(inputs) - mean) / std).permute(0, 3, 1, 2))
    verdict = verify_outputs(expected.numpy(), outputs, "fp32", "torch")
    assert verdict.status == "passed" and verdict.spread > 0.1


def test_config_replays_the_conversion(conversion, home):
    config = yaml.safe_load((conversion.bundle / "config.yaml").read_text())
    manifest = read_bundle(conversion.bundle).manifest
    source = load_source(
        config["model"],
        weights=config["weights"],
        size=config["size"][0],
        classes=config["classes"],
        input_dtype=config["input"],
    )
    assert source.weights_sha256 == config["weights_sha256"] == manifest.model.weights_sha256
    assert source.preprocessing == manifest.preprocessing
    assert config["targets"] == TARGETS and config["precision"] is None
    assert config["precisions"] == {t: a.precision for t, a in manifest.artifacts.items()}
    assert config["labels"] == "labels.txt"


def test_a_killed_worker_costs_its_target_only(home):
    """SIGKILL, as the system's memory killer does it, in the middle of lowering."""
    events: list[Event] = []

    def kill_core_ml(event: Event) -> None:
        events.append(event)
        if (event.stage, event.target, event.seconds) == (Stage.LOWER, "coreml", None):
            for child in psutil.Process().children():
                if event.error is None and "coreml" in child.cmdline():
                    child.kill()

    manifest = convert(TINY, "out", ConvertOptions(targets="coreml,onnx"), kill_core_ml)
    assert manifest.artifacts.keys() == {"onnx"} and manifest.failures.keys() == {"coreml"}
    failure = manifest.failures["coreml"]
    assert (failure.stage, failure.log) == ("lower", "logs/coreml.log")
    assert failure.error.startswith("the coreml worker was ended by SIGKILL (as a system does")
    assert (home / "out" / failure.log).is_file()
    assert not (home / "out" / "model.mlpackage").exists()
    assert failed_targets(manifest) == {"coreml": f"lower: {failure.error}"}
    assert manifest.artifacts["onnx"].verification.status == "passed"
    assert read_bundle(home / "out").manifest == manifest
    assert Event(Stage.LOWER, "coreml", error=failure.error) in events
    assert [e.stage for e in events if e.target is None and e.seconds] == [
        Stage.LOAD, Stage.EXPORT, Stage.REPARAM, Stage.BUNDLE,
    ]  # fmt: skip


def test_a_listener_that_raises_leaves_nothing(home):
    """Whatever is raised in a thread comes out, once the workers and the folders are gone."""

    seen = []

    def fail(event: Event) -> None:
        seen.append(event.target)
        if event.target == "coreml":
            raise ZeroDivisionError("in the listener")

    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError, match="in the listener"):
        convert(TINY, "new/deep/out", ConvertOptions(targets="onnx,coreml", jobs=1), fail)
    assert seen[-1] == "coreml", "the target that waited for its turn never began"
    assert not (home / "new").exists()
    assert [c for c in psutil.Process().children() if "converters.worker" in c.cmdline()] == []
    assert torch.get_num_threads() == threads


def test_the_same_goal_twice_at_once(home):
    """The second to end finds the name taken and gives way, although it was free at the start."""
    refused = pytest.raises(ConvertError, match="out exists already; give another folder")
    with refused, staging(home / "out", force=False) as slow:
        (slow / "manifest.json").write_text("slow")
        with staging(home / "out", force=False) as quick:
            (quick / "manifest.json").write_text("quick")
    assert (home / "out" / "manifest.json").read_text() == "quick"
    assert temporary_folders(home) == []


def test_targets_and_precisions_are_checked_before_anything_is_imported(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "converters.source", None)
    with pytest.raises(ConvertError, match="unknown target"):
        convert(TINY, "out", ConvertOptions(targets=["onnx", "tensorrt"]))
    with pytest.raises(ConvertError, match="unknown target ''"):
        convert(TINY, "out", ConvertOptions(targets=[]))
    with pytest.raises(ConvertError, match="has no precision 'fp16'"):
        convert(TINY, "out", ConvertOptions(targets="executorch", precision="fp16"))
    assert list(home.iterdir()) == [home / "tinynet.py"]
