"""Top-1 of the full model and of the fused sub-models, with all of them and without some."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.training import Preprocess, Scores
from edgevit.training.loader import Examples
from edgevit.training.threads import torch_threads
from partition.cutting.submodel import Submodel
from partition.learning.fusion import Fusion, without
from partition.learning.train_fusion import Answers, held_out_answers

Lost = tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """On the same held-out pictures: the full model, and the fusion for each set of lost parts.

    sighted: of the same sets, on the pictures of classes that no lost sub-model knew, if any.
    """

    full: Scores
    fused: dict[Lost, Scores]
    sighted: dict[Lost, Scores]


def evaluate(
    full: nn.Module,
    submodels: Sequence[Submodel],
    fusion: Fusion,
    data: Examples,
    preprocess: Preprocess | None,
    *,
    lost: Sequence[Collection[int]] = ((),),
    threads: int | None = None,
) -> Evaluation:
    """Run all models on the held-out pictures once, and fuse for each set of lost sub-models.

    lost: sets of numbers of sub-models whose blocks are zeros; () is all of them there. Raises
    PartitionError.
    """
    with torch_threads(threads):
        answers = held_out_answers(submodels, full, data, preprocess)
    known = [sub.classes for sub in submodels]
    sets = [tuple(sorted(each)) for each in lost]
    sighted = {each: fused_scores(fusion, answers, each, known) for each in sets}
    return Evaluation(
        scores(answers.full, answers.targets),
        {each: fused_scores(fusion, answers, each) for each in sets},
        {each: found for each, found in sighted.items() if found.count},
    )


@torch.no_grad()
def fused_scores(
    fusion: Fusion,
    answers: Answers,
    lost: Collection[int] = (),
    known: Sequence[Sequence[int]] | None = None,
) -> Scores:
    """The fusion on answers that are there already, without the blocks of the lost sub-models.

    known: the classes of each sub-model; where given, pictures of the lost ones' are left out.
    Raises PartitionError.
    """
    logits = fusion(without(answers.blocks, fusion.widths, lost))
    targets = answers.targets
    if known is not None:
        blind = [label for index in sorted(lost) for label in known[index]]
        seen = ~torch.isin(targets.argmax(1), torch.tensor(blind))
        logits, targets = logits[seen], targets[seen]
    return scores(logits, targets)


def scores(logits: Tensor, targets: Tensor) -> Scores:
    """Of logits (B, classes), the truth being the likeliest class of targets (B, classes)."""
    truth = targets.argmax(1)
    ranked = logits.topk(min(5, logits.shape[1])).indices == truth[:, None]
    loss = float(F.cross_entropy(logits, targets)) if len(logits) else 0.0
    return Scores(len(logits), int(ranked[:, 0].sum()), int(ranked.sum()), loss)
