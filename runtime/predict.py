"""Classes of pictures from an artefact, as its bundle describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle, bundle_of, check_bytes, read_bundle
from runtime.errors import CheckFailed, RuntimeFault
from runtime.inputs import plain_preprocessing, to_input
from runtime.labels import read_labels
from runtime.manifest import LABELS_NAME, Preprocessing
from runtime.sessions import Session, open_session
from runtime.sessions.base import Array, engine_for

# The first that runs here answers.
ORDER = ("tflite", "onnx", "executorch", "coreml")


@dataclass(frozen=True)
class Guess:
    """One class: its index in the logits, its label where there is one, its softmax in [0, 1]."""

    index: int
    label: str | None
    probability: float
    logit: float


@dataclass
class Predictor:
    """An open artefact, and what is known of its pictures and classes.

    skipped maps a target that was tried before to the reason why it does not answer. trained is
    None where nobody says.
    """

    session: Session
    path: Path
    target: str
    preprocessing: Preprocessing
    model: str | None = None
    precision: str | None = None
    labels: list[str] | None = None
    trained: bool | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def top(self, picture_HWC: Array, count: int) -> list[Guess]:
        """The `count` likeliest classes of one picture (H, W, 3), float32 in [0, 1], prepared.

        Equal logits come in the order of their classes. Raises RuntimeFault, CheckFailed where the
        artefact gives no numbers.
        """
        logits = self.session.run(to_input(picture_HWC, self.session.input)).reshape(-1)
        if logits.dtype.kind != "f":
            raise RuntimeFault(
                f"{self.path.name} gives {logits.dtype}, expected floating-point logits; convert "
                "it with a float output"
            )
        if self.labels is not None and len(self.labels) != len(logits):
            raise RuntimeFault(
                f"{self.path.parent / LABELS_NAME} has {len(self.labels)} labels and "
                f"{self.path.name} {len(logits)} classes; convert again with --labels"
            )
        if not np.isfinite(logits).all():
            raise CheckFailed(
                f"{self.path.name} answers with NaN or infinity: `edgevit verify` tells more"
            )
        return likeliest(logits, self.labels, count)

    def close(self) -> None:
        """Free the engine's memory."""
        self.session.close()


def likeliest(logits_K: Array, labels: list[str] | None, count: int) -> list[Guess]:
    """The `count` likeliest classes of finite logits; equal ones in the order of their classes."""
    share = softmax(logits_K)
    order = np.argsort(-logits_K, kind="stable")[:count]
    return [
        Guess(int(i), labels[i] if labels else None, float(share[i]), float(logits_K[i]))
        for i in order
    ]


def softmax(logits_K: Array) -> NDArray[np.float64]:
    """exp(x) over its sum, in float64; the largest goes off first, so that nothing overflows."""
    shifted = np.exp(logits_K.astype(np.float64) - float(logits_K.max()))
    share: NDArray[np.float64] = shifted / shifted.sum()
    return share


def open_predictor(path: Path, target: str | None = None, threads: int = 1) -> Predictor:
    """Open a bundle's artefact, or an artefact file, on its engine.

    Without `target` a bundle answers with the first of ORDER that is there, was not found wrong
    when it was made, and runs here. Raises RuntimeFault, MissingExtra.
    """
    if path.is_dir() and path.suffix != ".mlpackage":
        return _of_bundle(read_bundle(path), target, threads)
    if not path.exists():
        raise RuntimeFault(f"no such bundle or artefact: {path}")
    own = engine_for(path).target
    if target is not None and target != own:
        raise RuntimeFault(
            f"{path} is an artefact for {own}: leave --target {target} out, or give its bundle"
        )
    found = bundle_of(path)
    if found is None:
        return _bare(path, own, threads)
    bundle, name = found
    return _opened(bundle, name, threads, _labels(bundle))


def _of_bundle(bundle: Bundle, target: str | None, threads: int) -> Predictor:
    labels = _labels(bundle)
    if target is not None:
        return _opened(bundle, target, threads, labels)
    skipped: dict[str, str] = {}
    for name in (t for t in ORDER if t in bundle.manifest.artifacts):
        check = bundle.artifact(name).verification
        if check.status == "failed":
            skipped[name] = f"its verification failed: {check.reason}"
            continue
        try:
            predictor = _opened(bundle, name, threads, labels)
        except RuntimeFault as error:  # no engine here, or a damaged file
            skipped[name] = str(error)
            continue
        predictor.skipped = skipped
        return predictor
    reasons = "".join(f"\n  {name}: {why}" for name, why in skipped.items())
    raise RuntimeFault(f"no artefact of {bundle.path} runs here:{reasons or ' it has none'}")


def _labels(bundle: Bundle) -> list[str] | None:
    """The names of the classes, where the bundle has any. Raises RuntimeFault."""
    return read_labels(bundle.path / LABELS_NAME) if bundle.manifest.labels is not None else None


def _opened(bundle: Bundle, target: str, threads: int, labels: list[str] | None) -> Predictor:
    artifact, manifest = bundle.artifact(target), bundle.manifest
    check_bytes(bundle, [target])
    notes = []
    if artifact.verification.status == "failed":
        notes.append(f"the verification of {target} failed: {artifact.verification.reason}")
    file = bundle.artifact_path(target)
    return Predictor(
        open_session(file, threads), file, target, manifest.preprocessing, manifest.model.ref,
        artifact.precision, labels, manifest.model.trained, notes=notes,
    )  # fmt: skip


def _bare(path: Path, target: str, threads: int) -> Predictor:
    """An artefact that no manifest describes."""
    session = open_session(path, threads)
    try:
        preprocessing = plain_preprocessing(session.input)
    except RuntimeFault:
        session.close()
        raise
    note = (
        f"no manifest beside {path.name}: the picture goes in as RGB in [0, 1] or bytes, scaled to "
        f"cover {preprocessing.height} x {preprocessing.width}, and classes have no labels"
    )
    return Predictor(session, path, target, preprocessing, notes=[note])
