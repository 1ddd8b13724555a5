"""Parts and networks measured on ONNX Runtime, and what goes wrong with one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cli_tools import ROOT
from slim_cost_tools import QUICK, TIMES, TinyFamily, TinyShape, a_part
from torch import nn

from converters.errors import ConvertError
from converters.refs.base import seeded
from converters.slim.cost import measure
from converters.slim.cost.making import Makers, Order
from converters.slim.cost.predict import LatencyTable, call_part
from converters.slim.errors import SlimFailed
from converters.slim.families.base import Part
from runtime.bundle import read_bundle
from runtime.check import verify_bundle

SHAPE = TinyShape(32, 2)
LARGE, SMALL = Part("tiny", "block", 32, (96,)), Part("tiny", "block", 8, (16,))


def workers() -> list[psutil.Process]:
    """The processes of this one that make probes."""
    found = psutil.Process().children()
    return [c for c in found if any("cost.probe_worker" in word for word in c.cmdline())]


@pytest.fixture(scope="module")
def told() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def table(tmp_path_factory, told) -> Iterator[LatencyTable]:
    """A table for ONNX Runtime on this machine, one worker; SHAPE and two more are measured."""
    with LatencyTable.open(
        tmp_path_factory.mktemp("table") / "table.sqlite", TinyFamily(), "onnx", jobs=1,
        effort=QUICK, progress=lambda text, done: told.append((text, done)),
    ) as opened:  # fmt: skip
        opened.measure([*opened.missing(SHAPE, 32, 10), LARGE, SMALL])
        yield opened
    assert workers() == []


def test_every_part_has_a_latency_and_a_larger_one_takes_longer(table, told):
    entries = table.store.entries(table.setup)
    assert set(entries) == {*table.family.parts(SHAPE, 32, 10), LARGE, SMALL, call_part(32, 10)}
    for part, entry in entries.items():
        assert entry.ms > 0 and entry.samples >= QUICK.runs * (1 if part.kind == "call" else 2)
        assert entry.times == (0 if part.kind == "call" else TIMES)
    # 576 times the arithmetic: more than any disturbance.
    assert entries[LARGE].ms > 5 * entries[SMALL].ms
    assert table.missing(SHAPE, 32, 10) == []
    predicted = table.latency(SHAPE, 32, 10)
    by_hand = entries[call_part(32, 10)].ms + sum(
        count * entries[part].ms for part, count in table.family.parts(SHAPE, 32, 10).items()
    )
    assert predicted.ms == pytest.approx(by_hand) and predicted.error is None
    assert told[-1] == ("the latency table is whole", 1.0) and len(workers()) == 1
    assert any("make tiny block 16 at 8 px" in text for text, _ in told)


def test_what_is_there_is_not_measured_again(table, told):
    before = table.store.entries(table.setup)
    count = len(told)
    table.measure([LARGE, SMALL, call_part(32, 10)])
    assert table.store.entries(table.setup) == before
    assert [text for text, _ in told[count:]] == ["the latency table is whole"]


def test_whole_networks_in_the_order_given(table):
    with seeded():
        modules = [TinyShape(*wd).build(10, 32) for wd in ((16, 1), (192, 6), (16, 1))]
    small, large, again = table.measure_networks(modules, 32)
    assert large.ms > 5 * small.ms and large.ms > 5 * again.ms
    assert min(each.runs for each in (small, large, again)) >= QUICK.runs


def test_a_failing_part_is_named_and_leaves_the_others(table, monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 2)
    good = [a_part(24), a_part(40)]
    bad = [a_part(64, "backwards"), a_part(16, "unheard"), a_part(16, "deadly")]
    with pytest.raises(SlimFailed) as caught:
        table.measure([*bad, *good])
    said = str(caught.value)
    assert "3 of 5 parts could not be measured on onnxruntime; the others are kept" in said
    assert "tiny unheard 16 at 8 px: ZeroDivisionError: no part unheard" in said
    assert "tiny deadly 16 at 8 px: the onnx worker ended with code 3" in said
    assert "tiny backwards 64 at 8 px: the difference of its probes is not positive" in said
    assert "after 2 rounds" in said
    assert table.store.missing(table.setup, [*good, *bad]) == sorted(bad)


def test_probes_are_sound_bundles_that_say_what_they_are(tmp_path):
    with Makers("onnx", "fp32", tmp_path, jobs=1) as makers:
        order = Order(makers.place(), a_part(16))
        assert makers.make(TinyFamily(), [order])[order].times == TIMES
        for folder, blocks in zip(order.made, (1, 1 + TIMES), strict=True):
            manifest = read_bundle(folder).manifest
            assert manifest.model.trained is False and manifest.model.weights == "random"
            assert "to be measured by a latency table" in manifest.model.notes[0]
            assert manifest.reparam.params_before == 3 * 16 + 16 + blocks * 1072 + 17 * 8
            assert manifest.artifacts["onnx"].verification.status == "passed"
            ((target, verdict),) = verify_bundle(folder)
            assert (target, verdict.status) == ("onnx", "passed")
    assert len(workers()) <= 1  # the table's own


def test_a_module_that_gives_no_logits(table):
    with pytest.raises(ConvertError, match=r"must give logits of shape \(1, classes\)"):
        table.measure_networks([nn.Conv2d(3, 4, 1)], 32)


ORPHAN = """
import sys
from pathlib import Path
from converters.slim.cost.making import WORKER
from converters.workers import Worker
folder = Path(sys.argv[1])
worker = Worker.start("onnx", folder / "log", folder, 1, WORKER)
print(worker.process.pid, flush=True)
for answer in worker.run({"folder": str(folder / "order"), "precision": "fp32"}):
    print(answer, flush=True)
sys.stdin.read()
"""


def test_a_worker_ends_with_its_parent(tmp_path):
    """In the middle of its imports or of an order, whatever it does then."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


KILLED = """
import sys
from pathlib import Path
from slim_cost_tools import QUICK, TinyFamily, a_part
from converters.slim.cost import measure
from converters.slim.cost.predict import LatencyTable
measure.GROUP = 1
with LatencyTable.open(
    Path(sys.argv[1]), TinyFamily(), "onnx", jobs=1, effort=QUICK,
    progress=lambda text, done: print(text, flush=True),
) as table:
    table.measure([a_part(width) for width in (16, 32, 48)])
"""


@pytest.mark.slow
def test_a_killed_measurement_goes_on_where_it_was(tmp_path):
    path = tmp_path / "table.sqlite"
    words = [sys.executable, "-c", KILLED, str(path)]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("parts 2 to 2 of 3"):
            break
    process.kill()
    process.communicate()
    with LatencyTable.open(path, TinyFamily(), "onnx", jobs=1) as table:
        before = table.store.entries(table.setup)
        assert set(before) == {a_part(16)}
    again = subprocess.run(
        words, capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    assert "parts 2 to 2 of 2" in again.stdout and "tiny block 16" not in again.stdout
    with LatencyTable.open(path, TinyFamily(), "onnx", jobs=1) as table:
        after = table.store.entries(table.setup)
        assert after.keys() == {a_part(16), a_part(32), a_part(48)}
        assert after[a_part(16)] == before[a_part(16)]


@pytest.mark.slow
def test_a_fit_is_measured_once_and_kept(table, told):
    shape = TinyShape(32, 2)
    found = table.fit(shape, 32, 10, count=4, seed=0)
    assert found.networks == 4 and found.b > 0 and found.error >= 0
    networks = table.store.networks(table.setup, "tiny", 32, 10)
    assert {json.loads(text)["width"] for text in networks} == {16, 32}
    entries = table.store.entries(table.setup)
    for text, network in networks.items():
        parts = table.family.parts(TinyShape(**json.loads(text)), 32, 10)
        assert network.parts_ms == pytest.approx(sum(n * entries[p].ms for p, n in parts.items()))
    count = len(told)
    assert table.fit(shape, 32, 10, count=4, seed=0) == found
    assert not any("export" in text for text, _ in told[count:])
    assert table.latency(shape, 32, 10).error == found.error


def test_makers_that_stopped_start_no_more(tmp_path):
    makers = Makers("onnx", "fp32", tmp_path, jobs=1)
    order = Order(makers.place(), a_part())
    makers.stop()
    with pytest.raises(BaseException) as caught:
        makers.make(TinyFamily(), [order])
    assert type(caught.value).__name__ == "CancelledError"
    assert not Path(order.folder, "short").exists()
