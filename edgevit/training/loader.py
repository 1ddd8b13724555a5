"""Batches for training and evaluation, read ahead by threads.

Order, augmentation and mixup are functions of the seed, the epoch and the place in it alone. So a
continued run needs no random state from a file, and two processes see what one would see.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevit.data import prepare
from edgevit.training.augment import augmented
from edgevit.training.mixup import Label
from edgevit.training.options import Preprocess, TrainOptions

AHEAD = 3  # batches being read while one is trained on
MOST_READERS = 8
KEEP_BYTES = 512 * 2**20

# The purposes that random numbers are drawn for; a number in each seed, so that none repeat.
ORDER, AUGMENT, MIX, NETWORK = range(4)

Example = tuple[NDArray[Any], Label]
Batches = Generator[tuple[Tensor, list[Label]], None, None]


class Examples(Protocol):
    """An edgevit.data.Dataset, or anything like it whose labels may also be distributions."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[NDArray[Any], Any]: ...


class Kept:
    """Examples that stay in memory once read, as far as KEEP_BYTES go."""

    def __init__(self, data: Examples) -> None:
        self.data = data
        self.kept: dict[int, Example] = {}
        self.bytes = 0

    def __getitem__(self, index: int) -> Example:
        found = self.kept.get(index)
        if found is None:
            found = self.data[index]
            if self.bytes + found[0].nbytes <= KEEP_BYTES:
                self.bytes += found[0].nbytes
                self.kept[index] = found
        return found


def rng_for(purpose: int, seed: int, *place: int) -> np.random.Generator:
    """The generator for one purpose at one place of the run."""
    return np.random.default_rng([purpose, seed, *place])


def training_batches(
    data: Kept, options: TrainOptions, epoch: int, first: int, steps: int, rank: int, world: int
) -> Batches:
    """This process's share of the batches first..steps-1 of an epoch: (B, ...) and labels.

    Each batch of the whole run is dealt out to the processes by turns; what does not fill a batch
    is left out, another part in every epoch.
    """
    size = len(data.data)
    order = rng_for(ORDER, options.seed, epoch).permutation(size)
    batch = min(options.batch, size)
    plan = [order[s * batch : (s + 1) * batch][rank::world] for s in range(first, steps)]

    def view(index: int) -> Example:
        picture, label = data[index]
        if options.preprocess is None:
            return picture, label
        rng = rng_for(AUGMENT, options.seed, epoch, index)
        shown = augmented(picture, options.preprocess, options, rng)
        return normalised(shown, options.preprocess), label

    return _read_ahead(view, plan)


def evaluation_batches(
    data: Examples, pre: Preprocess | None, batch: int, rank: int, world: int
) -> Batches:
    """This process's share of held-out data, in order: (B, ...) and labels."""
    indices = np.arange(rank, len(data), world)

    def view(index: int) -> Example:
        picture, label = data[index]
        if pre is None:
            return picture, label
        return normalised(
            prepare(picture, pre.height, pre.width, pre.crop_pct, pre.interpolation), pre
        ), label

    return _read_ahead(view, [indices[i : i + batch] for i in range(0, len(indices), batch)])


def normalised(image_HWC: NDArray[np.float32], pre: Preprocess) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1] to (3, H, W), normalised."""
    mean, std = np.array(pre.mean, np.float32), np.array(pre.std, np.float32)
    image_CHW: NDArray[np.float32] = ((image_HWC - mean) / std).transpose(2, 0, 1)
    return image_CHW


def _read_ahead(view: Callable[[int], Example], plan: Sequence[NDArray[np.int64]]) -> Batches:
    """The batches of the plan in its order; errors of a reader come up here."""
    waiting: deque[list[Future[Example]]] = deque()
    readers = ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1), "read")
    try:
        for indices in plan:
            waiting.append([readers.submit(view, int(i)) for i in indices])
            if len(waiting) > AHEAD:
                yield _stacked(waiting.popleft())
        while waiting:
            yield _stacked(waiting.popleft())
    finally:
        readers.shutdown(cancel_futures=True)


def _stacked(futures: list[Future[Example]]) -> tuple[Tensor, list[Label]]:
    pairs = [future.result() for future in futures]
    x = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) for p, _ in pairs]))
    return x, [label for _, label in pairs]
