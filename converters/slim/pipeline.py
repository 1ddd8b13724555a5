"""The way of a slimming: table, supernet, importance, search, baselines, fine-tuning, result."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.jobs.progress import Event, Progress, State, silent
from converters.jobs.steps import Step, Tell, carry_out, is_done, output_of
from converters.jobs.workspace import Goal, Workspace, check_goal, workspace, writing
from converters.slim.baselines import Other, band_of, best_of, random_search, uniform
from converters.slim.candidates import as_json, smallest
from converters.slim.clock import TableClock
from converters.slim.cost.predict import LatencyTable
from converters.slim.errors import SlimError
from converters.slim.evaluate import Evaluator, runner_of
from converters.slim.families.base import Subnet
from converters.slim.finish import Learning, train_source, tune
from converters.slim.journal import Journal
from converters.slim.objective import MES, LatencyObjective
from converters.slim.options import SlimOptions
from converters.slim.origin import Origin, origin_of
from converters.slim.pictures import Pictures, batches, held_out, read_pictures
from converters.slim.record import KIND, NAME, SlimRecord
from converters.slim.result import TABLE, Made, write_result
from converters.slim.search import Search
from converters.slim.source import Ground, ground_of, load_source, save_importance, save_source
from converters.slim.trajectory import Found, Point
from edgevit.data import at_size, open_splits
from edgevit.training import TrainOptions

if TYPE_CHECKING:
    from runtime.devices.file import KnownDevice

GOAL = Goal(
    what="slimming", maker="edgevit-slimming", mark="slimming.json", name=NAME, kind=KIND,
    error=SlimError,
)  # fmt: skip
STATES = "states"  # of trainings that are under way
MEASURED_POINTS = 8  # of the search's way, that are measured as whole networks

Page = Callable[[SlimRecord], str]


@dataclass(frozen=True)
class Result:
    """What a slimming made: the folder, and what slim.json there says."""

    out: Path
    record: SlimRecord


def slim(
    model: str,
    data: str,
    out: Path,
    options: SlimOptions,
    progress: Progress = silent,
    page: Page | None = None,
) -> Result:
    """From a network of the zoo to a smaller one that takes `options.target_ms` where it will run.

    model and data are references as everywhere. page makes report.html of the record. A run that
    was cut off goes on from `out`.partial when it is started again with the same words. Raises
    SlimError (SlimFailed where the target was not met), DataError, ConvertError, ModelError,
    TrainingError, RuntimeFault; whatever is raised, `out` is as it was.
    """
    options.check()
    out = out.absolute()
    check_goal(out, options.force, GOAL)
    splits = open_splits(data)
    origin = origin_of(model, options, len(splits[0].classes))
    pre = origin.preprocess
    train_all, test = (at_size(split, pre.height, pre.width) for split in splits)
    train, held = held_out(train_all, options.seed)
    progress(Event("pictures", State.RUNNING, 0.0, "read"))
    pictures = read_pictures(train, held, pre, options.seed)
    progress(Event("pictures", State.DONE, 1.0))
    with ExitStack() as stack:
        space = stack.enter_context(workspace(out, options.force, GOAL))

        def measuring(text: str, share: float) -> None:
            progress(Event("latency table", State.RUNNING, share, text))

        table = stack.enter_context(
            LatencyTable.open(
                options.table or space.root / TABLE, origin.family, options.on,
                threads=options.threads, device=_device(options), progress=measuring,
            )
        )  # fmt: skip
        journal = Journal(
            space.root,
            options.identity() | {
                "model": model, "weights_sha256": origin.weights_sha256, "data": data,
                "pictures_sha256": pictures.sha256, "train_pictures": len(train),
                "test_pictures": len(test), "labels": list(train.classes),
                "setup": str(table.setup),
            },
        )  # fmt: skip
        learning = Learning(
            train, held, test, TrainOptions(preprocess=pre, seed=options.seed),
            space.root / STATES,
        )  # fmt: skip
        run = _Run(space, origin, options, table, journal, learning, progress)
        made = run.to_the_end(pictures, model, data)
        with writing(space.root, GOAL):
            record = write_result(made, space.staged, page)
        space.publish(options.force)
    return Result(out, record)


def _device(options: SlimOptions) -> KnownDevice | None:
    """The device to measure on; None is this machine."""
    from runtime.devices.file import LOCAL, AddressOptions, find_devices

    where = options.where
    if where.device == LOCAL:
        return None
    (device,) = find_devices([where.device], where.file, where.options or AddressOptions())
    return device


class _Run:
    """One call of `slim`: what all of its steps need."""

    def __init__(
        self,
        space: Workspace,
        origin: Origin,
        options: SlimOptions,
        table: LatencyTable,
        journal: Journal,
        learning: Learning,
        progress: Progress,
    ) -> None:
        self.space, self.origin, self.options = space, origin, options
        self.table, self.learning, self.progress = table, learning, progress
        self.steps = space.folders.steps
        self.clock = TableClock(table, journal, origin.about.side, origin.about.classes)
        self.done: dict[str, Step] = {}

    def to_the_end(self, pictures: Pictures, model: str, data: str) -> Made:
        """Every step; those that an earlier run has done are taken as they are."""
        options, origin = self.options, self.origin
        self._fit()
        self._check_target()
        seen = self._do(
            Step("pictures", "pictures", {"sha256": pictures.sha256}),
            lambda out, tell: pictures.save(out),
        )
        source = self._source()
        weighed = self._do(
            Step("importance", "importance", {}, {"source": source, "pictures": seen}),
            lambda out, tell: self._weigh(output_of(source, self.steps), pictures, out, tell),
        )
        inputs = {"source": source, "importance": weighed, "pictures": seen}
        ground = ground_of({role: output_of(step, self.steps) for role, step in inputs.items()})
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // options.jobs)
        runner = runner_of(self.space.folders, options.jobs, threads, options.ray)

        def scorer(name: str) -> Evaluator:
            return Evaluator(
                source, weighed, seen, self.space.folders, runner, options.jobs, self.progress, name
            )

        whole = origin.family.whole(origin.shape)
        found = Search(
            origin.family, ground.importance, scorer("search"), self.clock, self._goal(),
            ground.inherited, options.tolerance, self._tell_point,
        ).run(whole)  # fmt: skip
        self._ended("search")
        others = self._baselines(found, scorer) if options.baselines else []
        measured = self._measure(ground, found, others)
        chosen = self._chosen(found, others)
        finished = {
            way: self._finish(way, subnet, inputs, ground) for way, subnet in chosen.items()
        }
        return Made(
            origin=origin, options=options, model=model, data=data, table=self.table,
            steps=self.steps, learning=self.learning, pictures=pictures, found=found,
            others=others, measured=measured, chosen=chosen, finished=finished, done=self.done,
            source=output_of(source, self.steps),
        )  # fmt: skip

    def _goal(self) -> LatencyObjective | MES:
        options = self.options
        if options.target_size_m is None:
            return LatencyObjective(options.target_ms)
        return MES(
            options.target_size_m, options.target_ms,
            alpha_size=options.mes_alpha_size, alpha_latency=options.mes_alpha_latency,
            unit_size_m=options.mes_unit_size_m, unit_latency_ms=options.mes_unit_latency_ms,
        )  # fmt: skip

    def _fit(self) -> None:
        """The table's correction and error, from whole networks; before anything is predicted."""
        about = self.origin.about
        if self.options.networks:
            self.table.fit(
                self.origin.shape, about.side, about.classes, self.options.networks,
                self.options.seed,
            )  # fmt: skip

    def _check_target(self) -> None:
        """Say before anything is trained that the target is no target.

        Raises SlimError where the smallest network is too slow, or the whole one fast enough.
        """
        origin, target = self.origin, self.options.target_ms
        whole = origin.family.whole(origin.shape)
        least = smallest(origin.family, whole)
        floor, ceiling = self.clock.predict([least.shape, whole.shape])
        self._ended("latency table")
        if target < floor:
            raise SlimError(
                f"the target of {target:.4g} ms is below the smallest network of the family, which "
                f"takes {floor:.4g} ms as predicted: no network of {origin.about.family} at "
                f"{origin.about.side} pixels is faster there"
            )
        if target >= ceiling and self.options.target_size_m is None:
            raise SlimError(
                f"there is nothing to slim: the whole network takes {ceiling:.4g} ms as predicted, "
                f"and the target is {target:.4g} ms. Convert it as it is"
            )

    def _source(self) -> Step:
        """What subnets inherit from: the trained network, or what is trained now."""
        origin, options = self.origin, self.options
        about = origin.about
        module = origin.trained
        if module is not None:
            step = Step("source", "source", {"weights": origin.weights_sha256})
            return self._do(step, lambda out, tell: save_source(module, about, out))
        settings = {
            "about": asdict(about), "epochs": options.supernet_epochs, "seed": options.seed,
            "counts": self.counts,
        }  # fmt: skip
        step = Step("supernet" if about.supernet else "network", "train", settings)
        return self._do(
            step,
            lambda out, tell: train_source(
                about, self.learning, step.folder, options.supernet_epochs, out, tell
            ),
        )

    @property
    def counts(self) -> list[int]:
        """Of pictures; which they are is in the journal."""
        learning = self.learning
        return [len(learning.train), len(learning.held), len(learning.test)]

    def _weigh(self, source: Path, pictures: Pictures, out: Path, tell: Tell) -> None:
        tell(0.0, "of blocks and channels")
        about, module = load_source(source)
        seen = batches(pictures.settle, pictures.settle_labels, about.mean, about.std)
        save_importance(self.origin.family.importance(module, list(seen)), out)

    def _baselines(self, found: Found, scorer: Callable[[str], Evaluator]) -> list[Other]:
        family, given = self.origin.family, self.origin.given
        band = band_of(found.landings[-1].aim, found.end.ms)
        scaled = uniform(family, given, band, self.clock, scorer("uniform scaling"))
        self._ended("uniform scaling")
        drawn = random_search(
            family, self.origin.shape, found.evaluated, band, self.clock,
            scorer("random search"), self.options.seed,
        )  # fmt: skip
        self._ended("random search")
        return [*scaled, *drawn]

    def _chosen(self, found: Found, others: list[Other]) -> dict[str, Subnet]:
        """What is fine-tuned: the end, and where asked the baselines' best of the same latency."""
        chosen = {"search": found.end.subnet}
        if self.options.finish_baselines:
            scaled = [other for other in others if other.factor is not None]
            drawn = best_of([other for other in others if other.factor is None])
            chosen |= {"uniform": scaled[-1].subnet} if scaled else {}
            chosen |= {"random": drawn.subnet} if drawn else {}
        return chosen

    def _measure(self, ground: Ground, found: Found, others: list[Other]) -> Mapping[Subnet, float]:
        """Whole networks, measured: some of the way, the uniform ones, the best random one."""
        path = [point.subnet for point in found.path]
        count = min(len(path), MEASURED_POINTS)
        places = {round(i * (len(path) - 1) / max(count - 1, 1)) for i in range(count)}
        wanted = [path[place] for place in sorted(places)]
        wanted += [other.subnet for other in others if other.factor is not None]
        drawn = best_of([other for other in others if other.factor is None])
        wanted += [drawn.subnet] if drawn else []
        modules = {str(i): ground.inherited(s) for i, s in enumerate(dict.fromkeys(wanted))}
        times = self.clock.measure(modules)
        self._ended("latency table")
        return {s: times[str(i)] for i, s in enumerate(dict.fromkeys(wanted))}

    def _finish(self, way: str, subnet: Subnet, inputs: Mapping[str, Step], ground: Ground) -> Path:
        """Fine-tune; the folder with the weights and the scores."""
        settings = {"subnet": as_json(subnet), "epochs": self.options.epochs}
        step = Step(f"finish-{way}", "tune", settings, inputs)
        self._do(
            step,
            lambda out, tell: tune(
                ground, subnet, self.learning, step.folder, self.options.epochs, out, tell
            ),
        )
        return output_of(step, self.steps)

    def _do(self, step: Step, task: Callable[[Path, Tell], None]) -> Step:
        """Do a step in this process, unless it is done."""

        def run(
            settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
        ) -> None:
            task(out, tell)

        def tell(share: float, text: str) -> None:
            self.progress(Event(step.name, State.RUNNING, share, text))

        reused = is_done(step, self.steps)
        with writing(self.space.root, GOAL):
            carry_out(step.order(), run, self.steps, tell)
        self.progress(Event(step.name, State.REUSED if reused else State.DONE, 1.0))
        self.done[step.name] = step
        return step

    def _tell_point(self, point: Point, aim: float) -> None:
        text = f"{point.ms:.4g} ms of {aim:.4g}, {point.score.top1:.2f} %: {point.action}"
        self.progress(Event("search", State.RUNNING, 0.0, text))

    def _ended(self, name: str) -> None:
        self.progress(Event(name, State.DONE, 1.0))
