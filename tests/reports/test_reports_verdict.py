"""The verdict: every sentence against numbers that would make a wrong one."""

from __future__ import annotations

import pytest
from report_records import (
    environment,
    measurement,
    passed,
    raspberry,
    record,
    three_engines,
    with_trouble,
)

from edgevit.reports.verdict import Finding, findings
from runtime.manifest import Delegation, Verification
from runtime.run_record import Comparison, NotMeasured, RunRecord


def flat(value: float, blocks: int = 5, runs: int = 10) -> list[list[float]]:
    return [[value] * runs for _ in range(blocks)]


def engines(*medians: float, **more: object) -> RunRecord:
    items = [
        measurement("abcdef"[i], "litert", 0, i, label=f"L{i}", blocks=flat(m))
        for i, m in enumerate(medians)
    ]
    return record(items, **more)


def speed(run: RunRecord) -> Finding:
    (found,) = [f for f in findings([run]) if f.topic == "speed"]
    return found


def texts(run: RunRecord, level: str) -> list[str]:
    return [f.text for f in findings([run]) if f.level == level]


def test_the_fastest_is_named_with_its_median_and_the_others_ratio_and_spread() -> None:
    comparisons = [
        Comparison(a="b", b="a", ratio=1.25, low=1.2, high=1.3),
        Comparison(a="c", b="a", ratio=2.5, low=2.4, high=2.6),
    ]
    found = speed(engines(4.0, 5.0, 10.0, comparisons=comparisons))
    assert found.level == "good"
    assert found.text == (
        "L0 is the fastest here: 4.00 ms median. L1 takes 1.25× as long (1.20–1.30); "
        "L2 takes 2.50× as long (2.40–2.60)."
    )


def test_a_spread_that_reaches_one_is_no_win() -> None:
    comparisons = [Comparison(a="b", b="a", ratio=1.02, low=0.99, high=1.05)]
    found = speed(engines(4.0, 4.08, 8.0, comparisons=comparisons))
    assert found.level == "info"
    assert found.text.startswith("L0 and L1 cannot be told apart in this run")
    assert "1.02× (0.99–1.05)" in found.text
    assert "L2 takes 2.00× as long" in found.text
    assert "fastest" not in found.text


def test_without_blocks_to_compare_no_spread_is_claimed() -> None:
    a = measurement("a", "litert", 0, 1, label="A", blocks=flat(4.0, blocks=1, runs=50))
    b = measurement("b", "litert", 0, 2, label="B", blocks=flat(6.0, blocks=1, runs=50))
    found = speed(record([a, b], comparisons=[]))
    assert found.level == "info"
    assert "B takes 1.50× as long. The spread of the ratio was not measured." in found.text


def test_a_lone_artefact_is_not_called_fastest() -> None:
    found = speed(engines(4.0))
    assert "fastest" not in found.text
    assert "4.00 ms" in found.text


def test_many_slower_ones_are_summed_up() -> None:
    text = speed(engines(1.0, 2.0, 3.0, 4.0, 5.0)).text
    assert "L1 takes 2.00× as long" in text
    assert "the other 3 take 3.00 to 5.00×" in text


def test_two_models_race_each_for_itself_and_then_between_their_best() -> None:
    items = [
        measurement("a", "litert", 0, 1, label="S/tflite", model="shvit", blocks=flat(4.0)),
        measurement("b", "onnxruntime", 0, 2, label="S/onnx", model="shvit", blocks=flat(3.0)),
        measurement("c", "litert", 0, 3, label="E/tflite", model="effi", blocks=flat(9.0)),
    ]
    found = [f.text for f in findings([record(items)]) if f.topic == "speed"]
    assert found[0].startswith("Between the models, S/onnx is the fastest here: 3.00 ms")
    assert "E/tflite takes 3.00×" in found[0]
    assert found[1].startswith("shvit: S/onnx is the fastest here")
    assert found[2].startswith("effi: E/tflite takes 9.00 ms")


def test_a_wrong_artefact_leads_the_page_and_never_wins() -> None:
    run = with_trouble()
    found = findings([run])
    assert found[0].level == "bad"
    assert found[0].text.startswith("shvit_s1 pte, channels-last gives WRONG NUMBERS")
    assert "0.48" in found[0].text
    assert "blocks.3.attn.softmax" in found[0].text
    assert min(run.measurements, key=lambda m: m.latency.p50).id == "wrong"
    assert "channels-last" not in next(f.text for f in found if f.topic == "speed")


def test_a_failure_without_a_reason_still_gives_its_numbers() -> None:
    m = measurement("a", "litert", 5.0, 1, verification=passed(0.3, status="failed"))
    assert "error/spread 0.3, top-1 agreement 100 %" in " ".join(texts(record([m]), "bad"))


def test_when_every_artefact_is_wrong_none_is_fastest() -> None:
    wrong = passed(0.3, status="failed")
    items = [measurement(i, "litert", 5.0, 1, verification=wrong) for i in "ab"]
    bad = texts(record(items), "bad")
    assert len(bad) == 3
    assert not any("is the fastest" in f.text for f in findings([record(items)]))


def test_all_verified_gives_the_worst_of_the_errors() -> None:
    (text,) = [f.text for f in findings([three_engines()]) if f.topic == "verification"]
    assert text == (
        "All 3 artefacts match torch: largest error/spread 1.6e-6, at least 16 inputs each."
    )


def test_a_quantised_artefact_adds_its_cosine_and_agreement() -> None:
    text = " ".join(f.text for f in findings([with_trouble()]) if f.topic == "verification")
    assert "4 of 6 artefacts match torch" in text
    assert "lowest cosine 0.99966" in text
    assert "lowest top-1 agreement 93.8 %" in text


@pytest.mark.parametrize(
    ("verification", "words"),
    [
        (None, "was not compared with torch"),
        (Verification(status="not_executed", prover="coreml", reason="needs macOS"),
         "was not executed when checked (needs macOS)"),
        (passed(prover="mil_reference"), "was checked by an interpreter only"),
    ],
)  # fmt: skip
def test_what_its_engine_did_not_prove_is_a_warning(verification, words: str) -> None:
    proven = measurement("a", "litert", 5.0, 1)
    other = measurement("b", "coreml", 6.0, 2, label="C", verification=verification)
    found = [f for f in findings([record([proven, other])]) if f.topic == "verification"]
    assert [(f.level, f.text.split(":")[0]) for f in found if f.level == "warn"] == [
        ("warn", f"C {words}" + (", not by the engine itself" if "interpreter" in words else ""))
    ]
    assert not any(f.level == "good" for f in found)
    assert any("1 of 2 artefacts match torch" in f.text for f in found)


def test_islands_are_a_warning_with_the_ops_outside_most_frequent_first() -> None:
    (text,) = [t for t in texts(three_engines(), "warn") if "partitions" in t]
    assert text == (
        "shvit_s1 pte runs in 37 XNNPACK partitions (312 of 401 nodes); ops outside: bmm ×18, "
        "split_with_sizes_copy ×12, native_layer_norm ×9, softmax ×9, expand_copy ×3, 2 more kinds."
    )


@pytest.mark.parametrize(
    ("partitions", "outside", "level"),
    [(1, {}, None), (1, {"select": 1}, "info"), (2, {}, "warn"), (0, {"conv": 9}, "warn")],
)
def test_one_whole_partition_needs_no_word(partitions: int, outside, level: str | None) -> None:
    whole = Delegation(delegate="XNNPACK", partitions=partitions, outside=outside)
    m = measurement("a", "litert", 5.0, 1, delegation=whole)
    found = [f.level for f in findings([record([m])]) if "XNNPACK" in f.text]
    assert found == ([level] if level else [])


def test_an_endless_warm_up_is_a_warning() -> None:
    m = measurement("a", "litert", 5.0, 1, warmup_steady=False, warmup_runs=200, label="A")
    assert any(t.startswith("A never became steady in 200 warm-up runs") for t in texts(
        record([m]), "warn"))  # fmt: skip
    steady = measurement("a", "litert", 5.0, 1)
    assert not any("steady" in f.text for f in findings([record([steady])]))


@pytest.mark.parametrize(("last", "drifts"), [(5.4, False), (5.6, True), (4.4, True)])
def test_drift_between_first_and_last_block(last: float, drifts: bool) -> None:
    blocks = [*flat(5.0, blocks=4), [last] * 10]
    m = measurement("a", "litert", 0, 1, blocks=blocks, label="A")
    assert any("A drifted from 5.00 ms" in t for t in texts(record([m]), "warn")) == drifts


def test_a_long_tail_and_few_samples_are_warnings() -> None:
    tail = measurement("a", "litert", 0, 1, label="A", blocks=[[1.0] * 48 + [3.0, 3.0]] * 3)
    assert any(
        "A has a long tail: p99 3.00 ms is 3.00×" in t for t in texts(record([tail]), "warn")
    )
    few = measurement("a", "litert", 0, 1, label="A", blocks=flat(1.0, blocks=1, runs=9))
    assert any("A has only 9 samples" in t for t in texts(record([few]), "warn"))
    assert texts(engines(1.0), "warn") == []


def test_unequal_threads_and_sizes_are_called_out() -> None:
    items = [
        measurement("a", "litert", 5.0, 1, label="A"),
        measurement("b", "executorch", 3.0, 2, label="B", threads=2),
        measurement("c", "litert", 9.0, 3, label="C", input_shape=[1, 256, 256, 3]),
        measurement("d", "litert", 9.0, 3, label="D", input_shape=[1, 224, 224, 3]),
    ]
    warned = texts(record(items), "warn")
    assert (
        "The artefacts ran with different thread counts (1 thread: A, C and D; 2 threads: B)."
        in (warned)
    )
    assert "The artefacts of shvit_s1 take inputs of different size." in warned
    alike = [items[0], items[3]]  # NCHW and NHWC of one size
    assert texts(record(alike), "warn") == []


@pytest.mark.parametrize(("load", "busy"), [(0.9, False), (1.1, True), (None, False)])
def test_a_busy_device_is_a_warning(load: float | None, busy: bool) -> None:
    run = engines(4.0, environment=environment(load_average=load, cores_logical=2))
    assert any("busy" in t for t in texts(run, "warn")) == busy


def test_random_weights_and_what_was_not_measured_are_said() -> None:
    run = three_engines()
    assert "The weights are random: fit for latency only." in texts(run, "warn")
    assert texts(run, "info") == [
        "shvit_s1 coreml (Core ML) was not measured: Core ML runs on macOS only; this is Linux."
    ]


def test_nothing_measured() -> None:
    absent = [NotMeasured(id="a", label="A", file="a.pte", reason="error 0x12 at load")]
    found = findings([record([], not_measured=absent, comparisons=[])])
    assert [(f.level, f.text) for f in found] == [
        ("bad", "Nothing was measured."),
        ("info", "A (a.pte) was not measured: error 0x12 at load."),
    ]


def test_several_records_say_what_is_common_once_and_claim_no_spread_between_them() -> None:
    found = findings([three_engines(), raspberry()])
    said = [f.text for f in found]
    assert said[0].startswith("On AMD EPYC 9654: shvit_s1 tflite is the fastest here: 5.65 ms")
    assert said[1].startswith("On Raspberry Pi 5: shvit_s1 tflite is the fastest here: 54.8 ms")
    (across,) = [f.text for f in found if f.topic == "across"]
    assert "9.71× that" in across
    assert "not interleaved" in across
    assert "they have no spread" in across
    assert said.count("The weights are random: fit for latency only.") == 1
    assert "Raspberry Pi 5: The CPU governor was 'ondemand', not 'performance'." in said
    assert "All 6 artefacts match torch" in " ".join(said)


def test_findings_leave_the_records_as_they_were() -> None:
    run = with_trouble()
    before = run.model_dump_json()
    findings([run])
    assert run.model_dump_json() == before
