"""edgevit train: what it prints and leaves, its errors, Ctrl-C and --resume."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import CLASSES, ROOT, TINY, edgevit, finish, hide, start, write_model
from safetensors.torch import load_file, save_file

from edgevit.data import open_dataset
from edgevit.models import create_model

PATIENCE_S = 120


@pytest.fixture
def pictures(home: Path) -> str:
    """Ten digits of each class, and their half that is held out, in an .npz."""
    data = open_dataset("digits", "train", size=32)
    chosen: list[int] = []
    labels = np.array([data[i][1] for i in range(400)])
    for label in range(CLASSES):
        chosen += list(np.flatnonzero(labels == label)[:10])
    images = np.stack([data[int(i)][0] for i in chosen])
    np.savez(home / "some.npz", images=images, labels=labels[chosen])
    return "some.npz"


def test_what_it_leaves_and_says(cli, home, pictures):
    words = ["train", TINY, "--data", pictures, "-o", "made/ckpt", "--epochs", 2, "--batch", 16]
    answer = cli(*words, "--seed", 3)
    assert answer.code == 0 and answer.err == ""
    record = json.loads((home / "made/ckpt/train.json").read_text())
    scores = record["best"]["scores"]
    assert scores["count"] == 20 and record["settings"]["seed"] == 3
    assert record["settings"]["train_examples"] == 80 and record["settings"]["data"] == pictures
    assert record["preprocess"]["height"] == 32  # the model's own
    first, *rest = answer.out.splitlines()
    assert first.startswith(f"Held out: top-1 {5 * scores['top1']:.2f} % ({scores['top1']} of 20)")
    if record["best"]["ema"]:
        assert "Note: the moving average of the weights was better" in answer.out
    assert rest[-1] == (
        "Next: edgevit convert tinynet:net --weights made/ckpt/model.safetensors --classes 10 "
        "--size 32 --labels made/ckpt/labels.txt -o made/ckpt-bundle"
    )
    again = cli(*words, "--json")
    assert again.code == 2
    assert again.json()["error"] == (
        "made/ckpt exists already; give another folder, or --resume to go on with the run in it"
    )
    other = cli(*words, "--resume", "--lr", 0.5)
    assert other.code == 2 and "seed was 3, now 0" in other.err and "lr was 0.002, now" in other.err
    told = cli(*words, "--seed", 3, "--resume", "--json")
    assert told.code == 0 and told.err == ""
    assert told.json()["best"]["scores"] == scores and told.json()["finished"] is True


def test_fine_tuning_gives_another_head_and_says_so(cli, home, pictures):
    torch.manual_seed(1)
    pretrained = create_model("shvit_s1", num_classes=7).state_dict()
    save_file(pretrained, home / "seven.safetensors")
    answer = cli(
        *["train", "shvit_s1", "--data", pictures, "-o", "ckpt", "--epochs", 1, "--batch", 16],
        *["--weights", "seven.safetensors", "--lr", 1e-6, "--json"],
    )
    assert answer.code == 0, answer.err
    assert any("7 classes" in note for note in answer.json()["notes"])
    # Pictures of 32 pixels: twice their side, not the model's 224.
    assert answer.json()["next"][answer.json()["next"].index("--size") + 1] == "64"
    tuned = load_file(home / "ckpt" / "model.safetensors")
    assert tuned["head.l.weight"].shape == (10, 320)
    name = "stages.1.blocks.0.mixer.m.qkv.c.weight"
    assert (tuned[name] - pretrained[name]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([TINY, "--data", "digit"], "Did you mean 'digits'?"),
        (["shvit_s0", "--data", "digits"], "did you mean shvit_s1"),
        (["net.pt2", "--data", "digits"], "an exported program, which cannot be trained"),
        ([TINY, "--data", "glyphs:12:1"], "has 10 classes and --classes says 12"),
        ([TINY, "--data", "some.npz", "--batch", "16", "--lr", "nan"], "lr must be at least 0"),
        ([TINY, "--data", "some.npz", "--weights", "no.pth"], "no.pth does not exist"),
        (["efficientformer_l1", "--data", "some.npz", "--size", "50"], "50"),
        ([TINY, "--data", "some.npz", "--resume"], "new holds no run to resume"),
    ],
)
def test_bad_input(cli, home, pictures, words, said):
    answer = cli("train", *words, "-o", "new")
    assert answer.code == 2 and answer.out == ""
    assert said in answer.err and answer.err.startswith("error: ")
    assert not (home / "new").exists()


def test_a_learning_rate_that_blows_it_up(cli, home, pictures):
    words = ["train", TINY, "--data", pictures, "-o", "new", "--batch", 16, "--lr", 1e38]
    answer = cli(*words)
    assert (
        answer.code == 1 and "the loss became" in answer.err and "try a smaller one" in answer.err
    )


def test_without_accelerate(tmp_path):
    home = write_model(tmp_path)
    answer = edgevit(
        *["train", TINY, "--data", "digits", "-o", "new"],
        cwd=home, env=hide(tmp_path / "site", "accelerate"),
    )  # fmt: skip
    assert answer.code == 2 and answer.out == ""
    assert answer.err == (
        "error: this verb needs the package 'accelerate', which is not installed. "
        "Install it with: pip install 'edgevit[train]'\n"
    )
    assert not (home / "new").exists()


@pytest.mark.slow
def test_ctrl_c_and_resume(tmp_path):
    home = write_model(tmp_path)
    words = ["train", TINY, "--data", "digits", "-o", "ckpt", "--epochs", 3, "--batch", 8]
    process = start(*words, cwd=home)
    deadline = time.monotonic() + PATIENCE_S
    while not (home / "ckpt" / "log.csv").exists():  # the first epoch is over
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    answer = finish(process, timeout=60)
    assert answer.code == 130 and answer.out == ""
    assert answer.err.startswith("error: interrupted ")
    assert answer.err.endswith("the state is saved in ckpt, and --resume goes on from there\n")
    assert (home / "ckpt" / "state" / "resume.safetensors").is_file()
    resumed = edgevit(*words, "--resume", "--json", cwd=home).json()
    assert resumed["finished"] and resumed["epochs"] == 3
    whole = edgevit(*words[:5], "whole", *words[6:], "--json", cwd=home).json()
    assert resumed["best"] == whole["best"]


@pytest.mark.slow
def test_two_processes_speak_once(tmp_path):
    home = write_model(tmp_path)
    words = ["train", TINY, "--data", "digits", "-o", "ckpt", "--epochs", "1", "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launch, "-m", "edgevit", *words],
        cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answer = finish(process)
    assert answer.code == 0, answer.err
    assert answer.json()["best"]["scores"]["count"] == 359
    assert json.loads((home / "ckpt" / "train.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_the_line_it_prints_converts_it_and_the_artefact_is_as_right(tmp_path):
    home = write_model(tmp_path)
    words = ["train", TINY, "--data", "digits", "-o", "ckpt", "--epochs", 3, "--lr", 0.02]
    told = edgevit(*words, cwd=home)
    assert told.code == 0, told.err
    line = told.out.strip().splitlines()[-1]
    command = shlex.split(line.removeprefix("Next: "))
    assert command[:2] == ["edgevit", "convert"]
    made = edgevit(*command[1:], "--to", "onnx", "--json", cwd=home)
    assert made.code == 0, made.err
    record = json.loads((home / "ckpt" / "train.json").read_text())
    found = edgevit("eval", command[-1], "--data", "digits", "--json", cwd=home).json()
    onnx = next(r for r in found["results"] if r["name"] == "onnx")
    scores = record["best"]["scores"]
    assert onnx["top1"]["of"] == scores["count"] == 359
    assert abs(onnx["top1"]["correct"] - scores["top1"]) <= 1  # a near tie may tip
    assert scores["top1"] > 72  # a tenth by chance
