"""Folders of pictures: both layouts, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.data import DataError, open_dataset


def write(root: Path, *names: str) -> Path:
    """PNG files of noise, each its own; the last part of a name is the file's."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(noise).save(file)
    return root


def many(folder: str, count: int) -> list[str]:
    return [f"{folder}/{i:02d}.png" for i in range(count)]


def files_of(dataset, root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in dataset.files]


def test_one_folder_a_class_split_here(tmp_path):
    root = write(tmp_path, *many("dog", 10), *many("cat/deep/er", 5), "Bird/1.png", "Bird/2.PNG")
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / ".thumbnails").mkdir()
    (root / "cat" / "._1.png").write_text("what macOS leaves behind")
    whole = open_dataset(str(root), "all")
    assert whole.classes == ("Bird", "cat", "dog") and len(whole) == 17
    for index, file in enumerate(files_of(whole, root)):
        picture, label = whole[index]
        np.testing.assert_array_equal(picture, np.asarray(Image.open(root / file)))
        assert picture.flags.writeable and whole.classes[label] == file.split("/")[0]
    train, test = (open_dataset(str(root), split) for split in ("train", "test"))
    assert sorted(files_of(train, root) + files_of(test, root)) == sorted(files_of(whole, root))
    assert np.bincount(test.labels).tolist() == [1, 1, 2]
    assert files_of(open_dataset(str(root), "test", seed=1), root) != files_of(test, root)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_split_that_was_made_is_taken(tmp_path, held_out):
    names = [*many("train/cat", 3), *many("train/dog", 2), f"{held_out}/cat/x.png"]
    root = write(tmp_path, *names, f"{held_out}/dog/y.png")
    train, test, whole = (open_dataset(str(root), s) for s in ("train", "test", "all"))
    assert files_of(test, root) == [f"{held_out}/cat/x.png", f"{held_out}/dog/y.png"]
    assert len(train) == 5 and files_of(whole, root) == files_of(train, root) + files_of(test, root)
    assert train.classes == test.classes == whole.classes == ("cat", "dog")
    assert train.labels == (0, 0, 0, 1, 1)


def test_val_comes_before_a_test_without_labels(tmp_path):
    """As in ImageNet."""
    root = write(
        tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png", "test/3.png"
    )
    assert files_of(open_dataset(str(root), "test"), root) == ["val/a/2.png", "val/b/2.png"]


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ((), "no class folders; expected FOLDER/CLASS/PICTURE"),
        (("1.png", "2.png"), "2 pictures and no class folders; expected"),
        (("cat/1.png", "cat/2.png"), "expected at least 2 classes, got 1, only 'cat'"),
        (("cat/1.png", "cat/2.png", "dog/1.png"), "class 'dog' has 1 picture, and a split"),
        (("train/a/1.png", "train/b/1.png"), "has train/, and a split takes train/ and val/"),
        (
            ("train/a/1.png", "train/b/1.png", "val/a/1.png"),
            r"must have the same class folders, only .*train has 'b'$",
        ),
        (
            ("train/a/1.png", "val/a/1.png", "val/b/1.png", "val/c/1.png"),
            r"only .*val has 'b' \(and 1 more\)",
        ),
    ],
)
def test_wrong_layouts(tmp_path, names, part):
    with pytest.raises(DataError, match=part):
        open_dataset(str(write(tmp_path, *names)), "train")


def test_a_class_without_pictures(tmp_path):
    root = write(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    (root / "empty").mkdir()
    (root / "empty" / "readme.md").write_text("soon")
    with pytest.raises(DataError, match=r"class 'empty' has no pictures: .*empty holds none of"):
        open_dataset(str(root), "all")


@pytest.mark.parametrize("how", ["text", "cut", "gone", "png"])
def test_an_unreadable_picture_is_named_when_it_is_met(tmp_path, how):
    root = write(tmp_path, "a/1.png", "b/1.png")
    bad = root / "b" / "1.png"
    data = bad.read_bytes()
    if how == "text":
        bad.write_text("<html>not found</html>")
    elif how == "cut":
        bad.write_bytes(data[: len(data) // 2])
    elif how == "png":
        bad.write_bytes(data[:40] + bytes(20) + data[60:])
    dataset = open_dataset(str(root), "all")
    if how == "gone":
        bad.unlink()
    dataset[0]
    part = "does not exist" if how == "gone" else "cannot read the picture"
    with pytest.raises(DataError, match=part) as caught:
        dataset[1]
    assert str(bad) in str(caught.value) and caught.value.exit_code == 2


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    root = write(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"1\.png: Image size"):
        open_dataset(str(root), "all")[0]


def test_a_path_mistyped(tmp_path):
    write(tmp_path / "flowers", "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=f"Did you mean '{tmp_path}/flowers'"):
        open_dataset(str(tmp_path / "flowrs"))
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(DataError, match="cannot take data from the file"):
        open_dataset(str(tmp_path / "list.csv"))


def test_a_folder_called_like_a_dataset_needs_its_path(tmp_path, monkeypatch):
    write(tmp_path / "digits", *many("x", 5), *many("y", 5))
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("digits", "all")) == 1797
    assert len(open_dataset("./digits", "all")) == 10
