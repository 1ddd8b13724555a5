"""The trainings of a slimming: of what is slimmed, and of what came out, taught by the former."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from converters.jobs.steps import Tell
from converters.slim.errors import SlimError
from converters.slim.families.base import Subnet
from converters.slim.pictures import Part
from converters.slim.source import About, Ground, save_source
from edgevit.data import Dataset
from edgevit.training import (
    EpochRow,
    Teacher,
    TrainingInterrupted,
    TrainOptions,
    TrainResult,
    train,
)
from edgevit.training import Step as Batch
from edgevit.training.evaluate import evaluate
from edgevit.training.parallel import Parallel
from edgevit.training.state import STATE

WEIGHTS, RESULT = "model.safetensors", "result.json"
# The inherited weights are near a good place: half of the rate from scratch.
TUNING_LR, TUNING_WARMUP = 1e-3, 1.0
DISTILLED, TEMPERATURE = 0.5, 2.0


class SlimInterrupted(SlimError):  # noqa: N818  # what happened, as the user reads it
    """A signal stopped a training after a whole step, and its state was saved."""


@dataclass(frozen=True)
class Learning:
    """Data and options of the trainings. states is the folder for what is under way."""

    train: Part
    held: Part
    test: Dataset
    options: TrainOptions
    states: Path

    def run(
        self, module: nn.Module, name: str, tell: Tell, teacher: Teacher | None, **changed: Any
    ) -> TrainResult:
        """Train in place, from where an earlier run was cut off; `changed` are options' fields.

        Raises TrainingError, SlimInterrupted.
        """
        out = self.states / name
        resume = (out / STATE).is_file()
        if not resume:
            shutil.rmtree(out, ignore_errors=True)  # cut off before there was anything to keep
        options = replace(self.options, resume=resume, **changed)

        def told(event: Batch | EpochRow) -> None:
            if isinstance(event, Batch):
                done = (event.epoch - 1 + event.step / event.steps) / event.epochs
                tell(done, f"epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}")

        try:
            return train(
                module, self.train, self.held, options, out, teacher=teacher, progress=told
            )
        except TrainingInterrupted as stopped:
            error = SlimInterrupted("interrupted after a whole step; nothing is lost")
            error.exit_code = stopped.exit_code
            raise error from stopped


def train_source(
    about: About, learning: Learning, name: str, epochs: int, out: Path, tell: Tell
) -> None:
    """Train a supernet, or a whole network, and write it as a source into `out`."""
    module = about.build()
    anneal = getattr(module, "anneal_over", None)
    if anneal is not None:  # a supernet that hardens its choices towards the end of the run
        anneal(epochs * max(len(learning.train) // learning.options.batch, 1))
    learning.run(module, name, tell, None, epochs=epochs)
    save_source(module, about, out)


def tune(
    ground: Ground,
    subnet: Subnet,
    learning: Learning,
    name: str,
    epochs: int,
    out: Path,
    tell: Tell,
) -> None:
    """Fine-tune a subnet with what it came from as its teacher; weights and scores go into `out`.

    The data's test pictures are looked at here, after all that is chosen by others.
    """
    module = ground.inherited(subnet)
    teacher = Teacher(ground.module, DISTILLED, TEMPERATURE)
    result = learning.run(
        module, name, tell, teacher, epochs=epochs, lr=TUNING_LR, warmup_epochs=TUNING_WARMUP
    )
    options = learning.options
    (test,) = evaluate([module], learning.test, options.preprocess, options.batch, Parallel())
    held = result.best.scores
    scores = {
        "held_top1": held.top1_percent, "held_loss": held.loss,
        "test_top1": test.top1_percent, "test_top5": test.top5_percent, "test_loss": test.loss,
        "epoch": result.best.epoch, "seconds": result.seconds,
    }  # fmt: skip
    shutil.copyfile(result.out / WEIGHTS, out / WEIGHTS)
    (out / RESULT).write_text(json.dumps(scores) + "\n")


def read_result(folder: Path) -> Mapping[str, Any]:
    """The scores that `tune` wrote."""
    found: Mapping[str, Any] = json.loads((folder / RESULT).read_text())
    return found
