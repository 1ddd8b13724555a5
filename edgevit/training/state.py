"""Where a run stands, so that it can go on as if nothing had been: CKPT/state/resume.safetensors.

One file, replaced as a whole: tensors of the module, its moving average and AdamW's moments, and in
the header, as JSON, the place in the run, the rows of the log and the options. No code in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.training.ema import Ema
from edgevit.training.files import read_tensors, same_module, write_tensors
from edgevit.training.options import FREE, TrainingError, TrainOptions
from edgevit.training.progress import EpochRow
from edgevit.training.result import Best, Scores

STATE = Path("state") / "resume.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Journal:
    """The place in the run: `step` steps of epoch `epoch` (both from 0) are done.

    loss_sum and seconds are those of these steps; updates counts AdamW's steps.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    rows: list[EpochRow] = field(default_factory=list)
    best: Best | None = None


def identity(
    options: TrainOptions, classes: tuple[str, ...], counts: tuple[int, int]
) -> dict[str, Any]:
    """What a continuation must share with the beginning, as JSON gives it back."""
    told = {
        name: value
        for name, value in vars(options).items()
        if name not in FREE and name not in ("preprocess", "facts")
    }
    told |= asdict(options.preprocess) if options.preprocess else {}
    told |= dict(options.facts)
    told |= {"classes": classes, "train_examples": counts[0], "test_examples": counts[1]}
    as_read: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return as_read


def save_state(
    out: Path,
    module: nn.Module,
    ema: Ema | None,
    optimizer: torch.optim.Optimizer,
    journal: Journal,
    told: Mapping[str, Any],
) -> None:
    """Replace the state in the folder `out`. Raises TrainingError where the disk refuses."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{name}": value for name, value in ema.module.state_dict().items()}
    for name, value in module.named_parameters():
        for moment in MOMENTS:
            if moment in optimizer.state.get(value, {}):
                tensors[f"{moment}.{name}"] = optimizer.state[value][moment]
    about = json.dumps({"journal": asdict(journal), "identity": told})
    write_tensors(out / STATE, tensors, about)


def load_state(
    out: Path,
    module: nn.Module,
    ema: Ema | None,
    optimizer: torch.optim.Optimizer,
    told: Mapping[str, Any],
) -> Journal:
    """Put everything back. Raises TrainingError for no state, another model or other options."""
    path = out / STATE
    if not path.is_file():
        raise TrainingError(f"{out} holds no run to resume (no {STATE}); leave --resume out")
    tensors, about = read_tensors(path)
    header = json.loads(about) if about else {}
    if "journal" not in header:
        raise TrainingError(f"{path} is no state of edgevit train; give the folder of a run")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    same_module(module, parts["model"], out)
    _same_run(header["identity"], told, out)
    module.load_state_dict(parts["model"])
    if ema is not None:
        ema.module.load_state_dict(parts["ema"])
    journal = _journal(header["journal"])
    for name, value in module.named_parameters():
        if name in parts.get(MOMENTS[0], {}):
            # Like the parameter: AdamW's fused form wants the same memory layout.
            moments = {m: torch.empty_like(value).copy_(parts[m][name]) for m in MOMENTS}
            step = torch.tensor(float(journal.updates), device=value.device)
            optimizer.state[value] = {"step": step, **moments}
    return journal


def _journal(read: dict[str, Any]) -> Journal:
    rows = [EpochRow(**row) for row in read.pop("rows")]
    best = read.pop("best")
    if best is not None:
        best = Best(best["epoch"], best["ema"], Scores(**best["scores"]))
    return Journal(**read, rows=rows, best=best)


def _same_run(begun: Mapping[str, Any], told: Mapping[str, Any], out: Path) -> None:
    differing = [name for name in {**begun, **told} if begun.get(name) != told.get(name)]
    if differing:
        listed = "; ".join(
            f"{name} was {_short(begun.get(name))}, now {_short(told.get(name))}"
            for name in differing
        )
        raise TrainingError(
            f"{out} was begun otherwise: {listed}. A run goes on only as it was begun; give the "
            "same again, or another folder"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
