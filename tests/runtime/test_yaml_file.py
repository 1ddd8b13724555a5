"""YAML files of people: what is wrong with one is a sentence with its name, whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import RuntimeFault
from runtime.yaml_file import read_yaml


def test_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [1, 2.5, yes, null, é]\n", encoding="utf-8")
    assert read_yaml(path) == {"a": [1, 2.5, True, None, "é"]}
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "cannot read "),
        (b"a: [", " is not YAML: while parsing"),
        (b"a: !!python/object/apply:os.getcwd []", " is not YAML: could not determine"),
        (b"made: 2026-13-41", " is not YAML: month must be in 1..12"),
        (b"[" * 5000, " is not YAML: maximum recursion"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(RuntimeFault) as found:
        read_yaml(path)
    assert said in str(found.value) and str(path) in str(found.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"cannot read .*gone\.yaml: No such file or directory"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(RuntimeFault, match="Is a directory"):
        read_yaml(tmp_path)
