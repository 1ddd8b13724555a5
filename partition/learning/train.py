"""Fine-tune a sub-model: on its classes, a few pictures of the others, and what the full says."""

# Shapes: B batch, Y classes of the full model, S logits and C width of the sub-model.

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.models.vit import VisionTransformer
from edgevit.training import Progress, Step, TrainingError, TrainOptions, silent
from edgevit.training.loader import MIX, Examples, Kept, rng_for, training_batches
from edgevit.training.mixup import Label, mixed, targets_of
from edgevit.training.optimizer import build_optimizer
from edgevit.training.schedule import learning_rate
from edgevit.training.state import STATE, Journal, identity, load_state, save_state
from edgevit.training.threads import torch_threads
from partition.cutting.geometry import plain_vit
from partition.cutting.submodel import Submodel
from partition.errors import PartitionError
from partition.learning.distill import (
    OTHER_SHARE,
    Taught,
    Views,
    divergence,
    own_logits,
    own_targets,
)

CLIP = 1.0


@dataclass(frozen=True)
class TuneOptions:
    """How a sub-model is fine-tuned.

    lr: the peak learning rate, reached after warmup_epochs, then down a cosine to lr_end of it.
    other_share: of the pictures of every class that is not the sub-model's, the share it sees.
    temperature: of the full model's answers that the sub-model learns.
    label_weight: how much the true label counts beside the full model's answer, 0 to 1.
    feature_weight: how much it counts, besides, that the features are the full model's own in the
    channels that were kept; 0 is off.
    threads: CPU threads of torch; None leaves torch's own choice.
    """

    views: Views = field(default_factory=Views)
    epochs: int = 30
    lr: float = 1e-3
    lr_end: float = 0.01
    warmup_epochs: float = 2.0
    weight_decay: float = 0.05
    other_share: float = OTHER_SHARE
    temperature: float = 2.0
    label_weight: float = 0.3
    feature_weight: float = 0.0
    threads: int | None = None

    def run(self, facts: Mapping[str, object]) -> TrainOptions:
        """The same for the pieces of edgevit.training, `facts` being what a restart must share.

        Raises PartitionError for a value that makes no sense.
        """
        own = ("other_share", "temperature", "label_weight", "feature_weight")
        for name in own:
            value = getattr(self, name)
            most = math.inf if name in ("temperature", "feature_weight") else 1.0
            if not (0 <= value <= most and math.isfinite(value)):
                bound = "0 or more" if most == math.inf else "0 to 1"
                raise PartitionError(f"{name} must be {bound}, got {value:g}")
        if not self.temperature:
            raise PartitionError("temperature must be above 0, got 0")
        options = replace(
            self.views.loading(), epochs=self.epochs, lr=self.lr, lr_end=self.lr_end,
            warmup_epochs=self.warmup_epochs, weight_decay=self.weight_decay,
            threads=self.threads, facts={**facts, **{name: getattr(self, name) for name in own}},
        )  # fmt: skip
        try:
            options.check()
        except TrainingError as error:
            raise PartitionError(str(error)) from error
        return options


@dataclass(frozen=True)
class Tuned:
    """The end of a fine-tuning: the last epoch's mean loss, and the pictures of an epoch.

    seconds are those of all epochs, over all restarts.
    """

    loss: float
    pictures: int
    seconds: float


def fine_tune(
    submodel: Submodel,
    teacher: nn.Module,
    data: Examples,
    options: TuneOptions,
    *,
    state: Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Train a sub-model in place, and leave it in eval mode.

    teacher: the full ViT, normalised pictures to logits over all classes; not changed.
    data: the training pictures of all classes; which of them are shown is decided here.
    state: a folder for what it takes to go on after each epoch; one that holds a run already is
    gone on with, and gives the same weights in the end. None keeps nothing.

    Raises PartitionError for what cannot be tuned, or a state of another run.
    """
    run = options.run({"submodel_classes": submodel.classes, "other": submodel.other})
    if submodel.head.out_features < 2 and not options.feature_weight:
        raise PartitionError(
            "a sub-model of one class without a logit for the others has nothing to tell apart: "
            "give it 'other', more classes, or a feature_weight above 0"
        )
    full = plain_vit(teacher).eval()
    if full.head.out_features != len(data.classes):
        raise PartitionError(
            f"the full model has {full.head.out_features} classes and the data "
            f"{len(data.classes)}: give the data it was trained on"
        )
    share = options.other_share if submodel.other else 0.0
    taught = Taught(data, submodel.classes, share, run.seed)
    with torch_threads(options.threads), torch.enable_grad():
        tuning = _Tuning(submodel, full, taught, options, run)
        try:
            tuning.to_the_end(state, progress)
        except TrainingError as error:
            raise PartitionError(str(error)) from error
    submodel.eval()
    journal = tuning.journal
    return Tuned(journal.loss_sum / tuning.steps, len(taught), journal.seconds)


class _Tuning:
    """One call of `fine_tune`: what all of its steps need."""

    def __init__(
        self,
        submodel: Submodel,
        full: VisionTransformer,
        taught: Taught,
        options: TuneOptions,
        run: TrainOptions,
    ) -> None:
        self.submodel, self.full, self.options, self.run = submodel, full, options, run
        self.taught = Kept(taught)
        self.steps = max(len(taught) // run.batch, 1)
        self.optimizer = build_optimizer(submodel, run.lr, run.weight_decay)
        self.told = identity(run, taught.classes, (len(taught), 0))
        self.journal = Journal()

    def to_the_end(self, state: Path | None, progress: Progress) -> None:
        """All epochs that are left."""
        if state is not None and (state / STATE).is_file():
            self.journal = load_state(state, self.submodel, None, self.optimizer, self.told)
        while self.journal.epoch < self.run.epochs:
            self._epoch(progress)
            if state is not None:
                save_state(state, self.submodel, None, self.optimizer, self.journal, self.told)

    def _epoch(self, progress: Progress) -> None:
        journal, epochs = self.journal, self.run.epochs
        begun = time.monotonic()
        self.submodel.train()
        journal.loss_sum = 0.0
        batches = training_batches(self.taught, self.run, journal.epoch, 0, self.steps, 0, 1)
        with closing(batches):
            for step, (x, labels) in enumerate(batches):
                loss = self._step(x, labels, step)
                journal.updates += 1
                journal.loss_sum += loss
                progress(Step(journal.epoch + 1, epochs, step + 1, self.steps, loss))
        journal.epoch += 1
        journal.seconds += time.monotonic() - begun

    def _step(self, x: Tensor, labels: list[Label], step: int) -> float:
        run, journal = self.run, self.journal
        total, warmup = self.steps * run.epochs, round(self.steps * run.warmup_epochs)
        rate = learning_rate(journal.updates, total, min(warmup, total // 3), run.lr, run.lr_end)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        target_BY = targets_of(labels, self.full.head.out_features, smoothing=0.0)
        rng = rng_for(MIX, run.seed, journal.epoch, step)
        x, target_BY = mixed(x, target_BY, run.mixup, rng)
        device = self.full.pos_embed.device
        loss = self._loss(x.to(device), target_BY.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PartitionError(
                f"the loss became {value} in epoch {journal.epoch + 1}, step {step + 1}, at "
                f"a learning rate of {rate:g}; try a smaller one"
            )
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.submodel.parameters(), CLIP)
        self.optimizer.step()
        return value

    def _loss(self, x: Tensor, target_BY: Tensor) -> Tensor:
        options, sub = self.options, self.submodel
        theirs, full_BY = features_and_logits(self.full, x)
        ours = sub.features(x)
        logits_BS = sub.head(ours)
        heat, weight = options.temperature, options.label_weight
        taught_BS = (own_logits(full_BY, sub.classes, sub.other) / heat).softmax(1)
        true_BS = own_targets(target_BY, sub.classes, sub.other)
        loss = (1 - weight) * divergence(logits_BS, taught_BS, heat)
        loss = loss + weight * divergence(logits_BS, true_BS, 1.0)
        if options.feature_weight:
            kept = torch.tensor(sub.kept.residual, device=theirs.device)
            loss = loss + options.feature_weight * F.mse_loss(ours, theirs[:, kept])
        return loss


@torch.no_grad()
def features_and_logits(vit: VisionTransformer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The full model's class token after the last norm (B, width), and its logits (B, classes)."""
    read: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])

    handle = vit.head.register_forward_pre_hook(note)
    try:
        logits: Tensor = vit(x)
    finally:
        handle.remove()
    return read[0], logits
