"""Rewrites change a graph's form for one target's sake, not its function. One per file."""

from converters.lower.rewrites import (  # noqa: F401  # registration
    input_offset,
    softmax_rank3,
    split_slices,
)
from converters.lower.rewrites.registry import REWRITES, Rewrite, apply_rewrites, rewritten

__all__ = ["REWRITES", "Rewrite", "apply_rewrites", "rewritten"]
