from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runtime.digest import sha256_file, sha256_of, sha256_tree, size_of
from runtime.errors import RuntimeFault


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "model.mlpackage"
    (folder / "Data" / "weights").mkdir(parents=True)
    (folder / "Manifest.json").write_bytes(b"{}")
    (folder / "Data" / "weights" / "weight.bin").write_bytes(b"\1\2\3")
    return folder


def test_file_digest_is_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"edge")
    assert sha256_file(path) == sha256_of(path) == hashlib.sha256(b"edge").hexdigest()
    assert size_of(path) == 4
    with pytest.raises(RuntimeFault, match="cannot read"):
        sha256_file(tmp_path / "gone")


def test_tree_digest_is_the_documented_one(package):
    def digest(data):
        return hashlib.sha256(data).hexdigest()

    lines = (
        f"Data/weights/weight.bin\0{digest(bytes([1, 2, 3]))}\x003\n"
        f"Manifest.json\0{digest(b'{}')}\x002\n"
    )
    assert sha256_of(package) == sha256_tree(package) == digest(lines.encode())
    assert size_of(package) == 5


@pytest.mark.parametrize("change", ["bytes", "name", "new", "gone"])
def test_tree_digest_sees_every_change(package, change):
    before = sha256_tree(package)
    file = package / "Data" / "weights" / "weight.bin"
    if change == "bytes":
        file.write_bytes(b"\1\2\4")
    elif change == "name":
        file.rename(file.with_name("other.bin"))
    elif change == "new":
        (package / "extra").touch()
    else:
        file.unlink()
    assert sha256_tree(package) != before


def test_tree_refuses_symbolic_links(package):
    Path(package / "link").symlink_to(package / "Manifest.json")
    for call in (sha256_tree, size_of):
        with pytest.raises(RuntimeFault, match="symbolic link"):
            call(package)
