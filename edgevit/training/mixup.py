"""Targets as distributions: label smoothing, mixup (arXiv 1710.09412), and the loss of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgevit.training.options import TrainingError

Label = int | NDArray[np.floating]
"""A class, or a distribution over the classes (classes,) that is taken as it is."""


def targets_of(labels: Sequence[Label], classes: int, smoothing: float) -> Tensor:
    """Labels to distributions (B, classes); only hard labels are smoothed. Sums are 1."""
    rows = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    for row, label in zip(rows, labels, strict=True):
        if isinstance(label, int | np.integer):
            if not 0 <= label < classes:
                raise TrainingError(f"the data has label {label}, expected 0 to {classes - 1}")
            row[label] += 1 - smoothing
        else:
            if np.shape(label) != (classes,):
                raise TrainingError(
                    f"a soft target has shape {np.shape(label)}, expected ({classes},)"
                )
            row[:] = label
    return torch.from_numpy(rows)


def mixed(
    x: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend every example (B, ...) and its target (B, classes) with another one of the batch.

    One weight for the batch, drawn from Beta(alpha, alpha), and one permutation; none for alpha 0.
    """
    if not alpha:
        return x, targets
    weight = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return x.lerp(x[other], 1 - weight), targets.lerp(targets[other], 1 - weight)


def soft_loss(outputs: object, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, classes); of several heads the mean of theirs."""
    heads = outputs if isinstance(outputs, tuple | list) else (outputs,)
    losses = []
    for logits in heads:
        if not isinstance(logits, Tensor) or logits.shape != targets.shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TrainingError(
                f"expected logits of shape {tuple(targets.shape)} from the model, got {got}"
            )
        losses.append(F.cross_entropy(logits.float(), targets))
    return torch.stack(losses).mean()
