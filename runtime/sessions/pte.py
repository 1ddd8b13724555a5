"""What an ExecuTorch program calls, read from the .pte file itself: no ExecuTorch, no torch.

A .pte is a flatbuffer (executorch/schema/program.fbs, identifier ET12) followed by segments, which
an extended header describes. FIELD numbers are the fields' positions in the schema, which the
flatbuffer rules freeze. ExecuTorch's own reader lives in its compiler package, whose import costs
four seconds and torch. Its runtime also dies, rather than complains, on some damaged files
(`std::terminate` in 1.4.1), so a session reads the file with this first.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import RuntimeFault

PROGRAM_EXECUTION_PLAN, PROGRAM_DELEGATE_DATA, PROGRAM_SEGMENTS = 1, 3, 4
PLAN_NAME, PLAN_CHAINS, PLAN_OPERATORS, PLAN_DELEGATES = 0, 5, 6, 7
CHAIN_INSTRUCTIONS = 2
INSTRUCTION_KIND, INSTRUCTION_CALL = 0, 1
KERNEL_CALL, DELEGATE_CALL = 1, 2
CALL_INDEX = 0
OPERATOR_NAME, OPERATOR_OVERLOAD = 0, 1
DELEGATE_ID, DELEGATE_PROCESSED = 0, 1
REFERENCE_LOCATION, REFERENCE_INDEX = 0, 1
IN_SEGMENT = 1
SEGMENT_OFFSET = 0
INLINE_DATA = 0
XNN_GRAPH_NODES = 1


@dataclass
class Program:
    """The calls of method `forward`, in numbers.

    delegate_calls maps a back end's id to its calls, kernels an operator's name to its calls.
    delegated_nodes is the number of nodes inside the XNNPACK blobs; None where a blob is of another
    back end or form.
    """

    delegate_calls: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    delegated_nodes: int | None = 0


def read_program(path: Path) -> Program:
    """Read the instructions of `forward`. Raises RuntimeFault where the .pte is not whole."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except (struct.error, ValueError, IndexError, UnicodeDecodeError) as error:
        raise RuntimeFault(
            f"{path.name} is not a whole ExecuTorch program ({error}). "
            "The file is damaged or half-written; convert it again or fetch it anew"
        ) from error


def _read(data: mmap.mmap) -> Program:
    if data[4:6] != b"ET":
        raise ValueError(f"expected the mark 'ET12' at byte 4, got {bytes(data[4:8])!r}")
    segments_at = 0
    if data[8:12] == b"eh00":
        _, program_size, segments_at = struct.unpack_from("<IQQ", data, 12)
        expected = max(program_size, segments_at)
        if len(data) < expected:
            raise ValueError(f"expected at least {expected} bytes, got {len(data)}")
    program = _Table.root(data, 0)
    segments = list(program.tables(PROGRAM_SEGMENTS))
    for segment in segments:
        end = segments_at + segment.u64(SEGMENT_OFFSET) + segment.u64(SEGMENT_OFFSET + 1)
        if len(data) < end:
            raise ValueError(f"expected at least {end} bytes, got {len(data)}")
    plans = [p for p in program.tables(PROGRAM_EXECUTION_PLAN) if p.text(PLAN_NAME) == "forward"]
    if len(plans) != 1:
        raise ValueError("it has no method 'forward'")
    operators = [_operator_name(o) for o in plans[0].tables(PLAN_OPERATORS)]
    delegates = list(plans[0].tables(PLAN_DELEGATES))
    found = Program()
    for chain in plans[0].tables(PLAN_CHAINS):
        for instruction in chain.tables(CHAIN_INSTRUCTIONS):
            kind = instruction.u8(INSTRUCTION_KIND)
            call = instruction.table(INSTRUCTION_CALL)
            if kind == KERNEL_CALL and call:
                found.kernels[operators[call.u32(CALL_INDEX)]] += 1
            elif kind == DELEGATE_CALL and call:
                delegate = delegates[call.u32(CALL_INDEX)]
                found.delegate_calls[delegate.text(DELEGATE_ID)] += 1
                blob = _blob_at(delegate, program, segments, segments_at)
                nodes = _xnnpack_nodes(data, blob)
                if nodes is None or found.delegated_nodes is None:
                    found.delegated_nodes = None
                else:
                    found.delegated_nodes += nodes
    return found


def _operator_name(operator: _Table) -> str:
    overload = operator.text(OPERATOR_OVERLOAD)
    return operator.text(OPERATOR_NAME) + (f".{overload}" if overload else "")


def _blob_at(
    delegate: _Table, program: _Table, segments: list[_Table], segments_at: int
) -> int | None:
    """The file offset of a delegate's blob."""
    reference = delegate.table(DELEGATE_PROCESSED)
    if reference is None:
        return None
    index = reference.u32(REFERENCE_INDEX)
    if reference.u8(REFERENCE_LOCATION) == IN_SEGMENT:
        return segments_at + segments[index].u64(SEGMENT_OFFSET)
    return list(program.tables(PROGRAM_DELEGATE_DATA))[index].vector_at(INLINE_DATA)


def _xnnpack_nodes(data: mmap.mmap, blob: int | None) -> int | None:
    """Nodes of an XNNPACK blob: header XH00 (schema: xnnpack/serialization), then a flatbuffer."""
    if blob is None or data[blob + 4 : blob + 8] != b"XH00":
        return None
    (offset,) = struct.unpack_from("<I", data, blob + 10)
    return sum(1 for _ in _Table.root(data, blob + offset).tables(XNN_GRAPH_NODES))


@dataclass(frozen=True)
class _Table:
    """A flatbuffer table; struct.error where an offset leaves the file."""

    data: mmap.mmap
    at: int

    @classmethod
    def root(cls, data: mmap.mmap, start: int) -> _Table:
        return cls(data, start + _u32(data, start))

    def field(self, number: int) -> int | None:
        """Where a field lies, None where the file leaves it out."""
        (back,) = struct.unpack_from("<i", self.data, self.at)
        vtable = self.at - back
        if vtable < 0:
            raise ValueError("an offset leaves the file")
        slot = 4 + 2 * number
        (size,) = struct.unpack_from("<H", self.data, vtable)
        if slot >= size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, vtable + slot)
        return self.at + offset if offset else None

    def u8(self, number: int) -> int:
        at = self.field(number)
        return 0 if at is None else self.data[at]

    def u32(self, number: int) -> int:
        at = self.field(number)
        return 0 if at is None else _u32(self.data, at)

    def u64(self, number: int) -> int:
        at = self.field(number)
        return 0 if at is None else int(struct.unpack_from("<Q", self.data, at)[0])

    def table(self, number: int) -> _Table | None:
        at = self.field(number)
        return None if at is None else _Table(self.data, at + _u32(self.data, at))

    def tables(self, number: int) -> Iterator[_Table]:
        at = self.field(number)
        if at is None:
            return
        start = at + _u32(self.data, at)
        for i in range(_u32(self.data, start)):
            element = start + 4 + 4 * i
            yield _Table(self.data, element + _u32(self.data, element))

    def vector_at(self, number: int) -> int | None:
        """Where the bytes of a byte vector start."""
        at = self.field(number)
        return None if at is None else at + _u32(self.data, at) + 4

    def text(self, number: int) -> str:
        at = self.field(number)
        if at is None:
            return ""
        start = at + _u32(self.data, at)
        return self.data[start + 4 : start + 4 + _u32(self.data, start)].decode()


def _u32(data: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
