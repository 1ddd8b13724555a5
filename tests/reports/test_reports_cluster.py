"""The report of a cluster's bench: its sentences, its page, its tables, its CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import vl_convert
from cluster_records import SHARES, WORKERS, cluster_run, samples
from page_tools import Parsed
from rich.console import Console

from edgevit.reports.cluster_charts import chart_plan
from edgevit.reports.cluster_page import render_cluster
from edgevit.reports.cluster_table import cluster_csv, print_cluster
from edgevit.reports.cluster_verdict import cluster_findings
from edgevit.reports.embed import write_files
from partition.cluster.bench_record import ClusterRun, RunError
from runtime.errors import RuntimeFault

EVIL = "<script>alert(1)</script>"


def said(run: ClusterRun, level: str | None = None) -> str:
    return "\n".join(f.text for f in cluster_findings(run) if level in (None, f.level))


def mixed() -> ClusterRun:
    """150 whole answers, then 50 without sub1, in half the time."""
    gone = samples(50, 2.5, missing=("sub1",), seed=2, begin_ms=800.0)
    return cluster_run([*samples(150), *gone])


@pytest.fixture(scope="module")
def page() -> Parsed:
    return Parsed(render_cluster(cluster_run()))


def test_the_straggler_is_named_in_one_sentence() -> None:
    found = said(cluster_run())
    assert re.search(
        r"The straggler is sub0@desk: last in 150 of 200 whole answers \(75\.0 %\), and then most "
        r"of its 3\.\d\d ms is network \(57\.1 %\)\.",
        found,
    )
    alone = cluster_run(samples(200, straggler=WORKERS[1], shares=(0, 0, 0, 0.1, 0.2, 0.7, 0, 0)))
    assert "The straggler is sub1@pi-1: last in 200 of 200 whole answers (100.0 %)" in said(alone)
    assert "is compute (70.0 %)" in said(alone)


def test_the_stages_are_checked_against_the_whole() -> None:
    assert "sum to 4.95 ms of 5.00 ms measured end to end: 99.0 %." in said(cluster_run(), "good")
    lost = cluster_run(samples(200, shares=(0.2, 0.0, 0.0, 0.4, 0.2, 0.1, 0.0, 0.0)))
    assert "90.0 %, more than 5 % off" in said(lost, "warn")
    assert "The means of the stages" not in said(lost, "good")
    over = cluster_run(samples(200, shares=(0.2, 0.0, 0.0, 0.4, 0.2, 0.1, 0.0, 0.12)))
    assert "end to end: 102.0 %." in said(over, "good")


def test_the_prediction_stands_beside_the_measurement() -> None:
    found = said(cluster_run())
    assert "The plan predicted 2.50 ms for its slowest device" in found
    assert re.search(r"took 3\.\d\d ms \(median\), 1\.\d\d× that", found)
    assert "predicted" not in said(cluster_run(predicted_ms=None))


def test_degraded_answers_are_loud_and_in_no_other_number() -> None:
    run = mixed()
    assert "50 of 200 answers were degraded: without sub1 in 50." in said(run, "warn")
    headline = next(f.text for f in cluster_findings(run) if f.topic == "speed")
    assert headline.startswith("A whole answer takes ")
    whole = cluster_run(samples(150))
    assert whole.groups[0].latency == run.groups[0].latency
    rows = [row for row in Parsed(render_cluster(run)).rows if row.startswith("end to end")]
    assert len(rows) == 2
    p50 = [f"{group.latency.p50:.3f}" for group in run.groups]
    assert all(each in row for each, row in zip(p50, rows, strict=True))
    shown = Parsed(render_cluster(run)).text
    assert shown.index("Whole answers 150,") < shown.index("Degraded answers 50,")


def test_only_degraded_answers_are_an_alarm() -> None:
    run = cluster_run(samples(60, missing=("sub1",)))
    assert "Every answer was degraded; without sub1 in 60. No whole one is measured." in said(
        run, "bad"
    )
    page = Parsed(render_cluster(run))
    assert [a for t, a in page.tags if a.get("class") == "alarm"]
    assert "straggler is" not in page.text
    assert "Whole answers" not in page.text


def test_errors_are_counted_and_shown() -> None:
    errors = [RunError(status="UNAVAILABLE", reason="gone " + EVIL, count=7, first_at_ms=1250.0)]
    run = cluster_run(errors=errors)
    assert "7 of 207 requests got no answer: UNAVAILABLE (7)." in said(run, "bad")
    page = Parsed(render_cluster(run))
    assert page.row("UNAVAILABLE") == f"UNAVAILABLE gone {EVIL} 7 1.25"
    assert "Requests without an answer" not in Parsed(render_cluster(cluster_run())).text


def test_what_makes_numbers_worse_is_said() -> None:
    few = said(cluster_run(samples(12)), "warn")
    assert "only 12 samples" in few
    slower = cluster_run([*samples(100), *samples(100, 6.0, begin_ms=500.0)])
    assert "The latency drifted from" in said(slower, "warn")
    tail = cluster_run([*samples(190), *samples(10, 20.0)])
    assert "A long tail: p99 is" in said(tail, "warn")
    run = cluster_run()
    run.devices[0].temperature_after_c = 61.0
    run.workers[1].usable, run.workers[1].reason = False, "nothing listens there."
    found = said(run, "warn")
    assert "desk warmed from 50 to 61 °C." in found
    assert "sub1@pi-1 was out at the end: nothing listens there." in found
    calm = said(cluster_run(), "warn")
    assert not calm, calm


def test_the_page_has_all_of_it_in_order(page: Parsed) -> None:
    order = [
        "vit_tiny on 2 devices", "plan plan (abababababab)", "21 November 2026, 12:00 UTC",
        "A whole answer takes 5.0", "The straggler is sub0@desk", "Where the time goes",
        "Latency by straggler", "Answers over time", "Workers", "Devices", "Environment",
        "How it was measured", "The numbers",
    ]  # fmt: skip
    places = [page.text.index(part) for part in order]
    assert places == sorted(places)
    for finding in cluster_findings(cluster_run()):
        assert finding.text in page.text


def test_the_rows(page: Parsed) -> None:
    assert page.row("sub0@desk") == "sub0@desk 3 classes 150 75.0 3.50 ready"
    assert page.row("sub1@pi-1") == "sub1@pi-1 1 class 50 25.0 3.25 ready"
    assert page.row("sub1@desk") == "sub1@desk 1 class 0 0.0 – ready"
    assert page.row("desk 127") == (
        "desk 127.0.0.1:8001 onnxruntime 1.31.1 (onnx) 1 2.50 3.50 50 → 52"
    )
    assert page.row("pi-1 nobody") == "pi-1 nobody answers – tflite – 1.50 3.25 –"
    assert page.row("not accounted for").endswith(" 0.050")
    assert page.row("desk Desk") == (
        "desk Desk AMD EPYC 9654 96-Core Processor · 1 physical core, 2 logical · 25.8 GB of "
        "memory · avx2 avx512f avx512_vnni Linux 6.1, x86_64 bench-1 · Python 3.11.7 · edgevit "
        "0.1.0 2596 MHz · load average 0.21"
    )
    stage = cluster_run().groups[0].stages[3]
    assert page.row("network ").startswith(f"network {stage.latency.mean:.3f} 40.0 ")
    assert "None" not in page.text and "nan" not in page.text.split()


def test_numbers_that_nobody_told_are_absent() -> None:
    run = cluster_run()
    run.devices[0].predicted_ms = None
    run.devices[0].threads = []
    run.devices[0].temperature_before_c = run.devices[0].temperature_after_c = None
    run.workers[0].p50_ms, run.workers[0].usable = None, None
    page = Parsed(render_cluster(run))
    assert page.row("desk 127") == "desk 127.0.0.1:8001 onnxruntime 1.31.1 (onnx) – – – –"
    assert page.row("sub0@desk").endswith("75.0 – –")


def test_the_page_carries_the_record_and_fetches_nothing() -> None:
    run = cluster_run()
    text = render_cluster(run)
    page = Parsed(text)
    (carried,) = page.json("records")
    assert ClusterRun.model_validate(carried) == run
    assert not any(
        name in attrs for _, attrs in page.tags for name in ("src", "href", "srcset", "action")
    )
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert (policy or "").startswith("default-src 'none'")
    assert "@media print" in text and "prefers-color-scheme: dark" in text
    assert len(text.encode()) < 1_300_000


def test_text_from_a_record_stays_text() -> None:
    run = cluster_run(model=EVIL, plan=EVIL, coordinator=EVIL, notes=[EVIL], mode=EVIL)
    run.devices[1].reason = run.devices[0].engine = EVIL
    run.workers[1].name = EVIL
    text = render_cluster(run)
    assert EVIL not in text
    assert text.count("</title>") == 1
    assert EVIL in Parsed(text).text
    assert len(Parsed(text).scripts) == len(Parsed(render_cluster(cluster_run())).scripts)


def test_charts_are_drawn_from_named_data_in_the_pages_colours(page: Parsed) -> None:
    plan = page.json("plan")
    assert [chart["id"] for chart in plan["charts"]] == ["stages", "distribution", "timeline"]
    places = {a["data-chart"] for _, a in page.tags if "data-chart" in a}
    assert places == {"stages", "distribution", "timeline"}
    text = json.dumps(plan["charts"])
    assert '"values"' not in text and not re.findall(r"#[0-9a-fA-F]{3,8}\b", text)
    assert [row["name"] for row in plan["rows"]] == ["all whole answers", *WORKERS[:2]]
    bars = plan["bars"]
    assert [bar["begin"] for bar in bars[1:]] == [bar["end"] for bar in bars[:-1]]
    mean = cluster_run().groups[0].latency.mean
    assert bars[-1]["end"] == pytest.approx(sum(SHARES) * mean, rel=1e-4)


@pytest.mark.parametrize("run", [cluster_run(), mixed(), cluster_run(samples(5))])
def test_vega_draws_every_chart(run: ClusterRun) -> None:
    """By vl-convert, which has no page: the colours are names, and the data are put in."""
    plan = chart_plan(run)
    drawn = {
        "bars": plan["bars"],
        "rows": plan["rows"],
        "samples": [
            {"record": 0, "row": row["row"], "name": row["name"], "block": 1, "i": i,
             "order": i + 1, "ms": sample.ms}
            for row in plan["rows"]
            for i, sample in enumerate(run.samples)
        ],
    }  # fmt: skip
    for chart in plan["charts"]:
        spec = {**chart["spec"], "datasets": drawn, "width": 800}
        svg = vl_convert.vegalite_to_svg(
            json.loads(re.sub(r"var\(--\w+\)", "red", json.dumps(spec)))
        )
        assert svg.count("<path") > len(plan["rows"]), chart["id"]


def test_the_series_of_a_mixed_run() -> None:
    assert [row["name"] for row in chart_plan(mixed())["rows"]] == ["sub0@desk", "degraded answers"]
    plan = Parsed(render_cluster(mixed())).json("plan")
    assert (plan["degraded"], plan["all"]) == ("degraded answers", "all whole answers")


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_can_be_read(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    print_cluster(mixed(), console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("network")]
    stages = [group.stages[3] for group in mixed().groups]
    assert [row[1] for row in rows] == [f"{stage.latency.mean:.3f}" for stage in stages]
    assert "client ↔ coordinator" in text and "…" not in text
    assert " ".join(text.split()).index("were degraded") < text.index("The straggler is")


def test_the_csv_has_every_sample() -> None:
    run = mixed()
    rows = list(csv.DictReader(io.StringIO(cluster_csv(run))))
    assert len(rows) == 200
    for row, sample in zip(rows, run.samples, strict=True):
        assert float(row["ms"]) == sample.ms and row["kind"] == sample.kind
        stages = [float(row[f"{stage}_ms"]) for stage in run.stages]
        assert stages == sample.stages_ms
        assert row["missing"].split() == sample.missing


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    one, two = tmp_path / "a.json", tmp_path / "b.html"
    write_files({one: "1", two: "2"})
    assert (one.read_text(), two.read_text()) == ("1", "2")
    (tmp_path / "folder.html").mkdir()
    for bad in (tmp_path / "folder.html", tmp_path / "missing" / "c.html"):
        with pytest.raises(RuntimeFault, match="cannot write the report to"):
            write_files({one: "new", bad: "3"})
    assert one.read_text() == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.html", "folder.html"]
