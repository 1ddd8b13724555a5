"""Where an artefact leaves the torch reference: the search, and real artefacts with real faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomise, settle_batch_norm
from torch import Tensor, nn
from torch.export import ExportedProgram

import converters.lower.onnx as onnx_target
from converters.lower.base import Job, Lowered, lower_to
from converters.lower.rewrites import registry
from converters.pictures import proof_pictures
from converters.verify import locate_divergence, verify_artifact
from converters.verify.locate import first_true

torch.set_num_threads(1)

SIZE = 32


@pytest.mark.parametrize("count", range(10))
def test_first_true_finds_every_place(count: int) -> None:
    for first in range(count + 1):
        asked: list[int] = []

        def test(index: int, first: int = first, asked: list[int] = asked) -> bool:
            asked.append(index)
            return index >= first

        assert first_true(count, test) == (first if first < count else None)
        assert len(asked) == len(set(asked)), "no cut is converted twice"
        assert len(asked) <= 1 + max(count - 1, 0).bit_length()


class Branches(nn.Module):
    """A stem, two branches side by side, a residual, two heads: order is not ancestry here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 1))
        self.right = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))
        self.mix = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)
        self.head_dist = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        one, two = self.mix(torch.cat([self.left(x), self.right(x)], 1)).split([4, 4], 1)
        pooled = (x + torch.cat([one.sigmoid(), two], 1)).mean((2, 3))
        return self.head(pooled).relu() + self.head_dist(pooled)


class Talking(nn.Module):
    """1x1 convolution, softmax over the width, 1x1 convolution: EfficientFormerV2's heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.before = nn.Conv2d(8, 8, 1)
        self.softmax = nn.Softmax(dim=-1)
        self.after = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.softmax(self.before(self.stem(x)))).flatten(1))


@torch.no_grad()
def prepare(model: nn.Module, folder: Path, file: str) -> tuple[ExportedProgram, Job]:
    """Export, write the reference that the verification reads, name the artefact's file."""
    pictures = proof_pictures(SIZE, SIZE)
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    model = settle_batch_norm(randomise(model, 0), x_BCHW)
    np.savez(folder / "reference.npz", inputs=pictures, outputs=model(x_BCHW).numpy())
    program = torch.export.export(model, (x_BCHW[:1],))
    return program, Job(folder / file, "fp32", SIZE, SIZE)


def damage(monkeypatch: pytest.MonkeyPatch, weight: str) -> None:
    """Let the ONNX target write one named weight wrongly, in every artefact that has it."""
    honest = onnx_target.lower

    def lower(program: ExportedProgram, job: Job) -> Lowered:
        kept = program.state_dict.get(weight)
        if kept is None:
            return honest(program, job)
        bad = kept.clone()
        bad.view(-1)[-1] += 0.5
        program.state_dict[weight] = nn.Parameter(bad, requires_grad=False)
        try:
            return honest(program, job)
        finally:
            program.state_dict[weight] = kept

    monkeypatch.setattr(onnx_target, "lower", lower)


QUICK = ["left.2", "head"]  # each has another branch behind it in the graph
SLOW = ["stem", "left.0", "right.0", "right.2", "mix", "head_dist"]


@pytest.mark.parametrize(
    "module", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_damaged_weight_fails_and_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, f"{module}.weight")
    program, job = prepare(Branches(), tmp_path, "model.onnx")
    lower_to("onnx", program, job)
    verification = verify_artifact("onnx", program, job, tmp_path)["verification"]
    assert verification["status"] == "failed"
    assert "error_over_spread" in verification["reason"]
    found = verification["first_divergence"]
    kind = "linear" if "head" in module else "conv2d"
    assert found == f"{module} (aten.{kind}.default)"


def test_a_sound_artefact_passes_and_every_part_agrees(tmp_path: Path) -> None:
    program, job = prepare(Branches(), tmp_path, "model.onnx")
    lower_to("onnx", program, job)
    verification = verify_artifact("onnx", program, job, tmp_path)["verification"]
    assert verification["status"] == "passed"
    assert verification["first_divergence"] is None
    found = locate_divergence("onnx", program, job, proof_pictures(SIZE, SIZE))
    assert found == "not found: every part of the graph agrees by itself"


def test_an_artefact_that_is_wrong_as_a_file_only(tmp_path: Path) -> None:
    """Another network's file under this name: no part of this graph is to blame, and it says so."""
    program, job = prepare(Branches(), tmp_path, "model.onnx")
    other = randomise(Branches(), 1).eval()
    lower_to("onnx", torch.export.export(other, program.example_inputs[0]), job)
    verification = verify_artifact("onnx", program, job, tmp_path)["verification"]
    assert verification["status"] == "failed"
    assert "every part of the graph agrees" in verification["first_divergence"]


def test_a_part_that_does_not_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, job = prepare(Branches(), tmp_path, "model.onnx")

    def refuse(program: ExportedProgram, job: Job) -> Lowered:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(onnx_target, "lower", refuse)
    found = locate_divergence("onnx", program, job, proof_pictures(SIZE, SIZE))
    assert found.startswith("not found: a part of the graph does not convert by itself")
    assert "no kernel for this" in found


@pytest.mark.slow
def test_uint8_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cuts get the same bytes as the artefact."""

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Branches()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.to(torch.float32) / 255)

    damage(monkeypatch, "model.mix.weight")
    model = randomise(Bytes(), 0).eval()
    pictures = np.rint(proof_pictures(SIZE, SIZE) * 255).astype(np.uint8)
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        program = torch.export.export(model, (x_BCHW[:1],))
    job = Job(tmp_path / "model.onnx", "fp32", SIZE, SIZE, input_dtype="uint8")
    found = locate_divergence("onnx", program, job, pictures)
    assert found == "mix (aten.conv2d.default)"


@pytest.mark.slow
def test_the_vendors_own_miscompile_is_caught_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ExecuTorch's XNNPACK delegate takes softmax(dim=-1) between two convolutions over the wrong
    axis: wrong numbers and no error, where no rewrite goes round it. Where a later version mends
    it, this test says so.
    """
    monkeypatch.setattr(registry, "REWRITES", [])
    program, job = prepare(Talking(), tmp_path, "model.pte")
    lower_to("executorch", program, job)
    verification = verify_artifact("executorch", program, job, tmp_path)["verification"]
    assert verification["status"] == "failed"
    assert verification["error_over_spread"] > 0.1
    assert verification["first_divergence"] == "softmax (aten.softmax.int)"
