"""Devices in reports: called by their owner's name, and listed where they gave nothing."""

from __future__ import annotations

import io

from report_records import environment, raspberry, record, three_engines
from rich.console import Console

from edgevit.reports import Absent, findings, print_table, render_html
from edgevit.reports.present import record_names
from runtime.run_record import RunRecord

GONE = Absent("jetson", "nothing listens at jetson.local:8001; check the port")


def named(run: RunRecord, name: str) -> RunRecord:
    return run.model_copy(update={"environment": run.environment.model_copy(update={"name": name})})


def printed(records: list[RunRecord], absent: list[Absent]) -> str:
    out = io.StringIO()
    print_table(records, Console(file=out, width=140), absent)
    return " ".join(out.getvalue().split())


def test_a_name_tells_devices_of_one_kind_apart():
    left, right = named(raspberry(), "left"), named(raspberry(), "right")
    assert record_names([left, right]) == ["left", "right"]
    text = printed([left, right], [])
    assert "left (Raspberry Pi 5)" in text and "right (Raspberry Pi 5)" in text
    assert "on 2 devices" in text, "two of a kind are two devices"
    page = render_html([left, right])
    assert "shvit_s1 tflite · left" in page and "shvit_s1 tflite · right" in page


def test_one_named_device_in_the_title():
    page = render_html([named(raspberry(), "pi")])
    assert "<h1>shvit_s1 on pi (Raspberry Pi 5)</h1>" in page


def test_records_of_one_device_are_told_apart():
    one = three_engines()
    other = three_engines(threads=4)
    assert [n.rpartition(", ")[2] for n in record_names([one, other])] == ["1 thread", "4 threads"]
    items = [m.model_copy(update={"model": "vit_tiny"}) for m in one.measurements]
    models = record_names([one, record(items)])
    assert [n.rpartition(", ")[2] for n in models] == ["shvit_s1", "vit_tiny"]
    again = record_names([one, one])
    assert [n.rpartition(", ")[2] for n in again] == ["run 1", "run 2"]


def test_a_device_that_gave_nothing_is_said_to_have():
    said = "jetson was not profiled: nothing listens at jetson.local:8001; check the port."
    (found,) = [f for f in findings([raspberry()], [GONE]) if "jetson" in f.text]
    assert (found.text, found.level, found.topic) == (said, "warn", "absent")
    assert said in printed([raspberry()], [GONE])
    assert said in render_html([raspberry()], absent=[GONE])
    assert "jetson" not in printed([raspberry()], [])


def test_words_of_a_device_cannot_change_the_page():
    evil = Absent("<script>alert(1)</script>", "[bold]</script>")
    assert "<script>alert(1)" not in render_html([named(raspberry(), "<b>pi</b>")], absent=[evil])
    assert "[bold]</script>" in printed([raspberry()], [evil])


def test_requests_that_were_served_meanwhile_are_a_warning():
    note = "7 inference requests were served on the device meanwhile: they may have disturbed"
    run = record(raspberry().measurements, notes=[note], environment=environment())
    assert [f.level for f in findings([run]) if f.text == note] == ["warn"]
