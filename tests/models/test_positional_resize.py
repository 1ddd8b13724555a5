"""Positional tables of another input size: against timm's resampling and cubic sums by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import error_over_spread, pictures, randomise, settle_batch_norm, timm_name
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevit.models import Loaded, ModelError, create_model, load_weights
from edgevit.models.resize import resize_tables


@pytest.mark.parametrize(("name", "prefix"), [("deit_tiny", 1), ("deit_tiny_distilled", 2)])
@pytest.mark.parametrize("size", [256, 384, 112, 16])
def test_position_embeddings_equal_timms(
    name: str, prefix: int, size: int, timm, tmp_path: Path
) -> None:
    source = randomise(create_model(name, 9), seed=1)
    torch.save({"model": source.state_dict()}, tmp_path / "at224.pth")
    target = create_model(name, 9, input_size=size)
    side = size // 16
    loaded = load_weights(target, tmp_path / "at224.pth")
    assert loaded == Loaded((f"pos_embed resized from 14x14 to {side}x{side}",), new_head=False)
    want = timm.layers.resample_abs_pos_embed(
        source.pos_embed.detach(), [side, side], num_prefix_tokens=prefix
    )
    assert torch.equal(target.pos_embed, want)
    assert torch.equal(target.pos_embed[:, :prefix], source.pos_embed[:, :prefix])
    others = {key: v for key, v in target.state_dict().items() if key != "pos_embed"}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in others.items())


def test_the_resized_model_is_timms(timm, tmp_path: Path) -> None:
    """timm's model at 224, saved; read by ours at 160 and by timm's own at 160."""
    name = timm_name("deit_tiny_distilled")
    saved = randomise(timm.create_model(name, num_classes=9), seed=4)
    torch.save(saved.state_dict(), tmp_path / "at224.pth")
    theirs = timm.create_model(name, num_classes=9, img_size=160).eval()
    from timm.models.vision_transformer import checkpoint_filter_fn

    theirs.load_state_dict(checkpoint_filter_fn(saved.state_dict(), theirs))
    ours = create_model("deit_tiny_distilled", 9, input_size=160)
    load_weights(ours, tmp_path / "at224.pth")
    images = pictures(3, 160, seed=5)
    with torch.no_grad():
        assert error_over_spread(ours(images), theirs(images)) <= 1e-5


def test_half_precision_positions_are_resampled_in_float32(timm, tmp_path: Path) -> None:
    source = randomise(create_model("vit_tiny", 9), seed=1).half()
    torch.save(source.state_dict(), tmp_path / "half.pth")
    target = create_model("vit_tiny", 9, input_size=96)
    load_weights(target, tmp_path / "half.pth")
    want = timm.layers.resample_abs_pos_embed(source.pos_embed.detach(), [6, 6])
    assert want.dtype == torch.float16
    assert torch.equal(target.pos_embed, want.float())


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("deit3_small_patch16_224", 0), ("vit_small_patch16_224", 5)],
)
def test_timms_models_without_positions_for_tokens_or_with_registers(
    name: str, prefix: int, timm, tmp_path: Path
) -> None:
    kwargs = {"num_classes": 9, "depth": 1, **({"reg_tokens": 4} if prefix else {})}
    source, target = (timm.create_model(name, img_size=size, **kwargs) for size in (224, 96))
    torch.save(source.state_dict(), tmp_path / "at224.pth")
    loaded = load_weights(target, tmp_path / "at224.pth")
    assert loaded == Loaded(("pos_embed resized from 14x14 to 6x6",), new_head=False)
    want = timm.layers.resample_abs_pos_embed(
        source.pos_embed.detach(), [6, 6], num_prefix_tokens=prefix
    )
    assert torch.equal(target.pos_embed, want)


@pytest.mark.parametrize("shape", [(1, 1 + 15, 192), (1, 1 + 4, 96), (5, 192), (1, 1, 192), (197,)])
def test_positions_that_are_no_square_map_are_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    weights = {**create_model("vit_tiny", 9).state_dict(), "pos_embed": torch.zeros(shape)}
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(ModelError) as caught:
        load_weights(create_model("vit_tiny", 9), tmp_path / "odd.pth")
    assert f"1 mis-shaped: pos_embed (expected (1, 197, 192), got {shape})" in str(caught.value)


@pytest.mark.parametrize("shape", [(192,), (), (1, 192)])
def test_a_class_token_of_another_kind_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = {**create_model("vit_tiny", 9).state_dict(), "cls_token": torch.zeros(shape)}
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(ModelError) as caught:
        load_weights(create_model("vit_tiny", 9, input_size=96), tmp_path / "odd.pth")
    assert f"cls_token (expected (1, 1, 192), got {shape})" in str(caught.value)


def test_a_size_and_a_class_count_at_once(tmp_path: Path) -> None:
    torch.save(create_model("vit_tiny").state_dict(), tmp_path / "published.pth")
    target = create_model("vit_tiny", 10, input_size=256)
    notes = (
        "pos_embed resized from 14x14 to 16x16",
        "head re-initialised: the file has 1000 classes, the model 10",
    )
    loaded = load_weights(target, tmp_path / "published.pth", new_head=True)
    assert loaded == Loaded(notes, new_head=True)


# Bias tables, by offset.


def cubic(distance: float) -> float:
    """Keys' kernel with a = -3/4."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resampled(row: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` values over the same span of offsets; offsets past an end repeat the end."""
    last = len(row) - 1
    places = [i * last / (count - 1) if count > 1 else 0.0 for i in range(count)]
    return np.array(
        [
            sum(
                cubic(place - tap) * row[min(max(tap, 0), last)]
                for tap in range(int(place) - 1, int(place) + 3)
            )
            for place in places
        ]
    )


def resized_by_hand(table_MN: Tensor, side: int) -> NDArray[np.float64]:
    old = round(table_MN.shape[1] ** 0.5)
    maps = []
    for head in table_MN.double().numpy():
        rows = np.array([resampled(row, side) for row in head.reshape(old, old)])
        maps.append(np.array([resampled(column, side) for column in rows.T]).T.reshape(-1))
    return np.array(maps)


def tables(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.endswith("attention_biases")}


@pytest.mark.parametrize(
    ("name", "size", "notes"),
    [
        ("efficientformer_l1", 256, ("attention_biases resized from 7x7 to 8x8",)),
        ("efficientformer_l1", 512, ("attention_biases resized from 7x7 to 16x16",)),
        ("efficientformer_l1", 32, ("attention_biases resized from 7x7 to 1x1",)),
        (
            "efficientformerv2_s0",
            256,
            (
                "attention_biases resized from 14x14 to 16x16",
                "attention_biases resized from 7x7 to 8x8",
            ),
        ),
        (
            "efficientformerv2_s0",
            160,
            (
                "attention_biases resized from 14x14 to 10x10",
                "attention_biases resized from 7x7 to 5x5",
            ),
        ),
    ],
)
def test_bias_tables_by_hand(name: str, size: int, notes: tuple[str, ...], tmp_path: Path) -> None:
    source = randomise(create_model(name, 9), seed=2)
    torch.save(source.state_dict(), tmp_path / "at224.pth")
    target = create_model(name, 9, input_size=size)
    indices = {k: v.clone() for k, v in target.state_dict().items() if k.endswith("idxs")}
    assert load_weights(target, tmp_path / "at224.pth") == Loaded(notes, new_head=False)
    before, after = tables(source), tables(target)
    assert before.keys() == after.keys() != set()
    for key, table in after.items():
        want = resized_by_hand(before[key], round(table.shape[1] ** 0.5))
        assert np.abs(table.double().numpy() - want).max() <= 1e-5
        assert torch.equal(table[:, 0], before[key][:, 0]), "offset 0 stays offset 0"
    for key, value in target.state_dict().items():
        if key in indices:
            assert torch.equal(value, indices[key])
        elif key not in after:
            assert torch.equal(value, source.state_dict()[key])


def test_efficientformer_at_another_size_is_timms(timm) -> None:
    """timm's model has 7x7 built in: its own attention is put in at 5x5."""
    ours = randomise(create_model("efficientformer_l1", 9, input_size=160), seed=3)
    settle_batch_norm(ours, pictures(4, 160, seed=103))
    theirs = timm.create_model("efficientformer_l1", num_classes=9)
    from timm.models.efficientformer import Attention

    theirs.stages[3].blocks[4].token_mixer = Attention(448, resolution=5)  # its eval() gives None
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.eval()
    images = pictures(3, 160, seed=6)
    with torch.no_grad():
        assert error_over_spread(ours(images), theirs(images)) <= 1e-5


def test_the_files_index_table_orders_its_biases_before_they_are_resized(tmp_path: Path) -> None:
    source = randomise(create_model("efficientformer_l1", 9), seed=2)
    torch.save(source.state_dict(), tmp_path / "in_order.pth")
    weights = dict(source.state_dict())
    (key,) = tables(source)
    indices = key.replace("attention_biases", "attention_bias_idxs")
    order = torch.randperm(49, generator=torch.Generator().manual_seed(0))
    weights[key] = weights[key][:, order]
    weights[indices] = order.argsort()[weights[indices]]
    torch.save(weights, tmp_path / "shuffled.pth")
    one, other = (create_model("efficientformer_l1", 9, input_size=256) for _ in range(2))
    load_weights(one, tmp_path / "in_order.pth")
    load_weights(other, tmp_path / "shuffled.pth")
    assert torch.equal(tables(one)[key], tables(other)[key])


@pytest.mark.parametrize("wrong", [torch.zeros(49, 49) + 49, torch.zeros(7, 7), torch.zeros(3)])
def test_an_index_table_of_no_use_is_dropped(wrong: Tensor) -> None:
    own = {"a.attention_biases": torch.zeros(8, 64), "a.attention_bias_idxs": torch.zeros(64, 64)}
    table = torch.randn(8, 49)
    file = {"a.attention_biases": table, "a.attention_bias_idxs": wrong}
    resized, _ = resize_tables(own, file)
    want, _ = resize_tables(own, {"a.attention_biases": table})
    assert resized.keys() == {"a.attention_biases"}
    assert torch.equal(resized["a.attention_biases"], want["a.attention_biases"])
    assert torch.equal(file["a.attention_biases"], table), "the file's tensors are left alone"


@pytest.mark.parametrize("shape", [(4, 49), (8, 48), (8,), (8, 49, 1)])
def test_biases_of_another_kind_stay_as_they_are(shape: tuple[int, ...]) -> None:
    own = {"a.attention_biases": torch.zeros(8, 64)}
    file = {"a.attention_biases": torch.ones(shape)}
    resized, notes = resize_tables(own, file)
    assert notes == ()
    assert resized["a.attention_biases"] is file["a.attention_biases"]


def test_a_table_of_the_same_size_is_not_touched() -> None:
    weights = create_model("efficientformer_l1").state_dict()
    resized, notes = resize_tables(weights, weights)
    assert notes == ()
    assert all(resized[key] is value for key, value in weights.items())


@pytest.mark.parametrize(
    ("size", "nearest"), [(200, "192 or 224"), (31, "32"), (0, "32"), (-32, "32")]
)
def test_efficientformer_names_the_sides_it_takes(size: int, nearest: str) -> None:
    with pytest.raises(ModelError) as caught:
        create_model("efficientformer_l1", input_size=size)
    assert str(caught.value) == (
        "EfficientFormer takes images whose side is a multiple of 32 pixels, "
        f"got {size}; the nearest: {nearest}"
    )


def test_a_family_without_tables_takes_no_input_size() -> None:
    with pytest.raises(
        ModelError, match="shvit_s1 takes no input_size: its weights fit images of any"
    ):
        create_model("shvit_s1", input_size=256)
