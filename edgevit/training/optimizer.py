"""AdamW (arXiv 1711.05101) with weight decay on matrices and kernels only."""

from __future__ import annotations

import re

import torch
from torch import nn

# Tables that are added, not multiplied with, and scales with broadcast axes: (C, 1, 1), say.
NO_DECAY = re.compile(
    r"(^|\.)(attention_biases|pos_embed|cls_token|dist_token|relative_position_bias_table"
    r"|gamma|layer_scale\w*|ls\d?)(\.|$)"
)


def decay_groups(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trained parameters: those that decay, and those that do not.

    Norms, biases, anything with one axis longer than 1 at most (layer scales in any layout), and
    tables of biases and positions do not.
    """
    decayed: list[str] = []
    spared: list[str] = []
    for name, value in module.named_parameters():
        if value.requires_grad:
            is_vector = value.numel() == max(value.shape, default=1)
            spare = is_vector or NO_DECAY.search(name) is not None
            (spared if spare else decayed).append(name)
    return decayed, spared


def build_optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over both groups of the module's parameters."""
    values = dict(module.named_parameters())
    decayed, spared = decay_groups(module)
    groups = [
        {"params": [values[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [values[name] for name in spared], "weight_decay": 0.0},
    ]
    # fused: one pass over the memory; the plain form takes ten, and time that shows on a CPU.
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)
