"""A tiny network and tiny data for tests of the trainer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.training import Preprocess, TrainOptions

SIDE = 16
PRE = Preprocess(SIDE, SIDE, (0.4, 0.5, 0.6), (0.3, 0.25, 0.2))


class Net(nn.Module):
    """Convolutions, BatchNorm, dropout: what keeps a state or draws random numbers."""

    def __init__(self, classes: int = 3, heads: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 16, 3, 2, 1)
        self.dropout = nn.Dropout(0.1)
        self.heads = nn.ModuleList(nn.Linear(16, classes) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.dropout(torch.relu(self.deep(x)).mean((2, 3)))
        outputs = tuple(head(x) for head in self.heads)
        if len(outputs) == 1:
            return outputs[0]
        return outputs if self.training else torch.stack(outputs).mean(0)


def net(classes: int = 3, heads: int = 1) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(classes, heads)


class Bars:
    """Pictures with a bright bar: across, upright, or none; a noisy ground."""

    classes = ("across", "upright", "none")

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(3, size=count)
        self.images = rng.integers(0, 90, size=(count, SIDE, SIDE, 3)).astype(np.uint8)
        for image, label, at in zip(
            self.images, self.labels, rng.integers(3, SIDE - 5, count), strict=True
        ):
            if label == 0:
                image[at : at + 3] = 230
            elif label == 1:
                image[:, at : at + 3] = 230

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


def options(**changed: object) -> TrainOptions:
    """Four epochs of four steps where nothing else is said."""
    return TrainOptions(
        **{"preprocess": PRE, "epochs": 4, "batch": 16, "warmup_epochs": 1} | changed
    )  # type: ignore[arg-type]
