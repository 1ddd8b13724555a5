"""Scores of subnets, side by side in processes here or on Ray; what was scored once is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.jobs.inline import InlineRunner
from converters.jobs.kit import Kit
from converters.jobs.local import Folders, Job, LocalRunner, Runner
from converters.jobs.progress import Event, Progress, State
from converters.jobs.steps import Step, Tell, output_of
from converters.slim.candidates import Score, as_json, from_json
from converters.slim.errors import SlimError, SlimFailed
from converters.slim.families.base import Subnet
from converters.slim.source import channels_last, ground_of, params_of

SCORE = "score.json"
TASKS = {"score": "converters.slim.evaluate:score_subnet"}
KIT = Kit("converters.slim.evaluate:TASKS", SlimError, SlimFailed)


def score_subnet(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Inherit, settle and score one subnet."""
    ground = ground_of(inputs)
    module = ground.inherited(from_json(settings["subnet"]))
    top1, loss = scores_of(module, ground.holding())
    score = Score(top1, loss, params_of(module))
    (out / SCORE).write_text(json.dumps(vars(score)) + "\n")


@torch.no_grad()
def scores_of(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Top-1 in percent, and mean cross-entropy in nats, of batches of pictures and labels."""
    module = channels_last(module.eval())
    right, loss, count = 0, 0.0, 0
    for x_BCHW, labels in batches:
        logits = module(x_BCHW).float()
        right += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    return 100 * right / count, loss / count


@dataclass
class Evaluator:
    """Scores subnets of one source, whose steps are done. name is the phase that listeners see."""

    source: Step
    importance: Step
    pictures: Step
    folders: Folders
    runner: Runner
    jobs: int
    progress: Progress
    name: str = "search"

    def score(self, subnets: Sequence[Subnet], text: str) -> list[Score]:
        """The score of each subnet. Raises SlimError as a step did."""
        inputs = {"source": self.source, "importance": self.importance, "pictures": self.pictures}
        steps = [Step("score", "score", {"subnet": as_json(subnet)}, inputs) for subnet in subnets]
        different = list({step.folder: step for step in steps}.values())
        # By turns, so that every job has some of the large ones.
        shares = [tuple(different[index :: self.jobs]) for index in range(self.jobs)]
        jobs = [Job(f"score{index}", share) for index, share in enumerate(shares) if share]
        done = 0

        def tell(event: Event) -> None:
            nonlocal done
            if event.state is not State.RUNNING:
                done += 1
            share = done / len(different)
            told = f"{text}, {done} of {len(different)} scored"
            self.progress(Event(self.name, State.RUNNING, share, told))

        self.runner.run(jobs, tell)
        return [self._read(step) for step in steps]

    def _read(self, step: Step) -> Score:
        path = output_of(step, self.folders.steps) / SCORE
        try:
            return Score(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SlimError(f"{path} is damaged; remove {path.parent} to score it anew") from error


def runner_of(folders: Folders, jobs: int, threads: int, ray: str | None) -> Runner:
    """Ray at an address, else `jobs` processes here; one job is done in this process."""
    if ray is not None:
        from converters.jobs.ray_jobs import RayRunner

        return RayRunner(folders, ray, threads, KIT)
    return InlineRunner(folders, KIT) if jobs == 1 else LocalRunner(folders, jobs, threads, KIT)
