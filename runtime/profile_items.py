"""What to profile: bundles and single artefact files, as a person names them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.bundle import Bundle, bundle_of, read_bundle
from runtime.errors import RuntimeFault
from runtime.manifest import Artifact
from runtime.sessions.base import engine_for

_UNTRAINED = "the weights are random, so only the latency means anything, not the classes"


@dataclass(frozen=True)
class ProfileItem:
    """One artefact to measure; all but the path may be left out.

    reference is the reference.npz whose first picture is the input; without it the input is random.
    note is a warning that the run carries to every report.
    """

    path: Path
    label: str = ""
    id: str = ""
    model: str | None = None
    artifact: Artifact | None = None
    reference: Path | None = None
    note: str = ""


def items_from(paths: list[Path]) -> list[ProfileItem]:
    """The items of bundles (every artefact) and artefact files, with distinct ids and labels.

    A file that lies in the bundle it came from brings its manifest entry along. Raises RuntimeFault
    for a path that is neither.
    """
    return distinct([item for path in paths for item in _items(path)])


def distinct(items: list[ProfileItem]) -> list[ProfileItem]:
    """Fill empty labels and ids, and tell equal ones apart by their folder, then by a number."""
    named = [replace(i, label=i.label or i.path.name, id=i.id or _id(i)) for i in items]
    labels = Counter(i.label for i in named)
    named = [
        replace(i, label=f"{i.label} ({i.path.resolve().parent.name})")
        if labels[i.label] > 1
        else i
        for i in named
    ]
    labels, ids = Counter[str](), Counter[str]()
    return [replace(i, label=_numbered(i.label, labels), id=_numbered(i.id, ids)) for i in named]


def _numbered(text: str, seen: Counter[str]) -> str:
    """`text` the first time, then 'text #2', 'text #3'."""
    seen[text] += 1
    return text if seen[text] == 1 else f"{text} #{seen[text]}"


def _items(path: Path) -> list[ProfileItem]:
    if not path.exists():
        raise RuntimeFault(f"no such bundle or artefact: {path}")
    if path.is_dir() and path.suffix != ".mlpackage":
        bundle = read_bundle(path)
        if not bundle.manifest.artifacts:
            raise RuntimeFault(f"{path}: every target failed to convert, nothing to profile")
        return [_in_bundle(bundle, target) for target in sorted(bundle.manifest.artifacts)]
    engine_for(path)  # refuses a suffix that no engine opens
    found = bundle_of(path)
    return [ProfileItem(path) if found is None else _in_bundle(*found)]


def _in_bundle(bundle: Bundle, target: str) -> ProfileItem:
    artifact = bundle.artifact(target)
    model, trained = bundle.manifest.model.ref, bundle.manifest.model.trained
    reference = bundle.reference_path()
    return ProfileItem(
        path=bundle.artifact_path(target),
        label=f"{model} {target} {artifact.precision}",
        model=model,
        artifact=artifact,
        reference=reference if reference.exists() else None,
        note="" if trained else f"{model}: {_UNTRAINED}",
    )


def _id(item: ProfileItem) -> str:
    return item.label.replace(" ", "/") if item.label else item.path.name
