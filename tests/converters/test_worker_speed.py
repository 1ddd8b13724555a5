"""What speeds a worker up must not change a byte of what it writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cli_tools import ROOT

SCRIPT = """
import gc, hashlib, json, sys
from pathlib import Path

import torch
from torch import nn

from converters import worker_speed
from converters.lower.base import Job, lower_to

target, folder = sys.argv[1], Path(sys.argv[2])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.GroupNorm(1, 8))
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(self.stem(x).flatten(2).transpose(1, 2)).split(8, dim=2)
        mixed = (q @ k.transpose(1, 2) * 0.35).softmax(-1) @ v
        return self.head(mixed.mean(1))


torch.manual_seed(0)
program = torch.export.export(Attention().eval(), (torch.rand(1, 3, 16, 16),))


def convert(name):
    file = folder / name
    lower_to(target, program, Job(file, "fp32", 16, 16))
    return hashlib.sha256(file.read_bytes()).hexdigest()


digests = {"plain": convert("plain"), "again": convert("again")}
worker_speed.rest_the_collector()
worker_speed.share_provenance()
worker_speed.rehearse(target)
digests["quick"] = convert("quick")
print(json.dumps({**digests, "frozen": gc.get_freeze_count()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["executorch", "tflite", "onnx"])
def test_the_quick_way_writes_the_same_bytes(tmp_path, target):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, target, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["plain"] == found["again"] == found["quick"]
    assert found["frozen"] > 10_000
