"""Reparameterization: exact rules over an exported graph, applied until none fits, with a proof.

The order of the imports is the order of the rules.
"""

from converters.reparam import (  # noqa: F401, I001  # registration, in this order
    inplace,
    noops,
    constants,
    batch_norm,
    parallel,
    chain,
    scales,
    norm_affine,
    pool_scale,
)
from converters.reparam.engine import RULES, apply_rules
from converters.reparam.proof import Reparameterized, reparameterize

__all__ = ["RULES", "Reparameterized", "apply_rules", "reparameterize"]
