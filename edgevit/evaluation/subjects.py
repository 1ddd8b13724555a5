"""What is to be evaluated, as a person names it: a bundle, an artefact file, or a model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from converters.refs.grammar import Kind, kind_of
from edgevit.evaluation.errors import EvaluationError
from edgevit.evaluation.options import EvalOptions
from edgevit.evaluation.predictors import ArtifactPredictor, Predictor, TorchPredictor
from edgevit.evaluation.record import Result
from edgevit.evaluation.torch_side import load_model, torch_of_bundle
from runtime.bundle import Bundle, bundle_of, check_bytes, read_bundle
from runtime.errors import MissingExtra, RuntimeFault
from runtime.inputs import plain_preprocessing
from runtime.manifest import LABELS_NAME, MANIFEST_NAME, Preprocessing
from runtime.sessions.base import ENGINES, engine_for, open_session

if TYPE_CHECKING:
    from converters.source import Source

SUFFIXES = frozenset(engine.suffix for engine in ENGINES)


@dataclass
class Subject:
    """What was opened, how it wants its pictures, and what could not be opened and why.

    labels is the file with the model's class names, where there is one. trained is None where
    nobody says.
    """

    classes: int
    preprocessing: Preprocessing
    trained: bool | None
    labels: Path | None = None
    predictors: list[Predictor] = field(default_factory=list)
    absent: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_subject(subject: str, options: EvalOptions, data_classes: int) -> Subject:
    """Open everything of a subject that can run here.

    Raises EvaluationError, RuntimeFault, ConvertError, ModelError: all have an exit_code.
    """
    path = Path(subject)
    if path.suffix in SUFFIXES:
        return _artefact(path, options)
    if (path / MANIFEST_NAME).is_file():
        return _bundle(path, options)
    if path.is_dir() and "/" in subject:
        read_bundle(path)  # says what is missing
    if "/" in subject and kind_of(subject) is Kind.ZOO and not path.exists():
        raise EvaluationError(
            f"no such bundle or artefact: {subject}. Expected a folder that `edgevit convert` "
            "wrote, an artefact file, or a model (shvit_s1, timm:NAME, package.module:factory)"
        )
    try:
        return _model(subject, options, data_classes)
    except Exception as error:
        if not path.is_dir() or not hasattr(error, "exit_code"):
            raise
        raise EvaluationError(f"{error}. The folder {path} has no {MANIFEST_NAME}") from error


def _model(ref: str, options: EvalOptions, data_classes: int) -> Subject:
    source = load_model(ref, options, data_classes)
    opened = Subject(source.num_classes, source.preprocessing, source.trained)
    opened.notes += source.notes
    if options.weights is not None:
        opened.labels = _file_or_none(Path(options.weights).parent / LABELS_NAME)
    _add_torch(opened, source, options)
    return opened


def _bundle(path: Path, options: EvalOptions) -> Subject:
    """Every artefact, and torch where its module can be had."""
    bundle = read_bundle(path)
    targets = sorted(bundle.manifest.artifacts)
    if not targets:
        raise EvaluationError(f"{path}: every target failed to convert, nothing to evaluate")
    check_bytes(bundle, targets)
    opened = _of_manifest(bundle, options)
    source, why = torch_of_bundle(bundle, options.weights)
    if source is not None:
        _add_torch(opened, source, options)
    else:
        opened.absent.append(Result("torch", "not_executed", reason=why))
    for target in targets:
        _add_target(opened, bundle, target, options.threads)
    return opened


def _artefact(path: Path, options: EvalOptions) -> Subject:
    """One artefact; torch beside it only where its weights are given, so that none is imported."""
    if not path.exists():
        raise EvaluationError(f"no such artefact: {path}")
    found = bundle_of(path)
    if found is None:
        return _bare(path, options)
    bundle, target = found
    check_bytes(bundle, [target])
    opened = _of_manifest(bundle, options)
    if options.weights is not None:
        source, why = torch_of_bundle(bundle, options.weights)
        if source is None:
            raise EvaluationError(why)
        _add_torch(opened, source, options)
    _add_target(opened, bundle, target, options.threads)
    return opened


def _bare(path: Path, options: EvalOptions) -> Subject:
    """An artefact that no manifest describes: a picture in, RGB in [0, 1] or bytes; logits out."""
    if options.weights is not None:
        raise EvaluationError(
            f"no manifest beside {path} says which model it is, so --weights cannot be loaded; "
            "give the bundle, or leave --weights out"
        )
    session = open_session(path, options.threads)
    try:
        preprocessing = plain_preprocessing(session.input)
    except RuntimeFault:
        session.close()
        raise
    opened = Subject(session.output.shape[-1], preprocessing, None)
    opened.predictors.append(ArtifactPredictor(engine_for(path).target, None, session))
    opened.notes.append(
        f"no manifest beside {path.name}: pictures go in as RGB in [0, 1] or bytes, not cropped"
    )
    _check_options(opened, options)
    return opened


def _of_manifest(bundle: Bundle, options: EvalOptions) -> Subject:
    manifest = bundle.manifest
    opened = Subject(manifest.classes, manifest.preprocessing, manifest.model.trained)
    if manifest.labels is not None:
        opened.labels = bundle.path / LABELS_NAME
    _check_options(opened, options)
    return opened


def _check_options(opened: Subject, options: EvalOptions) -> None:
    """Refuse a size or a class count that an artefact, whose own are fixed, does not have."""
    pre = opened.preprocessing
    if options.size is not None and (options.size, options.size) != (pre.height, pre.width):
        raise EvaluationError(
            f"artefacts have a fixed size, here {pre.height} x {pre.width}: leave --size out, or "
            "convert with another"
        )
    if options.classes is not None and options.classes != opened.classes:
        raise EvaluationError(
            f"--classes says {options.classes} and the artefact has {opened.classes}: leave it out"
        )


def _add_torch(opened: Subject, source: Source, options: EvalOptions) -> None:
    opened.predictors.append(TorchPredictor(source, options.threads))


def _add_target(opened: Subject, bundle: Bundle, target: str, threads: int) -> None:
    """Open an artefact; where that fails, the reason in its place."""
    artifact = bundle.artifact(target)
    file = bundle.artifact_path(target)
    if engine_for(file).name == "coreml" and sys.platform != "darwin":
        from runtime.sessions.coreml import MACOS_ONLY

        why = f"converted, not executed here: {MACOS_ONLY}"
        opened.absent.append(Result(target, "not_executed", artifact.precision, reason=why))
        return
    try:
        session = open_session(file, threads)
    except MissingExtra as error:
        why = f"converted, not executed here: {error}"
        opened.absent.append(Result(target, "not_executed", artifact.precision, reason=why))
    except RuntimeFault as error:
        opened.absent.append(Result(target, "failed", artifact.precision, reason=str(error)))
    else:
        opened.predictors.append(ArtifactPredictor(target, artifact.precision, session))


def _file_or_none(path: Path) -> Path | None:
    return path if path.is_file() else None
