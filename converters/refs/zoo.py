"""`shvit_s1`: a model of the zoo."""

from __future__ import annotations

from converters.refs.base import Source, seeded
from converters.refs.grammar import RANDOM
from runtime.manifest import Preprocessing


def from_zoo(name: str, size: int | None, classes: int | None) -> Source:
    """Build it with random weights; size is the side of its input in pixels.

    Models with positional tables are built for that side, so that their tables fit it. Raises
    ModelError, for a side that its strides do not divide too.
    """
    from edgevit.models import create_model, model_config
    from edgevit.models.registry import check_side

    config = model_config(name)
    side = size or config.input_size
    check_side(name, side, config.size_multiple)
    classes = 1000 if classes is None else classes
    with seeded():
        if config.takes_size:
            module = create_model(name, num_classes=classes, input_size=side)
        else:
            module = create_model(name, num_classes=classes)
    preprocessing = Preprocessing(
        mean=list(config.mean),
        std=list(config.std),
        height=side,
        width=side,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    return Source(name, module, preprocessing, classes, config.family, RANDOM, "", False)
