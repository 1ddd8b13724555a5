"""ExecuTorch on the CPU. Its binding takes torch tensors, so torch is imported here, late."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import RuntimeFault, missing_extra
from runtime.sessions.base import Array, check_input, closed, layout_of, run_failed
from runtime.sessions.pte import read_program
from runtime.sessions.quiet import engine_chatter
from runtime.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from runtime.manifest import Delegation
    from runtime.run_record import OpTime

METHOD = "forward"
# c10::ScalarType, the numbers of executorch/schema/scalar_type.fbs
DTYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32"}


def import_engine() -> tuple[Any, Any]:
    """ExecuTorch's binding and torch. Raises MissingExtra."""
    try:
        with engine_chatter():
            import torch
            from executorch.extension.pybindings import _portable_lib
    except ImportError as error:
        raise missing_extra("Running a .pte file", "executorch", "executorch") from error
    return _portable_lib, torch


class ExecuTorchSession:
    """One .pte file with one input and one output.

    ExecuTorch has one thread pool for the whole process: opening a session sets it to `threads`
    for every session that is already open. Where that matters, use one process a session.
    """

    engine = "executorch"

    def __init__(self, path: Path, threads: int) -> None:
        """Load. Raises MissingExtra, RuntimeFault where the file does not load."""
        self._path = path
        self._program = read_program(path)
        binding, self._torch = import_engine()
        self.engine_version = metadata.version("executorch")
        self.threads = threads
        failed = None
        with engine_chatter() as said:
            try:
                if binding._threadpool_get_thread_count() != threads:
                    binding._unsafe_reset_threadpool(threads)
                self._loaded: Any = binding._load_program(
                    str(path), program_verification=binding.Verification.InternalConsistency
                )
                self._method: Any = self._loaded.load_method(METHOD)
                meta = self._method.method_meta()
            except RuntimeError as error:
                failed = error
        if failed is not None:
            missing = sorted(set(self._program.kernels) - set(binding._get_operator_names()))
            raise RuntimeFault(
                f"ExecuTorch {self.engine_version} cannot load {path.name}: {failed}"
                + (f" ({said.last_line()}). " if said.last_line() else ". ")
                + (
                    f"This build lacks the operators {', '.join(missing)}: convert without them"
                    if missing
                    else "The file is damaged or made for another version; convert it again"
                )
            ) from failed
        self.input = _only("input", meta.num_inputs(), meta.input_tensor_meta, path)
        self.output = _only("output", meta.num_outputs(), meta.output_tensor_meta, path)

    def run(self, x: Array) -> Array:
        """Run once: x as `input` says, the result as `output` says, freshly allocated."""
        if self._method is None:
            raise closed(self._path)
        check_input(x, self.input)
        tensor = self._torch.from_numpy(np.require(x, requirements=["C", "W"]))
        try:
            result: Array = self._method([tensor])[0].numpy()  # the call clones its outputs
        except RuntimeError as error:
            raise run_failed("ExecuTorch", self._path, error) from error
        return result

    def per_op(self, x: Array, runs: int) -> tuple[list[OpTime] | None, str | None]:
        """None: the event tracer is off in the package's build."""
        if self._method is None:
            raise closed(self._path)
        check_input(x, self.input)
        return None, (
            f"the executorch {self.engine_version} package is built without its event tracer "
            "(EXECUTORCH_ENABLE_EVENT_TRACER), so it records no ETDump and no per-op times"
        )

    def delegation(self) -> Delegation | None:
        """Delegate calls, and the kernels called outside, as the program lists them.

        A node is an instruction of the program or a node of an XNNPACK blob.
        """
        if self._method is None:
            raise closed(self._path)
        program = self._program
        inside, outside = program.delegated_nodes, program.kernels.total()
        from runtime.manifest import Delegation

        return Delegation(
            delegate="+".join(sorted(program.delegate_calls)) or "XnnpackBackend",
            partitions=program.delegate_calls.total(),
            nodes_delegated=inside,
            nodes_total=None if inside is None else inside + outside,
            outside=dict(program.kernels.most_common()),
        )

    def close(self) -> None:
        """Free the program."""
        self._method = self._loaded = None


def _only(kind: str, count: int, meta: Callable[[int], Any], path: Path) -> TensorSpec:
    """The spec of the only input or output; the program names neither."""
    if count != 1:
        raise RuntimeFault(f"{path.name}: expected one {kind}, the program has {count}")
    info = meta(0)
    shape = [int(n) for n in info.sizes()]
    if info.dtype() not in DTYPES:
        raise RuntimeFault(f"{path.name}: {kind} has the unknown dtype number {info.dtype()}")
    return TensorSpec(name=kind, shape=shape, dtype=DTYPES[info.dtype()], layout=layout_of(shape))
