"""The command line inside the test process, where torch is imported already."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_tools import Answer, write_model

from edgevit.cli import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a person who keeps tinynet.py there."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(write_model(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    return folder


@pytest.fixture
def cli(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Answer]]:
    """Call `edgevit` with these words in `home`; both descriptors are captured."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["edgevit", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err, out + err
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield call
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
