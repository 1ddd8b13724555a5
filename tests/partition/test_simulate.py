"""The simulated cluster against closed forms, and what must hold of any of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from partition.errors import PartitionError
from partition.serving import fanout
from partition.simulate import (
    STAGES,
    Caller,
    Device,
    Fleet,
    Hub,
    Link,
    Load,
    Overheads,
    Submodel,
    alike,
    simulate,
)
from partition.simulation import cluster

ROOT = Path(__file__).resolve().parents[2]
PICTURE, ANSWER, RATE = 150_000, 500, 2e6
COSTS = Overheads(
    caller_s=1e-3, accept_s=8e-4, decode_s=2e-4, send_s=3e-4, receive_s=4e-4, fuse_s=5e-4,
    call_s=6e-4, transport_s=7e-4, request_bytes=200, answer_bytes=450, name_bytes=150,
)  # fmt: skip


def fleet(count: int = 3, compute_s: float = 0.05, rate: float | None = RATE, **more: object):
    link = Link(rate)
    return alike(
        count, compute_s, picture_bytes=PICTURE, answer_bytes=ANSWER, link=link,
        overheads=COSTS, **more,
    )  # fmt: skip


PICTURE_S = 8 * (PICTURE + COSTS.request_bytes) / RATE
ANSWER_S = 8 * (ANSWER + COSTS.answer_bytes) / RATE


def only(prediction) -> float:
    """The latency of requests that are all alike."""
    latencies = prediction.latencies_s
    assert np.ptp(latencies) < 1e-6
    return float(latencies[0])


def test_one_device_is_the_sum_of_its_parts():
    parts = [getattr(COSTS, name) for name in COSTS.__dataclass_fields__ if name.endswith("_s")]
    exact = sum(parts) + 0.05 + PICTURE_S + ANSWER_S
    assert only(simulate(fleet(1))) == pytest.approx(exact, rel=1e-6)


def test_a_switch_makes_pictures_come_at_once_and_one_uplink_makes_them_wait():
    """At a switch only what the coordinator does one after another is there several times."""
    count = 4
    alone = only(simulate(fleet(1)))
    switch = only(simulate(fleet(count, shared_uplink=False)))
    assert switch == pytest.approx(alone + (count - 1) * COSTS.receive_s, rel=1e-6)
    shared = only(simulate(fleet(count)))
    pictures_s = count * PICTURE_S
    assert pictures_s + 0.05 < shared < pictures_s + 0.05 + 0.02


def test_a_caller_elsewhere_sends_the_picture_once_more():
    """Over its own link and the coordinator's, of which the narrower one counts."""
    near = only(simulate(fleet(1, shared_uplink=False)))
    for rate, delay_s in ((RATE, 0.0), (RATE / 4, 0.03)):
        served = fleet(1, shared_uplink=False)
        caller = replace(served.caller, link=Link(rate, delay_s))
        sizes = caller.request_bytes + caller.answer_bytes
        far = only(simulate(replace(served, caller=caller)))
        assert far == pytest.approx(near + 8 * sizes / rate + 2 * delay_s, rel=1e-6)
    slow_hub = replace(served.hub, link=Link(RATE / 8))
    slower = only(simulate(replace(served, hub=slow_hub, caller=caller)))
    assert slower > near + 8 * 8 * sizes / RATE


def test_a_token_bucket_lets_its_bytes_pass_and_headers_count():
    """What does not fit waits for the rate; after a pause the bucket is full again."""
    link = Link(RATE, burst_bytes=1600, header_bytes=66, segment_bytes=1448)
    pipe, size = link.charged(PICTURE + COSTS.request_bytes), ANSWER + COSTS.answer_bytes
    assert pipe == PICTURE + COSTS.request_bytes + 66 * 104
    served = replace(fleet(1, shared_uplink=False), devices=(
        Device("device-0", {"sub0": 0.05}, link, COSTS.call_s, COSTS.transport_s),))  # fmt: skip
    assert size + 66 < 1600
    exact = only(simulate(fleet(1, rate=None))) + 8 * (pipe - 1600) / RATE
    assert only(simulate(served)) == pytest.approx(exact, rel=1e-6)


def test_local_input_sends_names_and_not_pictures():
    exact = only(simulate(fleet(1))) - PICTURE_S + 8 * COSTS.name_bytes / RATE
    assert only(simulate(fleet(1, local_input=True))) == pytest.approx(exact, rel=1e-6)


def test_the_slowest_worker_decides_and_is_named():
    seconds = (0.02, 0.3, 0.1)
    devices = tuple(Device(f"d{i}", {f"s{i}": s}) for i, s in enumerate(seconds))
    submodels = tuple(Submodel(f"s{i}", (f"d{i}",), 1, 1) for i in range(3))
    found = simulate(Fleet(devices, submodels, Hub(), Caller(1, 1)))
    assert only(found) == pytest.approx(0.3)
    assert found.stragglers == {"s1@d1": 200}


def test_sub_models_on_one_device_take_turns_on_its_cores():
    submodels = tuple(Submodel(f"s{i}", ("d",), 1, 1) for i in range(4))
    for cores, turns in ((1, 4), (2, 2), (3, 2), (4, 1)):
        device = Device("d", dict.fromkeys(("s0", "s1", "s2", "s3"), 0.1), cores=cores)
        found = simulate(Fleet((device,), submodels, Hub(), Caller(1, 1)))
        assert only(found) == pytest.approx(0.1 * turns), cores


def test_what_shares_cores_takes_turns_too():
    many = fleet(4, rate=None)
    assert only(simulate(many)) < 0.06
    assert only(simulate(replace(many, shared_cores=1))) > 4 * 0.05


def test_the_median_of_the_slowest_of_n_measured_times():
    """Each of n workers draws from 100 samples: the largest has the distribution F ** n."""
    samples = [i / 1000 for i in range(1, 101)]
    count = 5
    devices = tuple(Device(f"d{i}", {f"s{i}": samples}) for i in range(count))
    submodels = tuple(Submodel(f"s{i}", (f"d{i}",), 1, 1) for i in range(count))
    found = simulate(Fleet(devices, submodels, Hub(), Caller(1, 1)), requests=4000)
    for share in (0.1, 0.5, 0.9):
        exact = 0.1 * share ** (1 / count)
        assert found.percentile(share) == pytest.approx(exact, rel=0.03)


def test_a_queue_with_random_arrivals_is_the_one_of_the_textbook():
    """M/D/1: the mean wait is rho / (2 mu (1 - rho))."""
    served = Fleet((Device("d", {"s": 0.1}),), (Submodel("s", ("d",), 1, 1),), Hub(), Caller(1, 1))
    found = simulate(served, Load(rate=7.0), requests=20_000, seed=1)
    assert float(found.latencies_s.mean()) == pytest.approx(0.1 + 0.7 * 0.1 / 0.6, rel=0.08)
    assert found.throughput == pytest.approx(7.0, rel=0.05)


def test_throughput_is_that_of_the_narrowest_part():
    link_bound = simulate(fleet(3), Load(8), requests=60)
    assert link_bound.throughput == pytest.approx(1 / (3 * PICTURE_S), rel=0.02)
    compute_bound = simulate(fleet(3, 0.4, local_input=True), Load(8), requests=60)
    per_call = 0.4 + COSTS.call_s + COSTS.transport_s
    assert compute_bound.throughput == pytest.approx(1 / per_call, rel=0.02)


def test_too_many_wait_too_long_and_are_refused():
    served = fleet(1, local_input=True)
    served = replace(served, hub=replace(served.hub, under_way=1, waiting=2))
    found = simulate(served, Load(rate=1000.0), requests=300)
    assert found.refused > 100
    assert found.latencies_s.size == 300 - found.refused
    assert float(found.latencies_s.max()) < 4 * 0.07


def test_a_lost_device_is_not_waited_for_and_a_replica_takes_its_place():
    devices = (Device("a", {"s0": 0.1, "s1": 0.2}), Device("b", {"s1": 0.5, "s2": 0.3}))
    places = {"s0": ("a",), "s1": ("a", "b"), "s2": ("b",)}
    submodels = tuple(Submodel(name, where, 1, 1) for name, where in places.items())
    served = Fleet(devices, submodels, Hub(patience_s=10), Caller(1, 1))
    without_a = simulate(served, lost=["a"])
    assert without_a.missing == ("s0",)
    assert without_a.degraded == 200
    assert only(without_a) == pytest.approx(0.8)
    without_b = simulate(served, lost=["b"])
    assert (without_b.missing, only(without_b)) == (("s2",), pytest.approx(0.3))
    with pytest.raises(PartitionError, match="no answer at all"):
        simulate(served, lost=["a", "b"])


def test_a_slow_worker_is_hedged_as_the_coordinator_does_it():
    """The replica is asked FIRST_HEDGE_S later, and its answer is the one that counts."""
    devices = (Device("slow", {"s": 2.0}, cores=99), Device("quick", {"s": 0.05}))
    served = Fleet(devices, (Submodel("s", ("slow", "quick"), 1, 1),), Hub(), Caller(1, 1))
    found = simulate(served, requests=10)
    assert only(found) == pytest.approx(fanout.FIRST_HEDGE_S + 0.05)
    assert set(found.stragglers) == {"s@quick"}
    assert found.stages_s["wait"].min() == pytest.approx(fanout.FIRST_HEDGE_S)
    names = ("HEDGE_AFTER", "FIRST_HEDGE_S", "LEAST_HEDGE_S")
    assert [getattr(cluster, n) for n in names] == [getattr(fanout, n) for n in names]


def test_a_worker_is_waited_for_no_longer_than_patience():
    devices = (Device("hung", {"s0": 50.0}, cores=99), Device("well", {"s1": 0.1}))
    submodels = (Submodel("s0", ("hung",), 1, 1), Submodel("s1", ("well",), 1, 1))
    found = simulate(Fleet(devices, submodels, Hub(patience_s=2.0), Caller(1, 1)), requests=20)
    assert only(found) == pytest.approx(2.0)
    assert (found.degraded, found.missing) == (20, ())
    nobody = Fleet(devices[:1], submodels[:1], Hub(patience_s=2.0), Caller(1, 1))
    assert simulate(nobody, requests=5).refused == 5


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6), in_flight=st.integers(1, 5), rate=st.sampled_from([1e6, 2e7, None]),
    shared=st.booleans(), local=st.booleans(), cores=st.sampled_from([None, 1, 2]),
    delay_s=st.sampled_from([0.0, 0.01]), burst=st.sampled_from([0, 1600]),
    compute=st.lists(st.floats(1e-4, 0.2), min_size=1, max_size=4),
)  # fmt: skip
@example(  # the first request alone goes within the burst
    count=1, in_flight=1, rate=1e6, shared=False, local=True, cores=None, delay_s=0.0, burst=1600,
    compute=[1e-4],
)  # fmt: skip
def test_stages_add_up_and_nothing_is_lost(
    count, in_flight, rate, shared, local, cores, delay_s, burst, compute
):
    link = Link(rate, delay_s, burst, header_bytes=66)
    served = alike(
        count, compute, picture_bytes=PICTURE, answer_bytes=ANSWER, link=link,
        shared_uplink=shared, local_input=local, overheads=COSTS,
    )  # fmt: skip
    found = simulate(replace(served, shared_cores=cores), Load(in_flight), requests=20, seed=3)
    assert found.latencies_s.size == 20
    assert found.refused == found.degraded == 0
    assert set(found.stages_s) == set(STAGES)
    total = sum(found.stages_s.values())
    assert np.allclose(total, found.latencies_s, rtol=1e-9)
    assert min(stage.min() for stage in found.stages_s.values()) > -1e-9
    least = min(compute) + COSTS.fuse_s + (delay_s * 2 if rate else 0)
    assert float(found.latencies_s.min()) >= least
    if len(compute) == in_flight == 1:
        assert found.throughput == pytest.approx(1 / float(found.latencies_s.mean()), rel=1e-6)


def test_more_of_anything_is_never_quicker():
    for kw in ({}, {"shared_uplink": False}, {"local_input": True}):
        grown = [only(simulate(fleet(n, **kw), requests=5)) for n in (1, 2, 4, 8)]
        assert all(a <= b for a, b in itertools.pairwise(grown)), kw
        speeds = [only(simulate(fleet(3, rate=r, **kw), requests=5)) for r in (1e6, 2e6, 1e8, None)]
        assert all(a > b for a, b in itertools.pairwise(speeds)), kw
        work = [only(simulate(fleet(3, s, **kw), requests=5)) for s in (0.0, 0.1, 0.2)]
        assert all(a < b for a, b in itertools.pairwise(work)), kw


def test_it_needs_neither_torch_nor_grpc():
    code = "import sys, partition.simulate; print(*{'torch', 'grpc', 'google'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_the_same_seed_is_the_same_prediction():
    served = fleet(2, 0.05)
    a, b, c = (simulate(served, Load(rate=1.0), seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(a.latencies_s, b.latencies_s)
    assert not np.array_equal(a.latencies_s, c.latencies_s)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Link(0), "a link's rate: expected bit/s"),
        (lambda: Link(float("nan")), "a link's rate"),
        (lambda: Link(delay_s=-1), "delay_s"),
        (lambda: Device("d", {"s": []}), "no samples"),
        (lambda: Device("d", {"s": [0.1, -1]}), "compute_s of s: expected seconds, got -1"),
        (lambda: Device("d", {"s": 1}, cores=0), "d: cores"),
        (lambda: Submodel("s", (), 1, 1), "a device it is placed on"),
        (lambda: Submodel("s", ("d",), 0, 1), "request_bytes"),
        (lambda: Hub(fuse_s=float("inf")), "fuse_s"),
        (lambda: Caller(1, -5), "the caller's answer_bytes"),
        (lambda: Load(0), "at least 1 request in flight"),
        (lambda: Load(rate=0), "a rate above 0"),
        (lambda: fleet(0), "at least 1 device"),
        (lambda: simulate(fleet(1), requests=0), "at least 1 request"),
        (lambda: simulate(fleet(2), lost=["pi"]), "no device 'pi'; there are: device-0, device-1"),
        (lambda: replace(fleet(1), devices=fleet(1).devices * 2), "different names"),
        (lambda: replace(fleet(2), devices=fleet(1).devices), "'device-1', which is not a device"),
        (
            lambda: replace(fleet(1), devices=(Device("device-0", {"other": 1}),)),
            "device-0 has no compute_s for sub0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error_that_names_it(make, said):
    with pytest.raises(PartitionError, match=said):
        make()
