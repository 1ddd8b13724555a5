"""What a family of networks tells, so that one search slims them all.

A *shape* (edgevit.models.shapes) says how a network is built: widths, depths, expansions. A
*subnet* is a shape with the blocks of the source network that it keeps, so that weights can be
inherited. A *part* is a piece of a network that the latency table has a time for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from edgevit.models.shapes import Shape


@dataclass(frozen=True, order=True)
class Part:
    """A piece of a network at one resolution: the key of a latency.

    kind names what it is ("pool_block"); side is that of its input map in pixels; dims are its
    sizes in the order that the kind fixes (width, or width in and out, or width and expansion).
    """

    family: str
    kind: str
    side: int
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """Two networks, pictures (1, 3, side, side) to logits, that differ in `times` of one part.

    The rest is the same in both, so that the difference of their latencies, over `times`, is the
    part's own.
    """

    short: nn.Module
    long: nn.Module
    times: int
    side: int


@dataclass(frozen=True)
class Subnet:
    """A shape, and for every stage the blocks of the source that its blocks come from, in order."""

    shape: Shape
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Action:
    """One way to make a subnet smaller, as the family's `apply` understands it."""

    kind: str
    stage: int
    block: int | None = None

    def __str__(self) -> str:
        place = f"stage {self.stage + 1}" + (
            "" if self.block is None else f" block {self.block + 1}"
        )
        return f"{self.kind} in {place}"


@dataclass(frozen=True)
class Importance:
    """How much the source network loses with a block or a channel; larger is more important.

    blocks[stage][block] is of the source's blocks. channels maps the name of a space (a set of
    channels that can only be cut together) to a score a channel, (channels,).
    """

    blocks: tuple[tuple[float, ...], ...]
    channels: Mapping[str, Tensor] = field(default_factory=dict)


class Family(Protocol):
    """One family. All methods are pure; shapes and subnets are values."""

    name: str

    def whole(self, shape: Shape) -> Subnet:
        """The subnet that is all of a network of this shape."""
        ...

    def parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        """What a network of this shape consists of, for pictures of side x side pixels."""
        ...

    def probe(self, part: Part) -> Probe:
        """The two networks that show a part's latency."""
        ...

    def actions(self, subnet: Subnet, importance: Importance) -> list[Action]:
        """Every way to make it one step smaller that leaves a network of the family."""
        ...

    def apply(self, subnet: Subnet, action: Action, importance: Importance) -> Subnet:
        """The smaller subnet. Raises SlimError for an action that this subnet does not have."""
        ...

    def random(self, shape: Shape, rng: Any) -> Subnet:
        """A random subnet of it, from a numpy Generator, evenly over depths and widths."""
        ...

    def scaled(self, shape: Shape, factor: float) -> Subnet:
        """Uniform scaling: every width times `factor`, on its grid, the depths as they are."""
        ...

    def supernet(self, shape: Shape, classes: int, side: int) -> nn.Module:
        """A network to train once, of which every subnet is a part."""
        ...

    def importance(self, source: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Importance:
        """Of a trained network of the family, or of its trained supernet.

        batches are normalised pictures (B, 3, H, W) with their labels (B,).
        """
        ...

    def inherit(
        self, source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
    ) -> nn.Module:
        """A network of the subnet's shape, in eval mode, with the weights of the source.

        source: a trained network of the family, or its trained supernet. BatchNorm statistics are
        the source's; who evaluates it sets them anew.
        """
        ...
