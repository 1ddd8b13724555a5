"""What is wrong with a run before it begins."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from edgevit.training.evaluate import mean_of_heads
from edgevit.training.loader import Examples, evaluation_batches
from edgevit.training.options import Preprocess, TrainingError
from edgevit.training.state import STATE

FEWEST = 2  # examples for BatchNorm to have a variance


def check_goal(out: Path, resume: bool) -> None:
    """Refuse a folder that is there already, unless a run in it is to go on."""
    if resume:
        if not (out / STATE).is_file():
            raise TrainingError(f"{out} holds no run to resume (no {STATE}); leave --resume out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = ", or --resume to go on with the run in it" if (out / STATE).is_file() else ""
        raise TrainingError(f"{out} exists already; give another folder{hint}")


def steps_of(train: int, test: int, batch: int, world: int) -> int:
    """Steps of an epoch: whole batches, at least one. Raises TrainingError for too few examples."""
    if not test:
        raise TrainingError("the data has nothing held out to test on")
    if train < FEWEST * world:
        raise TrainingError(
            f"the data has {train} training examples, expected {FEWEST * world} or more"
        )
    if batch % world or batch < FEWEST * world:
        raise TrainingError(
            f"a batch of {batch} cannot be shared by {world} processes: expected a multiple of "
            f"{world}, with at least {FEWEST} examples for each"
            if world > 1
            else f"the batch is at least {FEWEST}, got {batch}"
        )
    return max(train // batch, 1)


@torch.no_grad()
def check_model(module: nn.Module, data: Examples, pre: Preprocess | None) -> None:
    """Run one example: the model must take its size and know its classes."""
    with closing(evaluation_batches(data, pre, 1, 0, len(data))) as batches:
        x, _ = next(batches)
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    try:
        outputs = mean_of_heads(module.eval()(x.to(device)))
    except Exception as error:
        if hasattr(error, "exit_code"):
            raise
        raise TrainingError(
            f"the model does not take inputs of shape {tuple(x.shape)} "
            f"({type(error).__name__}: {str(error).strip()[:300]}); --size sets their side"
        ) from error
    if outputs.shape != (1, len(data.classes)):
        raise TrainingError(
            f"the data has {len(data.classes)} classes, so the model must give logits of shape "
            f"(1, {len(data.classes)}), got {tuple(outputs.shape)}"
        )
