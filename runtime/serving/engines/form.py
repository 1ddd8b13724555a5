"""How many rows an artefact takes in one run, and where they lie in memory shared by two processes.

A row is one picture: an entry along the first dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.sessions.base import Array
from runtime.tensor_spec import ANY, TensorSpec

LINE = 64  # bytes; both arrays start at a cache line


@dataclass(frozen=True)
class Form:
    """Input and output of an artefact, and at most how many rows a run of it takes.

    most is None where the input has no free first size and no rows to put together.
    """

    input: TensorSpec
    output: TensorSpec
    most: int | None
    joins: bool
    pads: bool

    @classmethod
    def of(cls, input_: TensorSpec, output: TensorSpec, max_batch: int) -> Form:
        """The form of an artefact; max_batch bounds the rows where its file does not.

        Requests are put together where the answer has a row for each row of the input. A batch
        fixed at more than one is always run whole, what is missing of it as zeros.
        """
        rows, answers = input_.shape[:1], output.shape[:1]
        joins = rows == answers and rows not in ([], [1])
        free = rows == [ANY]
        most = max_batch if free else rows[0] if joins else None
        return cls(input_, output, most, joins, joins and not free)

    def served(self) -> tuple[TensorSpec, TensorSpec]:
        """Input and output as a request sees them: any number of rows where requests are joined."""
        if not self.joins:
            return self.input, self.output
        return _any_rows(self.input), _any_rows(self.output)

    def rows_of(self, x: Array) -> int:
        """How many rows a request takes of a run's `most`; 1 where rows are not counted."""
        return int(x.shape[0]) if self.most is not None else 1

    def rows_run(self, parts: Sequence[Array]) -> int:
        """The rows of the run of these requests."""
        if self.pads and self.most is not None:
            return self.most
        return sum(self.rows_of(x) for x in parts)

    def fill(self, x: Array, parts: Sequence[Array]) -> None:
        """Write requests one behind the other into the input of a run, zeros behind them."""
        if len(parts) == 1 and parts[0].shape == x.shape:
            np.copyto(x, parts[0], casting="no")
            return
        end = sum(part.shape[0] for part in parts)
        np.concatenate(parts, out=x[:end])
        x[end:] = 0

    def joined(self, parts: Sequence[Array]) -> Array:
        """The input of a run of these requests, copied only where there is a need to."""
        shape = self.input.shape_of(self.rows_run(parts))
        if len(parts) == 1 and list(parts[0].shape) == shape:
            return parts[0]
        x = np.empty(shape, self.input.dtype)
        self.fill(x, parts)
        return x

    def split(self, y: Array, parts: Sequence[Array]) -> list[Array]:
        """The answer of each request, copied out of the answer of the run."""
        if not self.joins:
            return [y.copy()]
        answers, start = [], 0
        for part in parts:
            answers.append(y[start : start + len(part)].copy())
            start += len(part)
        return answers

    def size(self) -> int:
        """Bytes that input and output take together."""
        most = self.most or 1
        return _padded(_bytes(self.input, most)) + _padded(_bytes(self.output, most))


class Slot:
    """Memory that two processes share for one run: the input, behind it the output."""

    def __init__(self, form: Form, memory: memoryview) -> None:
        """`memory` has form.size() bytes."""
        self._form, self._memory = form, memory
        self._views: dict[int, tuple[Array, Array]] = {}

    def views(self, rows: int) -> tuple[Array, Array]:
        """Input and output of a run of `rows` rows, as views into the memory."""
        found = self._views.get(rows)
        if found is None:
            form = self._form
            behind = _padded(_bytes(form.input, form.most or 1))
            found = (
                _view(self._memory, 0, form.input, rows),
                _view(self._memory, behind, form.output, rows),
            )
            self._views[rows] = found
        return found


def check_answer(y: Array, spec: TensorSpec, rows: int) -> str | None:
    """What is wrong with the answer of a run of `rows` rows, None where it is as `spec` says."""
    expected = spec.shape_of(rows)
    if list(y.shape) == expected and str(y.dtype) == spec.dtype:
        return None
    return (
        f"the engine answers with {y.dtype} {list(y.shape)}, its artefact promises {spec.dtype} "
        f"{expected}"
    )


def _any_rows(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=[ANY, *spec.shape[1:]])


def _bytes(spec: TensorSpec, rows: int) -> int:
    return math.prod(spec.shape_of(rows)) * np.dtype(spec.dtype).itemsize


def _padded(size: int) -> int:
    return -(-size // LINE) * LINE


def _view(memory: memoryview, offset: int, spec: TensorSpec, rows: int) -> Array:
    shape = spec.shape_of(rows)
    x: Array = np.frombuffer(memory, spec.dtype, math.prod(shape), offset).reshape(shape)
    return x
