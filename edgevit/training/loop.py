"""The training loop: whole steps, an evaluation an epoch, and a state on disk to go on from."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from edgevit.training.checks import check_goal, check_model, steps_of
from edgevit.training.ema import Ema
from edgevit.training.evaluate import evaluate
from edgevit.training.files import read_tensors, write_log, write_tensors, write_whole
from edgevit.training.loader import MIX, NETWORK, Examples, Kept, rng_for, training_batches
from edgevit.training.mixup import Label, mixed, soft_loss, targets_of
from edgevit.training.optimizer import build_optimizer
from edgevit.training.options import TrainingFailed, TrainingInterrupted, TrainOptions
from edgevit.training.parallel import Parallel
from edgevit.training.progress import EpochRow, Progress, Step, silent
from edgevit.training.record import LABELS, LOG, MODEL, write_record
from edgevit.training.result import Best, TrainResult
from edgevit.training.schedule import learning_rate
from edgevit.training.signals import Asked, noted
from edgevit.training.state import Journal, identity, load_state, save_state
from edgevit.training.teacher import Teacher
from edgevit.training.threads import torch_threads

SAVE_EVERY_S = 600.0


def train(
    module: nn.Module,
    data_train: Examples,
    data_test: Examples,
    options: TrainOptions,
    out: Path,
    *,
    teacher: Teacher | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train a classifier, in place, and leave a folder that `edgevit convert` takes.

    module: (B, 3, H, W) to logits (B, classes), or to several heads' logits, in training at least.
    data_train, data_test: pictures of bytes (H, W, 3), or float arrays where options.preprocess is
    None; labels are classes or distributions over them.
    out: gets model.safetensors (the best epoch's weights on data_test, of the module or of their
    moving average), labels.txt, log.csv, train.json and state/. Every process of a run under
    torchrun calls this alike.
    teacher: a trained network whose answers are a part of the loss; a continuation brings the same.

    Raises TrainingError for what cannot be trained or resumed and for a full disk, TrainingFailed
    where the loss is no number or the time did not do for one epoch, TrainingInterrupted after
    Ctrl-C or SIGTERM, once the state is saved. Whatever is raised, the last state is whole.
    """
    options.check()
    parallel = Parallel()
    check_goal(out, options.resume)
    steps = steps_of(len(data_train), len(data_test), options.batch, parallel.world)
    check_model(module, data_test, options.preprocess)
    if teacher is not None:
        teacher.check()
        check_model(teacher.module, data_test, options.preprocess)
    with torch.random.fork_rng(devices=[]), torch_threads(options.threads), noted() as asked:
        run = _Run(
            module, data_train, data_test, options, out, teacher, progress, parallel, steps, asked
        )
        return run.to_the_end()


class _Run:
    """One call of `train`: what all of its steps need."""

    def __init__(
        self,
        module: nn.Module,
        data_train: Examples,
        data_test: Examples,
        options: TrainOptions,
        out: Path,
        teacher: Teacher | None,
        progress: Progress,
        parallel: Parallel,
        steps: int,
        asked: Asked,
    ) -> None:
        self.module = parallel.place(module)
        self.data_train, self.data_test = Kept(data_train), data_test
        self.options, self.out, self.progress = options, out, progress
        self.parallel, self.steps, self.asked = parallel, steps, asked
        window = options.ema_epochs * steps
        self.ema = Ema(self.module, window) if window else None
        self.adamw = build_optimizer(self.module, options.lr, options.weight_decay)
        self.told = identity(options, data_train.classes, (len(data_train), len(data_test)))
        self.teacher = teacher
        if teacher is not None:
            self.told |= teacher.facts()
            parallel.place(teacher.module)
        self.journal = Journal()
        self.started = self.saved = time.monotonic()
        if options.resume:
            self.journal = load_state(out, self.module, self.ema, self.adamw, self.told)
        parallel.wait()  # all have looked at the folder before one writes there
        if parallel.rank == 0 and not options.resume:
            write_whole(out / LABELS, "".join(f"{c}\n" for c in data_train.classes).encode())
            self._save()  # a disk without room says so now
        self.wrapped, self.optimizer = parallel.prepare(self.module, self.adamw)

    def to_the_end(self) -> TrainResult:
        """All epochs that are left, as far as the time goes."""
        try:
            while self.journal.epoch < self.options.epochs and self._time_for_an_epoch():
                self._epoch()
            return self._result()
        finally:
            self.parallel.release(self.wrapped, self.module)

    def _epoch(self) -> None:
        journal, options = self.journal, self.options
        begun = time.monotonic() - journal.seconds
        self.module.train()
        batches = training_batches(
            self.data_train, options, journal.epoch, journal.step, self.steps,
            self.parallel.rank, self.parallel.world,
        )  # fmt: skip
        with closing(batches):
            for x, labels in batches:
                loss, stop, late = self._step(x, labels)
                journal.step += 1
                journal.updates += 1
                journal.loss_sum += loss
                journal.seconds = time.monotonic() - begun
                self._tell(loss)
                if stop or (late and not journal.rows) or self._save_is_due():
                    self._save()
                if stop:
                    raise self._interrupted()
                if late and not journal.rows:
                    raise TrainingFailed(
                        f"the time limit of {options.time_limit_s:.0f} s did not do for one epoch "
                        f"({journal.step} of {self.steps} steps). The state is saved: resume with "
                        "more time"
                    )
        self._close_epoch(begun)

    def _step(self, x: torch.Tensor, labels: list[Label]) -> tuple[float, bool, bool]:
        """One update. The loss of all processes, and whether one was asked to stop or is late."""
        options, journal, rank = self.options, self.journal, self.parallel.rank
        place = (journal.epoch, journal.step, rank)
        torch.manual_seed(int(rng_for(NETWORK, options.seed, *place).integers(2**63)))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(journal.updates)
        targets = targets_of(labels, len(self.data_train.data.classes), options.label_smoothing)
        x, targets = mixed(x, targets, options.mixup, rng_for(MIX, options.seed, *place))
        x = self.parallel.placed(x)
        outputs = self.wrapped(x)
        loss = soft_loss(outputs, targets.to(self.parallel.device))
        if self.teacher is not None:
            loss = self.teacher.mixed(loss, outputs, x)
        told = [float(loss.detach()), float(self.asked.number > 0), float(self._is_late())]
        summed, stop, late = self.parallel.total(torch.tensor(told, dtype=torch.float64)).tolist()
        if not math.isfinite(summed):
            raise self._blown_up(f"loss became {summed}", journal.step + 1)
        self.parallel.backward(loss)
        self.parallel.clip(self.wrapped, options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.module, journal.updates)
        return summed / self.parallel.world, stop > 0, late > 0

    def _close_epoch(self, begun: float) -> None:
        journal, ema = self.journal, self.ema
        modules = [self.module] + ([ema.module] if ema else [])
        found = evaluate(
            modules, self.data_test, self.options.preprocess,
            self.options.batch // self.parallel.world, self.parallel,
        )  # fmt: skip
        if not math.isfinite(found[0].loss):  # the last step did it; save nothing of this
            raise self._blown_up(f"held-out loss became {found[0].loss}", journal.step)
        best = journal.best
        for is_ema, scores in enumerate(found):
            if best is None or scores.better_than(best.scores):
                best = Best(journal.epoch + 1, bool(is_ema), scores)
        plain = found[0]
        row = EpochRow(
            epoch=journal.epoch + 1,
            lr=self._rate(journal.updates - 1),
            train_loss=journal.loss_sum / self.steps,
            val_loss=plain.loss,
            top1=plain.top1_percent,
            top5=plain.top5_percent,
            ema_top1=found[1].top1_percent if ema else None,
            seconds=time.monotonic() - begun,
        )
        is_new = best is not journal.best
        self.journal = Journal(row.epoch, 0, journal.updates, 0.0, 0.0, [*journal.rows, row], best)
        if self.parallel.rank == 0:
            assert best is not None
            if is_new:
                chosen = modules[best.ema].state_dict()
                write_tensors(self.out / MODEL, chosen)
            write_log(self.out / LOG, self.journal.rows)
            self._save()
        self.progress(row)
        if self._asked_to_stop() and self.journal.epoch < self.options.epochs:
            raise self._interrupted()

    def _result(self) -> TrainResult:
        journal = self.journal
        assert journal.best is not None
        finished = journal.epoch >= self.options.epochs
        notes = []
        if journal.best.ema:
            notes.append("the moving average of the weights was better, and is the result")
        if not finished:
            notes.append(
                f"the time limit ended it after epoch {journal.epoch} of {self.options.epochs}; "
                "it can be resumed"
            )
        result = TrainResult(
            out=self.out,
            best=journal.best,
            rows=tuple(journal.rows),
            finished=finished,
            seconds=sum(row.seconds for row in journal.rows),
            notes=tuple(notes),
        )
        if self.parallel.rank == 0:
            write_record(result, self.options, self.told, self.parallel)
        self.parallel.wait()  # the best weights are on the disk
        weights, _ = read_tensors(self.out / MODEL)
        self.module.load_state_dict(weights)
        self.module.eval()
        return result

    def _rate(self, update: int) -> float:
        o = self.options
        total, warmup = self.steps * o.epochs, round(self.steps * o.warmup_epochs)
        return learning_rate(update, total, min(warmup, total // 3), o.lr, o.lr_end)

    def _asked_to_stop(self) -> bool:
        """Whether any process was."""
        return float(self.parallel.total(torch.tensor([float(self.asked.number > 0)]))) > 0

    def _is_late(self) -> bool:
        limit = self.options.time_limit_s
        return limit is not None and time.monotonic() - self.started > limit

    def _time_for_an_epoch(self) -> bool:
        limit, rows = self.options.time_limit_s, self.journal.rows
        if limit is None or not rows:
            return True
        left = limit - (time.monotonic() - self.started)
        mean = sum(row.seconds for row in rows) / len(rows)
        over = torch.tensor([float(left < mean - self.journal.seconds)])
        return not float(self.parallel.total(over))

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved > SAVE_EVERY_S

    def _save(self) -> None:
        if self.parallel.rank == 0:
            save_state(self.out, self.module, self.ema, self.adamw, self.journal, self.told)
        self.saved = time.monotonic()

    def _tell(self, loss: float) -> None:
        j = self.journal
        self.progress(Step(j.epoch + 1, self.options.epochs, j.step, self.steps, loss))

    def _blown_up(self, what: str, step: int) -> TrainingFailed:
        epoch, rate = self.journal.epoch, self._rate(self.journal.updates)
        return TrainingFailed(
            f"the {what} in epoch {epoch + 1}, step {step} of {self.steps}, at a learning rate of "
            f"{rate:g}; try a smaller one. The last state and the best weights so far are whole"
        )

    def _interrupted(self) -> TrainingInterrupted:
        j = self.journal
        where = f"in epoch {j.epoch + 1} after step {j.step} of {self.steps}"
        where = where if j.step else f"after epoch {j.epoch}"
        return TrainingInterrupted(
            f"interrupted {where}; the state is saved in {self.out}, and --resume goes on from "
            "there",
            self.asked.number or 2,
        )
