"""Weights of a smaller network out of a larger one's: whole tensors, or chosen channels of them.

A *space* is a set of channels that can only be cut together: a residual stream, a hidden layer. To
know which dims of which tensors lie in which space is all that it takes to cut a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from converters.slim.errors import SlimError

# Of a parameter or buffer, for each of its dims: the space whose channels lie there, or None.
Spaces = Mapping[str, tuple[str | None, ...]]


@torch.no_grad()
def take(
    source_state: Mapping[str, Tensor],
    target: nn.Module,
    names: Mapping[str, str],
    spaces: Spaces,
    kept: Mapping[str, Tensor],
) -> None:
    """Fill a module with the kept channels of another one's tensors, in place.

    names: the target's state names to the source's. spaces: by names of the source; a tensor that
    has none there is taken whole. kept: sorted indices (channels kept,), long, of each space; one
    that it does not name is kept whole. Integer buffers (counters, index tables) stay the target's.
    Raises SlimError unless every float parameter and buffer of the target's state is filled with
    exactly its shape.
    """
    own = target.state_dict()
    floats = [name for name, value in own.items() if value.is_floating_point()]
    unfilled = [name for name in floats if name not in names]
    unknown = [name for name in names if name not in own]
    for what, odd in (
        ("is given no weights", unfilled),
        ("is not in the smaller network", unknown),
    ):
        if odd:
            raise SlimError(f"{odd[0]} {what}{_more(odd)}")
    for name in floats:
        value = _cut(source_state, names[name], spaces, kept)
        if value.shape != own[name].shape:
            raise SlimError(
                f"{name} takes a tensor of shape {tuple(own[name].shape)}, and {names[name]} cut "
                f"to it has {tuple(value.shape)}"
            )
        own[name].copy_(value)


def _cut(
    state: Mapping[str, Tensor], name: str, spaces: Spaces, kept: Mapping[str, Tensor]
) -> Tensor:
    """The kept channels of a tensor, in every dim that lies in a space."""
    if name not in state:
        raise SlimError(f"the source network has no {name}")
    value = state[name]
    lies = spaces.get(name, (None,) * value.dim())
    if len(lies) != value.dim():
        raise SlimError(f"{name} has {value.dim()} dims, its spaces are given for {len(lies)}")
    for dim, space in enumerate(lies):
        if space is not None and space in kept:
            _check_indices(space, kept[space], name, value.shape[dim])
            value = value.index_select(dim, kept[space].to(value.device))
    return value


def _check_indices(space: str, indices: Tensor, name: str, size: int) -> None:
    """Channels of a dim of that size, each once and in their order."""
    if indices.dim() != 1 or indices.dtype != torch.int64 or not len(indices):
        raise SlimError(f"the kept channels of {space} are no list of indices")
    if bool((indices.diff() <= 0).any()) or int(indices[0]) < 0 or int(indices[-1]) >= size:
        raise SlimError(
            f"the kept channels of {space} must rise from 0 or more to less than {size}, the "
            f"channels of {name}"
        )


def _more(names: list[str]) -> str:
    return f", nor are {len(names) - 1} more" if len(names) > 1 else ""


def strongest(scores: Tensor, count: int) -> Tensor:
    """Sorted indices of the `count` largest of scores (channels,); of equals, the first ones.

    Raises SlimError for scores that are no numbers, or fewer than `count`.
    """
    if scores.dim() != 1 or not 0 < count <= len(scores) or bool(scores.isnan().any()):
        raise SlimError(
            f"cannot choose {count} channels by scores of shape {tuple(scores.shape)}: expected as "
            "many numbers or more"
        )
    order = scores.argsort(descending=True, stable=True)
    return order[:count].sort().values


@torch.no_grad()
def settle_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """BatchNorm means and variances anew, as the average over batches of inputs (B, 3, H, W).

    All else runs as in evaluation (no dropout, no noise), and the module is in eval mode after. A
    BatchNorm that no batch goes through keeps what it has. Raises SlimError for no batches at all.
    """
    module.eval()
    norms = [
        norm
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    ]
    if not norms:
        return
    before = {norm: {n: b.clone() for n, b in norm.named_buffers()} for norm in norms}
    momenta = {norm: norm.momentum for norm in norms}
    ran = False
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average of all batches
            norm.train()
        for x_BCHW in batches:
            module(x_BCHW)
            ran = True
    finally:
        for norm in norms:
            norm.eval()
            norm.momentum = momenta[norm]
            if norm.num_batches_tracked is not None and not int(norm.num_batches_tracked):
                for name, buffer in norm.named_buffers():
                    buffer.copy_(before[norm][name])
    if not ran:
        raise SlimError("BatchNorm statistics need pictures to settle on, and there are none")
