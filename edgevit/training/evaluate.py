"""Top-1, top-5 and loss on held-out data, of one or more modules in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.training.loader import Examples, evaluation_batches
from edgevit.training.mixup import targets_of
from edgevit.training.options import Preprocess
from edgevit.training.parallel import Parallel
from edgevit.training.result import Scores


@torch.no_grad()
def evaluate(
    modules: Sequence[nn.Module],
    data: Examples,
    pre: Preprocess | None,
    batch: int,
    parallel: Parallel,
) -> list[Scores]:
    """The scores of each module, all processes together; modules are left in eval mode.

    A soft target counts as its likeliest class.
    """
    for module in modules:
        module.eval()
        parallel.share_buffers(module)
    classes = len(data.classes)
    sums = torch.zeros(len(modules), 4, dtype=torch.float64)
    batches = evaluation_batches(data, pre, batch, parallel.rank, parallel.world)
    for pictures, labels in batches:
        targets = targets_of(labels, classes, smoothing=0.0)
        truth = targets.argmax(1)
        x = parallel.placed(pictures)
        for index, module in enumerate(modules):
            logits = mean_of_heads(module(x)).float().cpu()
            ranked = logits.topk(min(5, classes)).indices == truth[:, None]
            loss = F.cross_entropy(logits, targets, reduction="sum")
            hits = [len(x), int(ranked[:, 0].sum()), int(ranked.sum()), float(loss)]
            sums[index] += torch.tensor(hits, dtype=torch.float64)
    found = parallel.total(sums).tolist()
    return [
        Scores(int(count), int(top1), int(top5), float(loss / count))
        for count, top1, top5, loss in found
    ]


def mean_of_heads(outputs: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Logits (B, classes); a model that gives several heads in eval mode too gets their mean."""
    return outputs if isinstance(outputs, Tensor) else torch.stack(list(outputs)).mean(0)
