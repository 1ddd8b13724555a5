"""Train the fusion over sub-models that stay as they are."""

# Shapes: B batch, E examples, W widths of all blocks together, Y classes.

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgevit.training import Preprocess, Progress, Step, silent
from edgevit.training.loader import (
    MIX,
    Batches,
    Examples,
    Kept,
    evaluation_batches,
    rng_for,
    training_batches,
)
from edgevit.training.mixup import mixed, targets_of
from edgevit.training.optimizer import build_optimizer
from edgevit.training.schedule import learning_rate
from edgevit.training.threads import torch_threads
from partition.cutting.submodel import Submodel
from partition.errors import PartitionError
from partition.learning.distill import Views, divergence
from partition.learning.fusion import Fusion, drop_blocks

CLIP = 1.0


@dataclass(frozen=True)
class FusionOptions:
    """How the fusion is trained.

    passes: how many times the pictures go through all models, each time in other views; what they
    answer is kept, and the fusion is trained on that.
    hidden: widths of the fusion's inner layers; None for its own choice.
    block_dropout: the probability that a sub-model's block is filled with zeros, so that the fusion
    learns what to make of a lost one; 0 is plain fusion.
    lr, lr_end, temperature, label_weight, threads: as for the sub-models.
    """

    views: Views = field(default_factory=Views)
    passes: int = 8
    epochs: int = 30
    batch: int = 64
    lr: float = 3e-3
    lr_end: float = 0.01
    weight_decay: float = 0.05
    hidden: tuple[int, ...] | None = None
    block_dropout: float = 0.2
    temperature: float = 2.0
    label_weight: float = 0.3
    threads: int | None = None

    def check(self) -> None:
        """Raise PartitionError for a value that makes no sense."""
        for name, low, high in (
            ("passes", 1.0, math.inf), ("epochs", 1.0, math.inf), ("batch", 1.0, math.inf),
            ("lr", 1e-12, math.inf), ("lr_end", 0.0, 1.0), ("weight_decay", 0.0, math.inf),
            ("block_dropout", 0.0, 0.95), ("temperature", 1e-3, math.inf), ("label_weight", 0, 1.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                bound = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise PartitionError(f"{name} must be {bound}, got {value:g}")


@dataclass(frozen=True)
class Answers:
    """What the models say of E examples; targets are the labels as distributions.

    blocks (E, W) are the sub-models' answers side by side, full (E, Y) the full model's logits,
    targets (E, Y).
    """

    blocks: Tensor
    full: Tensor
    targets: Tensor


def train_fusion(
    submodels: Sequence[Submodel],
    teacher: nn.Module,
    data: Examples,
    options: FusionOptions,
    *,
    progress: Progress = silent,
) -> Fusion:
    """A fusion, in eval mode, for the sub-models' answers as each is set to answer.

    teacher: the full model; it and the sub-models are not changed. data: the training pictures of
    all classes. Raises PartitionError.
    """
    options.check()
    with torch_threads(options.threads):
        answers = training_answers(submodels, teacher, data, options.views, options.passes)
        return fit_fusion([sub.outputs for sub in submodels], answers, options, progress=progress)


def training_answers(
    submodels: Sequence[Submodel], teacher: nn.Module, data: Examples, views: Views, passes: int
) -> Answers:
    """What all models say of `passes` times the training pictures. Raises PartitionError."""
    run = views.loading()
    kept = Kept(data)
    steps = max(len(data) // run.batch, 1)
    parts = []
    for number in range(passes):
        batches = training_batches(kept, run, number, 0, steps, 0, 1)
        parts.append(_answers(submodels, teacher, data, batches, run.mixup, (run.seed, number)))
    return Answers(*(torch.cat([getattr(part, n) for part in parts]) for n in vars(parts[0])))


def held_out_answers(
    submodels: Sequence[Submodel],
    teacher: nn.Module,
    data: Examples,
    preprocess: Preprocess | None,
    batch: int = 64,
) -> Answers:
    """What all models say of held-out pictures, each once and as it is."""
    batches = evaluation_batches(data, preprocess, batch, 0, 1)
    return _answers(submodels, teacher, data, batches, 0.0, (0, 0))


def fit_fusion(
    widths: Sequence[int], answers: Answers, options: FusionOptions, *, progress: Progress = silent
) -> Fusion:
    """A fusion trained on answers that are there already, on the CPU. Raises PartitionError."""
    options.check()
    examples, classes = answers.full.shape
    taught = (answers.full / options.temperature).softmax(1)
    steps = math.ceil(examples / options.batch)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(options.views.seed)
        fusion = Fusion(widths, classes, options.hidden)
        generator = torch.Generator().manual_seed(options.views.seed)
        optimizer = build_optimizer(fusion, options.lr, options.weight_decay)
        for epoch in range(options.epochs):
            order = torch.randperm(examples, generator=generator)
            for step, chosen in enumerate(torch.split(order, options.batch)):
                done, total = epoch * steps + step, options.epochs * steps
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(done, total, 0, options.lr, options.lr_end)
                blocks = drop_blocks(
                    answers.blocks[chosen], widths, options.block_dropout, generator
                )
                logits = fusion(blocks)
                loss = (1 - options.label_weight) * divergence(
                    logits, taught[chosen], options.temperature
                ) + options.label_weight * divergence(logits, answers.targets[chosen], 1.0)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(fusion.parameters(), CLIP)
                optimizer.step()
                progress(Step(epoch + 1, options.epochs, step + 1, steps, float(loss.detach())))
    if not all(bool(value.isfinite().all()) for value in fusion.parameters()):
        raise PartitionError(
            f"the fusion's weights are no numbers after {options.epochs} epochs at a learning rate "
            f"of {options.lr:g}; try a smaller one"
        )
    return fusion.eval()


@torch.no_grad()
def _answers(
    submodels: Sequence[Submodel],
    teacher: nn.Module,
    data: Examples,
    batches: Batches,
    mixup: float,
    place: tuple[int, int],
) -> Answers:
    if not submodels:
        raise PartitionError("a fusion needs at least one sub-model")
    for module in (teacher, *submodels):
        module.eval()
    device = next(teacher.parameters()).device
    rows = []
    with closing(batches):
        for step, (pictures, labels) in enumerate(batches):
            target = targets_of(labels, len(data.classes), smoothing=0.0)
            x, target = mixed(pictures, target, mixup, rng_for(MIX, *place, step))
            x = x.to(device)
            blocks = torch.cat([sub(x) for sub in submodels], dim=1)
            rows.append((blocks.float().cpu(), teacher(x).float().cpu(), target))
    return Answers(*(torch.cat(column) for column in zip(*rows, strict=True)))
