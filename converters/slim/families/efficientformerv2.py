"""EfficientFormerV2: its search from a supernet, and the slimming of a trained network.

The supernet is as elastic as the paper's search space (arXiv 2212.08059): depth and width of each
stage, expansion of each FFN, and how many blocks attend. Where the shape says that every block of
the last two stages attends, it is that space; with an official network's shape it is what lies
within that network. Of a network that was trained by itself, the channels that stay are those with
the largest Taylor scores, of the supernet the first ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from converters.slim import importance as taylor
from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Probe, Subnet
from converters.slim.families.efficientformerv2_parts import FAMILY, parts_of, probe_of
from converters.slim.families.efficientformerv2_space import (
    ATTENDING,
    STAGES,
    attends,
    channels,
    grid,
    hidden_space,
    narrowed,
    own_shape,
    random_subnet,
    shape_of,
    spaces_of,
    stage_space,
    whole,
)
from converters.slim.slicing import strongest, take
from converters.slim.supernets.efficientformerv2 import EfficientFormerV2Supernet
from edgevit.models.efficientformerv2 import EfficientFormerV2
from edgevit.models.shapes import Shape

DROP_BLOCK = "drop a block"
DROP_ATTENTION = "drop the first attention"
NARROW_STAGE = "narrow the stage"
NARROW_FFN = "narrow the FFN"

Item = TypeVar("Item")


class EfficientFormerV2Family:
    """As the protocol `Family` says.

    The paper evaluates every block and every FFN in each of its steps. Here importance names one of
    each a stage, so that a step costs fourteen evaluations at most, whatever the depth.
    """

    name = FAMILY

    def whole(self, shape: Shape) -> Subnet:
        """The subnet that is all of a network of this shape."""
        return whole(own_shape(shape))

    def parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        """Stem, downsamplings, attentions, FFNs and head, for pictures of side x side pixels."""
        return parts_of(own_shape(shape), side, classes)

    def probe(self, part: Part) -> Probe:
        """The two networks that show a part's latency. Raises SlimError for an unknown part."""
        return probe_of(part)

    def actions(self, subnet: Subnet, importance: Importance) -> list[Action]:
        """For each stage: drop its least important block, narrow its least important FFN by one
        ratio, let its first attending block attend no more, narrow it to the next width of `grid`.
        """
        return [action for stage in STAGES for action in _actions(subnet, stage, importance)]

    def apply(self, subnet: Subnet, action: Action, importance: Importance) -> Subnet:
        """The smaller subnet. Raises SlimError for an action that this subnet does not have."""
        if action not in self.actions(subnet, importance):
            raise SlimError(f"{subnet} does not have the action '{action}'")
        return _STEPS[action.kind](subnet, action, importance)

    def random(self, shape: Shape, rng: Any) -> Subnet:
        """A random subnet of it, from a numpy Generator, evenly over depths, widths and ratios."""
        return random_subnet(own_shape(shape), lambda below: int(rng.integers(below)))

    def scaled(self, shape: Shape, factor: float) -> Subnet:
        """All blocks, every stage at the width of its grid nearest to `factor` times its own.

        Half of its own is the least there is.
        """
        return narrowed(own_shape(shape), factor)

    def supernet(self, shape: Shape, classes: int, side: int) -> nn.Module:
        """The elastic supernet. Its own `shape` has attention in all of stages 3 and 4."""
        own = own_shape(shape)
        depths = tuple(len(ratios) for ratios in own.mlp_ratios[ATTENDING[0] :])
        return EfficientFormerV2Supernet(
            replace(own, attention_depths=(depths[0], depths[1])), classes, side
        )

    def importance(self, source: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Importance:
        """Taylor scores of a trained network, or of the largest subnet of its trained supernet.

        A supernet's subnets are its first channels, so there a channel scores no less than any
        that comes after it. Raises SlimError for another family's network.
        """
        network = _own(source)
        shape, state = network.shape, network.state_dict()
        found, spaces = taylor.scores(network, batches), spaces_of(state, network.shape)
        scores = {
            space: taylor.of_space(found, spaces, space).float() for space in channels(whole(shape))
        }
        if isinstance(network, EfficientFormerV2Supernet):
            scores = {space: _falling(score) for space, score in scores.items()}
        blocks = tuple(
            tuple(
                taylor.of_block(found, _silencing(network, stage, block))
                for block in range(len(row))
            )
            for stage, row in enumerate(shape.mlp_ratios)
        )
        return Importance(blocks, scores)

    def inherit(
        self, source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
    ) -> nn.Module:
        """A network of the subnet's shape, in eval mode, with the weights of the source.

        Of a supernet, its first channels and the BatchNorms of these widths; of a trained network,
        the channels with the largest scores. Raises SlimError for a subnet that is none of it.
        """
        network, shape = _own(source), shape_of(subnet)
        target = shape.build(classes, side)
        if isinstance(network, EfficientFormerV2Supernet):
            spaces, kept = network.spaces(), network.slices(subnet)
        else:
            spaces = spaces_of(network.state_dict(), network.shape)
            kept = {
                space: strongest(_scores(importance, space), count)
                for space, count in channels(subnet).items()
            }
        names = {name: _in_source(name, subnet) for name in target.state_dict()}
        take(network.state_dict(), target, names, spaces, kept)
        return target


def _own(source: nn.Module) -> EfficientFormerV2:
    if not isinstance(source, EfficientFormerV2):
        raise SlimError(f"expected an EfficientFormerV2, got {type(source).__name__}")
    return source


def _silencing(network: EfficientFormerV2, stage: int, block: int) -> list[str]:
    """The layer scales of a block: all of its branches are shut where they are zero."""
    path = f"stages.{stage}.blocks.{block}"
    attending = attends(network.shape, stage, block)
    return [f"{path}.ls{number}.gamma" for number in ((1, 2) if attending else (2,))]


def _falling(scores: Tensor) -> Tensor:
    """The largest of each score and all after it."""
    return scores.flip(0).cummax(0).values.flip(0)


def _in_source(name: str, subnet: Subnet) -> str:
    """What a tensor of the subnet is called in the source, whose blocks are numbered otherwise."""
    head, block, rest = name.partition(".blocks.")
    if not block:
        return name
    position, _, tensor = rest.partition(".")
    stage = int(head.removeprefix("stages."))
    return f"{head}.blocks.{subnet.blocks[stage][int(position)]}.{tensor}"


def _scores(importance: Importance, space: str) -> Tensor:
    if space not in importance.channels:
        raise SlimError(f"the importance of the channels of {space} was not measured")
    return importance.channels[space]


def _actions(subnet: Subnet, stage: int, importance: Importance) -> Iterator[Action]:
    shape, blocks = shape_of(subnet), subnet.blocks[stage]
    if len(blocks) > 1:
        weakest = min(blocks, key=lambda block: importance.blocks[stage][block])
        yield Action(DROP_BLOCK, stage, weakest)
    ratios = dict(zip(blocks, shape.mlp_ratios[stage], strict=True))
    wide = [block for block in blocks if ratios[block] > 1]
    if wide:
        losing = {b: _loss_of_ratio(subnet, stage, b, ratios[b], importance) for b in wide}
        yield Action(NARROW_FFN, stage, min(wide, key=lambda block: losing[block]))
    if stage in ATTENDING and shape.attention_depths[stage - ATTENDING[0]]:
        yield Action(DROP_ATTENTION, stage)
    if _narrower(subnet, stage, importance):
        yield Action(NARROW_STAGE, stage)


def _loss_of_ratio(
    subnet: Subnet, stage: int, block: int, ratio: int, importance: Importance
) -> float:
    """The scores of the hidden channels that one ratio less would cut; 0 for unmeasured ones."""
    scores = importance.channels.get(hidden_space(stage, block))
    if scores is None:
        return 0.0
    width = shape_of(subnet).widths[stage]
    ranked = scores.sort(descending=True).values
    return float(ranked[(ratio - 1) * width : ratio * width].sum())


def _narrower(subnet: Subnet, stage: int, importance: Importance) -> int | None:
    """The next width below the stage's own, or None; the source's is as many as it has scores."""
    full = len(_scores(importance, stage_space(stage)))
    below = [width for width in grid(full) if width < shape_of(subnet).widths[stage]]
    return max(below, default=None)


def _without_block(subnet: Subnet, action: Action, importance: Importance) -> Subnet:
    shape, stage = shape_of(subnet), action.stage
    assert action.block is not None
    gone = subnet.blocks[stage].index(action.block)
    depths = list(shape.attention_depths)
    if attends(shape, stage, gone):
        depths[stage - ATTENDING[0]] -= 1
    kept = replace(
        shape,
        mlp_ratios=_at(shape.mlp_ratios, stage, _without(shape.mlp_ratios[stage], gone)),
        attention_depths=tuple(depths),
    )
    return Subnet(kept, _at(subnet.blocks, stage, _without(subnet.blocks[stage], gone)))


def _with_narrower_ffn(subnet: Subnet, action: Action, importance: Importance) -> Subnet:
    shape, stage = shape_of(subnet), action.stage
    assert action.block is not None
    position, row = subnet.blocks[stage].index(action.block), shape.mlp_ratios[stage]
    row = _at(row, position, row[position] - 1)
    return replace(subnet, shape=replace(shape, mlp_ratios=_at(shape.mlp_ratios, stage, row)))


def _with_less_attention(subnet: Subnet, action: Action, importance: Importance) -> Subnet:
    shape, index = shape_of(subnet), action.stage - ATTENDING[0]
    depths = _at(shape.attention_depths, index, shape.attention_depths[index] - 1)
    return replace(subnet, shape=replace(shape, attention_depths=depths))


def _with_narrower_stage(subnet: Subnet, action: Action, importance: Importance) -> Subnet:
    shape, width = shape_of(subnet), _narrower(subnet, action.stage, importance)
    assert width is not None
    return replace(subnet, shape=replace(shape, widths=_at(shape.widths, action.stage, width)))


_STEPS: dict[str, Callable[[Subnet, Action, Importance], Subnet]] = {
    DROP_BLOCK: _without_block,
    NARROW_FFN: _with_narrower_ffn,
    DROP_ATTENTION: _with_less_attention,
    NARROW_STAGE: _with_narrower_stage,
}


def _at(values: tuple[Item, ...], index: int, value: Item) -> tuple[Item, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _without(values: tuple[Item, ...], index: int) -> tuple[Item, ...]:
    return (*values[:index], *values[index + 1 :])
