"""The journal of a search: what it keeps through a cut, and whom it refuses."""

from __future__ import annotations

import pytest

from converters.slim.errors import SlimError
from converters.slim.journal import NAME, Journal
from converters.slim.options import SlimOptions, latency_ms, size_m

BEGUN = {"model": "a", "target_ms": 2.0, "labels": ("x", "y")}


def test_what_was_kept_is_there_again_number_for_number(tmp_path):
    first = Journal(tmp_path, BEGUN)
    assert first.get("predicted", "k") is None
    for place, value in enumerate((0.1 + 0.2, 1e-300, 3.0)):
        first.keep("predicted", f"k{place}", value)
    again = Journal(tmp_path, BEGUN)
    assert [again.get("predicted", f"k{place}") for place in range(3)] == [0.1 + 0.2, 1e-300, 3.0]
    assert again.get("measured", "k0") is None


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_cut_within_a_line_costs_that_line_only(tmp_path, cut):
    journal = Journal(tmp_path, BEGUN)
    journal.keep("predicted", "one", 1.0)
    whole = (tmp_path / NAME).read_bytes()
    journal.keep("predicted", "two", 2.0)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[: len(content) - cut])
    again = Journal(tmp_path, BEGUN)
    assert again.get("predicted", "one") == 1.0 and again.get("predicted", "two") is None
    assert (tmp_path / NAME).read_bytes() == whole
    again.keep("predicted", "two", 3.0)
    assert Journal(tmp_path, BEGUN).get("predicted", "two") == 3.0


def test_a_cut_within_the_first_line_begins_anew(tmp_path):
    Journal(tmp_path, BEGUN)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-3])
    Journal(tmp_path, BEGUN).keep("predicted", "one", 1.0)
    assert Journal(tmp_path, BEGUN).get("predicted", "one") == 1.0


def test_another_run_is_refused_by_what_differs(tmp_path):
    Journal(tmp_path, BEGUN)
    with pytest.raises(SlimError, match=r"begun otherwise: target ms was 2\.0, now 3\.0\. ") as e:
        Journal(tmp_path, BEGUN | {"target_ms": 3.0})
    assert e.value.exit_code == 2
    with pytest.raises(SlimError, match="seed was None, now 1"):
        Journal(tmp_path, BEGUN | {"seed": 1})


@pytest.mark.parametrize("content", [b"not json\n", b"[1]\n", b"{}\n", b'{"kind": "predicted"}\n'])
def test_a_damaged_journal_is_said(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(SlimError, match=r"journal\.jsonl is damaged: remove"):
        Journal(tmp_path, BEGUN)


def test_a_damaged_line_further_down_is_said(tmp_path):
    Journal(tmp_path, BEGUN).keep("predicted", "one", 1.0)
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"kind": "predicted", "key": "two"}\n')
    with pytest.raises(SlimError, match="is damaged"):
        Journal(tmp_path, BEGUN)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("2ms", 2), ("2 ms", 2), ("1.5MS", 1.5), ("800us", 0.8), ("800µs", 0.8), ("0.02s", 20)],
)
def test_latencies_are_read(text, ms):
    assert latency_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "2", "ms", "-2ms", "2 m", "0ms", "nan ms", "1e999ms"])
def test_what_is_no_latency_is_said(text):
    with pytest.raises(SlimError, match="latency"):
        latency_ms(text)


def test_sizes_are_read():
    assert [size_m(t) for t in ("1.5M", "900k", "1500000", "2G")] == [1.5, 0.9, 1.5, 2000]
    with pytest.raises(SlimError, match="is not a size in parameters"):
        size_m("1.5 MB")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective": "size"}, "unknown objective 'size', expected latency or mes"),
        ({"objective": "mes"}, "give --target-size too"),
        ({"target_size_m": 1.0}, "goes with --objective mes only"),
        ({"target_ms": 0.0}, "must be above 0 ms"),
        ({"tolerance": 2.0}, r"tolerance must be 0\.001 to 1, got 2"),
        ({"jobs": 0}, "jobs must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(changed, said):
    with pytest.raises(SlimError, match=said):
        SlimOptions(**{"target_ms": 1.0, "on": "onnx"} | changed).check()
