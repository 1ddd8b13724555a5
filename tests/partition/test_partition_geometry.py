"""What a ViT costs: against built models, a flop counter, and the published ratios."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.models import create_model
from edgevit.models.vit import VisionTransformer
from partition.cutting.geometry import Geometry, Keep, geometry_of, scaled
from partition.errors import PartitionError

BASE = Geometry(12, 12, 64, 768, 3072, 197, 10)

# k of 12 heads of ViT-Base: width, FFN, parameters in millions, MiB, GMAC (edvit.md, table 1.6).
TABLE = [
    (12, 768, 3072, 85.81, 327.3, 17.56),
    (8, 512, 2048, 38.33, 146.2, 7.99),
    (6, 384, 1536, 21.67, 82.7, 4.60),
    (5, 320, 1280, 15.11, 57.6, 3.25),
    (4, 256, 1024, 9.73, 37.1, 2.14),
    (3, 192, 768, 5.53, 21.1, 1.25),
    (2, 128, 512, 2.505, 9.55, 0.603),
    (1, 64, 256, 0.662, 2.53, 0.185),
]


def counted(model: nn.Module) -> tuple[int, int]:
    """Parameters and multiply-adds of a model as it is built, on the meta device."""
    side = model.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"k{row[0]}")
def test_vit_base_by_heads_is_the_table(row):
    k, width, ffn, params_m, mib, gmac = row
    small = scaled(BASE, Keep(k))
    assert (small.embed_dim, small.mlp_dim, small.feature_bytes) == (width, ffn, 4 * width)
    assert small.params / 1e6 == pytest.approx(params_m, rel=1e-3)
    assert small.bytes / 2**20 == pytest.approx(mib, rel=2e-3)
    assert small.macs / 1e9 == pytest.approx(gmac, rel=3e-3)


def test_two_heads_of_twelve_give_both_published_ratios():
    small = scaled(BASE, Keep(2))
    assert small.params == pytest.approx(2.505e6, rel=0.01)
    assert BASE.bytes / small.bytes >= 34.1
    assert BASE.macs / small.macs >= 28.9


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("vit_base", Keep(12)),
        ("vit_base", Keep(2)),
        ("vit_large", Keep(3)),
        ("deit_small", Keep(3, residual=100)),
        ("vit_tiny", Keep(2, residual=150, ffn=700)),
    ],
)
def test_geometry_counts_what_a_built_model_has(name, keep):
    with torch.device("meta"):
        full = geometry_of(create_model(name, 10))
        small = scaled(full, keep, classes=4)
        built = VisionTransformer(
            small.embed_dim, small.depth, small.heads, 4,
            head_dim=small.head_dim, mlp_dim=small.mlp_dim,
        ).eval()  # fmt: skip
    assert geometry_of(built) == small
    assert counted(built) == (small.params, small.macs)


def test_a_geometry_without_a_head_has_none():
    with_head, without = scaled(BASE, Keep(2), classes=3), scaled(BASE, Keep(2), classes=0)
    assert with_head.params - without.params == 3 * 128 + 3


@pytest.mark.parametrize("keep", [Keep(0), Keep(13), Keep(2, residual=769), Keep(2, ffn=0)])
def test_keeping_nothing_or_more_than_there_is_is_refused(keep):
    with pytest.raises(PartitionError, match=r"cannot keep \d+ of \d+"):
        scaled(BASE, keep)


def test_other_models_are_refused_by_name():
    with torch.device("meta"):
        distilled, other = create_model("deit_tiny_distilled", 10), create_model("shvit_s1", 10)
    with pytest.raises(PartitionError, match="distilled DeiTs are not partitioned"):
        geometry_of(distilled)
    with pytest.raises(PartitionError, match=r"only plain ViTs are partitioned.*got SHViT"):
        geometry_of(other)
