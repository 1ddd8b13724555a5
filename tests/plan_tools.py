"""A small trained ViT for tests of the partitioner, a cluster file for it, and a made-up plan."""

from __future__ import annotations

from pathlib import Path

import torch

from edgevit.data import open_splits
from edgevit.models.vit import VisionTransformer
from edgevit.training import Preprocess, TrainOptions
from edgevit.training import train as run_training
from partition.plan import (
    Accuracy,
    LostBlocks,
    Placed,
    PlanData,
    PlanGeometry,
    PlanModel,
    PlannedDevice,
    PlannedFusion,
    PlannedSubmodel,
    PlanRecord,
)
from runtime.inputs import as_it_is

REF = "smallvit:vit"
MODULE = '''
"""Two blocks of three heads of eight channels, digits of 32 x 32."""

import torch
from edgevit.models.vit import VisionTransformer


def vit(**more):
    torch.manual_seed(0)
    model = VisionTransformer(24, 2, 3, 10, 32, **more)
    model.pretrained_cfg = {
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 32, 32),
    }
    return model


def distilled():
    return vit(distilled=True)
'''
TWO = """
# Two machines that are not alike.
devices:
  - {name: left, compute: 2 GMAC/s, memory: 70KB, energy: 1 J, energy_per_mac: 10 nJ}
  - {name: right, compute: 1 GMAC/s, memory: 190KB, link: 2 Mbit/s}
settings: {submodels: 2, total_size: 1MB, inferences: 1000}
"""


def write_model(folder: Path) -> Path:
    """smallvit.py, and a checkpoint that knows some digits: small.safetensors, in `folder`."""
    (folder / "smallvit.py").write_text(MODULE)
    torch.manual_seed(0)
    vit = VisionTransformer(24, 2, 3, 10, 32)
    pre = Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3)
    options = TrainOptions(preprocess=pre, epochs=6, lr=4e-3, warmup_epochs=1, mixup=0.0)
    run_training(vit, *open_splits("digits"), options, folder / "ckpt")
    (folder / "ckpt" / "model.safetensors").rename(folder / "small.safetensors")
    return folder


def tiny_record(**changed: object) -> PlanRecord:
    """A plan of two sub-models on two devices, none of whose files exist."""
    geometry = PlanGeometry(
        depth=2, heads=3, head_dim=8, embed_dim=24, mlp_dim=96, tokens=5, classes=10
    )
    small = geometry.model_copy(update={"heads": 1, "embed_dim": 8, "mlp_dim": 32, "classes": 0})
    parts = [
        PlannedSubmodel(
            name=f"sub{i}", classes=own, kept_sha256="0" * 64, geometry=small, params=10, macs=20,
            memory=40, answer_start=8 * i, answer_values=8, weights_sha256="1" * 64,
            bundle=f"sub{i}", bundle_digest="2" * 64, artifacts={"onnx": "3" * 64},
            artifact_bytes={"onnx": 40}, primary=name, replicas=[],
        )
        for i, (own, name) in enumerate([([0, 1], "left"), ([2], "right")])
    ]  # fmt: skip
    devices = [
        PlannedDevice(
            name=name, macs_per_s=1e9, measured=False, target="onnx", submodels=[part.name],
            replicas=[], latency=1e-3, memory=40, memory_limit=None, energy=None,
            energy_limit=None,
        )
        for name, part in zip(("left", "right"), parts, strict=True)
    ]  # fmt: skip
    record = PlanRecord(
        edgevit_version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        model=PlanModel(
            ref=REF, weights="small.safetensors", weights_sha256="4" * 64, size=32,
            geometry=geometry, params=100, macs=200, bytes=400,
        ),
        preprocessing=as_it_is(32, 32),
        data=PlanData(ref="digits", digest="5" * 64, train=10, test=5),
        labels=["a", "b", "c"],
        split="balanced",
        answer="features",
        seed=0,
        options={"epochs": 1},
        submodels=parts,
        fusion=PlannedFusion(
            file="fusion/fusion.npz", sha256="6" * 64, widths=[16, 8, 3], activation="relu",
            params=9, error_over_spread=1e-7, pictures=5,
        ),
        devices=devices,
        placed=Placed(method="exact", latency=1e-3, greedy_gap=0.0),
        accuracy=Accuracy(
            pictures=5, full=100.0, fused=80.0, submodels={"sub0": 80.0, "sub1": 60.0},
            without=[LostBlocks(lost=["sub0"], blind=[0, 1], top1=40.0)],
        ),
        versions={"torch": "2"},
        machine={"cores": 2},
        timings_s={"fusion": 1.0},
    )  # fmt: skip
    return record.model_copy(update=changed)
