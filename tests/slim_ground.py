"""A trained-enough source of the tiny family in step folders, as a search finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from helpers import randomise
from slim_tiny import NAME, SIDE, WHOLE, Sum, TinyFamily, TinyNet

from converters.jobs.inline import InlineRunner
from converters.jobs.local import Folders, LocalRunner, Runner
from converters.jobs.progress import silent
from converters.jobs.steps import Step, carry_out, output_of
from converters.slim.candidates import Clock
from converters.slim.clock import MEASURED, PREDICTED
from converters.slim.evaluate import KIT, Evaluator
from converters.slim.families import registry
from converters.slim.journal import Journal
from converters.slim.objective import LatencyObjective
from converters.slim.pictures import Pictures
from converters.slim.search import Search
from converters.slim.source import (
    About,
    Ground,
    ground_of,
    save_importance,
    save_source,
)
from converters.slim.trajectory import Found

SITE = """
from converters.slim.families import registry
registry.FAMILIES["tinyslim"] = "slim_tiny:TinyFamily"
"""
DOTTED = "slim_tiny:TinyFamily"


def folders_in(place: Path) -> Folders:
    found = Folders(place / "steps", place / "logs", place / "tmp")
    for folder in (found.steps, found.logs, found.temporary):
        folder.mkdir(parents=True, exist_ok=True)
    return found


def pictures() -> Pictures:
    rng = np.random.default_rng(0)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 255, (count, SIDE, SIDE, 3)).astype(np.uint8)
        images[np.arange(count), 3 * labels] = 250  # a line whose height is the class
        return images, labels

    return Pictures(*some(64), *some(96))


def prepared(folders: Folders) -> dict[str, Step]:
    """The steps that a search needs, done."""
    shape = {"widths": list(WHOLE.widths), "depths": list(WHOLE.depths)}
    about = About(NAME, shape, False, 10, SIDE, [0.5] * 3, [0.25] * 3)
    module = TinyNet(WHOLE, 10)
    randomise(module, 0)
    seen = pictures()
    source = Step("source", "source", {"seed": 0})
    drawn = Step("pictures", "pictures", {"sha256": seen.sha256})
    weighed = Step("importance", "importance", {}, {"source": source, "pictures": drawn})

    def weigh(*given: object) -> None:
        x = torch.from_numpy(seen.settle).permute(0, 3, 1, 2).float() / 64 - 2
        batch = (x, torch.from_numpy(seen.settle_labels))
        save_importance(TinyFamily().importance(module.eval(), [batch]), given[2])

    for step, task in (
        (source, lambda *given: save_source(module.eval(), about, given[2])),
        (drawn, lambda *given: seen.save(given[2])),
        (weighed, weigh),
    ):
        carry_out(step.order(), task, folders.steps, lambda share, text: None)
    return {"source": source, "importance": weighed, "pictures": drawn}


def ground(folders: Folders, steps: dict[str, Step]) -> Ground:
    return ground_of({role: output_of(step, folders.steps) for role, step in steps.items()})


def evaluator(folders: Folders, steps: dict[str, Step], jobs: int = 1) -> Evaluator:
    runner: Runner = InlineRunner(folders, KIT)
    if jobs > 1:
        runner = LocalRunner(folders, jobs, 1, KIT)
    return Evaluator(
        steps["source"], steps["importance"], steps["pictures"], folders, runner, jobs, silent
    )


class Journalled(Sum):
    """The tests' clock, whose words go through the journal as the real one's do."""

    def __init__(self, journal: Journal, skew: float = 1.0) -> None:
        super().__init__(skew)
        self.journal = journal

    def predict(self, shapes, ahead=None):
        found = []
        for shape in shapes:
            if self.journal.get(PREDICTED, str(shape)) is None:
                self.journal.keep(PREDICTED, str(shape), self.rough(shape))
            found.append(self.journal.get(PREDICTED, str(shape)))
        return found

    def measure(self, modules):
        for module in modules.values():
            if self.journal.get(MEASURED, str(module.shape)) is None:
                self.journal.keep(MEASURED, str(module.shape), self.skew * self.rough(module.shape))
        return {n: self.journal.get(MEASURED, str(m.shape)) for n, m in modules.items()}


def run(place: Path, clock: Clock | None = None) -> Found:
    """A search in a folder, from the beginning or on."""
    folders = folders_in(place)
    steps = prepared(folders)
    own = ground(folders, steps)
    clock = clock or Journalled(Journal(place, {"seed": 0}), skew=1.12)
    whole = own.family.whole(WHOLE)
    goal = LatencyObjective(0.35 * clock.rough(WHOLE))
    search = Search(
        own.family, own.importance, evaluator(folders, steps), clock, goal, own.inherited
    )
    return search.run(whole)


def told(found: Found) -> list[tuple[object, ...]]:
    """All that a trajectory says."""
    way = [(p.subnet, p.ms, p.score, p.action, p.tried) for p in found.path]
    return [*way, *found.landings, (found.evaluated,)]


if __name__ == "__main__":
    registry.FAMILIES[NAME] = DOTTED
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
