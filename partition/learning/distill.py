"""What a sub-model is taught with: its classes' pictures, a few others, and the full model."""

# Shapes: B batch, Y classes of the full model, S logits of the sub-model.

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgevit.data.dataset import ArrayDataset
from edgevit.data.folder import FolderDataset
from edgevit.data.glyphs import GlyphsDataset
from edgevit.training import Preprocess, TrainingError, TrainOptions
from edgevit.training.loader import Examples
from partition.errors import PartitionError

OTHER_SHARE = 0.1


@dataclass(frozen=True)
class Views:
    """How training pictures are shown; the fields are those of TrainOptions.

    mixup: alpha of the Beta distribution that the mixing weight is drawn from; 0 is off. The full
    model sees the mixed picture too, and what it says is the target.
    """

    preprocess: Preprocess | None = None
    batch: int = 64
    crop_area: float = 0.7
    crop_stretch: float = 1.2
    shift: float = 0.05
    flip: bool = False
    mixup: float = 0.5
    seed: int = 0

    def loading(self) -> TrainOptions:
        """The same for the loader of edgevit.training. Raises PartitionError."""
        options = TrainOptions(**vars(self))
        try:
            options.check()
        except TrainingError as error:
            raise PartitionError(str(error)) from error
        return options


class Taught:
    """The pictures of `classes`, and of every other class a share drawn by `seed`, at least one.

    Labels are those of the whole data.
    """

    def __init__(
        self, data: Examples, classes: Collection[int], other_share: float, seed: int
    ) -> None:
        self.data, self.classes = data, data.classes
        labels = labels_of(data)
        chosen = []
        for label in range(len(data.classes)):
            members = np.flatnonzero(labels == label)
            if label not in classes:
                count = min(len(members), max(1, round(other_share * len(members))))
                count = count if other_share else 0
                members = np.random.default_rng([seed, label]).permutation(members)[:count]
            chosen.append(members)
        self.indices = np.sort(np.concatenate(chosen))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], Any]:
        return self.data[int(self.indices[index])]


def labels_of(data: Examples) -> NDArray[np.int64]:
    """The label of every picture (N,). Raises PartitionError where they are no single classes.

    Pictures of data whose labels are known apart from them are not read.
    """
    if isinstance(data, ArrayDataset):
        found = data.labels[data.indices]
    elif isinstance(data, FolderDataset):
        found = np.array(data.labels)
    elif isinstance(data, GlyphsDataset):
        found = np.arange(len(data)) % len(data.classes)  # by turns
    else:
        found = np.array([data[index][1] for index in range(len(data))])
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise PartitionError("a partition needs one class as the label of every picture")
    labels: NDArray[np.int64] = found.astype(np.int64)
    return labels


def own_logits(logits_BY: Tensor, classes: Sequence[int], other: bool) -> Tensor:
    """What the full model says of these classes and, with `other`, of all others together: (B, S).

    The other classes' logits as one, the log of their summed exponentials, so that the softmax has
    the sum of their probabilities. It goes first, as in the sub-model.
    """
    own_BS = logits_BY[:, list(classes)]
    if not other:
        return own_BS
    rest = [label for label in range(logits_BY.shape[1]) if label not in set(classes)]
    rest_B1 = logits_BY[:, rest].logsumexp(1, keepdim=True)  # -inf where there are none
    return torch.cat([rest_B1, own_BS], dim=1)


def own_targets(target_BY: Tensor, classes: Sequence[int], other: bool) -> Tensor:
    """The same for labels as distributions (B, Y): (B, S), without `other` of sum 1 again."""
    own_BS = target_BY[:, list(classes)]
    if other:
        return torch.cat([(1 - own_BS.sum(1, keepdim=True)).clamp_min(0), own_BS], dim=1)
    return own_BS / own_BS.sum(1, keepdim=True)


def divergence(logits_BS: Tensor, p_BS: Tensor, temperature: float) -> Tensor:
    """KL(p || softmax(logits / temperature)), times temperature squared (arXiv 1503.02531)."""
    log_q_BS = F.log_softmax(logits_BS / temperature, dim=1)
    return F.kl_div(log_q_BS, p_BS, reduction="batchmean") * temperature**2
