"""Verify a bundle where it lies: its bytes, then its artefacts on their engines."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from runtime.bundle import Bundle, check_bytes, read_bundle, read_reference
from runtime.compare import verify_outputs
from runtime.errors import MissingExtra, RuntimeFault
from runtime.inputs import to_input
from runtime.manifest import Artifact, Verification
from runtime.sessions import open_session
from runtime.sessions.base import Array, engine_for


def verify_bundle(
    path: Path, threads: int = 1, targets: list[str] | None = None
) -> list[tuple[str, Verification]]:
    """Check a bundle's bytes and run each artefact of `targets` (all) on every reference input.

    An engine that is not here gives status `not_executed` with the reason; an artefact that does
    not run, or runs to other numbers, gives `failed`. Raises RuntimeFault for a folder that is no
    bundle or a target it has not, CheckFailed for changed bytes.
    """
    bundle = read_bundle(path)
    wanted = targets if targets is not None else sorted(bundle.manifest.artifacts)
    for target in wanted:
        bundle.artifact(target)
    check_bytes(bundle, wanted)
    inputs_NHWC, outputs_NK = read_reference(bundle)
    return [(t, _verify(bundle, t, threads, inputs_NHWC, outputs_NK)) for t in wanted]


def _verify(
    bundle: Bundle, target: str, threads: int, inputs_NHWC: Array, outputs_NK: Array
) -> Verification:
    artifact = bundle.artifact(target)
    file = bundle.artifact_path(target)
    if (why := _cannot_run(file)) is not None:
        return _without_numbers(artifact, "not_executed", why)
    try:
        session = open_session(file, threads)
        try:
            rows = [session.run(to_input(x, session.input)) for x in inputs_NHWC]
        finally:
            session.close()
        got_NK = np.concatenate(rows).reshape(len(rows), -1)
        prover = f"{session.engine} {session.engine_version}"
        return verify_outputs(outputs_NK, got_NK, artifact.precision, prover)
    except MissingExtra as error:
        return _without_numbers(artifact, "not_executed", f"converted, not executed: {error}")
    except RuntimeFault as error:
        return _without_numbers(artifact, "failed", str(error))


def _cannot_run(file: Path) -> str | None:
    """Why this system cannot run the file at all, None where it can."""
    if engine_for(file).name == "coreml" and sys.platform != "darwin":
        from runtime.sessions.coreml import MACOS_ONLY

        return f"converted, not executed: {MACOS_ONLY}"
    return None


def _without_numbers(artifact: Artifact, status: str, reason: str) -> Verification:
    return Verification.model_validate(
        {"status": status, "prover": artifact.engine, "reason": reason}
    )
