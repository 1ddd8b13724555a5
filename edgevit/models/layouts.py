"""Official checkpoint layouts, family by family: their names to ours, which are timm's."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

Weights = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Members of EfficientFormer's `network`: even ones are stages, odd ones the downsampling before the
# next. The flattening of V1 is a numbered member of stage 4 on both sides, so block numbers stay.
_STAGES: Rule = (
    r"^network\.([0246])\.(\d+)\.",
    lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.",
)
_LAYER_SCALE: Rule = (r"\.layer_scale_([12])$", r".ls\1.gamma")
_DIST_HEAD: Rule = (r"^dist_head\.", "head_dist.")


def _downsample(m: re.Match[str]) -> str:
    return f"stages.{int(m[1]) // 2 + 1}.downsample"


# (pattern, replacement); all rules of a family are applied to every name, in this order. DeiT's own
# layout is timm's.
OFFICIAL: dict[str, tuple[Rule, ...]] = {
    "efficientformer": (
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.1\.", "stem.norm1."),
        (r"^patch_embed\.3\.", "stem.conv2."),
        (r"^patch_embed\.4\.", "stem.norm2."),
        _STAGES,
        (r"^network\.([135])\.proj\.", lambda m: f"{_downsample(m)}.conv."),
        (r"^network\.([135])\.norm\.", lambda m: f"{_downsample(m)}.norm."),
        _LAYER_SCALE,
        _DIST_HEAD,
    ),
    "efficientformerv2": (
        (r"^patch_embed\.0\.", "stem.conv1.conv."),
        (r"^patch_embed\.1\.", "stem.conv1.bn."),
        (r"^patch_embed\.3\.", "stem.conv2.conv."),
        (r"^patch_embed\.4\.", "stem.conv2.bn."),
        _STAGES,
        (r"^network\.([13])\.proj\.", lambda m: f"{_downsample(m)}.conv.conv."),
        (r"^network\.([13])\.norm\.", lambda m: f"{_downsample(m)}.conv.bn."),
        # The last downsampling has an attention beside its convolution.
        (r"^network\.(5)\.(conv|bn)\.", lambda m: f"{_downsample(m)}.conv.{m[2]}."),
        (r"^network\.(5)\.attn\.", lambda m: f"{_downsample(m)}.attn."),
        (r"\.(stride_conv|q|k|v|v_local|q\.proj)\.0\.", r".\1.conv."),
        (r"\.(stride_conv|q|k|v|v_local|q\.proj)\.1\.", r".\1.bn."),
        (r"\.q\.local\.0\.", ".q.local."),
        # What is left of proj is the attention's own: member 0 is the activation.
        (r"\.proj\.1\.", ".proj.conv."),
        (r"\.proj\.2\.", ".proj.bn."),
        (r"\.mlp\.(fc1|mid|fc2)\.", r".mlp.\1.conv."),
        (r"\.mlp\.norm1\.", ".mlp.fc1.bn."),
        (r"\.mlp\.mid_norm\.", ".mlp.mid.bn."),
        (r"\.mlp\.norm2\.", ".mlp.fc2.bn."),
        _LAYER_SCALE,
        _DIST_HEAD,
    ),
    "shvit": (
        (r"^blocks1\.", "stages.0.blocks."),
        # The first three members of blocks2 and blocks3 are the downsampling: (dw, ffn), merge,
        # (dw, ffn). Their blocks start at 3.
        (r"^blocks([23])\.0\.([01])\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}."),
        (r"^blocks([23])\.1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.2."),
        (
            r"^blocks([23])\.2\.([01])\.",
            lambda m: f"stages.{int(m[1]) - 1}.downsample.{int(m[2]) + 3}.",
        ),
        (
            r"^blocks([23])\.(\d+)\.",
            lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}.",
        ),
    ),
}


def layouts(weights: Weights, family: str | None = None) -> dict[str, Weights]:
    """The weights under our names, for each layout they might be in.

    `family` limits the official layouts that are tried. A layout under which two tensors would get
    the same name is left out.
    """
    found = {"timm": weights}
    for name, rules in OFFICIAL.items():
        if family in (None, name):
            renamed = {_rename(key, rules): _value(key, weights[key]) for key in weights}
            if len(renamed) == len(weights):
                found[f"official {name}"] = renamed
    return found


def _rename(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _value(name: str, value: Tensor) -> Tensor:
    """V2's layer scales are (C, 1, 1) in the official files, (C,) here."""
    is_map = value.ndim == 3 and value.shape[1:] == (1, 1)
    return value.flatten() if is_map and re.search(_LAYER_SCALE[0], name) else value
