"""Positional tables of another input size, resized once, when a checkpoint is loaded."""

# Shapes: M heads, C width of the tokens, S side of a square map of positions, N its S*S positions,
#         P prefix tokens (class, distillation) before them in position embeddings.

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

POSITIONS, PREFIX = "pos_embed", ("cls_token", "dist_token", "reg_token")
BIASES, INDICES = "attention_biases", "attention_bias_idxs"


def resize_tables(own: Weights, file: Weights) -> tuple[Weights, tuple[str, ...]]:
    """The file's tensors with its positional tables at the model's size, and what was changed.

    A note reads like 'pos_embed resized from 14x14 to 16x16'. A table that differs from the model's
    in more than the size of a square map (heads, width, prefix tokens) stays as it is.
    """
    resized, notes = dict(file), []
    for name in file.keys() & own.keys():
        kind = name.rpartition(".")[2]
        if kind == POSITIONS:
            sides = _resize_positions(name, own, resized)
        elif kind == BIASES:
            sides = _resize_biases(name, own, resized)
        else:
            continue
        if sides is not None and sides[0] != sides[1]:
            old, new = sides
            notes.append(f"{kind} resized from {old}x{old} to {new}x{new}")
    return resized, tuple(sorted(set(notes)))


def _resize_positions(name: str, own: Weights, file: Weights) -> tuple[int, int] | None:
    """Position embeddings (1, P+N, C): the prefix tokens' stay, the map's are resampled as in timm.

    Bicubic with antialias, in float32. Returns the sides of both maps, None where they do not fit.
    """
    table, prefix = file[name], _prefix(file)
    if prefix != _prefix(own) or table.ndim != 3 or len(table) != 1:
        return None
    sides = _sides(table, own[name], prefix)
    if sides is None:  # DeiT III and others give positions to the patches only
        prefix = 0
        sides = _sides(table, own[name])
    if sides is None:
        return None
    old, new = sides
    if old != new:
        map_1CSS = table[:, prefix:].float().transpose(1, 2).reshape(1, -1, old, old)
        map_1CSS = F.interpolate(map_1CSS, (new, new), mode="bicubic", antialias=True)
        rest = map_1CSS.flatten(2).transpose(1, 2).to(table.dtype)
        file[name] = torch.cat([table[:, :prefix], rest], dim=1)
    return sides


def _prefix(weights: Weights) -> int:
    """The number of tokens before the patches."""
    tokens = [weights[name] for name in PREFIX if name in weights]
    return sum(token.shape[1] for token in tokens if token.ndim == 3)


def _resize_biases(name: str, own: Weights, file: Weights) -> tuple[int, int] | None:
    """Biases (M, N) by offset |dy| * S + |dx|: bicubic, with the first and the last offset kept.

    A table over offsets, unlike one over positions, has no half cells at its borders: offset 0 must
    stay offset 0. Returns the sides of both maps, None where the tables do not fit.
    """
    table, indices = file[name], name.removesuffix(BIASES) + INDICES
    sides = _sides(table, own[name])
    if sides is None or table.ndim != 2:
        return None
    old, new = sides
    if old == new and indices in own:  # the file's indices, if it has some, go with its biases
        return sides
    table = _by_offset(table, file.pop(indices, None))
    if old != new:
        map_1MSS = table.float().reshape(1, -1, old, old)
        map_1MSS = F.interpolate(map_1MSS, (new, new), mode="bicubic", align_corners=True)
        table = map_1MSS[0].flatten(1).to(table.dtype)
    file[name] = table
    return sides


def _by_offset(table_MN: Tensor, indices: Tensor | None) -> Tensor:
    """The table in the order of offsets: what the position (0, 0) reads for each (|dy|, |dx|)."""
    count = table_MN.shape[1]
    if indices is None or indices.ndim != 2 or indices.shape[1] != count:
        return table_MN
    first = indices[0].long()
    return table_MN[:, first] if 0 <= int(first.min()) <= int(first.max()) < count else table_MN


def _sides(table: Tensor, want: Tensor, prefix: int = 0) -> tuple[int, int] | None:
    """The sides of the maps along dimension 1, where the tables differ in nothing else."""
    if table.ndim < 2 or table.ndim != want.ndim:
        return None
    if (table.shape[0], table.shape[2:]) != (want.shape[0], want.shape[2:]):
        return None
    counts = [t.shape[1] - prefix for t in (table, want)]
    old, new = (math.isqrt(max(count, 0)) for count in counts)
    return (old, new) if old and new and [old**2, new**2] == counts else None
