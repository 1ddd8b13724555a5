"""What `edgevit convert` says to a mistake: expected, got, what to do; exit 2; nothing written."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from cli_tools import TINY, edgevit, temporary_folders, write_model

from edgevit.models import create_model


def assert_refused(answer, *parts: str) -> None:
    """One error on stderr with these parts, nothing on stdout, exit 2."""
    assert (answer.code, answer.out) == (2, ""), (answer.out, answer.err)
    assert answer.err.startswith("error: ") and answer.err.count("error: ") == 1
    for part in parts:
        assert part in answer.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--to", "tflit"],
            ["unknown target 'tflit' (did you mean 'tflite'?). Expected 'all' or some of: coreml,"],
        ),
        (["--to", "all,qqq"], ["unknown target 'qqq'. Expected 'all' or some of: "]),
        (["--to", ""], ["unknown target ''."]),
        (
            ["--precision", "pf16"],
            ["unknown precision 'pf16' (did you mean 'fp16'?). Expected one of: fp32, fp16, w8"],
        ),
        (
            ["--precision", "fp16"],
            [
                "target 'executorch' has no precision 'fp16': XNNPACK's float16 graph answers",
                "wrongly where the CPU has no float16 arithmetic",
                "Expected one of fp32; leave --precision out, or name the targets without it",
            ],
        ),
        (
            ["--to", "onnx", "--precision", "w8a8"],
            ["target 'onnx' has no precision 'w8a8': no converter here makes it. Expected one of"],
        ),
        (["--labels", "gone.txt"], ["no such labels file: gone.txt"]),
        (
            ["--labels", "."],
            ["cannot read the labels .: ", "expected UTF-8 text, one label a line"],
        ),
        (["--to", "onnx", "--size", "0"], ["--size must be a positive number of pixels, got 0"]),
        (["--to", "onnx", "--input", "int8"], ["--input must be float32 or uint8, got 'int8'"]),
    ],
)
def test_wrong_options(cli, home, words, parts):
    assert_refused(cli("convert", TINY, "-o", "out", *words), *parts)
    assert sorted(p.name for p in home.iterdir() if p.suffix != ".pyc") == ["tinynet.py"]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("shvit_s9", ["unknown model 'shvit_s9'; did you mean shvit_s1, ", "`edgevit models`"]),
        ("timm:shvit_s9", ["timm cannot build 'shvit_s9'", "timm:shvit_s1"]),
        ("absent:net", ["cannot import 'absent' for model 'absent:net': expected package.module:"]),
        ("tinynet:nett", ["'tinynet' has no 'nett'; it has: ", "net"]),
        ("tinynet:no_module", ["'tinynet:no_module' gave a int, expected a torch.nn.Module"]),
        ("tinynet:broken", ["ValueError: the weights of [/this] model are elsewhere"]),
        ("tinynet:features", ["must give logits of shape (1, classes), got (1, 8, 222, 222)"]),
    ],
)
def test_wrong_model(cli, home, model, parts):
    assert_refused(cli("convert", model, "--to", "onnx", "-o", "new/out"), *parts)
    assert not (home / "new").exists() and temporary_folders(home) == []


@pytest.mark.parametrize("count", [0, -1])
def test_class_counts_below_one(cli, count):
    words = ["--classes", count, "--to", "onnx", "-o", "out"]
    assert_refused(cli("convert", "shvit_s1", *words), f"expected at least 1 class, got {count}")


def test_class_count_of_a_module_is_its_own(cli):
    answer = cli("convert", TINY, "--classes", 7, "--to", "onnx", "-o", "out")
    assert_refused(answer, f"'{TINY}' has 10 classes and --classes says 7")


@pytest.mark.parametrize(("text", "count"), [("cat\n\ndog\n", 2), ("", 0)])
def test_labels_must_be_as_many_as_classes(cli, home, text, count):
    (home / "names.txt").write_text(text)
    answer = cli("convert", TINY, "--labels", "names.txt", "--to", "onnx", "-o", "out")
    assert_refused(answer, f"names.txt has {count} labels, '{TINY}' has 10 classes")
    assert not (home / "out").exists()


def test_weights_of_another_model(cli, home):
    torch.save(create_model("shvit_s2").state_dict(), home / "s2.pth")
    words = ["--weights", "s2.pth", "--to", "onnx", "-o", "out"]
    assert_refused(
        cli("convert", "shvit_s1", *words),
        "s2.pth does not fit the model; nothing was loaded\n",
        " mis-shaped: ",
        "(expected (224,), got (308,)), and ",
        "Weights of another model? The file looks like shvit_s2 (timm layout)",
    )
    answer = cli("convert", TINY, *words)
    assert_refused(
        answer, " missing: a.weight, a.bias", " unexpected: ", "Weights of another model?"
    )
    assert not (home / "out").exists()


def test_truncated_weights(cli, home):
    torch.save(torch.nn.Linear(300, 300).state_dict(), home / "whole.pth")
    data = (home / "whole.pth").read_bytes()
    (home / "half.pth").write_bytes(data[: len(data) // 2])
    answer = cli("convert", TINY, "--weights", "half.pth", "--to", "onnx", "-o", "out")
    assert_refused(answer, "half.pth is no readable torch.save file", "it may be cut short")


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, proof: str) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (self.proof,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_weights_file_is_not_run(cli, home, form):
    content = {"head.weight": torch.zeros(1), "more": Payload(str(home / "it ran"))}
    if form == "torch":
        torch.save(content, home / "evil.pth")
    else:
        (home / "evil.pth").write_bytes(pickle.dumps(content["more"], protocol=2))
    answer = cli("convert", TINY, "--weights", "evil.pth", "--to", "onnx", "-o", "out")
    assert_refused(answer, "evil.pth is refused: the file wants to run code (posix.mkdir)")
    assert not (home / "it ran").exists() and not (home / "out").exists()
    if form == "pickle":  # the payload works where somebody does run it
        pickle.loads((home / "evil.pth").read_bytes())
        assert (home / "it ran").exists()


def test_existing_output_is_refused_and_kept(cli, home):
    (home / "out").mkdir()
    answer = cli("convert", TINY, "-o", "out")
    assert_refused(answer, f"{home / 'out'} exists already; give another folder, or --force")


def test_force_replaces_bundles_only(cli, home):
    (home / "file").write_text("mine")
    (home / "photos").mkdir()
    (home / "photos" / "cat.jpg").write_text("mine")
    (home / "extension").mkdir()
    (home / "extension" / "manifest.json").write_text(json.dumps({"manifest_version": 3}))
    (home / "link").symlink_to("photos")
    for name, part in [
        ("file", "is not a folder; --force replaces bundles only"),
        ("photos", "holds other things than a bundle (no manifest.json of edgevit)"),
        ("extension", "holds other things than a bundle (no manifest.json of edgevit)"),
        ("link", "is a symbolic link; --force replaces bundles only"),
    ]:
        assert_refused(cli("convert", TINY, "-o", name, "--force"), part)
    assert (home / "photos" / "cat.jpg").read_text() == (home / "file").read_text() == "mine"
    assert (home / "link").is_symlink() and temporary_folders(home) == []


def test_places_that_take_no_folder(cli, home):
    (home / "file").write_text("mine")
    answer = cli("convert", TINY, "--to", "onnx", "-o", "file/out")
    assert_refused(answer, f"cannot write the bundle {home / 'file' / 'out'}: a part of the path")
    answer = cli("convert", TINY, "--to", "onnx", "-o", "x" * 300)
    assert_refused(answer, "cannot write the bundle", "name too long")


def test_one_json_object_for_an_error_in_a_process_of_its_own(tmp_path):
    home = write_model(tmp_path)
    answer = edgevit(
        "convert", "efficientformer_l9", "--to", "onnx", "-o", "out", "--json", cwd=home
    )
    assert answer.code == 2
    found = answer.json()
    assert found["exit_code"] == 2
    assert found["error"].startswith("unknown model 'efficientformer_l9'; did you mean eff")
    assert answer.err == f"error: {found['error']}\n"
    assert not (home / "out").exists() and temporary_folders(home) == []
