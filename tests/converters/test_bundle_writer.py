"""A bundle is written whole or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import ROOT, temporary_folders

from converters import bundle_writer
from converters.bundle_writer import check_goal, full_disk, staging
from converters.errors import ConvertError


def make_bundle(folder: Path, word: str) -> Path:
    """As little as makes a folder a bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"edgevit_version": word}))
    return folder


def word_of(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["edgevit_version"]


def test_a_new_bundle_and_its_parents(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    with staging(out, force=False) as folder:
        assert folder.is_dir() and not out.exists()
        make_bundle(folder, "new")
    assert word_of(out) == "new"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_what_is_raised_takes_everything_away(tmp_path):
    for raised in (ValueError("no"), KeyboardInterrupt()):
        out = tmp_path / "a" / "b" / "out"
        with pytest.raises(type(raised)), staging(out, force=False) as folder:
            make_bundle(folder, "new")
            raise raised
        assert list(tmp_path.iterdir()) == []


def test_a_parent_that_was_there_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no"), staging(tmp_path / "a" / "out", force=False):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_an_error_of_the_model_is_not_one_of_the_disk(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="of the model"), staging(out, force=False):
        raise FileNotFoundError("labels of the model")


def test_force_replaces_and_a_failure_keeps_the_old(tmp_path):
    out = make_bundle(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="no"), staging(out, force=True) as folder:
        make_bundle(folder, "new")
        raise ValueError("no")
    assert word_of(out) == "old"
    with staging(out, force=True) as folder:
        make_bundle(folder, "new")
        assert word_of(out) == "old", "until the new one is whole"
    assert word_of(out) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_old_bundle_comes_back_where_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    out = make_bundle(tmp_path / "out", "old")
    rename = Path.rename

    def refuse(self, target):
        if self.name == bundle_writer.NEW:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    full = pytest.raises(ConvertError, match="the disk is full; make room")
    with full, staging(out, force=True) as folder:
        make_bundle(folder, "new")
    assert word_of(out) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_waits_for_the_swap(tmp_path, monkeypatch):
    """Between the two renames there is no bundle at the goal: no moment to stop."""
    out = make_bundle(tmp_path / "out", "old")
    rename = Path.rename

    def interrupted(self, target):
        os.kill(os.getpid(), signal.SIGINT)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with staging(out, force=True) as folder:
        make_bundle(folder, "new")
    assert word_of(out) == "new"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from converters.bundle_writer import staging
rename = Path.rename
def killed(self, target):
    if self.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = killed
with staging(Path(sys.argv[2]), force=True) as folder:
    (folder / "manifest.json").write_text('{"edgevit_version": "new"}')
"""


def test_the_next_conversion_mends_what_a_kill_left(tmp_path):
    """Killed between the two renames: the worst moment there is."""
    out = make_bundle(tmp_path / "out", "old")
    other = make_bundle(tmp_path / ".edgevit-out-more-abcdefgh", "of another goal")
    command = [sys.executable, "-c", KILLED, str(ROOT), str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists() and len(temporary_folders(tmp_path)) == 2
    with pytest.raises(ConvertError, match="exists already"), staging(out, force=False):
        pass
    assert word_of(out) == "old"
    assert temporary_folders(tmp_path) == [other.name]


def test_a_conversion_at_work_is_left_alone(tmp_path):
    with staging(tmp_path / "out", force=False) as first:
        make_bundle(first, "first")
        with pytest.raises(ValueError, match="no"), staging(tmp_path / "out", force=False):
            raise ValueError("no")
        assert word_of(first) == "first"
    assert word_of(tmp_path / "out") == "first"


def test_two_that_replace_the_same_bundle(tmp_path):
    out = make_bundle(tmp_path / "out", "old")
    with staging(out, force=True) as slow:
        make_bundle(slow, "slow")
        with staging(out, force=True) as quick:
            make_bundle(quick, "quick")
        assert word_of(out) == "quick"
    assert word_of(out) == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_no_bundle_takes_the_place_of_what_came_meanwhile(tmp_path):
    out = tmp_path / "out"
    refused = pytest.raises(ConvertError, match="holds other things than a bundle")
    with refused, staging(out, force=True) as folder:
        make_bundle(folder, "new")
        out.mkdir()
        (out / "photo.jpg").write_text("mine")
    assert (out / "photo.jpg").read_text() == "mine"


def test_a_linked_parent_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with staging(tmp_path / "link" / "out", force=False) as folder:
        make_bundle(folder, "new")
    assert word_of(tmp_path / "disk" / "out") == "new"


def test_the_umask_rules(tmp_path):
    before = os.umask(0o027)
    try:
        with staging(tmp_path / "out", force=False) as folder:
            file = make_bundle(folder / "deep", "new") / "manifest.json"
            file.chmod(0o600)  # as coremltools leaves its model
    finally:
        os.umask(before)
    out = tmp_path / "out"
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (out, out / "deep", out / "deep" / file.name)]
    assert [f"{m:o}" for m in modes] == ["750", "750", "640"]


@pytest.mark.parametrize(
    "content", ['{"manifest_version": 3}', "[]", "{", "\udc80"], ids=["other", "list", "cut", "raw"]
)
def test_a_manifest_of_another_kind_is_no_bundle(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ConvertError, match="holds other things than a bundle"):
        check_goal(tmp_path, force=True)


def test_an_empty_folder_may_be_replaced(tmp_path):
    check_goal(tmp_path, force=True)
    with pytest.raises(ConvertError, match="exists already"):
        check_goal(tmp_path, force=False)


def test_a_full_disk_is_found_behind_other_errors(tmp_path):
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("writer failed") from error
    except RuntimeError as error:
        assert full_disk(error, tmp_path) == (errno.ENOSPC, tmp_path)
    assert full_disk(RuntimeError("writer failed"), tmp_path) is None
    assert full_disk(OSError(errno.ENOENT, "gone"), tmp_path, tmp_path / "gone") is None
