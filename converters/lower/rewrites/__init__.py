"""Rewrites change a graph's form for one target's sake, not its function. One per file."""

from converters.lower.rewrites import input_offset  # noqa: F401  # registration
from converters.lower.rewrites.registry import REWRITES, Rewrite, apply_rewrites

__all__ = ["REWRITES", "Rewrite", "apply_rewrites"]
