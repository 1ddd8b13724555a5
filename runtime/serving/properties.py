"""What a bundle tells about its artefact, as the metadata of the protocol carries it."""

from __future__ import annotations

import json

from runtime.bundle import Bundle
from runtime.labels import read_labels
from runtime.manifest import LABELS_NAME


def properties(bundle: Bundle, digest: str, target: str) -> dict[str, str]:
    """The properties of one target, as texts; preprocessing and labels are JSON.

    Raises RuntimeFault where the bundle has no such target, or its labels cannot be read.
    """
    manifest = bundle.manifest
    found = {
        "model": manifest.model.ref,
        "target": target,
        "precision": bundle.artifact(target).precision,
        "bundle_digest": digest,
        "trained": str(manifest.model.trained).lower(),
        "preprocessing": manifest.preprocessing.model_dump_json(),
    }
    if manifest.labels is not None:
        found["labels"] = json.dumps(read_labels(bundle.path / LABELS_NAME))
    return found
