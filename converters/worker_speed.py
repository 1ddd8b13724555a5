"""What makes a vendor's conversion quicker in a worker process, and changes nothing it writes."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

from converters.lower.base import TARGETS, Job, lower_to

TINY = 8  # pixels
COLLECT_AFTER = 200_000  # new objects; 700 by Python's default


def rest_the_collector() -> None:
    """Spare what is imported from garbage collection, and collect seldom.

    A graph of nodes is very many objects that live to the end: looking through them again and again
    takes time and frees nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def share_provenance() -> None:
    """Let copies of a node share the record of where it came from.

    Every torch pass nests that record one deeper and copies it whole, so that the copies grow with
    the number of passes; the record is never changed once made.
    """
    from torch.fx.traceback import NodeSource

    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def rehearse(target: str) -> None:
    """Convert a tiny network to nowhere: what the tools build once is there when the model comes.

    ExecuTorch exports its patterns of resampling and attention first, the same for any model.
    """
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (TINY - 2) ** 2, 2)
    )
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, TINY, TINY),))
    with tempfile.TemporaryDirectory(prefix="edgevit-rehearsal-") as folder:
        file = Path(folder) / TARGETS[target].file
        lower_to(target, program, Job(file, TARGETS[target].precisions[0], TINY, TINY))
