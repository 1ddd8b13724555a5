"""ExecuTorch with the XNNPACK delegate: NCHW in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

from converters.lower.base import TARGETS, Job, Lowered, versions_of
from converters.lower.rewrites import rewritten

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def lower(program: ExportedProgram, job: Job) -> Lowered:
    """Write a .pte program."""
    program, rewrites = rewritten("executorch", program)
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    with job.file.open("wb") as file:
        edge.to_executorch().write_to_file(file)
    return Lowered(versions_of(TARGETS["executorch"].packages), rewrites)
