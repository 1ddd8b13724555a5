"""How much a ViT needs each residual channel, head and FFN unit, for the pictures of some classes.

The measure is KL(softmax(full) || softmax(pruned)), averaged over the pictures. Taken literally it
costs one pass over them for each channel, head and unit. Its value and its first derivative by a
gate are zero at gate 1, so what is left to second order is half the Fisher information of the gate,
F = E_x E_{y~p(.|x)} (d log p(y|x) / d g)^2: one forward and one backward for each picture and label
scores all gates at once. (UP-ViT measures it literally; edvit.md, section 1.4.)
"""

# Shapes: B batch, Y classes, C residual channels, D blocks, M heads, F FFN units.

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.models.vit import VisionTransformer
from partition.cutting.gates import Gates, gated
from partition.cutting.geometry import Geometry, geometry_of, plain_vit
from partition.errors import PartitionError

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised pictures (B, 3, H, W) and their labels (B,)."""

EXACT_LABELS = 16  # up to here the sum over all labels is not much dearer than a few draws
DRAWS = 4


@dataclass(frozen=True)
class Importance:
    """Mean KL in nats that leaving each one out costs; more is more important. float64, CPU.

    residual (C,), heads (D, M), ffn (D, F); pictures is how many they are the mean of.
    """

    residual: Tensor
    heads: Tensor
    ffn: Tensor
    pictures: int


def class_importance(
    model: nn.Module,
    batches: Batches,
    classes: Collection[int] | None = None,
    *,
    draws: int | None = None,
    seed: int = 0,
    tell: Callable[[int], None] | None = None,
) -> Importance:
    """The Fisher diagonal of all gates, halved, over the pictures whose label is in `classes`.

    classes: those of a sub-model; None for all pictures.
    draws: labels drawn from p(.|x) for each picture, by `seed`; 0 is the exact sum over all labels,
    weighted by p. None is 0 up to EXACT_LABELS classes, else DRAWS.
    tell: called with the pictures done so far. Raises PartitionError.
    """
    vit, geometry = plain_vit(model), geometry_of(model)
    if draws is None:
        draws = 0 if geometry.classes <= EXACT_LABELS else DRAWS
    generator = torch.Generator().manual_seed(seed)
    sums = _Sums(geometry)
    for x in _own(batches, classes):
        gates = Gates.open(geometry, len(x), vit.pos_embed.detach())
        leaves = [gate.requires_grad_() for gate in gates.tensors()]
        with _still(vit), torch.enable_grad(), gated(vit, gates):
            log_p_BY = F.log_softmax(vit(x.to(vit.pos_embed)), dim=1)
        p_BY = log_p_BY.detach().exp()
        labels_BR, weights_BR = _labels(p_BY, draws, generator)
        rounds = labels_BR.shape[1]
        for r in range(rounds):
            chosen = log_p_BY.gather(1, labels_BR[:, r : r + 1]).sum()
            # Each picture has gates of its own: the gradient of the sum is every picture's.
            found = torch.autograd.grad(chosen, leaves, retain_graph=r + 1 < rounds)
            sums.add([0.5 * weights_BR[:, r].double() @ _flat(g).square() for g in found])
        sums.pictures += len(x)
        if tell is not None:
            tell(sums.pictures)
    return sums.mean(classes)


@torch.no_grad()
def literal_importance(
    model: nn.Module,
    batches: Batches,
    classes: Collection[int] | None = None,
) -> Importance:
    """The slow reference: KL(softmax(full) || softmax(pruned)) with one gate at a time at 0.

    One pass over the pictures for every channel, head and unit. Raises PartitionError.
    """
    vit, geometry = plain_vit(model), geometry_of(model)
    sums = _Sums(geometry)
    with _still(vit):
        for x in _own(batches, classes):
            images = x.to(vit.pos_embed)
            log_p_BY = F.log_softmax(vit(images).double(), dim=1)
            gates = Gates.open(geometry, len(x), vit.pos_embed)
            totals = []
            for gate in gates.tensors():
                rows = gate.view(len(x), -1)
                costs = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
                for index in range(rows.shape[1]):
                    rows[:, index] = 0
                    with gated(vit, gates):
                        log_q_BY = F.log_softmax(vit(images).double(), dim=1)
                    rows[:, index] = 1
                    costs[index] = F.kl_div(log_q_BY, log_p_BY, reduction="sum", log_target=True)
                totals.append(costs)
            sums.add(totals)
            sums.pictures += len(x)
    return sums.mean(classes)


class _Sums:
    """Sums over the pictures for all gates, flat, in the order of Gates.tensors()."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = g = geometry
        counts = (g.embed_dim, g.depth * g.heads, g.depth * g.mlp_dim)
        self.flat = [torch.zeros(count, dtype=torch.float64) for count in counts]
        self.pictures = 0

    def add(self, found: list[Tensor]) -> None:
        self.flat = [total + value.cpu() for total, value in zip(self.flat, found, strict=True)]

    def mean(self, classes: Collection[int] | None) -> Importance:
        if not self.pictures:
            which = "" if classes is None else f" of the classes {sorted(classes)}"
            raise PartitionError(
                f"importance is measured on pictures, and there are none{which}: give more data"
            )
        residual, heads, ffn = (total / self.pictures for total in self.flat)
        depth = self.geometry.depth
        return Importance(residual, heads.view(depth, -1), ffn.view(depth, -1), self.pictures)


class _still:  # noqa: N801  # reads as the verb it is at its use
    """Eval mode for a while: a score has no dropout in it."""

    def __init__(self, vit: VisionTransformer) -> None:
        self.vit, self.training = vit, vit.training

    def __enter__(self) -> None:
        self.vit.eval()

    def __exit__(self, *_: object) -> None:
        self.vit.train(self.training)


def _own(batches: Batches, classes: Collection[int] | None) -> Iterable[Tensor]:
    """The pictures of the classes, batch by batch, empty batches left out."""
    for images, labels in batches:
        x = images
        if classes is not None:
            mine = torch.isin(labels, torch.tensor(sorted(classes), device=labels.device))
            x = images[mine.to(x.device)]
        if len(x):
            yield x


def _labels(p_BY: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each picture, labels (B, R) and what each counts (B, R)."""
    if draws:
        drawn = p_BY.cpu().multinomial(draws, replacement=True, generator=generator)
        return drawn.to(p_BY.device), torch.full_like(p_BY[:, :1], 1 / draws).expand(-1, draws)
    return torch.arange(p_BY.shape[1], device=p_BY.device).expand_as(p_BY), p_BY


def _flat(gradient: Tensor) -> Tensor:
    return gradient.detach().flatten(1).double()
