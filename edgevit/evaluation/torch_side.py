"""The torch module to evaluate, by itself or beside the artefacts that were made from it.

torch is imported only where a module is going to be built.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from converters.refs.grammar import Kind, is_hub_ref, kind_of, needs_weights
from edgevit.evaluation.errors import EvaluationError
from edgevit.evaluation.options import EvalOptions
from runtime.bundle import Bundle
from runtime.errors import RuntimeFault
from runtime.manifest import CONFIG_NAME
from runtime.yaml_file import read_yaml

if TYPE_CHECKING:
    from converters.source import Source


def load_model(ref: str, options: EvalOptions, data_classes: int) -> Source:
    """The module of a model reference, with as many classes as the data where that can be chosen.

    Raises ConvertError, ModelError, and EvaluationError where the weights are for another number of
    classes: a new head would know nothing.
    """
    classes = options.classes
    if classes is None and kind_of(ref).takes_classes:
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

    Without `weights` it is built where the manifest's digest can be met: the weights are still
    where they came from, on the hub or on this disk, or none were loaded. Raises EvaluationError
    where `weights` are others than the bundle's.
    """
    model, pre = bundle.manifest.model, bundle.manifest.preprocessing
    given = weights is not None
    if find_spec("torch") is None:
        return None, "torch is not installed: pip install 'edgevit[convert]'"
    if weights is None and needs_weights(model.ref, model.weights):
        weights = _weights_of(bundle)
        if weights is None:
            return None, f"the weights '{model.weights}' are not here; --weights FILE says where"
    size = pre.height if pre.height == pre.width else None
    try:
        classes = None if kind_of(model.ref) is Kind.PROGRAM else model.num_classes
        source = _load(model.ref, weights, size, classes)
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

    with chatter_to(None):
        return load_source(ref, weights=weights, size=size, classes=classes)


def _weights_of(bundle: Bundle) -> str | None:
    """The manifest's reference to the hub, or the file of config.yaml if it is still there."""
    if is_hub_ref(bundle.manifest.model.weights):
        return bundle.manifest.model.weights
    try:
        config = read_yaml(bundle.path / CONFIG_NAME)
    except RuntimeFault:
        return None
    named = config.get("weights") if isinstance(config, dict) else None
    return named if isinstance(named, str) and Path(named).is_file() else None
