"""Some channels of a multi-group convolution; what a branch cannot hold goes to the dense one.

The channels that stay of a grouped convolution may lie in other groups than before, and those of
the BatchNorm beside it at another place. With fixed statistics all branches are linear maps, so
that what does not fit is added to the dense branch, and the function is exactly that of the whole
with zeros for the other inputs. The dense branch's variance is raised, and the grouped one's
lowered, by what goes over, as if the channels were independent, so that the function also stays
about the same where statistics are settled anew.
"""

# Shapes: O kept outputs, I kept inputs.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevit.models.fmvit import GROUPS

EPS = 1e-5  # of every BatchNorm
FAINT = 1e-3  # of the others' scales, below which the dense branch's own is no measure


@dataclass
class _Norm:
    """The tensors of a BatchNorm, float64, for the kept outputs (O,)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    @property
    def scale(self) -> Tensor:
        return self.weight / (self.running_var + EPS).sqrt()

    def spread(self, variance: Tensor, scale: Tensor) -> None:
        """Take another variance, eps included, and the weight that gives `scale` with it."""
        self.running_var = (variance - EPS).clamp(min=0)
        self.weight = scale * (self.running_var + EPS).sqrt()

    def named(self, path: str) -> dict[str, Tensor]:
        return {f"{path}.{name}": value for name, value in vars(self).items()}


def cut_branches(
    state: Mapping[str, Tensor], path: str, inputs: Tensor, outputs: Tensor
) -> dict[str, Tensor]:
    """The tensors of MultiGroupConv(I, O) for those of the one at `path`, by the same names.

    inputs (I,) and outputs (O,) are the channels that stay, long, in their order.
    """
    dense, grouped = (_norm(state, f"{path}.branches.{i}.bn", outputs) for i in (0, 1))
    dense_OI, grouped_OI = (
        _matrix(state, f"{path}.branches.{i}.conv.weight", count)[outputs][:, inputs]
        for i, count in enumerate(GROUPS)
    )
    groups = GROUPS[1]
    fits_OI = _diagonal(torch.ones(groups, len(outputs) // groups, len(inputs) // groups)).bool()
    over_OI = grouped.scale[:, None] * grouped_OI.masked_fill(fits_OI, 0)
    share = _share(grouped_OI.masked_fill(fits_OI, 0), grouped_OI)
    variance = share * grouped.scale.square() * (grouped.running_var + EPS)
    mean, size = torch.zeros_like(variance), grouped.scale.abs()
    grouped.spread((1 - share) * (grouped.running_var + EPS), grouped.scale)
    found: dict[str, Tensor] = {}

    square = len(inputs) == len(outputs)
    if f"{path}.skip.weight" in state:
        skip = _norm(state, f"{path}.skip", outputs)
        same_OI = outputs[:, None] == inputs[None, :]
        stays = same_OI.diagonal() if square else torch.zeros(len(outputs), dtype=torch.bool)
        goes = ~stays
        over_OI = over_OI + (goes * skip.scale)[:, None] * same_OI
        moves = (same_OI.any(1) & goes) * skip.scale.square() * (skip.running_var + EPS)
        variance, mean = variance + moves, mean + goes * skip.scale * skip.running_mean
        size = size + goes * skip.scale.abs()
        dense.bias = dense.bias + goes * skip.bias
        if square:
            skip.weight, skip.bias = skip.weight * stays, skip.bias * stays
            found |= skip.named(f"{path}.skip")
    elif square:
        zeros = torch.zeros(len(outputs), dtype=torch.float64)
        found |= _Norm(zeros, zeros, zeros, zeros + 1).named(f"{path}.skip")

    dense_OI = _raised(dense, dense_OI, over_OI, mean, variance, size)
    return {
        name: value.to(state[f"{path}.branches.0.conv.weight"].dtype)
        for name, value in {
            **found,
            **dense.named(f"{path}.branches.0.bn"),
            **grouped.named(f"{path}.branches.1.bn"),
            f"{path}.branches.0.conv.weight": dense_OI[:, :, None, None],
            f"{path}.branches.1.conv.weight": _blocks(grouped_OI, groups)[:, :, None, None],
        }.items()
    }


def _raised(
    norm: _Norm, own_OI: Tensor, over_OI: Tensor, mean: Tensor, variance: Tensor, size: Tensor
) -> Tensor:
    """The dense branch with `over` added to what comes out of its BatchNorm, which is changed.

    mean and variance (O,) are those of what is added; size (O,) is that of its scale. Rows to which
    nothing is added stay as they are, and so do those that the others' scale of 0 leaves alone.
    """
    own = norm.scale
    added = over_OI.any(1) | (mean != 0)
    scale = torch.where(own.abs() > FAINT * size, own, size)
    scale = torch.where(added & (scale != 0), scale, 1.0)
    raised_OI = (own[:, None] * own_OI + over_OI) / scale[:, None]
    raised_mean = (own * norm.running_mean + mean) / scale
    raised_var = (own.square() * (norm.running_var + EPS) + variance) / scale.square()
    before = norm.weight, norm.running_mean, norm.running_var
    norm.spread(raised_var, scale)
    norm.weight = torch.where(added, norm.weight, before[0])
    norm.running_mean = torch.where(added, raised_mean, before[1])
    norm.running_var = torch.where(added, norm.running_var, before[2])
    return torch.where(added[:, None], raised_OI, own_OI)


def _norm(state: Mapping[str, Tensor], path: str, outputs: Tensor) -> _Norm:
    names = ("weight", "bias", "running_mean", "running_var")
    return _Norm(*(state[f"{path}.{name}"].double()[outputs] for name in names))


def _matrix(state: Mapping[str, Tensor], name: str, groups: int) -> Tensor:
    """A 1x1 convolution of any groups as one matrix."""
    weight = state[name].double()
    return _diagonal(weight.reshape(groups, len(weight) // groups, weight.shape[1]))


def _diagonal(blocks_GOI: Tensor) -> Tensor:
    """Blocks along the diagonal of a matrix (G * O, G * I)."""
    groups, rows, columns = blocks_GOI.shape
    whole = blocks_GOI.new_zeros(groups, rows, groups, columns)
    each = torch.arange(groups)
    whole[each, :, each] = blocks_GOI
    return whole.reshape(groups * rows, groups * columns)


def _blocks(matrix_OI: Tensor, groups: int) -> Tensor:
    """The blocks on the diagonal as a grouped convolution has them, (O, I / groups)."""
    rows, columns = (size // groups for size in matrix_OI.shape)
    each = torch.arange(groups)
    blocks = matrix_OI.reshape(groups, rows, groups, columns)[each, :, each]
    return blocks.reshape(groups * rows, columns)


def _share(part_OI: Tensor, whole_OI: Tensor) -> Tensor:
    """How much of each row's square sum is the part's, (O,)."""
    return part_OI.square().sum(1) / whole_OI.square().sum(1).clamp(min=torch.finfo().tiny)
