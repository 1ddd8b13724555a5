"""The torch module to evaluate, by itself or beside the artefacts that were made from it.

torch is imported only where a module is going to be built.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edgevit.evaluation.errors import EvaluationError
from edgevit.evaluation.options import EvalOptions
from runtime.bundle import Bundle
from runtime.manifest import CONFIG_NAME

if TYPE_CHECKING:
    from converters.source import Source

PROGRAM = ".pt2"  # brings its weights and its class count along
GIVEN = "given"  # the weights of a factory's module, which came with it
RANDOM = "random"


def load_model(ref: str, options: EvalOptions, data_classes: int) -> Source:
    """The module of a model reference, with as many classes as the data where that can be chosen.

    Raises ConvertError, ModelError, and EvaluationError where the weights are for another number of
    classes: a new head would know nothing.
    """
    classes = options.classes
    if classes is None and _takes_classes(ref):
        classes = data_classes
    source = _load(ref, options.weights, options.size, classes)
    if options.weights is not None and not source.trained:
        raise EvaluationError(
            f"{options.weights} does not fit {classes} classes ({'; '.join(source.notes)}), and an "
            "untrained head only guesses: give the data it was trained for, or train it first with "
            "`edgevit train`"
        )
    return source


def torch_of_bundle(bundle: Bundle, weights: str | None) -> tuple[Source | None, str]:
    """The module that a bundle was made from, or None and why it is not to be had here.

    Without `weights` it is built where the manifest's digest can be met: the weights that
    config.yaml names are where they were, or none were loaded. Raises EvaluationError where
    `weights` are others than the bundle's.
    """
    model, pre = bundle.manifest.model, bundle.manifest.preprocessing
    given = weights is not None
    if find_spec("torch") is None:
        return None, "torch is not installed: pip install 'edgevit[convert]'"
    program = model.ref.endswith(PROGRAM)
    unnamed = program or model.weights == GIVEN or model.weights.startswith(RANDOM)
    if weights is None and not unnamed:
        weights = _weights_of_config(bundle)
        if weights is None:
            return None, f"the weights '{model.weights}' are not here; --weights FILE says where"
    size = pre.height if pre.height == pre.width else None
    try:
        source = _load(model.ref, weights, size, None if program else model.num_classes)
    except Exception as error:
        if given or not hasattr(error, "exit_code"):
            raise
        return None, f"'{model.ref}' cannot be built here: {error}"
    if source.weights_sha256 == model.weights_sha256:
        return source, ""
    digests = f"sha256 {model.weights_sha256[:12]}..., got {source.weights_sha256[:12]}..."
    if given:
        raise EvaluationError(
            f"{weights} are not the weights that {bundle.path} was made from (expected {digests}): "
            "leave --weights out, or convert again"
        )
    return None, (
        f"'{model.ref}' has other weights here than in the bundle ({digests}); "
        "--weights FILE names the right ones"
    )


def _load(ref: str, weights: str | None, size: int | None, classes: int | None) -> Source:
    from converters.chatter import chatter_to
    from converters.source import load_source

    path: Any = weights if weights is None or weights.startswith("hf:") else Path(weights)
    with chatter_to(None):
        return load_source(ref, weights=path, size=size, classes=classes)


def _takes_classes(ref: str) -> bool:
    """Whether a head is made for the asking, as in the zoo and in timm."""
    return ref.startswith("timm:") or (":" not in ref and not ref.endswith(PROGRAM))


def _weights_of_config(bundle: Bundle) -> str | None:
    """The weights file that config.yaml names, if it is still there."""
    try:
        config = yaml.safe_load((bundle.path / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = config.get("weights") if isinstance(config, dict) else None
    return named if isinstance(named, str) and Path(named).is_file() else None
