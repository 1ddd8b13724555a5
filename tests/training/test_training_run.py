"""Whole runs of a tiny network: it learns, leaves the right files, and says what is wrong."""

from __future__ import annotations

import contextlib
import csv
import json
import signal

import numpy as np
import pytest
import torch
from cli_tools import small_disk
from safetensors.torch import load_file
from tiny_training import PRE, SIDE, Bars, net, options

from edgevit.data import prepare
from edgevit.training import EpochRow, TrainingError, train


def by_hand(module, data):
    """Right answers and mean loss of a module, one picture at a time."""
    right, losses = 0, []
    for index in range(len(data)):
        picture, label = data[index]
        shown = prepare(picture, SIDE, SIDE)
        x = torch.from_numpy((shown - np.float32(PRE.mean)) / np.float32(PRE.std)).permute(2, 0, 1)
        with torch.no_grad():
            logits = module(x[None])[0]
        right += int(logits.argmax()) == label
        losses.append(float(-logits.log_softmax(0)[label]))
    return right, sum(losses) / len(losses)


def test_it_learns_and_leaves_what_it_says(tmp_path):
    told, held_out = [], Bars(90, 2)
    facts = {"model": "bars"}
    result = train(
        net(), Bars(320, 1), held_out, options(epochs=10, batch=32, lr=0.02, facts=facts),
        tmp_path / "out", progress=told.append,
    )  # fmt: skip
    assert result.finished and result.best.scores.count == 90
    assert result.best.scores.top1 > 80  # a third by chance
    assert result.best.scores.top5 == 90  # of three classes
    out = tmp_path / "out"
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert names == [
        "labels.txt", "log.csv", "model.safetensors", "state/resume.safetensors", "train.json",
    ]  # fmt: skip
    assert (out / "labels.txt").read_text() == "across\nupright\nnone\n"

    fresh = net()
    fresh.load_state_dict(load_file(out / "model.safetensors"))
    right, loss = by_hand(fresh.eval(), held_out)
    assert right == result.best.scores.top1
    assert loss == pytest.approx(result.best.scores.loss, rel=1e-4)

    rows = list(csv.DictReader((out / "log.csv").open()))
    assert list(rows[0]) == [
        "epoch", "lr", "train_loss", "val_loss", "top1", "top5", "ema_top1", "seconds",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == [str(e) for e in range(1, 11)]
    chosen = rows[result.best.epoch - 1]["ema_top1" if result.best.ema else "top1"]
    assert float(chosen) == pytest.approx(100 * result.best.scores.top1 / 90, abs=1e-3)
    best = max(float(row[n]) for row in rows for n in ("top1", "ema_top1"))
    assert float(chosen) == best
    record = json.loads((out / "train.json").read_text())
    assert record["best"]["scores"]["top1"] == result.best.scores.top1
    assert record["settings"]["model"] == "bars" and record["settings"]["lr"] == 0.02
    assert record["preprocess"]["mean"] == [0.4, 0.5, 0.6]
    assert len([e for e in told if isinstance(e, EpochRow)]) == 10
    assert len(told) == 10 * 10 + 10


def test_the_module_holds_the_best_weights_and_the_callers_random_state_is_left(tmp_path):
    module = net(heads=2)
    torch.manual_seed(9)
    want = torch.rand(3)
    torch.manual_seed(9)
    result = train(module, Bars(64, 1), Bars(30, 2), options(), tmp_path / "out")
    torch.testing.assert_close(torch.rand(3), want)
    assert not module.training and module.stem.weight.is_contiguous()
    assert by_hand(module, Bars(30, 2))[0] == result.best.scores.top1


def test_soft_targets_and_inputs_that_are_no_pictures(tmp_path):
    """What fine-tuning a head on features takes: float vectors, distributions as labels."""

    class Features:
        classes = ("a", "b")

        def __init__(self, seed):
            rng = np.random.default_rng(seed)
            self.x = rng.normal(size=(200, 6)).astype(np.float32)
            share = 1 / (1 + np.exp(-4 * self.x[:, 0]))
            self.t = np.stack([share, 1 - share], 1).astype(np.float32)

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index], self.t[index]

    head = torch.nn.Linear(6, 2)
    torch.nn.init.zeros_(head.weight)
    told = options(preprocess=None, epochs=15, batch=20, lr=0.1, mixup=0.0)
    result = train(head, Features(1), Features(2), told, tmp_path / "out")
    assert result.best.scores.top1 >= 190
    ours = (head.weight[0] - head.weight[1]).detach()  # the distributions' own slope is 4
    assert abs(float(ours[0]) - 4) < 1 and float(ours[1:].abs().max()) < 0.5


def test_a_folder_that_is_there_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").touch()
    with pytest.raises(TrainingError, match=r"exists already; give another folder$"):
        train(net(), Bars(64, 1), Bars(30, 2), options(), tmp_path / "out")
    with pytest.raises(TrainingError, match="no run to resume"):
        train(net(), Bars(64, 1), Bars(30, 2), options(resume=True), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["photo.jpg"]


def test_a_size_that_does_not_fit(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) @ torch.ones(3 * 8 * 8, 3)

    with pytest.raises(TrainingError, match=r"inputs of shape \(1, 3, 16, 16\) .*--size") as caught:
        train(Fixed(), Bars(64, 1), Bars(30, 2), options(), tmp_path / "out")
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_a_head_of_another_class_count(tmp_path):
    with pytest.raises(TrainingError, match=r"3 classes, .*\(1, 3\), got \(1, 7\)"):
        train(net(7), Bars(64, 1), Bars(30, 2), options(), tmp_path / "out")


@pytest.mark.parametrize(
    ("train_count", "test_count", "batch", "said"),
    [(1, 5, 16, "1 training examples"), (64, 0, 16, "nothing held out"), (64, 5, 1, "at least 2")],
)
def test_too_few_examples(tmp_path, train_count, test_count, batch, said):
    with pytest.raises(TrainingError, match=said):
        train(
            net(), Bars(train_count, 1), Bars(test_count, 2), options(batch=batch), tmp_path / "o"
        )


def test_a_loss_that_is_no_number_stops_with_the_weights_as_they_were(tmp_path):
    def spoil(event):
        if not isinstance(event, EpochRow) and (event.epoch, event.step) == (2, 2):
            with torch.no_grad():
                module.stem.weight.fill_(float("nan"))

    module = net()
    with pytest.raises(TrainingError, match="became nan in epoch 2, step 3 of 4") as caught:
        train(module, Bars(64, 1), Bars(30, 2), options(), tmp_path / "out", progress=spoil)
    assert caught.value.exit_code == 1
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.isfinite().all() for value in kept.values() if value.is_floating_point())


def test_a_full_disk_leaves_the_last_state(tmp_path):
    def fill(event):
        if isinstance(event, EpochRow) and event.epoch == 2:
            with contextlib.suppress(OSError), (disk / "other").open("ab", 0) as file:
                while True:
                    file.write(b"0" * 1024)

    try:
        with small_disk(tmp_path / "disk", "256k") as disk:
            out = disk / "out"
            with pytest.raises(TrainingError, match=r"No space left on device\. What was there"):
                train(net(), Bars(64, 1), Bars(30, 2), options(), out, progress=fill)
            (disk / "other").unlink()
            assert list(out.rglob(".*.new")) == []
            result = train(net(), Bars(64, 1), Bars(30, 2), options(resume=True), out)
            assert [row.epoch for row in result.rows] == [1, 2, 3, 4]
    except PermissionError as error:
        pytest.skip(str(error))


def test_the_time_limit_ends_it_between_epochs(tmp_path):
    result = train(net(), Bars(64, 1), Bars(30, 2), options(time_limit_s=30), tmp_path / "all")
    assert result.finished
    short = options(epochs=100000, time_limit_s=0.5, facts={"a": 1})
    result = train(net(), Bars(64, 1), Bars(30, 2), short, tmp_path / "out")
    assert not result.finished and 1 <= len(result.rows) < 1000
    assert "the time limit ended it" in result.notes[-1]
    with pytest.raises(TrainingError, match="did not do for one epoch") as caught:
        train(net(), Bars(64, 1), Bars(30, 2), options(time_limit_s=0), tmp_path / "none")
    assert caught.value.exit_code == 1
    assert (tmp_path / "none" / "state" / "resume.safetensors").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_handlers_are_put_back(tmp_path, number):
    before = signal.getsignal(number)
    train(net(), Bars(64, 1), Bars(30, 2), options(epochs=1), tmp_path / "out")
    assert signal.getsignal(number) is before


def test_weights_that_break_in_the_last_step_are_not_kept(tmp_path):
    def spoil(event):
        if not isinstance(event, EpochRow) and (event.epoch, event.step) == (1, 4):
            with torch.no_grad():
                module.stem.weight.fill_(float("inf"))

    module = net()
    with pytest.raises(TrainingError, match="held-out loss became nan in epoch 1, step 4 of 4"):
        train(module, Bars(64, 1), Bars(30, 2), options(), tmp_path / "out", progress=spoil)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    result = train(net(), Bars(64, 1), Bars(30, 2), options(resume=True), tmp_path / "out")
    assert result.finished and result.rows[0].epoch == 1
