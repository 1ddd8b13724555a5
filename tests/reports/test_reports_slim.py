"""The page of a slimming: what it says of the search, and that nothing in a record is markup."""

from __future__ import annotations

import csv
import io

import pytest
from page_tools import Parsed

from converters.slim.record import (
    Finished,
    LandingRecord,
    Network,
    SlimRecord,
    TableFacts,
)
from edgevit.reports.slim_page import beside_the_end, build_slim_page, findings_of, render_slim


def network(way: str, step: int, ms: float, top1: float, **more: object) -> Network:
    return Network(
        **{
            "way": way, "step": step, "action": f"narrow in stage {step}", "predicted_ms": ms,
            "top1": top1, "loss": 1.0, "params": 100_000 * (9 - step), "tried": 4,
            "shape": {"widths": [16, 32], "depths": [1, 2]}, "blocks": [[0], [0, 2]],
        } | more
    )  # fmt: skip


def record(**changed: object) -> SlimRecord:
    path = [
        network("search", 0, 4.0, 80.0, action="the whole network", tried=0),
        network("search", 1, 3.0, 79.0),
        network("search", 2, 1.97, 77.5, measured_ms=2.02),
    ]
    others = [
        network("uniform", 1, 2.8, 75.0),
        network("uniform", 2, 1.6, 70.0, measured_ms=1.61),
        network("random", 1, 1.95, 76.0),
        network("random", 2, 1.98, 76.5, measured_ms=2.0),
    ]
    values = {
        "edgevit_version": "0.1.0", "created": "2026-01-02T03:04:05+00:00",
        "model": "tiny<script>", "family": "tinyslim", "weights": "random, seed 0",
        "weights_sha256": "0" * 64, "source": "supernet", "data": "digits", "labels": ["a", "b"],
        "pictures": {"train": 90, "held_out": 10, "settle": 20, "test": 30}, "side": 32,
        "target_ms": 2.0, "target_size_m": None, "objective": "latency", "engine": "onnxruntime 1",
        "device": "local", "threads": 1, "settings": {"seed": 0},
        "table": TableFacts(
            setup="onnx here", parts=12, fit_intercept_ms=0.1, fit_slope=1.1, fit_networks=8,
            error_percent=4.2,
        ),
        "networks": [*path, *others],
        "landings": [LandingRecord(aim_ms=2.0, predicted_ms=1.97, measured_ms=2.02)],
        "evaluated": 30,
        "finished": [
            Finished(
                way="search", measured_ms=2.02, held_top1=81.0, held_loss=0.5, test_top1=80.25,
                test_top5=99.0, test_loss=0.6, epoch=3, seconds=12.0,
            )
        ],
        "notes": ["the constants <b>could</b> not be verified"], "versions": {"torch": "2"},
        "machine": {"cores": 2}, "timings_s": {"scoring": 3.0},
    }  # fmt: skip
    return SlimRecord.model_validate(values | changed)


def test_the_page_has_every_network_and_escapes_what_it_is_told():
    text = render_slim(record())
    page = Parsed(text)
    assert "tiny<script>" not in text.split('id="records"')[0]
    assert "tiny<script> slimmed to 2 ms" in page.text
    assert page.row("2 narrow in stage 2").split()[:7] == [
        "2", "narrow", "in", "stage", "2", "1.97", "2.02",
    ]  # fmt: skip
    assert "uniform 2" in page.text and "random 1" in page.text
    assert "the constants <b>could</b> not be verified" in page.text
    assert page.json("records")[0]["networks"][2]["measured_ms"] == 2.02
    plan = page.json("plan")
    assert [dot["way"] for dot in plan["networks"]] == [n.way for n in record().networks]
    assert plan["target"] == [{"ms": 2.0}]
    assert page.row("2 1.97 2.02").endswith("+1.0")
    assert not [a for _, a in page.tags if "src" in a or str(a.get("href", "")).startswith("http")]


def test_the_verdict_compares_with_the_last_uniform_and_the_best_random():
    assert [(n.way, n.step) for n in beside_the_end(record())] == [("uniform", 2), ("random", 2)]
    texts = {finding.text: finding.level for finding in findings_of(record())}
    (uniform,) = [text for text in texts if "uniform scaling" in text]
    assert "7.50 points of held-out top-1 ahead of" in uniform and texts[uniform] == "good"
    assert "to take 81 % of its time" in uniform
    (drawn,) = [text for text in texts if "2 random networks" in text]
    assert "1.00 points of held-out top-1 ahead of" in drawn and "at the same predicted" in drawn


def test_a_search_that_is_behind_is_told_so():
    better = network("random", 3, 1.99, 79.0)
    found = findings_of(record(networks=[*record().networks, better]))
    (text,) = [f.text for f in found if "random networks" in f.text and f.level == "warn"]
    assert "1.50 points of held-out top-1 behind the best of 3 random networks" in text


def test_a_table_that_is_far_off_is_a_warning_and_one_without_a_fit_is_not_spoken_of():
    table = record().table
    bad = record(table=table.model_copy(update={"error_percent": 12.0}))
    assert [f.level for f in findings_of(bad) if "latency table" in f.text] == ["warn"]
    none = record(table=TableFacts(setup="here", parts=3))
    assert not [f for f in findings_of(none) if "latency table" in f.text]
    assert ("correction", "none") in build_slim_page(none).facts


def test_without_baselines_there_is_no_comparison():
    alone = record(networks=record().path)
    assert beside_the_end(alone) == [] and build_slim_page(alone).others == []
    assert "What it is compared with" not in Parsed(render_slim(alone)).text


def test_the_csv_has_a_line_for_each_network_and_nothing_where_nothing_was_measured():
    rows = list(csv.DictReader(io.StringIO(record().csv())))
    assert [row["measured_ms"] for row in rows] == ["", "", "2.02", "", "1.61", "", "2"]
    assert rows[2]["shape"] == "widths=16-32 depths=1-2" and rows[2]["blocks"] == "0|0-2"
    assert float(rows[1]["top1"]) == pytest.approx(79.0)
