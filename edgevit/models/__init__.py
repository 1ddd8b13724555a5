"""The models of the zoo, their registry and their checkpoints. Needs torch only."""

from __future__ import annotations

# Imported for their side effect: each family registers its models.
from edgevit.models import efficientformer, efficientformerv2, fmvit, shvit, vit
from edgevit.models.checkpoints import Loaded, load_weights
from edgevit.models.registry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Latency,
    ModelConfig,
    ModelError,
    create_model,
    list_models,
    model_config,
    register_model,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Latency",
    "Loaded",
    "ModelConfig",
    "ModelError",
    "create_model",
    "efficientformer",
    "efficientformerv2",
    "fmvit",
    "list_models",
    "load_weights",
    "model_config",
    "register_model",
    "shvit",
    "vit",
]
