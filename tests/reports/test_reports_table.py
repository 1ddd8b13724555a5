"""The terminal table at the widths people have."""

from __future__ import annotations

import io

import pytest
from report_records import measurement, raspberry, record, three_engines, with_trouble
from rich.console import Console

from edgevit.reports import print_table
from runtime.run_record import NotMeasured, RunRecord


def printed(records: list[RunRecord], width: int, **options: object) -> str:
    out = io.StringIO()
    print_table(records, Console(file=out, width=width, **options))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_column_is_whole(width: int) -> None:
    text = printed([three_engines()], width)
    assert max(len(line) for line in text.splitlines()) <= width
    (row,) = [line for line in text.splitlines() if "5.91" in line and "ONNX" in line]
    for cell in ("5.91", "6.02", "1.05", "53.3", "✓ 9e-7", "–"):
        assert cell in row
    for cell in ("(1.04–1.05)", "10.01", "20.4", "fp32", "37", "1.00", "ExecuTorch"):
        assert cell in text
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_trouble_stays_readable(width: int) -> None:
    text = printed([with_trouble()], width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "✕ FAILED 0.48" in text
    assert "○ not run" in text
    table = text.split("shvit_s1 coreml (Core ML) was not measured")[0]
    assert table.index("4.10") > table.index("7.72")  # the wrong one is last, though quickest


def test_the_verdict_is_last_and_the_failure_just_above_it() -> None:
    text = " ".join(printed([with_trouble()], 100).split())
    assert text.endswith("the other 3 take 1.16 to 1.52×.")
    assert (
        text.index("was not measured") < text.index("WRONG NUMBERS") < text.index("is the fastest")
    )


def test_several_records_have_a_table_each() -> None:
    text = printed([three_engines(), raspberry()], 100)
    assert text.count("× fastest") == 2
    assert "Raspberry Pi 5 · 1 thread" in text
    assert "not interleaved" in " ".join(text.split())


def test_markup_and_control_sequences_in_labels_are_inert() -> None:
    m = measurement("a", "litert", 5.0, 1, label="[red]x[/red] \x1b[2Jy")
    text = printed([record([m])], 120, force_terminal=True, color_system="truecolor")
    assert "\x1b[2J" not in text
    assert "[red]x[/red]" in text


def test_a_record_without_measurements() -> None:
    absent = [NotMeasured(id="a", label="A", file="a.pte", reason="error 0x12")]
    text = printed([record([], comparisons=[], not_measured=absent)], 80)
    assert "Nothing was measured." in text
    assert "error 0x12" in text
