"""What a person at a terminal sees on stderr while a conversion runs."""

from __future__ import annotations

import os
import sys

from cli_tools import screen_of

from converters.progress import Event, Stage
from edgevit.cli.convert_progress import drawn

EVENTS = [
    Event(Stage.LOAD),
    Event(Stage.LOAD, seconds=0.1),
    Event(Stage.LOWER, "onnx"),
    Event(Stage.LOWER, "onnx", seconds=0.2),
    Event(Stage.VERIFY, "onnx"),
    Event(Stage.VERIFY, "onnx", seconds=0.1, detail="not_executed"),
    Event(Stage.LOWER, "coreml", error="no [/such] op"),
]


def test_a_line_per_stage_on_a_terminal(monkeypatch, capsys):
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(ours, "rb", buffering=0):
        # In the test itself: pytest's capture patches too.
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            with drawn() as progress:
                for event in EVENTS:
                    progress(event)
        seen = screen_of(ours)
    for line in ("load the model", "convert onnx", "verify onnx (not executed)"):
        assert line in seen
    assert "convert coreml: failed" in seen and "such" not in seen
    assert capsys.readouterr().out == ""


def test_silence_where_nobody_watches(capsys):
    with drawn() as progress:
        for event in EVENTS:
            progress(event)
    assert capsys.readouterr() == ("", "")
