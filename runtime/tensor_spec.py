"""What goes into and comes out of an artefact. Plain, for engine processes load no schemas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Layout = Literal["NCHW", "NHWC"]
ANY = -1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an artefact, as its engine takes it.

    shape[0] is -1 where the artefact takes any number of rows from 1; no other size is.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # as every file schema

    name: str
    shape: list[int]
    dtype: str
    layout: Layout | None = None

    def shape_of(self, rows: int) -> list[int]:
        """The shape of a batch: `shape` with `rows` for a first size that may be any."""
        return [rows, *self.shape[1:]] if self.shape[:1] == [ANY] else self.shape
