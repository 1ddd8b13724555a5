"""Two processes (gloo) do what one does: the same batches, the mean of the gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_tools import ROOT
from safetensors.torch import load_file
from tiny_training import Bars, options

from edgevit.training import train
from edgevit.training.state import STATE

# No BatchNorm, whose batch statistics differ, and no mixup, whose partners do.
SCRIPT = """
import os
import sys
from pathlib import Path
from test_training_processes import plain, told
from tiny_training import Bars
from edgevit.training import train
result = train(plain(), Bars(70, 1), Bars(31, 2), told(), Path(sys.argv[1]))
# In one piece: the other process prints at the same moment.
line = f"right {result.best.scores.top1} of {result.best.scores.count}\\n"
os.write(1, line.encode())
"""


def plain() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(8 * 64, 3),
        )  # fmt: skip


def told():
    return options(mixup=0.0, lr=0.01)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    here = Path(__file__).parent
    found = subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
            *["--no-python", sys.executable, "-c", SCRIPT, str(tmp_path / "two")],
        ],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", here)))}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    result = train(plain(), Bars(70, 1), Bars(31, 2), told(), tmp_path / "one")
    said = f"right {result.best.scores.top1} of {result.best.scores.count}"
    assert said.endswith("of 31") and found.stdout.splitlines() == [said, said]
    one, two = load_file(tmp_path / "one" / STATE), load_file(tmp_path / "two" / STATE)
    assert one.keys() == two.keys()
    start = plain().state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3)
        if name.startswith("model."):  # a long way from where they began, compared with that
            assert (value - start[name.removeprefix("model.")]).abs().max() > 0.01
