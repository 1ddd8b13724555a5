"""Run a fresh artefact on its engine over the reference inputs of the bundle."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.lower.base import TARGETS, Job
from converters.verify.locate import locate_divergence
from runtime.compare import verify_outputs
from runtime.inputs import to_input
from runtime.manifest import REFERENCE_NAME, TensorSpec, Verification
from runtime.sessions import open_session
from runtime.sessions.coreml import MACOS_ONLY

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def verify_artifact(
    target: str, program: ExportedProgram, job: Job, folder: Path
) -> dict[str, Any]:
    """Open `job.file` on its engine, run it over `folder/reference.npz`, judge by its precision.

    Returns JSON-ready `verification`, `input`, `output`, `delegation`. A failed artefact names the
    first torch module that diverges. Core ML off macOS is 'not_executed', never passed.
    """
    if target == "coreml" and sys.platform != "darwin":
        return _core_ml_not_executed(job, int(_output_shape(program)[-1]))
    with np.load(folder / REFERENCE_NAME, allow_pickle=False) as reference:
        inputs_NHWC, outputs_NK = reference["inputs"], reference["outputs"]
    session = open_session(job.file, threads=1)
    try:
        got_NK = np.concatenate([session.run(to_input(x, session.input)) for x in inputs_NHWC])
        prover = f"{session.engine} {session.engine_version}"
        verification = verify_outputs(outputs_NK, got_NK, job.precision, prover)
        delegation = session.delegation()
        specs = (session.input, session.output)
    finally:
        session.close()
    if verification.status == "failed":
        first = locate_divergence(target, program, job, inputs_NHWC)
        verification = verification.model_copy(update={"first_divergence": first})
    return {
        "verification": verification.model_dump(),
        "input": asdict(specs[0]),
        "output": asdict(specs[1]),
        "delegation": delegation.model_dump() if delegation else None,
    }


def _core_ml_not_executed(job: Job, classes: int) -> dict[str, Any]:
    image = TensorSpec(
        name="image", shape=[1, job.height, job.width, 3], dtype="uint8", layout="NHWC"
    )
    return {
        "verification": Verification(
            status="not_executed",
            prover=TARGETS["coreml"].engine,
            reason=f"converted, not executed: {MACOS_ONLY}",
        ).model_dump(),
        "input": asdict(image),
        "output": asdict(TensorSpec(name="logits", shape=[1, classes], dtype="float32")),
        "delegation": None,
    }


def _output_shape(program: ExportedProgram) -> tuple[int, ...]:
    node = next(n for n in program.graph.nodes if n.op == "output")
    return tuple(int(s) for s in node.args[0][0].meta["val"].shape)
