"""The prediction beside a real cluster over slow links, for a plan, and as its page shows it."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

import pytest
from coordinator_tools import DEVICES, SIDE, WIDTHS, pictures, write_plan
from shaped_cluster import SCENE, behind_proxies
from timed_calls import timed_calls

from partition.errors import PartitionError
from partition.plan import read_plan
from partition.simulate import Link, Load, Overheads, fleet_of, simulate

ROOT = Path(__file__).resolve().parents[2]
RATE, COUNT, PIXELS, CALLS = 2_000_000, 2, 64, 6
CLOSE = 0.3
LAYOUTS = ("NCHW",) * COUNT


@pytest.mark.slow
def test_real_pictures_over_slow_links_take_as_long_as_predicted(tmp_path: Path) -> None:
    """No speed is asked for, only agreement, where the links are what takes time."""
    plan = write_plan(tmp_path / "plan", side=PIXELS, layouts=LAYOUTS)
    links = dict.fromkeys(DEVICES[:COUNT], Link(RATE))
    times = {(f"sub{i}", DEVICES[i]): 0.002 for i in range(COUNT)}
    costs = Overheads(request_bytes=100, answer_bytes=600, name_bytes=100)
    with behind_proxies(plan, tmp_path, COUNT, PIXELS) as (coordinator, cables):
        for hub_rate in (RATE, None):
            cables.shape(RATE, hub_rate)
            fleet = fleet_of(
                read_plan(plan.path), compute_s=times, links=links, hub_link=Link(hub_rate),
                overheads=costs,
            )  # fmt: skip
            one = timed_calls(coordinator.address, side=PIXELS, calls=CALLS)
            told = median(call["seconds"] for call in one["calls"])
            predicted = simulate(fleet, requests=CALLS).p50_s
            assert abs(predicted / told - 1) < CLOSE, (hub_rate, predicted, told)
            three = timed_calls(coordinator.address, side=PIXELS, calls=CALLS, warm=3, in_flight=3)
            rate = (CALLS + 3) / three["seconds"]
            expected = simulate(fleet, Load(3), requests=60).throughput
            assert abs(expected / rate - 1) < CLOSE, (hub_rate, expected, rate)
        named = timed_calls(coordinator.address, side=PIXELS, calls=CALLS, ref=SCENE)
        assert median(call["seconds"] for call in named["calls"]) < told / 4
        picture = pictures(1, side=PIXELS).nbytes
        sent, _ = cables.passed()
        assert sent > COUNT * picture * 4 * CALLS


def test_a_plan_says_what_its_fleet_is(tmp_path: Path) -> None:
    made = write_plan(tmp_path / "plan", layouts=("NCHW",) * 3, replicas=((), ("pi-0",), ()))
    (made.path / "cluster.yaml").write_text(
        "devices:\n"
        + "".join(
            f"  - {{name: {name}, compute: 1 GMAC/s, targets: [onnx], link: {i + 1} Mbit/s}}\n"
            for i, name in enumerate(DEVICES)
        )
    )
    plan = read_plan(made.path)
    costs = Overheads(request_bytes=50, answer_bytes=60, name_bytes=70, call_s=0.002)
    times = {("sub1", "pi-0"): [0.1, 0.2]}
    fleet = fleet_of(plan, compute_s=times, links={"pi-2": Link(5e6)}, overheads=costs)
    assert [device.link.rate for device in fleet.devices] == [1e6, 2e6, 5e6, 4e6]
    assert [s.places for s in fleet.submodels] == [("pi-0",), ("pi-1", "pi-0"), ("pi-2",)]
    assert {s.request_bytes for s in fleet.submodels} == {4 * 3 * SIDE * SIDE + 50}
    assert [s.answer_bytes for s in fleet.submodels] == [4 * w + 60 for w in WIDTHS[:3]]
    assert fleet.device("pi-0").compute_s == {"sub0": 1.0, "sub1": [0.1, 0.2]}  # 1 MAC, 1 MAC/s
    assert fleet.device("pi-1").call_s == 0.002
    sensed = fleet_of(plan, overheads=costs, local_input=True)
    assert {s.request_bytes for s in sensed.submodels} == {70}
    assert simulate(fleet, requests=5, lost=["pi-1"]).missing == ()
    assert simulate(fleet, requests=5, lost=["pi-2"]).missing == ("sub2",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compute_s": {("sub9", "pi-0"): 1.0}}, "sub9 on pi-0"),
        ({"compute_s": {("sub0", "pi-1"): 1.0}}, "sub0 on pi-1"),
        ({"links": {"desk": Link(1.0)}}, "the device 'desk'"),
    ],
)
def test_what_a_plan_does_not_know_is_refused(tmp_path: Path, given: dict, said: str) -> None:
    plan = read_plan(write_plan(tmp_path / "plan").path)
    with pytest.raises(PartitionError, match=f"the plan does not know {said}"):
        fleet_of(plan, **given)


def test_the_examples_of_the_page_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the folder of a plan in the place of its name."""
    page = (ROOT / "docs" / "partition.md").read_text(encoding="utf-8")
    section = page[page.index("How would it be with more devices") :].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE)
    code = [re.sub("(?m)^    ", "", block) for block in blocks if "import" in block]
    assert len(code) == 2
    plan = write_plan(tmp_path / "plan")
    for block in code:
        assert "simulate(" in block
        exec(compile(block.replace('"plan"', repr(str(plan.path))), "page", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 4 and all(re.search(r"\d", line) for line in lines)
