"""The whole way on digits: what is refused early, what is kept of a cut, and what the result says.

The latency table is filled by hand, so that nothing hangs on this machine's speed; whole networks
are converted and measured in earnest.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from slim_ground import DOTTED
from slim_tiny import NAME, SIDE, WHOLE, TinyFamily, part_ms

from converters.jobs.progress import Event, State
from converters.refs.network_file import read_network, write_network
from converters.slim import baselines, pipeline
from converters.slim.cost.predict import call_part
from converters.slim.cost.records import Entry
from converters.slim.cost.setup import local_setup
from converters.slim.cost.store import Store
from converters.slim.errors import SlimError
from converters.slim.families.registry import FAMILIES
from converters.slim.options import SlimOptions
from converters.slim.pipeline import TABLE, slim
from converters.slim.record import SlimRecord
from converters.source import load_source
from edgevit.data import at_size, open_dataset
from edgevit.models import registry
from edgevit.training import Preprocess
from edgevit.training.loader import evaluation_batches
from runtime.inputs import as_it_is

SLOW = 1000.0  # made-up latencies, this much slower than an engine could be
WHOLE_MS = SLOW * sum(
    count * part_ms(part) for part, count in TinyFamily().parts(WHOLE, SIDE, 10).items()
)
OPTIONS = SlimOptions(
    target_ms=0.5 * WHOLE_MS, on="onnx", supernet_epochs=1, epochs=1, networks=0, tolerance=1.0
)


@pytest.fixture(autouse=True)
def tiny_family(monkeypatch):
    monkeypatch.setitem(FAMILIES, NAME, DOTTED)
    config = registry.ModelConfig(NAME, NAME, SIDE, 1.0, 0.01, 0.001)
    monkeypatch.setitem(registry._MODELS, NAME, (config, lambda **_: None))  # a family of the zoo
    monkeypatch.setattr(pipeline, "MEASURED_POINTS", 2)
    monkeypatch.setattr(baselines, "CURVE", 1)


@pytest.fixture
def model(tmp_path) -> str:
    path = tmp_path / "network.yaml"
    about = as_it_is(SIDE, SIDE).model_copy(update={"mean": [0.5] * 3, "std": [0.25] * 3})
    write_network(path, WHOLE, input_size=SIDE, classes=10, preprocessing=about, made_from="a test")
    return str(path)


def fill(path: Path) -> None:
    """A table that knows every part of the tiny family."""
    family, parts = TinyFamily(), {call_part(SIDE, 10)}
    for first in range(8, WHOLE.widths[0] + 1, 8):
        for second in range(8, WHOLE.widths[1] + 1, 8):
            parts |= set(family.parts(replace(WHOLE, widths=(first, second)), SIDE, 10))
    entries = [
        Entry(part, 1e-3 if part.kind == "call" else SLOW * part_ms(part), 0.0, 1, 1, "2026")
        for part in parts
    ]
    with Store(path) as store:
        store.add(local_setup("onnx", None, 1), entries)


def begun(out: Path) -> Path:
    """OUT.partial as a run that was cut off early leaves it, with the table in it."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir()
    (partial / "slimming.json").write_text("{}")
    fill(partial / TABLE)
    return partial


class Broken(Exception):
    """The page cannot be made."""


def broken(record: SlimRecord) -> str:
    raise Broken


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target_ms": 0.02 * WHOLE_MS}, r"below the smallest network .* which takes \d"),
        ({"target_ms": 2.0 * WHOLE_MS}, "there is nothing to slim: the whole network takes"),
        ({"supernet": False}, "--no-supernet slims a trained network: give its checkpoint"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(model, tmp_path, changed, said):
    out = tmp_path / "OUT"
    partial = begun(out)
    with pytest.raises(SlimError, match=said) as found:
        slim(model, "digits", out, replace(OPTIONS, **changed))
    assert found.value.exit_code == 2 and not out.exists()
    assert not (partial / "states").exists()


def test_a_model_of_no_family_is_refused(tmp_path):
    with pytest.raises(SlimError, match=r"models of the family 'vit' cannot be slimmed; expected"):
        slim("vit_tiny", "digits", tmp_path / "OUT", replace(OPTIONS, size=32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_way_cut_off_at_its_end_and_gone_on(model, tmp_path):
    out = tmp_path / "OUT"
    partial = begun(out)
    with pytest.raises(Broken):
        slim(model, "digits", out, OPTIONS, page=broken)
    assert partial.is_dir() and not out.exists()
    with pytest.raises(SlimError, match="begun otherwise: target ms was"):
        slim(model, "digits", out, replace(OPTIONS, target_ms=0.6 * WHOLE_MS))
    events: list[Event] = []
    result = slim(model, "digits", out, OPTIONS, events.append, page=lambda record: "<html>")
    states = {event.step: event.state for event in events}
    steps = ("pictures", "supernet", "importance", "finish-search")
    assert {states[step] for step in steps} == {State.REUSED}
    assert not partial.exists()
    check_result(out, result.record)


def check_result(out: Path, record: SlimRecord) -> None:
    assert sorted(path.name for path in out.iterdir()) == [
        "labels.txt", "latency-table.sqlite", "model.safetensors", "network.yaml", "report.html",
        "slim.json", "supernet.safetensors", "trajectory.csv",
    ]  # fmt: skip
    assert SlimRecord.model_validate_json((out / "slim.json").read_text()) == record
    end = record.end
    assert 0.96 * OPTIONS.target_ms <= end.predicted_ms <= OPTIONS.target_ms
    assert end.measured_ms == record.landings[-1].measured_ms > 0
    network = read_network(out / "network.yaml")
    assert json.loads(json.dumps(network.shape)) == end.shape
    with (out / "trajectory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == [each.way for each in record.networks]
    assert {"search", "uniform", "random"} == {row["way"] for row in rows}
    drawn = [each for each in record.networks if each.way == "random"]
    assert 0 < len(drawn) <= record.evaluated
    assert all(0.9 * end.predicted_ms <= each.predicted_ms <= OPTIONS.target_ms for each in drawn)
    copied = sqlite3.connect(out / "latency-table.sqlite")
    assert copied.execute("SELECT count(*) FROM entries").fetchone()[0] == record.table.parts > 0
    copied.close()
    source = load_source(str(out / "network.yaml"), weights=out / "model.safetensors")
    assert sum(v.numel() for v in load_file(out / "model.safetensors").values()) >= end.params
    assert (out / "labels.txt").read_text().split() == record.labels
    pre = Preprocess(SIDE, SIDE, (0.5,) * 3, (0.25,) * 3)
    test = at_size(open_dataset("digits", "test"), SIDE, SIDE)
    right = 0
    with torch.no_grad():
        for x, labels in evaluation_batches(test, pre, 64, 0, 1):
            right += int((source.module(x).argmax(1).numpy() == np.array(labels)).sum())
    assert record.result.test_top1 == pytest.approx(100 * right / len(test))
    assert record.pictures["test"] == len(test)


def test_a_trained_network_is_the_source_itself(model, tmp_path, monkeypatch):
    """No training before the search: what subnets inherit from are the given weights."""
    from converters.slim.origin import origin_of
    from edgevit.training.files import write_tensors

    source = load_source(model, settle=False)
    with torch.no_grad():
        source.module.head.bias += 1
    path = tmp_path / "trained.safetensors"
    write_tensors(path, source.module.state_dict())
    options = replace(OPTIONS, weights=str(path), supernet=False)
    origin = origin_of(model, options, 10)
    assert origin.trained is not None and not origin.about.supernet
    assert torch.equal(origin.trained.head.bias, source.module.head.bias)
    assert any("may flatter" in note for note in origin.notes)
    untrained = origin_of(model, OPTIONS, 10)
    assert untrained.about.supernet and untrained.trained is None
    with_supernet = origin_of(model, replace(options, supernet=True), 10)  # the same tensors here
    assert with_supernet.about.supernet
    assert torch.equal(with_supernet.trained.head.bias, source.module.head.bias)
    assert with_supernet.weights_sha256 != untrained.weights_sha256
    write_tensors(path, {"head.bias": source.module.head.bias})
    with pytest.raises(SlimError, match="has not the weights of this model's supernet"):
        origin_of(model, replace(options, supernet=True), 10)
    write_tensors(path, source.module.state_dict())
    monkeypatch.setattr(TinyFamily, "supernet", lambda self, shape, *more: shape.build(10, SIDE))
    alone = origin_of(model, OPTIONS, 10)
    assert not alone.about.supernet and alone.trained is None
    assert any("has no supernet" in note for note in alone.notes)
    assert origin_of(model, replace(options, supernet=True), 10).trained is not None
