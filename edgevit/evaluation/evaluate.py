"""Run a model, and each of its artefacts on its engine, over labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from edgevit.data import Dataset, at_size, open_dataset, prepare
from edgevit.evaluation.class_names import check_count, check_names
from edgevit.evaluation.errors import EvaluationError
from edgevit.evaluation.options import EvalOptions
from edgevit.evaluation.predictors import Logits, Predictor
from edgevit.evaluation.record import Agreement, Evaluation, Result, share
from edgevit.evaluation.subjects import Subject, open_subject
from runtime.errors import RuntimeFault
from runtime.labels import read_labels
from runtime.manifest import Preprocessing

TOP = 5

Progress = Callable[[int, int], None]
"""Told after every batch: pictures done, pictures in all."""


def evaluate(
    subject: str,
    data: str,
    options: EvalOptions | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Top-1 and top-5 of a model, an artefact or a bundle on the pictures of a data reference.

    All that is evaluated sees the same pictures, prepared as the model wants them. An artefact that
    fails on the way is a result that says so; the others go on. Raises EvaluationError, DataError,
    and what opening a model or a bundle raises, all with an exit_code.
    """
    options = options or EvalOptions()
    dataset = open_dataset(data, options.split)
    opened = open_subject(subject, options, len(dataset.classes))
    with ExitStack() as stack:
        for predictor in opened.predictors:
            stack.callback(predictor.close)
        check_count(opened.classes, dataset.classes, f"'{subject}'")
        labels = _labels(opened, dataset)
        dataset = at_size(dataset, opened.preprocessing.height, opened.preprocessing.width)
        chosen = _chosen(len(dataset), options.limit)
        tallies = [_Tally(predictor, len(chosen)) for predictor in opened.predictors]
        for start, pictures, truth in _batches(dataset, chosen, opened.preprocessing, options):
            for tally in tallies:
                tally.take(start, pictures, truth)
            progress(start + len(pictures), len(chosen))
    return Evaluation(
        subject=subject,
        data=data,
        split=options.split,
        pictures=len(chosen),
        available=len(dataset),
        classes=opened.classes,
        labels=labels,
        trained=opened.trained,
        results=[tally.result(opened.classes) for tally in tallies] + opened.absent,
        agreements=_agreements([tally for tally in tallies if tally.reason is None]),
        notes=opened.notes,
    )


class _Tally:
    """What one predictor said about each picture."""

    def __init__(self, predictor: Predictor, pictures: int) -> None:
        self.predictor = predictor
        self.reason: str | None = None
        self.said = np.zeros(pictures, dtype=np.int64)
        self.rank = np.zeros(pictures, dtype=np.int64)

    def take(self, start: int, pictures_BHWC: NDArray[np.float32], truth_B: Logits) -> None:
        """Ask about pictures `start`, `start + 1`, ...; the first failure is the last question."""
        if self.reason is not None:
            return
        try:
            logits_BK = self.predictor.logits(pictures_BHWC)
        except RuntimeFault as error:
            self.reason = str(error)
            return
        if not np.isfinite(logits_BK).all():
            bad = start + int((~np.isfinite(logits_BK)).any(axis=1).argmax())
            self.reason = f"NaN or infinite logits for picture {bad}"
            return
        here = slice(start, start + len(truth_B))
        self.said[here] = logits_BK.argmax(axis=1)
        self.rank[here] = ranks(logits_BK, truth_B)

    def result(self, classes: int) -> Result:
        one = self.predictor
        if self.reason is not None:
            return Result(
                one.name, "failed", one.precision, one.engine, one.engine_version,
                reason=self.reason,
            )  # fmt: skip
        of = len(self.rank)
        return Result(
            one.name, "evaluated", one.precision, one.engine, one.engine_version,
            top1=share(int((self.rank < 1).sum()), of),
            top5=share(int((self.rank < TOP).sum()), of) if classes > TOP else None,
        )  # fmt: skip


def ranks(logits_BK: Logits, truth_B: Logits) -> NDArray[np.int64]:
    """The place of the true class among the logits, (B,), 0 for the best.

    Of equal logits the lower class comes first, as in argmax, so that a constant answer is right
    for one class and not for all.
    """
    own = np.take_along_axis(logits_BK, truth_B[:, None], axis=1)
    before = np.arange(logits_BK.shape[1]) < truth_B[:, None]
    ahead = (logits_BK > own) | ((logits_BK == own) & before)
    place: NDArray[np.int64] = ahead.sum(axis=1)
    return place


def _labels(opened: Subject, dataset: Dataset) -> str:
    """Check class names, and say in words what is known about their order."""
    if opened.labels is None:
        return "the model brings no class names, so the order of the classes is taken on trust"
    return check_names(read_labels(opened.labels), dataset.classes, opened.labels)


def _chosen(available: int, limit: int | None) -> NDArray[np.int64]:
    """Which pictures to look at: all, or `limit` drawn from all, the same ones every time."""
    if limit is None or limit >= available:
        return np.arange(available)
    if limit < 1:
        raise EvaluationError(f"--limit is at least 1 picture, got {limit}")
    return np.sort(np.random.default_rng(0).permutation(available)[:limit])


def _batches(
    dataset: Dataset, chosen: NDArray[np.int64], pre: Preprocessing, options: EvalOptions
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """(number of the first picture, prepared pictures (B, H, W, 3), true classes (B,))."""
    if options.batch < 1:
        raise EvaluationError(f"--batch is at least 1 picture, got {options.batch}")
    for start in range(0, len(chosen), options.batch):
        items = [dataset[int(index)] for index in chosen[start : start + options.batch]]
        pictures = [
            prepare(picture, pre.height, pre.width, pre.crop_pct, pre.interpolation)
            for picture, _ in items
        ]
        yield start, np.stack(pictures), np.array([label for _, label in items])


def _agreements(tallies: list[_Tally]) -> list[Agreement]:
    return [
        Agreement(
            one.predictor.name, other.predictor.name, int((one.said == other.said).sum()),
            len(one.said),
        )
        for one, other in combinations(tallies, 2)
    ]  # fmt: skip
