"""The page: what it carries, what it says, what it must never do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from page_tools import Parsed
from report_records import (
    LONG,
    measurement,
    noise,
    raspberry,
    record,
    three_engines,
    with_trouble,
)

from edgevit.reports import findings, render_html, write_html
from edgevit.reports.charts import axis_of, thinning
from runtime.errors import RuntimeFault
from runtime.manifest import Verification
from runtime.run_record import NotMeasured, OpTime, RunRecord

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def plain() -> str:
    return render_html([three_engines()])


@pytest.fixture(scope="module")
def trouble() -> Parsed:
    return Parsed(render_html([with_trouble()]))


def test_the_page_fetches_nothing_and_forbids_it(plain: str) -> None:
    page = Parsed(plain)
    assert not any(
        name in attrs for _, attrs in page.tags for name in ("src", "href", "srcset", "action")
    )
    assert not any(tag in ("link", "iframe", "img", "object") for tag, _ in page.tags)
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "unsafe-eval" not in policy
    css = plain[plain.index("<style>") : plain.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css


def test_the_page_is_small(plain: str) -> None:
    assert len(plain.encode()) < 1_200_000


def test_the_page_carries_the_records_once_and_exactly(plain: str) -> None:
    run = three_engines()
    (carried,) = Parsed(plain).json("records")
    assert RunRecord.model_validate(carried) == run
    needle = f"{run.measurements[1].samples_ms[3][7]}"
    assert len(needle) > 6
    assert plain.count(needle) == 1


def test_sections_come_in_order(plain: str) -> None:
    text = Parsed(plain).text
    order = [
        "shvit_s1 on AMD EPYC 9654", "AMD EPYC 9654 · 1 thread · input 1×3×224×224 · "
        "21 November 2026, 01:14 UTC", "shvit_s1 tflite is the fastest here: 5.65 ms",
        "All 3 artefacts match torch", "37 XNNPACK partitions", "Latency distribution",
        "Samples over time", "Comparison", "Not measured", "Time per op", "Environment",
        "How it was measured", "The numbers",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_every_finding_is_on_the_page(trouble: Parsed) -> None:
    for finding in findings([with_trouble()]):
        assert finding.text in trouble.text


def test_the_comparison_row_has_every_number(plain: str) -> None:
    row = Parsed(plain).row("shvit_s1 onnx ONNX")
    assert row == (
        "shvit_s1 onnx ONNX Runtime 1.31.1 · fp32 · 200 runs 5.91 6.02 6.06 6.65 5.72 "
        "5.93 ± 0.22 1.05 1.04–1.05 20.4 10.01 53.3 25.1 – ✓ 9e-7 top-1 100 % · 16 inputs"
    )


def test_a_failure_is_loud_and_last_in_the_table(trouble: Parsed) -> None:
    alarms = [a for t, a in trouble.tags if a.get("class") == "alarm"]
    assert len(alarms) == 1
    assert trouble.text.index("WRONG NUMBERS") < trouble.text.index("is the fastest here")
    assert "✕ FAILED 0.48 error over spread 0.48 is above 0.0001" in trouble.row("shvit_s1 pte, ch")
    compared = [r for r in trouble.rows if " runs " in r]
    assert compared[-1].startswith("shvit_s1 pte, channels-last")
    assert compared[0].startswith(LONG)


def test_what_was_not_executed_has_no_tick(trouble: Parsed) -> None:
    row = trouble.row("shvit_s1 coreml Core ML")
    assert "○ not run Core ML runs on macOS only" in row
    assert "✓" not in row


def test_ops_show_the_top_and_fold_the_rest(plain: str) -> None:
    page = Parsed(plain)
    run = three_engines()
    ops = run.measurements[0].ops
    assert ops is not None
    shares = sorted((op.share for op in ops), reverse=True)
    assert f"49 more ops, {sum(shares[15:]) * 100:.1f} % of the time" in page.text
    assert "tracer, which the pip package is not." in page.text
    bars = [
        a["style"] for t, a in page.tags if t == "span" and (a.get("style") or "")[:5] == "width"
    ]
    assert len(bars) == 64 + 31
    assert bars[0] == "width:100.0%"
    assert bars[1] == f"width:{shares[1] / shares[0] * 100:.1f}%"


def test_what_was_not_measured_is_an_en_dash_or_left_out() -> None:
    bare = measurement(
        "a", "litert", 5.0, 1, label="bare", precision=None, verification=None, delegation=None,
        target=None, model=None,
    )  # fmt: skip
    page = Parsed(render_html([record([bare])]))
    row = page.row("bare LiteRT")
    assert "LiteRT 2.3.0 · – · 200 runs" in row
    assert row.endswith("– – not checked not compared with torch")
    assert "temperature" not in page.text
    assert "None" not in page.text
    assert "nan" not in page.text
    both = Parsed(render_html([record([bare]), raspberry()]))
    assert "temperature – 58.2 °C" in both.rows


def test_text_from_files_stays_text() -> None:
    evil = measurement(
        "a", EVIL, 5.0, 1, label=EVIL, file=EVIL, engine_version=EVIL, model=EVIL, precision=EVIL,
        verification=Verification(status="failed", prover=EVIL, reason=EVIL, first_divergence=EVIL),
        ops=[OpTime(name=EVIL, type="</script>", ms=1.0, share=1.0, delegate=EVIL)], ops_note=EVIL,
    )  # fmt: skip
    run = record(
        [evil], notes=[EVIL, "random " + EVIL], method={EVIL: EVIL},
        not_measured=[NotMeasured(id="b", label=EVIL, file=EVIL, reason=EVIL)],
    )  # fmt: skip
    text = render_html([run], title="</title>" + EVIL)
    honest = render_html([three_engines()])
    assert EVIL not in text
    assert text.lower().count("</script") == honest.lower().count("</script")
    assert text.count("</title>") == 1
    page = Parsed(text)
    assert len(page.scripts) == len(Parsed(honest).scripts)
    assert EVIL in page.text  # it is shown, as the text that it is
    (carried,) = page.json("records")
    assert RunRecord.model_validate(carried) == run


def test_the_charts_name_their_data_and_follow_the_colour_scheme(plain: str) -> None:
    plan = Parsed(plain).json("plan")
    assert [chart["id"] for chart in plan["charts"]] == ["distribution", "timeline-0"]
    assert [row["name"] for row in plan["rows"]] == [m.label for m in three_engines().measurements]
    text = json.dumps(plan["charts"])
    assert '"values"' not in text
    assert '{"name": "samples"}' in text
    assert "var(--c0)" in text
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", text)
    for name in set(re.findall(r"var\((--\w+)\)", text)):
        assert plain.count(f"{name}: #") == 2  # light and dark


def test_the_box_is_that_of_the_samples() -> None:
    m = measurement("a", "litert", 0, 1, blocks=[[float(v) for v in range(1, 102)]])
    (row,) = Parsed(render_html([record([m])])).json("plan")["rows"]
    assert [row[k] for k in ("p05", "p25", "p50", "p75", "p90", "p95")] == [6, 26, 51, 76, 91, 96]


def test_one_hiccup_does_not_squash_the_axis_and_is_counted() -> None:
    samples = [[5.0 + 0.001 * run for run in range(20)] for _ in range(10)]
    samples[4][3] = 80.0
    m = measurement("a", "litert", 0, 1, blocks=samples)
    assert axis_of([m]).high < 10
    page = Parsed(render_html([record([m])]))
    assert page.json("plan")["rows"][0]["beyond"] == "1 run beyond, up to 80.00 ms ▸"


def test_far_apart_latencies_get_a_logarithmic_axis_that_says_so() -> None:
    near, far = three_engines(), raspberry()
    assert not axis_of(near.measurements).log
    assert axis_of([*near.measurements, *far.measurements]).log
    page = Parsed(render_html([near, far]))
    assert "(logarithmic)" in json.dumps(page.json("plan")["charts"][0])
    assert "(logarithmic)" not in json.dumps(page.json("plan")["charts"][1])


def test_many_samples_are_thinned_in_the_picture_only() -> None:
    m = measurement("a", "litert", 0, 1, blocks=noise(5.0, 1, blocks=9, runs=1000))
    run = record([m])
    assert thinning([run]) == 3
    page = Parsed(render_html([run]))
    assert "1 in 3 is drawn; bars and percentiles use all" in page.text
    (carried,) = page.json("records")
    assert sum(len(b) for b in carried["measurements"][0]["samples_ms"]) == 9000


def test_several_records_share_the_page_and_say_what_is_not_interleaved() -> None:
    page = Parsed(render_html([three_engines(), raspberry()]))
    assert "2 records: AMD EPYC 9654; Raspberry Pi 5" in page.text
    assert "† Medians of different records, which were not interleaved" in page.text
    plan = page.json("plan")
    assert plan["rows"][3]["name"] == "shvit_s1 tflite · Raspberry Pi 5"
    assert [c["id"] for c in plan["charts"]] == ["distribution", "timeline-0", "timeline-1"]
    slow = [r for r in page.rows if r.startswith("shvit_s1 tflite LiteRT")][1]
    assert " 1.00 9.71 " in slow
    assert "CPU AMD EPYC 9654 96-Core Processor Cortex-A76" in page.rows
    ids = [a["data-save"] for t, a in page.tags if t == "button"]
    assert ids == ["0", "1"]


def test_nothing_measured_still_gives_a_page_with_the_reasons() -> None:
    absent = [NotMeasured(id="a", label="A", file="a.pte", reason="error 0x12 at load")]
    page = Parsed(render_html([record([], comparisons=[], not_measured=absent)]))
    assert "Nothing was measured." in page.text
    assert "error 0x12 at load" in page.text
    assert "Comparison" not in page.text


def test_no_record_is_an_error_that_says_so() -> None:
    with pytest.raises(RuntimeFault, match="at least one run record"):
        render_html([])


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html([three_engines()], path)
    assert path.read_text(encoding="utf-8") == render_html([three_engines()])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "folder.html" / "x").touch()
    for target in (tmp_path / "missing" / "report.html", tmp_path / "folder.html"):
        with pytest.raises(
            RuntimeFault, match=f"cannot write the report to {re.escape(str(target))}"
        ):
            write_html([three_engines()], target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "report.html"]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_draws_the_charts_and_runs_nothing_else(tmp_path: Path) -> None:
    bomb = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    run = three_engines()
    items = [m.model_copy(update={"label": bomb + m.label}) for m in run.measurements]
    path = tmp_path / "report.html"
    write_html([record(items)], path, title="honest")
    found = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000",
            "--enable-logging=stderr", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in found.stderr
    assert "<title>honest</title>" in found.stdout
    assert found.stdout.count('<svg xmlns="http://www.w3.org/2000/svg"') == 2
    assert "could not be drawn: " not in found.stdout.split("<script")[0]
    dots = found.stdout.count('fill="var(--c0)"') + found.stdout.count('stroke="var(--c0)"')
    assert dots > 300
