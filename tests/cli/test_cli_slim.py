"""edgevit slim: what it refuses before anything is measured, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_tools import edgevit

from converters.jobs.progress import Event, State
from edgevit.cli.job_progress import drawn
from edgevit.cli.slim import BEFORE

ASKED = ["--on", "onnx", "--data", "digits", "-o", "OUT"]


def refused(answer) -> str:
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err
    return answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shvit_s1", "--target-latency", "fast"], "'fast' is not a latency; expected for example"),
        (["shvit_s1", "--target-latency", "0ms"], "must be above 0, got '0ms'"),
        (["vit_tiny", "--target-latency", "2ms"], "models of the family 'vit' cannot be slimmed"),
        (["shvit_s", "--target-latency", "2ms"], "unknown model 'shvit_s'"),
        (["efficientformer_l1", "--target-latency", "2ms", "--no-supernet"], "with --weights"),
        (["shvit_s1", "--target-latency", "2ms", "--objective", "mes"], "give --target-size too"),
        (["shvit_s1", "--target-latency", "2ms", "--objective", "size"], "unknown objective"),
        (["shvit_s1", "--target-latency", "2ms", "--target-size", "2M"], "goes with --objective"),
        (["shvit_s1", "--target-latency", "2ms", "--token-file", "t"], "only with --device"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(cli, home, words, said):
    assert said in refused(cli("slim", *words, *ASKED))
    assert not list(home.glob("OUT*"))


def test_errors_are_json_where_json_was_asked_for(cli, home):
    answer = cli("slim", "vit_tiny", "--target-latency", "2ms", *ASKED, "--json")
    assert answer.code == 2 and "cannot be slimmed" in json.loads(answer.out)["error"]


def test_a_result_that_is_there_is_kept(cli, home):
    (home / "OUT").mkdir()
    (home / "OUT" / "mine").write_text("")
    said = refused(cli("slim", "shvit_s1", "--target-latency", "2ms", *ASKED))
    assert "OUT exists already" in said
    said = refused(cli("slim", "shvit_s1", "--target-latency", "2ms", *ASKED, "--force"))
    assert "is no slimming of edgevit (no slim.json)" in said
    assert (home / "OUT" / "mine").is_file()


def test_whatever_cuts_it_off_says_how_to_go_on(capsys):
    with pytest.raises(KeyboardInterrupt), drawn(Path("OUT"), BEFORE) as tell:
        tell(Event("pictures", State.DONE, 1.0))
        tell(Event("search", State.RUNNING, 0.5, "3 candidates"))
        raise KeyboardInterrupt
    assert "kept in OUT.partial: the same command goes on from there" in capsys.readouterr().err


def test_nothing_begun_is_nothing_to_go_on_from(capsys):
    with pytest.raises(KeyboardInterrupt), drawn(Path("OUT"), BEFORE) as tell:
        tell(Event("pictures", State.DONE, 1.0))
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_the_verb_needs_torch_only_when_it_works(tmp_path):
    answer = edgevit("slim", "--help", cwd=tmp_path)
    assert answer.code == 0 and "--json" in answer.out
