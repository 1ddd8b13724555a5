"""Numbers from hand-made times: differences, doubt, the additive sum and its correction."""

from __future__ import annotations

import numpy as np
import pytest
from slim_cost_tools import TinyFamily, TinyShape, an_entry

from converters.slim.cost.estimates import of_part, of_whole
from converters.slim.cost.fit import fit, mean_error
from converters.slim.cost.meters import LocalMeter, Timing
from converters.slim.cost.predict import LatencyTable, call_part, random_shapes
from converters.slim.cost.records import NetworkEntry
from converters.slim.cost.setup import local_setup
from converters.slim.cost.store import Store
from converters.slim.errors import SlimError, SlimFailed
from converters.slim.families.base import Part
from runtime.environment import describe

SHAPE = TinyShape(32, 3)


def a_timing(*blocks: float) -> Timing:
    return Timing(float(np.median(blocks)), np.array(blocks), 10 * len(blocks))


def test_a_difference_is_taken_block_by_block():
    """A machine twice as slow in one block: medians of each alone would be off."""
    short, long = a_timing(1.0, 1.0, 2.0, 1.0), a_timing(4.0, 4.0, 8.0, 4.0)
    found = of_part(short, long, times=3)
    assert found.ms == pytest.approx(1.0) and found.sound is False  # halves: 1.0 and 1.5
    assert found.halves_ms == (pytest.approx(1.0), pytest.approx(1.5))
    assert found.spread_ms == pytest.approx(0.5)
    drifting = of_part(a_timing(1, 2, 3, 4), a_timing(4, 5, 6, 7), times=3)
    assert drifting.sound and drifting.ms == pytest.approx(1.0) and drifting.spread_ms == 0


@pytest.mark.parametrize(
    ("long", "sound"),
    [
        ((2.0, 2.0, 2.0, 2.0), True),
        ((2.0, 2.0, 2.1, 2.1), True),  # ten percent of the part
        ((2.0, 2.0, 2.3, 2.3), False),
        ((1.03, 1.03, 1.01, 1.01), True),  # two percent of the probe, whatever the part
        ((1.03, 1.03, 0.99, 0.99), False),  # one half negative
        ((0.5, 0.5, 0.5, 0.5), False),
        ((1.0, 1.0, 1.0, 1.0), False),
        ((float("nan"),) * 4, False),
    ],
)
def test_which_difference_is_sound(long, sound):
    assert of_part(a_timing(1.0, 1.0, 1.0, 1.0), a_timing(*long), times=1).sound is sound


@pytest.mark.parametrize(("second", "sound"), [(0.0225, True), (0.0235, False)])
def test_a_few_microseconds_are_let_pass(second, sound):
    short, long = a_timing(*[0.010] * 4), a_timing(0.020, 0.020, second, second)
    assert of_part(short, long, times=1).sound is sound  # 3 microseconds


def test_a_whole_network_is_the_median_of_its_runs():
    assert of_whole(Timing(2.0, np.array([1.9, 2.0, 1.95, 2.0]), 40)).ms == 2.0
    assert of_whole(a_timing(2.0, 2.0, 2.01, 2.01)).sound
    assert not of_whole(a_timing(2.0, 2.0, 2.2, 2.2)).sound
    assert of_whole(Timing(2.0, np.array([2.0]), 1)).sound


def test_a_fit_of_exact_numbers_and_the_reference_by_numpy():
    parts = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    exact = fit(parts, 0.5 + 1.25 * parts)
    assert (exact.a_ms, exact.b) == (pytest.approx(0.5), pytest.approx(1.25))
    assert exact.error == pytest.approx(0, abs=1e-9) and exact.networks == 5
    assert exact.ms(10.0) == pytest.approx(13.0)
    measured = np.array([1.9, 2.9, 5.1, 11.0, 11.9])
    found = fit(parts, measured)
    b, a = np.polyfit(parts, measured, 1, w=1 / measured)
    assert (found.a_ms, found.b) == (pytest.approx(a), pytest.approx(b))
    errors = []
    for i in range(5):
        keep = np.arange(5) != i
        line = np.polyfit(parts[keep], measured[keep], 1, w=1 / measured[keep])
        errors.append(abs(np.polyval(line, parts[i]) / measured[i] - 1))
    assert found.error == pytest.approx(np.mean(errors)) and found.error > found.error_of_all > 0
    assert found.error_of_all == pytest.approx(mean_error(a + b * parts, measured))


def test_a_fit_that_makes_no_sense():
    with pytest.raises(SlimFailed, match="at least 4 measured networks, got 3"):
        fit([1, 2, 3], [1, 2, 3])
    with pytest.raises(SlimFailed, match="do not become slower"):
        fit([1, 2, 3, 4], [4, 3, 2, 1])


@pytest.fixture
def table(tmp_path):
    """An empty table for ONNX Runtime here; nothing is measured."""
    with LatencyTable(Store(tmp_path / "t.sqlite"), LocalMeter("onnx"), TinyFamily()) as opened:
        yield opened


BLOCK, STEM = Part("tiny", "block", 8, (32,)), Part("tiny", "stem", 32, (32,))
HEAD = Part("tiny", "head", 8, (32, 10))


def test_the_sum_over_parts_and_the_call(table):
    assert table.missing(SHAPE, 32, 10) == sorted([BLOCK, STEM, HEAD, call_part(32, 10)])
    times = {BLOCK: 2.0, STEM: 0.5, HEAD: 0.25, call_part(32, 10): 0.125}
    table.store.add(table.setup, [an_entry(part, ms) for part, ms in times.items()])
    found = table.latency(SHAPE, 32, 10)
    assert found.ms == 3 * 2.0 + 0.5 + 0.25 + 0.125 and found.error is None
    assert found.parts == {BLOCK: 6.0, STEM: 0.5, HEAD: 0.25} and found.parts_ms == 6.75
    assert table.missing(SHAPE, 32, 10) == []
    with pytest.raises(SlimError, match="no latency of tiny head 32 x 11 at 8 px, call call 11"):
        table.latency(SHAPE, 32, 11)
    networks = [
        NetworkEntry("tiny", str(n), 32, 10, 1.0 + 0.5 * n, float(n), 100, "") for n in range(1, 6)
    ]
    table.store.add_networks(table.setup, networks[:3])
    assert table.correction(32, 10) is None, "too few for a fit"
    table.store.add_networks(table.setup, networks)
    corrected = table.latency(SHAPE, 32, 10)
    assert corrected.ms == pytest.approx(1.0 + 0.5 * 6.75)
    assert corrected.error == pytest.approx(0, abs=1e-9) and corrected.parts == found.parts
    assert table.correction(64, 10) is None, "of other pictures"


def test_a_part_without_a_latency_is_an_error_that_names_it(table):
    with pytest.raises(SlimError, match=r"no latency of .*tiny stem 32 at 32 px.* on onnxruntime"):
        table.latency(SHAPE, 32, 10)
    other = local_setup("onnx", None, 2)
    table.store.add(other, [an_entry(BLOCK)])
    with pytest.raises(SlimError, match=r"It has times of:\n  onnxruntime .* 2 threads"):
        table.latency(SHAPE, 32, 10)


def test_random_shapes_are_seeded_different_and_no_more_than_there_are():
    some = random_shapes(TinyFamily(), SHAPE, 4, seed=1)
    assert some == random_shapes(TinyFamily(), SHAPE, 4, seed=1) and len(some) == 4
    assert some != random_shapes(TinyFamily(), SHAPE, 4, seed=2)
    assert len(random_shapes(TinyFamily(), SHAPE, 6, seed=0)) == 6
    with pytest.raises(SlimError, match=r"expected 7 different networks .* found 6"):
        random_shapes(TinyFamily(), SHAPE, 7, seed=0)


def test_setups_that_cannot_be_and_one_that_changes():
    with pytest.raises(SlimError, match="unknown target 'tensorrt'"):
        local_setup("tensorrt", None, 1)
    with pytest.raises(SlimError, match="at least one thread"):
        local_setup("onnx", None, 0)
    setup = local_setup("onnx", None, 1)
    assert setup.precision == "fp32" and setup.machine.hostname == describe().hostname
    setup.check(setup.engine_version, describe())
    with pytest.raises(SlimError, match=f"engine_version: {setup.engine_version}, 0.1"):
        setup.check("0.1", describe())
    faster = describe().model_copy(update={"governor": "performance-extra"})
    with pytest.raises(SlimError, match=r"machine.governor: .*, performance-extra"):
        setup.check(setup.engine_version, faster)
