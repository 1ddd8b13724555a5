"""What families have in common whose trained networks are slimmed as they are, without a supernet.

A subnet keeps some blocks of every stage and fewer channels; the source is the largest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance
from converters.slim.slicing import strongest

DROP, NARROW = "drop block", "narrow"

Blocks = tuple[tuple[int, ...], ...]


def grid(width: int, step: int, least: int) -> tuple[int, ...]:
    """The widths of a stage up to its own: multiples of `step` from `least` on, and itself."""
    return (*range(-(-least // step) * step, width, step), width)


def nearest(options: Sequence[int], wanted: float) -> int:
    """The option that is next to it; of two the smaller."""
    return min(options, key=lambda option: abs(option - wanted))


def check_factor(factor: float) -> None:
    """Raise SlimError unless it makes a network smaller."""
    if not 0 < factor <= 1:
        raise SlimError(f"expected a factor above 0 and at most 1, got {factor:g}")


def least_important(blocks: Blocks, stage: int, importance: Importance) -> int:
    """The block of a stage, by its number in the source, with the lowest score; of equals the last.

    The last, since what comes later changes least of what the others see.
    """
    scores = importance.blocks[stage]
    return min(blocks[stage], key=lambda block: (scores[block], -block))


def position_of(blocks: Blocks, action: Action) -> int:
    """Where the block of an action is in its stage. Raises SlimError where it cannot go."""
    kept = blocks[action.stage] if 0 <= action.stage < len(blocks) else ()
    if action.block not in kept or len(kept) < 2:
        raise SlimError(f"cannot {action}: that stage has the blocks {[b + 1 for b in kept]}")
    return kept.index(action.block)


def without(blocks: Blocks, stage: int, position: int) -> Blocks:
    """The same without the block at this position of a stage."""
    return cut(blocks, stage, leave_out(blocks[stage], position))


def cut(rows: tuple[Any, ...], stage: int, value: Any) -> tuple[Any, ...]:
    """The same with another entry for one stage."""
    return (*rows[:stage], value, *rows[stage + 1 :])


def leave_out(row: tuple[int, ...], position: int) -> tuple[int, ...]:
    """A row without one of its members."""
    return row[:position] + row[position + 1 :]


def some(count: int, rng: Any) -> tuple[int, ...]:
    """An evenly drawn number of blocks of `count`, at least one, and which: any is as likely."""
    size = int(rng.integers(1, count + 1))
    return tuple(sorted(int(i) for i in rng.choice(count, size, replace=False)))


def check_blocks(blocks: Blocks, depths: Sequence[int]) -> None:
    """Raise SlimError unless they are blocks of a source with these depths, in their order."""
    for kept, depth in zip(blocks, depths, strict=True):
        if not kept or list(kept) != sorted({b for b in kept if 0 <= b < depth}):
            raise SlimError(f"a source of {depth} blocks in a stage has no blocks {list(kept)}")


def strongest_of(importance: Importance, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Of every space, the indices of its `size` strongest channels. Raises SlimError."""
    absent = [space for space in sizes if space not in importance.channels]
    if absent:
        raise SlimError(f"the importance is of another network: it has no scores of {absent[0]}")
    return {space: strongest(importance.channels[space], n) for space, n in sizes.items()}


def source_names(
    target: Iterable[str], blocks: Blocks, prefix: str, first: int = 0
) -> dict[str, str]:
    """State names of a subnet to those of its source: only its blocks are numbered otherwise.

    prefix: how the names of a block begin, from its {stage} and {block}; first: the number of a
    stage's first block.
    """
    moved = {
        prefix.format(stage=stage, block=first + place): prefix.format(
            stage=stage, block=first + block
        )
        for stage, kept in enumerate(blocks)
        for place, block in enumerate(kept)
    }
    return {name: _moved(name, moved) for name in target}


def _moved(name: str, moved: Mapping[str, str]) -> str:
    for old, new in moved.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
