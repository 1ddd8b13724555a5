"""A small ViT: `small_vit:digits_vit`, where this folder is on the path. A laptop trains it."""

from edgevit.models.vit import VisionTransformer

SIDE = 48


def digits_vit(num_classes: int = 10) -> VisionTransformer:
    """Half a million weights: 4 blocks of 12 heads, width 96, for pictures of 48 x 48."""
    vit = VisionTransformer(96, 4, 12, num_classes, SIDE)
    vit.pretrained_cfg = {"input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return vit
