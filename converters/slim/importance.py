"""How much a trained network needs each channel and block, from one backward pass a few pictures.

To first order, weights w set to zero change the loss by -sum(w * dL/dw). A channel is gone when
nothing reads it: the weights of every convolution and linear map that takes it in, each of its
readers once and none of its writers, so that nothing counts double. A block is gone when the last
factors of its branches are zero. The score is the square of that change, averaged over small groups
of pictures (Molchanov et al., CVPR 2019, arXiv 1906.10771): over all pictures at once the changes
of a trained network cancel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.slicing import Spaces

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, classes) and labels, (B,) or soft (B, classes), to a mean."""

GROUP = 8  # pictures


@dataclass(frozen=True)
class Products:
    """Sums of w * dL/dw over one parameter, for each group of pictures. float64, CPU.

    rows (groups, n) are by its first dim; inputs (groups, channels) by the channels that it reads,
    of all groups of a grouped convolution. inputs is None for what mixes no channels: scales,
    biases, tables, depthwise convolutions.
    """

    rows: Tensor
    inputs: Tensor | None


Scores = Mapping[str, Products]
"""By parameter name."""


def scores(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss = F.cross_entropy,
    *,
    group: int = GROUP,
) -> dict[str, Products]:
    """The products of all parameters, in eval mode: BatchNorm statistics stand, nothing is random.

    batches: normalised pictures (B, 3, H, W) and labels, cut into groups of at most `group`
    pictures. The module is not changed. Raises SlimError for no pictures, and for a gradient that
    is no number.
    """
    module = copy.deepcopy(module).eval().requires_grad_(True)
    parameters = dict(module.named_parameters())
    reads = {name: _groups(owner) for name, owner in _owners(module).items()}
    found: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in parameters}
    for images, labels in batches:
        for x_BCHW, wanted in zip(
            torch.split(images, group), torch.split(labels, group), strict=True
        ):
            with torch.enable_grad():
                value = loss(module(x_BCHW), wanted)
                gradients = torch.autograd.grad(
                    value, list(parameters.values()), allow_unused=True, materialize_grads=True
                )
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                product = (parameter.detach() * gradient).double().cpu()
                found[name].append((_rows(product), _inputs(product, reads.get(name, 0))))
    if not all(found.values()):
        raise SlimError("importance is measured on pictures, and there are none: give more data")
    products = {name: _stacked(parts) for name, parts in found.items()}
    odd = [name for name, product in products.items() if not product.rows.isfinite().all()]
    if odd:
        raise SlimError(
            f"the gradient of {odd[0]} is no number on these pictures: is the network trained, "
            "and are its weights finite?"
        )
    return products


def changes(found: Scores, spaces: Spaces, space: str) -> Tensor:
    """What setting each channel of a space to zero adds to the loss, to first order.

    Per group of pictures, (groups, channels). Raises SlimError for a space that nothing reads.
    """
    readers = []
    for name, lies in spaces.items():
        inputs = found[name].inputs if name in found else None
        if inputs is not None and len(lies) > 1 and lies[1] == space:
            readers.append(inputs)
    if not readers:
        raise SlimError(f"no convolution or linear map reads the space {space}")
    if len({len(inputs.T) for inputs in readers}) > 1:
        raise SlimError(f"the readers of the space {space} differ in how many channels it has")
    return -torch.stack(readers).sum(0)


def of_space(found: Scores, spaces: Spaces, space: str) -> Tensor:
    """One score a channel, (channels,): the mean square of its `changes`."""
    return mean_square(changes(found, spaces, space))


def mean_square(change: Tensor) -> Tensor:
    """The scores (channels,) of changes (groups, channels)."""
    return change.square().mean(0)


def of_block(found: Scores, names: Iterable[str]) -> float:
    """The score of a block.

    names: the parameters that silence all of its branches when they are zero, the last ones of
    each (a BatchNorm's weight and bias, or a layer scale). Raises SlimError for none, and for a
    name that is not there.
    """
    total: Tensor | None = None
    for name in names:
        if name not in found:
            raise SlimError(f"the network has no parameter {name}")
        rows = found[name].rows.sum(1)
        total = rows if total is None else total + rows
    if total is None:
        raise SlimError("nothing was named that silences this block")
    return float(total.square().mean())


def _owners(module: nn.Module) -> dict[str, nn.Module]:
    """Weights of convolutions and linear maps, by the module that has them."""
    return {
        f"{name}.weight" if name else "weight": part
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }


def _groups(owner: nn.Module) -> int:
    """In how many groups its weight reads the channels; 0 for a depthwise one, which mixes none."""
    groups = owner.groups if isinstance(owner, nn.Conv2d) else 1
    return 0 if isinstance(owner, nn.Conv2d) and groups == owner.in_channels > 1 else groups


def _rows(product: Tensor) -> Tensor:
    return product.reshape(len(product), -1).sum(1) if product.dim() else product.reshape(1)


def _inputs(product: Tensor, groups: int) -> Tensor | None:
    """(out, in / groups, ...) to (in,); groups 0 reads nothing."""
    if not groups:
        return None
    each = product.reshape(groups, len(product) // groups, product.shape[1], -1)
    return each.sum((1, 3)).flatten()


def _stacked(parts: list[tuple[Tensor, Tensor | None]]) -> Products:
    inputs = [part for _, part in parts if part is not None]
    return Products(
        torch.stack([rows for rows, _ in parts]), torch.stack(inputs) if inputs else None
    )
